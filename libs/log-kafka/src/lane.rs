//! What was read ahead for one reader.

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

/// A batch is handed out once it has about this many bytes, or earlier to a reader that waits.
pub(crate) const BATCH_BYTES: usize = 128 << 10;

/// Why no more comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The position is not in the partition (any more).
    OutOfRange,
    /// The broker's or librdkafka's own words.
    Corrupt(String),
    /// The topic was deleted.
    UnknownTopic,
    Refused,
    /// librdkafka does not take the partition on.
    NotRead(String),
}

/// The way of one partition's records from a consumer's thread to their reader.
pub(crate) struct Lane {
    pub(crate) topic: Name,
    pub(crate) partition: PartitionId,
    state: Mutex<State>,
    filled: Condvar,
    /// Of what waits here, so that the consumer need not lock to see it.
    bytes: AtomicUsize,
    waiting: AtomicBool,
    /// The consumer has found nothing more for it.
    at_end: AtomicBool,
    pub(crate) paused: AtomicBool,
    spares: Arc<Spares>,
}

/// Buffers that were read, to be filled again: large ones are dear to get from the system.
#[derive(Default)]
pub(crate) struct Spares(Mutex<Vec<Vec<u8>>>);

/// How many buffers are kept at most.
const SPARES: usize = 32;

impl Spares {
    fn take(&self) -> Vec<u8> {
        let spare = self.0.lock().pop();
        spare.unwrap_or_else(|| Vec::with_capacity(BATCH_BYTES + (BATCH_BYTES >> 3)))
    }

    fn give_back(&self, buffer: Vec<u8>) {
        // One that grew for a large record is not kept.
        if buffer.capacity() <= 2 * BATCH_BYTES {
            let mut spares = self.0.lock();
            if spares.len() < SPARES {
                spares.push(buffer);
            }
        }
    }
}

/// A batch in a buffer that is given back when nobody reads it any more.
pub(crate) struct Borrowed {
    /// `None` only while it is dropped.
    batch: Option<Relayed>,
    spares: Arc<Spares>,
}

impl Borrowed {
    pub(crate) fn new(batch: Relayed, spares: &Arc<Spares>) -> Self {
        Self { batch: Some(batch), spares: spares.clone() }
    }
}

impl AsRef<[u8]> for Borrowed {
    fn as_ref(&self) -> &[u8] {
        self.batch.as_ref().map_or(&[], Relayed::as_ref)
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if let Some(batch) = self.batch.take() {
            self.spares.give_back(batch.into_buffer());
        }
    }
}

pub(crate) struct State {
    open: RelayBuilder,
    sealed: VecDeque<Relayed>,
    /// Records before it were handed over already.
    next: Offset,
    /// The position from which on there was nothing to read when the consumer looked last.
    end: Option<Offset>,
    failure: Option<Failure>,
}

/// What a reader gets.
pub(crate) enum Taken {
    Batch(Relayed),
    /// Nothing lies between the reader and this position.
    Passed(Offset),
    Nothing,
    Failed(Failure),
}

impl Lane {
    pub(crate) fn new(
        topic: Name,
        partition: PartitionId,
        from: Offset,
        spares: Arc<Spares>,
    ) -> Self {
        Self {
            topic,
            partition,
            state: Mutex::new(State {
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
            spares,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// A reader waits and there is nothing here.
    pub(crate) fn is_empty_handed(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) && self.bytes() == 0
    }

    /// A reader waits for what there is in the log and not here.
    pub(crate) fn is_starving(&self) -> bool {
        self.is_empty_handed() && !self.at_end.load(Ordering::Relaxed)
    }

    /// To put records in. Whoever waits is woken when the guard goes.
    pub(crate) fn fill(&self) -> Fill<'_> {
        let state = self.state.lock();
        let before = state.open.bytes();
        Fill { lane: self, state, before }
    }

    /// Takes what there is. Without anything it waits, for up to `wait`. Returns also how many bytes that
    /// freed.
    pub(crate) fn take(&self, position: Offset, wait: Duration) -> (Taken, usize) {
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
                // It may have come with the last moment.
                if state.sealed.is_empty() && state.open.is_empty() && state.failure.is_none() {
                    break match state.end.filter(|end| *end > position) {
                        Some(end) => Taken::Passed(end),
                        None => Taken::Nothing,
                    };
                }
            }
        };
        let Taken::Batch(batch) = &taken else {
            // Who has waited in vain will wait again: it stays marked until it gets something.
            return (taken, 0);
        };
        self.waiting.store(false, Ordering::Relaxed);
        let freed = batch.as_ref().len();
        self.bytes.fetch_sub(freed, Ordering::Relaxed);
        (taken, freed)
    }
}

