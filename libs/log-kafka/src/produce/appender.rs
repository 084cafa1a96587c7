//! Takes appends from any thread, and hands them to librdkafka on a thread of its own.

use std::{
    collections::HashMap,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use futures::{FutureExt, channel::oneshot};
use headwater_log::{Answer, Appended, EncodedBatch, Error, RecordLimit};
use headwater_types::{Name, PartitionId};
use rdkafka::error::RDKafkaErrorCode;

use super::{
    append_queue::{AppendQueue, QueueEntry, QueuedAppend},
    delivery::DeliveryContext,
    limits::{batch_for, own_limit, record_limit, usual_batch},
    producer::PolledProducer,
    send::send,
};
use crate::{
    admin::Admin,
    client::{
        cluster_status::ClusterStatus,
        context::Context,
        error::{denied, unavailable},
        rebootstrap::Rebootstrap,
    },
    config::KafkaConfig,
    topic_metadata::{TopicLimits, TopicMetadata},
};

/// How long the appender refuses appends after the brokers have denied it writing.
const DENIED: Duration = Duration::from_secs(10);

/// Appends in the order of the calls. Dropping it waits for what is on its way.
pub(crate) struct Appender {
    queue: Arc<AppendQueue>,
    topics: Arc<TopicMetadata>,
    own: RecordLimit,
    status: ClusterStatus,
    thread: Option<JoinHandle<()>>,
}

impl Appender {
    pub(crate) fn start(
        config: &KafkaConfig,
        client: &str,
        context: &Context,
        admin: Arc<Admin>,
        topics: &Arc<TopicMetadata>,
    ) -> Result<Self, Error> {
        let queue = Arc::<AppendQueue>::default();
        let appender = AppenderThread {
            config: config.clone(),
            client: client.to_owned(),
            deliveries: DeliveryContext { context: context.clone(), topics: topics.clone() },
            admin,
            usual: usual_batch(config),
            queue: queue.clone(),
            producers: HashMap::new(),
            last: HashMap::new(),
            denied: None,
        };
        let thread = thread::Builder::new()
            .name("kafka-appends".into())
            .spawn(move || appender.run())
            .map_err(|error| Error::Unavailable(error.into()))?;
        Ok(Self {
            queue,
            topics: topics.clone(),
            own: own_limit(config),
            status: context.status.clone(),
            thread: Some(thread),
        })
    }

    pub(crate) fn record_limit(&self, topic: &Name) -> RecordLimit {
        record_limit(self.own, self.topics.max_batch(topic))
    }

    /// Queues the batch. The future waits until the batch is stored or refused.
    pub(crate) fn append(
        &self,
        topic: &Name,
        partition: PartitionId,
        batch: EncodedBatch,
    ) -> Answer<Appended> {
        let (done, answer) = oneshot::channel();
        let topic = topic.clone();
        let waiting = QueuedAppend { topic, partition, batch, since: Instant::now(), done };
        let ended = || Error::Uncertain("the log was closed".into());
        match self.queue.push(QueueEntry::Append(waiting)) {
            Ok(()) => async move { answer.await.unwrap_or_else(|_| Err(ended())) }.boxed(),
            Err(_) => {
                let closed = Error::Unavailable("the log was closed".into());
                std::future::ready(Err(closed)).boxed()
            }
        }
    }

    /// Waits until every append so far is answered.
    pub(crate) fn flush(&self, deadline: Duration) -> Result<(), Error> {
        let (done, answer) = mpsc::channel();
        let flush = QueueEntry::Flush { until: Instant::now() + deadline, done };
        if self.queue.push(flush).is_err() {
            return Ok(());
        }
        let late = "the brokers have not answered all appends in time";
        answer.recv_timeout(deadline).unwrap_or_else(|_| Err(unavailable(late, &self.status)))
    }
}

impl Drop for Appender {
    fn drop(&mut self) {
        self.queue.close();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread, and what only it sees.
struct AppenderThread {
    config: KafkaConfig,
    client: String,
    deliveries: DeliveryContext,
    admin: Arc<Admin>,
    queue: Arc<AppendQueue>,
    /// The size of batches for topics that take batches of this size.
    usual: usize,
    /// Producers by the size of their batches, mostly one. Each is made when it is first needed: a
    /// process that never appends needs no right to write.
    producers: HashMap<usize, PolledProducer>,
    /// The size of the batches that each topic got last.
    last: HashMap<Name, usize>,
    /// When the brokers last denied us to write to any topic.
    denied: Option<Instant>,
}

impl AppenderThread {
    fn run(mut self) {
        while let Some(request) = self.queue.take() {
            match request {
                QueueEntry::Append(waiting) => self.hand_over(waiting),
                QueueEntry::Flush { until, done } => {
                    let empty = self.wait_empty(until);
                    let late = "the brokers have not answered all appends in time";
                    let late = || unavailable(late, &self.deliveries.context.status);
                    // The caller may have given up.
                    let _ = done.send(if empty { Ok(()) } else { Err(late()) });
                }
            }
        }
        // Dropping a producer throws away what is on its way.
        let closed = self.queue.closed().unwrap_or_else(Instant::now);
        self.wait_empty(closed + self.config.delivery_timeout);
    }

    fn wait_empty(&self, until: Instant) -> bool {
        self.producers.values().all(|producer| producer.budget.wait_empty(until))
    }

    fn hand_over(&mut self, waiting: QueuedAppend) {
        let QueuedAppend { topic, partition, batch, since, done } = waiting;
        let until = since + self.config.delivery_timeout;
        match self.prepare(&topic, partition, &batch, until) {
            Ok(producer) => {
                let budget = Some(producer.budget.clone());
                send(&producer.producer, &topic, partition, &batch, done, budget, until);
            }
            Err(error) => {
                // The caller may have given up.
                let _ = done.send(Err(error));
            }
        }
    }

    /// Checks the batch, waits for room in a producer's budget, and returns that producer.
    fn prepare(
        &mut self,
        topic: &Name,
        partition: PartitionId,
        batch: &EncodedBatch,
        until: Instant,
    ) -> Result<&PolledProducer, Error> {
        let status = self.deliveries.context.status.clone();
        let late = || unavailable("the brokers take no records", &status);
        if Instant::now() >= until {
            return Err(late());
        }
        // librdkafka itself would wait half a minute for an unknown topic.
        let known = self.deliveries.topics.limits(topic, partition, Instant::now());
        let TopicLimits { max_batch } = match known {
            Some(usable) => usable,
            None => self.admin.learn(topic, partition)?,
        };
        // If librdkafka refused a record, the records before it would be stored nevertheless.
        record_limit(own_limit(&self.config), max_batch).check(topic, batch)?;
        let size = batch_for(max_batch, self.usual);
        self.drain_former(topic, size, until)?;
        let producer = self.producer_for(topic, size)?;
        let (bytes, records) = (batch.bytes().len(), batch.records() as usize);
        producer.budget.enter(bytes, records, until).then_some(producer).ok_or_else(late)
    }

    /// Keeps the order of a topic's records when its limit has changed: they go through another
    /// producer only after the former one has stored the earlier ones.
    fn drain_former(&mut self, topic: &Name, size: usize, until: Instant) -> Result<(), Error> {
        let former = self.last.get(topic).copied();
        if former == Some(size) {
            return Ok(());
        }
        if let Some(producer) = former.and_then(|former| self.producers.get(&former))
            && !producer.budget.wait_empty(until)
        {
            let late = "earlier records are not stored yet";
            return Err(unavailable(late, &self.deliveries.context.status));
        }
        self.last.insert(topic.clone(), size);
        Ok(())
    }

    /// The producer for batches of this size; a new one if there is none or it has failed for good.
    fn producer_for(&mut self, topic: &Name, size: usize) -> Result<&PolledProducer, Error> {
        use RDKafkaErrorCode::{ClusterAuthorizationFailed, TopicAuthorizationFailed};
        let status = &self.deliveries.context.status;
        if let Some((code, reason)) =
            self.producers.get(&size).and_then(PolledProducer::fatal_error)
        {
            if !matches!(code, ClusterAuthorizationFailed | TopicAuthorizationFailed) {
                tracing::warn!(?code, reason, "the producer has failed for good and is replaced");
            } else if self.denied.replace(Instant::now()).is_none() {
                let user = status.user();
                tracing::warn!(reason, "the brokers' ACLs do not let {user} write to any topic");
            }
            self.producers.remove(&size);
        }
        if !self.producers.contains_key(&size) {
            if self.denied.is_some_and(|at| at.elapsed() < DENIED) {
                let reason = denied("Write", topic, status).into();
                return Err(Error::Refused { topic: topic.clone(), reason });
            }
            let mut config = self.config.producer(&self.client);
            if size != self.usual {
                config.set("batch.size", size.to_string());
            }
            self.producers.insert(
                size,
                PolledProducer::start(
                    &config,
                    self.deliveries.clone(),
                    Rebootstrap::new(&self.config),
                )?,
            );
        }
        let gone = || Error::Unavailable("no producer".into());
        self.producers.get(&size).ok_or_else(gone)
    }
}
