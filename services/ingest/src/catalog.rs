//! The streams that events may go to.
//!
//! A key's partition follows from the number of partitions that the stream declares, and from
//! nothing else. When partitions are added to the topic, events go on to the partitions that they
//! always went to until a check notices it; then nothing is appended any more. The view's shards
//! stop then too.
//!
//! # What is cached
//!
//! - *The stream can be used*: until its definition changes, or until a check in the background
//!   finds another number of partitions. While the stream is used, a check is due every
//!   `ingest.topic-interval`.
//! - *Its topic cannot be used, or the log is away*: for [`KEEP_PROBLEM`].
//! - *The stream is not declared*: not at all. The control topic is read to its present end first.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_control::{ControlState, StreamEntry};
use headwater_engine::decode::Validator;
use headwater_log::{Error as LogError, Log, TopicSpec};
use headwater_service::{Health, Node, Outage, Tasks, follow::ControlView};
use headwater_types::{Name, Remedy, StreamDefinition};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Semaphore;

use crate::{
    metrics::{IngestMetrics, StreamMetrics},
    refusal::Refusal,
};

/// Requests that may ask the log something at a time. Others wait, and then mostly find the answer
/// here.
const QUESTIONS: usize = 16;

/// How long a topic's problem is kept: requests meanwhile get the same answer and ask the log
/// nothing.
const KEEP_PROBLEM: Duration = Duration::from_secs(1);

/// A stream as this service uses it.
pub(crate) struct Stream {
    pub(crate) definition: StreamDefinition,
    pub(crate) metrics: StreamMetrics,
    // A validator learns the usual order of fields and keeps its buffers, so it is reused.
    idle: Mutex<Vec<Validator>>,
    /// The outage of appends to this stream.
    outage: Mutex<Outage>,
    health: Health,
    /// When the last check of the topic began.
    checked: Mutex<Instant>,
}

impl Stream {
    /// A validator for one request.
    pub(crate) fn validator(&self) -> Validator {
        self.idle.lock().pop().unwrap_or_else(|| Validator::new(&self.definition))
    }

    pub(crate) fn give_back(&self, validator: Validator) {
        self.idle.lock().push(validator);
    }

    /// Notes that an append succeeded, or why it failed. Each outage is logged once; an outage of
    /// the log as a whole is logged by the process.
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

/// The streams, as the control topic declares them. A definition is parsed when it is first used
/// and when it has changed.
pub(crate) struct Catalog {
    control: ControlView,
    log: Arc<dyn Log>,
    health: Health,
    tasks: Tasks,
    metrics: IngestMetrics,
    topic_interval: Duration,
    streams: Arc<RwLock<HashMap<Name, Arc<Stream>>>>,
    /// By topic.
    problems: Mutex<HashMap<Name, TopicProblem>>,
    questions: Semaphore,
}

/// Why a topic could not be used when it was last looked at.
struct TopicProblem {
    found: Instant,
    kind: ProblemKind,
}

enum ProblemKind {
    /// The log is away, for this reason.
    LogAway(String),
    /// The topic has this many partitions.
    OtherPartitions(u32),
}

impl ProblemKind {
    fn of(refusal: &Refusal) -> Option<Self> {
        if let Refusal::Partitions { found, .. } = refusal {
            return Some(Self::OtherPartitions(*found));
        }
        let Refusal::Log(error) = refusal else { return None };
        (error.remedy() == Remedy::Retry).then(|| Self::LogAway(away_reason(error)))
    }

    /// The refusal for this stream; `None` if the problem does not concern it.
    fn refusal(&self, definition: &StreamDefinition) -> Option<Refusal> {
        match self {
            Self::LogAway(reason) => {
                Some(Refusal::Log(LogError::Unavailable(reason.clone().into())))
            }
            Self::OtherPartitions(found) => compare_partitions(definition, *found).err(),
        }
    }
}

impl Catalog {
    pub(crate) fn new(
        control: ControlView,
        node: &Node,
        metrics: IngestMetrics,
        topic_interval: Duration,
    ) -> Self {
        Self {
            control,
            log: node.log.clone(),
            health: node.health.clone(),
            tasks: node.tasks.clone(),
            metrics,
            topic_interval,
            streams: Arc::default(),
            problems: Mutex::default(),
            questions: Semaphore::new(QUESTIONS),
        }
    }

    /// The stream of this name.
    pub(crate) async fn stream(&self, name: &str) -> Result<Arc<Stream>, Refusal> {
        let state = self.state_with(name).await?;
        let (name, entry) = declared(&state, name)?;
        if let Some(stream) = self.cached(name, &entry.sql) {
            return Ok(stream);
        }
        let definition = parse(name, entry)?;
        let _permit = self.may_ask().await?;
        // Another request may have added it while this one waited.
        if let Some(stream) = self.cached(name, &entry.sql) {
            return Ok(stream);
        }
        let checked = Mutex::new(Instant::now());
        self.check_topic(&definition).await?;
        let stream = Arc::new(Stream {
            definition,
            metrics: self.metrics.of(name),
            idle: Mutex::default(),
            outage: Mutex::new(Outage::new(format!("appending to stream {name}"))),
            health: self.health.clone(),
            checked,
        });
        self.streams.write().insert(name.clone(), stream.clone());
        Ok(stream)
    }

