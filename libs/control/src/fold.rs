//! Folds control records one by one. A record that cannot follow from the records before it is
//! refused and leaves the state unchanged.

macro_rules! ensure {
    ($condition:expr, $($reason:tt)+) => {
        if !$condition {
            return Err(format!($($reason)+));
        }
    };
}

mod catalog;
mod delete;
mod hold;
mod replay;
mod swap;

use std::collections::BTreeMap;

use headwater_proto::{
    common::v1::PartitionOffset,
    control::v1::{ControlRecord, control_record::Event},
};
use headwater_types::{GenerationId, Name, Offset, PartitionId, Remedy};

use crate::{ControlState, Effect, GenerationEntry, PendingSwap, ReplayEntry, SwapId, ViewEntry};

/// A control record does not follow from the records before it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FoldError {
    #[error(
        "control record {offset} cannot follow from the records before it: {reason}; \
         the control topic is damaged or was written by something else: restore it from a copy"
    )]
    Impossible { offset: Offset, reason: String },
    #[error(
        "control record {offset} is of a kind that this version does not know: run the newer Headwater that wrote it"
    )]
    Unknown { offset: Offset },
}

impl FoldError {
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::Impossible { .. } => Remedy::Repair,
            Self::Unknown { .. } => Remedy::Correct,
        }
    }
}

type Positions = BTreeMap<PartitionId, Offset>;
/// Why a record is impossible.
type Refusal = String;

impl ControlState {
    /// Folds the record at `offset`.
    pub fn fold(&mut self, offset: Offset, record: &ControlRecord) -> Result<(), FoldError> {
        let impossible = |reason| FoldError::Impossible { offset, reason };
        if offset < self.position {
            return Err(impossible(format!(
                "it was read before: the position is {}",
                self.position
            )));
        }
        let event = record.event.as_ref().ok_or(FoldError::Unknown { offset })?;
        let at_ms = record.at_ms;
        // Each function checks everything before it changes anything.
        let effect = match event {
            Event::StreamDeclared(event) => self.stream_declared(event, at_ms),
            Event::ViewCreated(event) => self.view_created(event, at_ms),
            Event::ReplayStarted(event) => self.replay_started(event, offset, at_ms),
            Event::AlignRequested(event) => self.align_requested(event),
            Event::FenceNamed(event) => self.fence_named(event),
            Event::DiffRecorded(event) => self.diff_recorded(event),
            Event::SwapRequested(event) => self.swap_requested(event),
            Event::Swapped(event) => self.swapped(event),
            Event::ReplayEnded(event) => self.replay_ended(event),
            Event::GenerationRetired(event) => self.generation_retired(event, at_ms),
            Event::SwapCancelled(event) => self.swap_cancelled(event),
            Event::StreamDeleted(event) => self.stream_deleted(event, at_ms, &record.actor),
            Event::ViewDeleted(event) => self.view_deleted(event, at_ms, &record.actor),
            Event::ReplayHeld(event) => self.replay_held(event),
            Event::ReplayResumed(event) => self.replay_resumed(event),
        }
        .map_err(impossible)?;
        if !record.request_id.is_empty()
            && let Some(replay) = effect.as_ref().and_then(Effect::replay).cloned()
            && let Some(replay) = self.replays.get_mut(&replay)
        {
            replay.actor.clone_from(&record.actor);
        }
        if let Some(effect) = effect
            && !record.request_id.is_empty()
        {
            self.requests.entry(record.request_id.clone()).or_default().push(effect);
        }
        self.position = offset.next();
        Ok(())
    }

    /// Checks a fence for two generations: it has every partition once, and no offset before a
    /// floor.
    fn fence(
        &self,
        fence: &[PartitionOffset],
        generations: [GenerationId; 2],
    ) -> Result<Positions, Refusal> {
        let fence = positions(fence)?;
        for id in generations {
            let floor = &self.known(id)?.floor;
            ensure!(
                fence.keys().eq(floor.keys()),
                "the fence does not have every partition of {id} once"
            );
            for (partition, floor) in floor {
                ensure!(
                    fence[partition] >= *floor,
                    "the fence of partition {partition} lies before the floor of {id}"
                );
            }
        }
        Ok(fence)
    }

    fn known(&self, id: GenerationId) -> Result<&GenerationEntry, Refusal> {
        self.generations.get(&id).ok_or_else(|| format!("generation {id} is unknown"))
    }

    fn replay(&self, id: &str) -> Result<&ReplayEntry, Refusal> {
        self.replays.get(id).ok_or_else(|| format!("replay {id:?} is unknown"))
    }

    fn replay_mut(&mut self, id: &str) -> Result<&mut ReplayEntry, Refusal> {
        self.replays.get_mut(id).ok_or_else(|| format!("replay {id:?} is unknown"))
    }

    fn view(&self, name: &str) -> Result<&ViewEntry, Refusal> {
        self.views.get(name).ok_or_else(|| format!("view {name:?} does not exist"))
    }

    fn view_mut(&mut self, name: &str) -> Result<&mut ViewEntry, Refusal> {
        self.views.get_mut(name).ok_or_else(|| format!("view {name:?} does not exist"))
    }

    /// The view's pending swap, which must be this one.
    fn pending(&self, view: &str, swap: &str) -> Result<(&ViewEntry, &PendingSwap), Refusal> {
        let entry = self.view(view)?;
        let pending =
            entry.pending_swap.as_ref().filter(|pending| pending.swap_id == SwapId::from(swap));
        Ok((
            entry,
            pending.ok_or_else(|| format!("swap {swap:?} of view {view} is not under way"))?,
        ))
    }
}

fn name(text: &str) -> Result<Name, Refusal> {
    Name::new(text).map_err(|error| error.to_string())
}

fn generation_id(text: &str) -> Result<GenerationId, Refusal> {
    text.parse::<GenerationId>().map_err(|error| error.to_string())
}

fn positions(message: &[PartitionOffset]) -> Result<Positions, Refusal> {
    let positions = headwater_proto::convert::positions_from_proto(message);
    ensure!(positions.len() == message.len(), "a partition occurs twice");
    Ok(positions)
}
