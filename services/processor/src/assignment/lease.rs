//! The right to write for a shard, and how it ends.
//!
//! ```text
//!            leave(until)                   closed
//!   ours ──────────────────► leaving ──────────────────► over
//!     └──────────────────────────┴────────── lose ──────────┘
//! ```
//!
//! Membership gives a lease and takes it back; the shard's thread asks it before everything that others
//! see. A process that stood still for a while does not know what the group decided meanwhile. So the
//! thread says at every step that it is there, and if it was not for longer than the guard, nothing is
//! written before the group has confirmed that it still counts us in.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_log::Member;
use headwater_state::Identity;
use headwater_types::Remedy;
use parking_lot::{Condvar, Mutex};

use crate::error::ShardError;

/// This process's place in a group, empty before it has joined and after it has left.
#[derive(Default)]
pub(crate) struct GroupHandle(Mutex<Option<Arc<dyn Member>>>);

impl GroupHandle {
    pub(crate) fn take(&self, member: Box<dyn Member>) {
        *self.0.lock() = Some(member.into());
    }

    pub(crate) fn member(&self) -> Option<Arc<dyn Member>> {
        self.0.lock().clone()
    }

    /// Leaves the group. It blocks until whoever is just asking the member something is done.
    pub(crate) fn leave(&self) {
        let Some(mut member) = self.0.lock().take() else { return };
        // Whoever drops the last of them leaves the group; that must not be a shard's thread, for which
        // leaving waits.
        while Arc::get_mut(&mut member).is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// What became of a shard that was handed over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClosedShard {
    /// Committed.
    pub(crate) position: u64,
    /// The store has a checkpoint of this very position.
    pub(crate) uploaded: bool,
    /// Records of the outbox that wait for the next owner; a long outbox is counted in part.
    pub(crate) outbox: usize,
}

/// See the module.
pub(crate) struct Lease {
    identity: Identity,
    handle: Arc<GroupHandle>,
    guard: Duration,
    state: Mutex<LeaseState>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeasePhase {
    Ours,
    /// To be handed over by then.
    Leaving(Instant),
    Over,
}

struct LeaseState {
    phase: LeasePhase,
    /// When the shard's thread was last seen to be running, or the group confirmed.
    seen: Instant,
    /// A thread works on the shard.
    busy: bool,
    closed: Option<ClosedShard>,
}

impl Lease {
    pub(crate) fn new(identity: Identity, handle: Arc<GroupHandle>, guard: Duration) -> Arc<Self> {
        let state =
            LeaseState { phase: LeasePhase::Ours, seen: Instant::now(), busy: false, closed: None };
        let (state, changed) = (Mutex::new(state), Condvar::new());
        Arc::new(Self { identity, handle, guard, state, changed })
    }

    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    /// A thread begins to work on the shard; `false` if it must not any more.
    pub(crate) fn begin(&self) -> bool {
        let mut state = self.state.lock();
        if state.phase != LeasePhase::Ours || state.busy {
            return false;
        }
        state.busy = true;
        state.seen = Instant::now();
        true
    }

    /// That thread has ended.
    pub(crate) fn end(&self) {
        self.state.lock().busy = false;
        self.changed.notify_all();
    }

    pub(crate) fn is_over(&self) -> bool {
        self.state.lock().phase == LeasePhase::Over
    }

    /// By when the shard shall be handed over, if it shall.
    pub(crate) fn leaving(&self) -> Option<Instant> {
        match self.state.lock().phase {
            LeasePhase::Leaving(until) => Some(until),
            LeasePhase::Ours | LeasePhase::Over => None,
        }
    }

    /// The shard shall be handed over by then. The earliest time counts.
    pub(crate) fn leave(&self, until: Instant) {
        let mut state = self.state.lock();
        state.phase = match state.phase {
            LeasePhase::Ours => LeasePhase::Leaving(until),
            LeasePhase::Leaving(earlier) => LeasePhase::Leaving(earlier.min(until)),
            LeasePhase::Over => LeasePhase::Over,
        };
        self.changed.notify_all();
    }

    /// Nothing may be written from here on.
    pub(crate) fn lose(&self) {
        self.state.lock().phase = LeasePhase::Over;
        self.changed.notify_all();
    }

    /// The shard was handed over.
    pub(crate) fn closed(&self, closed: ClosedShard) {
        self.state.lock().closed = Some(closed);
    }

    /// Waits until no thread works on the shard, at most so long.
    pub(crate) fn await_idle(&self, until: Instant) {
        let mut state = self.state.lock();
        while state.busy && state.phase != LeasePhase::Over {
            if self.changed.wait_until(&mut state, until).timed_out() {
                return;
            }
        }
    }

    /// Nothing is written from here on. Says whether the shard was closed, and how.
    pub(crate) fn conclude(&self) -> (bool, Option<ClosedShard>) {
        let mut state = self.state.lock();
        state.phase = LeasePhase::Over;
        self.changed.notify_all();
        (!state.busy, state.closed)
    }

    /// Waits a while, unless the lease changes.
    pub(crate) fn pause(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut state = self.state.lock();
        let before = state.phase;
        while state.phase == before {
            if self.changed.wait_until(&mut state, until).timed_out() {
                return;
            }
        }
    }

    /// The shard's thread is running. One that was not for too long stays in doubt until the group
    /// confirms.
    pub(crate) fn beat(&self) {
        let mut state = self.state.lock();
        if state.seen.elapsed() <= self.guard {
            state.seen = Instant::now();
        }
    }

    /// Whether something may be written now, without asking anybody.
    pub(crate) fn allows(&self) -> bool {
        let state = self.state.lock();
        state.phase != LeasePhase::Over && state.seen.elapsed() <= self.guard
    }

    /// Before everything that others see: asks the group if there is a doubt.
    pub(crate) fn check(&self) -> Result<(), ShardError> {
        if self.allows() { Ok(()) } else { self.confirm() }
    }

    /// Asks the group whether the shard is still ours. Blocks.
    ///
    /// [`Remedy::StandDown`] if it is not.
    pub(crate) fn confirm(&self) -> Result<(), ShardError> {
        if self.is_over() {
            return Err(self.not_ours());
        }
        // An answer says how things were after the question.
        let asked = Instant::now();
        let Some(member) = self.handle.member() else {
            let reason = format!("{} has not joined its group", self.identity);
            return Err(ShardError::new(Remedy::Retry, reason));
        };
        let answer = member.confirm();
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
            return Err(self.not_ours());
        }
        state.seen = state.seen.max(asked);
        Ok(())
    }

    pub(crate) fn not_ours(&self) -> ShardError {
        ShardError::new(Remedy::StandDown, format!("{} is another processor's now", self.identity))
    }
}

#[cfg(test)]
pub(crate) mod tests;
