//! Records that go while somebody still has to read them: a replay which they overtake stops and says why.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use headwater_integration_tests::{
    cluster::{Cluster, QUOTAS_AT_ONCE, reader, throttle},
    dev::PATIENCE,
    docker::{self, Broker},
    foreign::{Counted, counted_by_kafka, event, expect_view, producer, send, stream, view},
    platform::Platform,
    replays,
};
use headwater_proto::control::v1::{ApplyRequest, DefinitionFile, Phase, Replay};
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer as _},
    producer::Producer as _,
};

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

/// A topic of one partition in many small batches and segments, a view of it that has read it all, and a replay of
/// that view which has read some of it, by a quota, and will not have read the rest for long.
struct Overtaken {
    cluster: Cluster,
    broker: Broker,
    topic: &'static str,
    written: u64,
    expected: Counted,
    replay: String,
}

impl Overtaken {
    async fn start(topic: &'static str, settings: &[(&str, &str)]) -> Result<Self> {
        let broker = Broker::start_with(&[QUOTAS_AT_ONCE]).await?;
        broker.create_topic(topic, 1, settings).await?;
        let cluster = Cluster::start(&broker, 1, 1).await?;
        let (definition, live) = (stream(topic, topic, 1), view("counts", topic, "amount"));
        cluster.apply("create", &[&definition, &live]).await?;
        // Another generation that says the same: it has the second reader, with which new owners look for what former
        // ones said, so that the third is for the replay alone.
        let same = view("counts", topic, "amount + 1 - 1");
        let replay = replays::start(&cluster, "same", &[&definition, &same]).await?;
        replays::wait_for(&cluster, &replay, &[Phase::Hold]).await?;
        replays::promote(&cluster, &replay, "promote").await?;
        replays::wait_for(&cluster, &replay, &[Phase::Retain]).await?;
        let mut this = Self {
            cluster,
            broker,
            topic,
            written: 0,
            expected: Counted::new(),
            replay: String::new(),
        };
        this.write(4_000).await?;
        assert_eq!(counted_by_kafka(&this.broker, topic).await?, this.expected);
        expect_view(&this.cluster, "counts", &this.expected).await?;

        let third = [reader("processor-1", 2)];
        throttle(&this.broker, &third, Some(4_000)).await?;
        let changed = view("counts", topic, "amount + 1");
        this.replay = replays::start(&this.cluster, "overtaken", &[&definition, &changed]).await?;
        replays::until(&this.cluster, &this.replay, |state| {
            replays::in_the_middle(state) && state.records_total == this.written
        })
        .await?;
        Ok(this)
    }

    async fn write(&mut self, events: u64) -> Result<()> {
        let plain = producer(&self.broker, None)?;
        for number in self.written..self.written + events {
            let (key, value) = event(number % 9, number);
            send(&plain, self.topic, &key, &value)?;
            if number % 100 == 99 {
                plain.flush(Duration::from_secs(20))?;
            }
            let (events, total) = self.expected.entry(key).or_default();
            *events += 1;
            *total += number as i64;
        }
        plain.flush(Duration::from_secs(20))?;
        self.written += events;
        Ok(())
    }

    /// Where the replay is, as long as that is known.
    async fn position(&self) -> Result<Option<u64>> {
        let generation = replays::get(&self.cluster, &self.replay).await?.new_generation;
        let shards = self.cluster.shards().await?;
        let shard = shards.into_iter().find(|shard| shard.generation == generation);
        Ok(shard.map(|shard| shard.position))
    }

    /// Where the topic begins and ends.
    async fn ends(&self) -> Result<(u64, u64)> {
        let (bootstrap, topic) = (self.broker.bootstrap_host(), self.topic);
        let ask = move || -> Result<(u64, u64)> {
            let client: BaseConsumer =
                ClientConfig::new().set("bootstrap.servers", bootstrap).create()?;
            let (start, end) = client.fetch_watermarks(topic, 0, Duration::from_secs(10))?;
            Ok((u64::try_from(start)?, u64::try_from(end)?))
        };
        tokio::task::spawn_blocking(ask).await?
    }

    /// The replay has said why it cannot go on, live goes on, and a new plan says what is no longer there.
    async fn stops_and_live_goes_on(mut self) -> Result<()> {
        let wanted = |state: &Replay| state.phase() == Phase::Failed;
        let failed = replays::until(&self.cluster, &self.replay, wanted).await?;
        ensure!(
            failed.reason.contains("trimmed") && failed.reason.contains(self.topic),
            "{}",
            failed.reason
        );
        self.write(100).await?;
        expect_view(&self.cluster, "counts", &self.expected).await?;
        let definition = stream(self.topic, self.topic, 1);
        let changed = view("counts", self.topic, "amount + 2");
        let warnings = dry_run(&self.cluster, &[&definition, &changed]).await?;
        ensure!(
            warnings
                .iter()
                .any(|warning| warning.contains("trimmed") || warning.contains("no longer")),
            "{warnings:?}"
        );
        self.cluster.terminate().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_replay_whose_next_records_are_deleted_stops_and_live_goes_on() -> Result<()> {
    docker::test(async {
        let overtaken = Overtaken::start("clicks", &[]).await?;
        let processor = &overtaken.cluster.pairs[0].processor;
        // It stands still in the middle, and finds what comes next gone.
        processor.freeze().await?;
        let before = overtaken.ends().await?.1 * 3 / 4;
        let position = overtaken.position().await?.context("it has said nothing")?;
        ensure!(0 < position && position < before, "it is at {position}, not in the middle");
        trim(&overtaken.broker, "clicks", before).await?;
        processor.thaw().await?;
        overtaken.stops_and_live_goes_on().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_replay_that_the_brokers_own_retention_overtakes_stops_and_live_goes_on()
-> Result<()> {
    docker::test(async {
        let settings = [("segment.ms", "200"), ("retention.ms", "-1")];
        let overtaken = Overtaken::start("visits", &settings).await?;
        let alter = [
            "--alter",
            "--entity-type",
            "topics",
            "--entity-name",
            "visits",
            "--add-config",
            "retention.bytes=20000",
        ];
        overtaken.broker.exec("kafka-configs", &alter).await?;
        // The broker removes whole segments when it comes to it, while the replay is read on slowly.
        let deadline = Instant::now() + PATIENCE;
        let mut position = None;
        loop {
            let start = overtaken.ends().await?.0;
            // Once it has failed, that is not known any more.
            position = overtaken.position().await?.or(position);
            if position.is_some_and(|at| 0 < at && at < start) {
                break;
            }
            ensure!(Instant::now() < deadline, "at {position:?} it is not overtaken by {start}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        overtaken.stops_and_live_goes_on().await
    })
    .await
}

/// Removes records with Kafka's own tool.
async fn trim(broker: &Broker, topic: &str, before: u64) -> Result<()> {
    let offsets = format!("{{\"topic\":\"{topic}\",\"partition\":0,\"offset\":{before}}}");
    let script = format!(
        "echo '{{\"partitions\":[{offsets}],\"version\":1}}' > /tmp/trim.json; \
         kafka-delete-records.sh --bootstrap-server $BOOTSTRAP --offset-json-file /tmp/trim.json"
    );
    broker.shell(&script).await.map(drop)
}
