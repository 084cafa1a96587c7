use headwater_service::{Data, Node, Service};
use tonic::service::RoutesBuilder;

use crate::{Config, Query};

impl Service for Query {
    const NAME: &'static str = "query";
    const ABOUT: &'static str = "Answers queries from the state of the views";
    const GRPC: &'static [&'static str] =
        &["headwater.query.v1.QueryService", "headwater.query.v1.ShardService"];
    const DATA: Data = Data::Reads;

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
}
