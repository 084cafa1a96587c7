//! Takes appends from anybody, and hands them to librdkafka on a thread of its own.

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
    Deliveries,
    line::Line,
    queue::{Queue, Request, Waiting},
    send,
};
use crate::{
    KafkaConfig,
    admin::Admin,
    context::Context,
    error::{self, unavailable},
    known::{Known, Usable},
};

/// Who may not write is not asked again for this time.
const DENIED: Duration = Duration::from_secs(10);

/// What librdkafka counts for a record beyond key, value and headers.
const RECORD_OVERHEAD: usize = 36;
/// What a batch of one record has beside the record.
const BATCH_OVERHEAD: usize = headwater_log::HEADER_LEN;

/// How large a record may be whatever its topic: librdkafka refuses larger ones.
pub(crate) fn own_limit(config: &KafkaConfig) -> RecordLimit {
    const DEFAULT: usize = 1_000_000;
    let set = config.setting("message.max.bytes").and_then(|value| value.parse().ok());
    RecordLimit {
        bytes: set.unwrap_or(DEFAULT),
        overhead: RECORD_OVERHEAD,
        set_by: "kafka.settings.message.max.bytes",
    }
}

/// How large librdkafka makes the batches that it sends, before compression.
fn usual_batch(config: &KafkaConfig) -> usize {
    const DEFAULT: usize = 1_000_000;
    let set = config.setting("batch.size").and_then(|value| value.parse().ok());
    set.unwrap_or(DEFAULT).min(own_limit(config).bytes)
}

/// The batches for a topic that takes no larger ones. Counted before compression: whether an event is stored
/// must not depend on what happens to lie beside it. A power of two, so that there are few kinds.
pub(super) fn batch_for(max_batch: Option<usize>, usual: usize) -> usize {
    match max_batch {
        Some(max) if max < usual => 1 << max.max(1).ilog2(),
        Some(_) | None => usual,
    }
}

/// Appends go to librdkafka in the order of calls.
pub(crate) struct Appender {
    queue: Arc<Queue>,
    known: Arc<Known>,
    own: RecordLimit,
    context: Context,
    thread: Option<JoinHandle<()>>,
}

impl Appender {
    pub(crate) fn start(
        config: &KafkaConfig,
        client: &str,
        context: &Context,
        admin: Arc<Admin>,
        known: &Arc<Known>,
    ) -> Result<Self, Error> {
        let queue = Arc::<Queue>::default();
        let sender = Sender {
            config: config.clone(),
            client: client.to_owned(),
            deliveries: Deliveries { context: context.clone(), known: known.clone() },
            admin,
            usual: usual_batch(config),
            queue: queue.clone(),
            lines: HashMap::new(),
            last: HashMap::new(),
            denied: None,
        };
        let thread = thread::Builder::new()
            .name("kafka-appends".into())
            .spawn(move || sender.run())
            .map_err(|error| Error::Unavailable(error.into()))?;
        Ok(Self {
            queue,
            known: known.clone(),
            own: own_limit(config),
            context: context.clone(),
            thread: Some(thread),
        })
    }

    pub(crate) fn record_limit(&self, topic: &Name) -> RecordLimit {
        record_limit(self.own, self.known.max_batch(topic))
    }

    /// Lines the batch up; the future waits for the rest.
    pub(crate) fn append(
        &self,
        topic: &Name,
        partition: PartitionId,
        batch: EncodedBatch,
    ) -> Answer<Appended> {
        let (done, answer) = oneshot::channel();
        let topic = topic.clone();
        let waiting = Waiting { topic, partition, batch, since: Instant::now(), done };
        let ended = || Error::Uncertain("the log was closed".into());
        match self.queue.push(Request::Append(waiting)) {
            Ok(()) => async move { answer.await.unwrap_or_else(|_| Err(ended())) }.boxed(),
            Err(_) => {
                let closed = Error::Unavailable("the log was closed".into());
                std::future::ready(Err(closed)).boxed()
            }
        }
    }

