//! RocksDB under the log: opened, read, written, and opened again after a write failed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use headwater_log::{Chunk, Compaction, Error as LogError};
use headwater_types::{BoxError, Offset, PartitionId};
use parking_lot::{MappedRwLockReadGuard, Mutex, RwLock, RwLockReadGuard};
use rocksdb::{Cache, DB, DBRawIterator, ErrorKind, WriteBatch, WriteOptions};

use crate::{
    Error, Options,
    catalog::{Catalog, Unloadable, drop_orphans, load_catalog},
    database::{database_options, family_options, has_failed, open_database},
    directory::Directory,
    keys::{self, BatchKey},
    partition::Topic,
};

/// The database of one data directory.
pub(crate) struct Store {
    directory: Directory,
    options: Options,
    db_options: rocksdb::Options,
    cache: Cache,
    /// `None` once closed, and while it could not be opened again.
    db: RwLock<Option<DB>>,
    /// A write failed. What the write-ahead log holds is in doubt, so nothing is added to it: the
    /// database is opened anew first.
    broken: AtomicBool,
    /// When opening it anew was last given up, and why.
    given_up: Mutex<Option<(Instant, Failure)>>,
}

/// How long a failed attempt to open the database anew answers for the next ones.
const PATIENCE: Duration = Duration::from_millis(100);

/// A failed write, shared by all appends of its group.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    full: bool,
    text: Arc<str>,
}

impl Failure {
    pub(crate) fn unavailable(text: impl Into<Arc<str>>) -> Self {
        Self { full: false, text: text.into() }
    }

    pub(crate) fn to_error(&self) -> LogError {
        let source = BoxError::from(self.text.to_string());
        if self.full { LogError::Full(source) } else { LogError::Unavailable(source) }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

impl From<Failure> for LogError {
    fn from(failure: Failure) -> Self {
        failure.to_error()
    }
}

impl From<rocksdb::Error> for Failure {
    fn from(error: rocksdb::Error) -> Self {
        let text = error.into_string();
        let full =
            ["No space left", "NoSpace", "Space limit"].iter().any(|full| text.contains(full));
        Self { full, text: text.into() }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self {
            full: error.kind() == std::io::ErrorKind::StorageFull,
            text: error.to_string().into(),
        }
    }
}

/// The database as long as this is held.
pub(crate) type Opened<'a> = MappedRwLockReadGuard<'a, DB>;

impl Store {
    pub(crate) fn open(directory: Directory, options: Options) -> Result<(Self, Catalog), Error> {
        let cache = Cache::new_lru_cache(options.block_cache_bytes);
        let database = |error: rocksdb::Error| {
            if error.kind() == ErrorKind::Corruption {
                let detail = error.into_string();
                return Error::Damaged { directory: directory.path().into(), detail };
            }
            Error::Log(Failure::from(error).to_error())
        };
        let db_options = database_options(&options);
        let mut db = open_database(&directory, &options, &db_options, &cache).map_err(database)?;
        let catalog = load_catalog(&db).map_err(|detail| match detail {
            Unloadable::Damaged(detail) => {
                Error::Damaged { directory: directory.path().into(), detail }
            }
            Unloadable::Failed(error) => database(error),
        })?;
        drop_orphans(&mut db, &catalog).map_err(database)?;
        let store = Self {
            directory,
            options,
            db_options,
            cache,
            db: RwLock::new(Some(db)),
            broken: AtomicBool::new(false),
            given_up: Mutex::new(None),
        };
        for topic in &catalog.topics {
            store.refresh(topic)?;
        }
        Ok((store, catalog))
    }

    /// The database as long as the guard is held. Do not ask for it twice at once.
    pub(crate) fn read(&self) -> Result<Opened<'_>, LogError> {
        RwLockReadGuard::try_map(self.db.read(), Option::as_ref)
            .map_err(|_| LogError::Unavailable("it is closed".into()))
    }

    /// Makes sure that something can be written: opens the database again if a write has failed,
    /// and learns anew where the topics end, which may be later than anybody was told.
    pub(crate) fn ready(
        &self,
        topics: impl FnOnce() -> Vec<Arc<Topic>>,
    ) -> Result<Opened<'_>, Failure> {
        if self.broken.load(Ordering::Acquire) {
            let mut given_up = self.given_up.lock();
            match &*given_up {
                Some((when, failure)) if when.elapsed() < PATIENCE => return Err(failure.clone()),
                _ => {}
            }
            *given_up = None;
            if let Err(failure) = self.reopen(&topics()) {
                *given_up = Some((Instant::now(), failure.clone()));
                return Err(failure);
            }
        }
        self.read().map_err(|_| Failure::unavailable("it is closed"))
    }

    /// Writes what `build` returns, the same every time, and returns when it is on the disk.
    pub(crate) fn write(&self, db: &DB, build: impl Fn() -> WriteBatch) -> Result<(), Failure> {
        self.write_with(db, build, true)
    }

    /// Returns before it is on the disk: for what may be undone by a crash.
    fn write_later(&self, db: &DB, build: impl Fn() -> WriteBatch) -> Result<(), Failure> {
        self.write_with(db, build, false)
    }

