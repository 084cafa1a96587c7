//! The story on a real broker: four services in containers, two processors, two query services, a
//! foreign client beside our own ingest; and Kafka's own tool sees how far each generation is.

use std::{fmt::Write as _, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use headwater_integration_tests::{
    cluster::{self, Cluster},
    docker::{self, Broker},
    flights::{self, Flight, punctuality},
    patience::{Found, eventually, found},
    platform::Platform,
    story,
    views::{self, after},
};
use headwater_proto::{control::v1::GetCatalogRequest, query::v1::Freshness};

/// Produces flights with Kafka's own console producer, which knows nothing of Headwater: keys as
/// Kafka spreads them, no headers.
async fn produce_with_a_foreign_client(broker: &Broker, flights: &[Flight]) -> Result<()> {
    for some in flights.chunks(200) {
        let mut lines = String::new();
        for flight in some {
            writeln!(lines, "{}|{}", flight.origin, std::str::from_utf8(&flight.json)?)?;
        }
        let script = format!(
            "kafka-console-producer.sh --bootstrap-server $BOOTSTRAP --topic flights \
             --property parse.key=true --property 'key.separator=|' <<'END'\n{lines}END"
        );
        broker.shell(&script).await?;
    }
    Ok(())
}

/// Departures of the first of January, on the first of February: they come after all of the file.
fn a_month_later(flights: &[Flight]) -> Result<Vec<Flight>> {
    let later = |flight: &Flight| -> Result<Flight> {
        let json = std::str::from_utf8(&flight.json)?.replace("2013-01-", "2013-02-");
        flights::parse(json.into_bytes())
    };
    flights.iter().map(later).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_story_is_told_by_containers_on_a_real_broker() -> Result<()> {
    docker::test(async {
        let broker = Broker::start().await?;
        let cluster = Arc::new(Cluster::start(&broker, 2, 2).await?);
        let token = story::tell(&cluster).await?;

        // Shards lie on both processors, so each answer was put together from both query services.
        let answer = views::punctuality(&*cluster, after(std::slice::from_ref(&token))).await?;
        let elsewhere =
            answer.provenance.partitions.iter().filter(|part| !part.served_by.is_empty()).count();
        ensure!(
            elsewhere > 0 && elsewhere < flights::PARTITIONS as usize,
            "every shard was read by one query service: {:?}",
            answer.provenance
        );
        assert_eq!(answer.provenance.served_by, "query-1");
        // The other query service gives the same answer.
        let other = Other(&cluster);
        let same = views::punctuality(&other, after(std::slice::from_ref(&token))).await?;
        assert_eq!(same.rows, answer.rows);
        assert_eq!(same.provenance.served_by, "query-2");

        // A foreign client writes while everything runs.
        let flights = flights::read()?;
        let foreign = a_month_later(&flights[..600])?;
        produce_with_a_foreign_client(&broker, &foreign).await?;
        let expected = punctuality(flights.iter().chain(&foreign), 2);
        eventually("what a foreign client wrote is counted as the file says", async || {
            let answer = views::punctuality(&*cluster, Freshness::default()).await?;
            Ok(match answer.rows == expected {
                true => Found::Yes(()),
                false => Found::NotYet(format!("{:?}", answer.provenance)),
            })
        })
        .await?;

        // Both generations have caught up, and Kafka's own tool says so.
        let catalog = cluster.catalog().get_catalog(GetCatalogRequest {}).await?.into_inner();
        let running = catalog
            .generations
            .iter()
            .filter(|info| ["serving", "retained"].contains(&info.role.as_str()));
        let mut seen = 0;
        for info in running {
            let id = &info.generation.as_ref().context("a generation")?.id;
            let group = format!("headwater.{id}");
            let records = flights.len() as u64 + foreign.len() as u64;
            eventually(&format!("group {group} has no lag"), async || {
                Ok(found(cluster::lag(&broker, &group).await?, |lag| {
                    // Keys of three airports go to three of the four partitions.
                    let total: u64 = lag.iter().map(|(_, _, end, _)| end).sum();
                    let caught_up = lag.iter().all(|(_, position, end, lag)| {
                        (*lag == Some(0) && *position == Some(*end)) || (*end == 0)
                    });
                    caught_up && total == records
                }))
            })
            .await?;
            seen += 1;
        }
        assert_eq!(seen, 2, "one generation serves, and one is retained");

        let cluster = Arc::into_inner(cluster).context("somebody still uses the cluster")?;
        cluster.terminate().await
    })
    .await
}

/// The same platform, asked through its second query service.
struct Other<'a>(&'a Cluster);

impl Platform for Other<'_> {
    fn ingest_channel(&self) -> tonic::transport::Channel {
        self.0.ingest_channel()
    }

    fn coordinator_channel(&self) -> tonic::transport::Channel {
        self.0.coordinator_channel()
    }

    fn query_channel(&self) -> tonic::transport::Channel {
        let query = self.0.pairs.iter().rev().find_map(|pair| pair.query.as_ref());
        query.map_or_else(|| self.0.query_channel(), |query| query.channel())
    }
}
