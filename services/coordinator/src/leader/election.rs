//! Who leads: one coordinator of those that run, as the log's membership says.

use std::{sync::Arc, time::Duration};

use headwater_control::CONTROL_TOPIC;
use headwater_log::{Assignee, GroupId, Log, Member, Membership};
use headwater_service::{Condition, Node, Outage, Shutdown, follow};
use headwater_types::{Name, PartitionId, Remedy};
use parking_lot::{Condvar, Mutex};
use tokio::sync::{mpsc, watch};

use crate::{
    chain,
    context::{Leadership, QueuedCommand, off_worker, refusal},
    leader::control_log::Error,
};

/// The group of all coordinators on the control topic: who has its partition leads.
const GROUP: &str = "headwater.coordinator";
const ONLY: PartitionId = PartitionId(0);
/// How long a hand-over waits for what is being written. After that the successor's claim fences it.
const HAND_OVER: Duration = Duration::from_secs(15);
/// How long to wait after the membership or the writer's claim spoke against us while the other one has not.
const DISAGREEMENT: Duration = Duration::from_secs(1);

pub(crate) const STANDING_BY: &str = "standing by: another coordinator leads";

/// Why a coordinator stopped to decide.
pub(crate) enum StepDown {
    Shutdown,
    /// Another one shall lead, or does so already.
    HandedOver,
    /// Another one has claimed the control topic.
    Fenced(Error),
    Failed(anyhow::Error),
}

impl From<Error> for StepDown {
    /// An error after which another try is of no use.
    fn from(error: Error) -> Self {
        match error.remedy() {
            Remedy::StandDown => Self::Fenced(error),
            Remedy::Retry | Remedy::Correct | Remedy::Repair => Self::Failed(error.into()),
        }
    }
}

/// What the membership says, and whether somebody acts upon it.
struct PartitionAssignee {
    owned: watch::Sender<bool>,
    deciding: Mutex<bool>,
    stopped: Condvar,
}

impl Assignee for PartitionAssignee {
    fn assigned(&self, partitions: &[PartitionId]) {
        if partitions.contains(&ONLY) {
            self.owned.send_replace(true);
        }
    }

    fn revoked(&self, partitions: &[PartitionId]) {
        if partitions.contains(&ONLY) {
            self.owned.send_replace(false);
            let mut deciding = self.deciding.lock();
            let outcome =
                self.stopped.wait_while_for(&mut deciding, |deciding| *deciding, HAND_OVER);
            if outcome.timed_out() {
                tracing::warn!("the lead is handed over although something is still being written");
            }
        }
    }

    fn lost(&self, partitions: &[PartitionId]) {
        if partitions.contains(&ONLY) {
            self.owned.send_replace(false);
        }
    }
}

/// Where a coordinator waits for the lead, and what it keeps its eye on while it has it.
pub(crate) struct Election {
    pub(crate) inbox: mpsc::Receiver<QueuedCommand>,
    pub(crate) shutdown: Shutdown,
    /// What keeps it from deciding, told once.
    pub(crate) outage: Outage,
    log: Arc<dyn Log>,
    membership: Arc<dyn Membership>,
    assignee: Arc<PartitionAssignee>,
    owned: watch::Receiver<bool>,
    member: Option<Arc<dyn Member>>,
    alone: bool,
    standing: watch::Sender<Leadership>,
    ready: Condition,
}

impl Election {
    pub(crate) fn new(
        node: &Node,
        inbox: mpsc::Receiver<QueuedCommand>,
        standing: watch::Sender<Leadership>,
        ready: Condition,
    ) -> Self {
        let (sender, owned) = watch::channel(false);
        let (deciding, stopped) = (Mutex::new(false), Condvar::new());
        Self {
            inbox,
            shutdown: node.tasks.shutdown(),
            outage: Outage::new("the control topic"),
            log: node.log.clone(),
            membership: node.membership.clone(),
            assignee: Arc::new(PartitionAssignee { owned: sender, deciding, stopped }),
            owned,
            member: None,
            alone: false,
            standing,
            ready,
        }
    }

    /// Whether no other process can lead: then one that does nevertheless is a mistake.
    pub(crate) fn is_alone(&self) -> bool {
        self.alone
    }

    /// Joins the other coordinators.
    pub(crate) async fn join(&mut self) -> Result<(), Error> {
        if self.member.is_some() {
            return Ok(());
        }
        let (log, membership) = (self.log.clone(), self.membership.clone());
        let assignee: Arc<dyn Assignee> = self.assignee.clone();
        let join = move || {
            headwater_log::block_on(follow::create_topics(&*log))?;
            let topic = Name::new(CONTROL_TOPIC)
                .map_err(|error| headwater_log::Error::Unavailable(error.to_string().into()))?;
            Ok::<_, Error>(membership.join(&GroupId(GROUP.into()), &topic, assignee)?)
        };
        self.member = Some(off_worker(self.log.is_remote(), join).await?.into());
        // A membership that gives everything away at once, asking nobody, has nobody to ask.
        self.alone = !self.log.is_remote() && *self.owned.borrow();
        Ok(())
    }

