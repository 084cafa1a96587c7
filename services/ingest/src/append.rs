//! Events in, results out: the path that gRPC, HTTP and the replay of dead letters share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use bytes::Bytes;
use futures::{FutureExt as _, future::join_all};
use headwater_engine::decode::DecodeError;
use headwater_log::{
    Appended, BatchBuilder, EncodedBatch, Error as LogError, Log, RecordLimit, partition_for_key,
};
use headwater_proto::ingest::v1::{
    Accepted, AppendResponse, AppendResult, Rejected, append_result::Outcome,
};
use headwater_service::{Node, Shutdown, follow::ControlView};
use headwater_types::{Clock, EventTime, Name, PartitionId, Remedy, StreamDefinition, Token};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};
use tracing::Instrument as _;

use crate::{
    Config,
    body::{Budget, Held},
    catalog::{Catalog, Stream},
    metrics::IngestMetrics,
    refusal::{Refusal, chain},
};

/// A partition's batch is closed at this size and another one begun: far below what any log takes, even
/// with one more event of the greatest size.
const BATCH_BYTES: usize = 4 << 20;

/// Requests above this are checked on a thread that may be busy for long.
const CHECK_INLINE_BYTES: usize = 512 << 10;

/// What a record costs beyond its event and key.
const RECORD_OVERHEAD: usize = 16;

/// Checks events, stores them, and says what became of each.
pub(crate) struct Appender {
    config: Config,
    log: Arc<dyn Log>,
    clock: Arc<dyn Clock>,
    catalog: Catalog,
    budget: Budget,
    shutdown: Shutdown,
    /// The requests that the log has something of.
    waiting: TaskTracker,
    totals: Arc<Totals>,
}

/// Events since the start.
#[derive(Default)]
struct Totals {
    accepted: AtomicU64,
    rejected: AtomicU64,
    /// Of the rejected ones those that may be stored nevertheless.
    uncertain: AtomicU64,
    /// Requests that were waiting for the log when shutdown began.
    waited: AtomicU64,
}

