//! The streams that events may go to.
//!
//! A key's partition follows from the number of partitions that the stream declares, and from
//! nothing else. When partitions are added to the topic, events go on to the partitions that they
//! always went to, until that is noticed; then nothing is appended any more. The view's shards stop
//! at that time, too.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_control::{ControlState, StreamEntry};
use headwater_engine::decode::Validator;
use headwater_log::{Error as LogError, Log, TopicSpec};
use headwater_service::{Health, Node, Outage, follow::ControlView};
use headwater_types::{Name, Remedy, StreamDefinition};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Semaphore;

use crate::{
    metrics::{IngestMetrics, StreamMetrics},
    refusal::Refusal,
};

/// A stream as this service uses it.
pub(crate) struct Stream {
    pub(crate) definition: StreamDefinition,
    pub(crate) metrics: StreamMetrics,
    // Validators learn the usual order of fields and keep buffers, so they are worth keeping.
    idle: Mutex<Vec<Validator>>,
    /// Of appends to this stream.
    outage: Mutex<Outage>,
    health: Health,
    /// When somebody began to look at its topic last.
    looked: Mutex<Instant>,
}

/// Requests that ask a remote log at a time; each holds a thread while it waits.
const QUESTIONS: usize = 16;

/// How long a topic that cannot be used, or not be looked at, is not looked at again: those who
/// come meanwhile are told the same, instead of waiting one after the other.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl Stream {
    /// A validator for the length of one request.
    pub(crate) fn validator(&self) -> Validator {
        self.idle.lock().pop().unwrap_or_else(|| Validator::new(&self.definition))
    }

    pub(crate) fn give_back(&self, validator: Validator) {
        self.idle.lock().push(validator);
    }

    /// An append succeeded, or failed for this reason: each outage is said once, and one of the log
    /// as a whole was said already.
    pub(crate) fn note(&self, failure: Option<&str>) {
        let mut outage = self.outage.lock();
        match failure {
            Some(reason) if self.health.log_is_away() => outage.note(reason),
            Some(reason) => outage.failed(reason),
            None => {
                outage.over();
                false
            }
        };
    }
}

/// Follows the catalog, and parses a definition when it is first used or has changed.
pub(crate) struct Catalog {
    control: ControlView,
    log: Arc<dyn Log>,
    health: Health,
    metrics: IngestMetrics,
    /// How often the topic of a stream that is used is looked at.
    every: Duration,
    streams: Arc<RwLock<HashMap<Name, Arc<Stream>>>>,
    /// By topic.
    unusable: Mutex<HashMap<Name, Unusable>>,
    questions: Semaphore,
}

/// What became of the last look at a topic.
struct Unusable {
    when: Instant,
    why: Why,
}

enum Why {
    /// The log is away, for this reason.
    Away(String),
    /// It has so many partitions.
    Differs(u32),
}

impl Why {
    fn of(refusal: &Refusal) -> Option<Self> {
        if let Refusal::Partitions { found, .. } = refusal {
            return Some(Self::Differs(*found));
        }
        let Refusal::Log(error) = refusal else { return None };
        (error.remedy() == Remedy::Retry).then(|| Self::Away(away_reason(error)))
    }

    /// The same for this stream; `None` if it is no reason.
    fn refusal(&self, definition: &StreamDefinition) -> Option<Refusal> {
        match self {
            Self::Away(reason) => Some(Refusal::Log(LogError::Unavailable(reason.clone().into()))),
            Self::Differs(found) => has(definition, *found).err(),
        }
    }
}

impl Catalog {
    pub(crate) fn new(
        control: ControlView,
        node: &Node,
        metrics: IngestMetrics,
        every: Duration,
    ) -> Self {
        Self {
            control,
            log: node.log.clone(),
            health: node.health.clone(),
            metrics,
            every,
            streams: Arc::default(),
            unusable: Mutex::default(),
            questions: Semaphore::new(QUESTIONS),
        }
    }

    /// The stream of this name. One that was declared a moment ago is found: before "unknown" is
    /// said, the catalog is read to its present end.
    pub(crate) async fn stream(&self, name: &str) -> Result<Arc<Stream>, Refusal> {
        let state = self.control.current();
        if let Some((name, entry)) = state.streams().get_key_value(name) {
            return self.find(name, entry).await;
        }
        let state = self.current().await?;
        let (name, entry) = declared(&state, name)?;
        self.find(name, entry).await
    }

    /// The definition alone, of a stream that may not be appended to: its topic is not looked at.
    pub(crate) async fn definition(&self, name: &str) -> Result<StreamDefinition, Refusal> {
        let mut state = self.control.current();
        if !state.streams().contains_key(name) {
            state = self.current().await?;
        }
        let (name, entry) = declared(&state, name)?;
        parse(name, entry)
    }

    async fn current(&self) -> Result<Arc<ControlState>, Refusal> {
        let _turn = self.turn().await?;
        Ok(self.control.wait_current().await?)
    }

