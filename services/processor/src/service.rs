use std::time::Duration;

use headwater_service::{Data, Node, Service};
use tonic::service::RoutesBuilder;

use crate::{Processor, config::Config};

impl Service for Processor {
    const NAME: &'static str = "processor";
    const ABOUT: &'static str = "Runs the shards of every generation";
    const GRPC: &'static [&'static str] = &[];
    const DATA: Data = Data::Owns;

    type Config = Config;

    fn check(config: &Config) -> anyhow::Result<()> {
        config.check()
    }

    fn check_silence(config: &Config, silence: Duration) -> anyhow::Result<()> {
        config.check_silence(silence)
    }

    async fn start(config: Config, node: &Node) -> anyhow::Result<Self> {
        Self::start(config, node).await
    }

    /// The processor serves nothing over gRPC.
    fn add_to(&self, _routes: &mut RoutesBuilder) {}

    /// How the shards were handed over; `None` before that is done.
    fn summary(&self) -> Option<String> {
        self.summary.lock().clone()
    }
}
