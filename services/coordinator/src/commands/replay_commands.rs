//! The commands of a replay as pure functions: the state in, the records to be written out.

use std::time::Duration;

use headwater_control::{ControlState, Hold, ReplayEntry, ViewEntry, is_open};
use headwater_proto::control::v1::{
    HoldBefore, Phase, ReplayEnded, ReplayHeld, ReplayOptions, ReplayResumed, SwapCancelled,
    SwapRequested, Verdict, control_record::Event,
};
use headwater_types::{GenerationId, Name};
use tonic::Status;

/// A phase as messages spell it.
pub(crate) fn phase_name(phase: Phase) -> &'static str {
    phase.as_str_name().trim_start_matches("PHASE_")
}

/// A replay by its id, or a view's newest replay by the view's name.
pub(crate) fn find<'a>(
    state: &'a ControlState,
    replay_or_view: &str,
) -> Result<&'a ReplayEntry, Status> {
    state.find_replay(replay_or_view).ok_or_else(|| {
        match state.views().contains_key(replay_or_view) {
            true => Status::not_found(format!(
                "view {replay_or_view} has no replay yet: `headwater replay start` starts one"
            )),
            false => unknown(state, replay_or_view),
        }
    })
}

/// The view of a replay; `Err` says that it was deleted.
fn view_of<'a>(state: &'a ControlState, replay: &ReplayEntry) -> Result<&'a ViewEntry, String> {
    state.view_of(replay.new).ok_or_else(|| format!("its view {} was deleted", replay.view))
}

fn swap(
    replay: &ReplayEntry,
    from: GenerationId,
    to: GenerationId,
    undo: bool,
    reason: String,
) -> Event {
    Event::SwapRequested(SwapRequested {
        swap_id: replay.id.swap(replay.swaps + 1).to_string(),
        view: replay.view.to_string(),
        from: from.to_string(),
        to: to.to_string(),
        replay_id: replay.id.to_string(),
        undo,
        reason,
    })
}

/// Promote: the new generation shall serve. No records if it does or is about to.
pub(crate) fn promote(
    state: &ControlState,
    replay_or_view: &str,
    accept_failed: bool,
    reason: String,
) -> Result<Vec<Event>, Status> {
    let replay = find(state, replay_or_view)?;
    let id = &replay.id;
    let no = |why: String| {
        Err(Status::failed_precondition(format!("replay {id} cannot be promoted: {why}")))
    };
    let view = match view_of(state, replay) {
        Ok(view) => view,
        Err(deleted) => return no(deleted),
    };
    match replay.phase {
        Phase::Hold | Phase::Undone => {}
        Phase::Commit if view.pending_swap.as_ref().is_some_and(|swap| !swap.undo) => {
            return Ok(Vec::new());
        }
        Phase::Retain if view.serving == replay.new => return Ok(Vec::new()),
        Phase::Unspecified | Phase::Replay | Phase::Align | Phase::Diff => {
            return no(format!(
                "it is in phase {}; wait for phase HOLD with `headwater replay watch {id}`",
                phase_name(replay.phase)
            ));
        }
        Phase::Commit => return no("it is being undone; wait until that is done".into()),
        Phase::Retain | Phase::Retired => {
            return no(format!(
                "it is in phase {}, and another generation serves the view; start a new replay",
                phase_name(replay.phase)
            ));
        }
        Phase::Aborted | Phase::Failed => {
            return no(format!(
                "it is in phase {}: {}; start a new replay",
                phase_name(replay.phase),
                replay.reason
            ));
        }
    }
    if let Some(open) = view.open_replay.as_ref().filter(|open| *open != id) {
        return no(format!(
            "replay {open} of view {} is open; promote or abort that one first",
            replay.view
        ));
    }
    if view.serving != replay.old {
        return no(format!(
            "it was compared with generation {}, and {} serves now; start a new replay",
            replay.old, view.serving
        ));
    }
    if replay.verdict == Some(Verdict::Fail) && !accept_failed {
        return no(
            "the diff is beyond its thresholds (verdict FAIL); look at it, then promote with --accept-failed or abort"
                .into(),
        );
    }
    if replay.phase == Phase::Hold && !replay.may_enter(HoldBefore::Commit) {
        // The swap is requested when the replay is resumed.
        let held = Event::ReplayHeld(ReplayHeld {
            replay_id: id.to_string(),
            before: HoldBefore::Commit.into(),
            reason,
        });
        return Ok(match replay.hold {
            Hold::Ahead => vec![held],
            Hold::Held | Hold::Resumed => Vec::new(),
        });
    }
    Ok(vec![swap(replay, view.serving, replay.new, false, reason)])
}

