//! The status of a replay for people and programs.

use headwater_proto::{
    control::v1::{Phase, Replay, Verdict},
    convert::positions_to_proto,
};
use headwater_types::{GenerationId, PartitionId};

use crate::{
    ControlState, GenerationEntry, LogEnds, ReplayEntry, StatusBoard,
    decide::{aligned, muted_at, shard_error},
};

/// A live shard with at most this lag keeps up with ingest, so its rate is the rate of ingest.
const FOLLOWS: u64 = 10_000;

/// The status of one replay: its phase, its progress, and what it waits for.
pub fn replay_status(
    state: &ControlState,
    board: &StatusBoard,
    ends: &LogEnds,
    replay: &ReplayEntry,
) -> Replay {
    let view = state.view_of(replay.new);
    let held = replay.held_before();
    let compares = replay.phase == Phase::Align && held.is_none() && aligned(state, board, replay);
    let phase = if compares { Phase::Diff } else { replay.phase };
    let mut status = Replay {
        replay_id: replay.id.to_string(),
        view: replay.view.to_string(),
        phase: phase.into(),
        old_generation: replay.old.to_string(),
        new_generation: replay.new.to_string(),
        fence: replay.fence.as_ref().map(positions_to_proto).unwrap_or_default(),
        diff: replay.diff.as_deref().cloned(),
        verdict: replay.verdict.unwrap_or(Verdict::Unspecified).into(),
        waiting_for: waiting_for(state, board, ends, replay, phase),
        epoch: view.map_or(0, |view| view.epoch.0),
        started_at_ms: replay.started_at_ms,
        reason: replay.reason.clone(),
        actor: replay.actor.clone(),
        swap_fence: replay.swap_fence.as_ref().map(positions_to_proto).unwrap_or_default(),
        options: Some(replay.options.clone()),
        held_before: held.unwrap_or_default().into(),
        ..Replay::default()
    };
    if matches!(phase, Phase::Retain | Phase::Undone) {
        let sides = [replay.old, replay.new].into_iter();
        let retained = sides.filter_map(|id| state.generations().get(&id)?.retain_until_ms).next();
        status.retain_until_ms = retained.unwrap_or_default();
    }
    if let Some(new) = state.generations().get(&replay.new) {
        progress(board, ends, replay.old, new, &mut status);
    }
    status
}

fn progress(
    board: &StatusBoard,
    ends: &LogEnds,
    old: GenerationId,
    new: &GenerationEntry,
    status: &mut Replay,
) {
    let mut ingest = 0.0;
    for (&partition, floor) in &new.floor {
        let shard = board.get(new.id, partition);
        let live = board.get(old, partition);
        let position = shard.map_or(floor.0, |shard| shard.position.max(floor.0));
        let end = end(board, ends, [old, new.id], new, partition).max(position);
        status.records_done += position - floor.0;
        status.records_total += end - floor.0;
        status.records_per_second += shard.map_or(0.0, |shard| shard.records_per_second);
        if let Some(live) = live.filter(|live| end.saturating_sub(live.position) <= FOLLOWS) {
            ingest += live.records_per_second;
        }
    }
    let left = status.records_total - status.records_done;
    let gain = status.records_per_second - ingest;
    status.eta_seconds = match left {
        0 => Some(0.0),
        _ if gain > 0.0 => Some(left as f64 / gain),
        _ => None,
    };
}

/// The greatest known end of a partition.
fn end(
    board: &StatusBoard,
    ends: &LogEnds,
    generations: [GenerationId; 2],
    new: &GenerationEntry,
    partition: PartitionId,
) -> u64 {
    let reported =
        generations.iter().filter_map(|&id| board.get(id, partition)).map(|status| status.log_end);
    let known = ends.get(&new.stream, partition).map(|reach| reach.end.0);
    known.into_iter().chain(reported).max().unwrap_or_default()
}

fn waiting_for(
    state: &ControlState,
    board: &StatusBoard,
    ends: &LogEnds,
    replay: &ReplayEntry,
    phase: Phase,
) -> String {
    let generations = state.generations();
    let (Some(old), Some(new)) = (generations.get(&replay.old), generations.get(&replay.new))
    else {
        return String::new();
    };
    let without = |entry: &GenerationEntry, has: &dyn Fn(PartitionId) -> bool| {
        let missing: Vec<_> =
            entry.partitions().filter(|&p| !has(p)).map(|p| p.to_string()).collect();
        (!missing.is_empty()).then(|| match missing.len() {
            1 => format!("partition {}", missing[0]),
            _ => format!("partitions {}", missing.join(", ")),
        })
    };
    let reported = |entry: &GenerationEntry| without(entry, &|p| board.get(entry.id, p).is_some());
    let id = replay.checkpoint_id();
    if replay.held_before().is_some() {
        return "a person: resume or abort".into();
    }
    match phase {
        Phase::Replay => match reported(new) {
            Some(missing) => format!("a processor to take up {missing} of the new generation"),
            None => {
                let behind = new.partitions().max_by_key(|&partition| {
                    let position =
                        board.position(new.id, partition).map_or(0, |position| position.0);
                    end(board, ends, [old.id, new.id], new, partition).saturating_sub(position)
                });
                match behind {
                    Some(partition) => format!(
                        "the new generation to come close to the end of partition {partition}"
                    ),
                    None => String::new(),
                }
            }
        },
        Phase::Align if replay.fence.is_none() => {
            if let Some(error) = shard_error(board, old.id) {
                return format!("the serving generation, a shard of which stopped: {error}");
            }
            match without(old, &|p| board.checkpoint(old.id, p, &id).is_some()) {
                Some(missing) => format!("the serving generation to name the fence of {missing}"),
                None => {
                    match without(old, &|p| board.position(old.id, p) >= board.position(new.id, p))
                    {
                        Some(missing) => {
                            format!("the serving generation to reach the new one in {missing}")
                        }
                        None => "the fence".into(),
                    }
                }
            }
        }
        Phase::Align => {
            let reached = |side: &GenerationEntry| {
                without(side, &|p| board.checkpoint(side.id, p, &id).is_some())
            };
            match reached(new).or_else(|| reached(old)) {
                Some(missing) => format!("the checkpoint of {missing} at the fence"),
                None => "the checkpoints at the fence".into(),
            }
        }
        Phase::Diff => "the comparison of the two generations".into(),
        Phase::Hold => match replay.verdict {
            Some(Verdict::Fail) => {
                "a person: the diff is beyond its thresholds, promote with accept-failed or abort"
            }
            Some(Verdict::Pass | Verdict::Inconclusive | Verdict::Unspecified) | None => {
                "a person: promote or abort"
            }
        }
        .into(),
        Phase::Commit => {
            let swap = state.views().get(&replay.view).and_then(|view| view.pending_swap.as_ref());
            let Some(swap) = swap else { return String::new() };
            let muted = |p| board.get(swap.from, p).and_then(|status| muted_at(status, swap));
            match without(old, &|p| muted(p).is_some()) {
                Some(missing) => format!("the serving generation to stop publishing {missing}"),
                None => {
                    let reached = |p| board.position(swap.to, p) >= muted(p);
                    match without(old, &reached) {
                        Some(missing) => {
                            format!("generation {} to reach the fence of {missing}", swap.to)
                        }
                        None => "the swap".into(),
                    }
                }
            }
        }
        Phase::Unspecified
        | Phase::Retain
        | Phase::Undone
        | Phase::Retired
        | Phase::Aborted
        | Phase::Failed => String::new(),
    }
}
