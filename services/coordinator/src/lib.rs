//! The coordinator: the catalog, and the replays that change it.
//!
//! It is the only writer of the control topic. Whatever it decides, a request's wish or the next step of
//! a replay, becomes a record there before anything else happens; its own state is the fold of that topic.
//! What to do next is `headwater-control`'s pure decision, so that a coordinator which died between any
//! two records folds again and goes on.
//!
//! ```text
//! gRPC catalog --+                          +--> headwater.control --> processors, queries, ingest
//!                +--> requests --> Desk ----+                                  |
//! gRPC replay  --+                  ^  |    +--> diff of two checkpoints       |
//!                                   |  +------------- result --------+         |
//!                                   +-------------- headwater.status <---------+
//! ```
//!
//! # Laws
//!
//! 1. One coordinator writes: a newer one fences it, and then it stops with an error that says so.
//! 2. A record that could not be folded is never written.
//! 3. A request is carried out once, however often it is sent with the same id; and wholly or not at all:
//!    its records are one batch.
//! 4. Live shards are never stopped, and a swap is one record.
//!
//! # Elsewhere
//!
//! The protocol of a replay is `headwater-control`'s. What a definition means is `headwater-sql`'s. What a
//! shard does when it is asked to hold or to take a checkpoint is the processor's business.

#![allow(clippy::result_large_err, reason = "a gRPC status is the error of every verb")]

mod apply;
mod catalog;
mod config;
mod definitions;
mod desk;
mod diff;
mod ledger;
mod metrics;
mod office;
mod plan;
mod replays;
mod verbs;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use headwater_proto::control::v1::{
    catalog_service_server::CatalogServiceServer, replay_service_server::ReplayServiceServer,
};
use headwater_service::{Node, follow::ControlView};

pub use config::Config;
use desk::Desk;
use office::Office;

/// The coordinator: start it, then add it to a server.
#[derive(Clone)]
pub struct Coordinator {
    office: Arc<Office>,
}

impl Coordinator {
    /// Claims the control topic, folds it, and decides from then on. The condition `coordinator` is ready
    /// when this returns.
    ///
    /// # Errors
    ///
    /// The control topic cannot be read, or holds what cannot be folded.
    pub async fn start(config: Config, node: &Node) -> anyhow::Result<Self> {
        let ready = node.health.condition("coordinator");
        ready.not_ready("reading the control topic");
        let view = ControlView::start(&node.log, &node.tasks)?;
        let log = node.log.clone();
        let ledger = tokio::task::spawn_blocking(move || ledger::Ledger::open(log)).await??;
        let (office, inbox) = Office::new(&config, node, view, ledger.published());
        let desk = Desk::new(&config, node, office.clone(), ledger, inbox);
        let shutdown = node.tasks.shutdown();
        node.tasks.spawn_once("coordinator", desk.run(shutdown));
        ready.ready();
        Ok(Self { office })
    }

    /// Adds `CatalogService` and `ReplayService`.
    pub fn add_to(&self, routes: &mut tonic::service::RoutesBuilder) {
        routes.add_service(CatalogServiceServer::new(catalog::Catalog::new(self.office.clone())));
        routes.add_service(ReplayServiceServer::new(replays::Replays::new(self.office.clone())));
    }
}