/// A phase that a replay can be held before, as people know it.
fn hold_name(before: HoldBefore) -> &'static str {
    before.as_str_name().trim_start_matches("HOLD_BEFORE_")
}

/// Resume: a held replay shall go on. Nothing to do if it was resumed before.
pub(crate) fn resume(
    state: &ControlState,
    replay_or_view: &str,
    reason: String,
) -> Result<Vec<Event>, Status> {
    let replay = find(state, replay_or_view)?;
    let (id, phase) = (&replay.id, phase_name(replay.phase));
    let no = |why: String| {
        Err(Status::failed_precondition(format!("replay {id} cannot be resumed: {why}")))
    };
    if replay.hold == Hold::Resumed {
        return Ok(Vec::new());
    }
    let resumed = Event::ReplayResumed(ReplayResumed { replay_id: id.to_string(), reason });
    match (replay.held_before(), replay.options.hold_before()) {
        (Some(HoldBefore::Commit), _) => {
            // What was promoted is swapped now, for the reason that was given then.
            let swap = swap(replay, replay.old, replay.new, false, replay.reason.clone());
            Ok(vec![resumed, swap])
        }
        (Some(_), _) => Ok(vec![resumed]),
        (None, _) if !is_open(replay.phase) => no(format!("it is over (phase {phase})")),
        (None, HoldBefore::Unspecified) => {
            no(format!("it is in phase {phase} and was started without --hold-before"))
        }
        (None, before) => no(format!(
            "it is in phase {phase} and not held yet before {}; wait with `headwater replay watch {id}`",
            hold_name(before)
        )),
    }
}

/// Abort: the replay shall end without a swap, or the swap under way shall not happen.
pub(crate) fn abort(
    state: &ControlState,
    replay_or_view: &str,
    reason: String,
) -> Result<Vec<Event>, Status> {
    let replay = find(state, replay_or_view)?;
    let id = replay.id.to_string();
    let end = Event::ReplayEnded(ReplayEnded {
        replay_id: id.clone(),
        failed: false,
        reason: reason.clone(),
    });
    match replay.phase {
        Phase::Replay | Phase::Align | Phase::Diff | Phase::Hold | Phase::Undone => Ok(vec![end]),
        Phase::Aborted => Ok(Vec::new()),
        Phase::Commit => {
            let pending = state.view_of(replay.new).and_then(|view| view.pending_swap.as_ref());
            let Some(pending) = pending else { return Ok(vec![end]) };
            let (swap_id, view) = (pending.swap_id.to_string(), replay.view.to_string());
            let cancel = Event::SwapCancelled(SwapCancelled { swap_id, view, reason });
            // A generation that has served stays; one that has never served has no further use.
            Ok(if is_open(pending.returns_to) { vec![cancel, end] } else { vec![cancel] })
        }
        Phase::Retain => Err(Status::failed_precondition(format!(
            "replay {id} is promoted; take it back with `headwater replay undo {}`",
            replay.view
        ))),
        Phase::Unspecified | Phase::Retired | Phase::Failed => {
            Err(Status::failed_precondition(format!(
                "replay {id} is over (phase {}); there is nothing to abort",
                phase_name(replay.phase)
            )))
        }
    }
}

/// The view that an undo is about. The replay comes with it if the request named the replay's id.
pub(crate) fn undone<'a>(
    state: &'a ControlState,
    replay_or_view: &str,
) -> Result<(&'a Name, Option<&'a ReplayEntry>), Status> {
    if let Some(replay) = state.replays().get(replay_or_view) {
        let no = |why| format!("replay {} cannot be undone: {why}", replay.id);
        view_of(state, replay).map_err(|why| Status::failed_precondition(no(why)))?;
        return Ok((&replay.view, Some(replay)));
    }
    let view = state.views().get_key_value(replay_or_view);
    view.map(|(name, _)| (name, None)).ok_or_else(|| unknown(state, replay_or_view))
}

