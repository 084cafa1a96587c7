//! A log that a test can make fail.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use futures::FutureExt;
use headwater_control::{CONTROL_TOPIC, STATUS_TOPIC};
use headwater_log::{
    Appended, BatchBuilder, BoxFuture, Chunk, EncodedBatch, Ends, Error, FencedWriter, Log,
    MemoryLog, Reader, Record, TopicSpec, WriterId,
};
use headwater_proto::status::v1::ShardStatus;
use headwater_types::{Epoch, GenerationId, Name, Offset, PartitionId};
use parking_lot::{Condvar, Mutex};
use prost::Message;

use crate::testing::fixtures::{P0, name};

/// How a process reaches the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Connection {
    #[default]
    Open,
    /// Every call stands still, as in a process that is stopped.
    Frozen,
    /// Every call fails, as when the log is away, or for a process that is dead to the others.
    Cut,
}

/// A process's view of a memory log. Its fenced writers can be made to store a batch and then fail, or to
/// fail before.
pub(crate) struct TestLog {
    pub(crate) memory: MemoryLog,
    /// So many appends of fenced writers are stored, but not acknowledged.
    pub(crate) doubtful: Arc<AtomicU32>,
    /// So many are not stored.
    pub(crate) refused: Arc<AtomicU32>,
    pub(super) connection: Arc<(Mutex<Connection>, Condvar)>,
    /// How often ends of the topic of orders were asked for.
    pub(crate) ends_asked: AtomicU32,
    /// Where readers of the topic of orders began.
    pub(crate) begun: Mutex<Vec<(PartitionId, Offset)>>,
    /// So many partitions more than there are.
    pub(crate) added: AtomicU32,
    /// Offsets that hold no record in partition 0 of the topic of orders; batches must end and begin there.
    pub(crate) gap: Mutex<Option<(u64, u64)>>,
    pub(crate) remote: AtomicBool,
    /// What somebody else says just before this process next says something of the same shard.
    pub(crate) interjection: Arc<Mutex<Option<ShardStatus>>>,
    /// The line is cut as soon as that was said.
    pub(crate) interrupted: AtomicBool,
    /// The control topic hands out nothing more.
    pub(crate) deaf: Arc<AtomicBool>,
    /// So many appends to the status topic are not stored, and that is said after a while.
    pub(crate) lost: Arc<AtomicU32>,
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
        memory.create_topic(&name("orders"), TopicSpec::keep(partitions)).unwrap();
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
            ends_asked: AtomicU32::new(0),
            begun: Mutex::default(),
            added: AtomicU32::new(0),
            gap: Mutex::default(),
            remote: AtomicBool::new(false),
            interjection: Arc::default(),
            interrupted: AtomicBool::new(false),
            deaf: Arc::default(),
            lost: Arc::default(),
        })
    }

    pub(crate) fn set(&self, connection: Connection) {
        *self.connection.0.lock() = connection;
        self.connection.1.notify_all();
    }

    pub(crate) fn connection(&self) -> Connection {
        *self.connection.0.lock()
    }

    /// Appends records in one batch. An odd number is an order of user 1 to 7, the others are no JSON.
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
        futures::executor::block_on(self.memory.append(&name("orders"), partition, batch)).unwrap();
    }

    /// Generation, sequence and value of every dead letter, partition by partition in the order of the
    /// topic.
    pub(crate) fn dead_letters(&self) -> Vec<(GenerationId, String, String)> {
        let topic = name("orders.dead-letters");
        let Some(spec) = self.memory.topic(&topic).unwrap() else { return Vec::new() };
        let mut letters = Vec::new();
        for partition in (0..spec.partitions).map(PartitionId) {
            let ends = self.memory.ends(&topic, partition).unwrap();
            let mut reader = self.memory.reader(&topic, partition, ends.start).unwrap();
            while let Some(chunk) = reader.read(1 << 20, Duration::ZERO).unwrap() {
                for record in chunk.records(ends.start) {
                    let record = record.unwrap();
                    let text =
                        |name| std::str::from_utf8(record.headers.get(name).unwrap()).unwrap();
                    letters.push((
                        text("headwater.generation").parse().unwrap(),
                        text("headwater.sequence").into(),
                        String::from_utf8(record.value.unwrap().to_vec()).unwrap(),
                    ));
                }
            }
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

/// Says something as a process would that nobody sees.
pub(crate) fn append_status(log: &MemoryLog, status: &ShardStatus) {
    let key = format!("{}/{}", status.generation, status.partition);
    let mut batch = BatchBuilder::new();
    batch.push(0, Some(key.as_bytes()), Some(&status.encode_to_vec()), &[]);
    let append = log.append(&name(STATUS_TOPIC), P0, batch.build().unwrap());
    append.now_or_never().unwrap().unwrap();
}

/// Stands still or fails, as the line is.
pub(super) fn pass(connection: &(Mutex<Connection>, Condvar)) -> Result<(), Error> {
    let mut state = connection.0.lock();
    while *state == Connection::Frozen {
        connection.1.wait(&mut state);
    }
    match *state {
        Connection::Open => Ok(()),
        Connection::Frozen | Connection::Cut => Err(is_cut()),
    }
}

fn is_cut() -> Error {
    Error::Unavailable("the line is cut".into())
}

struct TestWriter {
    inner: Arc<dyn FencedWriter>,
    doubtful: Arc<AtomicU32>,
    refused: Arc<AtomicU32>,
    connection: Arc<(Mutex<Connection>, Condvar)>,
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
    ) -> BoxFuture<'static, Result<Appended, Error>> {
        let failure = || Error::Unavailable("the test wants it".into());
        if let Err(error) = pass(&self.connection) {
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
    connection: Arc<(Mutex<Connection>, Condvar)>,
    topic: Name,
    partition: PartitionId,
    gap: Option<(u64, u64)>,
    deaf: Arc<AtomicBool>,
}

impl Reader for TestReader {
    fn position(&self) -> Offset {
        self.inner.position()
    }

    fn read(&mut self, max_bytes: usize, wait: Duration) -> Result<Option<Chunk>, Error> {
        pass(&self.connection)?;
        if self.deaf.load(Ordering::Relaxed) && self.topic.as_str() == CONTROL_TOPIC {
            std::thread::sleep(wait.min(Duration::from_millis(5)));
            return Ok(None);
        }
        if let Some((from, to)) = self.gap
            && (from..to).contains(&self.position().0)
        {
            self.inner = self.log.reader(&self.topic, self.partition, Offset(to))?;
            return Ok(None);
        }
        // A batch at a time, so that none of the gap is handed out with what is before it.
        let bytes = if self.gap.is_some() { 1 } else { max_bytes };
        let chunk = self.inner.read(bytes, wait)?;
        pass(&self.connection)?;
        Ok(chunk)
    }
}

impl Log for TestLog {
    fn create_topic(&self, topic: &Name, spec: TopicSpec) -> Result<(), Error> {
        pass(&self.connection)?;
        // The log in memory compacts at once. Kafka never compacts what was just written, and several
        // processors need that.
        let spec = match topic.as_str() {
            STATUS_TOPIC => TopicSpec::keep(spec.partitions),
            _ => spec,
        };
        self.memory.create_topic(topic, spec)
    }

    fn topic(&self, topic: &Name) -> Result<Option<TopicSpec>, Error> {
        pass(&self.connection)?;
        let mut spec = self.memory.topic(topic)?;
        if let Some(spec) = &mut spec
            && topic.as_str() == "orders"
        {
            spec.partitions += self.added.load(Ordering::Relaxed);
        }
        Ok(spec)
    }

    fn is_remote(&self) -> bool {
        self.remote.load(Ordering::Relaxed)
    }

    fn ends(&self, topic: &Name, partition: PartitionId) -> Result<Ends, Error> {
        pass(&self.connection)?;
        if topic.as_str() == "orders" {
            self.ends_asked.fetch_add(1, Ordering::Relaxed);
        }
        self.memory.ends(topic, partition)
    }

    fn append(
        &self,
        topic: &Name,
        partition: PartitionId,
        batch: EncodedBatch,
    ) -> BoxFuture<'static, Result<Appended, Error>> {
        let about_shards = topic.as_str() == STATUS_TOPIC;
        if about_shards && take(&self.lost) {
            return Box::pin(async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                Err(Error::Uncertain("it was not stored".into()))
            });
        }
        // Held, so that nothing comes to the log any more once the line is cut.
        let mut connection = self.connection.0.lock();
        match *connection {
            Connection::Open => {}
            Connection::Cut => return Box::pin(async { Err(is_cut()) }),
            Connection::Frozen => {
                drop(connection);
                let (connection, log, topic) =
                    (self.connection.clone(), self.memory.clone(), topic.clone());
                return Box::pin(async move {
                    // Not `pass`: a task of the runtime must not stand still.
                    while *connection.0.lock() == Connection::Frozen {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                    pass(&connection)?;
                    log.append(&topic, partition, batch).await
                });
            }
        }
        let interjected = about_shards.then(|| interject(&self.interjection, &batch)).flatten();
        if let Some(status) = &interjected {
            append_status(&self.memory, status);
        }
        let append = self.memory.append(topic, partition, batch);
        if interjected.is_some() && self.interrupted.load(Ordering::Relaxed) {
            *connection = Connection::Cut;
        }
        append
    }

    fn reader(
        &self,
        topic: &Name,
        partition: PartitionId,
        from: Offset,
    ) -> Result<Box<dyn Reader>, Error> {
        pass(&self.connection)?;
        let inner = self.memory.reader(topic, partition, from)?;
        let orders = topic.as_str() == "orders";
        if orders {
            self.begun.lock().push((partition, from));
        }
        let gap = *self.gap.lock();
        Ok(Box::new(TestReader {
            log: self.memory.clone(),
            inner,
            connection: self.connection.clone(),
            topic: topic.clone(),
            partition,
            gap: gap.filter(|_| orders && partition == P0),
            deaf: self.deaf.clone(),
        }))
    }

    fn writer(&self, id: &WriterId) -> Result<Arc<dyn FencedWriter>, Error> {
        pass(&self.connection)?;
        let inner = self.memory.writer(id)?;
        let (doubtful, refused) = (self.doubtful.clone(), self.refused.clone());
        Ok(Arc::new(TestWriter { inner, doubtful, refused, connection: self.connection.clone() }))
    }

    fn trim(&self, topic: &Name, partition: PartitionId, before: Offset) -> Result<(), Error> {
        self.memory.trim(topic, partition, before)
    }

    fn size(
        &self,
        topic: &Name,
        partition: PartitionId,
        from: Offset,
        to: Offset,
    ) -> Result<u64, Error> {
        pass(&self.connection)?;
        self.memory.size(topic, partition, from, to)
    }
}