    async fn find(&self, name: &Name, entry: &StreamEntry) -> Result<Arc<Stream>, Refusal> {
        if let Some(stream) = self.known(name, &entry.sql) {
            return Ok(stream);
        }
        let definition = parse(name, entry)?;
        let _turn = self.turn().await?;
        // Somebody else may have been here while we waited for our turn.
        if let Some(stream) = self.known(name, &entry.sql) {
            return Ok(stream);
        }
        let looked = Mutex::new(Instant::now());
        self.look_at_topic(&definition).await?;
        let metrics = self.metrics.of(name);
        let outage = Mutex::new(Outage::new(format!("appending to stream {name}")));
        let idle = Mutex::default();
        let health = self.health.clone();
        let stream = Arc::new(Stream { definition, metrics, idle, outage, health, looked });
        self.streams.write().insert(name.clone(), stream.clone());
        Ok(stream)
    }

    fn known(&self, name: &Name, sql: &str) -> Option<Arc<Stream>> {
        let streams = self.streams.read();
        let stream = streams.get(name).filter(|stream| stream.definition.sql == sql)?.clone();
        drop(streams);
        self.look_again(&stream);
        Some(stream)
    }

    /// Looks at the topic of a stream that is used, if that is due, and forgets the stream if
    /// partitions were added: the next request finds out, and is told, why it cannot be used.
    /// Nobody waits for that.
    fn look_again(&self, stream: &Arc<Stream>) {
        // Nobody else can change a topic of a log of our own.
        if !self.log.is_remote() {
            return;
        }
        {
            let mut looked = stream.looked.lock();
            if looked.elapsed() < self.every {
                return;
            }
            *looked = Instant::now();
        }
        let (log, streams, stream) = (self.log.clone(), self.streams.clone(), stream.clone());
        tokio::task::spawn_blocking(move || {
            let StreamDefinition { name, topic, .. } = &stream.definition;
            // Appends say it if the log is away, or the topic gone.
            let Ok(Some(spec)) = headwater_log::block_on(log.topic(topic)) else { return };
            if let Err(refusal) = has(&stream.definition, spec.partitions) {
                tracing::warn!(%refusal, "a stream is not appended to any more");
                let mut streams = streams.write();
                if streams.get(name).is_some_and(|present| Arc::ptr_eq(present, &stream)) {
                    streams.remove(name);
                }
            }
        });
    }

    /// The right to ask the log something that may take its time.
    async fn turn(&self) -> Result<Option<tokio::sync::SemaphorePermit<'_>>, Refusal> {
        if !self.log.is_remote() {
            return Ok(None);
        }
        self.questions.acquire().await.map(Some).map_err(|_| Refusal::Stopping)
    }

    /// Sees to it that the stream's topic is there with as many partitions as declared.
    async fn look_at_topic(&self, definition: &StreamDefinition) -> Result<(), Refusal> {
        let topic = &definition.topic;
        if !self.log.is_remote() {
            return look_at_topic(&*self.log, definition);
        }
        if let Some(Unusable { when, why }) = self.unusable.lock().get(topic)
            && when.elapsed() < LOOK_AGAIN
            && let Some(refusal) = why.refusal(definition)
        {
            return Err(refusal);
        }
        let (log, asked) = (self.log.clone(), definition.clone());
        let looked = tokio::task::spawn_blocking(move || look_at_topic(&*log, &asked))
            .await
            .map_err(|_| Refusal::Stopping)?;
        let mut unusable = self.unusable.lock();
        match looked.as_ref().err().and_then(Why::of) {
            Some(why) => unusable.insert(topic.clone(), Unusable { when: Instant::now(), why }),
            None => unusable.remove(topic),
        };
        looked
    }
}

/// The cause alone: it is told as the cause of the same error again.
fn away_reason(error: &LogError) -> String {
    use std::error::Error as _;
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// A topic may exist already, be written by others and forget by its owner's rules. Its partitions
/// decide where a key belongs: with another number than declared, events would be stored where
/// nobody expects them.
fn look_at_topic(log: &dyn Log, definition: &StreamDefinition) -> Result<(), Refusal> {
    let StreamDefinition { topic, partitions, .. } = definition;
    if let Some(spec) = headwater_log::block_on(log.topic(topic))? {
        return has(definition, spec.partitions);
    }
    // Whoever declared it may have died before its topic was there.
    match headwater_log::block_on(log.create_topic(topic, TopicSpec::keep(*partitions))) {
        Ok(()) => Ok(()),
        // Somebody was faster.
        Err(LogError::TopicDiffers { existing, .. }) => has(definition, existing.partitions),
        Err(error) => Err(error.into()),
    }
}

/// Whether so many partitions are as many as the stream declares.
fn has(definition: &StreamDefinition, found: u32) -> Result<(), Refusal> {
    let StreamDefinition { name, topic, partitions, .. } = definition;
    if found == *partitions {
        return Ok(());
    }
    let (stream, topic) = (name.clone(), topic.clone());
    Err(Refusal::Partitions { stream, topic, found, declared: *partitions })
}

fn declared<'a>(
    state: &'a ControlState,
    name: &str,
) -> Result<(&'a Name, &'a StreamEntry), Refusal> {
    state.streams().get_key_value(name).ok_or_else(|| Refusal::UnknownStream {
        stream: name.chars().take(200).collect(),
        known: state.streams().keys().cloned().collect(),
    })
}

fn parse(name: &Name, entry: &StreamEntry) -> Result<StreamDefinition, Refusal> {
    headwater_sql::parse_stream(&entry.sql)
        .map_err(|error| Refusal::Definition { stream: name.clone(), reason: error.to_string() })
}
