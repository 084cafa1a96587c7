//! The candidate: waits for the lead, and refuses commands for as long as they cannot be carried
//! out.

use std::time::Duration;

use headwater_service::{Health, Node, Outage, Shutdown};
use headwater_types::{Remedy, error_chain};
use tokio::sync::mpsc;

use crate::{
    commands::queue::QueuedCommand,
    leader::{control_log::Error, election::Election},
    leadership::{Leadership, LeadershipPublisher, READING, STANDING_BY, refusal},
};

/// How long to wait for the group and the claims of the control topic to agree on who leads.
const DISAGREEMENT: Duration = Duration::from_secs(1);

/// Why a coordinator does not lead any longer.
pub(super) enum StepDown {
    Shutdown,
    /// Another coordinator shall lead, or does so already.
    HandedOver,
    /// Another coordinator has claimed the control topic.
    Fenced(Error),
    Failed(anyhow::Error),
}

impl From<Error> for StepDown {
    /// For an error after which another try is of no use.
    fn from(error: Error) -> Self {
        match error.remedy() {
            Remedy::StandDown => Self::Fenced(error),
            Remedy::Retry | Remedy::Correct | Remedy::Repair => Self::Failed(error.into()),
        }
    }
}

pub(super) struct Candidate {
    pub(super) inbox: mpsc::Receiver<QueuedCommand>,
    pub(super) election: Election,
    pub(super) leadership: LeadershipPublisher,
    pub(super) shutdown: Shutdown,
    /// The control topic cannot be read or written: reported once.
    pub(super) outage: Outage,
    pub(super) health: Health,
}

impl Candidate {
    pub(super) fn new(
        node: &Node,
        inbox: mpsc::Receiver<QueuedCommand>,
        leadership: LeadershipPublisher,
    ) -> Self {
        Self {
            inbox,
            election: Election::new(node),
            leadership,
            shutdown: node.tasks.shutdown(),
            outage: Outage::new("the control topic"),
            health: node.health.clone(),
        }
    }

    /// Waits until this coordinator is elected and the group has confirmed that.
    pub(super) async fn stand_by(&mut self) -> Result<(), StepDown> {
        while let Err(error) = self.election.join().await {
            match error.remedy() {
                Remedy::Retry => self.wait_after(&error, Leadership::Joining).await?,
                Remedy::Correct | Remedy::StandDown | Remedy::Repair => return Err(error.into()),
            }
        }
        self.outage.over();
        loop {
            if !self.election.is_elected() {
                self.leadership.publish(Leadership::StandingBy);
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return Err(StepDown::Shutdown),
                command = self.inbox.recv() => {
                    refuse(command, STANDING_BY)?;
                    continue;
                }
                () = self.election.elected() => {}
            }
            match self.election.confirm().await {
                Ok(()) => {}
                Err(error) if error.remedy() == Remedy::Retry => {
                    match self.wait_after(&error.into(), Leadership::Claiming).await {
                        Err(StepDown::HandedOver) | Ok(()) => continue,
                        Err(end) => return Err(end),
                    }
                }
                Err(_) => {
                    self.wait_for_agreement().await?;
                    continue;
                }
            }
            self.leadership.publish(Leadership::Claiming(READING.into()));
            if self.election.act() {
                return Ok(());
            }
        }
    }

    /// Reports that the log failed, and waits before the next try. `state` is the one that waits.
    pub(super) async fn wait_after(
        &mut self,
        error: &Error,
        state: fn(String) -> Leadership,
    ) -> Result<(), StepDown> {
        self.report(error);
        let reason = error_chain(error);
        let waits = state(reason.clone());
        let has_lead = !matches!(waits, Leadership::Joining(_));
        self.leadership.publish(waits);
        self.refuse_for(self.outage.wait(), &reason, has_lead).await
    }

    /// Reports an outage once, unless the process has reported that the log as a whole is away.
    pub(super) fn report(&mut self, error: &Error) {
        let away = matches!(error, Error::Log(headwater_log::Error::Unavailable(_)));
        match away && self.health.log_is_away() {
            true => self.outage.note(&error_chain(error)),
            false => self.outage.failed(&error_chain(error)),
        };
    }

    /// The group says that this coordinator leads, and the control topic or the group itself says
    /// that another one does: waits until they may agree.
    pub(super) async fn wait_for_agreement(&mut self) -> Result<(), StepDown> {
        self.leadership.publish(Leadership::StandingBy);
        match self.refuse_for(DISAGREEMENT, STANDING_BY, true).await {
            Err(StepDown::HandedOver) | Ok(()) => Ok(()),
            Err(end @ (StepDown::Shutdown | StepDown::Fenced(_) | StepDown::Failed(_))) => Err(end),
        }
    }

    /// Refuses commands for this long. Ends earlier with shutdown and, `has_lead`, with a
    /// hand-over.
    async fn refuse_for(
        &mut self,
        wait: Duration,
        why: &str,
        has_lead: bool,
    ) -> Result<(), StepDown> {
        let over = tokio::time::sleep(wait);
        tokio::pin!(over);
        let handed_over = self.election.handed_over();
        tokio::pin!(handed_over);
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => return Err(StepDown::Shutdown),
                () = &mut handed_over, if has_lead => return Err(StepDown::HandedOver),
                command = self.inbox.recv() => refuse(command, why)?,
                () = &mut over => return Ok(()),
            }
        }
    }
}

/// Answers a command that came in before it was known that this coordinator cannot carry it out.
fn refuse(command: Option<QueuedCommand>, why: &str) -> Result<(), StepDown> {
    // The queue has no handle any more: no command can come.
    let command = command.ok_or(StepDown::Shutdown)?;
    // The client may have gone.
    let _ = command.reply.send(Err(refusal(why)));
    Ok(())
}
