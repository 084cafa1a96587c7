//! What a service is to the process that runs it.

use std::time::Duration;

use axum::Router;
use serde::{Serialize, de::DeserializeOwned};
use tonic::service::RoutesBuilder;

use crate::Node;

/// What a service does with the data directory of its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// It keeps something there, and nobody else may: the directory is created and locked.
    Owns,
    /// It reads what another process keeps there, if there is something.
    Reads,
    /// It needs none.
    Unused,
}

/// One of the four services, as [`crate::service_main`] and `headwater dev` run it.
pub trait Service: Sized + Send + Sync + 'static {
    /// Its section in the settings, and its binary's name after `headwater-`.
    const NAME: &'static str;
    /// What it does, in a line.
    const ABOUT: &'static str;
    /// Full names of its gRPC services.
    const GRPC: &'static [&'static str];
    /// What it does with the data directory.
    const DATA: Data;

    /// Its section.
    type Config: Serialize + DeserializeOwned + Default + Clone + Send + Sync + 'static;

    /// Whether the settings fit together; an error names the key and the remedy.
    fn check(config: &Self::Config) -> anyhow::Result<()>;

    /// Whether they fit the log's groups, which may give a process's partitions to others once it has stood still
    /// for so long.
    fn check_silence(_config: &Self::Config, _silence: Duration) -> anyhow::Result<()> {
        Ok(())
    }

    /// Starts it. An error of the log among the causes decides whether this is tried again.
    fn start(
        config: Self::Config,
        node: &Node,
    ) -> impl Future<Output = anyhow::Result<Self>> + Send;

    /// Adds its gRPC services.
    fn add_to(&self, routes: &mut RoutesBuilder);

    /// What it serves over HTTP.
    fn http(&self) -> Router {
        Router::new()
    }

    /// What it has done, in a few words for the last line of the process.
    fn account(&self) -> Option<String> {
        None
    }
}
