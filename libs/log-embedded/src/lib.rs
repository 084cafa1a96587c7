//! The log in one process, on RocksDB: for `headwater dev`, the examples and most tests.
//!
//! One key holds one batch as it was appended (the format is described in `keys.rs`). A single
//! thread commits: it takes all appends that wait, writes them with one `WriteBatch` and one fsync,
//! and only then acknowledges them. So a thousand writers share the price of one fsync, an
//! acknowledged record survives a power cut, and everything that has to be in order passes through
//! one place.
//!
//! ```text
//! append -> queue (bounded in bytes) -> commit thread -> WriteBatch + fsync -> ends, readers
//! ```
//!
//! # When a write fails
//!
//! A full disk is [`headwater_log::Error::Full`] for every append of the group: none of its batches
//! counts as written. Nothing is added behind a write that failed: the database is opened anew
//! first, as soon as there is room, and stays readable until then. As with every log, an append
//! that was *not* acknowledged may still turn out to have been stored.
//!
//! # Elsewhere
//!
//! The laws and the layout of a batch are `headwater-log`'s; Kafka is `headwater-log-kafka`'s.

mod batches;
mod catalog;
mod commit;
mod database;
mod directory;
mod error;
mod keys;
mod partition;
mod queue;
mod reader;
mod store;

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::JoinHandle,
};

pub use error::Error;
use futures::{FutureExt, channel::oneshot};
use headwater_log::{
    Answer, Appended, Cleanup, DEFAULT_MAX_BATCH_BYTES, EncodedBatch, Ends, Error as LogError,
    FencedWriter, Log, Reader, TopicSpec, WriterId, answered,
};
use headwater_types::{Epoch, Name, Offset, PartitionId};
use parking_lot::{Mutex, RwLock};
use rocksdb::{DB, WriteBatch};

use directory::Directory;
use keys::BatchKey;
use partition::Topic;
use queue::{Claim, Pending, Queue};
use reader::EmbeddedReader;
use store::{Failure, Opened, Store};

/// Every partition costs memory whether or not it is used.
pub(crate) const MAX_PARTITIONS: u32 = 10_000;

/// Sizes, in bytes.
#[derive(Clone, Debug)]
pub struct Options {
    /// The largest batch that is taken.
    pub max_batch_bytes: usize,
    /// The most that waits to be committed, and so the most that is committed at once.
    pub queue_bytes: usize,
    /// RocksDB collects this much of a topic in memory before it writes a file, and twice as much
    /// of all topics together.
    pub write_buffer_bytes: usize,
    /// RocksDB's cache of keys. Batches are cached by the operating system.
    pub block_cache_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_batch_bytes: DEFAULT_MAX_BATCH_BYTES,
            queue_bytes: 32 << 20,
            write_buffer_bytes: 16 << 20,
            block_cache_bytes: 8 << 20,
        }
    }
}

/// A durable [`Log`] in a directory. When it is dropped, what was appended is committed, and
/// readers and writers that are left get errors.
pub struct EmbeddedLog {
    shared: Arc<Shared>,
    committing: Option<JoinHandle<()>>,
}

pub(crate) struct Shared {
    options: Options,
    store: Store,
    topics: RwLock<HashMap<Name, Arc<Topic>>>,
    /// Held during every write. Locked before `topics` and the database.
    claims: Mutex<HashMap<WriterId, Epoch>>,
    next_topic: AtomicU32,
    queue: Queue,
    closed: AtomicBool,
}

pub(crate) fn closed() -> LogError {
    LogError::Unavailable("it is closed".into())
}

impl EmbeddedLog {
    /// Opens the log in `directory`, which is created if need be.
    ///
    /// [`Error::InUse`] while another process has it open, [`Error::NewerFormat`] if it was written
    /// by a version that knows more.
    pub fn open(directory: &Path, options: Options) -> Result<Arc<Self>, Error> {
        let (store, catalog) = Store::open(Directory::claim(directory)?, options.clone())?;
        let next_topic = catalog.topics.iter().map(|topic| topic.id.saturating_add(1)).max();
        let topics = catalog.topics.into_iter().map(|topic| (topic.name.clone(), Arc::new(topic)));
        let shared = Arc::new(Shared {
            topics: RwLock::new(topics.collect()),
            claims: Mutex::new(catalog.claims.into_iter().collect()),
            queue: Queue::new(options.queue_bytes),
            next_topic: AtomicU32::new(next_topic.unwrap_or(0)),
            closed: AtomicBool::new(false),
            options,
            store,
        });
        let own = shared.clone();
        let committing =
            std::thread::Builder::new().name("log-commit".into()).spawn(move || commit::run(&own));
        let committing = committing
            .map_err(|source| Error::Directory { directory: directory.into(), source })?;
        Ok(Arc::new(Self { shared, committing: Some(committing) }))
    }
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        self.shared.queue.close();
        if let Some(committing) = self.committing.take()
            && committing.join().is_err()
        {
            tracing::error!("log commit thread panicked");
        }
        self.shared.closed.store(true, Ordering::Release);
        for topic in self.shared.topics.read().values() {
            topic.partitions().for_each(|(_, partition)| partition.wake());
        }
        self.shared.store.close();
    }
}

