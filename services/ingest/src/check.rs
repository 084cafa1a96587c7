//! Checks events against their stream's definition and the limits of size and time.

use bytes::Bytes;
use headwater_engine::decode::DecodeError;
use headwater_log::{EncodedBatch, RecordLimit};
use headwater_proto::ingest::v1::{AppendResult, Rejected, append_result::Outcome};
use headwater_service::config::ByteSize;
use headwater_types::{EventTime, PartitionId, StreamDefinition};

use crate::{batches::RequestBatches, catalog::Stream};

/// The events of a request after checking.
pub(crate) struct CheckedEvents {
    /// By event. An accepted one has the index of its batch as partition, and its index in that
    /// batch as offset.
    pub(crate) results: Vec<AppendResult>,
    pub(crate) batches: Vec<(PartitionId, EncodedBatch)>,
    /// The size of the good events.
    pub(crate) bytes: u64,
}

/// How large an event may be.
#[derive(Clone, Copy)]
pub(crate) struct SizeLimits {
    /// `ingest.max-event`.
    pub(crate) event: usize,
    /// The log's limit for a record, which has the key too.
    pub(crate) record: Option<RecordLimit>,
}

/// Checks every event, and puts the good ones into batches. `bytes` is the size of all events.
pub(crate) fn check(
    stream: &Stream,
    events: &[Bytes],
    bytes: usize,
    limits: SizeLimits,
    now_ms: i64,
) -> CheckedEvents {
    let definition = &stream.definition;
    let latest = latest_event_time(now_ms, definition.max_future_micros);
    let mut batches = RequestBatches::new(definition.partitions, bytes);
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
                Ok(checked) => match over_record_limit(limits.record, checked.key, event) {
                    Some((bytes, limit)) => {
                        Outcome::Rejected(too_large_record(definition, event.len(), bytes, limit))
                    }
                    None => {
                        good += event.len() as u64;
                        let keyed = definition.key.is_some();
                        Outcome::Accepted(batches.push(keyed, now_ms, checked.key, event))
                    }
                },
                Err(error) => Outcome::Rejected(not_decoded(error)),
            }
        };
        results.push(AppendResult { outcome: Some(outcome) });
    }
    stream.give_back(validator);
    CheckedEvents { results, batches: batches.build(), bytes: good }
}

/// The latest event time that is accepted: `max_future` after the record's timestamp. The processor
/// has the same rule, so that an accepted event does not become a dead letter for its time.
fn latest_event_time(timestamp_ms: i64, max_future_micros: i64) -> EventTime {
    EventTime(EventTime::from_millis(timestamp_ms).0.saturating_add(max_future_micros))
}

fn too_large(len: usize, limit: usize) -> Rejected {
    let limit = ByteSize(limit as u64);
    let reason = format!("the event has {len} bytes, over the limit of {limit} (ingest.max-event)");
    Rejected { field: String::new(), reason, retryable: false }
}

/// The size of the event's record as the log counts it, if that is over the log's limit. The log
/// refuses a batch as a whole, so a record that is too large must be found here.
fn over_record_limit(
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
    // Waiting would help, but a clock or a unit is wrong: a client must not send the event again
    // and again.
    Rejected { field: column.into(), reason, retryable: false }
}

fn not_decoded(DecodeError { column, reason }: DecodeError) -> Rejected {
    Rejected { field: column.unwrap_or_default(), reason, retryable: false }
}
