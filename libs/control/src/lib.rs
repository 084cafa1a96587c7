//! The control plane as pure decisions: records in, state and next actions out.
//!
//! The control topic is one partition of immutable records. [`ControlState`] is the fold of all of
//! them, [`StatusBoard`] is the fold of the processors' reports, and [`decide`] returns the actions
//! that follow from the two. This crate does no I/O, reads no clock and keeps no other state. So a
//! coordinator that died between any two appends folds again, decides again and continues.
//!
//! ```text
//! headwater.control --fold--> ControlState --+
//!                                            +--> decide --> append, or compare two checkpoints
//! headwater.status ---fold--> StatusBoard  --+
//!                                  ^
//!          ControlState::shard_duty +-- processor: run (hold, checkpoint, mute), stop, delete
//! ```
//!
//! # The protocol of a replay
//!
//! ```text
//! REPLAY --AlignRequested--> ALIGN --FenceNamed--> ALIGN --DiffRecorded--> HOLD
//!                                  (shown as DIFF while it compares)
//!
//! HOLD    --SwapRequested--------> COMMIT --Swapped--> RETAIN --GenerationRetired--> RETIRED
//! RETAIN  --SwapRequested{undo}--> COMMIT --Swapped--> UNDONE --GenerationRetired--> RETIRED
//! UNDONE  --SwapRequested--------> COMMIT --Swapped--> RETAIN
//!
//! COMMIT                      --SwapCancelled--> the phase in which the swap was requested
//! REPLAY, ALIGN, HOLD, UNDONE --ReplayEnded----> ABORTED, or FAILED
//! ```
//!
//! In ALIGN the new shards hold at their positions. Each live shard takes a checkpoint at its
//! committed position and so names the fence. The two sides read the control topic at their own
//! pace: if a live shard took its checkpoint before the new one held, and the new one is already
//! further, the fence would lie before the new shard's position. Then `AlignRequested` is written
//! again. Each is an *attempt* with a checkpoint id of its own ([`CheckpointId`]), so that an
//! answer to an earlier attempt is never taken for an answer to this one. The next attempt is
//! requested only when every live shard has reached its new shard, which holds, so that it
//! succeeds.
//!
//! A live shard that has stopped with an error names no fence and cannot report that it is muted.
//! This must not block the generation that is to replace it. So the diff then records that nothing
//! was compared, a person decides, and a stopped shard counts as muted from its position on. A
//! processor that takes such a shard over must respect this: it stays muted from the [`muted_at`]
//! of the former owner's last status.
//!
//! An operator may have a replay held before ALIGN, DIFF or COMMIT (`ReplayOptions.hold_before`).
//! When the next step would be that phase, `ReplayHeld` is written instead. The replay stays in its
//! phase and keeps its state until `ReplayResumed` or its end. Before COMMIT that also holds for a
//! promote that a person asked for: it is written as `ReplayHeld`, and the swap is requested
//! together with `ReplayResumed`.
//!
//! # Laws
//!
//! 1. The fold is total and deterministic. It refuses a record that cannot follow from the records
//!    before it, and a refused record leaves the state unchanged.
//! 2. A view has exactly one serving generation. From where the first generation begins, the output
//!    windows of all generations cover every offset of a partition exactly once.
//! 3. Every marker carries the id of its attempt. A shard is ready when it reports so under that
//!    id, never because it runs or because time has passed.
//! 4. State is deleted only by a separate record, after the record that made it superfluous. That
//!    holds for a deleted view too: `ViewDeleted` ends its generations, and each is retired by
//!    itself.
//! 5. An id is never used again. Deleted views leave their generations and replays in the state, so
//!    that a view which is created again under the same name goes on counting.
//!
//! # Which file to open
//!
//! | file | what it does |
//! | --- | --- |
//! | `state.rs` | [`ControlState`] and what it holds; a shard's duty ([`ShardDuty`]) |
//! | `fold.rs` | one record after another |
//! | `fold/{catalog,replay,hold,swap,delete}.rs` | the records of each kind |
//! | `decide.rs` | the coordinator's next [`Action`]s |
//! | `board.rs` | [`StatusBoard`], the fold of the status topic |
//! | `progress.rs` | the status of a replay for people |
//! | `ids.rs` | ids of replays, swaps and checkpoints |

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
    CheckpointAt, CheckpointDuty, ControlState, Deleted, Effect, GenerationEntry, Hold,
    OutputWindow, PendingSwap, ReplayEntry, Role, ShardDuty, StreamEntry, ViewEntry, is_open,
};

/// The topic of control records: one partition, kept for ever.
pub const CONTROL_TOPIC: &str = "headwater.control";

/// The topic of shard statuses: one partition, compacted by [`status_key`].
pub const STATUS_TOPIC: &str = "headwater.status";

/// The default time for which a replaced generation is retained for undo: 24 hours.
pub const DEFAULT_RETAIN_MS: u64 = 24 * 60 * 60 * 1000;

#[cfg(test)]
mod tests;
