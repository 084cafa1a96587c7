//! Topics that others own: transactions, compaction, both at once, and partitions that are added.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use headwater_integration_tests::{
    cluster::Cluster,
    docker::{self, Broker},
    foreign::{
        Counted, counted_by_kafka, counted_by_view, event, expect_view, producer, send, stream,
        view,
    },
    patience::PATIENCE,
    platform::Platform,
};
use rdkafka::{
    ClientConfig,
    producer::{BaseProducer, Producer},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_are_counted_as_kafkas_own_consumer_counts_them() -> Result<()> {
    docker::test(async {
        let broker = Broker::start().await?;
        let cluster = Cluster::start(&broker, 1, 1).await?;
        broker.create_topic("payments", 4, &[]).await?;
        cluster
            .apply(
                "payments",
                &[&stream("payments", "payments", 4), &view("paid", "payments", "amount")],
            )
            .await?;
        let host = broker.bootstrap_host();
        let produced = tokio::task::spawn_blocking(move || -> Result<()> {
            let wait = PATIENCE;
            let mut config = ClientConfig::new();
            config.set("bootstrap.servers", host).set("partitioner", "murmur2_random");
            let plain: BaseProducer = config.create()?;
            let transactional: BaseProducer = config.set("transactional.id", "foreign").create()?;
            transactional.init_transactions(wait)?;
            let mut number = 0;
            for round in 0..30u64 {
                transactional.begin_transaction()?;
                for _ in 0..40 {
                    let (key, value) = event(number % 17, number);
                    send(&transactional, "payments", &key, &value)?;
                    number += 1;
                }
                // Records without a transaction lie between those of the open one.
                for _ in 0..5 {
                    let (key, value) = event(number % 17, number);
                    send(&plain, "payments", &key, &value)?;
                    number += 1;
                }
                plain.flush(wait)?;
                transactional.flush(wait)?;
                match round % 3 {
                    0 => transactional.abort_transaction(wait)?,
                    _ => transactional.commit_transaction(wait)?,
                }
            }
            Ok(())
        });
        produced.await??;
        let expected = counted_by_kafka(&broker, "payments").await?;
        let events: i64 = expected.values().map(|(events, _)| events).sum();
        assert_eq!(events, 30 * 5 + 20 * 40, "a third of the transactions was aborted");
        expect_view(&cluster, "paid", &expected).await?;
        // The end of every partition is a marker, and the shards are behind it: they have caught
        // up.
        cluster
            .wait_shards("the shards are at the last stable offset", |shards| {
                shards.len() == 4 && shards.iter().all(|shard| shard.position == shard.log_end)
            })
            .await?;
        cluster.terminate().await
    })
    .await
}

/// Settings with which a topic is compacted within seconds.
const COMPACT: [(&str, &str); 4] = [
    ("cleanup.policy", "compact"),
    ("segment.ms", "200"),
    ("min.cleanable.dirty.ratio", "0.01"),
    ("max.compaction.lag.ms", "500"),
];

fn events(counted: &Counted) -> i64 {
    counted.values().map(|(events, _)| events).sum()
}

/// Waits until compaction has left fewer than so many records, and ends it. Returns what Kafka's
/// own consumer counts then. `one_more` writes a record: a segment is compacted once another has
/// begun.
async fn compacted(
    broker: &Broker,
    topic: &str,
    fewer: i64,
    one_more: impl Fn() -> Result<()>,
) -> Result<Counted> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = events(&counted_by_kafka(broker, topic).await?);
        if left < fewer {
            break;
        }
        ensure!(Instant::now() < deadline, "Kafka does not compact: {left} left");
        one_more()?;
    }
    let never = "min.compaction.lag.ms=86400000,max.compaction.lag.ms=9223372036854775807";
    let topic_is = ["--alter", "--entity-type", "topics", "--entity-name", topic];
    broker.exec("kafka-configs", &[&topic_is[..], &["--add-config", never]].concat()).await?;
    // A compaction that runs ends with the broker, and none begins after it.
    broker.stop().await?;
    broker.start_again().await?;
    counted_by_kafka(broker, topic).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_topic_is_counted_as_kafkas_own_consumer_counts_it() -> Result<()> {
    docker::test(async {
        let broker = Broker::start().await?;
        broker.create_topic("accounts", 2, &COMPACT).await?;
        let plain = producer(&broker, None)?;
        let (rounds, users) = (20, 50);
        for round in 0..rounds {
            for user in 0..users {
                let (key, value) = event(user, round * users + user);
                send(&plain, "accounts", &key, &value)?;
            }
            plain.flush(PATIENCE)?;
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
        let half = (rounds * users / 2) as i64;
        let expected = compacted(&broker, "accounts", half, || {
            let (key, value) = event(0, 5_000);
            send(&plain, "accounts", &key, &value)?;
            Ok(plain.flush(PATIENCE)?)
        })
        .await?;

        let cluster = Cluster::start(&broker, 1, 1).await?;
        cluster
            .apply(
                "accounts",
                &[&stream("accounts", "accounts", 2), &view("balances", "accounts", "amount")],
            )
            .await?;
        expect_view(&cluster, "balances", &expected).await?;
        cluster.terminate().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_topic_of_transactions_is_counted_as_kafkas_own_consumer_counts_it()
-> Result<()> {
    docker::test(async {
        let broker = Broker::start().await?;
        broker.create_topic("ledger", 2, &COMPACT).await?;
        let writer = producer(&broker, Some("ledger"))?;
        let wait = PATIENCE;
        let (rounds, users) = (24, 50);
        let round = |round: u64, users: u64, abort: bool| -> Result<()> {
            writer.begin_transaction()?;
            for user in 0..users {
                // An aborted amount would be seen in every total.
                let amount = round * users + user + if abort { 1_000_000 } else { 0 };
                let (key, value) = event(user, amount);
                send(&writer, "ledger", &key, &value)?;
            }
            writer.flush(wait)?;
            match abort {
                true => writer.abort_transaction(wait)?,
                false => writer.commit_transaction(wait)?,
            }
            Ok(())
        };
        writer.init_transactions(wait)?;
        for number in 0..rounds {
            // The newest record of a key may be an aborted one.
            round(number, users, number % 3 == 2)?;
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
        let committed = rounds * users * 2 / 3;
        let expected =
            compacted(&broker, "ledger", (committed / 2) as i64, || round(100, 1, false)).await?;
        ensure!(expected.len() as u64 == users, "every key is still there: {expected:?}");
        ensure!(
            expected.values().all(|(_, total)| *total < 1_000_000),
            "Kafka's own consumer counts what was aborted: {expected:?}"
        );

        let cluster = Cluster::start(&broker, 1, 1).await?;
        cluster
            .apply("ledger", &[&stream("ledger", "ledger", 2), &view("booked", "ledger", "amount")])
            .await?;
        expect_view(&cluster, "booked", &expected).await?;
        cluster.terminate().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_numbers_of_partitions_are_refused_and_never_split_keys() -> Result<()> {
    docker::test(async {
        let broker = Broker::start().await?;
        let cluster = Cluster::start(&broker, 1, 1).await?;
        for (topic, partitions) in [("few", 2), ("many", 6)] {
            broker.create_topic(topic, partitions, &[]).await?;
            let refused = cluster.apply(topic, &[&stream(topic, topic, 4)]).await;
            let error = refused.expect_err("the numbers differ").message().to_owned();
            ensure!(
                error.contains(topic)
                    && error.contains('4')
                    && error.contains(&partitions.to_string()),
                "{error}"
            );
        }

        broker.create_topic("grows", 2, &[]).await?;
        cluster
            .apply("grows", &[&stream("grows", "grows", 2), &view("grown", "grows", "amount")])
            .await?;
        let plain = producer(&broker, None)?;
        for number in 0..100 {
            let (key, value) = event(number % 5, number);
            send(&plain, "grows", &key, &value)?;
        }
        plain.flush(PATIENCE)?;
        let expected = counted_by_kafka(&broker, "grows").await?;
        expect_view(&cluster, "grown", &expected).await?;

        broker.exec("kafka-topics", &["--alter", "--topic", "grows", "--partitions", "3"]).await?;
        cluster
            .wait_shards("a shard names the new partition", |shards| {
                shards.iter().any(|shard| shard.error.contains("partitions"))
            })
            .await?;
        assert_eq!(counted_by_view(&cluster, "grown").await?, expected, "what was counted stays");
        Ok(())
    })
    .await
}
