//! Folds the records of a replay from ALIGN to HOLD, and of its end without a swap.

use std::sync::Arc;

use headwater_proto::control::v1::{self as proto, HoldBefore, Phase, Verdict};

use super::Refusal;
use crate::{ControlState, Effect, Role};

impl ControlState {
    pub(super) fn align_requested(
        &mut self,
        event: &proto::AlignRequested,
    ) -> Result<Option<Effect>, Refusal> {
        let replay = self.replay_mut(&event.replay_id)?;
        ensure!(
            matches!(replay.phase, Phase::Replay | Phase::Align),
            "replay {} is in phase {}",
            replay.id,
            replay.phase.as_str_name()
        );
        ensure!(replay.may_enter(HoldBefore::Align), "replay {} is held before ALIGN", replay.id);
        replay.phase = Phase::Align;
        replay.attempt += 1;
        replay.fence = None;
        Ok(None)
    }

    pub(super) fn fence_named(
        &mut self,
        event: &proto::FenceNamed,
    ) -> Result<Option<Effect>, Refusal> {
        let replay = self.replay(&event.replay_id)?;
        ensure!(
            replay.phase == Phase::Align && replay.fence.is_none(),
            "replay {} does not wait for a fence",
            replay.id
        );
        let fence = self.fence(&event.fence, [replay.old, replay.new])?;
        self.replay_mut(&event.replay_id)?.fence = Some(fence);
        Ok(None)
    }

    pub(super) fn diff_recorded(
        &mut self,
        event: &proto::DiffRecorded,
    ) -> Result<Option<Effect>, Refusal> {
        let replay = self.replay_mut(&event.replay_id)?;
        let verdict = event.verdict();
        ensure!(replay.phase == Phase::Align, "replay {} has nothing to compare", replay.id);
        ensure!(verdict != Verdict::Unspecified, "the diff of replay {} has no verdict", replay.id);
        ensure!(
            replay.fence.is_some() || verdict == Verdict::Inconclusive,
            "replay {} has no fence to compare at",
            replay.id
        );
        // Without a fence nothing was compared: there was no DIFF.
        ensure!(
            replay.fence.is_none() || replay.may_enter(HoldBefore::Diff),
            "replay {} is held before DIFF",
            replay.id
        );
        replay.phase = Phase::Hold;
        replay.diff = Some(Arc::new(event.report.clone().unwrap_or_default()));
        replay.verdict = Some(verdict);
        Ok(None)
    }

    pub(super) fn replay_ended(
        &mut self,
        event: &proto::ReplayEnded,
    ) -> Result<Option<Effect>, Refusal> {
        let replay = self.replay_mut(&event.replay_id)?;
        ensure!(
            matches!(replay.phase, Phase::Replay | Phase::Align | Phase::Hold | Phase::Undone),
            "replay {} is in phase {}",
            replay.id,
            replay.phase.as_str_name()
        );
        replay.phase = if event.failed { Phase::Failed } else { Phase::Aborted };
        replay.reason.clone_from(&event.reason);
        let (id, view, new) = (replay.id.clone(), replay.view.clone(), replay.new);
        if let Some(entry) = self.generations.get_mut(&new) {
            entry.role = Role::Ended;
            entry.retain_until_ms = None;
        }
        if let Some(view) = self.views.get_mut(&view) {
            if view.open_replay.as_ref() == Some(&id) {
                view.open_replay = None;
            }
            if view.previous == Some(new) {
                view.previous = None;
            }
        }
        Ok(Some(Effect::ReplayEnded { replay: id }))
    }
}