/// The refusal of a name that is neither a replay's nor a view's.
fn unknown(state: &ControlState, replay_or_view: &str) -> Status {
    Status::not_found(match state.deleted_views().get(replay_or_view) {
        Some(deleted) => format!("view {replay_or_view} was deleted {deleted}"),
        None => format!(
            "there is no replay and no view {replay_or_view:?}: `headwater replay list` lists the replays there are"
        ),
    })
}

/// Undo: the generation that served before the view's last swap shall serve again. If a replay is
/// named, it must be the one that made that swap.
pub(crate) fn undo(
    state: &ControlState,
    replay_or_view: &str,
    reason: String,
) -> Result<Vec<Event>, Status> {
    let (view_name, named) = undone(state, replay_or_view)?;
    let view = state.views().get(view_name).ok_or_else(|| unknown(state, replay_or_view))?;
    let no = |why: String| {
        Err(Status::failed_precondition(match named {
            Some(replay) => format!("replay {} cannot be undone: {why}", replay.id),
            None => format!("view {view_name} cannot be undone: {why}"),
        }))
    };
    if let Some(pending) = &view.pending_swap {
        return match pending.undo {
            true if named.is_some_and(|named| named.id != pending.replay_id) => {
                no(format!("replay {} is being undone; wait until that is done", pending.replay_id))
            }
            true => Ok(Vec::new()),
            false => no(format!(
                "replay {0} is being promoted; wait, or take that back with `headwater replay abort {0}`",
                pending.replay_id
            )),
        };
    }
    if let Some(open) = &view.open_replay {
        return no(format!(
            "replay {open} is open; promote it, or abort it with `headwater replay abort {open}`"
        ));
    }
    let last = state.replays_of(view_name.as_str()).find(|replay| {
        replay.phase == Phase::Retain
            && replay.new == view.serving
            && view.previous == Some(replay.old)
    });
    match (last, named) {
        (Some(last), Some(named)) if named.id != last.id => {
            return no(format!(
                "replay {0} was promoted last; take that back with `headwater replay undo {0}`",
                last.id
            ));
        }
        (Some(last), _) => return Ok(vec![swap(last, view.serving, last.old, true, reason)]),
        (None, _) => {}
    }
    let meant: Vec<_> = match named {
        Some(replay) => vec![replay],
        None => state.replays_of(view_name.as_str()).collect(),
    };
    let newest = |phase| {
        meant.iter().filter(|replay| replay.phase == phase).max_by_key(|replay| replay.started)
    };
    if let Some(undone) = newest(Phase::Undone) {
        return no(format!(
            "that is done already; to make the new generation serve again, `headwater replay promote {}`",
            undone.id
        ));
    }
    if newest(Phase::Retired).is_some() {
        return no(
            "the generation that served before is retired; start a replay with the old definition"
                .into(),
        );
    }
    match named {
        Some(replay) => no(format!("it is in phase {}", phase_name(replay.phase))),
        None => no("no replay of it was promoted".into()),
    }
}

/// Options as the control topic holds them: checked, and with every default spelled out.
pub(crate) fn options(
    options: Option<ReplayOptions>,
    retain: Duration,
) -> Result<ReplayOptions, Status> {
    let mut options = options.unwrap_or_default();
    let shares = [
        ("max_changed", options.max_changed),
        ("max_only_old", options.max_only_old),
        ("max_only_new", options.max_only_new),
    ];
    for (name, share) in shares {
        if share.is_some_and(|share| !share.is_finite() || share < 0.0) {
            let message = format!(
                "{name} must be a share of rows such as 0.01, not negative and not infinite"
            );
            return Err(headwater_service::status(headwater_types::Remedy::Correct, message));
        }
    }
    if HoldBefore::try_from(options.hold_before).is_err() {
        let message = format!(
            "hold_before is {}, which this version does not know: choose ALIGN, DIFF or COMMIT",
            options.hold_before
        );
        return Err(headwater_service::status(headwater_types::Remedy::Correct, message));
    }
    if options.retain_ms == 0 {
        options.retain_ms = u64::try_from(retain.as_millis()).unwrap_or(u64::MAX).max(1);
    }
    Ok(options)
}
