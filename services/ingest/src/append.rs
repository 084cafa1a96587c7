//! Appends the events of a request: check, batch, hand to the log, answer. gRPC, HTTP and the
//! replay of dead letters share this path.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use bytes::Bytes;
use futures::{FutureExt as _, future::join_all};
use headwater_log::{Answer, Appended, EncodedBatch, Error as LogError, Log};
use headwater_proto::ingest::v1::{
    Accepted, AppendResponse, AppendResult, Rejected, append_result::Outcome,
};
use headwater_service::{Node, Shutdown, failpoint, follow::ControlView};
use headwater_types::{Clock, Name, PartitionId, Remedy, Token, error_chain};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};
use tracing::Instrument as _;

use crate::{
    Config,
    budget::{MemoryBudget, Reservation},
    catalog::{Catalog, Stream},
    check::{CheckedEvents, SizeLimits, check},
    metrics::IngestMetrics,
    refusal::Refusal,
};

/// A larger request is checked on a blocking thread, so that it does not hold up others.
const CHECK_INLINE_BYTES: usize = 512 << 10;

/// Checks events, appends them to the log, and answers what became of each.
pub(crate) struct Appender {
    config: Config,
    log: Arc<dyn Log>,
    clock: Arc<dyn Clock>,
    catalog: Catalog,
    budget: MemoryBudget,
    shutdown: Shutdown,
    /// The requests with an append that the log has not answered.
    waiting: TaskTracker,
    totals: Arc<Totals>,
}

/// Counts since the start, for the last line of the process.
#[derive(Default)]
struct Totals {
    accepted: AtomicU64,
    rejected: AtomicU64,
    /// Rejected events that may be stored nevertheless.
    uncertain: AtomicU64,
    /// Requests that were waiting for the log when shutdown began.
    waited: AtomicU64,
}

impl Appender {
    pub(crate) fn new(config: Config, node: &Node, control: ControlView) -> Self {
        let metrics = IngestMetrics::new(&node.metrics);
        let budget = MemoryBudget::new(
            config.in_flight,
            metrics.in_flight_bytes.clone(),
            metrics.refused.clone(),
        );
        let catalog = Catalog::new(control, node, metrics, config.topic_interval);
        Self {
            config,
            log: node.log.clone(),
            clock: node.clock.clone(),
            catalog,
            budget,
            shutdown: node.tasks.shutdown(),
            waiting: TaskTracker::new(),
            totals: Arc::default(),
        }
    }

    /// Waits until every append that the log was given is answered.
    pub(crate) async fn answer_all(&self) {
        self.totals.waited.store(self.waiting.len() as u64, Relaxed);
        self.waiting.close();
        self.waiting.wait().await;
    }

