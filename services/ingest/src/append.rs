//! Events in, results out: the path that gRPC, HTTP and the replay of dead letters share.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use headwater_engine::decode::DecodeError;
use headwater_log::{BatchBuilder, EncodedBatch, Error as LogError, Log, partition_for_key};
use headwater_proto::ingest::v1::{
    Accepted, AppendResponse, AppendResult, Rejected, append_result::Outcome,
};
use headwater_service::{Node, follow::ControlView};
use headwater_types::{Clock, EventTime, Offset, PartitionId, Remedy, Token};
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
}

impl Appender {
    pub(crate) fn new(config: Config, node: &Node, control: ControlView) -> Self {
        let metrics = IngestMetrics::new(&node.metrics);
        let budget =
            Budget::new(config.in_flight, metrics.in_flight_bytes.clone(), metrics.refused.clone());
        let catalog = Catalog::new(control, node.log.clone(), metrics);
        Self { config, log: node.log.clone(), clock: node.clock.clone(), catalog, budget }
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
        let (max_event, now_ms) = (self.config.max_event.bytes(), self.clock.now_millis());
        let checked = if bytes <= CHECK_INLINE_BYTES {
            check(&stream, &events, bytes, max_event, now_ms)
        } else {
            let stream = stream.clone();
            tokio::task::spawn_blocking(move || check(&stream, &events, bytes, max_event, now_ms))
                .await
                .map_err(|_| Refusal::Stopping)?
        };
        let Checked { results, batches, bytes } = checked;
        let topic = &stream.definition.topic;
        let appends = batches
            .into_iter()
            .map(|(partition, batch)| (partition, self.log.append(topic, partition, batch)))
            .collect();
        Ok(Pending {
            stream,
            results,
            appends,
            bytes,
            started: Instant::now(),
            span: tracing::Span::current(),
            _held: held,
        })
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

/// Events that the log has been given.
#[must_use = "nothing is acknowledged until `finish` resolves"]
pub(crate) struct Pending {
    stream: Arc<Stream>,
    // An accepted one holds the index of its append and its index in that batch, until both are known.
    results: Vec<AppendResult>,
    appends: Vec<(PartitionId, BoxFuture<'static, Result<Offset, LogError>>)>,
    bytes: u64,
    started: Instant,
    // Of the request; the wait for the log belongs to it.
    span: tracing::Span,
    _held: Held,
}

impl Pending {
    /// Resolves when every append is durable or has failed.
    pub(crate) async fn finish(self) -> AppendResponse {
        let Self { stream, mut results, appends, bytes, started, span, _held } = self;
        let (partitions, appends): (Vec<_>, Vec<_>) = appends.into_iter().unzip();
        let stored = join_all(appends).instrument(span).await;
        if !stored.is_empty() {
            stream.metrics.append_seconds.observe(started.elapsed().as_secs_f64());
        }
        let stored: Vec<_> = stored
            .into_iter()
            .zip(partitions)
            .map(|(base, p)| (p, base.map_err(failure)))
            .collect();
        for (partition, base) in &stored {
            if let Err(Rejected { reason, .. }) = base {
                tracing::warn!(stream = %stream.definition.name, %partition, reason, "append failed");
            }
        }

        let mut token = Token::new(stream.definition.name.clone());
        let mut accepted = 0;
        for result in &mut results {
            let Some(Outcome::Accepted(place)) = &mut result.outcome else { continue };
            match &stored[place.partition as usize] {
                (partition, Ok(base)) => {
                    *place = Accepted { partition: partition.0, offset: base.0 + place.offset };
                    token.cover(*partition, Offset(place.offset));
                    accepted += 1;
                }
                (_, Err(rejected)) => result.outcome = Some(Outcome::Rejected(rejected.clone())),
            }
        }
        let rejected = results.len() as u64 - accepted;
        stream.metrics.accepted.inc_by(accepted);
        stream.metrics.rejected.inc_by(rejected);
        if stored.iter().all(|(_, base)| base.is_ok()) {
            stream.metrics.bytes.inc_by(bytes);
        }
        AppendResponse { results, token: token.to_string(), accepted, rejected }
    }
}

/// What each event of a failed append is told.
fn failure(error: LogError) -> Rejected {
    let retryable = match error.remedy() {
        Remedy::Retry | Remedy::StandDown => true,
        Remedy::Correct | Remedy::Repair => false,
    };
    Rejected { field: String::new(), reason: format!("not stored: {}", chain(&error)), retryable }
}

/// The outcome of checking.
struct Checked {
    results: Vec<AppendResult>,
    batches: Vec<(PartitionId, EncodedBatch)>,
    /// Of the good events.
    bytes: u64,
}

/// Checks every event and puts the good ones into batches, one per partition unless they get large.
fn check(
    stream: &Stream,
    events: &[Bytes],
    bytes: usize,
    max_event: usize,
    now_ms: i64,
) -> Checked {
    let definition = &stream.definition;
    let latest = latest_event_time(now_ms, definition.max_future_micros);
    let mut batches = Batches::new(definition.partitions, bytes);
    let mut validator = stream.validator();
    let mut results = Vec::with_capacity(events.len());
    let mut good = 0;
    for event in events {
        let outcome = if event.len() > max_event {
            Outcome::Rejected(too_large(event.len(), max_event))
        } else {
            match validator.check(event) {
                Ok(checked) if checked.event_time > latest => {
                    let column = &definition.columns[definition.event_time].name;
                    Outcome::Rejected(too_far_ahead(column, checked.event_time, now_ms, latest))
                }
                Ok(checked) => {
                    good += event.len() as u64;
                    Outcome::Accepted(batches.push(
                        definition.key.is_some(),
                        now_ms,
                        checked.key,
                        event,
                    ))
                }
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
