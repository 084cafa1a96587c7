//! The four services in containers, on a real broker, as `docker-compose.yml` runs them. A test
//! chooses the number of processors, and how many of them have a query service.

use anyhow::{Context as _, Result, ensure};
use headwater_proto::{control::v1::GetCatalogRequest, status::v1::ShardStatus};
use headwater_types::Token;
use tonic::transport::Channel;

use crate::{
    docker::{Broker, Kind, Options, Service, Volume},
    patience::{PATIENCE, eventually, found},
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
    /// Every service has these.
    options: Options,
}

/// Settings under which a shard reads, commits and says where it is in small steps, so that it can
/// stand still in the middle of a replay.
pub const SMALL_STEPS: [(&str, &str); 3] = [
    ("HEADWATER_PROCESSOR__READ_BYTES", "8 KiB"),
    ("HEADWATER_PROCESSOR__COMMIT_BYTES", "1 B"),
    ("HEADWATER_PROCESSOR__REPORT_INTERVAL", "50ms"),
];

/// With these the group notices a crash within two seconds, and checkpoints come often.
const QUICK: &[(&str, &str)] = &[
    ("HEADWATER_KAFKA__SESSION_TIMEOUT", "2s"),
    ("HEADWATER_PROCESSOR__SESSION_GUARD", "1s"),
    ("HEADWATER_PROCESSOR__CHECKPOINT_INTERVAL", "1s"),
];

/// Options with these settings, beside those that make tests quick.
pub fn quick(settings: &[(&str, &str)]) -> Options {
    let all = QUICK.iter().chain(settings);
    all.fold(Options::new(), |options, (name, value)| options.setting(name, value))
}

impl Cluster {
    /// Starts `processors` processors, the first `queries` of them with a query service, and waits
    /// until all are ready.
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
        Self::start_as(broker, processors, queries, quick(settings)).await
    }

    /// As [`Cluster::start`], each service with these options, for which [`quick`] is a beginning.
    pub async fn start_as(
        broker: &Broker,
        processors: usize,
        queries: usize,
        options: Options,
    ) -> Result<Self> {
        let checkpoints = Volume::create("checkpoints").await?;
        let options = options.checkpoints(&checkpoints);
        // The coordinator starts first: it creates the topics that the others follow.
        let coordinator =
            Service::start(Kind::Coordinator, "coordinator", broker, options.clone()).await?;
        let ingest = Service::start(Kind::Ingest, "ingest", broker, options.clone()).await?;
        let mut cluster = Self { ingest, coordinator, pairs: Vec::new(), options };
        for index in 0..processors {
            cluster.add(broker, index < queries).await?;
        }
        Ok(cluster)
    }

    /// Adds a processor with a directory of its own, and a query service beside it if wanted.
    pub async fn add(&mut self, broker: &Broker, query: bool) -> Result<()> {
        let number = self.pairs.len() + 1;
        let data = Volume::create(&format!("data-{number}")).await?;
        let options = || self.options.clone().data(&data);
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

    /// Starts a second coordinator beside the first, without waiting: it is not ready while the
    /// first leads.
    pub async fn another_coordinator(&self, broker: &Broker) -> Result<Service> {
        Service::launch(Kind::Coordinator, "coordinator-2", broker, self.options.clone()).await
    }

    /// Waits until every service serves again.
    pub async fn all_ready(&self) -> Result<()> {
        for service in self.services() {
            service.wait_ready().await?;
        }
        Ok(())
    }

    fn services(&self) -> impl Iterator<Item = &Service> {
        let pairs = self.pairs.iter().flat_map(|pair| pair.query.iter().chain([&pair.processor]));
        pairs.chain([&self.ingest, &self.coordinator])
    }

    /// The last status of every shard.
    pub async fn shards(&self) -> Result<Vec<ShardStatus>> {
        Ok(self.catalog().get_catalog(GetCatalogRequest {}).await?.into_inner().shards)
    }

    /// Waits until every shard is where the token is, or beyond.
    pub async fn wait_processed(&self, token: &str) -> Result<Vec<ShardStatus>> {
        let token: Token = token.parse()?;
        let behind = |shard: &ShardStatus| {
            let at = token.positions.iter().find(|(p, _)| p.0 == shard.partition);
            at.is_some_and(|(_, at)| shard.position < at.0)
        };
        self.wait_shards(&format!("the shards are at {token}"), |shards| {
            !shards.is_empty() && !shards.iter().any(behind)
        })
        .await
    }

    /// Waits until the last statuses of the shards are as wanted.
    pub async fn wait_shards(
        &self,
        what: &str,
        wanted: impl Fn(&[ShardStatus]) -> bool,
    ) -> Result<Vec<ShardStatus>> {
        let shards = eventually(what, async || {
            Ok(found(self.shards().await, |shards| shards.as_deref().is_ok_and(&wanted)))
        });
        shards.await?
    }

    /// Stops every service in good order, and sees to it that each ends well.
    pub async fn terminate(self) -> Result<()> {
        for service in self.services() {
            let code = service.stop(PATIENCE).await?;
            ensure!(code == 0, "{:?} ended with {code}:\n{}", service.kind(), service.log().await?);
        }
        Ok(())
    }
}

impl Platform for Cluster {
    fn ingest_channel(&self) -> Channel {
        self.ingest.channel()
    }

    fn coordinator_channel(&self) -> Channel {
        self.coordinator.channel()
    }

    /// The first query service that there is.
    fn query_channel(&self) -> Channel {
        let query = self.pairs.iter().find_map(|pair| pair.query.as_ref());
        query.unwrap_or(&self.ingest).channel()
    }
}

/// Asks `kafka-consumer-groups --describe` about a group: partition, committed position, end, lag.
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
