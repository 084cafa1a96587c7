//! A consumer and the one thread that empties it.
//!
//! librdkafka takes the broker's batches apart and lines their records up in one queue per consumer. The
//! thread takes them from there many at a time, and puts them together again into batches, one [`Lane`]
//! per reader. A consumer has a position per partition only once, so two readers of one partition have two
//! consumers.

#![allow(unsafe_code, reason = "rdkafka has no safe way to take many records at once")]

use std::{
    collections::HashMap,
    ffi::{CStr, c_char, c_void},
    ptr, slice,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use headwater_types::{Offset, PartitionId};
use parking_lot::{Condvar, Mutex};
use rdkafka::{
    TopicPartitionList,
    bindings::{
        rd_kafka_consume_batch_queue, rd_kafka_header_cnt, rd_kafka_header_get_all,
        rd_kafka_headers_t, rd_kafka_message_destroy, rd_kafka_message_headers,
        rd_kafka_message_leader_epoch, rd_kafka_message_t, rd_kafka_message_timestamp,
        rd_kafka_queue_destroy, rd_kafka_queue_get_consumer, rd_kafka_queue_t,
        rd_kafka_queue_yield, rd_kafka_resp_err_t as Code, rd_kafka_timestamp_type_t,
        rd_kafka_topic_name,
    },
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
};

use crate::{
    KafkaConfig,
    admin::AskerContext,
    context::Context,
    lane::{Failure, Lane},
    placement,
};

/// How many records are taken from librdkafka at once at most.
const RECORDS: usize = 16384;
/// How long the thread waits for the first record, and so how late it sees that it shall end.
const IDLE: i32 = 100;
/// How long it leaves librdkafka's thread alone while records come in numbers: if it waited for them, it
/// would be woken for the first of each piece, and the two would take turns all the time.
const GATHER: Duration = Duration::from_millis(3);
/// How many at once are many.
const MANY: usize = 512;
/// How long it rests while readers have enough.
const REST: Duration = Duration::from_millis(20);

/// How long a consumer without readers is kept: another reader often comes soon.
const LINGER: Duration = Duration::from_secs(30);
/// How many rests a reader that has nothing waits for room before the others make some.
const RESTS: usize = 5;

/// How much all the consumers of a process may hold for their readers, in equal parts.
pub(crate) struct ReadAhead {
    bytes: usize,
    lanes: AtomicUsize,
}

impl ReadAhead {
    pub(crate) fn new(bytes: u64) -> Self {
        Self { bytes: usize::try_from(bytes).unwrap_or(usize::MAX), lanes: AtomicUsize::new(0) }
    }

    /// The part of one lane.
    fn share(&self) -> usize {
        (self.bytes / self.lanes.load(Ordering::Relaxed).max(1)).max(1 << 20)
    }
}

/// What the readers share with the thread of a consumer.
pub(crate) struct Pump {
    /// Tells the consumers of a process apart.
    pub(crate) index: usize,
    wanted: Mutex<Wanted>,
    /// There are orders.
    ordered: AtomicBool,
    /// As long as the thread lives.
    queue: Mutex<Option<Queue>>,
    read_ahead: Arc<ReadAhead>,
    room: Condvar,
    resting: Mutex<bool>,
    stop: AtomicBool,
}

/// What is to be read, and what the thread does not know of it yet.
#[derive(Default)]
struct Wanted {
    lanes: Vec<Arc<Lane>>,
    orders: Vec<Order>,
    /// The thread has ended, and will carry out nothing any more.
    ended: bool,
}

/// Only the thread changes what is read, between two times of taking records: then all that it takes
/// afterwards is of the new assignment. librdkafka drops what is outdated, but not once it is taken.
enum Order {
    Read(Arc<Lane>, Offset),
    Leave(Arc<Lane>),
}

impl Pump {
    /// Starts a consumer. `index` tells the consumers of a process apart.
    pub(crate) fn start(
        config: &KafkaConfig,
        client: &str,
        index: usize,
        context: &Context,
        read_ahead: &Arc<ReadAhead>,
    ) -> Result<Arc<Self>, KafkaError> {
        let settings = config.reader(&format!("{client}-reader-{index}"));
        let cores = (config.placement, placement::spread(client, index));
        let context = AskerContext(context.clone());
        let read_ahead = read_ahead.clone();
        let (started, starting) = mpsc::channel();
        let spawned =
            thread::Builder::new().name(format!("kafka-reader-{index}")).spawn(move || {
                // librdkafka's threads inherit the cores of the thread that creates the consumer.
                placement::apply(cores.0, cores.1);
                let consumer: BaseConsumer<_> = match settings.create_with_context(context) {
                    Ok(consumer) => consumer,
                    Err(error) => return drop(started.send(Err(error))),
                };
                let queue = Queue::of(&consumer);
                let pump = Arc::new(Self {
                    index,
                    wanted: Mutex::default(),
                    ordered: AtomicBool::new(false),
                    queue: Mutex::new(Some(Queue::of(&consumer))),
                    read_ahead,
                    room: Condvar::new(),
                    resting: Mutex::new(false),
                    stop: AtomicBool::new(false),
                });
                let _ = started.send(Ok(pump.clone()));
                drop(started);
                Reading::new(&pump, &consumer, &queue).run();
                // Both before the consumer.
                drop((pump.queue.lock().take(), queue));
            });
        let gone = || KafkaError::ClientCreation("its thread cannot be started".into());
        spawned.map_err(|_| gone())?;
        starting.recv().map_err(|_| gone())?
    }

    /// Ends the thread soon.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.wake();
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.wanted.lock().ended
    }

    /// Begins to fill the lane from `from` on. False if another lane has the partition, or the thread has
    /// ended.
    pub(crate) fn attach(&self, lane: &Arc<Lane>, from: Offset) -> bool {
        let mut wanted = self.wanted.lock();
        let same =
            |other: &Arc<Lane>| other.topic == lane.topic && other.partition == lane.partition;
        if wanted.ended || wanted.lanes.iter().any(same) {
            return false;
        }
        wanted.lanes.push(lane.clone());
        wanted.orders.push(Order::Read(lane.clone(), from));
        drop(wanted);
        self.read_ahead.lanes.fetch_add(1, Ordering::Relaxed);
        self.wake_for_orders();
        true
    }

    pub(crate) fn detach(&self, lane: &Arc<Lane>) {
        let mut wanted = self.wanted.lock();
        wanted.lanes.retain(|other| !Arc::ptr_eq(other, lane));
        wanted.orders.push(Order::Leave(lane.clone()));
        drop(wanted);
        self.read_ahead.lanes.fetch_sub(1, Ordering::Relaxed);
        self.wake_for_orders();
    }

    /// A reader has taken some of what it had.
    pub(crate) fn made_room(&self) {
        if *self.resting.lock() {
            self.room.notify_all();
        }
    }

    fn wake_for_orders(&self) {
        self.ordered.store(true, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        if let Some(queue) = &*self.queue.lock() {
            queue.wake();
        }
        self.made_room();
    }

    fn has_news(&self) -> bool {
        self.ordered.load(Ordering::Acquire) || self.stop.load(Ordering::Relaxed)
    }
}

/// What the thread of a consumer knows.
struct Reading<'a> {
    pump: &'a Pump,
    consumer: &'a BaseConsumer<AskerContext>,
    queue: &'a Queue,
    lanes: Vec<Arc<Lane>>,
    known: Known,
}

