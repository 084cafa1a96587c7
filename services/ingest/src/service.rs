use headwater_service::{Data, Node, Service};
use tonic::service::RoutesBuilder;

use crate::{Config, Ingest};

impl Service for Ingest {
    const NAME: &'static str = "ingest";
    const ABOUT: &'static str = "Accepts events into the log";
    const GRPC: &'static [&'static str] =
        &["headwater.ingest.v1.IngestService", "headwater.ingest.v1.DeadLetterService"];
    const DATA: Data = Data::Unused;

    type Config = Config;

    fn check(config: &Config) -> anyhow::Result<()> {
        config.check()
    }

    async fn start(config: Config, node: &Node) -> anyhow::Result<Self> {
        Self::start(config, node).await
    }

    fn add_to(&self, routes: &mut RoutesBuilder) {
        self.add_to(routes);
    }

    fn http(&self) -> axum::Router {
        self.http()
    }

    fn summary(&self) -> Option<String> {
        Some(self.summary())
    }
}