impl Shared {
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn find(&self, topic: &Name) -> Result<Arc<Topic>, LogError> {
        self.topics
            .read()
            .get(topic)
            .cloned()
            .ok_or_else(|| LogError::UnknownTopic { topic: topic.clone() })
    }

    /// Writes to the catalog what `fill` adds, the same every time. The caller holds `claims`.
    fn write_catalog(&self, db: &DB, fill: impl Fn(&mut WriteBatch)) -> Result<(), LogError> {
        let written = self.store.write(db, || {
            let mut batch = WriteBatch::default();
            fill(&mut batch);
            batch
        });
        Ok(written?)
    }

    /// The database, ready to be written. The caller holds `claims`.
    pub(crate) fn writable(&self) -> Result<Opened<'_>, Failure> {
        self.store.ready(|| self.topics.read().values().cloned().collect())
    }

    fn append(
        &self,
        topic: &Name,
        partition: PartitionId,
        batch: EncodedBatch,
        claim: Option<Arc<Claim>>,
    ) -> Answer<Appended> {
        match self.submit(topic, partition, batch, claim) {
            Ok(answer) => async { answer.await.unwrap_or_else(|_| Err(closed())) }.boxed(),
            Err(error) => std::future::ready(Err(error)).boxed(),
        }
    }

    fn submit(
        &self,
        name: &Name,
        partition: PartitionId,
        batch: EncodedBatch,
        claim: Option<Arc<Claim>>,
    ) -> Result<oneshot::Receiver<Result<Appended, LogError>>, LogError> {
        let topic = self.find(name)?;
        topic.partition(partition)?;
        let (bytes, limit) = (batch.bytes().len(), self.options.max_batch_bytes);
        if bytes > limit {
            return Err(LogError::TooLarge { topic: name.clone(), bytes, limit });
        }
        if topic.compacts() {
            batch.require_keys(name)?;
        }
        let (done, answer) = oneshot::channel();
        let pending = Pending { topic, partition, batch, claim, done };
        self.queue.push(pending).map_err(|_| closed())?;
        Ok(answer)
    }
}