/// By what [`Message::place`] says.
type Known = HashMap<(usize, i32), Option<Arc<Lane>>>;

impl<'a> Reading<'a> {
    fn new(pump: &'a Pump, consumer: &'a BaseConsumer<AskerContext>, queue: &'a Queue) -> Self {
        Self { pump, consumer, queue, lanes: Vec::new(), known: HashMap::new() }
    }

    /// Moves records from librdkafka's queue to the lanes until the pump is stopped, or has had no reader
    /// for [`LINGER`].
    fn run(&mut self) {
        let mut records = vec![ptr::null_mut(); RECORDS];
        let mut busy = false;
        let mut last_needed = Instant::now();
        while !self.pump.stop.load(Ordering::Relaxed) {
            self.obey();
            if self.lanes.is_empty() {
                if last_needed.elapsed() > LINGER && self.end() {
                    return;
                }
            } else {
                last_needed = Instant::now();
            }
            if !self.balance() {
                continue;
            }
            if busy {
                thread::sleep(GATHER);
            }
            let mut count = self.queue.take(0, &mut records);
            busy = (MANY..RECORDS).contains(&count);
            if count == 0 && !self.pump.has_news() {
                // It returns as soon as this one record is there, or somebody wakes it.
                count = self.queue.take(IDLE, &mut records[..1]);
            }
            self.deliver(&records[..count]);
        }
        self.pump.wanted.lock().ended = true;
    }

