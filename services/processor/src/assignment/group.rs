//! Which shards are ours: one consumer group per generation, joined for as long as the generation has
//! something to do.
//!
//! ```text
//! group thread    join ───────── commit, every second ───────── hand over, commit, leave, delete
//! its member          assigned ──► lease ──► the fleet starts a thread for the shard
//!                     revoked  ──► the thread commits, uploads, closes; the call returns when it has
//!                     lost     ──► the lease is over at once
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_log::{Assignee, GroupId, Membership};
use headwater_service::{Condition, Shutdown};
use headwater_state::Identity;
use headwater_types::{GenerationId, Name, Offset, PartitionId};
use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;

use crate::{
    assignment::{
        lease::{ClosedShard, GroupHandle, Lease},
        partition_check::PartitionCheck,
    },
    error::ShardError,
    metrics::{HandOverOutcome, ProcessorMetrics},
};

/// How often the groups are told how far the shards are.
const COMMIT: Duration = Duration::from_secs(1);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// What all groups share.
#[derive(Clone)]
pub(crate) struct GroupContext {
    pub(crate) membership: Arc<dyn Membership>,
    /// How long a hand-over may take.
    pub(crate) hand_over: Duration,
    /// See [`Lease`].
    pub(crate) guard: Duration,
    pub(crate) partition_check: Arc<PartitionCheck>,
    pub(crate) metrics: ProcessorMetrics,
    /// Wakes the fleet: shards came or went.
    pub(crate) changed: Arc<Notify>,
}

/// The group of a generation, as this process sees it.
pub(crate) struct ConsumerGroup {
    context: GroupContext,
    generation: GenerationId,
    id: GroupId,
    topic: Name,
    /// The partitions that the generation has shards for.
    partitions: u32,
    handle: Arc<GroupHandle>,
    leases: Mutex<BTreeMap<PartitionId, Arc<Lease>>>,
    positions: Mutex<CommittedPositions>,
    intent: Mutex<GroupIntent>,
    intent_changed: Condvar,
    /// Shards that were handed over because this process leaves.
    parting: Mutex<Vec<(Identity, bool, Option<ClosedShard>)>>,
}

/// Committed positions of our shards, and which of them the group was not told yet.
#[derive(Default)]
struct CommittedPositions {
    all: BTreeMap<PartitionId, Offset>,
    untold: BTreeSet<PartitionId>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum GroupIntent {
    #[default]
    Stay,
    Leave,
    /// And delete the group: its generation is retired.
    Delete,
}

impl ConsumerGroup {
    pub(crate) fn new(
        context: GroupContext,
        generation: GenerationId,
        topic: Name,
        partitions: u32,
    ) -> Arc<Self> {
        Arc::new(Self {
            context,
            generation,
            id: group_id(generation),
            topic,
            partitions,
            handle: Arc::default(),
            leases: Mutex::default(),
            positions: Mutex::default(),
            intent: Mutex::default(),
            intent_changed: Condvar::new(),
            parting: Mutex::default(),
        })
    }

    /// The shards that are ours now. None before the group is joined: a shard's thread asks the member.
    pub(crate) fn leases(&self) -> Vec<Arc<Lease>> {
        if self.handle.member().is_none() {
            return Vec::new();
        }
        self.leases.lock().values().filter(|lease| !lease.is_over()).cloned().collect()
    }

    /// The shard has committed so far. The group is told later.
    pub(crate) fn committed(&self, partition: PartitionId, position: Offset) {
        let mut positions = self.positions.lock();
        if positions.all.insert(partition, position) != Some(position) {
            positions.untold.insert(partition);
        }
    }

    pub(crate) fn leave(&self, delete: bool) {
        *self.intent.lock() = if delete { GroupIntent::Delete } else { GroupIntent::Leave };
        self.intent_changed.notify_all();
    }

    /// What became of the shards that this process gave up because it left.
    pub(crate) fn parting(&self) -> Vec<(Identity, bool, Option<ClosedShard>)> {
        std::mem::take(&mut *self.parting.lock())
    }

    /// The life of a member; it blocks.
    pub(crate) fn run(self: &Arc<Self>, shutdown: &Shutdown, condition: Condition) {
        let joined = self.join(shutdown, &condition);
        condition.remove();
        if joined {
            self.context.changed.notify_one();
            while self.intent(shutdown) == GroupIntent::Stay {
                self.tell();
                self.wait(COMMIT, shutdown);
            }
            self.part();
        }
        if self.intent(shutdown) == GroupIntent::Delete
            && let Err(error) = self.context.membership.delete(&self.id)
        {
            // It goes by itself some time after its last member.
            tracing::info!(group = %self.id, %error, "group not deleted");
        }
    }

