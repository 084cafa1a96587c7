//! The fenced writer: a transactional producer, whose transactional id is the writer's.
//!
//! A claim first initialises the id, which fences every older claim at the broker. It then appends
//! one record to the topic of claims, and the epoch is one more than the offset of this record. The
//! epoch rises from claim to claim, since an older claim cannot append after a newer one is
//! initialised. Kafka's own epoch does not serve: librdkafka does not expose it, and it starts
//! again when the id has not been used for a week.
//!
//! An append is one transaction. librdkafka lacks the client's part of KIP-890: after any unclean
//! end a delayed request of the old transaction could end a later one. So any doubt ends the claim.
//! The caller then claims again, and reads back what was really stored.
//!
//! librdkafka's calls for transactions block, so each claim has a thread of its own, which also
//! keeps the order of the calls.

use std::{
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use futures::{FutureExt, channel::oneshot};
use headwater_log::{
    Answer, Appended, BatchBuilder, EncodedBatch, Error, FencedWriter, RecordLimit, TopicSpec,
    WriterId,
};
use headwater_types::{Epoch, Name, PartitionId};
use rdkafka::{
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseProducer, Producer, PurgeConfig},
};

use crate::{
    client::{
        context::Context,
        error::{RequestTarget, translate},
    },
    config::KafkaConfig,
    produce::{DeliveryContext, own_limit, send},
    topic_metadata::TopicMetadata,
};

/// Has one record per claim. Only the offsets count; the records show which process claimed when.
pub(crate) const CLAIMS_TOPIC: &str = "headwater.claims";
pub(crate) const CLAIMS_SPEC: TopicSpec = TopicSpec::keep(1);
/// The broker aborts a transaction that is not ended in this time. Until then readers of its
/// partitions wait.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);

const ABORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Says what to do about a topic of claims with another specification.
pub(crate) fn explain_claims_topic(error: Error) -> Error {
    let Error::TopicDiffers { topic, existing, requested } = error else { return error };
    let remedy = match existing.partitions == requested.partitions {
        true => "set cleanup.policy=delete, retention.ms=-1 and retention.bytes=-1 on it",
        false => "the epochs of all writers come from one partition, so it cannot be used as it is",
    };
    let reason = format!("it exists with {existing} and must be one with {requested}: {remedy}");
    Error::Refused { topic, reason: reason.into() }
}

struct TransactionRequest {
    topic: Name,
    partition: PartitionId,
    batch: EncodedBatch,
    done: oneshot::Sender<Result<Appended, Error>>,
}

/// A claim. Dropping it ends its thread.
pub(crate) struct KafkaWriter {
    epoch: Epoch,
    requests: mpsc::Sender<TransactionRequest>,
    limit: RecordLimit,
}

/// The thread of a claim, and what only it sees.
struct Claim {
    id: WriterId,
    epoch: Epoch,
    producer: BaseProducer<DeliveryContext>,
    context: Context,
    timeout: Duration,
}

impl KafkaWriter {
    /// Claims the writer. Blocks until the brokers have answered.
    pub(crate) fn claim(
        config: &KafkaConfig,
        client: &str,
        context: &Context,
        topics: &Arc<TopicMetadata>,
        id: &WriterId,
    ) -> Result<Self, Error> {
        let topic = Name::new(CLAIMS_TOPIC).map_err(|error| Error::Unavailable(error.into()))?;
        let failed =
            |error| translate(error, &RequestTarget::topic(&topic, "Write"), &context.status);
        let producer: BaseProducer<DeliveryContext> = config
            .producer(client)
            .set("transactional.id", format!("headwater/{id}"))
            .set("transaction.timeout.ms", TRANSACTION_TIMEOUT.as_millis().to_string())
            // No record may be sent after its append was answered.
            .set("message.timeout.ms", TRANSACTION_TIMEOUT.as_millis().to_string())
            .set("linger.ms", "0")
            .create_with_context(DeliveryContext {
                context: context.clone(),
                topics: topics.clone(),
            })
            .map_err(failed)?;
        let timeout = config.request_timeout.max(TRANSACTION_TIMEOUT);
        producer.init_transactions(timeout).map_err(failed)?;
        let mut claim = Claim {
            id: id.clone(),
            epoch: Epoch(0),
            producer,
            context: context.clone(),
            timeout: TRANSACTION_TIMEOUT,
        };
        let mut batch = BatchBuilder::new();
        batch.push(0, Some(id.0.as_bytes()), Some(client.as_bytes()), &[]);
        if let Some(batch) = batch.build() {
            claim.epoch = Epoch(claim.append(&topic, PartitionId::ONLY, &batch)?.first().0 + 1);
        }
        let epoch = claim.epoch;
        let (requests, inbox) = mpsc::channel();
        thread::Builder::new()
            .name("kafka-writer".into())
            .spawn(move || claim.serve(&inbox))
            .map_err(|error| Error::Unavailable(error.into()))?;
        Ok(Self { epoch, requests, limit: own_limit(config) })
    }
}