/// A lane that is being filled.
pub(crate) struct Fill<'a> {
    lane: &'a Lane,
    state: MutexGuard<'a, State>,
    /// How many bytes the open batch had that are counted already.
    before: usize,
}

impl Fill<'_> {
    #[inline]
    pub(crate) fn push<'h, H>(
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
        // Of an earlier assignment of the same partition.
        if offset < state.next {
            return;
        }
        if state.open.bytes() >= BATCH_BYTES || !state.open.takes(offset) {
            self.seal();
        }
        if self.state.open.is_empty() {
            self.state.open.reuse(self.lane.spares.take());
            self.before = 0;
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
        self.before = 0;
    }

    fn count(&mut self) {
        let now = self.state.open.bytes();
        if now > self.before {
            self.lane.at_end.store(false, Ordering::Relaxed);
        }
        self.lane.bytes.fetch_add(now - self.before, Ordering::Relaxed);
        self.before = now;
    }

    /// Nothing more can be read before `end` for now.
    pub(crate) fn ended(&mut self, end: Offset) {
        if end >= self.state.next {
            self.state.end = Some(end);
            self.state.next = end;
            self.lane.at_end.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn failed(&mut self, failure: Failure) {
        self.state.failure.get_or_insert(failure);
    }
}

impl Drop for Fill<'_> {
    fn drop(&mut self) {
        self.count();
        self.lane.filled.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(lane: &Lane, offset: u64, value: &[u8]) {
        let none = [].into_iter();
        lane.fill().push(Offset(offset), 0, None, Some(value), none);
    }

    #[test]
    fn what_was_filled_in_is_taken_once_and_counted() {
        let lane = Lane::new(Name::new("t").unwrap(), PartitionId(0), Offset(3), Arc::default());
        push(&lane, 2, b"before");
        assert_eq!(lane.bytes(), 0);
        push(&lane, 3, b"a");
        push(&lane, 5, &vec![0; BATCH_BYTES]);
        push(&lane, 5, b"again");
        push(&lane, 6, b"b");
        let held = lane.bytes();
        let (Taken::Batch(first), freed) = lane.take(Offset(3), Duration::ZERO) else {
            panic!("there is a batch")
        };
        assert_eq!((first.end(), freed), (Offset(6), first.as_ref().len()));
        let (Taken::Batch(second), more) = lane.take(first.end(), Duration::ZERO) else {
            panic!("there is another")
        };
        let end = second.end();
        assert_eq!(end, Offset(7));
        assert_eq!((held, lane.bytes()), (freed + more, 0));
        assert!(matches!(lane.take(end, Duration::ZERO).0, Taken::Nothing));
        assert!(lane.is_starving());

        lane.fill().ended(Offset(9));
        let (Taken::Passed(end), _) = lane.take(end, Duration::ZERO) else {
            panic!("offsets without records are passed")
        };
        assert_eq!(end, Offset(9));
        lane.fill().failed(Failure::OutOfRange);
        push(&lane, 9, b"c");
        assert!(matches!(lane.take(end, Duration::ZERO).0, Taken::Batch(_)), "first what there is");
        assert!(matches!(lane.take(end, Duration::ZERO).0, Taken::Failed(Failure::OutOfRange)));
    }
}