impl Log for EmbeddedLog {
    fn create_topic(&self, name: &Name, spec: TopicSpec) -> Answer<()> {
        answered(|| {
            let refused = |reason: &'static str| {
                Err(LogError::Refused { topic: name.clone(), reason: reason.into() })
            };
            match spec.partitions {
                0 => return refused("it needs at least one partition"),
                1..=MAX_PARTITIONS => {}
                _ => return refused("the embedded log takes up to 10000 partitions"),
            }
            if spec.cleanup == Cleanup::Expire {
                return refused("the embedded log removes no records by their age");
            }
            let shared = &self.shared;
            let _writing = shared.claims.lock();
            if let Some(existing) = shared.topics.read().get(name).map(|topic| topic.spec) {
                let differs =
                    LogError::TopicDiffers { topic: name.clone(), existing, requested: spec };
                return if existing == spec { Ok(()) } else { Err(differs) };
            }
            // A number is not used again: a topic that could not be created may turn out to exist.
            let id = shared.next_topic.fetch_add(1, Ordering::Relaxed);
            // Batches first: a topic without a place for them would be damage, the reverse is
            // litter.
            drop(shared.writable()?);
            shared.store.create_family(id)?;
            shared.write_catalog(&*shared.writable()?, |batch| {
                batch.put(keys::topic_key(name), keys::encode_topic(id, spec));
            })?;
            shared
                .topics
                .write()
                .insert(name.clone(), Arc::new(Topic::new(id, name.clone(), spec)));
            Ok(())
        })
    }

    fn topic(&self, topic: &Name) -> Answer<Option<TopicSpec>> {
        answered(|| Ok(self.shared.topics.read().get(topic).map(|topic| topic.spec)))
    }

    fn ends(&self, topic: &Name, partition: PartitionId) -> Answer<Ends> {
        answered(|| Ok(self.shared.find(topic)?.partition(partition)?.ends()))
    }

    fn append(
        &self,
        topic: &Name,
        partition: PartitionId,
        batch: EncodedBatch,
    ) -> Answer<Appended> {
        self.shared.append(topic, partition, batch, None)
    }

    fn reader(
        &self,
        topic: &Name,
        partition: PartitionId,
        from: Offset,
    ) -> Answer<Box<dyn Reader>> {
        answered(|| -> Result<Box<dyn Reader>, LogError> {
            let topic = self.shared.find(topic)?;
            topic.check(partition, from, topic.partition(partition)?.ends())?;
            Ok(Box::new(EmbeddedReader {
                shared: self.shared.clone(),
                topic,
                partition,
                position: from,
            }))
        })
    }

    fn writer(&self, id: &WriterId) -> Answer<Arc<dyn FencedWriter>> {
        answered(|| -> Result<Arc<dyn FencedWriter>, LogError> {
            let mut claims = self.shared.claims.lock();
            let epoch = claims.get(id).copied().unwrap_or_default().next();
            self.shared.write_catalog(&*self.shared.writable()?, |batch| {
                batch.put(keys::claim_key(&id.0), epoch.0.to_be_bytes());
            })?;
            claims.insert(id.clone(), epoch);
            let claim = Arc::new(Claim { id: id.clone(), epoch });
            Ok(Arc::new(EmbeddedWriter { shared: self.shared.clone(), claim }))
        })
    }

    fn trim(&self, topic: &Name, id: PartitionId, before: Offset) -> Answer<()> {
        answered(|| {
            let topic = self.shared.find(topic)?;
            let partition = topic.partition(id)?;
            let writing = self.shared.claims.lock();
            let ends = partition.ends();
            if before <= ends.start {
                return Ok(());
            }
            topic.check(id, before, ends)?;
            // The batch with `before` stays whole.
            let mut kept = before;
            let db = self.shared.writable()?;
            let mut batches = topic.batches(&db, id)?;
            batches.seek_for_prev(BatchKey::upper(id.0, before));
            if let Some(key) = topic.key_at(&batches, id)?
                && key.end() > before
            {
                kept = key.base;
            }
            let family = topic.family(&db)?;
            let (from, to) = (BatchKey::lower(id.0, Offset::ZERO), BatchKey::lower(id.0, kept));
            self.shared.write_catalog(&db, |batch| {
                batch.delete_range_cf(family, from, to);
                batch.put(keys::start_key(topic.id, id.0), before.0.to_be_bytes());
            })?;
            partition.trimmed(before);
            if topic.compacts() {
                partition.compaction.lock().forget_before(kept);
            }
            drop((batches, writing));
            // The keys are few and the batches are in files of their own, so this is quick; it lets
            // go of the files in which nothing is left.
            db.compact_range_cf(family, Some(from), Some(to));
            Ok(())
        })
    }

    fn size(&self, topic: &Name, id: PartitionId, from: Offset, to: Offset) -> Answer<u64> {
        answered(|| {
            let topic = self.shared.find(topic)?;
            let partition = topic.partition(id)?;
            let ends = partition.ends();
            let (from, to) = (from.max(ends.start), to.min(ends.end));
            if from >= to {
                return Ok(0);
            }
            let db = self.shared.store.read()?;
            let mut batches = topic.batches(&db, id)?;
            // The bytes before the batch that holds the offset, or before the next one.
            let mut bytes_before = |offset: Offset| -> Result<u64, LogError> {
                batches.seek_for_prev(BatchKey::upper(id.0, offset));
                match topic.key_at(&batches, id)? {
                    Some(key) if key.end() > offset => return Ok(key.before),
                    Some(_) => batches.next(),
                    None => batches.seek(BatchKey::lower(id.0, offset)),
                }
                Ok(topic.key_at(&batches, id)?.map_or_else(|| partition.bytes(), |key| key.before))
            };
            let upper = if to == ends.end { partition.bytes() } else { bytes_before(to)? };
            Ok(upper.saturating_sub(bytes_before(from)?))
        })
    }
}

struct EmbeddedWriter {
    shared: Arc<Shared>,
    claim: Arc<Claim>,
}

impl FencedWriter for EmbeddedWriter {
    fn epoch(&self) -> Epoch {
        self.claim.epoch
    }

    fn append(
        &self,
        topic: &Name,
        partition: PartitionId,
        batch: EncodedBatch,
    ) -> Answer<Appended> {
        self.shared.append(topic, partition, batch, Some(self.claim.clone()))
    }
}