    /// False if a reader has come after all.
    fn end(&self) -> bool {
        let mut wanted = self.pump.wanted.lock();
        wanted.ended = wanted.lanes.is_empty();
        wanted.ended
    }

    fn obey(&mut self) {
        if !self.pump.ordered.swap(false, Ordering::Acquire) {
            return;
        }
        let orders = std::mem::take(&mut self.pump.wanted.lock().orders);
        for order in orders {
            self.known.clear();
            match order {
                Order::Read(lane, from) => {
                    let offset = rdkafka::Offset::Offset(i64::try_from(from.0).unwrap_or(i64::MAX));
                    let assigned = list(&lane, offset)
                        .and_then(|list| self.consumer.incremental_assign(&list));
                    match assigned {
                        Ok(()) => self.lanes.push(lane),
                        Err(error) => lane.fill().failed(Failure::NotRead(error.to_string())),
                    }
                }
                Order::Leave(lane) => {
                    let before = self.lanes.len();
                    self.lanes.retain(|other| !Arc::ptr_eq(other, &lane));
                    if self.lanes.len() == before {
                        continue;
                    }
                    if let Err(error) = list(&lane, rdkafka::Offset::Invalid)
                        .and_then(|list| self.consumer.incremental_unassign(&list))
                    {
                        tracing::debug!(topic = %lane.topic, partition = %lane.partition, %error, "a partition is still read");
                    }
                }
            }
        }
    }

    /// Rests while readers have enough to do. One that has nothing while others keep what they have gets
    /// the others paused, as far as they have more than their share: at once if it is known to lack what is
    /// in the log, and after some rests if there may be something new for it. False if there is other news.
    fn balance(&self) -> bool {
        let mut rests = 0;
        loop {
            let share = self.pump.read_ahead.share();
            for lane in &self.lanes {
                if lane.paused.load(Ordering::Relaxed) && lane.bytes() < share / 4 {
                    self.pause(lane, false);
                }
            }
            let active = || self.lanes.iter().filter(|lane| !lane.paused.load(Ordering::Relaxed));
            let held = active().map(|lane| lane.bytes()).sum::<usize>();
            if self.lanes.is_empty() || held < share * self.lanes.len() {
                return true;
            }
            let lacks =
                |lane: &Arc<Lane>| lane.is_starving() || (rests >= RESTS && lane.is_empty_handed());
            if self.lanes.iter().any(lacks) {
                for lane in active().filter(|lane| lane.bytes() >= share) {
                    self.pause(lane, true);
                }
                return true;
            }
            let mut resting = self.pump.resting.lock();
            *resting = true;
            if !self.pump.has_news() {
                self.pump.room.wait_for(&mut resting, REST);
            }
            *resting = false;
            rests += 1;
            if self.pump.has_news() {
                return false;
            }
        }
    }

    fn pause(&self, lane: &Lane, pause: bool) {
        let done = list(lane, rdkafka::Offset::Invalid).and_then(|list| match pause {
            true => self.consumer.pause(&list),
            false => self.consumer.resume(&list),
        });
        match done {
            Ok(()) => lane.paused.store(pause, Ordering::Relaxed),
            Err(error) => {
                tracing::debug!(topic = %lane.topic, partition = %lane.partition, %error, pause, "not changed");
            }
        }
    }