impl FencedWriter for KafkaWriter {
    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn append(
        &self,
        topic: &Name,
        partition: PartitionId,
        batch: EncodedBatch,
    ) -> Answer<Appended> {
        // Nothing of the batch is stored yet, so the claim stays usable.
        if let Err(error) = self.limit.check(topic, &batch) {
            return std::future::ready(Err(error)).boxed();
        }
        let (done, answer) = oneshot::channel();
        let request = TransactionRequest { topic: topic.clone(), partition, batch, done };
        // If the thread has ended, the answer fails below.
        let _ = self.requests.send(request);
        let ended = || Error::Uncertain("the writer has ended: claim it anew".into());
        async move { answer.await.unwrap_or_else(|_| Err(ended())) }.boxed()
    }
}

impl Claim {
    /// Appends until the writer is dropped. After an append that failed, no other may follow.
    fn serve(self, inbox: &mpsc::Receiver<TransactionRequest>) {
        let mut broken: Option<bool> = None;
        while let Ok(TransactionRequest { topic, partition, batch, done }) = inbox.recv() {
            let outcome = match broken {
                Some(true) => Err(self.fenced()),
                Some(false) => {
                    Err(Error::Uncertain("an earlier append failed: claim the writer anew".into()))
                }
                None => self.append(&topic, partition, &batch),
            };
            if let Err(error) = &outcome
                && broken.is_none()
            {
                let fenced = matches!(error, Error::Fenced { .. });
                broken = Some(fenced);
                if !fenced {
                    // Otherwise readers would wait until the broker aborts the transaction.
                    self.producer.purge(PurgeConfig::default().queue().inflight());
                    let _ = self.producer.flush(ABORT_TIMEOUT);
                    let _ = self.producer.abort_transaction(ABORT_TIMEOUT);
                }
            }
            let _ = done.send(outcome);
        }
    }

    fn fenced(&self) -> Error {
        Error::Fenced { writer: self.id.clone(), ours: self.epoch }
    }

    /// Stores the batch in one transaction.
    fn append(
        &self,
        topic: &Name,
        partition: PartitionId,
        batch: &EncodedBatch,
    ) -> Result<Appended, Error> {
        self.producer.begin_transaction().map_err(|error| self.failure(error))?;
        let deadline = Instant::now() + self.timeout;
        let (done, mut answer) = oneshot::channel();
        send(&self.producer, topic, partition, batch, done, None, deadline);
        // Flushing serves the delivery reports.
        let flushed = self.producer.flush(self.timeout);
        let appended = match answer.try_recv() {
            Ok(Some(Ok(appended))) => appended,
            Ok(Some(Err(error))) => {
                return Err(self.fenced_or(error));
            }
            Ok(None) | Err(_) => {
                let error = flushed.err().unwrap_or(KafkaError::Canceled);
                return Err(self.failure(error));
            }
        };
        self.producer.commit_transaction(self.timeout).map_err(|error| self.failure(error))?;
        Ok(appended)
    }

    /// The error of a transaction that failed: its records may be stored or not.
    fn failure(&self, error: KafkaError) -> Error {
        if is_fencing(error.rdkafka_error_code()) {
            return self.fenced();
        }
        self.fenced_or(Error::Uncertain(
            self.context.status.reason().map_or_else(|| error.into(), Into::into),
        ))
    }

    fn fenced_or(&self, error: Error) -> Error {
        let fatal = self.producer.client().fatal_error();
        match fatal.is_some_and(|(code, _)| is_fencing(Some(code))) {
            true => self.fenced(),
            false => error,
        }
    }
}

fn is_fencing(code: Option<RDKafkaErrorCode>) -> bool {
    use RDKafkaErrorCode::{Fenced, InvalidProducerEpoch, ProducerFenced};
    matches!(code, Some(Fenced | ProducerFenced | InvalidProducerEpoch))
}
