//! A log that a test can make fail.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use futures::FutureExt;
use headwater_control::{CONTROL_TOPIC, STATUS_TOPIC};
use headwater_log::{
    Answer, Appended, BatchBuilder, Chunk, EncodedBatch, Ends, Error, FencedWriter, Log, MemoryLog,
    Reader, Record, RecordLimit, TopicSpec, WriterId, answered, block_on,
};
use headwater_proto::status::v1::ShardStatus;
use headwater_types::{Epoch, GenerationId, Name, Offset, PartitionId};
use parking_lot::Mutex;
use prost::Message;

use crate::{
    blocking::read_until,
    testing::{
        connection::{Connection, Link, is_cut},
        fixtures::{P0, PATIENCE, name},
    },
};

/// A process's view of a memory log, with faults that a test chooses.
pub(crate) struct TestLog {
    pub(crate) memory: MemoryLog,
    /// How many appends of fenced writers are stored but not acknowledged.
    pub(crate) doubtful: Arc<AtomicU32>,
    /// How many appends of fenced writers are not stored.
    pub(crate) refused: Arc<AtomicU32>,
    pub(super) connection: Arc<Link>,
    /// No writer can be claimed.
    pub(crate) claims_refused: AtomicBool,
    /// How often the log was asked for the ends of the topic of orders.
    pub(crate) ends_asked: AtomicU32,
    /// Where readers of the topic of orders began.
    pub(crate) readers_begun_at: Mutex<Vec<(PartitionId, Offset)>>,
    /// How many more partitions the topic of orders claims to have than it has.
    pub(crate) added_partitions: AtomicU32,
    /// Offsets that hold no record in partition 0 of the topic of orders. Batches must end and
    /// begin there.
    pub(crate) gap: Mutex<Option<(u64, u64)>>,
    /// A status that another process appends just before this one next appends a status of the same
    /// shard.
    pub(crate) interjection: Arc<Mutex<Option<ShardStatus>>>,
    /// The connection is cut as soon as that has happened.
    pub(crate) cut_after_interjection: AtomicBool,
    /// The control topic hands out nothing more.
    pub(crate) control_withheld: Arc<AtomicBool>,
    /// How many appends to the status topic are not stored, and fail after a while.
    pub(crate) lost_statuses: Arc<AtomicU32>,
    /// The limit of a record that the log names, as Kafka does.
    pub(crate) record_limit: Mutex<Option<RecordLimit>>,
}

/// A status, and its offset.
pub(crate) type StatusAt = (u64, ShardStatus);

impl TestLog {
    pub(crate) fn new() -> Arc<Self> {
        Self::with(1)
    }

    /// Its topic of orders has so many partitions.
    pub(crate) fn with(partitions: u32) -> Arc<Self> {
        let memory = MemoryLog::new();
        block_on(memory.create_topic(&name("orders"), TopicSpec::keep(partitions))).unwrap();
        Self::over(memory)
    }

    /// Another process's view of the same log.
    pub(crate) fn another(&self) -> Arc<Self> {
        Self::over(self.memory.clone())
    }

    fn over(memory: MemoryLog) -> Arc<Self> {
        Arc::new(Self {
            memory,
            doubtful: Arc::default(),
            refused: Arc::default(),
            connection: Arc::default(),
            claims_refused: AtomicBool::new(false),
            ends_asked: AtomicU32::new(0),
            readers_begun_at: Mutex::default(),
            added_partitions: AtomicU32::new(0),
            gap: Mutex::default(),
            interjection: Arc::default(),
            cut_after_interjection: AtomicBool::new(false),
            control_withheld: Arc::default(),
            lost_statuses: Arc::default(),
            record_limit: Mutex::default(),
        })
    }

    pub(crate) fn set(&self, connection: Connection) {
        *self.connection.state.lock() = connection;
        self.connection.changed.notify_all();
    }

