//! The right to write for a shard, and how it ends.
//!
//! ```text
//!            release_by(until)               expire
//!   owned ─────────────────────► releasing ─────────► over
//!     └──────────────────────────────┴────── lose ──────┘
//! ```
//!
//! The consumer group gives a lease and takes it back; the shard's thread asks the lease before it
//! writes anything that others see. A process that stood still for a while does not know what the
//! group decided meanwhile. So the thread sends the lease a heartbeat in every round. After a gap
//! that is longer than the session guard, nothing is written before the group has confirmed that
//! this process is still its member.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_log::{Member, block_on};
use headwater_state::Identity;
use headwater_types::Remedy;
use parking_lot::{Condvar, Mutex};

use crate::error::ShardError;

/// This process's membership of a group; empty before it has joined and after it has left.
#[derive(Default)]
pub(crate) struct GroupHandle(Mutex<Option<Arc<dyn Member>>>);

impl GroupHandle {
    pub(crate) fn set(&self, member: Box<dyn Member>) {
        *self.0.lock() = Some(member.into());
    }

    pub(crate) fn member(&self) -> Option<Arc<dyn Member>> {
        self.0.lock().clone()
    }

    /// Leaves the group. Blocks until all questions to the member are answered.
    pub(crate) fn leave(&self) {
        let Some(mut member) = self.0.lock().take() else { return };
        // Dropping the last reference leaves the group, and leaving waits for the shards' threads.
        // So none of them may hold the last one.
        while Arc::get_mut(&mut member).is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// How a shard was closed when it was handed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClosedShard {
    /// The position of the last commit.
    pub(crate) position: u64,
    /// The store has a checkpoint of this very position.
    pub(crate) uploaded: bool,
    /// Records of the outbox that the next owner has to publish; a long outbox is counted in part.
    pub(crate) outbox: usize,
}

/// The right to write for one shard; see the module.
pub(crate) struct Lease {
    identity: Identity,
    group: Arc<GroupHandle>,
    session_guard: Duration,
    state: Mutex<LeaseState>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeasePhase {
    Owned,
    /// The shard has to be handed over by then.
    Releasing(Instant),
    Over,
}

struct LeaseState {
    phase: LeasePhase,
    /// The last heartbeat of the shard's thread, or the last confirmation by the group.
    confirmed_at: Instant,
    /// A thread works on the shard.
    busy: bool,
    closed: Option<ClosedShard>,
}

impl Lease {
    pub(crate) fn new(
        identity: Identity,
        group: Arc<GroupHandle>,
        session_guard: Duration,
    ) -> Arc<Self> {
        let state = LeaseState {
            phase: LeasePhase::Owned,
            confirmed_at: Instant::now(),
            busy: false,
            closed: None,
        };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        Arc::new(Self { identity, group, session_guard, state, changed })
    }

    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    /// A thread begins to work on the shard; `false` if it must not.
    pub(crate) fn attach_thread(&self) -> bool {
        let mut state = self.state.lock();
        if state.phase != LeasePhase::Owned || state.busy {
            return false;
        }
        state.busy = true;
        state.confirmed_at = Instant::now();
        true
    }

    /// The thread has ended.
    pub(crate) fn detach_thread(&self) {
        self.state.lock().busy = false;
        self.changed.notify_all();
    }

    pub(crate) fn is_over(&self) -> bool {
        self.state.lock().phase == LeasePhase::Over
    }

    /// The time by which the shard has to be handed over, if it has to be.
    pub(crate) fn release_deadline(&self) -> Option<Instant> {
        match self.state.lock().phase {
            LeasePhase::Releasing(until) => Some(until),
            LeasePhase::Owned | LeasePhase::Over => None,
        }
    }

    /// The shard has to be handed over by then. The earliest deadline counts.
    pub(crate) fn release_by(&self, until: Instant) {
        let mut state = self.state.lock();
        state.phase = match state.phase {
            LeasePhase::Owned => LeasePhase::Releasing(until),
            LeasePhase::Releasing(earlier) => LeasePhase::Releasing(earlier.min(until)),
            LeasePhase::Over => LeasePhase::Over,
        };
        self.changed.notify_all();
    }

    /// The group has given the shard to another process. Nothing may be written from here on.
    pub(crate) fn lose(&self) {
        self.state.lock().phase = LeasePhase::Over;
        self.changed.notify_all();
    }

    /// The shard was handed over like this.
    pub(crate) fn set_closed(&self, closed: ClosedShard) {
        self.state.lock().closed = Some(closed);
    }

    /// Waits until no thread works on the shard, or until the deadline.
    pub(crate) fn await_idle(&self, until: Instant) {
        let mut state = self.state.lock();
        while state.busy && state.phase != LeasePhase::Over {
            if self.changed.wait_until(&mut state, until).timed_out() {
                return;
            }
        }
    }

    /// Nothing may be written from here on. Returns whether the thread had ended in time, and how
    /// the shard was closed.
    pub(crate) fn expire(&self) -> (bool, Option<ClosedShard>) {
        let mut state = self.state.lock();
        state.phase = LeasePhase::Over;
        self.changed.notify_all();
        (!state.busy, state.closed)
    }

    /// Waits until the lease changes, at most so long.
    pub(crate) fn wait_for_change(&self, limit: Duration) {
        let until = Instant::now() + limit;
        let mut state = self.state.lock();
        let before = state.phase;
        while state.phase == before {
            if self.changed.wait_until(&mut state, until).timed_out() {
                return;
            }
        }
    }

    /// The shard's thread is running. After too long a gap the heartbeat does not count: only the
    /// group can confirm the lease then.
    pub(crate) fn heartbeat(&self) {
        let mut state = self.state.lock();
        if state.confirmed_at.elapsed() <= self.session_guard {
            state.confirmed_at = Instant::now();
        }
    }

    /// Whether something may be written now, as far as is known without asking the group.
    pub(crate) fn may_write(&self) -> bool {
        let state = self.state.lock();
        state.phase != LeasePhase::Over && state.confirmed_at.elapsed() <= self.session_guard
    }

    /// To be called before everything that others see: asks the group if there is a doubt.
    pub(crate) fn check(&self) -> Result<(), ShardError> {
        if self.may_write() { Ok(()) } else { self.confirm() }
    }

    /// Asks the group whether this process still owns the shard. Blocks.
    ///
    /// [`Remedy::StandDown`] if it does not.
    pub(crate) fn confirm(&self) -> Result<(), ShardError> {
        if self.is_over() {
            return Err(self.not_owned());
        }
        // An answer is only as new as its question.
        let asked_at = Instant::now();
        let Some(member) = self.group.member() else {
            let reason = format!("{} has not joined its group", self.identity);
            return Err(ShardError::new(Remedy::Retry, reason));
        };
        let answer = block_on(member.confirm());
        drop(member);
        if let Err(error) = answer {
            if error.remedy() == Remedy::StandDown {
                self.lose();
            }
            return Err(error.into());
        }
        let mut state = self.state.lock();
        if state.phase == LeasePhase::Over {
            drop(state);
            return Err(self.not_owned());
        }
        state.confirmed_at = state.confirmed_at.max(asked_at);
        Ok(())
    }

    pub(crate) fn not_owned(&self) -> ShardError {
        let reason = format!("{} belongs to another processor now", self.identity);
        ShardError::new(Remedy::StandDown, reason)
    }
}

#[cfg(test)]
pub(crate) mod tests;
