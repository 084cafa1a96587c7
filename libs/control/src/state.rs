//! The state that the control topic's records add up to.

use std::{collections::BTreeMap, sync::Arc};

use headwater_proto::control::v1::{DiffReport, HoldBefore, Phase, ReplayOptions, Verdict};
use headwater_types::{Epoch, EventTime, GenerationId, Name, Offset, PartitionId};

use crate::{CheckpointId, ReplayId, SwapId};

/// The fold of the control topic.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ControlState {
    pub(crate) position: Offset,
    pub(crate) streams: BTreeMap<Name, StreamEntry>,
    pub(crate) views: BTreeMap<Name, ViewEntry>,
    pub(crate) generations: BTreeMap<GenerationId, GenerationEntry>,
    pub(crate) replays: BTreeMap<ReplayId, ReplayEntry>,
    pub(crate) requests: BTreeMap<String, Vec<Effect>>,
    /// Keyed by name. An entry goes when a stream of that name is declared again.
    pub(crate) deleted_streams: BTreeMap<Name, Deleted>,
    /// Keyed by name. An entry goes when a view of that name is created again.
    pub(crate) deleted_views: BTreeMap<Name, Deleted>,
}

/// How a stream or a view that no longer exists was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deleted {
    pub at_ms: i64,
    /// The normal form of its last definition.
    pub sql: String,
    /// The operator's own words.
    pub reason: String,
    pub actor: String,
}

/// Time and reason for a message: "at 2026-11-28T17:30:00Z (nobody reads it)".
impl std::fmt::Display for Deleted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "at {}", EventTime::from_millis(self.at_ms))?;
        match self.reason.as_str() {
            "" => Ok(()),
            reason => write!(f, " ({reason})"),
        }
    }
}

/// A declared stream.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamEntry {
    /// The normal form of the stream's definition.
    pub sql: String,
    pub declared_at_ms: i64,
}

/// A view and its generations.
#[derive(Clone, Debug, PartialEq)]
pub struct ViewEntry {
    pub stream: Name,
    /// The generation that answers queries.
    pub serving: GenerationId,
    /// Counts the swaps. The first generation serves with epoch 1.
    pub epoch: Epoch,
    /// The generation that the last swap replaced, while it is retained.
    pub previous: Option<GenerationId>,
    /// The only replay in phases REPLAY to COMMIT.
    pub open_replay: Option<ReplayId>,
    /// A requested swap that is neither done nor cancelled.
    pub pending_swap: Option<PendingSwap>,
    /// The number of replays of this view so far. Those of deleted views of the same name count: a
    /// replay's id is never used again.
    pub replays: u32,
    /// The ordinal of its first generation. Generations of this name with a smaller one belong to a
    /// view that was deleted.
    pub first_ordinal: u64,
}

/// A requested swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingSwap {
    pub swap_id: SwapId,
    pub from: GenerationId,
    pub to: GenerationId,
    pub replay_id: ReplayId,
    pub undo: bool,
    /// The phase to which the replay returns if the swap is cancelled.
    pub returns_to: Phase,
}

/// The role of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The generation answers queries and owns the outputs.
    Serving,
    /// The generation is built beside the serving one.
    Replaying,
    /// The generation was replaced and keeps consuming, so that an undo can restore it.
    Retained,
    /// The generation's replay was aborted or failed, or its view was deleted. No processor runs
    /// it, and its state may be deleted soon.
    Ended,
    /// The generation's state is deleted.
    Retired,
}

impl Role {
    /// The name of the role in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Replaying => "replaying",
            Self::Retained => "retained",
            Self::Ended => "ended",
            Self::Retired => "retired",
        }
    }
}

/// One build of a view.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationEntry {
    pub id: GenerationId,
    pub view: Name,
    pub stream: Name,
    pub view_sql: String,
    /// The stream's definition when this generation was built.
    pub stream_sql: String,
    /// The first offset to read of each partition. It has every partition.
    pub floor: BTreeMap<PartitionId, Offset>,
    pub engine_version: u32,
    pub role: Role,
    pub created_at_ms: i64,
    /// The time at which a retained generation may be retired.
    pub retain_until_ms: Option<i64>,
    /// The number of generations that were named before it.
    pub ordinal: u64,
    pub(crate) windows: BTreeMap<PartitionId, Vec<OutputWindow>>,
}

impl GenerationEntry {
    pub fn partitions(&self) -> impl Iterator<Item = PartitionId> + '_ {
        self.floor.keys().copied()
    }
}

/// The records whose outputs a generation owns: from `from`, up to but not including `until`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputWindow {
    pub from: Offset,
    /// `None` while the generation serves.
    pub until: Option<Offset>,
}

