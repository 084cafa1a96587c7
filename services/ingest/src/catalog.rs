//! The streams that events may go to.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_control::ControlState;
use headwater_engine::decode::Validator;
use headwater_log::{Error as LogError, Log, TopicSpec};
use headwater_service::{Outage, follow::ControlView};
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
}

/// Requests that ask a remote log at a time; each holds a thread while it waits.
const QUESTIONS: usize = 16;

/// How long a topic that could not be looked at is not looked at again: those who come meanwhile are told
/// the same, instead of waiting one after the other.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl Stream {
    /// A validator for the length of one request.
    pub(crate) fn validator(&self) -> Validator {
        self.idle.lock().pop().unwrap_or_else(|| Validator::new(&self.definition))
    }

    pub(crate) fn give_back(&self, validator: Validator) {
        self.idle.lock().push(validator);
    }

    /// An append succeeded, or failed for this reason: each outage is said once.
    pub(crate) fn note(&self, failure: Option<&str>) {
        let mut outage = self.outage.lock();
        match failure {
            Some(reason) => {
                outage.failed(reason);
            }
            None => outage.over(),
        }
    }
}

/// Follows the catalog, and parses a definition when it is first used or has changed.
pub(crate) struct Catalog {
    control: ControlView,
    log: Arc<dyn Log>,
    metrics: IngestMetrics,
    streams: RwLock<HashMap<Name, Arc<Stream>>>,
    /// Topics that could not be looked at, when, and why.
    away: Mutex<HashMap<Name, (Instant, String)>>,
    questions: Semaphore,
}

impl Catalog {
    pub(crate) fn new(control: ControlView, log: Arc<dyn Log>, metrics: IngestMetrics) -> Self {
        Self {
            control,
            log,
            metrics,
            streams: RwLock::default(),
            away: Mutex::default(),
            questions: Semaphore::new(QUESTIONS),
        }
    }

    /// The stream of this name. One that was declared a moment ago is found: before "unknown" is said,
    /// the catalog is read to its present end.
    pub(crate) async fn stream(&self, name: &str) -> Result<Arc<Stream>, Refusal> {
        if let Some(stream) = self.find(&self.control.current(), name).await? {
            return Ok(stream);
        }
        let state = {
            let _turn = self.turn().await?;
            self.control.wait_current().await?
        };
        self.find(&state, name).await?.ok_or_else(|| Refusal::UnknownStream {
            stream: name.chars().take(200).collect(),
            known: state.streams().keys().cloned().collect(),
        })
    }

    async fn find(&self, state: &ControlState, name: &str) -> Result<Option<Arc<Stream>>, Refusal> {
        let Some((name, entry)) = state.streams().get_key_value(name) else { return Ok(None) };
        if let Some(stream) = self.known(name, &entry.sql) {
            return Ok(Some(stream));
        }
        let definition = headwater_sql::parse_stream(&entry.sql).map_err(|error| {
            Refusal::Definition { stream: name.clone(), reason: error.to_string() }
        })?;
        let _turn = self.turn().await?;
        // Somebody else may have been here while we waited for our turn.
        if let Some(stream) = self.known(name, &entry.sql) {
            return Ok(Some(stream));
        }
        self.look_at_topic(&definition).await?;
        let metrics = self.metrics.of(name);
        let outage = Mutex::new(Outage::new(format!("appending to stream {name}")));
        let stream = Arc::new(Stream { definition, metrics, idle: Mutex::default(), outage });
        self.streams.write().insert(name.clone(), stream.clone());
        Ok(Some(stream))
    }

    fn known(&self, name: &Name, sql: &str) -> Option<Arc<Stream>> {
        self.streams.read().get(name).filter(|stream| stream.definition.sql == sql).cloned()
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
        if let Some((when, reason)) = self.away.lock().get(topic)
            && when.elapsed() < LOOK_AGAIN
        {
            return Err(Refusal::Log(LogError::Unavailable(reason.clone().into())));
        }
        let (log, asked) = (self.log.clone(), definition.clone());
        let looked = tokio::task::spawn_blocking(move || look_at_topic(&*log, &asked))
            .await
            .map_err(|_| Refusal::Stopping)?;
        let mut away = self.away.lock();
        match &looked {
            Err(Refusal::Log(error)) if error.remedy() == Remedy::Retry => {
                away.insert(topic.clone(), (Instant::now(), away_reason(error)));
            }
            Ok(()) | Err(_) => {
                away.remove(topic);
            }
        }
        looked
    }
}

/// The cause alone: it is told as the cause of the same error again.
fn away_reason(error: &LogError) -> String {
    use std::error::Error as _;
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// A topic may exist already, be written by others and forget by its owner's rules. Its partitions decide
/// where a key belongs: with another number than declared, events would be stored where nobody expects them.
fn look_at_topic(log: &dyn Log, definition: &StreamDefinition) -> Result<(), Refusal> {
    let StreamDefinition { topic, partitions, .. } = definition;
    let check = |found: TopicSpec| {
        if found.partitions == *partitions {
            return Ok(());
        }
        let reason = format!(
            "topic {topic} has {} partitions and the stream was declared with {partitions}; nothing is appended, because a key would go to another partition than before: declare a stream with the topic's number of partitions",
            found.partitions
        );
        Err(Refusal::Definition { stream: definition.name.clone(), reason })
    };
    if let Some(found) = log.topic(topic)? {
        return check(found);
    }
    // Whoever declared it may have died before its topic was there.
    match log.create_topic(topic, TopicSpec::keep(*partitions)) {
        Ok(()) => Ok(()),
        // Somebody was faster.
        Err(LogError::TopicDiffers { existing, .. }) => check(existing),
        Err(error) => Err(error.into()),
    }
}
