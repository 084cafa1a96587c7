//! The query service: answers from the state of the views, and says how fresh each answer is.
//!
//! It opens the shard databases as RocksDB secondaries, so a heavy query cannot stall processing,
//! and an answer does not need the processor to be running. It has the data directory of one
//! processor on its disk. For the shards of other processors it asks a query instance that shares
//! their directory. That instance never asks a third one.
//!
//! ```text
//! one tokio runtime                                        threads
//!
//! client ─ gRPC ─► QueryApi ─ Get, Describe ──────┐
//!                     │ Scan, Watch               ▼        Cursor: one per scan, merges by key
//!                     │                       ViewCatalog
//!                     └ Query ─► SqlEngine ─────► │        SqlEngine: one per query
//!                                               Pin
//!                                                 ▼
//!                          ShardSource, one per shard
//!                           │ on this disk       │ elsewhere
//!                           ▼                    ▼
//!                        LocalReader ──────┐  Forwarder ─► PeerPool ─ gRPC ─► peer
//! catching up: one blocking │              │
//! call at a time per shard  ▼              ▼
//!                      RocksDB secondary  ShardSnapshot
//!
//! peer ─── gRPC ─► ShardApi ─► LocalReader                 ShardReading: one per scanning request
//!
//! tasks    query-generations  GenerationFollower: plans what serves, closes what is retired
//!          query-peers        Announcer: tells peers where this instance is, closes moved shards
//! threads  control-follower, status-follower (of `headwater-service`): fold the control plane
//! ```
//!
//! `Query` owns the two gRPC services. Both and the `SqlEngine` share one `RequestContext`, which
//! owns the `ViewCatalog`; that owns the `GenerationCache`, the `GenerationCache` owns each
//! `Generation`, and a `Generation` owns its `ShardSource`s. A `ShardSnapshot` keeps a shard at one
//! commit for as long as it lives.
//!
//! # Laws
//!
//! 1. *One generation*: an answer comes from the one generation that it names, whatever is swapped
//!    while it is made. A request sees every swap that was answered before the request arrived.
//! 2. *One state*: all that an answer reads of a shard, however often it reads it, is the state at
//!    the one offset that it names.
//! 3. *Asked and served*: an answer contains every event of the tokens that its request presented.
//!    Without a token it contains what was committed [`Config::max_staleness`] before it arrived,
//!    by whichever processor owned the shard then. It never reads a copy that a former owner left
//!    behind.
//! 4. *Positions never fall*: the offset of a partition in the answers about a view never falls,
//!    across swaps and undos too, for as long as this instance runs. After a restart, tokens
//!    do the same. Answers for which a generation was named do not count and are not bound.
//!
//! # What is cached, and for how long
//!
//! The same for every log:
//!
//! | kept in | how old it may be |
//! | --- | --- |
//! | `ViewCatalog`: the control plane | not older than the request; waiting requests share a look |
//! | `ShardLocator`: where shards are | `max-staleness` before the request |
//! | `LocalReader`: a shard on this disk | `max-staleness` before the request, or its tokens |
//! | `GenerationCache`: plans | until the generation is retired |
//! | `PeerPool`: connections to peers | until no instance announces the address |
//!
//! # Which file to open
//!
//! | directory or file | for |
//! | --- | --- |
//! | `api/` | a verb of the gRPC surface |
//! | `sql/` | ad-hoc SQL |
//! | `snapshot/catalog.rs` | which generation answers |
//! | `snapshot/` | how fresh an answer is, and how rows are read and merged |
//! | `peers/` | where shards are, and reading them at other instances |
//! | `error.rs` | what a client is told, and with which code |
//! | `row_values.rs`, `key_shape.rs` | rows and keys as messages carry them |
//!
//! `headwater-state` decides which rows are visible, `headwater-engine` how partial rows merge.
//! This crate and `headwater-sql` alone know DataFusion.

mod api;
mod config;
mod context;
mod error;
mod key_shape;
mod limit;
mod messages;
mod metrics;
mod peers;
mod read_plan;
mod refresh;
mod row_values;
mod snapshot;
mod sql;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use anyhow::Context as _;
use headwater_proto::query::v1::{
    query_service_server::QueryServiceServer, shard_service_server::ShardServiceServer,
};
use headwater_service::{Data, Node, OnFailure, Service, follow::ControlView};
use headwater_state::{Cache, Options, layout};
use tonic::service::RoutesBuilder;

