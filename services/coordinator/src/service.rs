use headwater_service::{Data, Node, Service};
use tonic::service::RoutesBuilder;

use crate::{Config, Coordinator};

impl Service for Coordinator {
    const NAME: &'static str = "coordinator";
    const ABOUT: &'static str = "Holds the catalog and runs replays";
    const GRPC: &'static [&'static str] =
        &["headwater.control.v1.CatalogService", "headwater.control.v1.ReplayService"];
    const DATA: Data = Data::Owns;

    type Config = Config;

    fn check(_config: &Config) -> anyhow::Result<()> {
        Ok(())
    }

    async fn start(config: Config, node: &Node) -> anyhow::Result<Self> {
        Self::start(config, node).await
    }

    fn add_to(&self, routes: &mut RoutesBuilder) {
        self.add_to(routes);
    }
}
