//! Appends that wait to be handed to librdkafka.

use std::{collections::VecDeque, sync::mpsc, time::Instant};

use futures::channel::oneshot;
use headwater_log::{Appended, EncodedBatch, Error};
use headwater_types::{Name, PartitionId};
use parking_lot::{Condvar, Mutex};

/// One append.
pub(super) struct QueuedAppend {
    pub(super) topic: Name,
    pub(super) partition: PartitionId,
    pub(super) batch: EncodedBatch,
    pub(super) since: Instant,
    pub(super) done: oneshot::Sender<Result<Appended, Error>>,
}

pub(super) enum QueueEntry {
    Append(QueuedAppend),
    /// Is answered when everything before it is answered.
    Flush {
        until: Instant,
        done: mpsc::Sender<Result<(), Error>>,
    },
}

impl QueueEntry {
    fn is_given_up(&self) -> bool {
        match self {
            Self::Append(waiting) => waiting.done.is_canceled(),
            Self::Flush { .. } => false,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Append(waiting) => waiting.batch.bytes().len(),
            Self::Flush { .. } => 0,
        }
    }
}

/// The queue is swept of given-up appends when it has twice what the last sweep left, and at least
/// this much.
const SWEEP_ENTRIES: usize = 64;
const SWEEP_BYTES: usize = 16 << 20;

/// First in, first out, and unbounded: a caller holds the future of each append, so it bounds what
/// it lets wait. An append whose caller drops the future leaves the queue.
#[derive(Default)]
pub(super) struct AppendQueue {
    state: Mutex<QueueState>,
    filled: Condvar,
}

#[derive(Default)]
struct QueueState {
    entries: VecDeque<QueueEntry>,
    bytes: usize,
    /// Entries and bytes at which the next sweep is due.
    sweep_at: (usize, usize),
    /// When the queue was closed.
    closed: Option<Instant>,
}

impl AppendQueue {
    /// Adds an entry; gives it back if the queue is closed.
    pub(super) fn push(&self, entry: QueueEntry) -> Result<(), QueueEntry> {
        let mut state = self.state.lock();
        if state.closed.is_some() {
            return Err(entry);
        }
        if state.entries.len() >= state.sweep_at.0 || state.bytes >= state.sweep_at.1 {
            state.entries.retain(|entry| !entry.is_given_up());
            state.bytes = state.entries.iter().map(QueueEntry::bytes).sum();
            let (count, bytes) = (2 * state.entries.len(), 2 * state.bytes);
            state.sweep_at = (count.max(SWEEP_ENTRIES), bytes.max(SWEEP_BYTES));
        }
        state.bytes += entry.bytes();
        state.entries.push_back(entry);
        self.filled.notify_one();
        Ok(())
    }

    /// The next entry. Sleeps while there is none; `None` when the queue is closed and empty.
    pub(super) fn take(&self) -> Option<QueueEntry> {
        let mut state = self.state.lock();
        loop {
            while let Some(entry) = state.entries.pop_front() {
                state.bytes -= entry.bytes();
                if !entry.is_given_up() {
                    return Some(entry);
                }
            }
            if state.closed.is_some() {
                return None;
            }
            self.filled.wait(&mut state);
        }
    }

    /// Takes no more entries. Those that it has can still be taken.
    pub(super) fn close(&self) {
        self.state.lock().closed.get_or_insert_with(Instant::now);
        self.filled.notify_all();
    }

    pub(super) fn closed(&self) -> Option<Instant> {
        self.state.lock().closed
    }
}

#[cfg(test)]
mod tests {
    use headwater_log::BatchBuilder;

    use super::*;

    fn append(number: u32) -> (QueueEntry, oneshot::Receiver<Result<Appended, Error>>) {
        sized(number, 1)
    }

    fn sized(
        number: u32,
        bytes: usize,
    ) -> (QueueEntry, oneshot::Receiver<Result<Appended, Error>>) {
        let mut builder = BatchBuilder::new();
        builder.push(1, None, Some(&vec![b'x'; bytes]), &[]);
        let (done, receiver) = oneshot::channel();
        let waiting = QueuedAppend {
            topic: Name::new("t").unwrap(),
            partition: PartitionId(number),
            batch: builder.build().unwrap(),
            since: Instant::now(),
            done,
        };
        (QueueEntry::Append(waiting), receiver)
    }

    fn number(entry: Option<QueueEntry>) -> Option<u32> {
        match entry? {
            QueueEntry::Append(waiting) => Some(waiting.partition.0),
            QueueEntry::Flush { .. } => None,
        }
    }

    #[test]
    fn appends_are_taken_in_the_order_of_calls_and_those_given_up_are_not() {
        let queue = AppendQueue::default();
        let mut receivers = Vec::new();
        for n in 0..4 {
            let (entry, receiver) = append(n);
            assert!(queue.push(entry).is_ok());
            receivers.push(receiver);
        }
        drop(receivers.remove(1));
        queue.close();
        assert!(queue.push(append(4).0).is_err());
        let taken = [(); 4].map(|()| number(queue.take()));
        assert_eq!(taken, [Some(0), Some(2), Some(3), None]);
    }

    #[test]
    fn appends_that_were_given_up_do_not_fill_the_memory() {
        let queue = AppendQueue::default();
        let (kept, _receiver) = append(7);
        assert!(queue.push(kept).is_ok());
        for n in 0..10_000 {
            let (entry, receiver) = append(n);
            assert!(queue.push(entry).is_ok());
            drop(receiver);
        }
        assert!(queue.state.lock().entries.len() <= SWEEP_ENTRIES + 1);
        for n in 0..60 {
            let (entry, receiver) = sized(n, 4 << 20);
            assert!(queue.push(entry).is_ok());
            drop(receiver);
        }
        assert!(queue.state.lock().bytes <= SWEEP_BYTES + (5 << 20));
        assert_eq!(number(queue.take()), Some(7));
    }
}
