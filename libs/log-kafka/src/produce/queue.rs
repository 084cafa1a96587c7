//! Appends that wait to be handed to librdkafka.

use std::{collections::VecDeque, sync::mpsc, time::Instant};

use futures::channel::oneshot;
use headwater_log::{Appended, EncodedBatch, Error};
use headwater_types::{Name, PartitionId};
use parking_lot::{Condvar, Mutex};

/// One append.
pub(super) struct Waiting {
    pub(super) topic: Name,
    pub(super) partition: PartitionId,
    pub(super) batch: EncodedBatch,
    pub(super) since: Instant,
    pub(super) done: oneshot::Sender<Result<Appended, Error>>,
}

pub(super) enum Request {
    Append(Waiting),
    /// Is answered when all that came before it is.
    Flush {
        until: Instant,
        done: mpsc::Sender<Result<(), Error>>,
    },
}

impl Request {
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

/// What was given up is looked for when there is twice as much as after the last look, and at least this much.
const SWEEP_REQUESTS: usize = 64;
const SWEEP_BYTES: usize = 16 << 20;

/// First in, first out. What waits here is in the hands of its caller, who holds the future: nobody is
/// blocked, and what its caller gives up goes.
#[derive(Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    filled: Condvar,
}

#[derive(Default)]
struct State {
    line: VecDeque<Request>,
    bytes: usize,
    /// The length of the line, and its bytes, at which those that were given up are looked for.
    sweep_at: (usize, usize),
    /// Since when nobody is let in.
    closed: Option<Instant>,
}

impl Queue {
    /// Lines up; gives the request back if the queue is closed.
    pub(super) fn push(&self, request: Request) -> Result<(), Request> {
        let mut state = self.state.lock();
        if state.closed.is_some() {
            return Err(request);
        }
        if state.line.len() >= state.sweep_at.0 || state.bytes >= state.sweep_at.1 {
            state.line.retain(|request| !request.is_given_up());
            state.bytes = state.line.iter().map(Request::bytes).sum();
            let (requests, bytes) = (2 * state.line.len(), 2 * state.bytes);
            state.sweep_at = (requests.max(SWEEP_REQUESTS), bytes.max(SWEEP_BYTES));
        }
        state.bytes += request.bytes();
        state.line.push_back(request);
        self.filled.notify_one();
        Ok(())
    }

    /// The next one. Sleeps while there is none; `None` when the queue is closed and empty.
    pub(super) fn take(&self) -> Option<Request> {
        let mut state = self.state.lock();
        loop {
            while let Some(request) = state.line.pop_front() {
                state.bytes -= request.bytes();
                if !request.is_given_up() {
                    return Some(request);
                }
            }
            if state.closed.is_some() {
                return None;
            }
            self.filled.wait(&mut state);
        }
    }

    /// Lets nobody in any more. What has lined up is still taken.
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

    fn append(number: u32) -> (Request, oneshot::Receiver<Result<Appended, Error>>) {
        sized(number, 1)
    }

    fn sized(number: u32, bytes: usize) -> (Request, oneshot::Receiver<Result<Appended, Error>>) {
        let mut builder = BatchBuilder::new();
        builder.push(1, None, Some(&vec![b'x'; bytes]), &[]);
        let (done, receiver) = oneshot::channel();
        let waiting = Waiting {
            topic: Name::new("t").unwrap(),
            partition: PartitionId(number),
            batch: builder.build().unwrap(),
            since: Instant::now(),
            done,
        };
        (Request::Append(waiting), receiver)
    }

    fn number(request: Option<Request>) -> Option<u32> {
        match request? {
            Request::Append(waiting) => Some(waiting.partition.0),
            Request::Flush { .. } => None,
        }
    }

    #[test]
    fn appends_are_taken_in_the_order_of_calls_and_those_given_up_are_not() {
        let queue = Queue::default();
        let mut receivers = Vec::new();
        for n in 0..4 {
            let (request, receiver) = append(n);
            assert!(queue.push(request).is_ok());
            receivers.push(receiver);
        }
        drop(receivers.remove(1));
        queue.close();
        assert!(queue.push(append(4).0).is_err());
        let taken = [(); 4].map(|()| number(queue.take()));
        assert_eq!(taken, [Some(0), Some(2), Some(3), None]);
    }

    #[test]
    fn what_is_given_up_does_not_fill_the_memory() {
        let queue = Queue::default();
        let (kept, _receiver) = append(7);
        assert!(queue.push(kept).is_ok());
        for n in 0..10_000 {
            let (request, receiver) = append(n);
            assert!(queue.push(request).is_ok());
            drop(receiver);
        }
        assert!(queue.state.lock().line.len() <= SWEEP_REQUESTS + 1);
        for n in 0..60 {
            let (request, receiver) = sized(n, 4 << 20);
            assert!(queue.push(request).is_ok());
            drop(receiver);
        }
        assert!(queue.state.lock().bytes <= SWEEP_BYTES + (5 << 20));
        assert_eq!(number(queue.take()), Some(7));
    }
}
