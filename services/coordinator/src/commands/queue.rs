//! The way of a command to the leader, and of its outcome back.

use std::sync::Arc;

use headwater_control::{ControlState, Effect};
use headwater_service::status;
use headwater_types::Remedy;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::Status;

use crate::{commands::Command, leadership::Leadership};

/// Commands that may wait for the leader; a client beyond that waits to hand its own in.
const CAPACITY: usize = 64;

/// A command on its way to the leader.
pub(crate) struct QueuedCommand {
    pub(crate) request_id: String,
    pub(crate) command: Command,
    pub(crate) reply: oneshot::Sender<Result<CommandOutcome, Status>>,
}

/// The state after a command, and what the command did, now or when it was first sent.
pub(crate) struct CommandOutcome {
    pub(crate) state: Arc<ControlState>,
    pub(crate) effects: Vec<Effect>,
}

/// The handle of the queue. The leader owns the other end.
#[derive(Clone)]
pub(crate) struct CommandQueue {
    sender: mpsc::Sender<QueuedCommand>,
    leadership: watch::Receiver<Leadership>,
}

impl CommandQueue {
    pub(crate) fn new(
        leadership: watch::Receiver<Leadership>,
    ) -> (Self, mpsc::Receiver<QueuedCommand>) {
        let (sender, inbox) = mpsc::channel(CAPACITY);
        (Self { sender, leadership }, inbox)
    }

    /// Has the leader carry a command out, once per request id.
    pub(crate) async fn execute(
        &self,
        request_id: &str,
        command: Command,
    ) -> Result<CommandOutcome, Status> {
        self.leadership.borrow().require()?;
        let ending = || {
            status(Remedy::Retry, "the coordinator is ending or hands over: try again in a moment")
        };
        let (reply, outcome) = oneshot::channel();
        let queued = QueuedCommand { request_id: request_id.to_owned(), command, reply };
        self.sender.send(queued).await.map_err(|_| ending())?;
        outcome.await.map_err(|_| ending())?
    }
}