    /// Freezes the connection, and waits until a shard's thread stands still in a read.
    pub(crate) async fn freeze(&self) {
        self.connection.reader_stalled.store(false, Ordering::Release);
        self.set(Connection::Frozen);
        let begun = Instant::now();
        while !self.connection.reader_stalled.load(Ordering::Acquire) {
            assert!(begun.elapsed() < PATIENCE, "no shard reads");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(crate) fn connection(&self) -> Connection {
        *self.connection.state.lock()
    }

    /// Appends records in one batch. An odd number is an order of user 1 to 7, the others are not
    /// JSON.
    pub(crate) fn orders(&self, numbers: impl IntoIterator<Item = u64>) {
        self.orders_to(P0, numbers);
    }

    pub(crate) fn orders_to(&self, partition: PartitionId, numbers: impl IntoIterator<Item = u64>) {
        let mut batch = BatchBuilder::new();
        for number in numbers {
            let (user, second) = (number % 7 + 1, number % 60);
            let good = format!(
                r#"{{"user_id":{user},"amount":0.{number},"ts":"2020-01-01T00:00:{second:02}Z"}}"#
            );
            let value = if number % 2 == 1 { good } else { format!("bad {number}") };
            batch.push(
                1_577_836_800_000,
                Some(user.to_string().as_bytes()),
                Some(value.as_bytes()),
                &[],
            );
        }
        let batch = batch.build().unwrap();
        block_on(self.memory.append(&name("orders"), partition, batch)).unwrap();
    }

    /// Generation, sequence and value of every dead letter, by partition and offset.
    pub(crate) fn dead_letters(&self) -> Vec<(GenerationId, String, String)> {
        let topic = name("orders.dead-letters");
        let Some(spec) = block_on(self.memory.topic(&topic)).unwrap() else {
            return Vec::new();
        };
        let mut letters = Vec::new();
        for partition in (0..spec.partitions).map(PartitionId) {
            let Ends { start, end } = block_on(self.memory.ends(&topic, partition)).unwrap();
            read_until(&self.memory, &topic, partition, start, end, |record| {
                let text = |name| std::str::from_utf8(record.headers.get(name).unwrap()).unwrap();
                letters.push((
                    text("headwater.generation").parse().unwrap(),
                    text("headwater.sequence").into(),
                    String::from_utf8(record.value.unwrap().to_vec()).unwrap(),
                ));
            })
            .unwrap();
        }
        letters
    }
}

/// The interjection, if this batch is of the same shard.
fn interject(
    interjection: &Mutex<Option<ShardStatus>>,
    batch: &EncodedBatch,
) -> Option<ShardStatus> {
    let mut interjection = interjection.lock();
    let status = interjection.as_ref()?;
    let key = format!("{}/{}", status.generation, status.partition);
    let same = |record: Result<Record<'_>, Error>| record.unwrap().key == Some(key.as_bytes());
    if batch.walk().any(same) { interjection.take() } else { None }
}

/// Appends a status as a process of its own would.
pub(crate) fn append_status(log: &MemoryLog, status: &ShardStatus) {
    let key = format!("{}/{}", status.generation, status.partition);
    let mut batch = BatchBuilder::new();
    batch.push(0, Some(key.as_bytes()), Some(&status.encode_to_vec()), &[]);
    let append = log.append(&name(STATUS_TOPIC), P0, batch.build().unwrap());
    append.now_or_never().unwrap().unwrap();
}

struct TestWriter {
    inner: Arc<dyn FencedWriter>,
    doubtful: Arc<AtomicU32>,
    refused: Arc<AtomicU32>,
    connection: Arc<Link>,
}

fn take(count: &AtomicU32) -> bool {
    count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1)).is_ok()
}

impl FencedWriter for TestWriter {
    fn epoch(&self) -> Epoch {
        self.inner.epoch()
    }

    fn append(
        &self,
        topic: &Name,
        partition: PartitionId,
        batch: EncodedBatch,
    ) -> Answer<Appended> {
        let failure = || Error::Unavailable("the test wants it".into());
        if let Err(error) = self.connection.pass() {
            return Box::pin(async move { Err(error) });
        }
        if take(&self.refused) {
            return Box::pin(async move { Err(failure()) });
        }
        let append = self.inner.append(topic, partition, batch);
        let doubtful = take(&self.doubtful);
        Box::pin(async move {
            let offset = append.await?;
            if doubtful { Err(failure()) } else { Ok(offset) }
        })
    }
}

struct TestReader {
    log: MemoryLog,
    inner: Box<dyn Reader>,
    connection: Arc<Link>,
    topic: Name,
    partition: PartitionId,
    gap: Option<(u64, u64)>,
    control_withheld: Arc<AtomicBool>,
}

impl Reader for TestReader {
    fn position(&self) -> Offset {
        self.inner.position()
    }

    fn read(&mut self, max_bytes: usize, wait: Duration) -> Result<Option<Chunk>, Error> {
        self.pass()?;
        if let Some((from, to)) = self.gap
            && (from..to).contains(&self.position().0)
        {
            self.inner = self.reader_at(Offset(to))?;
            return Ok(None);
        }
        // A batch at a time, so that none of the gap is handed out with what is before it.
        let bytes = if self.gap.is_some() { 1 } else { max_bytes };
        let before = self.position();
        let chunk = self.inner.read(bytes, wait)?;
        self.pass()?;
        if self.topic.as_str() == CONTROL_TOPIC && self.control_withheld.load(Ordering::Relaxed) {
            self.inner = self.reader_at(before)?;
            std::thread::sleep(Duration::from_millis(5));
            return Ok(None);
        }
        Ok(chunk)
    }
}

impl TestReader {
    fn pass(&self) -> Result<(), Error> {
        self.connection.pass_or_stall(|| {
            if self.topic.as_str() == "orders" {
                self.connection.reader_stalled.store(true, Ordering::Release);
            }
        })
    }

