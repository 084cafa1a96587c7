//! The commands of a replay as pure functions: the state in, the records to be written out.

use std::time::Duration;

use headwater_control::{ControlState, ReplayEntry, is_open};
use headwater_proto::control::v1::{
    Phase, ReplayEnded, ReplayOptions, SwapCancelled, SwapRequested, Verdict, control_record::Event,
};
use headwater_types::GenerationId;
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
        Status::not_found(match state.views().contains_key(replay_or_view) {
            true => format!("view {replay_or_view} has no replay yet: `headwater replay start` starts one"),
            false => format!(
                "there is no replay and no view {replay_or_view:?}: `headwater replay list` lists the replays there are"
            ),
        })
    })
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
    let Some(view) = state.views().get(&replay.view) else { return no("its view is gone".into()) };
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
    Ok(vec![swap(replay, view.serving, replay.new, false, reason)])
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
            let pending =
                state.views().get(&replay.view).and_then(|view| view.pending_swap.as_ref());
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

/// Undo: the generation that served before the view's last swap shall serve again.
pub(crate) fn undo(
    state: &ControlState,
    view_name: &str,
    reason: String,
) -> Result<Vec<Event>, Status> {
    let Some(view) = state.views().get(view_name) else {
        return Err(Status::not_found(format!(
            "there is no view {view_name:?}: `headwater get views` lists those there are"
        )));
    };
    let no = |why: String| {
        Err(Status::failed_precondition(format!("view {view_name} cannot be undone: {why}")))
    };
    if let Some(pending) = &view.pending_swap {
        return match pending.undo {
            true => Ok(Vec::new()),
            false => no(format!(
                "replay {0} is being promoted; wait, or take that back with `headwater replay abort {0}`",
                pending.replay_id
            )),
        };
    }
    let of_view = || state.replays().values().filter(|replay| replay.view.as_str() == view_name);
    if let Some(open) = &view.open_replay {
        return no(format!(
            "replay {open} is open; promote it, or abort it with `headwater replay abort {open}`"
        ));
    }
    let last = of_view().find(|replay| {
        replay.phase == Phase::Retain
            && replay.new == view.serving
            && view.previous == Some(replay.old)
    });
    if let Some(replay) = last {
        return Ok(vec![swap(replay, view.serving, replay.old, true, reason)]);
    }
    match of_view()
        .filter(|replay| replay.phase == Phase::Undone)
        .max_by_key(|replay| replay.started)
    {
        Some(undone) => no(format!(
            "that is done already; to make the new generation serve again, `headwater replay promote {}`",
            undone.id
        )),
        None if of_view().any(|replay| replay.phase == Phase::Retired) => no(
            "the generation that served before is retired; start a replay with the old definition"
                .into(),
        ),
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
    if options.retain_ms == 0 {
        options.retain_ms = u64::try_from(retain.as_millis()).unwrap_or(u64::MAX).max(1);
    }
    Ok(options)
}