    fn join(self: &Arc<Self>, shutdown: &Shutdown, condition: &Condition) -> bool {
        let mut backoff = FIRST_BACKOFF;
        while self.intent(shutdown) == GroupIntent::Stay {
            match self.context.membership.join(&self.id, &self.topic, self.clone()) {
                Ok(member) => {
                    self.handle.take(member);
                    tracing::info!(group = %self.id, topic = %self.topic, "group joined");
                    return true;
                }
                Err(error) => {
                    let reason = ShardError::from(error).reason;
                    if backoff == FIRST_BACKOFF {
                        tracing::warn!(group = %self.id, reason, "group cannot be joined, trying again");
                    }
                    condition.not_ready(format!("group {} cannot be joined: {reason}", self.id));
                }
            }
            self.wait(backoff, shutdown);
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
        false
    }

    fn intent(&self, shutdown: &Shutdown) -> GroupIntent {
        let intent = *self.intent.lock();
        if intent == GroupIntent::Stay && shutdown.is_cancelled() {
            GroupIntent::Leave
        } else {
            intent
        }
    }

    fn wait(&self, time: Duration, shutdown: &Shutdown) {
        let until = Instant::now() + time;
        let mut intent = self.intent.lock();
        while *intent == GroupIntent::Stay && !shutdown.is_cancelled() {
            // Shutdown has no way to wake a thread, so it is asked now and then.
            let slice = (Instant::now() + Duration::from_millis(50)).min(until);
            self.intent_changed.wait_until(&mut intent, slice);
            if Instant::now() >= until {
                return;
            }
        }
    }

    /// Tells the group how far the shards are.
    fn tell(&self) {
        let Some(member) = self.handle.member() else { return };
        let leases = self.leases.lock();
        let ours = |partition| leases.get(&partition).is_some_and(|lease| lease.allows());
        let mut positions = self.positions.lock();
        let told: Vec<_> =
            positions.untold.iter().filter(|partition| ours(**partition)).copied().collect();
        let latest: Vec<_> = told
            .iter()
            .filter_map(|partition| Some((*partition, *positions.all.get(partition)?)))
            .collect();
        for partition in told {
            positions.untold.remove(&partition);
        }
        drop((positions, leases));
        if !latest.is_empty() {
            member.commit(&latest);
        }
    }

    /// Hands all shards over and leaves.
    fn part(&self) {
        let all: Vec<_> = self.leases.lock().keys().copied().collect();
        // The process has about as long as a hand-over, and leaving takes a moment too.
        let gone = self.hand_over(&all, self.context.hand_over.mul_f64(0.9));
        *self.parting.lock() = gone;
        self.handle.leave();
        tracing::info!(group = %self.id, "group left");
        self.context.changed.notify_one();
    }

    /// Waits until the shards are closed, at most so long. Afterwards nothing is written for them.
    fn hand_over(
        &self,
        partitions: &[PartitionId],
        limit: Duration,
    ) -> Vec<(Identity, bool, Option<ClosedShard>)> {
        let until = Instant::now() + limit;
        let leases: Vec<_> = {
            let leases = self.leases.lock();
            partitions.iter().filter_map(|partition| leases.get(partition)).cloned().collect()
        };
        for lease in &leases {
            lease.leave(until);
        }
        // Told while they are still ours: each shard's last position comes before its end.
        for lease in &leases {
            lease.await_idle(until);
        }
        self.tell();
        let gone: Vec<_> = leases
            .iter()
            .map(|lease| {
                let (ended, closed) = lease.conclude();
                if !ended {
                    tracing::warn!(shard = %lease.identity(), ?limit, "shard not closed in time; it writes nothing more");
                }
                self.context.metrics.handed_over(if ended { HandOverOutcome::InTime } else { HandOverOutcome::Late });
                (lease.identity(), ended, closed)
            })
            .collect();
        self.forget(partitions);
        gone
    }

    fn forget(&self, partitions: &[PartitionId]) {
        let (mut leases, mut positions) = (self.leases.lock(), self.positions.lock());
        for partition in partitions {
            leases.remove(partition);
            positions.all.remove(partition);
            positions.untold.remove(partition);
        }
    }
}

impl Assignee for ConsumerGroup {
    fn assigned(&self, partitions: &[PartitionId]) {
        let mut leases = self.leases.lock();
        for &partition in partitions {
            if partition.0 >= self.partitions {
                // Nobody made a shard for it, and its keys came from other partitions.
                self.context.partition_check.has_at_least(&self.topic, partition.0 + 1);
                continue;
            }
            let present = leases.get(&partition).is_some_and(|lease| !lease.is_over());
            if !present {
                let identity = Identity { generation: self.generation, partition };
                leases.insert(
                    partition,
                    Lease::new(identity, self.handle.clone(), self.context.guard),
                );
            }
        }
        drop(leases);
        tracing::info!(group = %self.id, partitions = %PartitionList(partitions), "partitions assigned");
        self.context.changed.notify_one();
    }

    fn revoked(&self, partitions: &[PartitionId]) {
        let begun = Instant::now();
        let gone = self.hand_over(partitions, self.context.hand_over);
        if !gone.is_empty() {
            let seconds = begun.elapsed().as_secs_f64();
            tracing::info!(group = %self.id, partitions = %PartitionList(partitions), seconds, "partitions handed over");
        }
        self.context.changed.notify_one();
    }

    fn lost(&self, partitions: &[PartitionId]) {
        let leases = self.leases.lock();
        for lease in partitions.iter().filter_map(|partition| leases.get(partition)) {
            lease.lose();
            self.context.metrics.handed_over(HandOverOutcome::Lost);
        }
        drop(leases);
        self.forget(partitions);
        tracing::warn!(group = %self.id, partitions = %PartitionList(partitions), "partitions lost: the group had not heard of this process for too long");
        self.context.changed.notify_one();
    }
}

/// The group of a generation: every Kafka tool shows its lag under this name.
pub(crate) fn group_id(generation: GenerationId) -> GroupId {
    GroupId(format!("headwater.{generation}"))
}

/// Partitions for a log line.
struct PartitionList<'a>(&'a [PartitionId]);

impl std::fmt::Display for PartitionList<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, partition) in self.0.iter().enumerate() {
            write!(f, "{}{partition}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}