    #[allow(clippy::wildcard_enum_match_arm, reason = "every other one is an error")]
    fn deliver(&mut self, records: &[*mut rd_kafka_message_t]) {
        let lanes = &self.lanes;
        let mut records = records.iter().map(|message| Message(*message)).peekable();
        while let Some(first) = records.next() {
            let place = first.place();
            let lane = self.known.entry(place).or_insert_with(|| find(lanes, &first));
            let Some(lane) = lane else {
                // Of a partition that is no longer read, or of none.
                continue;
            };
            let mut fill = lane.fill();
            let mut next = Some(first);
            while let Some(message) = next {
                match message.get().err {
                    Code::RD_KAFKA_RESP_ERR_NO_ERROR => {
                        let offset = Offset(u64::try_from(message.get().offset).unwrap_or(0));
                        let (key, value) = (message.key(), message.value());
                        fill.push(offset, message.timestamp_ms(), key, value, message.headers());
                    }
                    Code::RD_KAFKA_RESP_ERR__PARTITION_EOF => {
                        fill.ended(Offset(u64::try_from(message.get().offset).unwrap_or(0)));
                    }
                    code => {
                        if let Some(failure) = failure(code, &message) {
                            fill.failed(failure);
                        }
                    }
                }
                next = records.next_if(|following| following.place() == place);
            }
        }
    }
}

fn find(lanes: &[Arc<Lane>], message: &Message) -> Option<Arc<Lane>> {
    let topic = message.topic()?.to_str().ok()?;
    let partition = PartitionId(u32::try_from(message.place().1).ok()?);
    let here = |lane: &&Arc<Lane>| lane.topic.as_str() == topic && lane.partition == partition;
    lanes.iter().find(here).cloned()
}

fn list(lane: &Lane, offset: rdkafka::Offset) -> Result<TopicPartitionList, KafkaError> {
    let mut list = TopicPartitionList::new();
    let partition = i32::try_from(lane.partition.0).unwrap_or(i32::MAX);
    list.add_partition_offset(lane.topic.as_str(), partition, offset)?;
    Ok(list)
}

/// The consumer's queue, given back at the end.
struct Queue(*mut rd_kafka_queue_t);

impl Queue {
    fn of(consumer: &BaseConsumer<AskerContext>) -> Self {
        // SAFETY: the client is alive, and its thread gives every queue back before the client.
        Self(unsafe { rd_kafka_queue_get_consumer(consumer.client().native_ptr()) })
    }

    /// Takes up to `records.len()` records: it waits for up to `wait` milliseconds for all of them.
    fn take(&self, wait: i32, records: &mut [*mut rd_kafka_message_t]) -> usize {
        // SAFETY: the queue is valid, and the array is as long as is said.
        let taken = unsafe {
            rd_kafka_consume_batch_queue(self.0, wait, records.as_mut_ptr(), records.len())
        };
        usize::try_from(taken).unwrap_or(0)
    }

    /// Whoever waits in [`Queue::take`], or does so next, returns at once.
    fn wake(&self) {
        // SAFETY: the queue is valid; librdkafka locks it itself.
        unsafe { rd_kafka_queue_yield(self.0) }
    }
}

// SAFETY: a queue of librdkafka may be used from any thread.
unsafe impl Send for Queue {}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: it was got once, and is not used after.
        unsafe { rd_kafka_queue_destroy(self.0) }
    }
}

/// One record that librdkafka handed out, given back when it goes.
struct Message(*mut rd_kafka_message_t);

impl Drop for Message {
    fn drop(&mut self) {
        // SAFETY: it was handed out once, and is not used after.
        unsafe { rd_kafka_message_destroy(self.0) }
    }
}

impl Message {
    fn get(&self) -> &rd_kafka_message_t {
        // SAFETY: librdkafka hands out valid pointers, and the message is not given back yet.
        unsafe { &*self.0 }
    }

    /// What tells partitions apart without looking at a name.
    fn place(&self) -> (usize, i32) {
        let message = self.get();
        (message.rkt as usize, message.partition)
    }

    fn topic(&self) -> Option<&CStr> {
        let topic = self.get().rkt;
        // SAFETY: a message keeps its topic alive, and the name is a C string.
        (!topic.is_null()).then(|| unsafe { CStr::from_ptr(rd_kafka_topic_name(topic)) })
    }

    fn key(&self) -> Option<&[u8]> {
        let message = self.get();
        // SAFETY: of this length, and owned by the message.
        unsafe { bytes(message.key, message.key_len) }
    }

    fn value(&self) -> Option<&[u8]> {
        let message = self.get();
        // SAFETY: of this length, and owned by the message.
        unsafe { bytes(message.payload, message.len) }
    }

    fn timestamp_ms(&self) -> i64 {
        let mut kind = rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is valid.
        unsafe { rd_kafka_message_timestamp(self.0, &mut kind) }
    }

