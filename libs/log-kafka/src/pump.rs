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
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use headwater_types::Offset;
use parking_lot::{Condvar, Mutex};
use rdkafka::{
    TopicPartitionList,
    bindings::{
        rd_kafka_consume_batch_queue, rd_kafka_header_cnt, rd_kafka_header_get_all,
        rd_kafka_headers_t, rd_kafka_message_destroy, rd_kafka_message_headers,
        rd_kafka_message_leader_epoch, rd_kafka_message_t, rd_kafka_message_timestamp,
        rd_kafka_queue_destroy, rd_kafka_queue_get_consumer, rd_kafka_queue_t,
        rd_kafka_resp_err_t as Code, rd_kafka_timestamp_type_t, rd_kafka_topic_name,
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
const RECORDS: usize = 8192;
/// How long the thread waits for the first record, and so how late it sees that it shall end.
const IDLE: i32 = 100;
/// How long it gathers more records while there are many: larger pieces cost less.
const GATHER: i32 = 2;
/// How many at once are many.
const MANY: usize = 512;
/// How long it rests while readers have enough.
const REST: Duration = Duration::from_millis(20);

/// What the thread and the readers share.
pub(crate) struct Pump {
    consumer: BaseConsumer<AskerContext>,
    lanes: Mutex<Vec<Arc<Lane>>>,
    /// Counts changes of `lanes`.
    changes: AtomicU64,
    /// How many bytes of records may wait for their readers.
    budget: usize,
    room: Condvar,
    resting: Mutex<bool>,
    stop: AtomicBool,
}

impl Pump {
    /// Starts a consumer. `index` tells the consumers of a process apart.
    pub(crate) fn start(
        config: &KafkaConfig,
        client: &str,
        index: usize,
        context: &Context,
    ) -> Result<Arc<Self>, KafkaError> {
        let settings = config.reader(&format!("{client}-reader-{index}"));
        let (budget, placement) = (config.read_ahead_bytes, config.placement);
        let context = AskerContext(context.clone());
        let (started, starting) = mpsc::channel();
        let spawned =
            thread::Builder::new().name(format!("kafka-reader-{index}")).spawn(move || {
                // librdkafka's threads inherit the cores of the thread that creates the consumer.
                placement::apply(placement, index);
                match settings.create_with_context(context) {
                    Err(error) => drop(started.send(Err(error))),
                    Ok(consumer) => {
                        let pump = Arc::new(Self {
                            consumer,
                            lanes: Mutex::default(),
                            changes: AtomicU64::new(0),
                            budget: usize::try_from(budget).unwrap_or(usize::MAX),
                            room: Condvar::new(),
                            resting: Mutex::new(false),
                            stop: AtomicBool::new(false),
                        });
                        let _ = started.send(Ok(pump.clone()));
                        drop(started);
                        run(&pump);
                    }
                }
            });
        let gone = || KafkaError::ClientCreation("its thread cannot be started".into());
        spawned.map_err(|_| gone())?;
        starting.recv().map_err(|_| gone())?
    }

    /// Ends the thread soon.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.room.notify_all();
    }

    /// Begins to fill the lane from `from` on. False if another lane has the partition.
    pub(crate) fn attach(&self, lane: &Arc<Lane>, from: Offset) -> Result<bool, KafkaError> {
        let mut lanes = self.lanes.lock();
        let same =
            |other: &Arc<Lane>| other.topic == lane.topic && other.partition == lane.partition;
        if lanes.iter().any(same) {
            return Ok(false);
        }
        let offset = rdkafka::Offset::Offset(i64::try_from(from.0).unwrap_or(i64::MAX));
        lanes.push(lane.clone());
        self.changes.fetch_add(1, Ordering::Release);
        // The lock is kept: assignments come one after the other.
        let assigned = list(lane, offset).and_then(|list| self.consumer.incremental_assign(&list));
        if assigned.is_err() {
            lanes.retain(|other| !Arc::ptr_eq(other, lane));
            self.changes.fetch_add(1, Ordering::Release);
        }
        assigned.map(|()| true)
    }

    pub(crate) fn detach(&self, lane: &Arc<Lane>) {
        let mut lanes = self.lanes.lock();
        if let Err(error) = list(lane, rdkafka::Offset::Invalid)
            .and_then(|list| self.consumer.incremental_unassign(&list))
        {
            tracing::debug!(topic = %lane.topic, partition = %lane.partition, %error, "a partition is still read");
        }
        lanes.retain(|other| !Arc::ptr_eq(other, lane));
        self.changes.fetch_add(1, Ordering::Release);
        drop(lanes);
        self.room.notify_all();
    }

    /// A reader has taken some of what it had.
    pub(crate) fn made_room(&self) {
        if *self.resting.lock() {
            self.room.notify_all();
        }
    }

    /// Rests while readers have enough to do. One that has nothing while others keep what they have gets
    /// the others paused, as far as they have more than their share.
    fn balance(&self) {
        loop {
            let lanes = self.lanes.lock();
            let share = (self.budget / lanes.len().max(1)).max(1 << 20);
            for lane in lanes.iter() {
                if lane.paused.load(Ordering::Relaxed) && lane.bytes() < share / 4 {
                    self.pause(lane, false);
                }
            }
            let active = lanes.iter().filter(|lane| !lane.paused.load(Ordering::Relaxed));
            if active.map(|lane| lane.bytes()).sum::<usize>() < self.budget {
                return;
            }
            if lanes.iter().any(|lane| lane.is_starving()) {
                for lane in lanes.iter().filter(|lane| lane.bytes() >= share) {
                    if !lane.paused.load(Ordering::Relaxed) {
                        self.pause(lane, true);
                    }
                }
                return;
            }
            drop(lanes);
            let mut resting = self.resting.lock();
            *resting = true;
            self.room.wait_for(&mut resting, REST);
            *resting = false;
            if self.stop.load(Ordering::Relaxed) {
                return;
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

    fn find(&self, topic: &CStr, partition: i32) -> Option<Arc<Lane>> {
        let (topic, partition) = (topic.to_str().ok()?, u32::try_from(partition).ok()?);
        let here =
            |lane: &&Arc<Lane>| lane.topic.as_str() == topic && lane.partition.0 == partition;
        self.lanes.lock().iter().find(here).cloned()
    }
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
        // SAFETY: the client lives as long as the pump, which outlives the queue.
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
}

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
    /// values where they lie in the batch. Only batches of that layout have a leader epoch.
    fn may_have_headers(&self) -> bool {
        let message = self.get();
        // SAFETY: the message is valid.
        let is_v2 = unsafe { rd_kafka_message_leader_epoch(self.0) } >= 0;
        if !is_v2 || message.payload.is_null() {
            return true;
        }
        // SAFETY: see above: the record goes on behind its value.
        unsafe { *message.payload.cast::<u8>().add(message.len) != 0 }
    }

    fn headers(&self) -> HeaderList<'_> {
        let mut headers = ptr::null_mut();
        if !self.may_have_headers() {
            return HeaderList { headers, next: 0, count: 0, message: std::marker::PhantomData };
        }
        // SAFETY: the message is valid; the headers stay its own.
        let code = unsafe { rd_kafka_message_headers(self.0, &mut headers) };
        match code {
            Code::RD_KAFKA_RESP_ERR_NO_ERROR if !headers.is_null() => HeaderList {
                headers,
                next: 0,
                // SAFETY: they are valid.
                count: unsafe { rd_kafka_header_cnt(headers) },
                message: std::marker::PhantomData,
            },
            _ => HeaderList { headers, next: 0, count: 0, message: std::marker::PhantomData },
        }
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

/// Moves records from librdkafka's queue to the lanes until the pump is stopped.
fn run(pump: &Arc<Pump>) {
    let queue = Queue::of(&pump.consumer);
    let mut records = vec![ptr::null_mut(); RECORDS];
    let mut lanes = HashMap::new();
    let mut seen = 0;
    let mut busy = false;
    while !pump.stop.load(Ordering::Relaxed) {
        pump.balance();
        let mut count = queue.take(if busy { GATHER } else { 0 }, &mut records);
        busy = count >= MANY;
        if count == 0 {
            // It returns as soon as this one record is there.
            count = queue.take(IDLE, &mut records[..1]);
        }
        let changes = pump.changes.load(Ordering::Acquire);
        if changes != seen {
            seen = changes;
            lanes.clear();
        }
        deliver(pump, &mut lanes, &records[..count]);
    }
}

/// By what [`Message::place`] says.
type Known = HashMap<(usize, i32), Option<Arc<Lane>>>;

fn deliver(pump: &Pump, lanes: &mut Known, records: &[*mut rd_kafka_message_t]) {
    let mut records = records.iter().map(|message| Message(*message)).peekable();
    while let Some(first) = records.next() {
        let place = first.place();
        let lane = lanes
            .entry(place)
            .or_insert_with(|| first.topic().and_then(|topic| pump.find(topic, place.1)));
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

/// What an error means for the reader; `None` if librdkafka gets over it by itself.
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
