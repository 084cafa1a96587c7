//! The interface between a service and the process that runs it.

use std::time::Duration;

use axum::Router;
use serde::{Serialize, de::DeserializeOwned};
use tonic::service::RoutesBuilder;

use crate::Node;

/// How a service uses the data directory of its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// The service writes there, and no other process may: the directory is created and locked.
    Owns,
    /// The service reads what another process has written there, if there is something.
    Reads,
    /// The service needs no directory.
    Unused,
}

/// One of the four services, as [`crate::service_main`] and `headwater dev` run it.
pub trait Service: Sized + Send + Sync + 'static {
    /// The name of its section in the settings, and of its binary after `headwater-`.
    const NAME: &'static str;
    /// What the service does, in a line.
    const ABOUT: &'static str;
    /// The full names of its gRPC services.
    const GRPC: &'static [&'static str];
    /// How the service uses the data directory.
    const DATA: Data;

    /// Its section in the settings.
    type Config: Serialize + DeserializeOwned + Default + Clone + Send + Sync + 'static;

    /// Refuses settings that do not fit together. The error names the key and the remedy.
    fn check(config: &Self::Config) -> anyhow::Result<()>;

    /// Refuses settings that do not fit the log's consumer groups. A group may give the partitions
    /// of a process to others once it has heard nothing of the process for `silence`.
    fn check_silence(_config: &Self::Config, _silence: Duration) -> anyhow::Result<()> {
        Ok(())
    }

    /// Starts the service. After an error whose remedy is to retry, the start is tried again.
    fn start(
        config: Self::Config,
        node: &Node,
    ) -> impl Future<Output = anyhow::Result<Self>> + Send;

    /// Adds the gRPC services to a server.
    fn add_to(&self, routes: &mut RoutesBuilder);

    /// The routes that the service has over HTTP.
    fn http(&self) -> Router {
        Router::new()
    }

    /// What the service has done, in a few words for the last line of the process.
    fn summary(&self) -> Option<String> {
        None
    }
}
