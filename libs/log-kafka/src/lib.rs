//! The log on Kafka. No other crate knows rdkafka.
//!
//! | part | does | in |
//! | --- | --- | --- |
//! | reading | the bytes of a partition from an offset on, as batches | `pump`, `lane`, `reader` |
//! | membership | which partitions of a generation are ours | `membership` |
//! | appending | one idempotent producer, acks=all | `produce` |
//! | fenced writers | one transactional producer per claim | `writer` |
//! | asking | topics, ends, groups | `admin`, `known` |
//!
//! Reading and membership know nothing of each other, so that a reader which speaks Fetch itself can take
//! the place of librdkafka's.
//!
//! ```text
//! broker ══> librdkafka's queue ──> one thread per consumer ──> lane per reader ──> Reader::read
//!            bounded in bytes       many records at once        whole batches,
//!                                   made into batches again     bounded in bytes
//! ```
//!
//! # What Kafka does in another way
//!
//! - Offsets have gaps: markers of transactions, aborted records, compaction. A reader's position passes
//!   over them; the end of a partition is its last stable offset.
//! - A batch may be stored in pieces, with others' records between them: [`Appended`] says where.
//! - An append that times out may be stored nevertheless: [`Error::Uncertain`].
//! - A record has a limit of its own: [`Log::record_limit`].
//! - Retention may remove what was not read yet: [`Error::Trimmed`] says from where on there is something.
//! - A timestamp of zero, 1970-01-01T00:00:00Z, becomes one millisecond: librdkafka takes zero for "now".
//! - Every question takes a network's time and a thread of its own meanwhile.
//!
//! What brokers acknowledge (acks=all) is on the page caches of all replicas in sync, not on their disks: a
//! power cut on all of them at once may lose it. That is Kafka's contract.

mod admin;
mod check;
mod config;
mod context;
mod error;
mod health;
mod known;
mod lane;
mod membership;
mod placement;
mod produce;
mod pump;
mod reader;
mod refusal;
mod writer;

use std::{sync::Arc, time::Duration};

use headwater_log::{
    Answer, Appended, Assignee, EncodedBatch, Ends, Error, FencedWriter, GroupId, Log, Member,
    Membership, Reader, RecordLimit, TopicSpec, WriterId,
};
use headwater_types::{BoxError, Name, Offset, PartitionId};
use parking_lot::Mutex;

pub use config::{KafkaConfig, Placement, is_secret};

use admin::Admin;
use context::{Context, Trouble};
use health::Health;
use known::Known;
use lane::{Lane, Spares};
use membership::KafkaMember;
use produce::Appender;
use pump::{Pump, ReadAhead};
use reader::KafkaReader;
use refusal::Errand;
use writer::{CLAIMS_SPEC, CLAIMS_TOPIC, KafkaWriter};

/// How many bytes are looked at to learn how large records are.
const SAMPLE_BYTES: u64 = 1 << 20;

/// The [`Log`] on Kafka. Clones share it.
#[derive(Clone)]
pub struct KafkaLog {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    config: KafkaConfig,
    client: String,
    context: Context,
    known: Arc<Known>,
    admin: Arc<Admin>,
    appender: Appender,
    pumps: Mutex<Vec<Arc<Pump>>>,
    spares: Arc<Spares>,
    read_ahead: Arc<ReadAhead>,
    health: Arc<Health>,
    claims: Mutex<bool>,
}

impl KafkaLog {
    /// Opens the log without waiting for a broker. `client` names this process to the brokers.
    ///
    /// # Errors
    ///
    /// librdkafka does not take the settings; [`KafkaConfig::check`] says which.
    pub fn connect(config: &KafkaConfig, client: &str) -> Result<Arc<Self>, Error> {
        let errand = Errand::new(config);
        let context = Context { trouble: Trouble::new(errand.user(), errand.principal()) };
        let failed = |error: rdkafka::error::KafkaError| Error::Unavailable(error.into());
        let known = Arc::<Known>::default();
        let admin = Admin::new(config, client, context.clone(), known.clone());
        let admin = Arc::new(admin.map_err(failed)?);
        let appender = Appender::start(config, client, &context, admin.clone(), &known)?;
        let health = Arc::new(Health::default());
        health.watch(admin.clone(), context.clone(), errand);
        let inner = Inner {
            config: config.clone(),
            client: client.to_owned(),
            context,
            known,
            admin,
            appender,
            pumps: Mutex::default(),
            spares: Arc::default(),
            read_ahead: Arc::new(ReadAhead::new(config.read_ahead_bytes)),
            health,
            claims: Mutex::new(false),
        };
        Ok(Arc::new(Self { inner: Arc::new(inner) }))
    }

