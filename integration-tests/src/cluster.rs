//! The four services in containers, on a real broker: as `docker-compose.yml` runs them, with as many
//! processors as a test wants, each with a query service beside it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use headwater_proto::{control::v1::GetCatalogRequest, status::v1::ShardStatus};
use headwater_types::Token;
use tonic::transport::Channel;

use crate::{
    dev::PATIENCE,
    docker::{Broker, Kind, Options, Service, Volume},
    platform::Platform,
};

/// A processor, the query service that reads its directory, and that directory.
pub struct Pair {
    pub processor: Service,
    pub query: Option<Service>,
    pub data: Volume,
}

pub struct Cluster {
    pub ingest: Service,
    pub coordinator: Service,
    pub pairs: Vec<Pair>,
    checkpoints: Volume,
    settings: Vec<(&'static str, &'static str)>,
}

/// Crashes are noticed within two seconds, a pause in time before that, and checkpoints come often.
const QUICK: &[(&str, &str)] = &[
    ("HEADWATER_KAFKA__SESSION_TIMEOUT", "2s"),
    ("HEADWATER_PROCESSOR__SESSION_GUARD", "1s"),
    ("HEADWATER_PROCESSOR__CHECKPOINT_INTERVAL", "1s"),
];

impl Cluster {
    /// Starts `processors` processors, the first `queries` of them with a query service, and waits until all
    /// are ready.
    pub async fn start(broker: &Broker, processors: usize, queries: usize) -> Result<Self> {
        Self::start_with(broker, processors, queries, &[]).await
    }

    /// As [`Cluster::start`], with further settings for every service.
    pub async fn start_with(
        broker: &Broker,
        processors: usize,
        queries: usize,
        settings: &[(&'static str, &'static str)],
    ) -> Result<Self> {
        let settings: Vec<_> = QUICK.iter().chain(settings).copied().collect();
        let checkpoints = Volume::create("checkpoints").await?;
        let options = || with(&settings).checkpoints(&checkpoints);
        // The coordinator first: it creates the topics that the others follow.
        let coordinator =
            Service::start(Kind::Coordinator, "coordinator", broker, options()).await?;
        let ingest = Service::start(Kind::Ingest, "ingest", broker, options()).await?;
        let mut cluster = Self { ingest, coordinator, pairs: Vec::new(), checkpoints, settings };
        for index in 0..processors {
            cluster.add(broker, index < queries).await?;
        }
        Ok(cluster)
    }

    /// Adds a processor with a directory of its own, and a query service beside it if wanted.
    pub async fn add(&mut self, broker: &Broker, query: bool) -> Result<()> {
        let number = self.pairs.len() + 1;
        let data = Volume::create(&format!("data-{number}")).await?;
        let options = || with(&self.settings).data(&data).checkpoints(&self.checkpoints);
        let name = format!("processor-{number}");
        let processor = Service::start(Kind::Processor, &name, broker, options()).await?;
        let query = match query {
            true => {
                let name = format!("query-{number}");
                Some(Service::start(Kind::Query, &name, broker, options()).await?)
            }
            false => None,
        };
        self.pairs.push(Pair { processor, query, data });
        Ok(())
    }

    /// Starts a second coordinator beside the first, without waiting: it is not ready while the first leads.
    pub async fn another_coordinator(&self, broker: &Broker) -> Result<Service> {
        let options = with(&self.settings).checkpoints(&self.checkpoints);
        Service::launch(Kind::Coordinator, "coordinator-2", broker, options).await
    }

    /// Waits until every processor serves again.
    pub async fn processor_ready(&self) -> Result<()> {
        for pair in &self.pairs {
            pair.processor.wait_ready().await?;
        }
        Ok(())
    }

    /// What every shard said last.
    pub async fn shards(&self) -> Result<Vec<ShardStatus>> {
        Ok(self.catalog().get_catalog(GetCatalogRequest {}).await?.into_inner().shards)
    }

    /// Waits until every shard is where the token is, or beyond.
    pub async fn wait_processed(&self, token: &str) -> Result<Vec<ShardStatus>> {
        let token: Token = token.parse()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let shards = self.shards().await;
            if let Ok(shards) = &shards {
                let behind = |shard: &&ShardStatus| {
                    token
                        .positions
                        .iter()
                        .any(|(p, at)| p.0 == shard.partition && shard.position < at.0)
                };
                if !shards.is_empty() && !shards.iter().any(|shard| behind(&shard)) {
                    return Ok(shards.clone());
                }
            }
            ensure!(Instant::now() < deadline, "the shards are still behind {token}: {shards:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Stops every service in good order, and sees to it that each ends well.
    pub async fn terminate(self) -> Result<()> {
        let services = self
            .pairs
            .iter()
            .flat_map(|pair| pair.query.iter().chain([&pair.processor]))
            .chain([&self.ingest, &self.coordinator]);
        for service in services {
            let code = service.stop(Duration::from_secs(30)).await?;
            ensure!(code == 0, "{:?} ended with {code}:\n{}", service.kind(), service.log().await?);
        }
        Ok(())
    }
}

fn with(settings: &[(&str, &str)]) -> Options {
    settings.iter().fold(Options::new(), |options, (name, value)| options.setting(name, value))
}

impl Platform for Cluster {
    fn ingest_channel(&self) -> Channel {
        self.ingest.channel()
    }

    fn coordinator_channel(&self) -> Channel {
        self.coordinator.channel()
    }

    /// Of the first that there is.
    fn query_channel(&self) -> Channel {
        let query = self.pairs.iter().find_map(|pair| pair.query.as_ref());
        query.unwrap_or(&self.ingest).channel()
    }
}

/// What `kafka-consumer-groups --describe` says of a group: partition, committed position, end, lag.
pub async fn lag(
    broker: &Broker,
    group: &str,
) -> Result<Vec<(u32, Option<u64>, u64, Option<u64>)>> {
    let text = broker.exec("kafka-consumer-groups", &["--describe", "--group", group]).await?;
    let mut rows = Vec::new();
    // GROUP TOPIC PARTITION CURRENT-OFFSET LOG-END-OFFSET LAG …
    for line in text.lines().filter(|line| line.starts_with(group)) {
        let fields: Vec<_> = line.split_whitespace().collect();
        let field = |index: usize| fields.get(index).copied().context("a short line");
        rows.push((
            field(2)?.parse()?,
            field(3)?.parse().ok(),
            field(4)?.parse()?,
            field(5)?.parse().ok(),
        ));
    }
    rows.sort_unstable();
    Ok(rows)
}
