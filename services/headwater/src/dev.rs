//! `headwater dev`: the four services in one process, on the log embedded in a directory.
//!
//! It only wires: every line of logic is in the services' own libraries, so what is tried here is what
//! runs elsewhere.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use headwater_coordinator::Coordinator;
use headwater_ingest::Ingest;
use headwater_log::Log;
use headwater_log_embedded::{EmbeddedLog, Options};
use headwater_processor::Processor;
use headwater_query::Query;
use headwater_service::{DataDir, Node, admin_router, config::Layers, exit_code, telemetry};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::service::Routes;

use crate::{
    cli::DevArgs,
    failure::{Exit, Failure, Result},
};

/// Long enough for the last commits and acknowledgements, short enough for an impatient person.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// Settings of all services, each in its section.
#[derive(Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DevConfig {
    pub telemetry: telemetry::TelemetryConfig,
    pub ingest: headwater_ingest::Config,
    pub processor: headwater_processor::Config,
    pub coordinator: headwater_coordinator::Config,
    pub query: headwater_query::Config,
}

/// Serves until a signal or a failure.
pub async fn run(args: DevArgs) -> Result {
    // The flags' own variables are no settings of a service.
    let settings = std::env::vars().filter(|(name, _)| {
        ![
            "HEADWATER_DATA",
            "HEADWATER_LISTEN",
            "HEADWATER_HTTP",
            "HEADWATER_CONFIG",
            "HEADWATER_SERVER",
        ]
        .contains(&name.as_str())
    });
    let config: DevConfig = Layers::new()
        .file(args.config.as_ref())
        .environment(settings)
        .load()
        .map_err(Failure::usage)?;
    let telemetry = telemetry::init(&config.telemetry, "dev", "dev").map_err(Failure::usage)?;

    // Taken before anything is opened: a second process must not touch the first one's files.
    let data = DataDir::open(&args.data).map_err(Failure::usage)?;
    let grpc = bind(args.listen, "--listen").await?;
    let http = bind(args.http, "--http").await?;
    let log = open_log(&data).await?;
    let node = Node::new(log, data.path(), "dev");
    node.tasks.stop_on_signals()?;

    let coordinator = Coordinator::start(config.coordinator, &node).await?;
    let processor = Processor::start(config.processor, &node).await?;
    let query = Query::start(config.query, &node).await?;
    let ingest = Ingest::start(config.ingest, &node).await?;

    let mut routes = Routes::builder();
    coordinator.add_to(&mut routes);
    query.add_to(&mut routes);
    ingest.add_to(&mut routes);
    routes.add_service(node.health.serve(&node.tasks, &SERVICES));
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(headwater_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(anyhow::Error::from)?;
    routes.add_service(reflection);

    let shutdown = node.tasks.shutdown();
    let server = tonic::transport::Server::builder()
        .tcp_nodelay(true)
        .add_routes(routes.routes())
        .serve_with_incoming_shutdown(nodelay(grpc), shutdown.cancelled_owned());
    node.tasks.spawn_once("grpc", async move { Ok(server.await?) });
    let router = ingest.http().merge(admin_router(&node.health, &node.metrics));
    let server = axum::serve(http, router).with_graceful_shutdown(shutdown.cancelled_owned());
    node.tasks.spawn_once("http", async move { Ok(server.await?) });

    eprintln!(
        "headwater dev: data {}, gRPC on {}, HTTP on {}",
        data.path().display(),
        args.listen,
        args.http
    );
    tokio::select! {
        () = node.health.wait_ready() => eprintln!("headwater dev: ready"),
        () = node.tasks.wait() => {}
    }
    node.tasks.wait().await;
    let report = node.tasks.stop(STOP_DEADLINE).await;
    drop((coordinator, processor, query, ingest));
    telemetry.shutdown();
    drop(data);
    match report.failure {
        Some(failure) => Err(Failure::new(Exit::Failed, failure)),
        None if report.is_clean() => {
            eprintln!("headwater dev: stopped");
            Ok(())
        }
        None => Err(Failure::new(
            Exit::Failed,
            format!("did not stop in time: {}", report.still_running.join(", ")),
        )),
    }
}

/// The full names for the health service.
const SERVICES: [&str; 5] = [
    "headwater.ingest.v1.IngestService",
    "headwater.ingest.v1.DeadLetterService",
    "headwater.query.v1.QueryService",
    "headwater.control.v1.CatalogService",
    "headwater.control.v1.ReplayService",
];

async fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        Failure::usage(format!("cannot listen on {address} ({error}); choose another {flag}"))
    })
}

/// Small answers must not wait for more to send.
fn nodelay(
    listener: TcpListener,
) -> impl tokio_stream::Stream<Item = std::io::Result<tokio::net::TcpStream>> {
    use tokio_stream::StreamExt;
    TcpListenerStream::new(listener)
        .map(|connection| connection.inspect(|stream| drop(stream.set_nodelay(true))))
}

async fn open_log(data: &DataDir) -> Result<Arc<dyn Log>> {
    let directory = data.path().join("log");
    let opened =
        tokio::task::spawn_blocking(move || EmbeddedLog::open(&directory, Options::default()))
            .await;
    match opened {
        Ok(Ok(log)) => Ok(log),
        Ok(Err(error)) => {
            let exit = if exit_code(error.remedy()) == Exit::Usage as u8 {
                Exit::Usage
            } else {
                Exit::Failed
            };
            Err(Failure::new(exit, error))
        }
        Err(panic) => Err(Failure::new(Exit::Failed, panic)),
    }
}

#[cfg(test)]
mod tests;
