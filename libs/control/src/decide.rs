//! Decides the coordinator's next actions from the folded state and the shards' reports.

use std::collections::BTreeMap;

use headwater_proto::{
    control::v1::{
        AlignRequested, ControlRecord, DiffRecorded, DiffReport, FenceNamed, GenerationRetired,
        HoldBefore, Phase, ReplayEnded, ReplayHeld, SwapCancelled, SwapRequested, Swapped, Verdict,
        control_record::Event,
    },
    convert::positions_to_proto,
    status::v1::ShardStatus,
};
use headwater_types::{GenerationId, Offset, PartitionId};

use crate::{
    CheckpointId, ControlState, DEFAULT_RETAIN_MS, GenerationEntry, Hold, LogEnds, PendingSwap,
    ReplayEntry, ReplayId, Role, StatusBoard, ViewEntry,
};

/// A lag in records that counts as small at any rate.
const SMALL_LAG: u64 = 500;
/// A lag of at most this many seconds of the shard's own rate counts as small too.
const SMALL_LAG_SECONDS: f64 = 0.2;

/// Why a replay that nobody promoted by hand is swapped.
const PROMOTED: &str = "promoted by itself: the diff passed";

/// An action of the coordinator.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "there are few at a time")]
pub enum Action {
    /// Append this record and decide again: the other actions may depend on its effect.
    Append(ControlRecord),
    /// Compare the two generations' checkpoints of this id at the fence, and append `DiffRecorded`.
    /// This action is returned until that record is in the log.
    Diff { replay_id: ReplayId, checkpoint: CheckpointId },
}

/// All actions that are possible now. Equal arguments give equal actions, and an action that was
/// carried out is not returned again. So a coordinator that lost its memory continues where it
/// stopped.
pub fn decide(
    state: &ControlState,
    board: &StatusBoard,
    ends: &LogEnds,
    now_ms: i64,
) -> Vec<Action> {
    let mut actions = Vec::new();
    let append = |event| {
        Action::Append(ControlRecord {
            at_ms: now_ms,
            request_id: String::new(),
            actor: String::new(),
            event: Some(event),
        })
    };
    for view in state.views().values() {
        let Some(replay) = view.open_replay.as_ref().and_then(|id| state.replays().get(id)) else {
            continue;
        };
        let sides = state.generations().get(&replay.old).zip(state.generations().get(&replay.new));
        let Some((old, new)) = sides else { continue };
        let case = Case { board, ends, replay, old, new };
        let action = match replay.phase {
            Phase::Replay | Phase::Align | Phase::Hold if let Some(reason) = case.failure() => {
                Some(append(case.failed(reason)))
            }
            Phase::Replay if case.close() => {
                case.enter(HoldBefore::Align, append, || append(case.align()))
            }
            Phase::Align => case.fence(append),
            Phase::Hold if case.promotes() => {
                case.enter(HoldBefore::Commit, append, || append(case.promote(view)))
            }
            Phase::Replay | Phase::Hold => None,
            Phase::Commit => {
                let swap = view.pending_swap.as_ref();
                swap.and_then(|swap| case.swap(state, view, swap, now_ms)).map(append)
            }
            Phase::Unspecified
            | Phase::Diff
            | Phase::Retain
            | Phase::Undone
            | Phase::Retired
            | Phase::Aborted
            | Phase::Failed => None,
        };
        actions.extend(action);
    }
    for entry in state.generations().values() {
        actions.extend(retirement(state, entry, now_ms).map(append));
    }
    actions
}

fn retirement(state: &ControlState, entry: &GenerationEntry, now_ms: i64) -> Option<Event> {
    let reason = match entry.role {
        Role::Ended if state.view_of(entry.id).is_none() => "its view was deleted",
        Role::Ended => "its replay ended without a swap",
        Role::Retained if entry.retain_until_ms.is_some_and(|until| until <= now_ms) => {
            let pending = state.view_of(entry.id).and_then(|view| view.pending_swap.as_ref());
            if pending.is_some_and(|swap| swap.to == entry.id) {
                return None;
            }
            "it was retained for undo, and that time is over"
        }
        Role::Serving | Role::Replaying | Role::Retained | Role::Retired => return None,
    };
    Some(Event::GenerationRetired(GenerationRetired {
        generation: entry.id.to_string(),
        reason: reason.into(),
    }))
}

/// Whether both sides have a checkpoint at the fence in every partition.
pub fn aligned(state: &ControlState, board: &StatusBoard, replay: &ReplayEntry) -> bool {
    let sides = state.generations().get(&replay.old).zip(state.generations().get(&replay.new));
    let (Some((old, new)), Some(fence)) = (sides, &replay.fence) else { return false };
    let case = Case { board, ends: &LogEnds::default(), replay, old, new };
    fence.iter().all(|(&partition, &at)| {
        [old, new].iter().all(|side| case.checkpoint(side.id, partition) == Some(at))
    })
}

/// The first error that a shard of this generation reports.
pub(crate) fn shard_error(board: &StatusBoard, generation: GenerationId) -> Option<String> {
    let mut failing = board.of(generation).filter(|(_, status)| !status.error.is_empty());
    failing.next().map(|(partition, status)| format!("partition {partition}: {}", status.error))
}

