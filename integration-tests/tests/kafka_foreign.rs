//! Topics that others own: transactions, compaction, retention, partitions that are added.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use headwater_integration_tests::{
    cluster::Cluster,
    dev::PATIENCE,
    docker::{self, Broker},
    platform::Platform,
    replays, views,
};
use headwater_proto::{
    common::v1::value::Kind,
    control::v1::{ApplyRequest, DefinitionFile, Phase},
    query::v1::Freshness,
};
use rdkafka::{
    ClientConfig,
    producer::{BaseProducer, BaseRecord, Producer},
};

/// Everything that is settled before the first event of the tests comes at this time.
const T0: i64 = 1_700_000_000_000;

fn stream(topic: &str, name: &str, partitions: u32) -> String {
    format!(
        "CREATE STREAM {name} (user_id VARCHAR, amount BIGINT, ts TIMESTAMP, \
         WATERMARK FOR ts AS ts - INTERVAL '5 seconds') \
         WITH (topic = '{topic}', format = 'json', key = 'user_id', partitions = {partitions});"
    )
}

fn view(name: &str, stream: &str, amount: &str) -> String {
    format!(
        "CREATE MATERIALIZED VIEW {name} WITH (retention = 'forever') AS SELECT user_id, count(*) AS events, sum({amount}) AS total \
         FROM {stream} GROUP BY user_id EMIT ON UPDATE;"
    )
}

fn event(user: u64, number: u64) -> (String, String) {
    let user = format!("u{user}");
    let value = format!(
        "{{\"user_id\":\"{user}\",\"amount\":{number},\"ts\":\"{}\"}}",
        // A second apart, so that nothing is late.
        rfc3339(T0 + number as i64 * 10)
    );
    (user, value)
}

/// Of a moment in November 2023, which is where the tests live.
fn rfc3339(millis: i64) -> String {
    let since = millis - 1_698_796_800_000; // 2023-11-01T00:00:00Z
    let (days, rest) = (since / 86_400_000, since % 86_400_000);
    let (hours, rest) = (rest / 3_600_000, rest % 3_600_000);
    format!(
        "2023-11-{:02}T{hours:02}:{:02}:{:02}.{:03}Z",
        days + 1,
        rest / 60_000,
        rest / 1000 % 60,
        rest % 1000
    )
}

fn producer(broker: &Broker, transactional: Option<&str>) -> Result<BaseProducer> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", broker.bootstrap_host()).set("partitioner", "murmur2_random");
    if let Some(id) = transactional {
        config.set("transactional.id", id);
    }
    Ok(config.create()?)
}

fn send(producer: &BaseProducer, topic: &str, key: &str, value: &str) -> Result<()> {
    let record = BaseRecord::to(topic).key(key).payload(value);
    producer.send(record).map_err(|(error, _)| error)?;
    producer.poll(Duration::ZERO);
    Ok(())
}

/// Events and total by user.
type Counted = BTreeMap<String, (i64, i64)>;

/// What Kafka's own consumer reads of a topic when it reads committed records only.
async fn counted_by_kafka(broker: &Broker, topic: &str) -> Result<Counted> {
    let script = format!(
        "kafka-console-consumer.sh --bootstrap-server $BOOTSTRAP --topic {topic} --from-beginning \
         --isolation-level read_committed --timeout-ms 5000 2>/dev/null || true"
    );
    let mut counted = Counted::new();
    for line in broker.shell(&script).await?.lines().filter(|line| line.starts_with('{')) {
        let value: serde_json::Value = serde_json::from_str(line)?;
        let user = value["user_id"].as_str().context("user_id")?;
        let (events, total) = counted.entry(user.to_owned()).or_default();
        *events += 1;
        *total += value["amount"].as_i64().context("amount")?;
    }
    Ok(counted)
}