    /// Is told whether the brokers can be reached, now and whenever that changes; else why not, with their
    /// addresses.
    pub fn on_reachable(&self, told: impl Fn(Result<(), String>) + Send + Sync + 'static) {
        self.inner.health.on_reachable(Box::new(told));
    }

    /// Waits until every append is answered, or until the deadline.
    pub fn close(&self, deadline: Duration) {
        if let Err(error) = self.inner.appender.flush(deadline) {
            tracing::warn!(%error, "some appends were not answered");
        }
    }
}

impl Inner {
    /// Finds or starts a consumer that does not read the partition yet.
    fn attach(&self, lane: &Arc<Lane>, from: Offset) -> Result<Arc<Pump>, Error> {
        let mut pumps = self.pumps.lock();
        pumps.retain(|pump| !pump.has_ended());
        if let Some(pump) = pumps.iter().find(|pump| pump.attach(lane, from)) {
            return Ok(pump.clone());
        }
        let taken = |index: &usize| pumps.iter().any(|pump| pump.index == *index);
        let index = (0..).find(|index| !taken(index)).unwrap_or_default();
        let pump = Pump::start(&self.config, &self.client, index, &self.context, &self.read_ahead)
            .map_err(|error| error::unavailable(error, &self.context.trouble))?;
        // Nobody else knows it yet.
        pump.attach(lane, from);
        pumps.push(pump.clone());
        Ok(pump)
    }

    /// Bytes and records that a reader finds from `from` on, for about [`SAMPLE_BYTES`] or up to `to`; and
    /// where it stopped.
    fn sample(
        self: &Arc<Self>,
        topic: &Name,
        partition: PartitionId,
        from: Offset,
        to: Offset,
    ) -> Result<(u64, Offset), Error> {
        let mut reader = KafkaReader::new(self.clone(), topic.clone(), partition, from);
        let mut bytes = 0;
        while bytes < SAMPLE_BYTES && reader.position() < to {
            let position = reader.position();
            match reader.read(1 << 20, Duration::ZERO)? {
                Some(chunk) if chunk.end() <= to => bytes += chunk.bytes().len() as u64,
                Some(chunk) => {
                    let whole = (chunk.end().0 - position.0).max(1);
                    bytes += chunk.bytes().len() as u64 * (to.0 - position.0) / whole;
                }
                None if reader.position() == position => break,
                None => {}
            }
        }
        Ok((bytes, reader.position().min(to)))
    }

    /// Judged by samples of the records as they are read, without their compression.
    fn size(
        self: &Arc<Self>,
        topic: &Name,
        partition: PartitionId,
        from: Offset,
        to: Offset,
    ) -> Result<u64, Error> {
        let ends = self.admin.ends(topic, partition)?;
        let (from, to) = (from.max(ends.start), to.min(ends.end));
        if from >= to {
            return Ok(0);
        }
        let (bytes, reached) = self.sample(topic, partition, from, to)?;
        if reached >= to {
            return Ok(bytes);
        }
        let middle = Offset(reached.0 + (to.0 - reached.0) / 2);
        let (more, until) = self.sample(topic, partition, middle, to)?;
        let looked_at = (reached.0 - from.0) + (until.0 - middle.0);
        let whole = u128::from(bytes + more) * u128::from(to.0 - from.0);
        Ok(u64::try_from(whole / u128::from(looked_at.max(1))).unwrap_or(u64::MAX))
    }

