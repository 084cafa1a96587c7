//! The fenced writer: a transactional producer, whose transactional id is the writer's.
//!
//! A claim initialises the id, which fences every older claim at the broker, and then appends one record to
//! the topic of claims. That record's offset makes the epoch: it rises from claim to claim, for an older
//! claim cannot append after a newer one was initialised. Kafka's own epoch would do, but librdkafka does
//! not tell it, and it begins anew when the id has not been used for a week.
//!
//! An append is one transaction. librdkafka lacks the client's part of KIP-890: after any unclean end a
//! delayed request of the old transaction could end a later one. So any doubt ends the claim: who wants to
//! go on claims anew, and reads back what was really stored.

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
    KafkaConfig,
    client::{
        context::Context,
        error::{RequestTarget, translate},
    },
    produce::{DeliveryContext, own_limit, send},
    topic_metadata::TopicMetadata,
};

/// One record per claim, for as long as somebody may want to look at it: only the offsets count.
pub(crate) const CLAIMS_TOPIC: &str = "headwater.claims";
pub(crate) const CLAIMS_SPEC: TopicSpec = TopicSpec::keep(1);
const ONLY: PartitionId = PartitionId(0);
/// A transaction that nobody ends is aborted by the broker after this time, and until then readers of its
/// partitions wait.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);

const ABORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Says what to do about a topic of claims that is not as it must be.
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

/// A claim. Its thread ends with it.
pub(crate) struct KafkaWriter {
    epoch: Epoch,
    requests: mpsc::Sender<TransactionRequest>,
    limit: RecordLimit,
}

/// What the thread has.
struct Claim {
    id: WriterId,
    epoch: Epoch,
    producer: BaseProducer<DeliveryContext>,
    context: Context,
    timeout: Duration,
}

impl KafkaWriter {
    /// Claims the writer. It blocks.
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
            // No transaction may outlive the answer to its append.
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
            claim.epoch = Epoch(claim.append(&topic, ONLY, &batch)?.first().0 + 1);
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
        // Before anything of it is stored: the claim goes on.
        if let Err(error) = self.limit.check(topic, &batch) {
            return std::future::ready(Err(error)).boxed();
        }
        let (done, answer) = oneshot::channel();
        let request = TransactionRequest { topic: topic.clone(), partition, batch, done };
        // If the thread is gone, so is the sender of the answer.
        let _ = self.requests.send(request);
        let ended = || Error::Uncertain("the writer has ended: claim it anew".into());
        async move { answer.await.unwrap_or_else(|_| Err(ended())) }.boxed()
    }
}

impl Claim {
    /// Appends until the writer is dropped or fails: after an append that was not clean no other may follow.
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
                    // Readers need not wait until the broker gives it up.
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

    /// One transaction.
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
        // Reports come while it is flushed.
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

    /// An error of the transaction. Nothing is known then of what was stored.
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
