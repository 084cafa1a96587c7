//! What the tests have in common: a stream, a view and a log that can be made to fail.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use headwater_engine::ViewPlan;
use headwater_log::{
    BatchBuilder, BoxFuture, EncodedBatch, Ends, Error, FencedWriter, Log, MemoryLog, Reader,
    TopicSpec, WriterId,
};
use headwater_sql::{parse_stream, parse_view, plan_view};
use headwater_types::{Epoch, GenerationId, Name, Offset, PartitionId};

pub(crate) const STREAM_SQL: &str = "
    CREATE STREAM orders (
      user_id BIGINT, amount DOUBLE, ts TIMESTAMP,
      WATERMARK FOR ts AS ts - INTERVAL '5 seconds'
    ) WITH (topic = 'orders', format = 'json', key = 'user_id', partitions = 1)";
pub(crate) const VIEW_SQL: &str = "
    CREATE MATERIALIZED VIEW spend WITH (retention = 'forever') AS
    SELECT user_id, count(*) AS orders, sum(amount) AS spend FROM orders GROUP BY user_id";

pub(crate) const P0: PartitionId = PartitionId(0);

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn generation(number: u64) -> GenerationId {
    format!("{number:016x}").parse().unwrap()
}

pub(crate) fn plan() -> Arc<ViewPlan> {
    let stream = parse_stream(STREAM_SQL).unwrap();
    Arc::new(plan_view(&parse_view(VIEW_SQL).unwrap(), &stream).unwrap())
}

/// A memory log whose fenced writers can be made to store a batch and then fail, or to fail before.
pub(crate) struct TestLog {
    pub(crate) memory: MemoryLog,
    /// So many appends of fenced writers are stored, but not acknowledged.
    pub(crate) doubtful: Arc<AtomicU32>,
    /// So many are not stored.
    pub(crate) refused: Arc<AtomicU32>,
}

impl TestLog {
    pub(crate) fn new() -> Arc<Self> {
        let log =
            Self { memory: MemoryLog::new(), doubtful: Arc::default(), refused: Arc::default() };
        log.memory.create_topic(&name("orders"), TopicSpec::keep(1)).unwrap();
        Arc::new(log)
    }

    /// Appends records in one batch. An odd number is an order of user 1 to 7, the others are no JSON.
    pub(crate) fn orders(&self, numbers: impl IntoIterator<Item = u64>) {
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
        futures::executor::block_on(self.memory.append(
            &name("orders"),
            P0,
            batch.build().unwrap(),
        ))
        .unwrap();
    }

    /// Generation, sequence and value of every dead letter, in the order of the topic.
    pub(crate) fn dead_letters(&self) -> Vec<(GenerationId, String, String)> {
        let topic = name("orders.dead-letters");
        let Some(_) = self.memory.topic(&topic).unwrap() else { return Vec::new() };
        let ends = self.memory.ends(&topic, P0).unwrap();
        let mut reader = self.memory.reader(&topic, P0, ends.start).unwrap();
        let mut letters = Vec::new();
        while let Some(chunk) = reader.read(1 << 20, Duration::ZERO).unwrap() {
            for record in chunk.records(ends.start) {
                let record = record.unwrap();
                let text = |name| std::str::from_utf8(record.headers.get(name).unwrap()).unwrap();
                letters.push((
                    text("headwater.generation").parse().unwrap(),
                    text("headwater.sequence").into(),
                    String::from_utf8(record.value.unwrap().to_vec()).unwrap(),
                ));
            }
        }
        letters
    }
}

struct TestWriter {
    inner: Arc<dyn FencedWriter>,
    doubtful: Arc<AtomicU32>,
    refused: Arc<AtomicU32>,
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
    ) -> BoxFuture<'static, Result<Offset, Error>> {
        let failure = || Error::Unavailable("the test wants it".into());
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

impl Log for TestLog {
    fn create_topic(&self, topic: &Name, spec: TopicSpec) -> Result<(), Error> {
        self.memory.create_topic(topic, spec)
    }

    fn topic(&self, topic: &Name) -> Result<Option<TopicSpec>, Error> {
        self.memory.topic(topic)
    }

    fn ends(&self, topic: &Name, partition: PartitionId) -> Result<Ends, Error> {
        self.memory.ends(topic, partition)
    }

    fn append(
        &self,
        topic: &Name,
        partition: PartitionId,
        batch: EncodedBatch,
    ) -> BoxFuture<'static, Result<Offset, Error>> {
        self.memory.append(topic, partition, batch)
    }

    fn reader(
        &self,
        topic: &Name,
        partition: PartitionId,
        from: Offset,
    ) -> Result<Box<dyn Reader>, Error> {
        self.memory.reader(topic, partition, from)
    }

    fn writer(&self, id: &WriterId) -> Result<Arc<dyn FencedWriter>, Error> {
        let inner = self.memory.writer(id)?;
        let (doubtful, refused) = (self.doubtful.clone(), self.refused.clone());
        Ok(Arc::new(TestWriter { inner, doubtful, refused }))
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
        self.memory.size(topic, partition, from, to)
    }
}

/// Copies a database as a crash at this moment leaves it.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        if entry.file_name() != "LOCK" {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}
