//! Appending without a claim: one idempotent producer per log, and the one thread that serves it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use futures::channel::oneshot;
use headwater_log::{Appended, EncodedBatch, Error, Record};
use headwater_types::{Name, Offset, PartitionId};
use parking_lot::{Mutex, RwLock};
use rdkafka::{
    ClientContext, Message as _,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext},
};

use crate::{
    KafkaConfig,
    context::Context,
    error::{About, translate, unavailable},
};

/// How long the thread waits for reports, and so how late it sees that it shall end. Each wait ends with a
/// millisecond of asking over and over, so it should be long.
const POLL: Duration = Duration::from_millis(500);
/// How long to wait for room in librdkafka's queue.
const ROOM: Duration = Duration::from_millis(10);

/// One batch on its way: every record of it reports here.
pub(crate) struct InFlight {
    topic: Name,
    partition: PartitionId,
    bytes: usize,
    state: Mutex<Reports>,
}

struct Reports {
    missing: u32,
    offsets: Vec<Offset>,
    failure: Option<KafkaError>,
    done: Option<oneshot::Sender<Result<Appended, Error>>>,
}

impl InFlight {
    fn new(
        topic: &Name,
        partition: PartitionId,
        batch: &EncodedBatch,
    ) -> (Arc<Self>, oneshot::Receiver<Result<Appended, Error>>) {
        let (done, answer) = oneshot::channel();
        let missing = batch.records();
        let state = Reports {
            missing,
            offsets: Vec::with_capacity(missing as usize),
            failure: None,
            done: Some(done),
        };
        let in_flight = Self {
            topic: topic.clone(),
            partition,
            bytes: batch.bytes().len(),
            state: Mutex::new(state),
        };
        (Arc::new(in_flight), answer)
    }

    fn report(&self, count: u32, outcome: Result<Offset, KafkaError>, trouble: &Context) {
        let mut state = self.state.lock();
        state.missing = state.missing.saturating_sub(count);
        match outcome {
            Ok(offset) => state.offsets.push(offset),
            Err(error) => {
                state.failure.get_or_insert(error);
            }
        }
        if state.missing > 0 {
            return;
        }
        let answer = match state.failure.take() {
            Some(error) => Err(self.failure(error, !state.offsets.is_empty(), trouble)),
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
    }

    /// `partly` says that some records are stored.
    fn failure(&self, error: KafkaError, partly: bool, context: &Context) -> Error {
        let code = error.rdkafka_error_code();
        match code {
            // The broker may have stored it, and only its answer was lost.
            Some(RDKafkaErrorCode::MessageTimedOut | RDKafkaErrorCode::RequestTimedOut) => {
                let reason = context.trouble.last().unwrap_or_else(|| error.to_string());
                Error::Uncertain(reason.into())
            }
            _ if partly => Error::Uncertain(error.into()),
            Some(
                RDKafkaErrorCode::PurgeQueue
                | RDKafkaErrorCode::PurgeInflight
                | RDKafkaErrorCode::Fatal,
            ) => Error::Uncertain(error.into()),
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => {
                let topic = self.topic.clone();
                Error::TooLarge { topic, bytes: self.bytes, limit: MESSAGE_LIMIT }
            }
            _ => translate(
                error,
                &About::partition(&self.topic, self.partition, 0),
                &context.trouble,
            ),
        }
    }
}

/// What brokers take in one batch unless they are told otherwise (`message.max.bytes`).
pub(crate) const MESSAGE_LIMIT: usize = 1_000_000;

/// Hands delivery reports to the batches that they are about.
pub(crate) struct Deliveries(pub(crate) Context);

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.error(error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Arc<InFlight>;

    fn delivery(&self, result: &DeliveryResult<'_>, in_flight: Arc<InFlight>) {
        let outcome = match result {
            Ok(message) => Ok(Offset(u64::try_from(message.offset()).unwrap_or(0))),
            Err((error, _)) => Err(error.clone()),
        };
        in_flight.report(1, outcome, &self.0);
    }
}

/// Hands the records of a batch to librdkafka, waiting for room in its queue until the deadline.
pub(crate) fn send(
    producer: &BaseProducer<Deliveries>,
    topic: &Name,
    partition: PartitionId,
    batch: &EncodedBatch,
    deadline: Instant,
) -> oneshot::Receiver<Result<Appended, Error>> {
    let context = &producer.context().0;
    let (in_flight, answer) = InFlight::new(topic, partition, batch);
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
            in_flight.report(left, Err(error), context);
            return answer;
        }
        left -= 1;
    }
    answer
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

/// The producer of a log. Appends go to librdkafka in the order of calls; a thread serves the reports.
pub(crate) struct Appender {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    config: KafkaConfig,
    client: String,
    context: Context,
    /// Replaced when librdkafka says that it can go on no more. Held for writing while a batch is handed
    /// over, so that batches keep their order.
    producer: RwLock<Arc<BaseProducer<Deliveries>>>,
    order: Mutex<()>,
    stop: AtomicBool,
}

impl Appender {
    pub(crate) fn start(
        config: &KafkaConfig,
        client: &str,
        context: &Context,
    ) -> Result<Self, KafkaError> {
        let producer = create(config, client, context)?;
        let shared = Arc::new(Shared {
            config: config.clone(),
            client: client.to_owned(),
            context: context.clone(),
            producer: RwLock::new(Arc::new(producer)),
            order: Mutex::new(()),
            stop: AtomicBool::new(false),
        });
        let served = shared.clone();
        let thread = thread::Builder::new()
            .name("kafka-appends".into())
            .spawn(move || serve(&served))
            .map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Takes the batch at once, unless librdkafka's queue is full: then it waits for room, up to the
    /// delivery timeout.
    pub(crate) fn append(
        &self,
        topic: &Name,
        partition: PartitionId,
        batch: &EncodedBatch,
    ) -> oneshot::Receiver<Result<Appended, Error>> {
        let _order = self.shared.order.lock();
        let producer = self.shared.producer.read().clone();
        let deadline = Instant::now() + self.shared.config.delivery_timeout;
        send(&producer, topic, partition, batch, deadline)
    }

    /// Waits until all that was appended is answered.
    pub(crate) fn flush(&self, deadline: Duration) -> Result<(), Error> {
        let producer = self.shared.producer.read().clone();
        producer.flush(deadline).map_err(|error| unavailable(error, &self.shared.context.trouble))
    }
}

impl Drop for Appender {
    fn drop(&mut self) {
        // The producer's own drop would throw away what is on its way.
        let _ = self.flush(self.shared.config.delivery_timeout);
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn create(
    config: &KafkaConfig,
    client: &str,
    context: &Context,
) -> Result<BaseProducer<Deliveries>, KafkaError> {
    config.producer(client).create_with_context(Deliveries(context.clone()))
}

fn serve(shared: &Shared) {
    while !shared.stop.load(Ordering::Relaxed) {
        let producer = shared.producer.read().clone();
        producer.poll(POLL);
        if let Some((code, reason)) = producer.client().fatal_error() {
            tracing::warn!(?code, reason, "the producer begins anew");
            let _order = shared.order.lock();
            // What it still had is answered as uncertain by its drop.
            match create(&shared.config, &shared.client, &shared.context) {
                Ok(anew) => *shared.producer.write() = Arc::new(anew),
                Err(error) => tracing::error!(%error, "no producer can be created"),
            }
        }
    }
}
