//! librdkafka's queue of a consumer, and the records that it hands out. The only unsafe code of the
//! crate beside [`crate::client`].

#![allow(unsafe_code, reason = "rdkafka has no safe way to take many records at once")]

use std::{
    ffi::{CStr, c_char, c_void},
    ptr, slice,
};

use rdkafka::{
    bindings::{
        rd_kafka_consume_batch_queue, rd_kafka_header_cnt, rd_kafka_header_get_all,
        rd_kafka_headers_t, rd_kafka_message_destroy, rd_kafka_message_headers,
        rd_kafka_message_leader_epoch, rd_kafka_message_t, rd_kafka_message_timestamp,
        rd_kafka_queue_destroy, rd_kafka_queue_get_consumer, rd_kafka_queue_t,
        rd_kafka_queue_yield, rd_kafka_resp_err_t as Code, rd_kafka_timestamp_type_t,
        rd_kafka_topic_name,
    },
    consumer::{BaseConsumer, Consumer},
};

use crate::client::context::Context;

/// A consumer's queue. Dropping it gives it back.
pub(super) struct ConsumerQueue(*mut rd_kafka_queue_t);

impl ConsumerQueue {
    pub(super) fn of(consumer: &BaseConsumer<Context>) -> Self {
        // SAFETY: the client is alive, and its thread gives every queue back before the client.
        Self(unsafe { rd_kafka_queue_get_consumer(consumer.client().native_ptr()) })
    }

    /// Takes up to `records.len()` records, and waits for up to `wait` milliseconds for all of
    /// them.
    pub(super) fn take(&self, wait: i32, records: &mut [*mut rd_kafka_message_t]) -> usize {
        // SAFETY: the queue is valid, and the array is as long as is said.
        let taken = unsafe {
            rd_kafka_consume_batch_queue(self.0, wait, records.as_mut_ptr(), records.len())
        };
        usize::try_from(taken).unwrap_or(0)
    }

    /// Makes a running call of [`ConsumerQueue::take`], or else the next one, return at once.
    pub(super) fn wake(&self) {
        // SAFETY: the queue is valid; librdkafka locks it itself.
        unsafe { rd_kafka_queue_yield(self.0) }
    }
}

// SAFETY: a queue of librdkafka may be used from any thread.
unsafe impl Send for ConsumerQueue {}

impl Drop for ConsumerQueue {
    fn drop(&mut self) {
        // SAFETY: it was got once, and is not used afterwards.
        unsafe { rd_kafka_queue_destroy(self.0) }
    }
}

/// Tells partitions apart without looking at a topic's name.
pub(super) type PartitionKey = (usize, i32);

/// A record or an error that librdkafka handed out. Dropping it gives it back.
pub(super) struct Message(pub(super) *mut rd_kafka_message_t);

impl Drop for Message {
    fn drop(&mut self) {
        // SAFETY: it was handed out once, and is not used afterwards.
        unsafe { rd_kafka_message_destroy(self.0) }
    }
}

impl Message {
    pub(super) fn get(&self) -> &rd_kafka_message_t {
        // SAFETY: librdkafka hands out valid pointers, and the message is not given back yet.
        unsafe { &*self.0 }
    }

    pub(super) fn partition_key(&self) -> PartitionKey {
        let message = self.get();
        (message.rkt as usize, message.partition)
    }

    pub(super) fn topic(&self) -> Option<&CStr> {
        let topic = self.get().rkt;
        // SAFETY: a message keeps its topic alive, and the name is a C string.
        (!topic.is_null()).then(|| unsafe { CStr::from_ptr(rd_kafka_topic_name(topic)) })
    }

    pub(super) fn key(&self) -> Option<&[u8]> {
        let message = self.get();
        // SAFETY: the key has this length and is owned by the message.
        unsafe { bytes(message.key, message.key_len) }
    }

    pub(super) fn value(&self) -> Option<&[u8]> {
        let message = self.get();
        // SAFETY: the value has this length and is owned by the message.
        unsafe { bytes(message.payload, message.len) }
    }

    pub(super) fn timestamp_ms(&self) -> i64 {
        let mut kind = rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message is valid.
        unsafe { rd_kafka_message_timestamp(self.0, &mut kind) }
    }

    /// Whether the record may have headers. To ask librdkafka costs more than all the rest: it
    /// parses the record again.
    ///
    /// In the layout of record batch v2 the number of headers follows the value, and librdkafka
    /// hands out values where they lie in the batch, except empty ones. Batches of older layouts
    /// have no leader epoch.
    fn may_have_headers(&self) -> bool {
        let message = self.get();
        if message.payload.is_null() || message.len == 0 {
            return true;
        }
        // SAFETY: the message is valid.
        let is_v2 = unsafe { rd_kafka_message_leader_epoch(self.0) } >= 0;
        // SAFETY: in this layout the number of headers follows the value; Kafka refuses batches
        // whose records end before it. (librdkafka gives a set of messages of an older layout the
        // leader epoch of the batch before it; brokers convert the older layouts to this one, since
        // Kafka 4.0 always.)
        !is_v2 || unsafe { *message.payload.cast::<u8>().add(message.len) != 0 }
    }

    pub(super) fn headers(&self) -> HeaderList<'_> {
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
    pub(super) fn detail(&self) -> String {
        self.value().map_or_else(String::new, |text| String::from_utf8_lossy(text).into_owned())
    }
}

/// The bytes at `start`; `None` if it is null.
///
/// # Safety
///
/// `start` is null or points to `len` bytes that live as long as `'a`.
unsafe fn bytes<'a>(start: *const c_void, len: usize) -> Option<&'a [u8]> {
    // SAFETY: the caller keeps the contract above.
    (!start.is_null()).then(|| unsafe { slice::from_raw_parts(start.cast(), len) })
}

/// The headers of a message, in order.
#[derive(Clone)]
pub(super) struct HeaderList<'a> {
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