    /// Leaves the others. It may take as long as the log does.
    pub(crate) async fn leave(&mut self) {
        let member = self.member.take();
        off_worker(self.log.is_remote(), move || drop(member)).await;
    }

    /// Waits for the lead.
    pub(crate) async fn stand_by(&mut self) -> Result<(), StepDown> {
        loop {
            match self.join().await {
                Ok(()) => break,
                Err(error) if error.remedy() == Remedy::Retry => self.away(&error).await?,
                Err(error) => return Err(error.into()),
            }
        }
        self.outage.over();
        loop {
            if !*self.owned.borrow() {
                self.say(Leadership::Not(STANDING_BY.into()));
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return Err(StepDown::Shutdown),
                request = self.inbox.recv() => {
                    refuse(request, STANDING_BY)?;
                    continue;
                }
                owned = self.owned.wait_for(|owned| *owned) => drop(owned),
            }
            // A process that was stopped for a while must not fence the one that leads now.
            match self.confirm().await {
                Ok(()) => {}
                Err(error) if error.remedy() == Remedy::Retry => {
                    self.undecided(&error.into()).await?;
                    continue;
                }
                Err(_) => {
                    self.disagree().await?;
                    continue;
                }
            }
            *self.assignee.deciding.lock() = true;
            if *self.owned.borrow() {
                return Ok(());
            }
            self.stop_deciding();
        }
    }

    /// Nothing is written any more: others may.
    pub(crate) fn stop_deciding(&self) {
        *self.assignee.deciding.lock() = false;
        self.assignee.stopped.notify_all();
    }

    /// Asks the log whether it still counts us in.
    pub(crate) async fn confirm(&self) -> Result<(), headwater_log::Error> {
        let Some(member) = self.member.clone() else { return Ok(()) };
        off_worker(self.log.is_remote(), move || headwater_log::block_on(member.confirm())).await
    }

    /// Resolves when another one shall lead.
    pub(crate) fn handed_over(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut owned = self.owned.clone();
        async move {
            if owned.wait_for(|owned| !owned).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Something that it decides upon is not known: it goes on to answer.
    pub(crate) fn trouble(&self, why: &str) {
        self.ready.not_ready(why);
    }

    pub(crate) fn say(&self, standing: Leadership) {
        match &standing {
            Leadership::Leads => self.ready.ready(),
            Leadership::Not(why) => self.ready.not_ready(why.clone()),
        }
        self.standing.send_if_modified(|present| {
            let news = *present != standing;
            *present = standing;
            news
        });
    }

    /// The log is away: says so once, and waits before the next try.
    pub(crate) async fn away(&mut self, error: &Error) -> Result<(), StepDown> {
        let reason = self.note(error);
        let wait = self.outage.wait();
        self.pause(wait, &reason, false).await
    }

    /// The same while we lead, or are about to.
    pub(crate) async fn undecided(&mut self, error: &Error) -> Result<(), StepDown> {
        let reason = self.note(error);
        let wait = self.outage.wait();
        self.pause(wait, &reason, true).await
    }

    fn note(&mut self, error: &Error) -> String {
        let reason = chain(error);
        self.tell(error);
        self.say(Leadership::Not(reason.clone()));
        reason
    }

    /// Says it once; that the brokers are away was said already, once for the process.
    pub(crate) fn tell(&mut self, error: &Error) {
        let away = matches!(error, Error::Log(headwater_log::Error::Unavailable(_)));
        match away && self.log.is_remote() {
            true => self.outage.note(&chain(error)),
            false => self.outage.failed(&chain(error)),
        };
    }

    /// Waits until the membership and the claims may agree again.
    pub(crate) async fn disagree(&mut self) -> Result<(), StepDown> {
        self.say(Leadership::Not(STANDING_BY.into()));
        match self.pause(DISAGREEMENT, STANDING_BY, true).await {
            Err(StepDown::HandedOver) | Ok(()) => Ok(()),
            Err(end @ (StepDown::Shutdown | StepDown::Fenced(_) | StepDown::Failed(_))) => Err(end),
        }
    }

    /// Refuses requests for so long, or until it has to end; `leading`, or another one shall lead.
    async fn pause(&mut self, wait: Duration, why: &str, leading: bool) -> Result<(), StepDown> {
        let over = tokio::time::sleep(wait);
        tokio::pin!(over);
        let handed_over = self.handed_over();
        tokio::pin!(handed_over);
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => return Err(StepDown::Shutdown),
                () = &mut handed_over, if leading => return Err(StepDown::HandedOver),
                request = self.inbox.recv() => refuse(request, why)?,
                () = &mut over => return Ok(()),
            }
        }
    }
}

impl Drop for Election {
    /// Whatever ended it, a hand-over must not wait for it.
    fn drop(&mut self) {
        self.stop_deciding();
    }
}

/// What came in before it was known that nobody here can carry it out.
fn refuse(request: Option<QueuedCommand>, why: &str) -> Result<(), StepDown> {
    // All who could ask are gone.
    let request = request.ok_or(StepDown::Shutdown)?;
    // Who asked may have gone too.
    let _ = request.answer.send(Err(refusal(why)));
    Ok(())
}
