//! The coordinator: the catalog, and the replays that change it.
//!
//! It is the only writer of the control topic. Whatever it decides, a request's command or the next step of
//! a replay, becomes a record there before anything else happens; its own state is the fold of that topic.
//! What to do next is `headwater-control`'s pure decision, so that a coordinator which died between any
//! two records folds again and goes on.
//!
//! ```text
//! gRPC catalog --+                          +--> headwater.control --> processors, queries, ingest
//!                +--> requests --> Reconciler ----+                                  |
//! gRPC replay  --+                  ^  |    +--> diff of two checkpoints       |
//!                                   |  +------------- result --------+         |
//!                                   +-------------- headwater.status <---------+
//! ```
//!
//! # Laws
//!
//! 1. One coordinator writes. Of several the log's membership chooses the one that leads; the others stand
//!    by: alive, not ready. One that is fenced by a newer claim writes nothing more: it stands by, too, or
//!    stops with an error that says so if it was to be the only one.
//! 2. A record that could not be folded is never written.
//! 3. A request is carried out once, however often it is sent with the same id; and wholly or not at all:
//!    its records are one batch.
//! 4. Live shards are never stopped, and a swap is one record.
//! 5. What became of an append is known before anything else is decided: if the log did not say, the topic is
//!    claimed anew and read.
//! 6. A log or a store that is away ends nothing: it is said once, and tried again.
//!
//! # Elsewhere
//!
//! The protocol of a replay is `headwater-control`'s. What a definition means is `headwater-sql`'s. What a
//! shard does when it is asked to hold or to take a checkpoint is the processor's business.

#![allow(clippy::result_large_err, reason = "a gRPC status is the error of every verb")]

mod api;
mod commands;
mod config;
mod context;
mod definitions;
mod diff;
mod leader;
mod metrics;
mod replay_plan;
mod service;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use headwater_control::ControlState;
use headwater_proto::control::v1::{
    catalog_service_server::CatalogServiceServer, replay_service_server::ReplayServiceServer,
};
use headwater_service::Node;
use tokio::sync::watch;

pub use config::Config;
use context::{Context, Leadership};
use leader::Leader;
use leader::election::Election;

/// The coordinator: start it, then add it to a server.
#[derive(Clone)]
pub struct Coordinator {
    context: Arc<Context>,
}

impl Coordinator {
    /// Claims the control topic when it leads, folds it, and decides from then on. The condition `coordinator`
    /// is ready while it leads. On a log that this process has for itself, it leads when this returns.
    ///
    /// # Errors
    ///
    /// The store's URL is none, or a log of ours cannot be read, or holds what cannot be folded.
    pub async fn start(config: Config, node: &Node) -> anyhow::Result<Self> {
        let ready = node.health.condition("coordinator");
        let reason = "reading the control topic";
        ready.not_ready(reason);
        let (standing, stands) = watch::channel(Leadership::Not(reason.into()));
        let (published, publishes) = watch::channel(Arc::new(ControlState::default()));
        let (context, inbox) = Context::new(&config, node, stands, publishes)?;
        let election = Election::new(node, inbox, standing, ready);
        let mut lead = Leader::new(&config, node, context.clone(), election, published);
        if !node.log.is_remote() {
            lead.begin().await?;
        }
        node.tasks.spawn_once("coordinator", lead.run());
        Ok(Self { context })
    }

    /// Adds `CatalogService` and `ReplayService`.
    pub fn add_to(&self, routes: &mut tonic::service::RoutesBuilder) {
        routes.add_service(CatalogServiceServer::new(api::catalog_service::CatalogApi::new(
            self.context.clone(),
        )));
        routes.add_service(ReplayServiceServer::new(api::replay_service::ReplayApi::new(
            self.context.clone(),
        )));
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
