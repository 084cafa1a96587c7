//! The consumer group of a generation, as this process takes part in it: joined for as long as the
//! generation has something to do.
//!
//! ```text
//! group thread    join ──── commit positions, every second ──── hand over, commit, leave, delete
//! its member          assigned ──► lease ──► the supervisor starts a thread for the shard
//!                     revoked  ──► the thread commits, uploads, closes; then the call returns
//!                     lost     ──► the lease is over at once
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_log::{Assignee, GroupId, Membership, block_on};
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

/// Time between two commits of positions to the group.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
/// How often a waiting group thread looks for shutdown, which cannot wake it.
const SHUTDOWN_POLL: Duration = Duration::from_millis(50);

/// Shared by all groups of this process.
#[derive(Clone)]
pub(crate) struct GroupContext {
    pub(crate) membership: Arc<dyn Membership>,
    pub(crate) hand_over_timeout: Duration,
    /// See [`Lease`].
    pub(crate) session_guard: Duration,
    pub(crate) partition_check: Arc<PartitionCheck>,
    pub(crate) metrics: ProcessorMetrics,
    /// Wakes the supervisor: shards came or went.
    pub(crate) changed: Arc<Notify>,
}

/// The group of one generation.
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
    /// The shards that were handed over because this process left the group.
    handed_over: Mutex<Vec<HandedOverShard>>,
}

/// How a shard left this process.
pub(crate) struct HandedOverShard {
    pub(crate) shard: Identity,
    /// The shard's thread had ended by the deadline.
    pub(crate) in_time: bool,
    pub(crate) closed: Option<ClosedShard>,
}

