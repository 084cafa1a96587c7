//! Appends on their way to the committing thread, bounded in bytes.

use std::{collections::VecDeque, sync::Arc};

use futures::channel::oneshot;
use headwater_log::{Appended, EncodedBatch, Error, WriterId};
use headwater_types::{Epoch, PartitionId};
use parking_lot::{Condvar, Mutex};

use crate::partition::Topic;

/// One append that waits to be durable.
pub(crate) struct Pending {
    pub(crate) topic: Arc<Topic>,
    pub(crate) partition: PartitionId,
    pub(crate) batch: EncodedBatch,
    pub(crate) claim: Option<Arc<Claim>>,
    pub(crate) done: oneshot::Sender<Result<Appended, Error>>,
}

impl Pending {
    fn bytes(&self) -> usize {
        self.batch.bytes().len()
    }
}

/// A writer's claim as of when it was made.
pub(crate) struct Claim {
    pub(crate) id: WriterId,
    pub(crate) epoch: Epoch,
}

/// First in, first out. What exceeds the bound waits in line outside, in the hands of its caller:
/// it comes in when the committing thread makes room, and goes when its caller gives up.
pub(crate) struct Queue {
    limit: usize,
    state: Mutex<State>,
    filled: Condvar,
}

#[derive(Default)]
struct State {
    inside: Vec<Pending>,
    inside_bytes: usize,
    outside: VecDeque<Pending>,
    /// The length of the line at which those that gave up are looked for.
    sweep_at: usize,
    closed: bool,
}

impl Queue {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, state: Mutex::new(State::default()), filled: Condvar::new() }
    }

    /// Lines up; gives the append back if the queue is closed.
    pub(crate) fn push(&self, pending: Pending) -> Result<(), Pending> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(pending);
        }
        if state.outside.is_empty() && state.fits(&pending, self.limit) {
            state.enter(pending);
            self.filled.notify_one();
            return Ok(());
        }
        if state.outside.len() >= state.sweep_at {
            state.outside.retain(|pending| !pending.done.is_canceled());
            state.sweep_at = (2 * state.outside.len()).max(64);
        }
        state.outside.push_back(pending);
        Ok(())
    }

    /// Takes all waiting appends, in order, which makes room for others. Sleeps while there is
    /// nothing; `None` when the queue is closed and empty.
    pub(crate) fn take(&self) -> Option<Vec<Pending>> {
        let mut state = self.state.lock();
        while state.inside.is_empty() {
            if state.closed {
                return None;
            }
            self.filled.wait(&mut state);
        }
        state.inside_bytes = 0;
        let taken = std::mem::take(&mut state.inside);
        while state
            .outside
            .front()
            .is_some_and(|next| next.done.is_canceled() || state.fits(next, self.limit))
        {
            let Some(next) = state.outside.pop_front() else { break };
            if !next.done.is_canceled() {
                state.enter(next);
            }
        }
        Some(taken)
    }

    /// Refuses further appends. Those that wait already are still taken.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.filled.notify_all();
    }
}

impl State {
    fn fits(&self, pending: &Pending, limit: usize) -> bool {
        self.inside.is_empty() || self.inside_bytes + pending.bytes() <= limit
    }

    fn enter(&mut self, pending: Pending) {
        self.inside_bytes += pending.bytes();
        self.inside.push(pending);
    }
}

#[cfg(test)]
mod tests {
    use headwater_log::{BatchBuilder, TopicSpec};
    use headwater_types::Name;

    use super::*;

    fn pending(bytes: usize) -> (Pending, oneshot::Receiver<Result<Appended, Error>>) {
        let topic = Arc::new(Topic::new(0, Name::new("t").unwrap(), TopicSpec::keep(1)));
        let mut builder = BatchBuilder::new();
        builder.push(0, None, Some(&vec![0; bytes]), &[]);
        let (done, receiver) = oneshot::channel();
        let batch = builder.build().unwrap();
        (Pending { topic, partition: PartitionId(0), batch, claim: None, done }, receiver)
    }

    fn sizes(taken: Option<Vec<Pending>>) -> Vec<usize> {
        taken.unwrap().iter().map(|pending| pending.bytes() / 1000).collect()
    }

    #[test]
    fn no_more_bytes_than_the_bound_are_inside_and_the_order_stays() {
        let queue = Queue::new(5_000);
        let (pending, receivers): (Vec<_>, Vec<_>) =
            [2000, 2000, 3000, 1000, 9000, 1000].map(pending).into_iter().unzip();
        for pending in pending {
            assert!(queue.push(pending).is_ok());
        }
        assert_eq!(sizes(queue.take()), [2, 2]);
        assert_eq!(sizes(queue.take()), [3, 1]);
        assert_eq!(sizes(queue.take()), [9], "what is larger than the bound goes alone");
        queue.close();
        assert_eq!(sizes(queue.take()), [1]);
        assert!(queue.take().is_none());
        drop(receivers);
    }

    #[test]
    fn who_gives_up_in_line_is_forgotten() {
        let queue = Queue::new(1_000);
        let (first, _first) = pending(1000);
        assert!(queue.push(first).is_ok());
        for _ in 0..10_000 {
            let (next, receiver) = pending(1000);
            drop(receiver);
            assert!(queue.push(next).is_ok());
        }
        assert!(queue.state.lock().outside.len() <= 64);
        let (last, _last) = pending(3000);
        assert!(queue.push(last).is_ok());
        assert_eq!(sizes(queue.take()), [1]);
        assert_eq!(sizes(queue.take()), [3]);
    }

    #[test]
    fn a_closed_queue_gives_back() {
        let queue = Queue::new(1_000);
        queue.close();
        assert!(queue.push(pending(1).0).is_err());
    }
}
