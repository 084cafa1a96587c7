//! The query service: answers from the state of the views, and says how fresh each answer is.
//!
//! It reads the shard databases as secondaries, so a heavy query cannot stall processing, and an answer
//! does not need the processor to be running. It has the data directory of one processor on its disk; shards
//! that other processors own it asks of an instance that shares their directory, one hop and never two.
//!
//! ```text
//!  control topic ─► which generation serves a view
//!                          │ pinned once per request
//!  Get, Scan, Query, ──► pin ──► hold every shard at a commit ──► merge by key ──► rows, provenance
//!  Describe, Watch                 (caught up on demand)
//!                           ▲                  ▲
//!  status topic ─► where each shard is    ReadShard of peers
//! ```
//!
//! # Laws
//!
//! 1. *One generation*: an answer comes from the one generation that it names, whatever is swapped while
//!    it is made. A swap that was answered before a request arrived is seen by that request.
//! 2. *One state*: all that an answer reads of a shard, however often it reads it, is the state at the
//!    one offset that it names.
//! 3. *Asked and served*: an answer contains every event of the tokens that its request presented.
//!    Without a token it contains what was committed [`Config::max_staleness`] before it arrived, by
//!    whichever processor owned the shard then: a copy that was left behind is not read.
//! 4. *Time never runs backwards*: the offset of a partition in the answers about a view never falls,
//!    across swaps and undos too, for as long as this instance runs. After a restart, tokens do the
//!    same. Answers for which a generation was named do not count and are not bound.
//!
//! # Elsewhere
//!
//! What rows are visible is `headwater-state`'s business, how partial rows merge `headwater-engine`'s.
//! This crate and `headwater-sql` alone know DataFusion.

mod api;
mod config;
mod error;
mod metrics;
mod peers;
mod service;
mod snapshot;
mod sql;
mod value;

use std::sync::Arc;

use anyhow::Context as _;
use datafusion::execution::SessionState;
use headwater_proto::query::v1::{
    query_service_server::QueryServiceServer, shard_service_server::ShardServiceServer,
};
use headwater_service::{Node, OnFailure, Shutdown, follow::ControlView};
use headwater_state::{Cache, Options, layout};

pub use crate::config::Config;
use crate::{
    api::rpc::Rpc,
    metrics::Metrics,
    peers::announce::Announcement,
    peers::pool::PeerPool,
    peers::shard_locator::ShardLocator,
    snapshot::cursor::ConcurrencyLimit,
    snapshot::generation_cache::{GenerationCache, Source},
};

#[cfg(test)]
mod tests;

/// The running query service.
pub struct Query {
    service: Arc<Service>,
}

/// What all requests share.
struct Service {
    config: Config,
    control: ControlView,
    locator: Arc<ShardLocator>,
    source: Arc<Source>,
    cache: GenerationCache,
    session: Arc<SessionState>,
    scans: ConcurrencyLimit,
    queries: ConcurrencyLimit,
    /// Scans for other instances.
    forwarded: ConcurrencyLimit,
    metrics: Metrics,
    shutdown: Shutdown,
    instance: Arc<str>,
}

impl Query {
    /// Follows the control plane and answers from the shards below `node.data`, and through other instances
    /// from those that are elsewhere.
    ///
    /// # Errors
    ///
    /// The configuration contradicts itself, the control topics cannot be created, or the remains of an earlier run cannot be removed.
    #[allow(clippy::unused_async, reason = "every service starts alike")]
    pub async fn start(config: Config, node: &Node) -> anyhow::Result<Self> {
        config.check()?;
        let scratch = config.scratch.clone().unwrap_or_else(|| node.data.clone());
        // What readers keep beside the primary's files is of no use to the next process.
        layout::remove(&layout::readers_dir(&scratch, &node.instance))
            .context("the readers' directory of an earlier run cannot be removed")?;
        let control = ControlView::start(node);
        let metrics = Metrics::new(&node.metrics);
        let locator = Arc::new(ShardLocator::new(node, control.clone()));
        let instance: Arc<str> = node.instance.as_str().into();
        let source = Arc::new(Source {
            data: node.data.clone(),
            scratch,
            instance: node.instance.clone(),
            options: Options {
                cache: Cache::new(config.block_cache.bytes()),
                write_buffer_bytes: config.write_buffer.bytes(),
                ..Options::default()
            },
            log: node.log.clone(),
            locator: locator.clone(),
            peers: PeerPool::new(instance.clone()),
            metrics: metrics.clone(),
        });
        let service = Arc::new(Service {
            control: control.clone(),
            locator,
            cache: GenerationCache::new(source.clone()),
            source,
            session: Arc::new(sql::query::session(&config)?),
            scans: ConcurrencyLimit::new("scans", config.max_scans.get()),
            queries: ConcurrencyLimit::new("SQL queries", config.max_queries.get()),
            forwarded: ConcurrencyLimit::new(
                "scans for other instances",
                config.max_forwarded.get(),
            ),
            metrics,
            shutdown: node.tasks.shutdown(),
            instance,
            config,
        });
        let condition = node.health.condition("query");
        let follower = service.clone();
        node.tasks.spawn("query-generations", OnFailure::restart(), move |shutdown| {
            let (service, condition) = (follower.clone(), condition.clone());
            async move {
                tokio::select! {
                    () = shutdown.cancelled() => Ok(()),
                    outcome = service.follow(|| condition.ready()) => outcome,
                }
            }
        });
        if !service.locator.alone() {
            let (service, node) = (service.clone(), node.clone());
            node.clone().tasks.spawn("query-peers", OnFailure::restart(), move |shutdown| {
                let announcement = Announcement::new(&node, control.clone());
                service.clone().keep_neighbours(announcement, shutdown)
            });
        }
        Ok(Self { service })
    }

    /// Adds the gRPC services.
    pub fn add_to(&self, routes: &mut tonic::service::RoutesBuilder) {
        routes.add_service(QueryServiceServer::new(Rpc(self.service.clone())));
        routes.add_service(ShardServiceServer::new(Rpc(self.service.clone())));
    }
}

impl Service {
    fn peers(&self) -> &PeerPool {
        &self.source.peers
    }

    /// Plans what serves before it is asked for, and closes what is retired.
    async fn follow(&self, ready: impl Fn()) -> anyhow::Result<()> {
        let mut control = self.control.clone();
        let mut state = control.wait_current().await?;
        ready();
        loop {
            self.cache.close_retired(&state);
            for view in state.views().values() {
                let Some(entry) = state.generations().get(&view.serving) else { continue };
                if let Err(error) = self.cache.generation(entry).await {
                    tracing::error!(generation = %entry.id, %error, "a serving generation cannot be planned");
                }
            }
            control.control_changed().await;
            state = control.current();
        }
    }
}