/// Committed positions of the shards, and which of them the group has not been told.
#[derive(Default)]
struct CommittedPositions {
    all: BTreeMap<PartitionId, Offset>,
    unreported: BTreeSet<PartitionId>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum GroupIntent {
    #[default]
    Stay,
    Leave,
    /// Leave, and delete the group: its generation is retired.
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
            handed_over: Mutex::default(),
        })
    }

    /// The leases that this process holds. None before the group is joined: a shard's thread asks
    /// the member.
    pub(crate) fn leases(&self) -> Vec<Arc<Lease>> {
        if self.handle.member().is_none() {
            return Vec::new();
        }
        self.leases.lock().values().filter(|lease| !lease.is_over()).cloned().collect()
    }

    /// The shard has committed up to this position. The group is told later.
    pub(crate) fn note_committed(&self, partition: PartitionId, position: Offset) {
        let mut positions = self.positions.lock();
        if positions.all.insert(partition, position) != Some(position) {
            positions.unreported.insert(partition);
        }
    }

    /// Asks the group's thread to leave.
    pub(crate) fn leave(&self, delete: bool) {
        *self.intent.lock() = if delete { GroupIntent::Delete } else { GroupIntent::Leave };
        self.intent_changed.notify_all();
    }

    /// Takes the shards that were handed over because this process left the group.
    pub(crate) fn take_handed_over(&self) -> Vec<HandedOverShard> {
        std::mem::take(&mut *self.handed_over.lock())
    }

    /// Joins, stays until the intent or shutdown ends that, and leaves. Blocks.
    pub(crate) fn run(self: &Arc<Self>, shutdown: &Shutdown, condition: Condition) {
        let joined = self.join(shutdown, &condition);
        condition.remove();
        if joined {
            self.context.changed.notify_one();
            while self.intent(shutdown) == GroupIntent::Stay {
                self.commit_positions();
                self.wait(COMMIT_INTERVAL, shutdown);
            }
            self.hand_over_all_and_leave();
        }
        if self.intent(shutdown) == GroupIntent::Delete
            && let Err(error) = block_on(self.context.membership.delete(&self.id))
        {
            // Kafka deletes an empty group by itself after a while.
            tracing::info!(group = %self.id, %error, "group not deleted");
        }
    }

    fn join(self: &Arc<Self>, shutdown: &Shutdown, condition: &Condition) -> bool {
        let mut backoff = FIRST_BACKOFF;
        while self.intent(shutdown) == GroupIntent::Stay {
            match self.context.membership.join(&self.id, &self.topic, self.clone()) {
                Ok(member) => {
                    self.handle.set(member);
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

    /// Waits so long, unless the intent changes or shutdown begins.
    fn wait(&self, time: Duration, shutdown: &Shutdown) {
        let until = Instant::now() + time;
        let mut intent = self.intent.lock();
        while *intent == GroupIntent::Stay && !shutdown.is_cancelled() {
            let slice = (Instant::now() + SHUTDOWN_POLL).min(until);
            self.intent_changed.wait_until(&mut intent, slice);
            if Instant::now() >= until {
                return;
            }
        }
    }

    /// Tells the group the positions of the shards that this process surely owns.
    fn commit_positions(&self) {
        let Some(member) = self.handle.member() else { return };
        let leases = self.leases.lock();
        let owned = |partition| leases.get(&partition).is_some_and(|lease| lease.may_write());
        let mut positions = self.positions.lock();
        let partitions: Vec<_> =
            positions.unreported.iter().filter(|partition| owned(**partition)).copied().collect();
        let latest: Vec<_> = partitions
            .iter()
            .filter_map(|partition| Some((*partition, *positions.all.get(partition)?)))
            .collect();
        for partition in partitions {
            positions.unreported.remove(&partition);
        }
        drop((positions, leases));
        if !latest.is_empty() {
            member.commit(&latest);
        }
    }

    fn hand_over_all_and_leave(&self) {
        let all: Vec<_> = self.leases.lock().keys().copied().collect();
        // The process has about as long as one hand-over may take, and leaving takes time too.
        let limit = self.context.hand_over_timeout.mul_f64(0.9);
        *self.handed_over.lock() = self.hand_over(&all, limit);
        self.handle.leave();
        tracing::info!(group = %self.id, "group left");
        self.context.changed.notify_one();
    }

    /// Waits until the shards are closed, at most so long. Afterwards nothing is written for them.
    fn hand_over(&self, partitions: &[PartitionId], limit: Duration) -> Vec<HandedOverShard> {
        let until = Instant::now() + limit;
        let leases: Vec<_> = {
            let leases = self.leases.lock();
            partitions.iter().filter_map(|partition| leases.get(partition)).cloned().collect()
        };
        for lease in &leases {
            lease.release_by(until);
        }
        for lease in &leases {
            lease.await_idle(until);
        }
        // Before the leases end: a position is committed for an owned shard only.
        self.commit_positions();
        let handed_over: Vec<_> = leases
            .iter()
            .map(|lease| {
                let (shard, (in_time, closed)) = (lease.identity(), lease.expire());
                if !in_time {
                    tracing::warn!(%shard, ?limit, "shard not closed in time; it writes nothing more");
                }
                let outcome =
                    if in_time { HandOverOutcome::InTime } else { HandOverOutcome::Late };
                self.context.metrics.handed_over(outcome);
                HandedOverShard { shard, in_time, closed }
            })
            .collect();
        self.forget(partitions);
        handed_over
    }

    fn forget(&self, partitions: &[PartitionId]) {
        let (mut leases, mut positions) = (self.leases.lock(), self.positions.lock());
        for partition in partitions {
            leases.remove(partition);
            positions.all.remove(partition);
            positions.unreported.remove(partition);
        }
    }
}

impl Assignee for ConsumerGroup {
    fn assigned(&self, partitions: &[PartitionId]) {
        let mut leases = self.leases.lock();
        for &partition in partitions {
            if partition.0 >= self.partitions {
                // The generation has no shard for this partition, and its keys belong to others.
                self.context.partition_check.has_at_least(&self.topic, partition.0 + 1);
                continue;
            }
            let present = leases.get(&partition).is_some_and(|lease| !lease.is_over());
            if !present {
                let identity = Identity { generation: self.generation, partition };
                let lease = Lease::new(identity, self.handle.clone(), self.context.session_guard);
                leases.insert(partition, lease);
            }
        }
        drop(leases);
        tracing::info!(group = %self.id, partitions = %PartitionList(partitions), "partitions assigned");
        self.context.changed.notify_one();
    }

    fn revoked(&self, partitions: &[PartitionId]) {
        let begun = Instant::now();
        let handed_over = self.hand_over(partitions, self.context.hand_over_timeout);
        if !handed_over.is_empty() {
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

/// The group of a generation. Kafka's tools show the generation's lag under this name.
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
