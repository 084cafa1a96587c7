//! The processor: runs the shards of every generation, live or replaying, on one code path.
//!
//! ```text
//!  control topic ──► the duty of each shard: run (hold, checkpoint, mute), stop, delete
//!                         │
//!  log ──► read ──► apply ──► commit ──► publish the outbox ──► dead-letter topic
//!                               │
//!                               └──► status topic: position, watermark, tallies, checkpoints
//! ```
//!
//! # Threads and tasks
//!
//! ```text
//!  Processor::start
//!   └─ "processor"                  ShardSupervisor        starts a thread per group and per shard
//!       ├─ "group-<generation>"     ConsumerGroup          one per generation: joins, leaves
//!       │    └─ Lease               one per assigned shard; the group ends it, the shard asks it
//!       └─ "shard-<generation>-<n>" ShardThread            one per lease
//!            └─ ShardTask           while the shard is open: database, reader, checkpoints
//!                 ├─ Publisher           the outbox and its fenced writer
//!                 └─ CheckpointUploader ──► "upload-<generation>-<n>"   one upload at a time
//!  "shard-statuses"                 StatusReporter         appends the statuses of all shards
//!  "control-follower", "status-follower"   ControlView     of headwater-service, folded for all
//! ```
//!
//! The supervisor and the shard threads share one `ProcessorContext`, the groups one
//! `GroupContext`. Shards share nothing else. A shard that fails for a while
//! goes on from its last commit; one that cannot go on says so in its status and leaves the others
//! alone.
//!
//! # Several processors
//!
//! Processors share the shards of every generation through its group: a shard has one owner at a
//! time. A new owner takes the copy of the shard's state that is furthest along, on its disk or in
//! the store of checkpoints, claims the shard, and reads the former owner's last status. An owner
//! that gives a shard up commits, leaves a checkpoint in the store and reports no status any more.
//! A process that stood still while its shards were given away writes nothing when it goes on: the
//! group refuses it, its writer is fenced, and the epoch of its statuses is outdated.
//!
//! # Laws
//!
//! 1. *One code path*: a live shard and a replaying one differ in their orders only.
//! 2. *Exactly once*: a record of the outbox is published once, by the generation that owns its
//!    offset.
//! 3. *Converging*: a crash at any moment leaves the shard's database, its checkpoints and the
//!    control topic. From these three the processor can tell what is still to do.
//! 4. *Muted once*: the position from which on a shard publishes nothing during a swap is decided
//!    once, also across restarts and owners, because that position may already be the fence.
//! 5. *One owner*: what others see of a shard comes from its owner alone.
//!
//! # Which file to open
//!
//! | for | open |
//! | --- | --- |
//! | which shards run here, and what happens at shutdown | `supervisor.rs` |
//! | a shard's life: its states and their transitions | `shard.rs` (the page), `shard/thread.rs` |
//! | one round: read, apply, commit | `shard/task.rs` |
//! | opening, claiming, reporting, closing a shard | `shard/{open,claim,status,close}.rs` |
//! | joining a group, assigned, revoked and lost partitions | `assignment/group.rs` |
//! | the right to write for a shard | `assignment/lease.rs` |
//! | a topic whose partitions changed | `assignment/partition_check.rs` |
//! | dead letters exactly once | `publish/outbox.rs` |
//! | how statuses reach their topic | `publish/status_reporter.rs` |
//! | taking, uploading and removing checkpoints of replays | `shard/task/checkpoints.rs` |
//! | restoring a shard | `checkpoint/restore.rs` |
//! | uploading a checkpoint, and then pruning older ones | `checkpoint/upload.rs` |
//! | what lies where on this disk | `checkpoint/local.rs` |
//!
//! # Elsewhere
//!
//! `headwater-engine` decides what a record does to a row, `headwater-control` what a shard has to
//! do.

mod assignment;
mod blocking;
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

use std::{num::TryFromIntError, sync::Arc};

