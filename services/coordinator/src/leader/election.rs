//! The election: all coordinators are one group on the control topic, which has one partition. The
//! member that has the partition leads.

use std::{sync::Arc, time::Duration};

use headwater_control::CONTROL_TOPIC;
use headwater_log::{Assignee, GroupId, Log, Member, Membership};
use headwater_service::{Node, follow};
use headwater_types::{Name, PartitionId};
use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use crate::leader::control_log::Error;

const GROUP: &str = "headwater.coordinator";
/// How long a hand-over waits for an append. After that the successor's claim fences this one.
const HAND_OVER: Duration = Duration::from_secs(15);

/// Hears from the membership whether this coordinator is elected.
struct ElectionAssignee {
    elected: watch::Sender<bool>,
    /// Whether this coordinator acts on its election: a hand-over waits until it does not.
    acting: Mutex<bool>,
    stopped: Condvar,
}

impl ElectionAssignee {
    fn stop_acting(&self) {
        *self.acting.lock() = false;
        self.stopped.notify_all();
    }
}

impl Assignee for ElectionAssignee {
    fn assigned(&self, partitions: &[PartitionId]) {
        if partitions.contains(&PartitionId::ONLY) {
            self.elected.send_replace(true);
        }
    }

    fn revoked(&self, partitions: &[PartitionId]) {
        if partitions.contains(&PartitionId::ONLY) {
            self.elected.send_replace(false);
            let mut acting = self.acting.lock();
            let outcome = self.stopped.wait_while_for(&mut acting, |acting| *acting, HAND_OVER);
            if outcome.timed_out() {
                tracing::warn!("the lead is handed over although an append has not ended");
            }
        }
    }

    fn lost(&self, partitions: &[PartitionId]) {
        if partitions.contains(&PartitionId::ONLY) {
            self.elected.send_replace(false);
        }
    }
}

/// This coordinator's part in the election.
pub(super) struct Election {
    log: Arc<dyn Log>,
    membership: Arc<dyn Membership>,
    assignee: Arc<ElectionAssignee>,
    elected: watch::Receiver<bool>,
    member: Option<Arc<dyn Member>>,
}

impl Election {
    pub(super) fn new(node: &Node) -> Self {
        let (sender, elected) = watch::channel(false);
        let assignee = ElectionAssignee {
            elected: sender,
            acting: Mutex::new(false),
            stopped: Condvar::new(),
        };
        Self {
            log: node.log.clone(),
            membership: node.membership.clone(),
            assignee: Arc::new(assignee),
            elected,
            member: None,
        }
    }

    /// Whether no other process can be elected. Then another coordinator is a mistake.
    pub(super) fn is_alone(&self) -> bool {
        self.membership.is_alone()
    }

    /// Joins the group, unless it has.
    pub(super) async fn join(&mut self) -> Result<(), Error> {
        if self.member.is_none() {
            follow::create_topics(&*self.log).await?;
            let topic = Name::new(CONTROL_TOPIC)
                .map_err(|error| headwater_log::Error::Unavailable(error.to_string().into()))?;
            let group = GroupId(GROUP.into());
            self.member = Some(self.membership.join(&group, &topic, self.assignee.clone())?.into());
        }
        Ok(())
    }

    /// Leaves the group, for as long as the log takes: to leave is to drop the member, which
    /// blocks.
    pub(super) async fn leave(&mut self) {
        let member = self.member.take();
        let left = tokio::task::spawn_blocking(move || drop(member)).await;
        if let Err(error) = left {
            tracing::warn!(%error, "the group of coordinators was not left in good order");
        }
    }

    /// Asks the group whether it still counts this coordinator in. A process that was stopped for a
    /// while does not know, and must not fence the coordinator that leads now.
    pub(super) async fn confirm(&self) -> Result<(), headwater_log::Error> {
        match &self.member {
            Some(member) => member.confirm().await,
            None => Ok(()),
        }
    }

    pub(super) fn is_elected(&self) -> bool {
        *self.elected.borrow()
    }

    /// Resolves once this coordinator is elected.
    pub(super) async fn elected(&self) {
        self.becomes(true).await;
    }

    /// Resolves once another coordinator shall lead.
    pub(super) fn handed_over(&self) -> impl Future<Output = ()> + Send + 'static {
        self.becomes(false)
    }

    fn becomes(&self, wanted: bool) -> impl Future<Output = ()> + Send + 'static {
        let mut elected = self.elected.clone();
        async move {
            // The assignee lives longer than the election, so the channel does not close.
            if elected.wait_for(|elected| *elected == wanted).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// From now on a hand-over waits for [`stop_acting`](Self::stop_acting). `false` if another
    /// coordinator shall lead by now.
    pub(super) fn act(&self) -> bool {
        *self.assignee.acting.lock() = true;
        let elected = self.is_elected();
        if !elected {
            self.stop_acting();
        }
        elected
    }

    /// This coordinator appends nothing more: a hand-over may end.
    pub(super) fn stop_acting(&self) {
        self.assignee.stop_acting();
    }
}

impl Drop for Election {
    /// However the leader's task ended, a hand-over must not wait for it.
    fn drop(&mut self) {
        self.stop_acting();
    }
}
