//! The ingest service: accepts events over gRPC and HTTP, checks them, and answers when they are
//! durable.
//!
//! ```text
//! gRPC Append, AppendStream ─┐                           ┌─ partition 0: a batch ─┐
//!                            ├─► check, partition by key ┤                        ├► log ─► answer
//! HTTP POST …/events ────────┘                           └─ partition n: a batch ─┘
//!
//! gRPC DeadLetterService ─┬─ list ───► log: the dead-letter topic
//!                         └─ replay ─► the same, then check and append as above
//! ```
//!
//! A request is handled by the task of its connection from beginning to end; nothing is queued
//! between tasks. `Appender`, which all requests share, owns the budget of memory and the catalog
//! of streams. Two tasks live as long as the process: `ingest-catalog` sets the condition `ingest`
//! once the catalog is read, and `ingest-requests` keeps the process alive at shutdown until every
//! append is answered.
//!
//! # Laws
//!
//! 1. An event that is answered as accepted is durable, at the partition and offset that the answer
//!    names.
//! 2. Every event has one result, in request order. A bad event does not cause another event to be
//!    rejected.
//! 3. The log stores the event's own bytes, unchanged, under the bytes of its key.
//! 4. Events of one request, and of the requests of one `AppendStream`, keep their order within a
//!    key.
//! 5. Memory is bounded: sizes are checked before a body is read, and requests together have a
//!    limit.
//! 6. An event that is not known to be stored is answered as not stored, or as perhaps not stored,
//!    also when the process shuts down while the log does not answer.
//!
//! A lost answer says nothing about its events: a client that sends them again may store them
//! twice.
//!
//! # Which file
//!
//! | to see | open |
//! | --- | --- |
//! | a request from check to answer | `append.rs` |
//! | when an event is rejected | `check.rs`; decoding is in [`headwater_engine::decode`] |
//! | which partition an event gets | `batches.rs` |
//! | which streams there are, and when a topic cannot be used | `catalog.rs` |
//! | why a whole request is refused, as gRPC and HTTP status | `refusal.rs` |
//! | how a request arrives | `grpc.rs`; `http.rs` and `body.rs` |
//! | how much memory requests hold | `budget.rs` |
//! | how dead letters are read and appended again | `dead_letters/scan.rs`, `dead_letters.rs` |
//!
//! The definitions of streams come from the control plane ([`headwater_service::follow`]).

mod append;
mod batches;
mod body;
mod budget;
mod catalog;
mod check;
mod config;
mod dead_letters;
mod grpc;
mod http;
mod metrics;
mod refusal;
mod service;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use headwater_proto::ingest::v1::{
    dead_letter_service_server::DeadLetterServiceServer, ingest_service_server::IngestServiceServer,
};
use headwater_service::{Condition, Node, Shutdown, follow::ControlView};

use append::Appender;
pub use config::Config;
use dead_letters::DeadLetters;

/// The ingest service. [`Ingest::start`] it, then add it to a server.
#[derive(Clone)]
pub struct Ingest {
    appender: Arc<Appender>,
    dead_letters: Arc<DeadLetters>,
    shutdown: Shutdown,
}

impl Ingest {
    /// Builds the service and starts its tasks. It ends with the tasks of the node.
    ///
    /// # Errors
    ///
    /// The settings contradict each other.
    pub async fn start(config: Config, node: &Node) -> anyhow::Result<Self> {
        // Build.
        config.check()?;
        let shutdown = node.tasks.shutdown();
        let control = ControlView::start(node);
        let appender = Arc::new(Appender::new(config, node, control.clone()));
        let dead_letters = Arc::new(DeadLetters::new(appender.clone(), shutdown.clone()));

        // Run: requests are refused until the catalog is read.
        let condition = node.health.condition("ingest");
        let reading = report_ready(control, condition, shutdown.clone());
        node.tasks.spawn_once("ingest-catalog", reading);

        // Stop: the servers end when no task runs, so this task keeps them until the last answer.
        let answering = answer_accepted_requests(appender.clone(), shutdown.clone());
        node.tasks.spawn_once("ingest-requests", answering);

        Ok(Self { appender, dead_letters, shutdown })
    }

    /// Adds `IngestService` and `DeadLetterService`.
    pub fn add_to(&self, routes: &mut tonic::service::RoutesBuilder) {
        let limit = self.appender.config().max_request.bytes();
        let ingest = grpc::IngestGrpc::new(self.appender.clone(), self.shutdown.clone());
        routes.add_service(
            // The answer to a request of many tiny events is larger than the request.
            IngestServiceServer::new(ingest)
                .max_decoding_message_size(limit)
                .max_encoding_message_size(usize::MAX),
        );
        routes.add_service(DeadLetterServiceServer::from_arc(self.dead_letters.clone()));
    }

    /// `POST /v1/streams/{stream}/events`.
    pub fn http(&self) -> axum::Router {
        http::router(self.appender.clone())
    }

    /// How many events were taken, in a few words.
    fn summary(&self) -> String {
        self.appender.summary()
    }
}

/// Sets the condition once everything that was in the catalog at the start is read.
async fn report_ready(
    control: ControlView,
    condition: Condition,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    condition.not_ready("reading the catalog");
    tokio::select! {
        () = shutdown.cancelled() => {}
        caught_up = control.wait_current() => {
            caught_up?;
            condition.ready();
        }
    }
    Ok(())
}

/// Ends when the requests that were accepted before shutdown are answered.
async fn answer_accepted_requests(
    appender: Arc<Appender>,
    shutdown: Shutdown,
) -> anyhow::Result<()> {
    shutdown.cancelled().await;
    appender.answer_all().await;
    Ok(())
}
