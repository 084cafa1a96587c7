//! A log in memory that is away, slow or unsure where a test wants it.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use headwater_log::{
    Answer, Appended, Chunk, EncodedBatch, Ends, Error, FencedWriter, Log, MemoryLog, Reader,
    RecordLimit, TopicSpec, WriterId, answered, block_on,
};
use headwater_types::{Name, Offset, PartitionId};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

/// A [`MemoryLog`] with faults. Every field may be changed while it is used.
pub struct FaultyLog {
    memory: MemoryLog,
    /// Whether every question, read and append fails as unavailable.
    pub away: Arc<AtomicBool>,
    /// How long a question takes.
    pub delay: Mutex<Duration>,
    /// Appends to these partitions of topics that are not spared fail.
    pub failing: Mutex<Vec<PartitionId>>,
    /// Appends to these are stored and then said to be uncertain.
    pub uncertain: Mutex<Vec<PartitionId>>,
    /// Whether acknowledged offsets have gaps of one, as if another client wrote between the
    /// records.
    pub apart: AtomicBool,
    /// Partitions that seem to have been added to every topic that is not spared.
    pub added: AtomicU32,
    /// How large it says that a record may be.
    pub record_limit: Mutex<Option<RecordLimit>>,
    /// The number of reads that find nothing although there are records, as if those were on their
    /// way.
    pub late_reads: Arc<AtomicUsize>,
    /// The number of appends to topics that are not spared which are answered; later ones wait.
    pub let_through: watch::Sender<usize>,
    /// Topics to which appends always succeed at once, unless the log is away.
    pub spared: Mutex<BTreeSet<String>>,
    appends: AtomicUsize,
    questions: AtomicUsize,
}

impl FaultyLog {
    /// Without faults.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            memory: MemoryLog::new(),
            away: Arc::default(),
            delay: Mutex::default(),
            failing: Mutex::default(),
            uncertain: Mutex::default(),
            apart: AtomicBool::new(false),
            added: AtomicU32::new(0),
            record_limit: Mutex::default(),
            late_reads: Arc::default(),
            let_through: watch::Sender::new(usize::MAX),
            spared: Mutex::default(),
            appends: AtomicUsize::new(0),
            questions: AtomicUsize::new(0),
        })
    }

    /// The log without its faults.
    pub fn memory(&self) -> &MemoryLog {
        &self.memory
    }

    /// Appends so far to topics that are not spared, those that fail at once not counted.
    pub fn appends(&self) -> usize {
        self.appends.load(SeqCst)
    }

    /// Questions so far.
    pub fn questions(&self) -> usize {
        self.questions.load(SeqCst)
    }

    fn there(&self) -> Result<(), Error> {
        there(&self.away)
    }

    fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&MemoryLog) -> Answer<T> + Send + 'static,
    ) -> Answer<T> {
        self.questions.fetch_add(1, SeqCst);
        let (memory, away, delay) = (self.memory.clone(), self.away.clone(), *self.delay.lock());
        let answer = move || {
            there(&away)?;
            block_on(question(&memory))
        };
        if delay.is_zero() {
            return answered(answer);
        }
        let (sender, receiver) = oneshot::channel();
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            let _ = sender.send(answer());
        });
        Box::pin(async { receiver.await.map_err(|gone| Error::Unavailable(gone.into()))? })
    }
}

fn there(away: &AtomicBool) -> Result<(), Error> {
    match away.load(SeqCst) {
        true => Err(Error::Unavailable("the broker is gone".into())),
        false => Ok(()),
    }
}

struct FaultyReader {
    inner: Box<dyn Reader>,
    away: Arc<AtomicBool>,
    late: Arc<AtomicUsize>,
}

impl Reader for FaultyReader {
    fn position(&self) -> Offset {
        self.inner.position()
    }

