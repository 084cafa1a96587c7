//! The control plane as pure decisions: records in, state and next actions out.
//!
//! The control topic is one partition of immutable records. [`ControlState`] is the fold of all of
//! them, [`StatusBoard`] the fold of what the processors report, and [`decide`] says what follows
//! from the two. Nothing here does I/O, asks a clock or keeps a secret of its own, so that a
//! coordinator that died between any two appends folds again, decides again and goes on.
//!
//! ```text
//! headwater.control --fold--> ControlState --+
//!                                            +--> decide --> append, or compare two checkpoints
//! headwater.status ---fold--> StatusBoard  --+
//!                                  ^
//!          ControlState::shard_duty +-- processor: run, hold, checkpoint, mute, delete
//! ```
//!
//! # The protocol of a replay
//!
//! ```text
//! REPLAY --AlignRequested--> ALIGN --FenceNamed--> ALIGN, DIFF --DiffRecorded--> HOLD
//!   HOLD --SwapRequested--> COMMIT --Swapped--> RETAIN --GenerationRetired--> RETIRED
//!                                                 ^  |
//!                       Swapped <- SwapRequested  |  |  SwapRequested{undo} -> Swapped
//!                                                 |  v
//!                                                UNDONE --GenerationRetired--> RETIRED
//! ```
//!
//! In ALIGN the new shards hold where they are, and each live shard takes a checkpoint at its
//! committed position and so names the fence. The two read the control topic at their own pace: if a
//! live shard took its checkpoint before the new one held, and the new one is already further, the
//! fence would lie in its past. Then `AlignRequested` is written again; each is an *attempt* with a
//! checkpoint id of its own ([`CheckpointId`]), so that an answer to an earlier one is never taken for
//! an answer to this one. The next attempt is asked for only when every live shard has reached its
//! new shard, which holds, so that it succeeds.
//!
//! A live shard that has stopped with an error names no fence and cannot say that it is mute. That must
//! not keep its cure from serving: then the diff says that nothing was compared, a person decides, and a
//! stopped shard counts as mute from its position on. That binds a processor which takes such a shard over:
//! [`muted_at`] of the former owner's last status is where it stays mute from, too.
//!
//! # Laws
//!
//! 1. The fold is total and deterministic, and refuses a record that cannot follow from the records
//!    before it; a refused record leaves the state as it was.
//! 2. A view has exactly one serving generation, and the output windows of all its generations tile
//!    every partition: no gap, no overlap.
//! 3. Every marker carries the id of its attempt. Readiness is what a shard reports under that id,
//!    never "it runs" and never a timer.
//! 4. State is deleted only by a record of its own, after the record that made it superfluous.

mod board;
mod decide;
mod fold;
mod ids;
mod progress;
mod state;

pub use board::{LogEnds, Reach, StatusBoard, instance_key, status_key};
pub use decide::{Action, aligned, decide, muted_at};
pub use fold::FoldError;
pub use ids::{CheckpointId, ReplayId, SwapId};
pub use progress::replay_status;
pub use state::{
    CheckpointAt, CheckpointDuty, ControlState, Effect, GenerationEntry, OutputWindow, PendingSwap,
    ReplayEntry, Role, ShardDuty, StreamEntry, ViewEntry, is_open,
};

/// The topic of control records: one partition, kept for ever.
pub const CONTROL_TOPIC: &str = "headwater.control";

/// The topic of shard statuses: one partition, compacted by [`status_key`].
pub const STATUS_TOPIC: &str = "headwater.status";

/// How long a replaced generation stays ready for undo when the operator does not say: 24 hours.
pub const DEFAULT_RETAIN_MS: u64 = 24 * 60 * 60 * 1000;

#[cfg(test)]
mod tests;