    /// Whether it may have headers. librdkafka finds out by taking the record apart once more, which costs
    /// more than all the rest of it.
    ///
    /// In the layout of record batch v2 the number of headers follows the value, and librdkafka hands out
    /// values where they lie in the batch, empty ones excepted. Batches of older layouts have no leader epoch.
    fn may_have_headers(&self) -> bool {
        let message = self.get();
        if message.payload.is_null() || message.len == 0 {
            return true;
        }
        // SAFETY: the message is valid.
        let is_v2 = unsafe { rd_kafka_message_leader_epoch(self.0) } >= 0;
        // SAFETY: a record of this layout goes on behind its value with the number of its headers. Its
        // broker has seen to that: Kafka refuses batches whose records end before. (librdkafka gives a set of
        // messages of an older layout the leader epoch of the batch before it; brokers turn the older layouts
        // into this one, since Kafka 4.0 all of them.)
        !is_v2 || unsafe { *message.payload.cast::<u8>().add(message.len) != 0 }
    }

    fn headers(&self) -> HeaderList<'_> {
        let mut headers = ptr::null_mut();
        if !self.may_have_headers() {
            return HeaderList { headers, next: 0, count: 0, message: std::marker::PhantomData };
        }
        // SAFETY: the message is valid; the headers stay its own.
        let code = unsafe { rd_kafka_message_headers(self.0, &mut headers) };
        let count = if code == Code::RD_KAFKA_RESP_ERR_NO_ERROR && !headers.is_null() {
            // SAFETY: they are valid.
            unsafe { rd_kafka_header_cnt(headers) }
        } else {
            0
        };
        HeaderList { headers, next: 0, count, message: std::marker::PhantomData }
    }

    /// librdkafka's own words for its error.
    fn detail(&self) -> String {
        self.value().map_or_else(String::new, |text| String::from_utf8_lossy(text).into_owned())
    }
}

/// # Safety
///
/// `start` is null or points to `len` bytes that live as long as `'a`.
unsafe fn bytes<'a>(start: *const c_void, len: usize) -> Option<&'a [u8]> {
    // SAFETY: the caller's.
    (!start.is_null()).then(|| unsafe { slice::from_raw_parts(start.cast(), len) })
}

/// The headers of a message, in order.
#[derive(Clone)]
struct HeaderList<'a> {
    headers: *mut rd_kafka_headers_t,
    next: usize,
    count: usize,
    message: std::marker::PhantomData<&'a Message>,
}

impl<'a> Iterator for HeaderList<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.count {
            return None;
        }
        let (mut name, mut value, mut size): (*const c_char, *const c_void, usize) =
            (ptr::null(), ptr::null(), 0);
        // SAFETY: the index is below the count, and the headers live as long as the message.
        unsafe {
            rd_kafka_header_get_all(self.headers, self.next, &mut name, &mut value, &mut size);
        }
        self.next += 1;
        if name.is_null() {
            return None;
        }
        // SAFETY: both are owned by the headers.
        unsafe { Some((CStr::from_ptr(name).to_bytes(), bytes(value, size))) }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.count - self.next, Some(self.count - self.next))
    }
}

impl ExactSizeIterator for HeaderList<'_> {}

/// What an error means for the reader; `None` if librdkafka gets over it by itself.
#[allow(clippy::wildcard_enum_match_arm, reason = "librdkafka has many that are its own affair")]
fn failure(code: Code, message: &Message) -> Option<Failure> {
    match code {
        Code::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET
        | Code::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE => Some(Failure::OutOfRange),
        Code::RD_KAFKA_RESP_ERR__BAD_MSG
        | Code::RD_KAFKA_RESP_ERR__BAD_COMPRESSION
        | Code::RD_KAFKA_RESP_ERR_INVALID_MSG
        | Code::RD_KAFKA_RESP_ERR__NOT_IMPLEMENTED => Some(Failure::Corrupt(message.detail())),
        Code::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC
        | Code::RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION
        | Code::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART => Some(Failure::UnknownTopic),
        Code::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED => Some(Failure::Refused),
        _ => {
            tracing::debug!(code = ?code, detail = message.detail(), "librdkafka tries again");
            None
        }
    }
}
