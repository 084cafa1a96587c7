//! Folds the records of swaps: requested, done or cancelled. Only [`ControlState::swapped`] changes
//! which generation serves reads and owns outputs.

use headwater_proto::control::v1::{self as proto, HoldBefore, Phase};

use super::{Refusal, generation_id};
use crate::{ControlState, Effect, OutputWindow, PendingSwap, Role, is_open};

impl ControlState {
    pub(super) fn swap_requested(
        &mut self,
        event: &proto::SwapRequested,
    ) -> Result<Option<Effect>, Refusal> {
        let replay = self.replay(&event.replay_id)?;
        let id = replay.id.swap(replay.swaps + 1);
        ensure!(
            event.swap_id == id.as_str(),
            "swap {} is not the replay's next, {id}",
            event.swap_id
        );
        let view = self.view(&event.view)?;
        let (from, to) = (generation_id(&event.from)?, generation_id(&event.to)?);
        let (expected, phases) = match event.undo {
            false => ((replay.old, replay.new), [Phase::Hold, Phase::Undone]),
            true => ((replay.new, replay.old), [Phase::Retain, Phase::Retain]),
        };
        ensure!(
            replay.view.as_str() == event.view,
            "replay {} is not one of view {}",
            replay.id,
            event.view
        );
        ensure!(
            phases.contains(&replay.phase),
            "replay {} is in phase {}",
            replay.id,
            replay.phase.as_str_name()
        );
        ensure!(
            (from, to) == expected,
            "replay {} swaps {:?}, not {:?}",
            replay.id,
            expected,
            (from, to)
        );
        ensure!(
            view.serving == from,
            "view {} is served by {}, not {from}",
            event.view,
            view.serving
        );
        ensure!(view.pending_swap.is_none(), "another swap of view {} is under way", event.view);
        ensure!(
            view.open_replay.as_ref().is_none_or(|open| *open == replay.id),
            "another replay of view {} is open",
            event.view
        );
        ensure!(
            !event.undo || view.previous == Some(to),
            "generation {to} is not the one that served before"
        );
        ensure!(
            replay.phase != Phase::Hold || replay.may_enter(HoldBefore::Commit),
            "replay {} is held before COMMIT",
            replay.id
        );
        let role = self.known(to)?.role;
        ensure!(
            matches!(role, Role::Replaying | Role::Retained),
            "generation {to} is {}",
            role.as_str()
        );
        let pending = PendingSwap {
            swap_id: id,
            from,
            to,
            replay_id: replay.id.clone(),
            undo: event.undo,
            returns_to: replay.phase,
        };
        let replay = self.replay_mut(&event.replay_id)?;
        replay.phase = Phase::Commit;
        replay.swaps += 1;
        replay.reason.clone_from(&event.reason);
        let id = replay.id.clone();
        let view = self.view_mut(&event.view)?;
        view.open_replay = Some(id.clone());
        view.pending_swap = Some(pending);
        Ok(Some(Effect::SwapRequested { replay: id }))
    }

    pub(super) fn swapped(&mut self, event: &proto::Swapped) -> Result<Option<Effect>, Refusal> {
        let (view, swap) = self.pending(&event.view, &event.swap_id)?;
        let PendingSwap { from, to, undo, replay_id, .. } = swap.clone();
        ensure!(
            (event.from.as_str(), event.to.as_str()) == (&*from.to_string(), &*to.to_string()),
            "swap {} is from {from} to {to}",
            event.swap_id
        );
        ensure!(
            event.undo == undo && event.replay_id == replay_id.as_str(),
            "swap {} was asked for otherwise",
            event.swap_id
        );
        ensure!(
            event.epoch == view.epoch.next().0,
            "epoch {} does not follow {}",
            event.epoch,
            view.epoch
        );
        let fence = self.fence(&event.fence, [from, to])?;
        for (partition, fence) in &fence {
            let open = self.known(from)?.windows.get(partition).and_then(|windows| windows.last());
            ensure!(
                open.is_some_and(|window| window.until.is_none() && window.from <= *fence),
                "the fence {fence} of partition {partition} lies before the last swap's"
            );
        }
        let replay = self.replay_mut(replay_id.as_str())?;
        replay.phase = if undo { Phase::Undone } else { Phase::Retain };
        replay.swap_fence = Some(fence.clone());
        let view = self.view_mut(&event.view)?;
        view.epoch = view.epoch.next();
        view.serving = to;
        view.previous = Some(from);
        view.pending_swap = None;
        view.open_replay = None;
        for (id, role) in [(from, Role::Retained), (to, Role::Serving)] {
            if let Some(entry) = self.generations.get_mut(&id) {
                entry.role = role;
                entry.retain_until_ms = (role == Role::Retained).then_some(event.retain_until_ms);
                for (&partition, &fence) in &fence {
                    let windows = entry.windows.entry(partition).or_default();
                    match role {
                        Role::Serving => windows.push(OutputWindow { from: fence, until: None }),
                        Role::Retained | Role::Replaying | Role::Ended | Role::Retired => {
                            windows
                                .iter_mut()
                                .filter(|w| w.until.is_none())
                                .for_each(|w| w.until = Some(fence));
                        }
                    }
                }
            }
        }
        Ok(None)
    }

    pub(super) fn swap_cancelled(
        &mut self,
        event: &proto::SwapCancelled,
    ) -> Result<Option<Effect>, Refusal> {
        let (_, swap) = self.pending(&event.view, &event.swap_id)?;
        let PendingSwap { replay_id, returns_to, .. } = swap.clone();
        let replay = self.replay_mut(replay_id.as_str())?;
        replay.phase = returns_to;
        replay.reason.clone_from(&event.reason);
        let view = self.view_mut(&event.view)?;
        view.pending_swap = None;
        if !is_open(returns_to) {
            view.open_replay = None;
        }
        Ok(Some(Effect::SwapCancelled { replay: replay_id }))
    }
}
