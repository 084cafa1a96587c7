//! The coordinator: the catalog of streams and views, and the replays that change it.
//!
//! It is the only writer of the control topic. A command, or the next step of a replay, first
//! becomes a record there; the coordinator's state is the fold of that topic. `headwater-control`
//! decides what to do next, as a pure function, so that a coordinator that died between any two
//! records folds them again and goes on.
//!
//! ```text
//!  gRPC tasks                       task "coordinator"
//!  CatalogApi, ReplayApi            Leader
//!     |        |      ^             | Candidate    owns the inbox and the Election
//!     |        |      | outcome     | Reconciler   runs while this coordinator leads
//!     |        |      +-------------|   ControlLog    owns claim and state --> headwater.control
//!     |        |  command           |   Comparisons   a blocking thread each
//!     |        +-- CommandQueue --->|     |
//!     v                             |     v
//!  Context, shared: log, settings, published state, board
//!     ^
//!     +-- ControlView, two threads: fold headwater.control and headwater.status
//! ```
//!
//! # Which file for what
//!
//! | to see | open |
//! | --- | --- |
//! | what a request asks, how it is answered | `api/catalog_service.rs`, `api/replay_service.rs` |
//! | which records a command makes | `commands.rs` and below it |
//! | how a command reaches the leader | `commands/queue.rs` |
//! | what definitions may hold and how they may change | `definitions.rs` |
//! | what a replay reads and needs | `replay_plan.rs` |
//! | the states of the leadership | `leadership.rs` |
//! | what fences a former leader | `leader/control_log.rs` |
//! | who leads | `leader/election.rs` |
//! | how a coordinator comes to lead and steps down | `leader.rs`, `leader/candidate.rs` |
//! | when records are written; an append of unknown outcome | `leader/reconciler.rs` |
//! | when generations are compared, and how | `leader/comparisons.rs`, `diff.rs` |
//!
//! # Laws
//!
//! 1. One coordinator writes. The log's membership elects the leader among several; the others
//!    stand by: alive, not ready. A leader that a newer claim fences writes nothing more: it stands
//!    by, or stops with an error if its process has the log for itself.
//! 2. A record that could not be folded is never written.
//! 3. A command is carried out once, however often it is sent with the same id. It is carried out
//!    as a whole or not at all: its records are one batch.
//! 4. Live shards are never stopped, and a swap is one record: `Case::swap` in `decide.rs` of
//!    `headwater-control` builds it.
//! 5. The outcome of an append is known before anything else is decided: if the log does not tell
//!    it, the leader claims the topic anew and reads it.
//! 6. If the log or the store cannot be reached, the process logs it once and the coordinator tries
//!    again.
//!
//! # Elsewhere
//!
//! The protocol of a replay is in `headwater-control`, the meaning of a definition in
//! `headwater-sql`. How a shard holds or takes a checkpoint is in the processor.

#![allow(clippy::result_large_err, reason = "a gRPC status is the error of every verb")]

mod api;
mod commands;
mod config;
mod context;
mod definitions;
mod diff;
mod leader;
mod leadership;
mod log_reach;
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

use api::{catalog_service::CatalogApi, replay_service::ReplayApi};
use commands::queue::CommandQueue;
pub use config::Config;
use context::Context;
use leader::Leader;
use leadership::LeadershipPublisher;

/// The coordinator: start it, then add it to a server. It stops with the tasks of its node.
#[derive(Clone)]
pub struct Coordinator {
    context: Arc<Context>,
    commands: CommandQueue,
}

impl Coordinator {
    /// Builds the coordinator and runs its leader. The condition `coordinator` is ready while it
    /// leads. A coordinator whose process has the log for itself leads when this returns.
    ///
    /// # Errors
    ///
    /// The URL of the checkpoint store is not valid. Where the process has the log for itself: the
    /// control topic cannot be read or folded.
    pub async fn start(config: Config, node: &Node) -> anyhow::Result<Self> {
        // Build.
        let ready = node.health.condition("coordinator");
        let (leadership, leads) = LeadershipPublisher::new(ready);
        let (published, state) = watch::channel(Arc::new(ControlState::default()));
        let context = Context::new(config, node, leads.clone(), state)?;
        let (commands, inbox) = CommandQueue::new(leads);
        let mut leader = Leader::new(node, context.clone(), inbox, leadership, published);

        // Run.
        leader.begin().await?;
        node.tasks.spawn_once("coordinator", leader.run());

        // Stop: shutdown ends the leader, which leaves the group of coordinators.
        Ok(Self { context, commands })
    }

    /// Adds `CatalogService` and `ReplayService`.
    pub fn add_to(&self, routes: &mut tonic::service::RoutesBuilder) {
        routes.add_service(CatalogServiceServer::new(self.catalog_api()));
        routes.add_service(ReplayServiceServer::new(self.replay_api()));
    }

    fn catalog_api(&self) -> CatalogApi {
        CatalogApi::new(self.context.clone(), self.commands.clone())
    }

    fn replay_api(&self) -> ReplayApi {
        ReplayApi::new(self.context.clone(), self.commands.clone())
    }
}
