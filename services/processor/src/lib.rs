//! The processor: runs the shards of every generation, live or replaying, on one code path.
//!
//! ```text
//!  control topic ──► duty of each shard: run, hold, checkpoint, mute, delete
//!                         │
//!  log ──► read ──► apply ──► commit ──► publish the outbox ──► dead-letter topic
//!                               │
//!                               └──► status topic: position, watermark, tallies, checkpoints
//! ```
//!
//! Each shard has a thread of its own and nothing in common with the others but the machine. A shard
//! that fails for a while goes on from its last commit; one that cannot go on says so in its status
//! and leaves the others alone.
//!
//! # Laws
//!
//! 1. *One code path*: a live shard and a replaying one differ in their orders only.
//! 2. *Exactly once*: a record of the outbox is published once, by the generation that owns its offset
//!    (`outbox` says how).
//! 3. *Converging*: after a crash at any moment the shard's database, its checkpoints and the control
//!    topic say together what is left to be done.
//! 4. *Muted once*: the position from which on a shard publishes nothing during a swap is decided
//!    once, also across restarts: it may be the fence already.
//!
//! # Elsewhere
//!
//! What a record does to a row is `headwater-engine`'s, what a shard has to do `headwater-control`'s.

mod config;
mod metrics;
mod outbox;
mod plans;
mod rate;
mod reports;
#[cfg(test)]
mod testing;
mod trouble;
mod work;
mod worker;

use std::{collections::HashSet, sync::Arc};

use headwater_control::{ControlState, ShardDuty};
use headwater_service::{Node, OnFailure, Shutdown, Tasks, follow::ControlView};
use headwater_state::{Cache, Identity, Options};
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::Notify};

pub use config::Config;
use metrics::ProcessorMetrics;
use plans::Plans;
use reports::Reports;
use worker::{End, Shared, Worker};

/// The running processor. It serves nothing: its work is seen in the state and on the status topic.
#[derive(Debug)]
pub struct Processor {}

impl Processor {
    /// Starts to run shards below `node.data`.
    pub async fn start(config: Config, node: &Node) -> anyhow::Result<Self> {
        config.check()?;
        let control = ControlView::start(&node.log, &node.tasks)?;
        let reports = Reports::start(node)?;
        let condition = node.health.condition("processor");
        // Both as they are now: older orders could ask for what was taken back meanwhile, and a shard
        // that was muted must know from where on.
        control.wait_current().await?;
        let shared = Arc::new(Shared {
            log: node.log.clone(),
            last_words: reports::read_board(&*node.log)?,
            reports,
            plans: Plans::default(),
            options: Options {
                expire: true,
                write_buffer_bytes: usize::try_from(config.write_buffer.0)?,
                cache: Cache::new(usize::try_from(config.block_cache.0)?),
            },
            metrics: ProcessorMetrics::new(&node.metrics),
            health: node.health.clone(),
            data: node.data.clone(),
            instance: node.instance.clone(),
            runtime: Handle::current(),
            control,
            config,
        });
        let fleet = Fleet {
            shared,
            tasks: node.tasks.clone(),
            running: Arc::default(),
            deleted: Arc::default(),
            ended: Arc::default(),
        };
        fleet.launch();
        condition.ready();
        node.tasks.spawn("processor", OnFailure::Stop, move |shutdown| {
            let fleet = fleet.clone();
            async move { fleet.run(&shutdown).await }
        });
        Ok(Self {})
    }

    /// The processor has no gRPC services of its own.
    #[allow(clippy::unused_self, reason = "every service is added alike")]
    pub fn add_to(&self, _routes: &mut tonic::service::RoutesBuilder) {}
}

/// The shards that this instance runs: today all of them. Consumer groups will take its place.
fn assigned(state: &ControlState) -> impl Iterator<Item = Identity> + '_ {
    state.generations().values().flat_map(|entry| {
        entry.partitions().map(|partition| Identity { generation: entry.id, partition })
    })
}

/// Sees to it that every assigned shard with something to do has a thread.
#[derive(Clone)]
struct Fleet {
    shared: Arc<Shared>,
    tasks: Tasks,
    running: Arc<Mutex<HashSet<Identity>>>,
    deleted: Arc<Mutex<HashSet<Identity>>>,
    ended: Arc<Notify>,
}

impl Fleet {
    async fn run(&self, shutdown: &Shutdown) -> anyhow::Result<()> {
        let mut control = self.shared.control.clone();
        loop {
            self.launch();
            tokio::select! {
                () = control.control_changed() => {}
                () = self.ended.notified() => {}
                () = shutdown.cancelled() => return Ok(()),
            }
        }
    }

    fn launch(&self) {
        let state = self.shared.control.current();
        for identity in assigned(&state) {
            let wanted = match state.shard_duty(identity.generation, identity.partition) {
                ShardDuty::Run { .. } => true,
                ShardDuty::Stop => false,
                ShardDuty::Delete => self.remains(&identity),
            };
            if wanted && self.running.lock().insert(identity) {
                self.spawn(identity);
            }
        }
        self.shared.plans.retain(|id| {
            state.generations().get(&id).is_some_and(|entry| {
                use headwater_control::Role::{Ended, Replaying, Retained, Retired, Serving};
                match entry.role {
                    Serving | Replaying | Retained => true,
                    Ended | Retired => false,
                }
            })
        });
    }

    /// Whether there is anything of the shard to be deleted: on the disk, or what it said of itself.
    fn remains(&self, identity: &Identity) -> bool {
        let said =
            self.shared.control.board().get(identity.generation, identity.partition).is_some();
        (said || worker::exists(&self.shared.data, identity))
            && !self.deleted.lock().contains(identity)
    }

    fn spawn(&self, identity: Identity) {
        let mut worker = Worker::new(self.shared.clone(), identity);
        let (running, ended) = (self.running.clone(), self.ended.clone());
        let deleted = self.deleted.clone();
        let name = format!("shard-{}-{}", identity.generation, identity.partition);
        self.tasks.spawn_thread(name, OnFailure::restart(), move |shutdown| {
            if worker.run(&shutdown) == End::Deleted {
                deleted.lock().insert(identity);
            }
            running.lock().remove(&identity);
            ended.notify_one();
            Ok(())
        });
    }
}

#[cfg(test)]
mod tests;
