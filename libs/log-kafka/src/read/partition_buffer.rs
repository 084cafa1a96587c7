//! The records that were read ahead for one reader.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use headwater_log::{RelayBuilder, Relayed};
use headwater_types::{Name, Offset, PartitionId};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{
    buffer_pool::{BATCH_BYTES, BufferPool},
    fetch_failure::FetchFailure,
};

/// A queue of batches from a consumer's thread to a reader.
pub(super) struct PartitionBuffer {
    pub(super) topic: Name,
    pub(super) partition: PartitionId,
    state: Mutex<BufferState>,
    filled: Condvar,
    /// How many bytes it holds, to be seen without a lock.
    bytes: AtomicUsize,
    /// A reader waits, or has waited in vain and will come again.
    waiting: AtomicBool,
    /// The consumer has come to the end of the partition.
    at_end: AtomicBool,
    pub(super) paused: AtomicBool,
    pool: Arc<BufferPool>,
}

struct BufferState {
    open: RelayBuilder,
    sealed: VecDeque<Relayed>,
    /// Records before this offset were put in already.
    next: Offset,
    /// The end of the partition, as the consumer found it last.
    end: Option<Offset>,
    failure: Option<FetchFailure>,
}

/// The outcome of [`PartitionBuffer::take`].
pub(super) enum Taken {
    Batch(Relayed),
    /// No record lies between the reader and this position.
    Passed(Offset),
    Nothing,
    Failed(FetchFailure),
}

impl PartitionBuffer {
    pub(super) fn new(
        topic: Name,
        partition: PartitionId,
        from: Offset,
        pool: Arc<BufferPool>,
    ) -> Self {
        Self {
            topic,
            partition,
            state: Mutex::new(BufferState {
                open: RelayBuilder::default(),
                sealed: VecDeque::new(),
                next: from,
                end: None,
                failure: None,
            }),
            filled: Condvar::new(),
            bytes: AtomicUsize::new(0),
            waiting: AtomicBool::new(false),
            at_end: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            pool,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// A reader waits and the buffer is empty.
    pub(super) fn is_empty_handed(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) && self.bytes() == 0
    }

    /// A reader waits, the buffer is empty, and the log may have more.
    pub(super) fn is_starving(&self) -> bool {
        self.is_empty_handed() && !self.at_end.load(Ordering::Relaxed)
    }

    /// Locks the buffer to put records in. A waiting reader is woken when the guard is dropped.
    pub(super) fn writer(&self) -> BufferWriter<'_> {
        let state = self.state.lock();
        let counted = state.open.bytes();
        BufferWriter { buffer: self, state, counted }
    }

    /// Takes the next batch, and waits for up to `wait` if there is none. Returns also how many
    /// bytes that freed.
    pub(super) fn take(&self, position: Offset, wait: Duration) -> (Taken, usize) {
        let mut state = self.state.lock();
        let mut deadline = None;
        let taken = loop {
            if let Some(batch) = state.sealed.pop_front().or_else(|| state.open.take()) {
                break Taken::Batch(batch);
            }
            if let Some(failure) = &state.failure {
                break Taken::Failed(failure.clone());
            }
            if let Some(end) = state.end.filter(|end| *end > position) {
                break Taken::Passed(end);
            }
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + wait);
            self.waiting.store(true, Ordering::Relaxed);
            if wait.is_zero() || self.filled.wait_until(&mut state, deadline).timed_out() {
                // Something may have come in the last moment.
                if state.sealed.is_empty() && state.open.is_empty() && state.failure.is_none() {
                    break match state.end.filter(|end| *end > position) {
                        Some(end) => Taken::Passed(end),
                        None => Taken::Nothing,
                    };
                }
            }
        };
        let Taken::Batch(batch) = &taken else {
            // A reader that has waited in vain will wait again: it stays marked until it gets a
            // batch.
            return (taken, 0);
        };
        self.waiting.store(false, Ordering::Relaxed);
        let freed = batch.as_ref().len();
        self.bytes.fetch_sub(freed, Ordering::Relaxed);
        (taken, freed)
    }
}