use headwater_control::STATUS_TOPIC;
use headwater_service::{
    Node, Refusal,
    follow::{ControlView, create_topics},
};
use headwater_state::{Cache, Options, Store};
use headwater_types::{Name, PartitionId};
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::Notify};

use assignment::{group::GroupContext, partition_check::PartitionCheck};
use checkpoint::store::CheckpointStore;
pub use config::Config;
use context::ProcessorContext;
use log_outage::LogOutage;
use metrics::ProcessorMetrics;
use plan_cache::PlanCache;
use publish::status_reporter::StatusReporter;
use supervisor::ShardSupervisor;

/// The running processor. It serves nothing: its work is seen in the state and on the status topic.
#[derive(Clone, Debug)]
pub struct Processor {
    summary: Arc<Mutex<Option<String>>>,
}

impl Processor {
    /// Starts to run shards below `node.data`: those that the groups of the generations assign to
    /// this process. They stop with the node's tasks.
    pub async fn start(config: Config, node: &Node) -> anyhow::Result<Self> {
        // Build.
        config.check()?;
        let condition = node.health.condition("processor");
        let control = follow_control(node).await?;
        let metrics = ProcessorMetrics::new(&node.metrics);
        let checkpoint_store = open_checkpoint_store(&config, node, &metrics)?;
        let partition_check = Arc::new(PartitionCheck::new(config.topic_interval));
        let group_context = GroupContext {
            membership: node.membership.clone(),
            hand_over_timeout: config.hand_over_timeout,
            session_guard: config.session_guard,
            partition_check: partition_check.clone(),
            metrics: metrics.clone(),
            changed: Arc::new(Notify::new()),
        };
        let summary = Arc::new(Mutex::new(None));
        let context = Arc::new(ProcessorContext {
            log: node.log.clone(),
            control,
            status_reporter: StatusReporter::start(node)?,
            plans: PlanCache::default(),
            options: database_options(&config)?,
            metrics,
            health: node.health.clone(),
            partition_check,
            log_outage: LogOutage::new(node.health.clone()),
            checkpoint_store,
            data: node.data.clone(),
            instance: node.instance.clone(),
            directory: node.directory.clone(),
            runtime: Handle::current(),
            summary: summary.clone(),
            config,
        });

        // Run, until shutdown: then the supervisor hands all shards over and writes the summary.
        let supervisor = ShardSupervisor::new(context, group_context, node.tasks.clone());
        node.tasks.spawn_thread_once("processor", move |shutdown| {
            supervisor.run(&shutdown);
            Ok(())
        });
        condition.ready();
        Ok(Self { summary })
    }
}

/// The control plane as it is now. An older control state could ask for what was taken back since,
/// and an older status board would lack shards that still have to be deleted.
async fn follow_control(node: &Node) -> anyhow::Result<ControlView> {
    let control = ControlView::start(node);
    control.wait_current().await?;
    create_topics(&*node.log).await?;
    let ends = node.log.ends(&Name::new(STATUS_TOPIC)?, PartitionId::ONLY).await?;
    control.wait_board(ends.end).await?;
    Ok(control)
}

/// `None` if the node has no store of checkpoints.
fn open_checkpoint_store(
    config: &Config,
    node: &Node,
    metrics: &ProcessorMetrics,
) -> anyhow::Result<Option<Arc<CheckpointStore>>> {
    let Some(url) = &node.checkpoints else { return Ok(None) };
    let store = Store::open(url)
        .map_err(|error| Refusal { reason: error.to_string(), remedy: error.remedy() })?;
    Ok(Some(Arc::new(CheckpointStore::new(
        store,
        usize::from(config.uploads.get()),
        config.checkpoint_interval,
        node.instance.clone(),
        node.tasks.clone(),
        metrics.clone(),
    ))))
}

fn database_options(config: &Config) -> Result<Options, TryFromIntError> {
    Ok(Options {
        expire: true,
        write_buffer_bytes: usize::try_from(config.write_buffer.0)?,
        cache: Cache::new(usize::try_from(config.block_cache.0)?),
    })
}

#[cfg(test)]
mod tests;