/// A replay.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplayEntry {
    pub id: ReplayId,
    pub view: Name,
    /// The generation that served when the replay started.
    pub old: GenerationId,
    /// The generation that the replay builds.
    pub new: GenerationId,
    pub options: ReplayOptions,
    /// How it stands to the phase before which its operator wants it held.
    pub hold: Hold,
    /// The phase as the control topic has it. ALIGN lasts until the diff is recorded; only the
    /// shards' reports tell whether both sides are at the fence and DIFF has begun
    /// ([`crate::replay_status`]).
    pub phase: Phase,
    /// The number of attempts at ALIGN so far.
    pub attempt: u32,
    /// The fence of the current attempt.
    pub fence: Option<BTreeMap<PartitionId, Offset>>,
    pub diff: Option<Arc<DiffReport>>,
    pub verdict: Option<Verdict>,
    /// The number of swaps that were requested.
    pub swaps: u32,
    /// The fence of the last swap.
    pub swap_fence: Option<BTreeMap<PartitionId, Offset>>,
    /// The offset of the control record that started the replay. Later replays have greater
    /// offsets.
    pub started: Offset,
    pub started_at_ms: i64,
    /// A person's reason, or an error's text, for the end or the swap.
    pub reason: String,
    /// The sender of the last request about it: start, promote, abort or undo. Empty while senders
    /// have no identity.
    pub actor: String,
}

impl ReplayEntry {
    /// The id of the checkpoints that the current attempt asks for.
    pub fn checkpoint_id(&self) -> CheckpointId {
        self.id.checkpoint(self.attempt)
    }

    /// Whether its operator lets it enter this phase.
    pub fn may_enter(&self, phase: HoldBefore) -> bool {
        self.options.hold_before() != phase || self.hold == Hold::Resumed
    }

    /// The phase before which it stands now. A replay that left that place in another way, such as
    /// to HOLD without a comparison, is not held any more.
    pub fn held_before(&self) -> Option<HoldBefore> {
        let before = self.options.hold_before();
        let stands = match before {
            HoldBefore::Unspecified => false,
            HoldBefore::Align => self.phase == Phase::Replay,
            HoldBefore::Diff => self.phase == Phase::Align && self.fence.is_some(),
            HoldBefore::Commit => self.phase == Phase::Hold,
        };
        (stands && self.hold == Hold::Held).then_some(before)
    }
}

/// How a replay stands to the phase that `ReplayOptions.hold_before` names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hold {
    /// It has not come there yet, or no phase is named.
    #[default]
    Ahead,
    /// It stands before that phase.
    Held,
    /// A person let it go on. It is not held again.
    Resumed,
}

/// Whether a replay in this phase keeps its view from starting another one.
pub fn is_open(phase: Phase) -> bool {
    match phase {
        Phase::Replay | Phase::Align | Phase::Diff | Phase::Hold | Phase::Commit => true,
        Phase::Unspecified
        | Phase::Retain
        | Phase::Undone
        | Phase::Retired
        | Phase::Aborted
        | Phase::Failed => false,
    }
}

/// The effect of a request. The same request again gets the same answer and does nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    StreamDeclared { stream: Name, extended: bool },
    ViewCreated { view: Name, generation: GenerationId },
    ReplayStarted { replay: ReplayId, generation: GenerationId },
    SwapRequested { replay: ReplayId },
    SwapCancelled { replay: ReplayId },
    ReplayEnded { replay: ReplayId },
    StreamDeleted { stream: Name },
    ViewDeleted { view: Name },
    ReplayHeld { replay: ReplayId },
    ReplayResumed { replay: ReplayId },
}

impl Effect {
    /// The replay that it is about.
    pub fn replay(&self) -> Option<&ReplayId> {
        match self {
            Self::ReplayStarted { replay, .. }
            | Self::SwapRequested { replay }
            | Self::SwapCancelled { replay }
            | Self::ReplayHeld { replay }
            | Self::ReplayResumed { replay }
            | Self::ReplayEnded { replay } => Some(replay),
            Self::StreamDeclared { .. }
            | Self::ViewCreated { .. }
            | Self::StreamDeleted { .. }
            | Self::ViewDeleted { .. } => None,
        }
    }
}

/// The position at which a shard takes a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointAt {
    /// At the shard's committed position, as soon as the shard learns of it.
    Now,
    /// At exactly this position. A shard before it runs up to it and stops there for the
    /// checkpoint. A shard past it reports nothing and continues; the coordinator sees its position
    /// and asks again.
    Exactly(Offset),
}

/// A checkpoint that a shard must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointDuty {
    /// The name of the checkpoint's directory and of its entry in the status
    /// (`Checkpoint.replay_id`).
    pub id: CheckpointId,
    /// A shard takes each checkpoint once: if it has one of this id, it is done.
    pub at: CheckpointAt,
}

/// The duty of a processor for a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardDuty {
    /// Read, apply and commit records.
    Run {
        /// Read no record at or beyond this offset for now. A position beyond it stays there, so
        /// [`Offset::ZERO`] means "read nothing more".
        hold_at: Option<Offset>,
        /// The checkpoints that must exist. Any other checkpoint of the shard may be deleted, but
        /// only by a processor that has folded the control topic to its end since it started: an
        /// older state may not know a checkpoint that is needed now.
        checkpoints: Vec<CheckpointDuty>,
        /// The serving generation's shard stops publishing at its committed position, and reports
        /// `muted_for` and `muted_at`. It keeps reading.
        muted_for: Option<SwapId>,
    },
    /// Do not run the shard, and keep its state: its replay ended, or its generation is unknown.
    Stop,
    /// Delete the shard's state and its checkpoints.
    Delete,
}

