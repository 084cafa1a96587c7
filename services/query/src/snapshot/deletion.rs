//! Requests about a view that is deleted meanwhile.
//!
//! A processor deletes the shards of a deleted view as soon as it has read the control records that
//! allow it. This instance may not have read them yet, so it reads the control topic to its end
//! before it tells the error of a shard.

use std::time::Duration;

use headwater_control::{ControlState, GenerationEntry};
use headwater_types::{GenerationId, Name};

use crate::{error::Error, snapshot::shard_source::ShardSource};

/// How long the end of the control topic is waited for before an error is told as it is.
const PATIENCE: Duration = Duration::from_secs(1);

/// The error that says that a generation's view was deleted, if it was.
fn deletion(state: &ControlState, view: &Name, generation: GenerationId) -> Option<Error> {
    let unknown = !state.generations().contains_key(&generation);
    if unknown || state.view_of(generation).is_some() {
        return None;
    }
    let how = state.deletion_of(generation).map(|deleted| format!(" {deleted}"));
    Some(Error::ViewDeleted { view: view.to_string(), how: how.unwrap_or_default() })
}

/// The error for a generation that exists and cannot be read.
pub(super) fn gone(state: &ControlState, entry: &GenerationEntry) -> Error {
    let role = match state.view_of(entry.id) {
        Some(_) => entry.role.as_str(),
        None => "one of a view that was deleted",
    };
    Error::GenerationGone { view: entry.view.to_string(), generation: entry.id, role }
}

impl ShardSource {
    /// The error for a shard whose view was deleted, as far as this instance knows.
    pub(super) fn deleted(&self) -> Option<Error> {
        let control = self.context.locator.control();
        deletion(&control.current(), &self.view, self.generation())
    }

    /// Replaces an error that follows from the deletion of the view by one that says so.
    pub(super) async fn explain(&self, error: Error) -> Error {
        if !error.may_follow_from_deletion() {
            return error;
        }
        let control = self.context.locator.control();
        // The control plane as it is known is good enough if its end cannot be reached.
        let _ = tokio::time::timeout(PATIENCE, control.wait_current()).await;
        deletion(&control.current(), &self.view, self.generation()).unwrap_or(error)
    }
}
