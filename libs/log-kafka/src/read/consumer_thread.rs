//! A consumer of librdkafka and the one thread that empties its queue.
//!
//! Readers share a [`ConsumerThread`] with the thread, which runs a [`ConsumerLoop`]. A reader
//! attaches its buffer; the thread assigns the partition, and moves records from librdkafka's queue
//! into the buffers of all attached readers.

use std::{
    collections::HashMap,
    ptr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use headwater_types::{Offset, PartitionId};
use parking_lot::{Condvar, Mutex};
use rdkafka::{
    TopicPartitionList,
    bindings::{rd_kafka_message_t, rd_kafka_resp_err_t as Code},
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};

use super::{
    cpu_affinity,
    fetch_failure::{FetchFailure, fetch_failure},
    message::{ConsumerQueue, Message, PartitionKey},
    partition_buffer::PartitionBuffer,
    read_ahead::ReadAheadBudget,
};
use crate::{
    client::{context::Context, rebootstrap::Rebootstrap},
    config::KafkaConfig,
};

/// How many records are taken from librdkafka at once at most.
const RECORDS: usize = 16384;
/// How many milliseconds the thread waits for the first record.
const IDLE: i32 = 100;
/// Under load the thread sleeps this long before it takes records. If it waited for them in
/// librdkafka, it would be woken for the first record of each fetched piece.
const GATHER: Duration = Duration::from_millis(3);
/// At least this many records at once are load.
const MANY: usize = 512;
/// How long the thread rests while the buffers are full.
const REST: Duration = Duration::from_millis(20);

/// How long a consumer without readers is kept: another reader often comes soon.
const LINGER: Duration = Duration::from_secs(30);
/// How many rests a reader with an empty buffer waits before others are paused for it.
const RESTS: usize = 5;

/// A consumer, as readers see it.
pub(super) struct ConsumerThread {
    /// Tells the consumers of a process apart.
    pub(super) index: usize,
    assignment: Mutex<Assignment>,
    /// Whether the assignment has changes that the thread has not seen.
    changed: AtomicBool,
    /// `None` once the thread has ended.
    queue: Mutex<Option<ConsumerQueue>>,
    read_ahead: Arc<ReadAheadBudget>,
    room: Condvar,
    resting: Mutex<bool>,
    stop: AtomicBool,
}

/// Which partitions are read.
#[derive(Default)]
struct Assignment {
    buffers: Vec<Arc<PartitionBuffer>>,
    /// Changes that the thread has not carried out yet.
    changes: Vec<AssignmentChange>,
    /// The thread has ended, and carries out no more changes.
    ended: bool,
}

/// Only the thread changes librdkafka's assignment, and never between taking records and delivering
/// them: librdkafka drops records of a former assignment from its queue, but not once they are
/// taken.
enum AssignmentChange {
    Read(Arc<PartitionBuffer>, Offset),
    Leave(Arc<PartitionBuffer>),
}

impl ConsumerThread {
    /// Starts a consumer. `index` tells the consumers of a process apart.
    pub(super) fn start(
        config: &KafkaConfig,
        client: &str,
        index: usize,
        context: &Context,
        read_ahead: &Arc<ReadAheadBudget>,
    ) -> Result<Arc<Self>, KafkaError> {
        let settings = config.reader(&format!("{client}-reader-{index}"));
        let (placement, core) = (config.placement, cpu_affinity::core_for(client, index));
        let context = context.clone();
        let read_ahead = read_ahead.clone();
        let rebootstrap = Rebootstrap::new(config);
        let (started, starting) = mpsc::channel();
        let spawned =
            thread::Builder::new().name(format!("kafka-reader-{index}")).spawn(move || {
                // librdkafka's threads inherit the cores of the thread that creates the consumer.
                cpu_affinity::bind(placement, core);
                let consumer: BaseConsumer<_> = match settings.create_with_context(context) {
                    Ok(consumer) => consumer,
                    Err(error) => return drop(started.send(Err(error))),
                };
                let queue = ConsumerQueue::of(&consumer);
                let shared = Arc::new(Self {
                    index,
                    assignment: Mutex::default(),
                    changed: AtomicBool::new(false),
                    queue: Mutex::new(Some(ConsumerQueue::of(&consumer))),
                    read_ahead,
                    room: Condvar::new(),
                    resting: Mutex::new(false),
                    stop: AtomicBool::new(false),
                });
                let _ = started.send(Ok(shared.clone()));
                drop(started);
                ConsumerLoop::new(&shared, &consumer, &queue, rebootstrap).run();
                // librdkafka wants both queues back before the consumer is destroyed.
                drop((shared.queue.lock().take(), queue));
            });
        let gone = || KafkaError::ClientCreation("its thread cannot be started".into());
        spawned.map_err(|_| gone())?;
        starting.recv().map_err(|_| gone())?
    }

    /// Ends the thread soon, without waiting for it.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.wake();
    }

    pub(super) fn has_ended(&self) -> bool {
        self.assignment.lock().ended
    }

    /// Begins to fill the buffer from `from` on. False if the consumer fills another buffer of the
    /// partition, or its thread has ended.
    pub(super) fn attach(&self, buffer: &Arc<PartitionBuffer>, from: Offset) -> bool {
        let mut assignment = self.assignment.lock();
        let same = |other: &Arc<PartitionBuffer>| {
            other.topic == buffer.topic && other.partition == buffer.partition
        };
        if assignment.ended || assignment.buffers.iter().any(same) {
            return false;
        }
        assignment.buffers.push(buffer.clone());
        assignment.changes.push(AssignmentChange::Read(buffer.clone(), from));
        drop(assignment);
        self.read_ahead.add_reader();
        self.wake_for_changes();
        true
    }

    /// Fills the buffer no more.
    pub(super) fn detach(&self, buffer: &Arc<PartitionBuffer>) {
        let mut assignment = self.assignment.lock();
        assignment.buffers.retain(|other| !Arc::ptr_eq(other, buffer));
        assignment.changes.push(AssignmentChange::Leave(buffer.clone()));
        drop(assignment);
        self.read_ahead.remove_reader();
        self.wake_for_changes();
    }

    /// A reader has taken a batch out of its buffer.
    pub(super) fn made_room(&self) {
        if *self.resting.lock() {
            self.room.notify_all();
        }
    }

    fn wake_for_changes(&self) {
        self.changed.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        if let Some(queue) = &*self.queue.lock() {
            queue.wake();
        }
        self.made_room();
    }

    fn has_news(&self) -> bool {
        self.changed.load(Ordering::Acquire) || self.stop.load(Ordering::Relaxed)
    }
}