/// The position from which a shard of the outgoing generation publishes nothing, from the last
/// status of its owner; `None` until the owner has reported it. The swap relies on this position,
/// so a processor that takes the shard over must also publish nothing from there on.
pub fn muted_at(status: &ShardStatus, swap: &PendingSwap) -> Option<Offset> {
    if status.muted_for == swap.swap_id.as_str() {
        Some(Offset(status.muted_at))
    } else if status.error.is_empty() {
        None
    } else {
        // A stopped shard publishes nothing beyond its position. It counts as muted, so that a
        // failing generation can still be replaced.
        Some(Offset(status.position))
    }
}

/// One open replay with its inputs.
struct Case<'a> {
    board: &'a StatusBoard,
    ends: &'a LogEnds,
    replay: &'a ReplayEntry,
    old: &'a GenerationEntry,
    new: &'a GenerationEntry,
}

impl Case<'_> {
    fn status(&self, generation: &GenerationEntry, partition: PartitionId) -> Option<&ShardStatus> {
        self.board.get(generation.id, partition)
    }

    /// The position of a shard's checkpoint of the current attempt.
    fn checkpoint(&self, generation: GenerationId, partition: PartitionId) -> Option<Offset> {
        let id = self.replay.checkpoint_id();
        self.board
            .checkpoint(generation, partition, &id)
            .map(|checkpoint| Offset(checkpoint.position))
    }

    /// Why the replay cannot continue.
    fn failure(&self) -> Option<String> {
        // A trimmed log comes first, because it is the cause of the shard's error.
        self.trimmed(self.new).or_else(|| {
            let error = shard_error(self.board, self.new.id)?;
            Some(format!("a shard of the new generation stopped: {error}"))
        })
    }

    /// The records that this generation still needs and that the log no longer has.
    fn trimmed(&self, generation: &GenerationEntry) -> Option<String> {
        generation.floor.iter().find_map(|(&partition, &floor)| {
            let status = self.status(generation, partition);
            let position = status.map_or(floor, |status| Offset(status.position)).max(floor);
            let reach = self.ends.get(&generation.stream, partition);
            let start = reach.map(|reach| reach.start).into_iter();
            // The shard may report the new start before the coordinator asks the log.
            let start = start.chain(status.map(|status| Offset(status.log_start))).max()?;
            (start > position).then(|| {
                format!(
                    "records {position} to {start} of partition {partition} of stream {} were trimmed before the \
                     replay had read them: keep them longer, or start the replay again from what is left",
                    generation.stream
                )
            })
        })
    }

    fn failed(&self, reason: String) -> Event {
        Event::ReplayEnded(ReplayEnded {
            replay_id: self.replay.id.to_string(),
            failed: true,
            reason,
        })
    }

    /// The step into a phase; if the replay is to be held before it, the record of that, once.
    fn enter(
        &self,
        phase: HoldBefore,
        append: impl Fn(Event) -> Action,
        step: impl FnOnce() -> Action,
    ) -> Option<Action> {
        if self.replay.may_enter(phase) {
            return Some(step());
        }
        (self.replay.hold == Hold::Ahead).then(|| {
            append(Event::ReplayHeld(ReplayHeld {
                replay_id: self.replay.id.to_string(),
                before: phase.into(),
                reason: match phase {
                    HoldBefore::Commit => PROMOTED.into(),
                    HoldBefore::Unspecified | HoldBefore::Align | HoldBefore::Diff => String::new(),
                },
            }))
        })
    }

    /// Whether every new shard is close to the end of its partition.
    fn close(&self) -> bool {
        self.new.partitions().all(|partition| {
            self.status(self.new, partition).is_some_and(|status| {
                let end = self
                    .ends
                    .get(&self.new.stream, partition)
                    .map_or(status.log_end, |reach| reach.end.0);
                let lag = end.saturating_sub(status.position);
                lag <= SMALL_LAG || lag as f64 <= status.records_per_second * SMALL_LAG_SECONDS
            })
        })
    }

    fn align(&self) -> Event {
        Event::AlignRequested(AlignRequested { replay_id: self.replay.id.to_string() })
    }

    /// A stopped live shard names no fence. This must not block the new generation, which may be
    /// the cure: the diff records that nothing was compared, and a person decides.
    fn incomparable(&self) -> Option<Event> {
        let error = shard_error(self.board, self.old.id)?;
        let note = format!("nothing was compared: the serving generation has stopped in {error}");
        Some(Event::DiffRecorded(DiffRecorded {
            replay_id: self.replay.id.to_string(),
            report: Some(DiffReport { note, ..DiffReport::default() }),
            verdict: Verdict::Inconclusive.into(),
        }))
    }

    /// ALIGN: names the fence when both sides can reach it, or asks for another attempt.
    fn fence(&self, append: impl Fn(Event) -> Action) -> Option<Action> {
        match &self.replay.fence {
            None => self.name_fence().or_else(|| self.incomparable()).map(append),
            Some(fence) if self.missed(fence) => Some(append(self.align())),
            Some(fence) => {
                let there = fence.iter().all(|(&partition, &at)| {
                    [self.old, self.new]
                        .iter()
                        .all(|side| self.checkpoint(side.id, partition) == Some(at))
                });
                let compare = || Action::Diff {
                    replay_id: self.replay.id.clone(),
                    checkpoint: self.replay.checkpoint_id(),
                };
                if there { self.enter(HoldBefore::Diff, append, compare) } else { None }
            }
        }
    }

    fn name_fence(&self) -> Option<Event> {
        let mut fence = BTreeMap::new();
        let (mut behind, mut reached) = (false, true);
        for partition in self.new.partitions() {
            let live = self.board.position(self.old.id, partition)?;
            let new = self.board.position(self.new.id, partition)?;
            let at = self.checkpoint(self.old.id, partition)?;
            // The live shard took its checkpoint before the new shard held at a later position.
            behind |= at < new;
            reached &= live >= new;
            let floor =
                [self.old, self.new].iter().filter_map(|side| side.floor.get(&partition)).max();
            if floor.is_some_and(|floor| at < *floor) {
                return None;
            }
            fence.insert(partition, at);
        }
        match behind {
            false => Some(Event::FenceNamed(FenceNamed {
                replay_id: self.replay.id.to_string(),
                fence: positions_to_proto(&fence),
            })),
            true => reached.then(|| self.align()),
        }
    }

    /// Whether a shard can no longer give a checkpoint at the fence: it went past it before it
    /// learned of it, or lost the one that named it.
    fn missed(&self, fence: &BTreeMap<PartitionId, Offset>) -> bool {
        fence.iter().any(|(&partition, &at)| {
            let elsewhere = |side: &GenerationEntry| {
                self.checkpoint(side.id, partition).is_some_and(|c| c != at)
            };
            let past = self.checkpoint(self.new.id, partition).is_none()
                && self
                    .board
                    .position(self.new.id, partition)
                    .is_some_and(|position| position > at);
            elsewhere(self.old) || elsewhere(self.new) || past
        })
    }

    /// Whether the replay goes on from HOLD by itself. Only a first time: after that a person
    /// decided.
    fn promotes(&self) -> bool {
        self.replay.options.promote
            && self.replay.verdict == Some(Verdict::Pass)
            && self.replay.swaps == 0
    }

    fn promote(&self, view: &ViewEntry) -> Event {
        Event::SwapRequested(SwapRequested {
            swap_id: self.replay.id.swap(self.replay.swaps + 1).to_string(),
            view: self.replay.view.to_string(),
            from: view.serving.to_string(),
            to: self.new.id.to_string(),
            replay_id: self.replay.id.to_string(),
            undo: false,
            reason: PROMOTED.into(),
        })
    }

    /// COMMIT: swaps when every serving shard has muted and every shard of the incoming generation
    /// has reached that position.
    fn swap(
        &self,
        state: &ControlState,
        view: &ViewEntry,
        swap: &PendingSwap,
        now_ms: i64,
    ) -> Option<Event> {
        if let Some(error) = shard_error(self.board, swap.to) {
            return Some(Event::SwapCancelled(SwapCancelled {
                swap_id: swap.swap_id.to_string(),
                view: self.replay.view.to_string(),
                reason: format!("a shard of generation {} stopped: {error}", swap.to),
            }));
        }
        let to = [self.old, self.new].into_iter().find(|side| side.id == swap.to)?;
        if let Some(reason) = self.trimmed(to) {
            return Some(Event::SwapCancelled(SwapCancelled {
                swap_id: swap.swap_id.to_string(),
                view: self.replay.view.to_string(),
                reason: format!("generation {} cannot reach the fence: {reason}", swap.to),
            }));
        }
        let mut fence = BTreeMap::new();
        for partition in state.generations().get(&swap.from)?.partitions() {
            let muted_at = self.board.get(swap.from, partition).and_then(|s| muted_at(s, swap))?;
            // The shard owns no output before its window, even if a restart put its position there.
            let window = state.generations().get(&swap.from)?.windows.get(&partition)?.last()?.from;
            let floor = *state.generations().get(&swap.to)?.floor.get(&partition)?;
            let at = muted_at.max(window).max(floor);
            if self.board.position(swap.to, partition)? < at {
                return None;
            }
            fence.insert(partition, at);
        }
        let retain_ms = match self.replay.options.retain_ms {
            0 => DEFAULT_RETAIN_MS,
            retain_ms => retain_ms,
        };
        Some(Event::Swapped(Swapped {
            swap_id: swap.swap_id.to_string(),
            view: self.replay.view.to_string(),
            from: swap.from.to_string(),
            to: swap.to.to_string(),
            epoch: view.epoch.next().0,
            fence: positions_to_proto(&fence),
            replay_id: self.replay.id.to_string(),
            undo: swap.undo,
            retain_until_ms: now_ms.saturating_add(i64::try_from(retain_ms).unwrap_or(i64::MAX)),
        }))
    }
}