/// Puts records into a buffer.
pub(super) struct BufferWriter<'a> {
    buffer: &'a PartitionBuffer,
    state: MutexGuard<'a, BufferState>,
    /// How many bytes of the open batch are counted already.
    counted: usize,
}

impl BufferWriter<'_> {
    #[inline]
    pub(super) fn push<'h, H>(
        &mut self,
        offset: Offset,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: H,
    ) where
        H: ExactSizeIterator<Item = (&'h [u8], Option<&'h [u8]>)> + Clone,
    {
        let state = &mut *self.state;
        // The record was fetched for an earlier assignment of the partition.
        if offset < state.next {
            return;
        }
        if state.open.bytes() >= BATCH_BYTES || !state.open.takes(offset) {
            self.seal();
        }
        if self.state.open.is_empty() {
            self.state.open.reuse(self.buffer.pool.take());
            self.counted = 0;
        }
        let state = &mut *self.state;
        state.open.push(offset, timestamp_ms, key, value, headers);
        state.next = offset.next();
    }

    #[cold]
    fn seal(&mut self) {
        self.count();
        if let Some(batch) = self.state.open.take() {
            self.state.sealed.push_back(batch);
        }
        self.counted = 0;
    }

    fn count(&mut self) {
        let now = self.state.open.bytes();
        if now > self.counted {
            self.buffer.at_end.store(false, Ordering::Relaxed);
        }
        self.buffer.bytes.fetch_add(now - self.counted, Ordering::Relaxed);
        self.counted = now;
    }

    /// The partition has no more records before `end`.
    pub(super) fn ended(&mut self, end: Offset) {
        if end >= self.state.next {
            self.state.end = Some(end);
            self.state.next = end;
            self.buffer.at_end.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn failed(&mut self, failure: FetchFailure) {
        self.state.failure.get_or_insert(failure);
    }
}

impl Drop for BufferWriter<'_> {
    fn drop(&mut self) {
        self.count();
        self.buffer.filled.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(buffer: &PartitionBuffer, offset: u64, value: &[u8]) {
        let none = [].into_iter();
        buffer.writer().push(Offset(offset), 0, None, Some(value), none);
    }

    #[test]
    fn what_was_filled_in_is_taken_once_and_counted() {
        let buffer = PartitionBuffer::new(
            Name::new("t").unwrap(),
            PartitionId(0),
            Offset(3),
            Arc::default(),
        );
        push(&buffer, 2, b"before");
        assert_eq!(buffer.bytes(), 0);
        push(&buffer, 3, b"a");
        push(&buffer, 5, &vec![0; BATCH_BYTES]);
        push(&buffer, 5, b"again");
        push(&buffer, 6, b"b");
        let held = buffer.bytes();
        let (Taken::Batch(first), freed) = buffer.take(Offset(3), Duration::ZERO) else {
            panic!("there is a batch")
        };
        assert_eq!((first.end(), freed), (Offset(6), first.as_ref().len()));
        let (Taken::Batch(second), more) = buffer.take(first.end(), Duration::ZERO) else {
            panic!("there is another")
        };
        let end = second.end();
        assert_eq!(end, Offset(7));
        assert_eq!((held, buffer.bytes()), (freed + more, 0));
        assert!(matches!(buffer.take(end, Duration::ZERO).0, Taken::Nothing));
        assert!(buffer.is_starving());

        buffer.writer().ended(Offset(9));
        let (Taken::Passed(end), _) = buffer.take(end, Duration::ZERO) else {
            panic!("offsets without records are passed")
        };
        assert_eq!(end, Offset(9));
        buffer.writer().failed(FetchFailure::OutOfRange);
        push(&buffer, 9, b"c");
        assert!(
            matches!(buffer.take(end, Duration::ZERO).0, Taken::Batch(_)),
            "first what there is"
        );
        assert!(matches!(
            buffer.take(end, Duration::ZERO).0,
            Taken::Failed(FetchFailure::OutOfRange)
        ));
    }
}
