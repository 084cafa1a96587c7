//! Sees to it that every shard that is ours and has something to do has a thread, and that we are in the
//! groups of the generations that have.

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

/// How often the fleet looks at what has no way to wake it: shards that others have deleted.
const LOOK: Duration = Duration::from_secs(1);

pub(crate) struct ShardSupervisor {
    context: Arc<ProcessorContext>,
    group_context: GroupContext,
    tasks: Tasks,
    groups: BTreeMap<GenerationId, Arc<ConsumerGroup>>,
    /// Members that leave and have not left yet.
    parting: Vec<Arc<ConsumerGroup>>,
    running: Arc<Mutex<HashMap<Identity, Arc<Lease>>>>,
    /// Deleted here, and still on the board.
    deleted: Arc<Mutex<HashSet<Identity>>>,
    /// Retired generations of which nothing is left.
    gone: HashSet<GenerationId>,
    /// Generations whose topic cannot be known.
    unknown: HashSet<GenerationId>,
    /// Group threads that live.
    members: Arc<()>,
}

impl Drop for ShardSupervisor {
    /// However it ends: nothing is said afterwards.
    fn drop(&mut self) {
        self.context.reports.close();
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
            parting: Vec::new(),
            running: Arc::default(),
            deleted: Arc::default(),
            gone: HashSet::new(),
            unknown: HashSet::new(),
            members: Arc::default(),
        }
    }

    /// Runs on a thread of its own: nothing here may keep others from being served.
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
                    () = tokio::time::sleep(LOOK), if retiring => {}
                }
            });
        }
        self.wind_up();
    }

    /// Waits until every member has handed its shards over and left, and says how that went.
    fn wind_up(&mut self) {
        self.parting.extend(std::mem::take(&mut self.groups).into_values());
        while Arc::strong_count(&self.members) > 1 {
            std::thread::sleep(Duration::from_millis(5));
        }
        let (mut shards, mut late, mut uploaded, mut outbox) = (0, 0, 0, 0);
        for (shard, ended, closed) in self.parting.iter().flat_map(|group| group.parting()) {
            shards += 1;
            late += usize::from(!ended);
            if let Some(closed) = closed {
                uploaded += usize::from(closed.uploaded);
                outbox += closed.outbox;
            } else if !ended {
                tracing::warn!(%shard, "shard was still busy at the end; it goes on from its last commit");
            }
        }
        tracing::info!(shards, late, uploaded, outbox, "all shards given up, all groups left");
        let account = format!(
            "{shards} shards given up, {late} of them late, {uploaded} with a checkpoint in the store, {outbox} outputs left to their next owners"
        );
        *self.context.account.lock() = Some(account);
    }

    /// Joins, leaves and starts what is due. Returns whether it should look again soon.
    fn reconcile(&mut self) -> bool {
        let state = self.context.control.current();
        let mut retiring = false;
        let mut wanted = HashSet::new();
        self.forget_deleted();
        for entry in state.generations().values() {
            let busy = match entry.role {
                Role::Serving | Role::Replaying | Role::Retained => true,
                // Its end is soon: who is in its group stays for that.
                Role::Ended => self.groups.contains_key(&entry.id),
                Role::Retired => {
                    let left = self.remains(entry);
                    retiring |= left;
                    left
                }
            };
            if busy {
                wanted.insert(entry.id);
                self.enter(entry);
            }
        }
        let unwanted: Vec<_> =
            self.groups.keys().filter(|id| !wanted.contains(id)).copied().collect();
        for id in unwanted {
            if let Some(group) = self.groups.remove(&id) {
                let retired =
                    state.generations().get(&id).is_some_and(|entry| entry.role == Role::Retired);
                group.leave(retired);
            }
        }
        self.launch(&state);
        self.context.plans.retain(|id| wanted.contains(&id));
        retiring
    }

    /// A ghost that comes back to the board after its end is deleted again.
    fn forget_deleted(&self) {
        let board = self.context.control.board();
        self.deleted.lock().retain(|shard| board.get(shard.generation, shard.partition).is_some());
    }

    /// Whether something of a retired generation is left to be deleted by whoever owns it: what it said of
    /// itself goes last. Copies on this disk that are nobody's any more go here.
    fn remains(&mut self, entry: &GenerationEntry) -> bool {
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

    /// Joins the generation's group unless we are in it.
    fn enter(&mut self, entry: &GenerationEntry) {
        if self.groups.contains_key(&entry.id) {
            return;
        }
        // A view that is not understood is the shards' to report; without a topic there are none.
        let topic = match parse_stream(&entry.stream_sql) {
            Ok(stream) => stream.topic,
            Err(error) => {
                if self.unknown.insert(entry.id) {
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
        let condition = self.context.health.condition(format!("group-{}", entry.id));
        let mut life = Some((condition, self.members.clone()));
        self.tasks.spawn_thread(format!("group-{}", entry.id), OnFailure::Stop, move |shutdown| {
            if let Some((condition, _alive)) = life.take() {
                group.run(&shutdown, condition);
            }
            Ok(())
        });
    }

    fn launch(&self, state: &ControlState) {
        for group in self.groups.values() {
            for lease in group.leases() {
                let Identity { generation, partition } = lease.identity();
                let wanted = match state.shard_duty(generation, partition) {
                    ShardDuty::Run { .. } => true,
                    ShardDuty::Stop => false,
                    ShardDuty::Delete => {
                        let board = self.context.control.board();
                        board.get(generation, partition).is_some()
                            && !self.deleted.lock().contains(&lease.identity())
                    }
                };
                if wanted {
                    self.spawn(group, lease);
                }
            }
        }
    }

    fn spawn(&self, group: &Arc<ConsumerGroup>, lease: Arc<Lease>) {
        let identity = lease.identity();
        {
            // One thread a shard: that of a former lease may still be closing the database.
            let mut running = self.running.lock();
            if running.contains_key(&identity) || !lease.begin() {
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
            // Moved in as a whole: it ends with the thread, however that ends.
            let _running = &running;
            if thread.run(&shutdown) == ThreadEnd::Deleted {
                deleted.lock().insert(identity);
            }
            Ok(())
        });
    }
}

/// A shard's thread, for as long as it lives.
struct RunningShard {
    identity: Identity,
    lease: Arc<Lease>,
    running: Arc<Mutex<HashMap<Identity, Arc<Lease>>>>,
    changed: Arc<Notify>,
}

impl Drop for RunningShard {
    fn drop(&mut self) {
        self.running.lock().remove(&self.identity);
        self.lease.end();
        self.changed.notify_one();
    }
}