async fn counted_by_view(platform: &impl Platform, view: &str) -> Result<Counted> {
    let sql = format!("SELECT user_id, events, total FROM {view}");
    let mut counted = Counted::new();
    for row in views::sql(platform, &sql, Freshness::default()).await? {
        let kinds: Vec<_> = row.into_iter().map(|value| value.kind).collect();
        let [Some(Kind::Text(user)), Some(Kind::Integer(events)), Some(Kind::Integer(total))] =
            kinds.as_slice()
        else {
            anyhow::bail!("{kinds:?}")
        };
        counted.insert(user.clone(), (*events, *total));
    }
    Ok(counted)
}

async fn expect_view(platform: &impl Platform, view: &str, expected: &Counted) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let counted = counted_by_view(platform, view).await;
        if counted.as_ref().is_ok_and(|counted| counted == expected) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "view {view} says {counted:?}, Kafka {expected:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

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
            let wait = Duration::from_secs(20);
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
        // The end of every partition is a marker, and the shards are behind it: they have caught up.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let shards = cluster.shards().await?;
            if shards.iter().all(|shard| shard.position == shard.log_end) && shards.len() == 4 {
                break;
            }
            ensure!(
                Instant::now() < deadline,
                "shards do not reach the last stable offset: {shards:?}"
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        cluster.terminate().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_topic_is_counted_as_kafkas_own_consumer_counts_it() -> Result<()> {
    docker::test(async {
        let broker = Broker::start().await?;
        let settings = [
            ("cleanup.policy", "compact"),
            ("segment.ms", "200"),
            ("min.cleanable.dirty.ratio", "0.01"),
            ("max.compaction.lag.ms", "500"),
        ];
        broker.create_topic("accounts", 2, &settings).await?;
        let plain = producer(&broker, None)?;
        let mut written = 0;
        for round in 0..20 {
            for user in 0..50u64 {
                let (key, value) = event(user, round * 50 + user);
                send(&plain, "accounts", &key, &value)?;
                written += 1;
            }
            plain.flush(Duration::from_secs(20))?;
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
        // Wait until compaction has removed something.
        let deadline = Instant::now() + PATIENCE;
        let events = |counted: &Counted| counted.values().map(|(events, _)| events).sum::<i64>();
        loop {
            let counted = counted_by_kafka(&broker, "accounts").await?;
            if events(&counted) < written / 2 {
                break;
            }
            ensure!(Instant::now() < deadline, "Kafka does not compact: {} left", events(&counted));
            // A segment is compacted once another has begun.
            let (key, value) = event(0, 5_000);
            send(&plain, "accounts", &key, &value)?;
            plain.flush(Duration::from_secs(20))?;
            written += 1;
        }
        // No more compaction while the two are compared.
        broker
            .exec(
                "kafka-configs",
                &[
                    "--alter",
                    "--entity-type",
                    "topics",
                    "--entity-name",
                    "accounts",
                    "--add-config",
                    "min.compaction.lag.ms=86400000,max.compaction.lag.ms=9223372036854775807",
                ],
            )
            .await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let expected = counted_by_kafka(&broker, "accounts").await?;

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

async fn dry_run(cluster: &Cluster, sql: &[&str]) -> Result<Vec<String>> {
    let files = sql
        .iter()
        .enumerate()
        .map(|(place, sql)| DefinitionFile { name: format!("{place}.sql"), sql: (*sql).into() });
    let request = ApplyRequest { files: files.collect(), dry_run: true, ..ApplyRequest::default() };
    let answer = cluster.catalog().apply(request).await?.into_inner();
    Ok(answer
        .changes
        .into_iter()
        .filter_map(|change| change.plan)
        .flat_map(|plan| plan.warnings)
        .collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trimmed_topic_is_announced_by_the_plan_and_stops_a_replay_that_it_overtakes()
-> Result<()> {
    docker::test(async {
        let broker = Broker::start().await?;
        let cluster = Cluster::start(&broker, 1, 1).await?;
        broker.create_topic("clicks", 2, &[]).await?;
        let definition = stream("clicks", "clicks", 2);
        cluster.apply("clicks", &[&definition, &view("clicked", "clicks", "amount")]).await?;
        let plain = producer(&broker, None)?;
        for number in 0..400 {
            let (key, value) = event(number % 9, number);
            send(&plain, "clicks", &key, &value)?;
        }
        plain.flush(Duration::from_secs(20))?;
        let all = counted_by_kafka(&broker, "clicks").await?;
        expect_view(&cluster, "clicked", &all).await?;

        // A replay begins while nobody runs it, and the topic is trimmed before its first record is read.
        let processor = &cluster.pairs[0].processor;
        ensure!(
            processor.stop(Duration::from_secs(30)).await? == 0,
            "the processor did not end well"
        );
        let applied = cluster
            .apply("overtaken", &[&definition, &view("clicked", "clicks", "amount + 1")])
            .await?;
        let replay = applied
            .changes
            .iter()
            .find(|change| !change.replay_id.is_empty())
            .context("no replay was started")?
            .replay_id
            .clone();
        trim(&broker, "clicks", &[50, 50]).await?;
        processor.start_again().await.ok();

        // The replay says why it cannot go on; it does not begin in the middle.
        let deadline = Instant::now() + PATIENCE;
        let reason = loop {
            let state = replays::get(&cluster, &replay).await?;
            let reason = format!("{} {}", state.reason, state.waiting_for);
            if reason.contains("trimmed") {
                ensure!(state.phase() != Phase::Retain, "it was promoted");
                break reason;
            }
            ensure!(Instant::now() < deadline, "the replay says nothing of the trim: {state:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        ensure!(reason.contains("clicks"), "{reason}");

        // Live goes on.
        let mut expected = all;
        for number in 400..500 {
            let (key, value) = event(number % 9, number);
            send(&plain, "clicks", &key, &value)?;
            let (events, total) = expected.entry(key).or_default();
            *events += 1;
            *total += number as i64;
        }
        plain.flush(Duration::from_secs(20))?;
        expect_view(&cluster, "clicked", &expected).await?;

        // A new plan says that its input begins later.
        let warnings =
            dry_run(&cluster, &[&definition, &view("clicked", "clicks", "amount + 2")]).await?;
        ensure!(
            warnings
                .iter()
                .any(|warning| warning.contains("trimmed") || warning.contains("no longer")),
            "{warnings:?}"
        );
        Ok(())
    })
    .await
}

/// Removes records with Kafka's own tool.
async fn trim(broker: &Broker, topic: &str, before: &[u64]) -> Result<()> {
    let partitions: Vec<_> = before
        .iter()
        .enumerate()
        .map(|(partition, offset)| {
            format!("{{\"topic\":\"{topic}\",\"partition\":{partition},\"offset\":{offset}}}")
        })
        .collect();
    let script = format!(
        "echo '{{\"partitions\":[{}],\"version\":1}}' > /tmp/trim.json; \
         kafka-delete-records.sh --bootstrap-server $BOOTSTRAP --offset-json-file /tmp/trim.json",
        partitions.join(",")
    );
    broker.shell(&script).await.map(drop)
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
        plain.flush(Duration::from_secs(20))?;
        let expected = counted_by_kafka(&broker, "grows").await?;
        expect_view(&cluster, "grown", &expected).await?;

        broker.exec("kafka-topics", &["--alter", "--topic", "grows", "--partitions", "3"]).await?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let shards = cluster.shards().await?;
            if shards.iter().any(|shard| shard.error.contains("partitions")) {
                break;
            }
            ensure!(Instant::now() < deadline, "nobody noticed the new partition: {shards:?}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        assert_eq!(counted_by_view(&cluster, "grown").await?, expected, "what was counted stays");
        Ok(())
    })
    .await
}