impl ControlState {
    /// The position after the last record folded.
    pub fn position(&self) -> Offset {
        self.position
    }

    pub fn streams(&self) -> &BTreeMap<Name, StreamEntry> {
        &self.streams
    }

    pub fn views(&self) -> &BTreeMap<Name, ViewEntry> {
        &self.views
    }

    pub fn generations(&self) -> &BTreeMap<GenerationId, GenerationEntry> {
        &self.generations
    }

    pub fn replays(&self) -> &BTreeMap<ReplayId, ReplayEntry> {
        &self.replays
    }

    /// The effects of a request, if it was carried out.
    pub fn effects(&self, request_id: &str) -> Option<&[Effect]> {
        self.requests.get(request_id).map(Vec::as_slice)
    }

    /// The id for the next replay of a view.
    pub fn next_replay_id(&self, view: &Name) -> ReplayId {
        ReplayId::of(view, self.views.get(view).map_or(0, |view| view.replays) + 1)
    }

    /// The ordinal of the next generation (`GenerationInputs::ordinal`). Generations of deleted
    /// views count: a view that is created again with the same definition gets another generation
    /// id.
    pub fn next_ordinal(&self) -> u64 {
        self.generations.len() as u64
    }

    /// The serving generation of a view.
    pub fn serving(&self, view: &str) -> Option<&GenerationEntry> {
        self.generations.get(&self.views.get(view)?.serving)
    }

    /// A replay by its id, or a view's newest replay by the view's name.
    pub fn find_replay(&self, replay_or_view: &str) -> Option<&ReplayEntry> {
        self.replays
            .get(replay_or_view)
            .or_else(|| self.replays_of(replay_or_view).max_by_key(|replay| replay.started))
    }

    /// The replays of a view that exists.
    pub fn replays_of(&self, view: &str) -> impl Iterator<Item = &ReplayEntry> {
        self.replays.values().filter(move |replay| {
            replay.view.as_str() == view && self.view_of(replay.new).is_some()
        })
    }

    /// The view that a generation builds; `None` if that view was deleted, whether or not another
    /// one has its name now.
    pub fn view_of(&self, generation: GenerationId) -> Option<&ViewEntry> {
        let entry = self.generations.get(&generation)?;
        self.views.get(&entry.view).filter(|view| view.first_ordinal <= entry.ordinal)
    }

    /// How the view that a generation built was deleted; `None` if it exists, or if another view
    /// has its name.
    pub fn deletion_of(&self, generation: GenerationId) -> Option<&Deleted> {
        self.deleted_views.get(&self.generations.get(&generation)?.view)
    }

    /// Streams that were deleted and not declared again.
    pub fn deleted_streams(&self) -> &BTreeMap<Name, Deleted> {
        &self.deleted_streams
    }

    /// Views that were deleted and not created again.
    pub fn deleted_views(&self) -> &BTreeMap<Name, Deleted> {
        &self.deleted_views
    }

    /// The ranges of a partition whose outputs this generation owns, in order. Over all generations
    /// of a view they tile the partition from the first generation's floor on.
    pub fn output_windows(
        &self,
        generation: GenerationId,
        partition: PartitionId,
    ) -> Vec<OutputWindow> {
        let windows =
            self.generations.get(&generation).and_then(|entry| entry.windows.get(&partition));
        windows
            .into_iter()
            .flatten()
            .filter(|window| window.until != Some(window.from))
            .copied()
            .collect()
    }

    /// The duty of a processor for this shard.
    pub fn shard_duty(&self, generation: GenerationId, partition: PartitionId) -> ShardDuty {
        let Some(entry) = self.generations.get(&generation) else { return ShardDuty::Stop };
        match entry.role {
            Role::Retired => return ShardDuty::Delete,
            Role::Ended => return ShardDuty::Stop,
            Role::Serving | Role::Replaying | Role::Retained => {}
        }
        let view = self.view_of(generation);
        let aligning = view
            .and_then(|view| self.replays.get(view.open_replay.as_ref()?))
            .filter(|replay| replay.phase == Phase::Align);
        let (mut hold_at, mut checkpoints) = (None, Vec::new());
        if let Some(replay) = aligning {
            let fence = replay.fence.as_ref().and_then(|fence| fence.get(&partition)).copied();
            let at = match fence {
                _ if generation == replay.old => Some(CheckpointAt::Now),
                Some(fence) if generation == replay.new => Some(CheckpointAt::Exactly(fence)),
                None if generation == replay.new => {
                    hold_at = Some(Offset::ZERO);
                    None
                }
                // A retained generation does not take part in the replay.
                Some(_) | None => None,
            };
            checkpoints.extend(at.map(|at| CheckpointDuty { id: replay.checkpoint_id(), at }));
        }
        let muted_for = view
            .and_then(|view| view.pending_swap.as_ref())
            .filter(|swap| swap.from == generation)
            .map(|swap| swap.swap_id.clone());
        ShardDuty::Run { hold_at, checkpoints, muted_for }
    }
}
