//! Appending without a claim.
//!
//! ```text
//! append ──> queue ─────────> one thread ───────────────────────────> librdkafka ══> brokers
//!            order of calls   Is the topic known? Is there room?          |
//!                                            answers <── one thread <── reports
//! ```
//!
//! Nobody waits for a broker on the thread that he appends from: his future does. What waits is in the hands of
//! its callers and goes when they give up; what librdkafka has is bounded.

mod appender;
mod line;
mod queue;

#[cfg(test)]
mod tests;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::channel::oneshot;
use headwater_log::{Appended, EncodedBatch, Error, Record};
use headwater_types::{Name, Offset, PartitionId};
use parking_lot::Mutex;
use rdkafka::{
    ClientContext, Message as _,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext},
};

use crate::{
    admin::{is_unknown, not_caught_up},
    context::Context,
    error::{About, translate},
    known::Known,
};

pub(crate) use appender::{Appender, own_limit};
use line::Room;

/// How long to wait for room in librdkafka's queue before it is tried again.
const ROOM: Duration = Duration::from_millis(10);

/// Who waits for what became of a batch.
pub(crate) type Done = oneshot::Sender<Result<Appended, Error>>;

/// One batch on its way: every record of it reports here.
pub(crate) struct InFlight {
    topic: Name,
    partition: PartitionId,
    bytes: usize,
    records: u32,
    /// Where it takes room until it is answered.
    room: Option<Arc<Room>>,
    state: Mutex<Reports>,
}

struct Reports {
    missing: u32,
    offsets: Vec<Offset>,
    failure: Option<KafkaError>,
    done: Option<Done>,
}

impl InFlight {
    fn new(
        topic: &Name,
        partition: PartitionId,
        batch: &EncodedBatch,
        done: Done,
        room: Option<Arc<Room>>,
    ) -> Arc<Self> {
        let records = batch.records();
        let state = Reports {
            missing: records,
            offsets: Vec::with_capacity(records as usize),
            failure: None,
            done: Some(done),
        };
        Arc::new(Self {
            topic: topic.clone(),
            partition,
            bytes: batch.bytes().len(),
            records,
            room,
            state: Mutex::new(state),
        })
    }

    fn report(&self, count: u32, outcome: Result<Offset, KafkaError>, by: &Deliveries) {
        let mut state = self.state.lock();
        state.missing = state.missing.saturating_sub(count);
        match outcome {
            Ok(offset) => state.offsets.push(offset),
            // One that leaves it open whether something is stored is said before one that does not.
            Err(error) if state.failure.is_none() || leaves_open(&error) => {
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge) {
                    by.known.refused_for_size(&self.topic);
                }
                if is_unknown(&error) {
                    by.known.doubt(&self.topic);
                }
                state.failure = Some(error);
            }
            Err(_) => {}
        }
        if state.missing > 0 {
            return;
        }
        let answer = match state.failure.take() {
            Some(error) => Err(self.failure(error, !state.offsets.is_empty(), by)),
            None => {
                // Records of one partition are stored in the order in which they were sent, whatever
                // the order of their reports.
                let mut offsets = std::mem::take(&mut state.offsets);
                offsets.sort_unstable();
                Ok(Appended::each(offsets))
            }
        };
        // Whoever gave up waiting does not get it.
        let _ = state.done.take().map(|done| done.send(answer));
        drop(state);
        if let Some(room) = &self.room {
            room.leave(self.bytes, self.records as usize);
        }
    }

    /// `partly` says that some records are stored.
    fn failure(&self, error: KafkaError, partly: bool, by: &Deliveries) -> Error {
        use RDKafkaErrorCode::{MessageSizeTooLarge, MessageTimedOut, RequestTimedOut};
        let context = &by.context;
        match error.rdkafka_error_code() {
            Some(MessageTimedOut | RequestTimedOut) => {
                let reason = context.trouble.last().unwrap_or_else(|| error.to_string());
                Error::Uncertain(reason.into())
            }
            _ if partly || leaves_open(&error) => Error::Uncertain(error.into()),
            // Whatever came together in a batch was refused together, and each record was within the limit that
            // we knew. The next append asks for the limit first, and then the right one is refused for good.
            Some(MessageSizeTooLarge) => {
                let reason = format!(
                    "topic {} takes smaller batches than before (max.message.bytes): send it again",
                    self.topic
                );
                Error::Unavailable(reason.into())
            }
            // librdkafka says so after one answer; whether it is true is found out before the next append.
            _ if is_unknown(&error) => not_caught_up(&self.topic),
            _ => translate(
                error,
                &About::partition(&self.topic, self.partition, 0, "Write"),
                &context.trouble,
            ),
        }
    }
}

