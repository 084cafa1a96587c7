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
//! # Several processors
//!
//! They share the shards of every generation through its group (`membership`): a shard has one owner at a
//! time. Who gets one takes the copy of its state that is furthest along, on its disk or in the store of
//! checkpoints (`restore`), claims it, and finds out what the former owner said last (`claim`). Who gives one
//! up commits, leaves a checkpoint in the store and says nothing more (`lease`, `handover`). A process that
//! stood still while its shards were given away writes nothing when it goes on: the group tells it, its
//! writer is fenced, and the epoch of its statuses is outdated.
//!
//! # Laws
//!
//! 1. *One code path*: a live shard and a replaying one differ in their orders only.
//! 2. *Exactly once*: a record of the outbox is published once, by the generation that owns its offset
//!    (`outbox` says how).
//! 3. *Converging*: after a crash at any moment the shard's database, its checkpoints and the control
//!    topic say together what is left to be done.
//! 4. *Muted once*: the position from which on a shard publishes nothing during a swap is decided
//!    once, also across restarts and owners: it may be the fence already.
//! 5. *One owner*: what others see of a shard comes from its owner alone.
//!
//! # Elsewhere
//!
//! What a record does to a row is `headwater-engine`'s, what a shard has to do `headwater-control`'s.

mod assignment;
mod checkpoint;
mod config;
mod context;
mod error;
mod log_outage;
mod metrics;
mod plan_cache;
mod publish;
mod service;
mod shard;
mod supervisor;
#[cfg(test)]
mod testing;

use std::sync::Arc;

use headwater_control::STATUS_TOPIC;
use headwater_service::{
    Node, Refusal,
    follow::{ControlView, create_topics},
};
use headwater_state::{Cache, Options, Store};
use headwater_types::Name;
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::Notify};

use assignment::{group::GroupContext, partition_check::PartitionCheck};
use checkpoint::store::CheckpointStore;
pub use config::Config;
use context::ProcessorContext;
use log_outage::LogOutage;
use metrics::ProcessorMetrics;
use plan_cache::PlanCache;
use publish::status_reporter::{self, StatusReporter};
use supervisor::ShardSupervisor;

/// The running processor. It serves nothing: its work is seen in the state and on the status topic.
#[derive(Clone, Debug)]
pub struct Processor {
    account: Arc<Mutex<Option<String>>>,
}

impl Processor {
    /// Starts to run shards below `node.data`: those that the groups of the generations give this process.
    pub async fn start(config: Config, node: &Node) -> anyhow::Result<Self> {
        config.check()?;
        let condition = node.health.condition("processor");
        let (log, tasks) = (node.log.clone(), node.tasks.clone());
        // It asks the log, which may be far away.
        let control =
            tokio::task::spawn_blocking(move || ControlView::start(&log, &tasks)).await??;
        // Both as they are now: older orders could ask for what was taken back meanwhile, and of a shard
        // that nobody has said anything about nothing is left.
        control.wait_current().await?;
        let (log, topic) = (node.log.clone(), Name::new(STATUS_TOPIC)?);
        let ends = tokio::task::spawn_blocking(move || {
            create_topics(&*log)?;
            Ok::<_, anyhow::Error>(log.ends(&topic, reports::ONLY)?)
        });
        let ends = ends.await??;
        control.wait_board(ends.end).await?;

        let metrics = ProcessorMetrics::new(&node.metrics);
        let uploads = match &node.checkpoints {
            Some(url) => {
                let store = Store::open(url).map_err(|error| Refusal {
                    reason: error.to_string(),
                    remedy: error.remedy(),
                })?;
                let instance = node.instance.clone();
                let at_once = usize::from(config.uploads.get());
                let (every, tasks) = (config.checkpoint_interval, node.tasks.clone());
                let metrics = metrics.clone();
                Some(Arc::new(CheckpointStore::new(
                    store, at_once, every, instance, tasks, metrics,
                )))
            }
            None => None,
        };
        let partition_check = Arc::new(PartitionCheck::new(config.topic_interval));
        let group_context = GroupContext {
            membership: node.membership.clone(),
            hand_over: config.hand_over_timeout,
            guard: config.session_guard,
            partition_check: partition_check.clone(),
            metrics: metrics.clone(),
            changed: Arc::new(Notify::new()),
        };
        let account = Arc::new(Mutex::new(None));
        let context = Arc::new(ProcessorContext {
            log: node.log.clone(),
            reports: StatusReporter::start(node)?,
            plans: PlanCache::default(),
            options: Options {
                expire: true,
                write_buffer_bytes: usize::try_from(config.write_buffer.0)?,
                cache: Cache::new(usize::try_from(config.block_cache.0)?),
            },
            metrics,
            health: node.health.clone(),
            partition_check,
            log_outage: LogOutage::new(node.health.clone()),
            uploads,
            data: node.data.clone(),
            instance: node.instance.clone(),
            directory: node.directory.clone(),
            runtime: Handle::current(),
            account: account.clone(),
            control,
            config,
        });
        let supervisor = ShardSupervisor::new(context, group_context, node.tasks.clone());
        node.tasks.spawn_thread_once("processor", move |shutdown| {
            supervisor.run(&shutdown);
            Ok(())
        });
        condition.ready();
        Ok(Self { account })
    }

    /// The processor has no gRPC services of its own.
    #[allow(clippy::unused_self, reason = "every service is added alike")]
    pub fn add_to(&self, _routes: &mut tonic::service::RoutesBuilder) {}

    /// How its shards were given up, in a few words, once they are.
    pub fn account(&self) -> Option<String> {
        self.account.lock().clone()
    }
}

#[cfg(test)]
mod tests;