pub use crate::config::Config;
use crate::{
    api::{query_service::QueryApi, shard_service::ShardApi},
    context::RequestContext,
    limit::ConcurrencyLimit,
    metrics::Metrics,
    peers::{announce::Announcer, forward::Forwarder, pool::PeerPool, shard_locator::ShardLocator},
    snapshot::{
        catalog::ViewCatalog, generation_cache::GenerationCache,
        generation_follower::GenerationFollower, read_context::ReadContext,
    },
    sql::query::SqlEngine,
};

/// The running query service.
pub struct Query {
    query_api: QueryApi,
    shard_api: ShardApi,
}

impl Service for Query {
    const NAME: &'static str = "query";
    const ABOUT: &'static str = "Answers queries from the state of the views";
    const GRPC: &'static [&'static str] =
        &["headwater.query.v1.QueryService", "headwater.query.v1.ShardService"];
    const DATA: Data = Data::Reads;

    type Config = Config;

    fn check(config: &Config) -> anyhow::Result<()> {
        config.check()
    }

    /// Builds the service and starts its tasks.
    ///
    /// # Errors
    ///
    /// The configuration contradicts itself, or the remains of an earlier run cannot be removed.
    async fn start(config: Config, node: &Node) -> anyhow::Result<Self> {
        // Build: the control plane, where shards are, how they are read, what the verbs share.
        config.check()?;
        let scratch = config.scratch.clone().unwrap_or_else(|| node.data.clone());
        // The files that the readers of an earlier process left are of no use.
        layout::remove(&layout::readers_dir(&scratch, &node.instance))
            .context("the readers' directory of an earlier run cannot be removed")?;
        let instance: Arc<str> = node.instance.as_str().into();
        let metrics = Metrics::new(&node.metrics);
        let control = ControlView::start(node);
        let locator = Arc::new(ShardLocator::new(node, control.clone()));
        let pool = Arc::new(PeerPool::new(instance.clone()));
        let cache = Arc::new(GenerationCache::new(Arc::new(ReadContext {
            data: node.data.clone(),
            scratch,
            instance: node.instance.clone(),
            options: Options {
                cache: Cache::new(config.block_cache.bytes()),
                write_buffer_bytes: config.write_buffer.bytes(),
                ..Options::default()
            },
            locator: locator.clone(),
            forwarder: Forwarder {
                locator: locator.clone(),
                pool: pool.clone(),
                metrics: metrics.clone(),
            },
            metrics: metrics.clone(),
        })));
        let forwarded =
            ConcurrencyLimit::new("scans for other instances", config.max_forwarded.get());
        let context = Arc::new(RequestContext {
            catalog: ViewCatalog::new(control.clone(), locator.clone(), cache.clone(), instance),
            scans: ConcurrencyLimit::new("scans", config.max_scans.get()),
            metrics,
            shutdown: node.tasks.shutdown(),
            config,
        });
        let query = Self {
            query_api: QueryApi {
                sql: Arc::new(SqlEngine::new(context.clone())?),
                context: context.clone(),
            },
            shard_api: ShardApi { context, locator: locator.clone(), limit: Arc::new(forwarded) },
        };

        // Run: two tasks until shutdown.
        let condition = node.health.condition("query");
        node.tasks.spawn("query-generations", OnFailure::restart(), {
            let (control, cache) = (control.clone(), cache.clone());
            move |shutdown| {
                let (control, cache) = (control.clone(), cache.clone());
                let condition = condition.clone();
                GenerationFollower { control, cache, condition }.run(shutdown)
            }
        });
        node.tasks.spawn("query-peers", OnFailure::restart(), {
            let node = node.clone();
            move |shutdown| {
                let cache = cache.clone();
                let on_look =
                    Arc::new(move |directory_changed| cache.close_moved(directory_changed));
                let (control, locator, pool) = (control.clone(), locator.clone(), pool.clone());
                Announcer::new(&node, control, locator, pool, on_look).run(shutdown)
            }
        });

        // Stop: shutdown ends the watchers with an error that says so, and the announcer takes back
        // what it announced. Other requests end by themselves, at `max-duration` at the latest.
        Ok(query)
    }

    fn add_to(&self, routes: &mut RoutesBuilder) {
        routes.add_service(QueryServiceServer::new(self.query_api.clone()));
        routes.add_service(ShardServiceServer::new(self.shard_api.clone()));
    }
}