    fn write_with(
        &self,
        db: &DB,
        build: impl Fn() -> WriteBatch,
        sync: bool,
    ) -> Result<(), Failure> {
        let mut options = WriteOptions::new();
        options.set_sync(sync);
        // Otherwise a write behind a file that could not be written hangs until there is room.
        options.set_no_slowdown(true);
        let failure = loop {
            match db.write_opt(build(), &options) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() != ErrorKind::Incomplete => break error.into(),
                Err(_) if has_failed(db) => break self.diagnose(),
                // Files are being written as fast as they can.
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        self.broken.store(true, Ordering::Release);
        let directory = self.directory.path().display();
        tracing::error!(%directory, error = failure.text(), "log write failed");
        Err(failure)
    }

    /// Why RocksDB cannot write its files, which it only tells its own log.
    fn diagnose(&self) -> Failure {
        match self.directory.probe(self.room()) {
            Ok(()) => Failure::unavailable("a file of the log could not be written"),
            Err(error) => error.into(),
        }
    }

    /// What opening the database may write: what the write-ahead log holds, and a little.
    fn room(&self) -> usize {
        4 * self.options.write_buffer_bytes + (1 << 20)
    }

    /// How often the write-ahead log was forced to the disk.
    #[cfg(test)]
    pub(crate) fn syncs(&self) -> u64 {
        self.db_options.get_ticker_count(rocksdb::statistics::Ticker::WalFileSynced)
    }

    pub(crate) fn create_family(&self, topic: u32) -> Result<(), Failure> {
        let mut db = self.db.write();
        let Some(db) = db.as_mut() else { return Err(Failure::unavailable("it is closed")) };
        let family = keys::family(topic);
        if db.cf_handle(&family).is_some() {
            return Ok(());
        }
        db.create_cf(&family, &family_options(&self.options, &self.cache)).map_err(|error| {
            self.broken.store(true, Ordering::Release);
            error.into()
        })
    }

    pub(crate) fn close(&self) {
        *self.db.write() = None;
        self.directory.release();
    }

    /// Opens the database again once there is room for what that needs, so that it stays readable
    /// as it is until then.
    fn reopen(&self, topics: &[Arc<Topic>]) -> Result<(), Failure> {
        self.directory.probe(self.room())?;
        let mut db = self.db.write();
        *db = None;
        *db = Some(open_database(&self.directory, &self.options, &self.db_options, &self.cache)?);
        drop(db);
        for topic in topics {
            self.refresh(topic).map_err(|error| Failure::unavailable(error.to_string()))?;
        }
        self.broken.store(false, Ordering::Release);
        tracing::info!(directory = %self.directory.path().display(), "log can be written again");
        Ok(())
    }

    /// Learns where the partitions of a topic start and end, from what is stored.
    fn refresh(&self, topic: &Topic) -> Result<(), LogError> {
        let db = self.read()?;
        for (id, partition) in topic.partitions() {
            let known = partition.ends();
            let failed = |error: rocksdb::Error| topic.unreadable(id, known.end, error);
            let start = match db.get_pinned(keys::start_key(topic.id, id.0)).map_err(failed)? {
                None => Offset::ZERO,
                Some(value) => keys::decode_offset(&value).ok_or_else(|| {
                    topic.corrupt(id, known.end, "the catalog's start is no offset")
                })?,
            };
            let mut batches = topic.batches(&db, id)?;
            batches.seek_to_last();
            let last = topic.key_at(&batches, id)?;
            let (last_end, bytes) = match last {
                None => (Offset::ZERO, 0),
                Some(key) => {
                    (key.end(), key.before + batches.value().map_or(0, |batch| batch.len() as u64))
                }
            };
            let end = last_end.max(start);
            if end < known.end {
                let detail =
                    format!("the log held records up to {} and now ends at {end}", known.end);
                return Err(topic.corrupt(id, end, detail));
            }
            if topic.compacts() {
                self.compact_anew(&db, topic, id, batches)?;
            }
            partition.trimmed(start);
            // Nothing is stored any more, and sizes count from there again.
            let bytes = if last.is_none() { partition.bytes() } else { bytes };
            partition.grow(end, bytes);
        }
        Ok(())
    }

    /// Learns which batches hold the latest record of some key, and removes the others.
    fn compact_anew(
        &self,
        db: &DB,
        topic: &Topic,
        id: PartitionId,
        mut batches: DBRawIterator<'_>,
    ) -> Result<(), LogError> {
        let mut compaction = Compaction::default();
        let mut removable = Vec::new();
        batches.seek_to_first();
        while let Some(key) = topic.key_at(&batches, id)? {
            let batch = Chunk::new(batches.value().unwrap_or_default().to_vec(), key.end());
            let batch = batch.of(topic.name.clone(), id);
            removable.extend(compaction.learn(key.base, batch.records(Offset::ZERO))?);
            batches.next();
        }
        *topic.partition(id)?.compaction.lock() = compaction;
        Ok(self.remove(db, topic, id, &removable)?)
    }

    /// Removes the batches at these offsets. A crash may bring them back until they are removed
    /// anew.
    pub(crate) fn remove(
        &self,
        db: &DB,
        topic: &Topic,
        id: PartitionId,
        bases: &[Offset],
    ) -> Result<(), Failure> {
        if bases.is_empty() {
            return Ok(());
        }
        let unreadable = |error: LogError| Failure::unavailable(error.to_string());
        let mut batches = topic.batches(db, id).map_err(unreadable)?;
        let family = topic.family(db).map_err(unreadable)?;
        let mut keys = Vec::with_capacity(bases.len());
        for base in bases {
            batches.seek(BatchKey::lower(id.0, *base));
            if let Some(key) = topic.key_at(&batches, id).map_err(unreadable)?
                && key.base == *base
            {
                keys.push(key.encode());
            }
        }
        self.write_later(db, || {
            let mut removal = WriteBatch::default();
            keys.iter().for_each(|key| removal.delete_cf(family, key));
            removal
        })
    }
}
