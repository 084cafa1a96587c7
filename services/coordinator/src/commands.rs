//! The commands: each turns the control state into the records that carry it out.
//!
//! A service puts a [`Command`] into the [`queue`], and the leader takes it out, asks it for its
//! records and appends them. Nothing here writes to the control topic.

pub(crate) mod apply;
pub(crate) mod delete;
pub(crate) mod queue;
pub(crate) mod replay_commands;
pub(crate) mod start_replay;

use headwater_control::ControlState;
use headwater_proto::control::v1::{ReplayOptions, control_record::Event};
use tonic::Status;

use crate::{
    context::Context,
    definitions::{CatalogObject, Definitions},
};

/// A change that a request asks for.
#[derive(Debug)]
pub(crate) enum Command {
    Apply { definitions: Definitions, options: ReplayOptions },
    StartReplay { view: String, view_sql: String, options: ReplayOptions },
    Promote { replay: String, accept_failed: bool, reason: String },
    Resume { replay: String, reason: String },
    Abort { replay: String, reason: String },
    Undo { replay_or_view: String, reason: String },
    Delete { object: CatalogObject, if_exists: bool, reason: String },
}

impl Command {
    /// The records that carry the command out; none if there is nothing to do. It may ask the log
    /// which topics there are, and create topics.
    pub(crate) async fn events(
        self,
        context: &Context,
        state: &ControlState,
    ) -> Result<Vec<Event>, Status> {
        match self {
            Self::Apply { definitions, options } => {
                apply::events(context, state, &definitions, &options).await
            }
            Self::StartReplay { view, view_sql, options } => {
                start_replay::events(context, state, &view, &view_sql, options).await
            }
            Self::Promote { replay, accept_failed, reason } => {
                replay_commands::promote(state, &replay, accept_failed, reason)
            }
            Self::Resume { replay, reason } => replay_commands::resume(state, &replay, reason),
            Self::Abort { replay, reason } => replay_commands::abort(state, &replay, reason),
            Self::Undo { replay_or_view, reason } => {
                replay_commands::undo(state, &replay_or_view, reason)
            }
            Self::Delete { object, if_exists, reason } => {
                delete::events(state, &object, if_exists, &reason)
            }
        }
    }
}
