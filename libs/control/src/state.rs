//! What the control topic says, folded.

use std::{collections::BTreeMap, sync::Arc};

use headwater_proto::control::v1::{DiffReport, Phase, ReplayOptions, Verdict};
use headwater_types::{Epoch, GenerationId, Name, Offset, PartitionId};

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
}

/// A declared stream.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamEntry {
    /// The normal form of its definition.
    pub sql: String,
    pub declared_at_ms: i64,
}

/// A view and who serves it.
#[derive(Clone, Debug, PartialEq)]
pub struct ViewEntry {
    pub stream: Name,
    /// The one generation that answers queries.
    pub serving: GenerationId,
    /// Counts the swaps; the first generation serves with epoch 1.
    pub epoch: Epoch,
    /// The generation that the last swap replaced, while it is retained.
    pub previous: Option<GenerationId>,
    /// The one replay in phases REPLAY to COMMIT.
    pub open_replay: Option<ReplayId>,
    /// A swap that was asked for and is neither done nor cancelled.
    pub pending_swap: Option<PendingSwap>,
    /// How many replays of this view were started.
    pub replays: u32,
}

/// A swap that is under way.
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

/// What a generation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It answers queries and owns the outputs.
    Serving,
    /// It is built beside the serving one.
    Replaying,
    /// It was replaced and keeps consuming, so that it can come back.
    Retained,
    /// Its replay was aborted or failed. Nothing runs it; its state may be deleted soon.
    Ended,
    /// Its state is deleted.
    Retired,
}

impl Role {
    /// The word for people and messages.
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
    /// The first offset read. Its keys are all partitions, from zero.
    pub floor: BTreeMap<PartitionId, Offset>,
    pub engine_version: u32,
    pub role: Role,
    pub created_at_ms: i64,
    /// When a retained generation may be retired.
    pub retain_until_ms: Option<i64>,
    /// How many generations were named before it.
    pub ordinal: u64,
    pub(crate) windows: BTreeMap<PartitionId, Vec<OutputWindow>>,
}

impl GenerationEntry {
    pub fn partitions(&self) -> impl Iterator<Item = PartitionId> + '_ {
        self.floor.keys().copied()
    }
}

/// Records whose outputs a generation owns: from `from`, up to but not including `until`.
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
    /// ALIGN lasts until the diff is recorded: whether both sides are at the fence, and DIFF has begun,
    /// is for the shards to say ([`crate::replay_status`]).
    pub phase: Phase,
    /// How often ALIGN was asked for.
    pub attempt: u32,
    /// The fence of the present attempt.
    pub fence: Option<BTreeMap<PartitionId, Offset>>,
    pub diff: Option<Arc<DiffReport>>,
    pub verdict: Option<Verdict>,
    /// How many swaps were asked for.
    pub swaps: u32,
    /// The fence of the last swap.
    pub swap_fence: Option<BTreeMap<PartitionId, Offset>>,
    /// The control record that started it: later replays have greater ones.
    pub started: Offset,
    pub started_at_ms: i64,
    /// Why it ended or was swapped, in somebody's words.
    pub reason: String,
}

impl ReplayEntry {
    /// The id of the checkpoints that the present attempt asks for.
    pub fn checkpoint_id(&self) -> CheckpointId {
        self.id.checkpoint(self.attempt)
    }
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

/// What a request did, so that the same request again is answered alike and does nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    StreamDeclared { stream: Name, extended: bool },
    ViewCreated { view: Name, generation: GenerationId },
    ReplayStarted { replay: ReplayId, generation: GenerationId },
    SwapRequested { replay: ReplayId },
    SwapCancelled { replay: ReplayId },
    ReplayEnded { replay: ReplayId },
}

/// When a shard takes a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointAt {
    /// At its committed position, as soon as it learns of it.
    Now,
    /// When it has committed exactly this position; a shard that is before it runs to it and stops
    /// there for the checkpoint. A shard that is past it reports nothing and goes on: the coordinator
    /// sees its position and asks again.
    Exactly(Offset),
}

/// A checkpoint that a shard shall have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointDuty {
    /// Names its directory and its entry in the status (`Checkpoint.replay_id`).
    pub id: CheckpointId,
    /// Taken once: a shard that has a checkpoint of this id is done with it.
    pub at: CheckpointAt,
}

/// What a processor must do for a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardDuty {
    /// Read, apply, commit.
    Run {
        /// Read no record at or beyond this offset for now. A position that is already beyond it stays
        /// where it is; [`Offset::ZERO`] thus means "read nothing more".
        hold_at: Option<Offset>,
        /// The checkpoints that shall exist. Any other checkpoint of the shard may be deleted, by a
        /// processor that has folded the control topic to its end since it started: an older state
        /// does not know of a checkpoint that is needed now.
        checkpoints: Vec<CheckpointDuty>,
        /// The serving generation's shard stops publishing at its committed position, and reports
        /// `muted_for` and `muted_at`. It keeps reading.
        muted_for: Option<SwapId>,
    },
    /// Do not run it, and keep what it has: it ended, or nobody knows it.
    Stop,
    /// Delete its state and its checkpoints.
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

    /// What a request did, if it was carried out.
    pub fn effects(&self, request_id: &str) -> Option<&[Effect]> {
        self.requests.get(request_id).map(Vec::as_slice)
    }

    /// The id for the next replay of a view.
    pub fn next_replay_id(&self, view: &Name) -> ReplayId {
        ReplayId::of(view, self.views.get(view).map_or(0, |view| view.replays) + 1)
    }

    /// The ordinal of the next generation (`GenerationInputs::ordinal`).
    pub fn next_ordinal(&self) -> u64 {
        self.generations.len() as u64
    }

    /// The serving generation of a view.
    pub fn serving(&self, view: &str) -> Option<&GenerationEntry> {
        self.generations.get(&self.views.get(view)?.serving)
    }

    /// A replay by its id, or a view's newest replay by the view's name.
    pub fn find_replay(&self, replay_or_view: &str) -> Option<&ReplayEntry> {
        self.replays.get(replay_or_view).or_else(|| {
            self.replays
                .values()
                .filter(|replay| replay.view.as_str() == replay_or_view)
                .max_by_key(|r| r.started)
        })
    }

    /// The parts of a partition whose outputs this generation owns, in order. Over all generations of a
    /// view they tile the partition from the first generation's floor on.
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

    /// What a processor must do for this shard.
    pub fn shard_duty(&self, generation: GenerationId, partition: PartitionId) -> ShardDuty {
        let Some(entry) = self.generations.get(&generation) else { return ShardDuty::Stop };
        match entry.role {
            Role::Retired => return ShardDuty::Delete,
            Role::Ended => return ShardDuty::Stop,
            Role::Serving | Role::Replaying | Role::Retained => {}
        }
        let view = self.views.get(&entry.view);
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
                // A retained generation has no part in it.
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