    /// Claims a writer; the topic of claims is created before the first claim.
    fn claim(&self, id: &WriterId) -> Result<KafkaWriter, Error> {
        let mut created = self.claims.lock();
        if !*created {
            let topic = Name::new(CLAIMS_TOPIC).map_err(|error| self.unavailable(error))?;
            self.admin.create(&topic, CLAIMS_SPEC).map_err(writer::wrong_claims)?;
            *created = true;
        }
        drop(created);
        KafkaWriter::claim(&self.config, &self.client, &self.context, &self.known, id)
    }

    fn unavailable(&self, error: impl Into<BoxError>) -> Error {
        error::unavailable(error, &self.context.trouble)
    }

    fn unreachable(&self) -> Option<String> {
        self.health.unreachable()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.health.stop();
        for pump in self.pumps.lock().drain(..) {
            pump.stop();
        }
    }
}

/// The answer to a question that blocks for as long as the brokers take: on a thread of a pool that grows
/// and shrinks by itself, so that neither a runtime nor its worker threads are needed.
fn asked<T: Send + 'static>(
    inner: &Arc<Inner>,
    question: impl FnOnce(&Arc<Inner>) -> Result<T, Error> + Send + 'static,
) -> Answer<T> {
    let inner = inner.clone();
    Box::pin(blocking::unblock(move || question(&inner)))
}

impl Log for KafkaLog {
    fn create_topic(&self, topic: &Name, spec: TopicSpec) -> Answer<()> {
        let topic = topic.clone();
        asked(&self.inner, move |log| log.admin.create(&topic, spec))
    }

    fn topic(&self, topic: &Name) -> Answer<Option<TopicSpec>> {
        let topic = topic.clone();
        asked(&self.inner, move |log| log.admin.spec(&topic))
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn ends(&self, topic: &Name, partition: PartitionId) -> Answer<Ends> {
        let topic = topic.clone();
        asked(&self.inner, move |log| log.admin.ends(&topic, partition))
    }

    fn record_limit(&self, topic: &Name) -> Option<RecordLimit> {
        Some(self.inner.appender.record_limit(topic))
    }

    fn append(
        &self,
        topic: &Name,
        partition: PartitionId,
        batch: EncodedBatch,
    ) -> Answer<Appended> {
        self.inner.appender.append(topic, partition, batch)
    }

    fn reader(
        &self,
        topic: &Name,
        partition: PartitionId,
        from: Offset,
    ) -> Answer<Box<dyn Reader>> {
        let topic = topic.clone();
        asked(&self.inner, move |log| {
            let ends = log.admin.ends(&topic, partition)?;
            reader::check(&topic, partition, from, ends)?;
            Ok(Box::new(KafkaReader::new(log.clone(), topic, partition, from)) as Box<dyn Reader>)
        })
    }

    fn writer(&self, id: &WriterId) -> Answer<Arc<dyn FencedWriter>> {
        let id = id.clone();
        asked(&self.inner, move |log| Ok(Arc::new(log.claim(&id)?) as Arc<dyn FencedWriter>))
    }

    fn trim(&self, topic: &Name, partition: PartitionId, before: Offset) -> Answer<()> {
        let topic = topic.clone();
        asked(&self.inner, move |log| log.admin.trim(&topic, partition, before))
    }

    fn size(&self, topic: &Name, partition: PartitionId, from: Offset, to: Offset) -> Answer<u64> {
        let topic = topic.clone();
        asked(&self.inner, move |log| log.size(&topic, partition, from, to))
    }
}

impl Membership for KafkaLog {
    fn join(
        &self,
        group: &GroupId,
        topic: &Name,
        assignee: Arc<dyn Assignee>,
    ) -> Result<Box<dyn Member>, Error> {
        let Inner { config, client, context, .. } = &*self.inner;
        Ok(Box::new(KafkaMember::join(config, client, context, group, topic, assignee)?))
    }

    fn delete(&self, group: &GroupId) -> Answer<()> {
        let group = group.clone();
        asked(&self.inner, move |log| log.admin.delete_group(&group))
    }
}
