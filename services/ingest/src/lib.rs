//! Accepts events over gRPC and HTTP, checks them, and answers when they are durable.
//!
//! ```text
//! gRPC Append, AppendStream --+                            partition 0 -- one batch --+
//!                             +--> check against schema --<                           +--> log, fsync --> answer
//! HTTP POST .../events -------+    key -> partition        partition n -- one batch --+
//! ```
//!
//! # Laws
//!
//! 1. An event that is answered as accepted is durable, at the partition and offset that the answer names.
//! 2. Every event has one result, in request order. One bad event costs no other.
//! 3. What is stored is what came: the event's own bytes, under the bytes of its key.
//! 4. Events of one request, and of the requests of one `AppendStream`, keep their order within a key.
//! 5. Memory is bounded: sizes are checked before a body is read, and what is in flight has a limit.
//! 6. What is not known to be stored is said to be not stored, or perhaps not stored, also when the process
//!    ends while the log does not answer.
//!
//! An answer that got lost says nothing about its events: who sends them again may store them twice.
//!
//! # Elsewhere
//!
//! What a good event is, is `headwater-engine`'s business ([`headwater_engine::decode`]); the stream's
//! definition comes from the catalog ([`headwater_service::follow`]).

mod append;
mod body;
mod catalog;
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
use headwater_service::{Node, Shutdown, follow::ControlView};

use append::Appender;
pub use config::Config;
use dead_letters::DeadLetters;

/// The ingest service: start it, then add it to a server.
#[derive(Clone)]
pub struct Ingest {
    appender: Arc<Appender>,
    dead_letters: Arc<DeadLetters>,
    shutdown: Shutdown,
}

impl Ingest {
    /// Follows the catalog from now on. The condition `ingest` is ready once all streams are known.
    ///
    /// # Errors
    ///
    /// The settings contradict each other, or the log cannot be read.
    pub async fn start(config: Config, node: &Node) -> anyhow::Result<Self> {
        config.check()?;
        let control = ControlView::start(node);
        let ready = node.health.condition("ingest");
        ready.not_ready("reading the catalog");
        let caught_up = control.clone();
        let shutdown = node.tasks.shutdown();
        node.tasks.spawn_once("ingest-catalog", async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                caught_up = caught_up.wait_current() => {
                    caught_up?;
                    ready.ready();
                }
            }
            Ok(())
        });
        let appender = Arc::new(Appender::new(config, node, control));
        // Servers end when nothing else runs: what was given to the log is answered before that.
        let (waits, shutdown) = (appender.clone(), node.tasks.shutdown());
        node.tasks.spawn_once("ingest-requests", async move {
            shutdown.cancelled().await;
            waits.answer_all().await;
            Ok(())
        });
        let dead_letters = Arc::new(DeadLetters::new(appender.clone(), node.tasks.shutdown()));
        Ok(Self { appender, dead_letters, shutdown: node.tasks.shutdown() })
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

    /// How many events were taken, in a few words.
    fn account(&self) -> String {
        self.appender.account()
    }

    /// `POST /v1/streams/{stream}/events`.
    pub fn http(&self) -> axum::Router {
        http::router(self.appender.clone())
    }
}