    /// The definition alone, for a caller that does not append: the topic is not looked at.
    pub(crate) async fn definition(&self, name: &str) -> Result<StreamDefinition, Refusal> {
        let state = self.state_with(name).await?;
        let (name, entry) = declared(&state, name)?;
        parse(name, entry)
    }

    /// The control state, read to the present end of its topic unless it has the stream already.
    async fn state_with(&self, name: &str) -> Result<Arc<ControlState>, Refusal> {
        let state = self.control.current();
        if state.streams().contains_key(name) {
            return Ok(state);
        }
        let _permit = self.may_ask().await?;
        Ok(self.control.wait_current().await?)
    }

    async fn may_ask(&self) -> Result<tokio::sync::SemaphorePermit<'_>, Refusal> {
        self.questions.acquire().await.map_err(|_| Refusal::Stopping)
    }

    fn cached(&self, name: &Name, sql: &str) -> Option<Arc<Stream>> {
        let streams = self.streams.read();
        let stream = streams.get(name).filter(|stream| stream.definition.sql == sql)?.clone();
        drop(streams);
        self.check_again_if_due(&stream);
        Some(stream)
    }

    /// Checks the topic of a stream in the background, if that is due. If partitions were added,
    /// the stream is forgotten, and the next request is told why it cannot be used.
    fn check_again_if_due(&self, stream: &Arc<Stream>) {
        {
            let mut checked = stream.checked.lock();
            if checked.elapsed() < self.topic_interval {
                return;
            }
            *checked = Instant::now();
        }
        let (streams, stream) = (self.streams.clone(), stream.clone());
        let answer = self.log.topic(&stream.definition.topic);
        let shutdown = self.tasks.shutdown();
        self.tasks.spawn_once("ingest-topic-check", async move {
            let answer = tokio::select! {
                answer = answer => answer,
                () = shutdown.cancelled() => return Ok(()),
            };
            // If the log is away or the topic is gone, appends say so.
            let Ok(Some(spec)) = answer else { return Ok(()) };
            if let Err(refusal) = compare_partitions(&stream.definition, spec.partitions) {
                tracing::warn!(%refusal, "a stream is not appended to any more");
                let mut streams = streams.write();
                let name = &stream.definition.name;
                if streams.get(name).is_some_and(|present| Arc::ptr_eq(present, &stream)) {
                    streams.remove(name);
                }
            }
            Ok(())
        });
    }

    /// Sees to it that the stream's topic exists with the declared number of partitions.
    async fn check_topic(&self, definition: &StreamDefinition) -> Result<(), Refusal> {
        let topic = &definition.topic;
        if let Some(TopicProblem { found, kind }) = self.problems.lock().get(topic)
            && found.elapsed() < KEEP_PROBLEM
            && let Some(refusal) = kind.refusal(definition)
        {
            return Err(refusal);
        }
        let checked = create_or_compare(&*self.log, definition).await;
        let mut problems = self.problems.lock();
        match checked.as_ref().err().and_then(ProblemKind::of) {
            Some(kind) => {
                problems.insert(topic.clone(), TopicProblem { found: Instant::now(), kind })
            }
            None => problems.remove(topic),
        };
        checked
    }
}

/// The cause alone, because it becomes the cause of the same error again.
fn away_reason(error: &LogError) -> String {
    use std::error::Error as _;
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// Others may have created the topic, may write to it, and may have set its retention. Only the
/// number of partitions matters, because it decides the partition of a key.
async fn create_or_compare(log: &dyn Log, definition: &StreamDefinition) -> Result<(), Refusal> {
    let StreamDefinition { topic, partitions, .. } = definition;
    if let Some(spec) = log.topic(topic).await? {
        return compare_partitions(definition, spec.partitions);
    }
    // The coordinator may have ended between declaring the stream and creating its topic.
    match log.create_topic(topic, TopicSpec::keep(*partitions)).await {
        Ok(()) => Ok(()),
        // Another process has created it in between.
        Err(LogError::TopicDiffers { existing, .. }) => {
            compare_partitions(definition, existing.partitions)
        }
        Err(error) => Err(error.into()),
    }
}

/// Refuses a topic that has another number of partitions than the stream declares.
fn compare_partitions(definition: &StreamDefinition, found: u32) -> Result<(), Refusal> {
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
    if let Some((name, deleted)) = state.deleted_streams().get_key_value(name) {
        return Err(Refusal::StreamDeleted { stream: name.clone(), how: deleted.to_string() });
    }
    state.streams().get_key_value(name).ok_or_else(|| Refusal::UnknownStream {
        stream: name.chars().take(200).collect(),
        known: state.streams().keys().cloned().collect(),
    })
}

fn parse(name: &Name, entry: &StreamEntry) -> Result<StreamDefinition, Refusal> {
    headwater_sql::parse_stream(&entry.sql)
        .map_err(|error| Refusal::Definition { stream: name.clone(), reason: error.to_string() })
}
