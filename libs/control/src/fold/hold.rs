//! A replay that its operator holds before a phase, and lets go on.

use headwater_proto::control::v1::{self as proto, HoldBefore, Phase};

use super::Refusal;
use crate::{ControlState, Effect, Hold};

impl ControlState {
    pub(super) fn replay_held(
        &mut self,
        event: &proto::ReplayHeld,
    ) -> Result<Option<Effect>, Refusal> {
        let replay = self.replay_mut(&event.replay_id)?;
        let before = event.before();
        ensure!(
            before != HoldBefore::Unspecified && before == replay.options.hold_before(),
            "replay {} is not to be held before {}",
            replay.id,
            before.as_str_name()
        );
        ensure!(
            replay.hold == Hold::Ahead,
            "replay {} was held already: {:?}",
            replay.id,
            replay.hold
        );
        let comes = match before {
            HoldBefore::Unspecified => false,
            HoldBefore::Align => replay.phase == Phase::Replay,
            HoldBefore::Diff => replay.phase == Phase::Align && replay.fence.is_some(),
            HoldBefore::Commit => replay.phase == Phase::Hold,
        };
        ensure!(
            comes,
            "replay {} is in phase {}, after which {} does not come",
            replay.id,
            replay.phase.as_str_name(),
            before.as_str_name()
        );
        replay.hold = Hold::Held;
        if before == HoldBefore::Commit {
            replay.reason.clone_from(&event.reason);
        }
        Ok(Some(Effect::ReplayHeld { replay: replay.id.clone() }))
    }

    pub(super) fn replay_resumed(
        &mut self,
        event: &proto::ReplayResumed,
    ) -> Result<Option<Effect>, Refusal> {
        let replay = self.replay_mut(&event.replay_id)?;
        ensure!(replay.held_before().is_some(), "replay {} is not held", replay.id);
        replay.hold = Hold::Resumed;
        Ok(Some(Effect::ReplayResumed { replay: replay.id.clone() }))
    }
}
