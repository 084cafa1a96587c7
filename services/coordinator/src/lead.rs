//! From standing by to the lead and back.

use std::sync::Arc;

use headwater_control::ControlState;
use headwater_service::Node;
use headwater_types::Remedy;
use tokio::sync::watch;

use crate::{
    Config,
    desk::Desk,
    ledger::{Error, Ledger},
    metrics::Gauges,
    office::{Office, Standing},
    seat::{End, Post},
};

/// Waits for the lead, and decides while it has it.
pub(crate) struct Lead {
    office: Arc<Office>,
    post: Post,
    gauges: Gauges,
    config: Config,
    published: watch::Sender<Arc<ControlState>>,
    /// Of a process that has led from its start.
    first: Option<Ledger>,
}

impl Lead {
    pub(crate) fn new(
        config: &Config,
        node: &Node,
        office: Arc<Office>,
        post: Post,
        published: watch::Sender<Arc<ControlState>>,
    ) -> Self {
        let gauges = Gauges::new(&node.metrics);
        Self { office, post, gauges, config: config.clone(), published, first: None }
    }

    /// Takes the lead now if nobody else can have it: what speaks against it is told at once.
    pub(crate) async fn begin(&mut self) -> Result<(), Error> {
        self.post.join().await?;
        if self.post.is_alone() {
            self.first = Some(Ledger::open(self.office.log.clone(), self.published.clone()).await?);
            self.post.say(Standing::Leads);
        }
        Ok(())
    }

    /// Runs until shutdown. Fails when the topic is damaged, or when a process that is alone is fenced.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let end = loop {
            if let Err(end) = self.post.stand_by().await {
                break end;
            }
            let end = self.lead().await;
            self.gauges.stand_down();
            self.post.stop_deciding();
            match end {
                End::HandedOver => tracing::info!("standing by: another coordinator shall lead"),
                End::Fenced(error) if self.post.is_alone() => break End::Fenced(error),
                End::Fenced(_) => {
                    tracing::warn!("another coordinator took over: standing by");
                    if let Err(end) = self.post.disagree().await {
                        break end;
                    }
                }
                end @ (End::Shutdown | End::Failed(_)) => break end,
            }
        };
        self.post.leave().await;
        match end {
            End::Shutdown | End::HandedOver => Ok(()),
            End::Fenced(error) => Err(error.into()),
            End::Failed(error) => Err(error),
        }
    }

    /// From the claim to whatever ends it.
    async fn lead(&mut self) -> End {
        let ledger = loop {
            if let Some(ledger) = self.first.take() {
                break ledger;
            }
            match Ledger::open(self.office.log.clone(), self.published.clone()).await {
                Ok(ledger) => break ledger,
                Err(error) if error.remedy() == Remedy::Retry => {
                    if let Err(end) = self.post.undecided(&error).await {
                        return end;
                    }
                    // Much may have happened meanwhile.
                    match self.post.confirm().await {
                        Err(error) if error.remedy() != Remedy::Retry => return End::HandedOver,
                        Ok(()) | Err(_) => {}
                    }
                }
                Err(error) => return error.into(),
            }
        };
        self.post.outage.over();
        // Of a comparison that somebody did not finish.
        if let Err(error) = headwater_state::layout::remove(&self.office.scratch) {
            tracing::warn!(%error, "what a comparison left on the disk stays there");
        }
        self.gauges.lead();
        self.post.say(Standing::Leads);
        let mut desk =
            Desk::new(&self.config, self.office.clone(), &mut self.post, &self.gauges, ledger);
        desk.run().await
    }
}
