//! The leader: the coordinator's one task. It waits for the lead, claims the control topic and
//! reconciles until something ends its lead; then it waits again.
//!
//! ```text
//!  stand by ------> claim the topic ------> reconcile --+
//!  candidate.rs     control_log.rs          reconciler.rs
//!     ^                   |                             |
//!     +-------------------+-----------------------------+  another coordinator shall lead
//! ```
//!
//! [`Leadership`] names the states of this way.

mod candidate;
mod comparisons;
mod control_log;
mod election;
mod reconciler;

use std::sync::Arc;

use headwater_control::ControlState;
use headwater_service::Node;
use headwater_types::Remedy;
use tokio::sync::{mpsc, watch};

use crate::{
    commands::queue::QueuedCommand,
    context::Context,
    leader::{
        candidate::{Candidate, StepDown},
        control_log::{ControlLog, Error},
        reconciler::Reconciler,
    },
    leadership::{Leadership, LeadershipPublisher, READING},
    metrics::CoordinatorMetrics,
};

pub(crate) struct Leader {
    context: Arc<Context>,
    candidate: Candidate,
    metrics: CoordinatorMetrics,
    published: watch::Sender<Arc<ControlState>>,
    /// Set by [`begin`](Self::begin): this process leads already.
    claimed: Option<ControlLog>,
}

impl Leader {
    pub(crate) fn new(
        node: &Node,
        context: Arc<Context>,
        inbox: mpsc::Receiver<QueuedCommand>,
        leadership: LeadershipPublisher,
        published: watch::Sender<Arc<ControlState>>,
    ) -> Self {
        let candidate = Candidate::new(node, inbox, leadership);
        let metrics = CoordinatorMetrics::new(&node.metrics);
        Self { context, candidate, metrics, published, claimed: None }
    }

    /// Takes the lead at once if no other process can have it. An error then ends the start of the
    /// service, not a task in the background.
    pub(crate) async fn begin(&mut self) -> Result<(), Error> {
        if self.candidate.election.is_alone() {
            self.candidate.election.join().await?;
            self.candidate.election.act();
            self.candidate.leadership.publish(Leadership::Claiming(READING.into()));
            self.claimed = Some(self.open().await?);
            self.candidate.leadership.publish(Leadership::Leading);
        }
        Ok(())
    }

    /// Runs until shutdown. Fails when the topic is damaged, or when a process that has the log for
    /// itself is fenced.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let end = loop {
            let end = self.lead().await;
            self.metrics.stop_leading();
            self.candidate.election.stop_acting();
            match end {
                StepDown::HandedOver => {
                    tracing::info!("standing by: another coordinator shall lead");
                    self.candidate.leadership.publish(Leadership::StandingBy);
                }
                StepDown::Fenced(error) if self.candidate.election.is_alone() => {
                    break StepDown::Fenced(error);
                }
                StepDown::Fenced(_) => {
                    tracing::warn!("another coordinator took the lead: standing by");
                    if let Err(end) = self.candidate.wait_for_agreement().await {
                        break end;
                    }
                }
                end @ (StepDown::Shutdown | StepDown::Failed(_)) => break end,
            }
        };
        self.candidate.election.leave().await;
        match end {
            StepDown::Shutdown | StepDown::HandedOver => Ok(()),
            StepDown::Fenced(error) => Err(error.into()),
            StepDown::Failed(error) => Err(error),
        }
    }

    /// Leads once: from standing by to the end of the lead.
    async fn lead(&mut self) -> StepDown {
        let control_log = match self.claimed.take() {
            Some(control_log) => control_log,
            None => match self.claim().await {
                Ok(control_log) => control_log,
                Err(end) => return end,
            },
        };
        self.candidate.outage.over();
        // A comparison that a former leader did not finish.
        if let Err(error) = headwater_state::layout::remove(&self.context.scratch) {
            tracing::warn!(%error, "the files of an earlier comparison stay on the disk");
        }
        self.metrics.start_leading();
        self.candidate.leadership.publish(Leadership::Leading);
        let context = self.context.clone();
        Reconciler::new(context, &mut self.candidate, &self.metrics, control_log).run().await
    }

    /// Waits until this coordinator is elected, and claims the control topic then.
    async fn claim(&mut self) -> Result<ControlLog, StepDown> {
        self.candidate.stand_by().await?;
        loop {
            match self.open().await {
                Ok(control_log) => return Ok(control_log),
                Err(error) if error.remedy() == Remedy::Retry => {
                    self.candidate.wait_after(&error, Leadership::Claiming).await?;
                }
                Err(error) => return Err(error.into()),
            }
            // The group may have gone on without this process while the log was away.
            match self.candidate.election.confirm().await {
                Err(error) if error.remedy() != Remedy::Retry => return Err(StepDown::HandedOver),
                Ok(()) | Err(_) => {}
            }
        }
    }

    async fn open(&self) -> Result<ControlLog, Error> {
        ControlLog::open(self.context.log.clone(), self.published.clone()).await
    }
}