    fn reader_at(&self, position: Offset) -> Result<Box<dyn Reader>, Error> {
        block_on(self.log.reader(&self.topic, self.partition, position))
    }
}

impl Log for TestLog {
    fn create_topic(&self, topic: &Name, spec: TopicSpec) -> Answer<()> {
        answered(|| {
            self.connection.pass()?;
            // The log in memory compacts at once. Several processors need what Kafka does: it
            // never compacts the newest records.
            let spec = match topic.as_str() {
                STATUS_TOPIC => TopicSpec::keep(spec.partitions),
                _ => spec,
            };
            block_on(self.memory.create_topic(topic, spec))
        })
    }

    fn topic(&self, topic: &Name) -> Answer<Option<TopicSpec>> {
        answered(|| {
            self.connection.pass()?;
            let mut spec = block_on(self.memory.topic(topic))?;
            if let Some(spec) = &mut spec
                && topic.as_str() == "orders"
            {
                spec.partitions += self.added_partitions.load(Ordering::Relaxed);
            }
            Ok(spec)
        })
    }

    fn record_limit(&self, _topic: &Name) -> Option<RecordLimit> {
        *self.record_limit.lock()
    }

    fn ends(&self, topic: &Name, partition: PartitionId) -> Answer<Ends> {
        answered(|| {
            self.connection.pass()?;
            if topic.as_str() == "orders" {
                self.ends_asked.fetch_add(1, Ordering::Relaxed);
            }
            block_on(self.memory.ends(topic, partition))
        })
    }

    fn append(
        &self,
        topic: &Name,
        partition: PartitionId,
        batch: EncodedBatch,
    ) -> Answer<Appended> {
        let about_shards = topic.as_str() == STATUS_TOPIC;
        if about_shards && take(&self.lost_statuses) {
            return Box::pin(async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Err(Error::Uncertain("it was not stored".into()))
            });
        }
        // Held, so that nothing reaches the log once the connection is cut.
        let mut connection = self.connection.state.lock();
        match *connection {
            Connection::Open => {}
            Connection::Cut => return Box::pin(async { Err(is_cut()) }),
            Connection::Frozen => {
                drop(connection);
                let (connection, log, topic) =
                    (self.connection.clone(), self.memory.clone(), topic.clone());
                return Box::pin(async move {
                    // Not `Link::pass`: a task of the runtime must not block its thread.
                    while *connection.state.lock() == Connection::Frozen {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                    connection.pass()?;
                    log.append(&topic, partition, batch).await
                });
            }
        }
        let interjected = about_shards.then(|| interject(&self.interjection, &batch)).flatten();
        if let Some(status) = &interjected {
            append_status(&self.memory, status);
        }
        let append = self.memory.append(topic, partition, batch);
        if interjected.is_some() && self.cut_after_interjection.load(Ordering::Relaxed) {
            *connection = Connection::Cut;
        }
        append
    }

    fn reader(
        &self,
        topic: &Name,
        partition: PartitionId,
        from: Offset,
    ) -> Answer<Box<dyn Reader>> {
        answered(|| -> Result<Box<dyn Reader>, Error> {
            self.connection.pass()?;
            let inner = block_on(self.memory.reader(topic, partition, from))?;
            let orders = topic.as_str() == "orders";
            if orders {
                self.readers_begun_at.lock().push((partition, from));
            }
            let gap = *self.gap.lock();
            Ok(Box::new(TestReader {
                log: self.memory.clone(),
                inner,
                connection: self.connection.clone(),
                topic: topic.clone(),
                partition,
                gap: gap.filter(|_| orders && partition == P0),
                control_withheld: self.control_withheld.clone(),
            }))
        })
    }

    fn writer(&self, id: &WriterId) -> Answer<Arc<dyn FencedWriter>> {
        answered(|| -> Result<Arc<dyn FencedWriter>, Error> {
            self.connection.pass()?;
            if self.claims_refused.load(Ordering::Relaxed) {
                return Err(Error::Unavailable("the test wants it".into()));
            }
            let inner = block_on(self.memory.writer(id))?;
            let (doubtful, refused) = (self.doubtful.clone(), self.refused.clone());
            Ok(Arc::new(TestWriter {
                inner,
                doubtful,
                refused,
                connection: self.connection.clone(),
            }))
        })
    }

    fn trim(&self, topic: &Name, partition: PartitionId, before: Offset) -> Answer<()> {
        answered(|| block_on(self.memory.trim(topic, partition, before)))
    }

    fn size(&self, topic: &Name, partition: PartitionId, from: Offset, to: Offset) -> Answer<u64> {
        answered(|| {
            self.connection.pass()?;
            block_on(self.memory.size(topic, partition, from, to))
        })
    }
}
