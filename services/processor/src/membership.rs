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
    lease::{Closed, Lease, Seat},
    metrics::{HandOver, ProcessorMetrics},
    topics::Topics,
    trouble::Trouble,
};

/// How often the groups are told how far the shards are.
const COMMIT: Duration = Duration::from_secs(1);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// What all groups share.
#[derive(Clone)]
pub(crate) struct Terms {
    pub(crate) membership: Arc<dyn Membership>,
    /// How long a hand-over may take.
    pub(crate) hand_over: Duration,
    /// See [`Lease`].
    pub(crate) guard: Duration,
    pub(crate) topics: Arc<Topics>,
    pub(crate) metrics: ProcessorMetrics,
    /// Wakes the fleet: shards came or went.
    pub(crate) changed: Arc<Notify>,
}

/// The group of a generation, as this process sees it.
pub(crate) struct Group {
    terms: Terms,
    generation: GenerationId,
    id: GroupId,
    topic: Name,
    /// The partitions that the generation has shards for.
    partitions: u32,
    seat: Arc<Seat>,
    leases: Mutex<BTreeMap<PartitionId, Arc<Lease>>>,
    positions: Mutex<Positions>,
    wish: Mutex<Wish>,
    wished: Condvar,
    /// Shards that were handed over because this process leaves.
    parting: Mutex<Vec<(Identity, bool, Option<Closed>)>>,
}

/// Committed positions of our shards, and which of them the group was not told yet.
#[derive(Default)]
struct Positions {
    all: BTreeMap<PartitionId, Offset>,
    untold: BTreeSet<PartitionId>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Wish {
    #[default]
    Stay,
    Leave,
    /// And delete the group: its generation is retired.
    Delete,
}

impl Group {
    pub(crate) fn new(
        terms: Terms,
        generation: GenerationId,
        topic: Name,
        partitions: u32,
    ) -> Arc<Self> {
        Arc::new(Self {
            terms,
            generation,
            id: group_id(generation),
            topic,
            partitions,
            seat: Arc::default(),
            leases: Mutex::default(),
            positions: Mutex::default(),
            wish: Mutex::default(),
            wished: Condvar::new(),
            parting: Mutex::default(),
        })
    }

    /// The shards that are ours now. None before the group is joined: a shard's thread asks the member.
    pub(crate) fn leases(&self) -> Vec<Arc<Lease>> {
        if self.seat.member().is_none() {
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
        *self.wish.lock() = if delete { Wish::Delete } else { Wish::Leave };
        self.wished.notify_all();
    }

    /// What became of the shards that this process gave up because it left.
    pub(crate) fn parting(&self) -> Vec<(Identity, bool, Option<Closed>)> {
        std::mem::take(&mut *self.parting.lock())
    }

    /// The life of a member; it blocks.
    pub(crate) fn run(self: &Arc<Self>, shutdown: &Shutdown, condition: Condition) {
        let joined = self.join(shutdown, &condition);
        condition.remove();
        if joined {
            self.terms.changed.notify_one();
            while self.wish(shutdown) == Wish::Stay {
                self.tell();
                self.wait(COMMIT, shutdown);
            }
            self.part();
        }
        if self.wish(shutdown) == Wish::Delete
            && let Err(error) = headwater_log::block_on(self.terms.membership.delete(&self.id))
        {
            // It goes by itself some time after its last member.
            tracing::info!(group = %self.id, %error, "group not deleted");
        }
    }

    fn join(self: &Arc<Self>, shutdown: &Shutdown, condition: &Condition) -> bool {
        let mut backoff = FIRST_BACKOFF;
        while self.wish(shutdown) == Wish::Stay {
            match self.terms.membership.join(&self.id, &self.topic, self.clone()) {
                Ok(member) => {
                    self.seat.take(member);
                    tracing::info!(group = %self.id, topic = %self.topic, "group joined");
                    return true;
                }
                Err(error) => {
                    let reason = Trouble::from(error).reason;
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

    fn wish(&self, shutdown: &Shutdown) -> Wish {
        let wish = *self.wish.lock();
        if wish == Wish::Stay && shutdown.is_cancelled() { Wish::Leave } else { wish }
    }

    fn wait(&self, time: Duration, shutdown: &Shutdown) {
        let until = Instant::now() + time;
        let mut wish = self.wish.lock();
        while *wish == Wish::Stay && !shutdown.is_cancelled() {
            // Shutdown has no way to wake a thread, so it is asked now and then.
            let slice = (Instant::now() + Duration::from_millis(50)).min(until);
            self.wished.wait_until(&mut wish, slice);
            if Instant::now() >= until {
                return;
            }
        }
    }

    /// Tells the group how far the shards are.
    fn tell(&self) {
        let Some(member) = self.seat.member() else { return };
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
        let gone = self.hand_over(&all, self.terms.hand_over.mul_f64(0.9));
        *self.parting.lock() = gone;
        self.seat.leave();
        tracing::info!(group = %self.id, "group left");
        self.terms.changed.notify_one();
    }

    /// Waits until the shards are closed, at most so long. Afterwards nothing is written for them.
    fn hand_over(
        &self,
        partitions: &[PartitionId],
        limit: Duration,
    ) -> Vec<(Identity, bool, Option<Closed>)> {
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
                self.terms.metrics.handed_over(if ended { HandOver::Closed } else { HandOver::Late });
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

impl Assignee for Group {
    fn assigned(&self, partitions: &[PartitionId]) {
        let mut leases = self.leases.lock();
        for &partition in partitions {
            if partition.0 >= self.partitions {
                // Nobody made a shard for it, and its keys came from other partitions.
                self.terms.topics.has_at_least(&self.topic, partition.0 + 1);
                continue;
            }
            let present = leases.get(&partition).is_some_and(|lease| !lease.is_over());
            if !present {
                let identity = Identity { generation: self.generation, partition };
                leases.insert(partition, Lease::new(identity, self.seat.clone(), self.terms.guard));
            }
        }
        drop(leases);
        tracing::info!(group = %self.id, partitions = %List(partitions), "partitions assigned");
        self.terms.changed.notify_one();
    }

    fn revoked(&self, partitions: &[PartitionId]) {
        let begun = Instant::now();
        let gone = self.hand_over(partitions, self.terms.hand_over);
        if !gone.is_empty() {
            let seconds = begun.elapsed().as_secs_f64();
            tracing::info!(group = %self.id, partitions = %List(partitions), seconds, "partitions handed over");
        }
        self.terms.changed.notify_one();
    }

    fn lost(&self, partitions: &[PartitionId]) {
        let leases = self.leases.lock();
        for lease in partitions.iter().filter_map(|partition| leases.get(partition)) {
            lease.lose();
            self.terms.metrics.handed_over(HandOver::Lost);
        }
        drop(leases);
        self.forget(partitions);
        tracing::warn!(group = %self.id, partitions = %List(partitions), "partitions lost: the group had not heard of this process for too long");
        self.terms.changed.notify_one();
    }
}

/// The group of a generation: every Kafka tool shows its lag under this name.
pub(crate) fn group_id(generation: GenerationId) -> GroupId {
    GroupId(format!("headwater.{generation}"))
}

/// Partitions for a log line.
struct List<'a>(&'a [PartitionId]);

impl std::fmt::Display for List<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, partition) in self.0.iter().enumerate() {
            write!(f, "{}{partition}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}