/// The thread, and what only it sees.
struct ConsumerLoop<'a> {
    shared: &'a ConsumerThread,
    consumer: &'a BaseConsumer<Context>,
    queue: &'a ConsumerQueue,
    rebootstrap: Rebootstrap,
    buffers: Vec<Arc<PartitionBuffer>>,
    index: BufferIndex,
}

/// Which buffer takes the records of a [`Message::partition_key`]; `None` if no buffer does.
type BufferIndex = HashMap<PartitionKey, Option<Arc<PartitionBuffer>>>;

impl<'a> ConsumerLoop<'a> {
    fn new(
        shared: &'a ConsumerThread,
        consumer: &'a BaseConsumer<Context>,
        queue: &'a ConsumerQueue,
        rebootstrap: Rebootstrap,
    ) -> Self {
        Self { shared, consumer, queue, rebootstrap, buffers: Vec::new(), index: HashMap::new() }
    }

    /// Moves records from librdkafka's queue to the buffers until the consumer is stopped, or has
    /// had no reader for [`LINGER`].
    fn run(&mut self) {
        let mut records = vec![ptr::null_mut(); RECORDS];
        let mut busy = false;
        let mut last_needed = Instant::now();
        while !self.shared.stop.load(Ordering::Relaxed) {
            self.apply_changes();
            self.rebootstrap.check(self.consumer.client());
            if self.buffers.is_empty() {
                if last_needed.elapsed() > LINGER && self.end() {
                    return;
                }
            } else {
                last_needed = Instant::now();
            }
            if !self.wait_for_room() {
                continue;
            }
            if busy {
                thread::sleep(GATHER);
            }
            let mut count = self.queue.take(0, &mut records);
            busy = (MANY..RECORDS).contains(&count);
            if count == 0 && !self.shared.has_news() {
                // Returns as soon as one record is there, or when another thread wakes it.
                count = self.queue.take(IDLE, &mut records[..1]);
            }
            self.deliver(&records[..count]);
        }
        self.shared.assignment.lock().ended = true;
    }

    /// Marks the consumer as ended. False if a reader has attached meanwhile.
    fn end(&self) -> bool {
        let mut assignment = self.shared.assignment.lock();
        assignment.ended = assignment.buffers.is_empty();
        assignment.ended
    }

    fn apply_changes(&mut self) {
        if !self.shared.changed.swap(false, Ordering::Acquire) {
            return;
        }
        let changes = std::mem::take(&mut self.shared.assignment.lock().changes);
        for change in changes {
            self.index.clear();
            match change {
                AssignmentChange::Read(buffer, from) => {
                    let offset = rdkafka::Offset::Offset(i64::try_from(from.0).unwrap_or(i64::MAX));
                    let assigned = list(&buffer, offset)
                        .and_then(|list| self.consumer.incremental_assign(&list));
                    match assigned {
                        Ok(()) => self.buffers.push(buffer),
                        Err(error) => {
                            buffer.writer().failed(FetchFailure::NotRead(error.to_string()))
                        }
                    }
                }
                AssignmentChange::Leave(buffer) => {
                    let before = self.buffers.len();
                    self.buffers.retain(|other| !Arc::ptr_eq(other, &buffer));
                    if self.buffers.len() == before {
                        continue;
                    }
                    if let Err(error) = list(&buffer, rdkafka::Offset::Invalid)
                        .and_then(|list| self.consumer.incremental_unassign(&list))
                    {
                        tracing::debug!(topic = %buffer.topic, partition = %buffer.partition, %error, "the partition cannot be unassigned");
                    }
                }
            }
        }
    }

