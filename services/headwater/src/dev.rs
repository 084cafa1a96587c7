//! `headwater dev`: the four services in one process, on the log embedded in a directory.
//!
//! It only wires the services together. All logic is in their libraries, so `headwater dev` runs
//! the same code as the binaries.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use headwater_coordinator::Coordinator;
use headwater_ingest::Ingest;
use headwater_log::Log;
use headwater_log_embedded::{EmbeddedLog, Options};
use headwater_processor::Processor;
use headwater_query::Query;
use headwater_service::{
    BINARY_SECTIONS, DataDir, Node, Served, Servers, Service, Tasks,
    config::{Layers, settings_in},
    exit_code, telemetry,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, runtime::Handle};
use tonic::service::Routes;

use crate::{
    cli::DevArgs,
    failure::{Exit, Failure, Result},
};

/// The instance name of the process.
pub(crate) const INSTANCE: &str = "dev";

/// Long enough for the last commits and acknowledgements, short enough for an impatient person.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// The settings of all services, each in its section.
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
    // Build: settings, the directory, the listeners, the log.
    // A file that the services' binaries share has sections that this process does not read.
    let config: DevConfig = Layers::new()
        .file(args.config.as_ref())
        .environment(settings_in(std::env::vars()))
        .foreign(BINARY_SECTIONS)
        .load()
        .map_err(Failure::usage)?;
    let telemetry = telemetry::init(&config.telemetry, "dev", INSTANCE).map_err(Failure::usage)?;

    // The directory is locked first: a second process must not touch the files of the first.
    let data = DataDir::open(&args.data).map_err(Failure::usage)?;
    let grpc = bind(args.listen, "--listen").await?;
    let http = bind(args.http, "--http").await?;
    let log = open_log(&data).await?;
    let outer = Tasks::new();
    outer.stop_on_signals()?;
    let mut node = Node::new(log, data.path(), INSTANCE);
    node.tasks = Tasks::on(Handle::current(), outer.shutdown().child());

    // Run: the services, then the servers.
    let coordinator = Coordinator::start(config.coordinator, &node).await?;
    let processor = Processor::start(config.processor, &node).await?;
    let query = Query::start(config.query, &node).await?;
    let ingest = Ingest::start(config.ingest, &node).await?;

    let mut routes = Routes::builder();
    coordinator.add_to(&mut routes);
    query.add_to(&mut routes);
    ingest.add_to(&mut routes);
    let services = [Ingest::GRPC, Query::GRPC, Coordinator::GRPC, Processor::GRPC].concat();
    let served = Served { grpc: routes, services, http: ingest.http() };
    let servers = Servers::start(&outer, (grpc, http), &node.health, &node.metrics, served)?;

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

    // Stop: accepted requests are finished, then the servers end.
    let report = servers.drain(&node.tasks, STOP_DEADLINE).await;
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

async fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        Failure::usage(format!("cannot listen on {address} ({error}); choose another {flag}"))
    })
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
