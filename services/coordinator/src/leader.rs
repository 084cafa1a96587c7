//! From standing by to the lead and back.

pub(crate) mod control_log;
pub(crate) mod election;
mod reconciler;

use std::sync::Arc;

use headwater_control::ControlState;
use headwater_service::Node;
use headwater_types::Remedy;
use tokio::sync::watch;

use crate::{
    config::Config,
    context::{Context, Leadership},
    leader::{
        control_log::{ControlLog, Error},
        election::{Election, StepDown},
        reconciler::Reconciler,
    },
    metrics::CoordinatorMetrics,
};

/// Waits for the lead, and decides while it has it.
pub(crate) struct Leader {
    context: Arc<Context>,
    election: Election,
    metrics: CoordinatorMetrics,
    config: Config,
    published: watch::Sender<Arc<ControlState>>,
    /// Of a process that has led from its start.
    first: Option<ControlLog>,
}

impl Leader {
    pub(crate) fn new(
        config: &Config,
        node: &Node,
        context: Arc<Context>,
        election: Election,
        published: watch::Sender<Arc<ControlState>>,
    ) -> Self {
        let metrics = CoordinatorMetrics::new(&node.metrics);
        Self { context, election, metrics, config: config.clone(), published, first: None }
    }

    /// Takes the lead now if nobody else can have it: what speaks against it is told at once.
    pub(crate) async fn begin(&mut self) -> Result<(), Error> {
        self.election.join().await?;
        if self.election.is_alone() {
            self.first =
                Some(ControlLog::open(self.context.log.clone(), self.published.clone()).await?);
            self.election.say(Leadership::Leads);
        }
        Ok(())
    }

    /// Runs until shutdown. Fails when the topic is damaged, or when a process that is alone is fenced.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let end = loop {
            if let Err(end) = self.election.stand_by().await {
                break end;
            }
            let end = self.lead().await;
            self.metrics.stand_down();
            self.election.stop_deciding();
            match end {
                StepDown::HandedOver => {
                    tracing::info!("standing by: another coordinator shall lead")
                }
                StepDown::Fenced(error) if self.election.is_alone() => {
                    break StepDown::Fenced(error);
                }
                StepDown::Fenced(_) => {
                    tracing::warn!("another coordinator took over: standing by");
                    if let Err(end) = self.election.disagree().await {
                        break end;
                    }
                }
                end @ (StepDown::Shutdown | StepDown::Failed(_)) => break end,
            }
        };
        self.election.leave().await;
        match end {
            StepDown::Shutdown | StepDown::HandedOver => Ok(()),
            StepDown::Fenced(error) => Err(error.into()),
            StepDown::Failed(error) => Err(error),
        }
    }

    /// From the claim to whatever ends it.
    async fn lead(&mut self) -> StepDown {
        let control_log = loop {
            if let Some(control_log) = self.first.take() {
                break control_log;
            }
            match ControlLog::open(self.context.log.clone(), self.published.clone()).await {
                Ok(control_log) => break control_log,
                Err(error) if error.remedy() == Remedy::Retry => {
                    if let Err(end) = self.election.undecided(&error).await {
                        return end;
                    }
                    // Much may have happened meanwhile.
                    match self.election.confirm().await {
                        Err(error) if error.remedy() != Remedy::Retry => {
                            return StepDown::HandedOver;
                        }
                        Ok(()) | Err(_) => {}
                    }
                }
                Err(error) => return error.into(),
            }
        };
        self.election.outage.over();
        // Of a comparison that somebody did not finish.
        if let Err(error) = headwater_state::layout::remove(&self.context.scratch) {
            tracing::warn!(%error, "what a comparison left on the disk stays there");
        }
        self.metrics.lead();
        self.election.say(Leadership::Leads);
        let mut reconciler = Reconciler::new(
            &self.config,
            self.context.clone(),
            &mut self.election,
            &self.metrics,
            control_log,
        );
        reconciler.run().await
    }
}