    fn read(&mut self, max_bytes: usize, wait: Duration) -> Result<Option<Chunk>, Error> {
        there(&self.away)?;
        let late = self.late.fetch_update(SeqCst, SeqCst, |late| late.checked_sub(1));
        if late.is_ok() {
            std::thread::sleep(wait.min(Duration::from_millis(1)));
            return Ok(None);
        }
        self.inner.read(max_bytes, wait)
    }
}

impl Log for FaultyLog {
    fn create_topic(&self, topic: &Name, spec: TopicSpec) -> Answer<()> {
        let topic = topic.clone();
        self.ask(move |log| log.create_topic(&topic, spec))
    }

    fn topic(&self, topic: &Name) -> Answer<Option<TopicSpec>> {
        let spared = self.spared.lock().contains(topic.as_str());
        let (topic, added) = (topic.clone(), if spared { 0 } else { self.added.load(SeqCst) });
        let asked = self.ask(move |log| log.topic(&topic));
        Box::pin(async move {
            let spec = asked.await?;
            Ok(spec.map(|spec| TopicSpec { partitions: spec.partitions + added, ..spec }))
        })
    }

    fn ends(&self, topic: &Name, partition: PartitionId) -> Answer<Ends> {
        let topic = topic.clone();
        self.ask(move |log| log.ends(&topic, partition))
    }

    fn record_limit(&self, topic: &Name) -> Option<RecordLimit> {
        let spared = self.spared.lock().contains(topic.as_str());
        self.record_limit.lock().filter(|_| !spared)
    }

    fn append(
        &self,
        topic: &Name,
        partition: PartitionId,
        batch: EncodedBatch,
    ) -> Answer<Appended> {
        if let Err(error) = self.there() {
            return Box::pin(std::future::ready(Err(error)));
        }
        if self.spared.lock().contains(topic.as_str()) {
            return self.memory.append(topic, partition, batch);
        }
        if self.failing.lock().contains(&partition) {
            let error = Error::Unavailable("the broker is gone".into());
            return Box::pin(std::future::ready(Err(error)));
        }
        let number = self.appends.fetch_add(1, SeqCst) + 1;
        let uncertain = self.uncertain.lock().contains(&partition);
        let apart = self.apart.load(SeqCst);
        let (append, mut let_through) =
            (self.memory.append(topic, partition, batch), self.let_through.subscribe());
        Box::pin(async move {
            let appended = append.await?;
            // The sender lives as long as the log, and a test that drops the log wants no answer.
            let _ = let_through.wait_for(|&count| count >= number).await;
            if uncertain {
                return Err(Error::Uncertain("no answer came in time".into()));
            }
            if !apart {
                return Ok(appended);
            }
            let records = appended.end().0 - appended.first().0;
            let offset = |record| Offset(appended.first().0 + 2 * record);
            Ok(Appended::each((0..records).map(offset).collect()))
        })
    }

    fn reader(
        &self,
        topic: &Name,
        partition: PartitionId,
        from: Offset,
    ) -> Answer<Box<dyn Reader>> {
        let topic = topic.clone();
        let asked = self.ask(move |log| log.reader(&topic, partition, from));
        let (away, late) = (self.away.clone(), self.late_reads.clone());
        Box::pin(async move {
            let inner = asked.await?;
            Ok(Box::new(FaultyReader { inner, away, late }) as Box<dyn Reader>)
        })
    }

    fn writer(&self, id: &WriterId) -> Answer<Arc<dyn FencedWriter>> {
        let id = id.clone();
        self.ask(move |log| log.writer(&id))
    }

    fn trim(&self, topic: &Name, partition: PartitionId, before: Offset) -> Answer<()> {
        let topic = topic.clone();
        self.ask(move |log| log.trim(&topic, partition, before))
    }

    fn size(&self, topic: &Name, partition: PartitionId, from: Offset, to: Offset) -> Answer<u64> {
        let topic = topic.clone();
        self.ask(move |log| log.size(&topic, partition, from, to))
    }
}