    /// What was appended, for the last line of the process.
    pub(crate) fn summary(&self) -> String {
        let Totals { accepted, rejected, uncertain, waited } = &*self.totals;
        let mut text = format!(
            "{} requests were waiting for the log and were answered; events since the start: {} accepted, {} rejected",
            waited.load(Relaxed),
            accepted.load(Relaxed),
            rejected.load(Relaxed),
        );
        match uncertain.load(Relaxed) {
            0 => {}
            uncertain => text += &format!(", of which {uncertain} are perhaps stored"),
        }
        text
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn log(&self) -> &Arc<dyn Log> {
        &self.log
    }

    pub(crate) fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    pub(crate) fn budget(&self) -> &MemoryBudget {
        &self.budget
    }

    /// Checks the events and hands the good ones to the log. The log appends requests in the order
    /// in which this function returned for them. `reserved` is the request's memory until it is
    /// answered.
    pub(crate) async fn submit(
        &self,
        stream: Arc<Stream>,
        events: Vec<Bytes>,
        reserved: Reservation,
    ) -> Result<PendingAppend, Refusal> {
        let limit = self.config.max_events.get();
        if events.len() > limit {
            return Err(Refusal::TooMany { limit });
        }
        let bytes: usize = events.iter().map(Bytes::len).sum();
        let now_ms = self.clock.now_millis();
        let limits = SizeLimits {
            event: self.config.max_event.bytes(),
            record: self.log.record_limit(&stream.definition.topic),
        };
        let checked = if bytes <= CHECK_INLINE_BYTES {
            check(&stream, &events, bytes, limits, now_ms)
        } else {
            let stream = stream.clone();
            tokio::task::spawn_blocking(move || check(&stream, &events, bytes, limits, now_ms))
                .await
                .map_err(|_| Refusal::Stopping)?
        };
        let CheckedEvents { results, batches, bytes } = checked;
        failpoint::stand("ingest.append").await;
        let topic = &stream.definition.topic;
        let appends = batches
            .into_iter()
            .map(|(partition, batch)| (partition, self.append_batch(topic, partition, batch)))
            .collect();
        Ok(PendingAppend {
            stream,
            results,
            appends,
            bytes,
            started: Instant::now(),
            span: tracing::Span::current(),
            totals: self.totals.clone(),
            _waiting: self.waiting.token(),
            _reserved: reserved,
        })
    }

    /// Hands a batch to the log. Near the end of a shutdown the wait for the log is given up, while
    /// the client can still be told.
    fn append_batch(
        &self,
        topic: &Name,
        partition: PartitionId,
        batch: EncodedBatch,
    ) -> Answer<Appended> {
        let append = self.log.append(topic, partition, batch);
        let shutdown = self.shutdown.clone();
        async move {
            tokio::select! {
                biased;
                appended = append => appended,
                () = shutdown.urged() => {
                    Err(LogError::Uncertain("ingest is shutting down, and the log has not answered".into()))
                }
            }
        }
        .boxed()
    }

    /// Finds the stream, checks the events, appends them, and answers when they are durable.
    pub(crate) async fn append(
        &self,
        stream: &str,
        events: Vec<Bytes>,
        reserved: Reservation,
    ) -> Result<AppendResponse, Refusal> {
        let stream = self.catalog.stream(stream).await?;
        Ok(self.submit(stream, events, reserved).await?.finish().await)
    }
}

/// A request whose events the log has been given.
#[must_use = "nothing is acknowledged until `finish` resolves"]
pub(crate) struct PendingAppend {
    stream: Arc<Stream>,
    // See `CheckedEvents::results`; `appends` has the order of its batches.
    results: Vec<AppendResult>,
    appends: Vec<(PartitionId, Answer<Appended>)>,
    bytes: u64,
    started: Instant,
    // The request's span, to which the wait for the log belongs.
    span: tracing::Span,
    totals: Arc<Totals>,
    _waiting: TaskTrackerToken,
    _reserved: Reservation,
}

impl PendingAppend {
    /// Resolves when every append is durable or has failed.
    pub(crate) async fn finish(self) -> AppendResponse {
        let Self {
            stream,
            mut results,
            appends,
            bytes,
            started,
            span,
            totals,
            _waiting,
            _reserved,
        } = self;
        let (partitions, appends): (Vec<_>, Vec<_>) = appends.into_iter().unzip();
        let stored = join_all(appends).instrument(span).await;
        if !stored.is_empty() {
            stream.metrics.append_seconds.observe(started.elapsed().as_secs_f64());
        }
        let stored: Vec<_> = stored
            .into_iter()
            .zip(partitions)
            .map(|(appended, p)| (p, appended.map_err(FailedAppend::from)))
            .collect();
        if !stored.is_empty() {
            let failure = stored.iter().find_map(|(_, appended)| appended.as_ref().err());
            stream.note(failure.map(|failure| failure.rejected.reason.as_str()));
        }
        let mut token = Token::new(stream.definition.name.clone());
        let (mut accepted, mut uncertain) = (0, 0);
        for result in &mut results {
            let Some(Outcome::Accepted(place)) = &mut result.outcome else { continue };
            match &stored[place.partition as usize] {
                (partition, Ok(appended)) => {
                    // The index in a batch is counted as u32.
                    let offset = appended.offset(place.offset as u32);
                    *place = Accepted { partition: partition.0, offset: offset.0 };
                    token.cover(*partition, offset);
                    accepted += 1;
                }
                (_, Err(failure)) => {
                    uncertain += u64::from(failure.uncertain);
                    result.outcome = Some(Outcome::Rejected(failure.rejected.clone()));
                }
            }
        }
        let rejected = results.len() as u64 - accepted;
        stream.metrics.accepted.inc_by(accepted);
        stream.metrics.rejected.inc_by(rejected);
        totals.accepted.fetch_add(accepted, Relaxed);
        totals.rejected.fetch_add(rejected, Relaxed);
        totals.uncertain.fetch_add(uncertain, Relaxed);
        if stored.iter().all(|(_, appended)| appended.is_ok()) {
            stream.metrics.bytes.inc_by(bytes);
        }
        AppendResponse { results, token: token.to_string(), accepted, rejected }
    }
}

/// An append that failed.
struct FailedAppend {
    /// The result of each of its events.
    rejected: Rejected,
    /// Whether the events may be stored nevertheless.
    uncertain: bool,
}

impl From<LogError> for FailedAppend {
    fn from(error: LogError) -> Self {
        let retryable = match error.remedy() {
            Remedy::Retry | Remedy::StandDown => true,
            // Each event was within the limit that was known before. Next time only the one that is
            // too large is refused.
            Remedy::Correct if matches!(error, LogError::RecordTooLarge { .. }) => true,
            Remedy::Correct | Remedy::Repair => false,
        };
        // Events that are sent again may be stored twice, so the client must know.
        let uncertain = matches!(error, LogError::Uncertain(_));
        let what = if uncertain { "perhaps not stored" } else { "not stored" };
        let reason = format!("{what}: {}", error_chain(&error));
        Self { rejected: Rejected { field: String::new(), reason, retryable }, uncertain }
    }
}