    /// Waits until all that was appended is answered.
    pub(crate) fn flush(&self, deadline: Duration) -> Result<(), Error> {
        let (done, answer) = mpsc::channel();
        let flush = Request::Flush { until: Instant::now() + deadline, done };
        if self.queue.push(flush).is_err() {
            return Ok(());
        }
        let late = "the brokers have not answered all appends in time";
        answer
            .recv_timeout(deadline)
            .unwrap_or_else(|_| Err(unavailable(late, &self.context.trouble)))
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

/// The smaller of librdkafka's own limit and the topic's.
fn record_limit(own: RecordLimit, max_batch: Option<usize>) -> RecordLimit {
    let overhead = RECORD_OVERHEAD + BATCH_OVERHEAD;
    match max_batch {
        Some(bytes) if bytes.saturating_sub(overhead) < own.bytes.saturating_sub(own.overhead) => {
            RecordLimit { bytes, overhead, set_by: "the topic's max.message.bytes" }
        }
        Some(_) | None => own,
    }
}

/// What the thread has.
struct Sender {
    config: KafkaConfig,
    client: String,
    deliveries: Deliveries,
    admin: Arc<Admin>,
    queue: Arc<Queue>,
    /// The size of batches where topics take that.
    usual: usize,
    /// Producers by the size of their batches, mostly one. Made when they are needed: who never appends needs no
    /// right to write.
    lines: HashMap<usize, Line>,
    /// Which of them a topic's records took last.
    last: HashMap<Name, usize>,
    /// When the brokers did not let us write anywhere.
    denied: Option<Instant>,
}

impl Sender {
    fn run(mut self) {
        while let Some(request) = self.queue.take() {
            match request {
                Request::Append(waiting) => self.hand_over(waiting),
                Request::Flush { until, done } => {
                    let empty = self.wait_empty(until);
                    let late = "the brokers have not answered all appends in time";
                    let late = || unavailable(late, &self.deliveries.context.trouble);
                    // Whoever asked may have gone.
                    let _ = done.send(if empty { Ok(()) } else { Err(late()) });
                }
            }
        }
        // The producers' own drop would throw away what is on its way.
        let closed = self.queue.closed().unwrap_or_else(Instant::now);
        self.wait_empty(closed + self.config.delivery_timeout);
    }

    fn wait_empty(&self, until: Instant) -> bool {
        self.lines.values().all(|line| line.room.wait_empty(until))
    }

    fn hand_over(&mut self, waiting: Waiting) {
        let Waiting { topic, partition, batch, since, done } = waiting;
        let until = since + self.config.delivery_timeout;
        match self.prepare(&topic, partition, &batch, until) {
            Ok(line) => {
                let room = Some(line.room.clone());
                send(&line.producer, &topic, partition, &batch, done, room, until);
            }
            Err(error) => {
                // Whoever gave up waiting does not get it.
                let _ = done.send(Err(error));
            }
        }
    }

    /// Sees to it that the batch can be stored and there is room for it, and says which producer takes it.
    fn prepare(
        &mut self,
        topic: &Name,
        partition: PartitionId,
        batch: &EncodedBatch,
        until: Instant,
    ) -> Result<&Line, Error> {
        let trouble = self.deliveries.context.trouble.clone();
        let late = || unavailable("the brokers take no records", &trouble);
        if Instant::now() >= until {
            return Err(late());
        }
        // librdkafka would wait half a minute for an unknown topic.
        let known = self.deliveries.known.usable(topic, partition, Instant::now());
        let Usable { max_batch } = match known {
            Some(usable) => usable,
            None => self.admin.learn(topic, partition)?,
        };
        // What goes before a record that librdkafka refuses would be stored.
        record_limit(own_limit(&self.config), max_batch).check(topic, batch)?;
        let size = batch_for(max_batch, self.usual);
        self.change_over(topic, size, until)?;
        let line = self.line(topic, size)?;
        let (bytes, records) = (batch.bytes().len(), batch.records() as usize);
        line.room.enter(bytes, records, until).then_some(line).ok_or_else(late)
    }

    /// A topic whose limit has changed goes on with another producer once the former one has stored its records.
    fn change_over(&mut self, topic: &Name, size: usize, until: Instant) -> Result<(), Error> {
        let former = self.last.get(topic).copied();
        if former == Some(size) {
            return Ok(());
        }
        if let Some(line) = former.and_then(|former| self.lines.get(&former))
            && !line.room.wait_empty(until)
        {
            let late = "records that went before are not stored yet";
            return Err(unavailable(late, &self.deliveries.context.trouble));
        }
        self.last.insert(topic.clone(), size);
        Ok(())
    }

    /// The one there is, or a new one.
    fn line(&mut self, topic: &Name, size: usize) -> Result<&Line, Error> {
        use RDKafkaErrorCode::{ClusterAuthorizationFailed, TopicAuthorizationFailed};
        let trouble = &self.deliveries.context.trouble;
        if let Some((code, reason)) = self.lines.get(&size).and_then(Line::broken) {
            if !matches!(code, ClusterAuthorizationFailed | TopicAuthorizationFailed) {
                tracing::warn!(?code, reason, "the producer begins anew");
            } else if self.denied.replace(Instant::now()).is_none() {
                let user = trouble.user();
                tracing::warn!(reason, "the brokers' ACLs do not let {user} write to any topic");
            }
            self.lines.remove(&size);
        }
        if !self.lines.contains_key(&size) {
            if self.denied.is_some_and(|at| at.elapsed() < DENIED) {
                let reason = error::denied("Write", topic, trouble).into();
                return Err(Error::Refused { topic: topic.clone(), reason });
            }
            let mut config = self.config.producer(&self.client);
            if size != self.usual {
                config.set("batch.size", size.to_string());
            }
            self.lines.insert(size, Line::start(&config, self.deliveries.clone())?);
        }
        let gone = || Error::Unavailable("no producer".into());
        self.lines.get(&size).ok_or_else(gone)
    }
}
