//! Gives every shard that this process owns, and that has something to do, a thread; and keeps the
//! process in the groups of the generations that have something to do.
//!
//! ```text
//!  control state ──► join or leave groups ──► leases ──► start shard threads
//!       ▲                                        │
//!       └── wait for a change of either ◄────────┘        shutdown ──► wait for all groups
//! ```

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use headwater_control::{ControlState, GenerationEntry, Role, ShardDuty};
use headwater_service::{OnFailure, Shutdown, Tasks};
use headwater_sql::parse_stream;
use headwater_state::Identity;
use headwater_types::GenerationId;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{
    assignment::{
        group::{ConsumerGroup, GroupContext},
        lease::Lease,
    },
    checkpoint::local::remove_local,
    context::ProcessorContext,
    shard::thread::{ShardThread, ThreadEnd},
};

/// How often retired generations are looked at: nothing wakes the supervisor when another process
/// has deleted a shard.
const RETIRED_POLL: Duration = Duration::from_secs(1);

type RunningShards = Arc<Mutex<HashMap<Identity, Arc<Lease>>>>;

pub(crate) struct ShardSupervisor {
    context: Arc<ProcessorContext>,
    group_context: GroupContext,
    tasks: Tasks,
    groups: BTreeMap<GenerationId, Arc<ConsumerGroup>>,
    running: RunningShards,
    /// Shards that were deleted here and whose status is still on the board.
    deleted: Arc<Mutex<HashSet<Identity>>>,
    /// Retired generations of which nothing is left.
    gone: HashSet<GenerationId>,
    /// Generations whose stream is not understood, so that their topic is not known.
    unparsable: HashSet<GenerationId>,
    /// Each group thread holds a clone.
    group_threads: Arc<()>,
}

impl Drop for ShardSupervisor {
    /// No status is reported after the supervisor's end, whatever ended it.
    fn drop(&mut self) {
        self.context.status_reporter.close();
    }
}

impl ShardSupervisor {
    pub(crate) fn new(
        context: Arc<ProcessorContext>,
        group_context: GroupContext,
        tasks: Tasks,
    ) -> Self {
        Self {
            context,
            group_context,
            tasks,
            groups: BTreeMap::new(),
            running: Arc::default(),
            deleted: Arc::default(),
            gone: HashSet::new(),
            unparsable: HashSet::new(),
            group_threads: Arc::default(),
        }
    }

    /// Runs until shutdown, on a thread of its own, and then until all groups are left.
    pub(crate) fn run(mut self, shutdown: &Shutdown) {
        let runtime = self.context.runtime.clone();
        let mut control = self.context.control.clone();
        while !shutdown.is_cancelled() {
            let retiring = self.reconcile();
            let changed: Arc<Notify> = self.group_context.changed.clone();
            runtime.block_on(async {
                tokio::select! {
                    () = control.control_changed() => {}
                    () = changed.notified() => {}
                    () = shutdown.cancelled() => {}
                    () = tokio::time::sleep(RETIRED_POLL), if retiring => {}
                }
            });
        }
        self.await_groups();
    }

    /// Waits until every group thread has handed its shards over and left, and sums up how that
    /// went.
    fn await_groups(&self) {
        while Arc::strong_count(&self.group_threads) > 1 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let (mut shards, mut late, mut uploaded, mut outbox) = (0, 0, 0, 0);
        for handed_over in self.groups.values().flat_map(|group| group.take_handed_over()) {
            shards += 1;
            late += usize::from(!handed_over.in_time);
            if let Some(closed) = handed_over.closed {
                uploaded += usize::from(closed.uploaded);
                outbox += closed.outbox;
            } else if !handed_over.in_time {
                let shard = handed_over.shard;
                tracing::warn!(%shard, "shard was still busy at the end; it goes on from its last commit");
            }
        }
        tracing::info!(shards, late, uploaded, outbox, "all shards given up, all groups left");
        let summary = format!(
            "{shards} shards given up, {late} of them late, {uploaded} with a checkpoint in the store, {outbox} outputs left to their next owners"
        );
        *self.context.summary.lock() = Some(summary);
    }

    /// Joins and leaves groups and starts shard threads, as the control state asks. Returns whether
    /// a retired generation has to be looked at again soon.
    fn reconcile(&mut self) -> bool {
        let control = self.context.control.current();
        let mut retiring = false;
        let mut wanted = HashSet::new();
        self.forget_deleted();
        for entry in control.generations().values() {
            let has_work = match entry.role {
                Role::Serving | Role::Replaying | Role::Retained => true,
                // It will be retired soon: a member stays to delete its shards.
                Role::Ended => self.groups.contains_key(&entry.id),
                Role::Retired => {
                    let left = self.is_left(entry);
                    retiring |= left;
                    left
                }
            };
            if has_work {
                wanted.insert(entry.id);
                self.join_group(entry);
            }
        }
        let unwanted: Vec<_> =
            self.groups.keys().filter(|id| !wanted.contains(id)).copied().collect();
        for id in unwanted {
            if let Some(group) = self.groups.remove(&id) {
                let entry = control.generations().get(&id);
                group.leave(entry.is_some_and(|entry| entry.role == Role::Retired));
            }
        }
        self.start_shards(&control);
        self.context.plans.retain(|id| wanted.contains(&id));
        retiring
    }

