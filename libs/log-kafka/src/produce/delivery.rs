//! Turns delivery reports, one per record, into one answer per batch.

use std::sync::Arc;

use futures::channel::oneshot;
use headwater_log::{Appended, EncodedBatch, Error};
use headwater_types::{Name, Offset, PartitionId};
use parking_lot::Mutex;
use rdkafka::{
    ClientContext, Message as _,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
    producer::{DeliveryResult, ProducerContext},
};

use super::in_flight_budget::InFlightBudget;
use crate::{
    client::{
        context::Context,
        error::{RequestTarget, is_unknown, not_caught_up, translate},
    },
    topic_metadata::TopicMetadata,
};

/// Where the answer for a batch goes.
pub(crate) type AnswerSender = oneshot::Sender<Result<Appended, Error>>;

/// A batch whose records are on their way. Each of them reports here.
pub(crate) struct PendingBatch {
    topic: Name,
    partition: PartitionId,
    bytes: usize,
    records: u32,
    /// The budget that holds the batch until it is answered.
    budget: Option<Arc<InFlightBudget>>,
    reports: Mutex<BatchReports>,
}

struct BatchReports {
    missing: u32,
    offsets: Vec<Offset>,
    failure: Option<KafkaError>,
    answer: Option<AnswerSender>,
}

impl PendingBatch {
    pub(super) fn new(
        topic: &Name,
        partition: PartitionId,
        batch: &EncodedBatch,
        answer: AnswerSender,
        budget: Option<Arc<InFlightBudget>>,
    ) -> Arc<Self> {
        let records = batch.records();
        let reports = BatchReports {
            missing: records,
            offsets: Vec::with_capacity(records as usize),
            failure: None,
            answer: Some(answer),
        };
        Arc::new(Self {
            topic: topic.clone(),
            partition,
            bytes: batch.bytes().len(),
            records,
            budget,
            reports: Mutex::new(reports),
        })
    }

    /// `count` records have this outcome.
    pub(super) fn report(
        &self,
        count: u32,
        outcome: Result<Offset, KafkaError>,
        by: &DeliveryContext,
    ) {
        let mut reports = self.reports.lock();
        reports.missing = reports.missing.saturating_sub(count);
        match outcome {
            Ok(offset) => reports.offsets.push(offset),
            // An error that leaves open whether the record is stored takes precedence.
            Err(error) if reports.failure.is_none() || leaves_open(&error) => {
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge) {
                    by.topics.refused_for_size(&self.topic);
                }
                if is_unknown(&error) {
                    by.topics.doubt(&self.topic);
                }
                reports.failure = Some(error);
            }
            Err(_) => {}
        }
        if reports.missing > 0 {
            return;
        }
        let answer = match reports.failure.take() {
            Some(error) => Err(self.failure(error, !reports.offsets.is_empty(), by)),
            None => {
                by.context.status.note_answer();
                // Records are stored in the order in which they were sent, but reports may come in
                // another order.
                let mut offsets = std::mem::take(&mut reports.offsets);
                offsets.sort_unstable();
                Ok(Appended::each(offsets))
            }
        };
        // The caller may have given up.
        let _ = reports.answer.take().map(|sender| sender.send(answer));
        drop(reports);
        if let Some(budget) = &self.budget {
            budget.leave(self.bytes, self.records as usize);
        }
    }

    /// The error of the whole batch. `partly` says that some of its records are stored.
    fn failure(&self, error: KafkaError, partly: bool, by: &DeliveryContext) -> Error {
        use RDKafkaErrorCode::{MessageSizeTooLarge, MessageTimedOut, RequestTimedOut};
        let context = &by.context;
        match error.rdkafka_error_code() {
            Some(MessageTimedOut | RequestTimedOut) => {
                let reason = context.status.reason().unwrap_or_else(|| error.to_string());
                Error::Uncertain(reason.into())
            }
            _ if partly || leaves_open(&error) => Error::Uncertain(error.into()),
            // The broker refuses a whole batch of librdkafka's, and each record was within the
            // limit that we knew. The next append asks for the new limit first and refuses the
            // right record.
            Some(MessageSizeTooLarge) => {
                let reason = format!(
                    "topic {} takes smaller batches than before (max.message.bytes): send it again",
                    self.topic
                );
                Error::Unavailable(reason.into())
            }
            // librdkafka says so after one answer. The next append checks whether it is true.
            _ if is_unknown(&error) => not_caught_up(&self.topic),
            _ => translate(
                error,
                &RequestTarget::partition(&self.topic, self.partition, 0, "Write"),
                &context.status,
            ),
        }
    }
}

/// Whether the broker may have stored the record although its answer did not arrive.
fn leaves_open(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{Fatal, MessageTimedOut, PurgeInflight, PurgeQueue, RequestTimedOut};
    matches!(
        error.rdkafka_error_code(),
        Some(MessageTimedOut | RequestTimedOut | PurgeQueue | PurgeInflight | Fatal)
    )
}

/// The callbacks of a producer: hands each delivery report to its batch.
#[derive(Clone)]
pub(crate) struct DeliveryContext {
    pub(crate) context: Context,
    pub(crate) topics: Arc<TopicMetadata>,
}

impl ClientContext for DeliveryContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.context.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.context.error(error, reason);
    }
}

impl ProducerContext for DeliveryContext {
    type DeliveryOpaque = Arc<PendingBatch>;

    fn delivery(&self, result: &DeliveryResult<'_>, pending: Arc<PendingBatch>) {
        let outcome = match result {
            Ok(message) => Ok(Offset(u64::try_from(message.offset()).unwrap_or(0))),
            Err((error, _)) => Err(error.clone()),
        };
        pending.report(1, outcome, self);
    }
}