impl Appender {
    pub(crate) fn new(config: Config, node: &Node, control: ControlView) -> Self {
        let metrics = IngestMetrics::new(&node.metrics);
        let budget =
            Budget::new(config.in_flight, metrics.in_flight_bytes.clone(), metrics.refused.clone());
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

    /// Waits until everything that the log was given is answered.
    pub(crate) async fn answer_all(&self) {
        self.totals.waited.store(self.waiting.len() as u64, Relaxed);
        self.waiting.close();
        self.waiting.wait().await;
    }

    /// What was done, for the last line of the process.
    pub(crate) fn account(&self) -> String {
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

    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Checks the events and hands the good ones to the log: appends are in the order in which this
    /// returns. `held` is what the request counts for, until it is answered.
    pub(crate) async fn submit(
        &self,
        stream: Arc<Stream>,
        events: Vec<Bytes>,
        held: Held,
    ) -> Result<Pending, Refusal> {
        let limit = self.config.max_events.get();
        if events.len() > limit {
            return Err(Refusal::TooMany { limit });
        }
        let bytes: usize = events.iter().map(Bytes::len).sum();
        let now_ms = self.clock.now_millis();
        let limits = Limits {
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
        let Checked { results, batches, bytes } = checked;
        let topic = &stream.definition.topic;
        let appends = batches
            .into_iter()
            .map(|(partition, batch)| (partition, self.give(topic, partition, batch)))
            .collect();
        Ok(Pending {
            stream,
            results,
            appends,
            bytes,
            started: Instant::now(),
            span: tracing::Span::current(),
            totals: self.totals.clone(),
            _waiting: self.waiting.token(),
            _held: held,
        })
    }

    /// Hands a batch to the log. While the process ends, a log that does not answer is not waited for until
    /// nobody can be told any more.
    fn give(&self, topic: &Name, partition: PartitionId, batch: EncodedBatch) -> Append {
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

    /// All of it: finds the stream, checks, stores, and answers when it is durable.
    pub(crate) async fn append(
        &self,
        stream: &str,
        events: Vec<Bytes>,
        held: Held,
    ) -> Result<AppendResponse, Refusal> {
        let stream = self.catalog.stream(stream).await?;
        Ok(self.submit(stream, events, held).await?.finish().await)
    }
}

type Append = headwater_log::Answer<Appended>;

/// Events that the log has been given.
#[must_use = "nothing is acknowledged until `finish` resolves"]
pub(crate) struct Pending {
    stream: Arc<Stream>,
    // An accepted one holds the index of its append and its index in that batch, until both are known.
    results: Vec<AppendResult>,
    appends: Vec<(PartitionId, Append)>,
    bytes: u64,
    started: Instant,
    // Of the request; the wait for the log belongs to it.
    span: tracing::Span,
    totals: Arc<Totals>,
    _waiting: TaskTrackerToken,
    _held: Held,
}

impl Pending {
    /// Resolves when every append is durable or has failed.
    pub(crate) async fn finish(self) -> AppendResponse {
        let Self { stream, mut results, appends, bytes, started, span, totals, _waiting, _held } =
            self;
        let (partitions, appends): (Vec<_>, Vec<_>) = appends.into_iter().unzip();
        let stored = join_all(appends).instrument(span).await;
        if !stored.is_empty() {
            stream.metrics.append_seconds.observe(started.elapsed().as_secs_f64());
        }
        let stored: Vec<_> = stored
            .into_iter()
            .zip(partitions)
            .map(|(appended, p)| (p, appended.map_err(Failure::from)))
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
                    // It was counted from a u32 in its batch.
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
struct Failure {
    /// What each of its events is told.
    rejected: Rejected,
    /// Whether they may be stored nevertheless.
    uncertain: bool,
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        let retryable = match error.remedy() {
            Remedy::Retry | Remedy::StandDown => true,
            // Each was within the limit that was known a moment ago: the one that is not is refused alone next time.
            Remedy::Correct if matches!(error, LogError::RecordTooLarge { .. }) => true,
            Remedy::Correct | Remedy::Repair => false,
        };
        // To send it again may store it twice, and who sends it should know.
        let uncertain = matches!(error, LogError::Uncertain(_));
        let what = if uncertain { "perhaps not stored" } else { "not stored" };
        let reason = format!("{what}: {}", chain(&error));
        Self { rejected: Rejected { field: String::new(), reason, retryable }, uncertain }
    }
}

/// The outcome of checking.
struct Checked {
    results: Vec<AppendResult>,
    batches: Vec<(PartitionId, EncodedBatch)>,
    /// Of the good events.
    bytes: u64,
}

/// How large an event may be.
#[derive(Clone, Copy)]
struct Limits {
    /// Our own setting.
    event: usize,
    /// The log's, for what becomes of it with its key.
    record: Option<RecordLimit>,
}

/// Checks every event and puts the good ones into batches, one per partition unless they get large.
fn check(stream: &Stream, events: &[Bytes], bytes: usize, limits: Limits, now_ms: i64) -> Checked {
    let definition = &stream.definition;
    let latest = latest_event_time(now_ms, definition.max_future_micros);
    let mut batches = Batches::new(definition.partitions, bytes);
    let mut validator = stream.validator();
    let mut results = Vec::with_capacity(events.len());
    let mut good = 0;
    for event in events {
        let outcome = if event.len() > limits.event {
            Outcome::Rejected(too_large(event.len(), limits.event))
        } else {
            match validator.check(event) {
                Ok(checked) if checked.event_time > latest => {
                    let column = &definition.columns[definition.event_time].name;
                    Outcome::Rejected(too_far_ahead(column, checked.event_time, now_ms, latest))
                }
                Ok(checked) => match over(limits.record, checked.key, event) {
                    Some((bytes, limit)) => {
                        Outcome::Rejected(too_large_record(definition, event.len(), bytes, limit))
                    }
                    None => {
                        good += event.len() as u64;
                        let keyed = definition.key.is_some();
                        Outcome::Accepted(batches.push(keyed, now_ms, checked.key, event))
                    }
                },
                Err(error) => Outcome::Rejected(wrong(error)),
            }
        };
        results.push(AppendResult { outcome: Some(outcome) });
    }
    stream.give_back(validator);
    Checked { results, batches: batches.build(), bytes: good }
}

/// The rule of the processor, so that what is accepted here is not put aside there: an event may lie at
/// most `max_future` after its record's timestamp.
fn latest_event_time(timestamp_ms: i64, max_future_micros: i64) -> EventTime {
    EventTime(EventTime::from_millis(timestamp_ms).0.saturating_add(max_future_micros))
}

fn too_large(len: usize, limit: usize) -> Rejected {
    let limit = headwater_service::config::ByteSize(limit as u64);
    let reason = format!("the event has {len} bytes, over the limit of {limit} (ingest.max-event)");
    Rejected { field: String::new(), reason, retryable: false }
}

/// What the event's record counts for, if that is over the log's limit. Found out here, it costs no other event: the
/// log refuses a batch as a whole.
fn over(
    limit: Option<RecordLimit>,
    key: Option<&[u8]>,
    event: &[u8],
) -> Option<(usize, RecordLimit)> {
    let limit = limit?;
    let bytes = limit.count(key, event);
    (bytes > limit.bytes).then_some((bytes, limit))
}

fn too_large_record(
    definition: &StreamDefinition,
    len: usize,
    bytes: usize,
    limit: RecordLimit,
) -> Rejected {
    let RecordLimit { bytes: limit, set_by, .. } = limit;
    let reason = format!(
        "the event has {len} bytes and counts {bytes} with its key, over the limit of {limit} for a record of topic \
         {} ({set_by})",
        definition.topic
    );
    Rejected { field: String::new(), reason, retryable: false }
}

fn too_far_ahead(column: &str, time: EventTime, now_ms: i64, latest: EventTime) -> Rejected {
    let now = EventTime::from_millis(now_ms);
    let reason = format!(
        "{time} is too far in the future: it is {now} now, and the stream's max_future allows up to {latest}"
    );
    // Waiting would help, but a clock or a unit is wrong: sending it again as it is must not become a loop.
    Rejected { field: column.into(), reason, retryable: false }
}

fn wrong(DecodeError { column, reason }: DecodeError) -> Rejected {
    Rejected { field: column.unwrap_or_default(), reason, retryable: false }
}

/// The batches of one request.
struct Batches {
    partitions: u32,
    /// Per partition the batch that takes its next event, by index.
    open: Vec<Option<usize>>,
    batches: Vec<(PartitionId, BatchBuilder)>,
    capacity: usize,
    /// Where events of a stream without a key go, once chosen.
    keyless: Option<PartitionId>,
}

impl Batches {
    fn new(partitions: u32, bytes: usize) -> Self {
        // A guess that a few partitions exceed a little; it saves most of the growing.
        let capacity =
            (bytes / partitions.max(1) as usize * 5 / 4).min(BATCH_BYTES + (BATCH_BYTES >> 2));
        Self {
            partitions,
            open: vec![None; partitions.max(1) as usize],
            batches: Vec::new(),
            capacity,
            keyless: None,
        }
    }

    /// Adds an event, and says where: the index of its batch, and its own in that.
    fn push(&mut self, keyed: bool, now_ms: i64, key: Option<&[u8]>, event: &[u8]) -> Accepted {
        let partition = match key {
            Some(key) => partition_for_key(key, self.partitions),
            // Rows of one key are in one shard, and NULL is a key as any other.
            None if keyed => partition_for_key(b"", self.partitions),
            // All of a request in one batch, as Kafka's producer does; requests spread by their content.
            None => *self.keyless.get_or_insert_with(|| partition_for_key(event, self.partitions)),
        };
        let open = &mut self.open[partition.0 as usize];
        let full = |index: usize, batches: &[(PartitionId, BatchBuilder)]| {
            batches[index].1.bytes() >= BATCH_BYTES
        };
        let index = match *open {
            Some(index) if !full(index, &self.batches) => index,
            Some(_) | None => {
                let capacity = self.capacity + headwater_log::HEADER_LEN + RECORD_OVERHEAD;
                self.batches.push((partition, BatchBuilder::with_capacity(capacity)));
                *open.insert(self.batches.len() - 1)
            }
        };
        let builder = &mut self.batches[index].1;
        let at = builder.len();
        builder.push(now_ms, key, Some(event), &[]);
        Accepted { partition: index as u32, offset: u64::from(at) }
    }

    fn build(self) -> Vec<(PartitionId, EncodedBatch)> {
        // Every batch was begun for an event, so none is empty and the indices stay right.
        self.batches
            .into_iter()
            .filter_map(|(partition, builder)| Some((partition, builder.build()?)))
            .collect()
    }
}