    /// Rests while the buffers hold as much as they may. False if the thread has something else to
    /// do.
    ///
    /// A full buffer must not starve the others: when a reader finds its buffer empty, partitions
    /// whose buffers hold more than their share are paused. That happens at once if the log is
    /// known to have more for that reader, and after [`RESTS`] rests if it may have.
    fn wait_for_room(&self) -> bool {
        let mut rests = 0;
        loop {
            let share = self.shared.read_ahead.share();
            for buffer in &self.buffers {
                if buffer.paused.load(Ordering::Relaxed) && buffer.bytes() < share / 4 {
                    self.pause(buffer, false);
                }
            }
            let active =
                || self.buffers.iter().filter(|buffer| !buffer.paused.load(Ordering::Relaxed));
            let held = active().map(|buffer| buffer.bytes()).sum::<usize>();
            if self.buffers.is_empty() || held < share * self.buffers.len() {
                return true;
            }
            let lacks = |buffer: &Arc<PartitionBuffer>| {
                buffer.is_starving() || (rests >= RESTS && buffer.is_empty_handed())
            };
            if self.buffers.iter().any(lacks) {
                for buffer in active().filter(|buffer| buffer.bytes() >= share) {
                    self.pause(buffer, true);
                }
                return true;
            }
            let mut resting = self.shared.resting.lock();
            *resting = true;
            if !self.shared.has_news() {
                self.shared.room.wait_for(&mut resting, REST);
            }
            *resting = false;
            rests += 1;
            if self.shared.has_news() {
                return false;
            }
        }
    }

    fn pause(&self, buffer: &PartitionBuffer, pause: bool) {
        let done = list(buffer, rdkafka::Offset::Invalid).and_then(|list| match pause {
            true => self.consumer.pause(&list),
            false => self.consumer.resume(&list),
        });
        match done {
            Ok(()) => buffer.paused.store(pause, Ordering::Relaxed),
            Err(error) => {
                tracing::debug!(topic = %buffer.topic, partition = %buffer.partition, %error, pause, "the partition cannot be paused or resumed");
            }
        }
    }

    #[allow(clippy::wildcard_enum_match_arm, reason = "all other codes are errors")]
    fn deliver(&mut self, records: &[*mut rd_kafka_message_t]) {
        let buffers = &self.buffers;
        let mut records = records.iter().map(|message| Message(*message)).peekable();
        while let Some(first) = records.next() {
            let key = first.partition_key();
            let buffer = self.index.entry(key).or_insert_with(|| find(buffers, &first));
            let Some(buffer) = buffer else {
                // The record is of a partition that is no longer read, or of none.
                continue;
            };
            let mut writer = buffer.writer();
            let mut next = Some(first);
            while let Some(message) = next {
                match message.get().err {
                    Code::RD_KAFKA_RESP_ERR_NO_ERROR => {
                        let offset = Offset(u64::try_from(message.get().offset).unwrap_or(0));
                        let (key, value) = (message.key(), message.value());
                        writer.push(offset, message.timestamp_ms(), key, value, message.headers());
                    }
                    Code::RD_KAFKA_RESP_ERR__PARTITION_EOF => {
                        writer.ended(Offset(u64::try_from(message.get().offset).unwrap_or(0)));
                    }
                    code => {
                        if let Some(failure) = fetch_failure(code, &message) {
                            writer.failed(failure);
                        }
                    }
                }
                next = records.next_if(|following| following.partition_key() == key);
            }
        }
    }
}

fn find(buffers: &[Arc<PartitionBuffer>], message: &Message) -> Option<Arc<PartitionBuffer>> {
    let topic = message.topic()?.to_str().ok()?;
    let partition = PartitionId(u32::try_from(message.get().partition).ok()?);
    let here = |buffer: &&Arc<PartitionBuffer>| {
        buffer.topic.as_str() == topic && buffer.partition == partition
    };
    buffers.iter().find(here).cloned()
}

fn list(
    buffer: &PartitionBuffer,
    offset: rdkafka::Offset,
) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::new();
    let partition = i32::try_from(buffer.partition.0).unwrap_or(i32::MAX);
    list.add_partition_offset(buffer.topic.as_str(), partition, offset)?;
    Ok(list)
}
