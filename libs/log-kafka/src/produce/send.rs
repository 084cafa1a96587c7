//! Hands a batch to librdkafka, record by record.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_log::{EncodedBatch, Record};
use headwater_types::{Name, PartitionId};
use rdkafka::{
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer},
};

use super::{
    delivery::{AnswerSender, DeliveryContext, PendingBatch},
    in_flight_budget::InFlightBudget,
};

/// How long to wait for room in librdkafka's queue before it is tried again.
const QUEUE_FULL: Duration = Duration::from_millis(10);

/// Hands the records of a batch to librdkafka. Waits until the deadline while its queue is full.
///
/// The caller has checked that each record is within its limit: if librdkafka refused one, the
/// records before it would be stored nevertheless.
pub(crate) fn send(
    producer: &BaseProducer<DeliveryContext>,
    topic: &Name,
    partition: PartitionId,
    batch: &EncodedBatch,
    answer: AnswerSender,
    budget: Option<Arc<InFlightBudget>>,
    deadline: Instant,
) {
    let pending = PendingBatch::new(topic, partition, batch, answer, budget);
    let number = i32::try_from(partition.0).unwrap_or(i32::MAX);
    let mut left = batch.records();
    for record in batch.walk() {
        // The batch was checked when it was built.
        let Ok(record) = record else { break };
        let mut next = producer_record(&record, topic, number, pending.clone());
        let refused = loop {
            match producer.send(next) {
                Ok(()) => break None,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back))
                    if Instant::now() < deadline =>
                {
                    producer.poll(QUEUE_FULL);
                    next = back;
                }
                Err((error, _)) => break Some(error),
            }
        };
        if let Some(error) = refused {
            // This record and those behind it get no delivery report.
            pending.report(left, Err(error), producer.context());
            return;
        }
        left -= 1;
    }
}

type Outgoing<'a> = BaseRecord<'a, [u8], [u8], Arc<PendingBatch>>;

fn producer_record<'a>(
    record: &Record<'a>,
    topic: &'a Name,
    partition: i32,
    pending: Arc<PendingBatch>,
) -> Outgoing<'a> {
    let mut outgoing = BaseRecord::with_opaque_to(topic.as_str(), pending)
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