    /// A shard whose late status comes back to the board after its deletion is deleted again.
    fn forget_deleted(&self) {
        let board = self.context.control.board();
        self.deleted.lock().retain(|shard| board.get(shard.generation, shard.partition).is_some());
    }

    /// Whether something of a retired generation is left. Its owner deletes a shard, and its status
    /// last. Copies on this disk of shards that are already deleted are removed here.
    fn is_left(&mut self, entry: &GenerationEntry) -> bool {
        if self.gone.contains(&entry.id) {
            return false;
        }
        let board = self.context.control.board();
        let mut left = false;
        for partition in entry.partitions() {
            let identity = Identity { generation: entry.id, partition };
            if board.get(entry.id, partition).is_some() {
                left = true;
            } else if self.running.lock().contains_key(&identity) {
                left |= !self.deleted.lock().contains(&identity);
            } else if let Err(error) = remove_local(&self.context.data, &identity) {
                tracing::warn!(shard = %identity, %error, "old state not removed");
                left = true;
            }
        }
        if !left {
            self.gone.insert(entry.id);
        }
        left
    }

    /// Joins the generation's group, unless this process is in it.
    fn join_group(&mut self, entry: &GenerationEntry) {
        if self.groups.contains_key(&entry.id) {
            return;
        }
        // A view that is not understood is reported by its shards. Without a topic there are none.
        let topic = match parse_stream(&entry.stream_sql) {
            Ok(stream) => stream.topic,
            Err(error) => {
                if self.unparsable.insert(entry.id) {
                    let condition = self.context.health.condition(format!("group-{}", entry.id));
                    condition.not_ready(format!(
                        "generation {} of view {} cannot be run, for its stream is not understood: {error}; run the \
                         Headwater that began it",
                        entry.id, entry.view
                    ));
                }
                return;
            }
        };
        let partitions = u32::try_from(entry.partitions().count()).unwrap_or(u32::MAX);
        let group = ConsumerGroup::new(self.group_context.clone(), entry.id, topic, partitions);
        self.groups.insert(entry.id, group.clone());
        let name = format!("group-{}", entry.id);
        let condition = self.context.health.condition(name.clone());
        let mut once = Some((condition, self.group_threads.clone()));
        self.tasks.spawn_thread(name, OnFailure::Stop, move |shutdown| {
            if let Some((condition, _alive)) = once.take() {
                group.run(&shutdown, condition);
            }
            Ok(())
        });
    }

    fn start_shards(&self, control: &ControlState) {
        for group in self.groups.values() {
            for lease in group.leases() {
                let Identity { generation, partition } = lease.identity();
                let wanted = match control.shard_duty(generation, partition) {
                    ShardDuty::Run { .. } => true,
                    ShardDuty::Stop => false,
                    ShardDuty::Delete => {
                        let board = self.context.control.board();
                        board.get(generation, partition).is_some()
                            && !self.deleted.lock().contains(&lease.identity())
                    }
                };
                if wanted {
                    self.start_shard(group, lease);
                }
            }
        }
    }

    /// Starts the shard's thread, unless one runs: that of a former lease may still be closing the
    /// database.
    fn start_shard(&self, group: &Arc<ConsumerGroup>, lease: Arc<Lease>) {
        let identity = lease.identity();
        {
            let mut running = self.running.lock();
            if running.contains_key(&identity) || !lease.attach_thread() {
                return;
            }
            running.insert(identity, lease.clone());
        }
        let mut thread = ShardThread::new(self.context.clone(), group.clone(), lease.clone());
        let deleted = self.deleted.clone();
        let running = RunningShard {
            identity,
            lease,
            running: self.running.clone(),
            changed: self.group_context.changed.clone(),
        };
        let name = format!("shard-{}-{}", identity.generation, identity.partition);
        self.tasks.spawn_thread(name, OnFailure::restart(), move |shutdown| {
            // The closure owns it as a whole, so that it is dropped with the thread.
            let _running = &running;
            if thread.run(&shutdown) == ThreadEnd::Deleted {
                deleted.lock().insert(identity);
            }
            Ok(())
        });
    }
}

/// A shard is running for as long as this lives.
struct RunningShard {
    identity: Identity,
    lease: Arc<Lease>,
    running: RunningShards,
    changed: Arc<Notify>,
}

impl Drop for RunningShard {
    fn drop(&mut self) {
        self.running.lock().remove(&self.identity);
        self.lease.detach_thread();
        self.changed.notify_one();
    }
}