/// Whether the broker may have stored the record nevertheless, and only its answer was lost.
fn leaves_open(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{Fatal, MessageTimedOut, PurgeInflight, PurgeQueue, RequestTimedOut};
    matches!(
        error.rdkafka_error_code(),
        Some(MessageTimedOut | RequestTimedOut | PurgeQueue | PurgeInflight | Fatal)
    )
}

/// Hands delivery reports to the batches that they are about.
#[derive(Clone)]
pub(crate) struct Deliveries {
    pub(crate) context: Context,
    pub(crate) known: Arc<Known>,
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.context.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.context.error(error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Arc<InFlight>;

    fn delivery(&self, result: &DeliveryResult<'_>, in_flight: Arc<InFlight>) {
        let outcome = match result {
            Ok(message) => Ok(Offset(u64::try_from(message.offset()).unwrap_or(0))),
            Err((error, _)) => Err(error.clone()),
        };
        in_flight.report(1, outcome, self);
    }
}

/// Hands the records of a batch to librdkafka, waiting for room in its queue until the deadline. Each was found
/// to be within its limit, for what went before one that is refused would be stored.
pub(crate) fn send(
    producer: &BaseProducer<Deliveries>,
    topic: &Name,
    partition: PartitionId,
    batch: &EncodedBatch,
    done: Done,
    room: Option<Arc<Room>>,
    deadline: Instant,
) {
    let in_flight = InFlight::new(topic, partition, batch, done, room);
    let number = i32::try_from(partition.0).unwrap_or(i32::MAX);
    let mut left = batch.records();
    for record in batch.walk() {
        // It was checked when it was built.
        let Ok(record) = record else { break };
        let mut next = producer_record(&record, topic, number, in_flight.clone());
        let refused = loop {
            match producer.send(next) {
                Ok(()) => break None,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back))
                    if Instant::now() < deadline =>
                {
                    producer.poll(ROOM);
                    next = back;
                }
                Err((error, _)) => break Some(error),
            }
        };
        if let Some(error) = refused {
            // This one and those behind it will get no report.
            in_flight.report(left, Err(error), producer.context());
            return;
        }
        left -= 1;
    }
}

type Outgoing<'a> = BaseRecord<'a, [u8], [u8], Arc<InFlight>>;

fn producer_record<'a>(
    record: &Record<'a>,
    topic: &'a Name,
    partition: i32,
    in_flight: Arc<InFlight>,
) -> Outgoing<'a> {
    let mut outgoing = BaseRecord::with_opaque_to(topic.as_str(), in_flight)
        .partition(partition)
        // librdkafka takes zero for "now"; one millisecond later is nearer to the truth.
        .timestamp(if record.timestamp_ms == 0 { 1 } else { record.timestamp_ms });
    outgoing.key = record.key;
    outgoing.payload = record.value;
    if !record.headers.is_empty() {
        let mut headers = OwnedHeaders::new();
        for (key, value) in record.headers.iter() {
            headers = headers.insert(Header { key, value });
        }
        outgoing.headers = Some(headers);
    }
    outgoing
}
