//! Records that are deleted before a replay has read them: the replay stops and says why.

use anyhow::{Context as _, Result, ensure};
use headwater_integration_tests::{
    cluster::{Cluster, SMALL_STEPS},
    docker::{self, Broker},
    failpoints::{Failpoints, point},
    foreign::{Counted, event, expect_view, producer, send, stream, view},
    patience::{PATIENCE, eventually, found},
    platform::Platform,
    replays, topics,
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

/// A topic of one partition in many small batches and segments, a view of it that has read it all,
/// and a replay of that view which stands still after its first records, with far more to come than
/// a consumer holds ahead.
struct Overtaken {
    cluster: Cluster,
    broker: Broker,
    topic: &'static str,
    written: u64,
    expected: Counted,
    replay: String,
}

/// A processor's consumer fetches at most so many bytes ahead: 16 MiB, and as much again on the
/// way.
const HELD_AHEAD: u64 = 32 << 20;
/// Length of a record.
const LENGTH: u64 = 4 << 10;

impl Overtaken {
    async fn start(topic: &'static str, settings: &[(&str, &str)]) -> Result<Self> {
        let broker = Broker::start().await?;
        broker.create_topic(topic, 1, settings).await?;
        let small =
            [&SMALL_STEPS[..], &[("HEADWATER_KAFKA__READ_AHEAD_BYTES", "1048576")]].concat();
        let cluster = Cluster::start_with(&broker, 1, 1, &small).await?;
        let (definition, live) = (stream(topic, topic, 1), view("counts", topic, "amount"));
        cluster.apply("create", &[&definition, &live]).await?;
        let mut this = Self {
            cluster,
            broker,
            topic,
            written: 0,
            expected: Counted::new(),
            replay: String::new(),
        };
        this.write(2 * HELD_AHEAD / LENGTH).await?;
        expect_view(&this.cluster, "counts", &this.expected).await?;

        this.points().set(point::REPLAY)?;
        let changed = view("counts", topic, "amount + 1");
        this.replay = replays::start(&this.cluster, "overtaken", &[&definition, &changed]).await?;
        this.points().reached(point::REPLAY).await?;
        topics::replay_until(&this.broker, &this.replay, |replay| {
            replays::in_the_middle(replay) && replay.records_total == this.written
        })
        .await?;
        Ok(this)
    }

    fn points(&self) -> &Failpoints {
        self.cluster.pairs[0].processor.failpoints()
    }

    async fn write(&mut self, events: u64) -> Result<()> {
        let plain = producer(&self.broker, None)?;
        // The stream has no such column.
        let pad = format!(",\"pad\":\"{}\"}}", "x".repeat(usize::try_from(LENGTH)?));
        for number in self.written..self.written + events {
            let (key, value) = event(number % 9, number);
            send(&plain, self.topic, &key, &value.replace('}', &pad))?;
            if number % 20 == 19 {
                plain.flush(PATIENCE)?;
            }
            let (events, total) = self.expected.entry(key).or_default();
            *events += 1;
            *total += number as i64;
        }
        plain.flush(PATIENCE)?;
        self.written += events;
        Ok(())
    }

    /// The position of the replay.
    async fn position(&self) -> Result<u64> {
        let generation = replays::get(&self.cluster, &self.replay).await?.new_generation;
        let shards = self.cluster.shards().await?;
        let shard = shards.into_iter().find(|shard| shard.generation == generation);
        Ok(shard.context("it has said nothing")?.position)
    }

    /// The position behind all that the consumer of the replay may have fetched.
    async fn beyond(&self) -> Result<u64> {
        let (position, end) = (self.position().await?, self.ends().await?.1);
        let beyond = position + HELD_AHEAD / LENGTH;
        ensure!(0 < position && beyond < end, "it stands at {position}, not far before {end}");
        Ok(beyond)
    }

    /// The beginning and the end of the topic.
    async fn ends(&self) -> Result<(u64, u64)> {
        let (bootstrap, topic) = (self.broker.bootstrap_host(), self.topic);
        let ask = move || -> Result<(u64, u64)> {
            let client: BaseConsumer =
                ClientConfig::new().set("bootstrap.servers", bootstrap).create()?;
            let (start, end) = client.fetch_watermarks(topic, 0, PATIENCE)?;
            Ok((u64::try_from(start)?, u64::try_from(end)?))
        };
        tokio::task::spawn_blocking(ask).await?
    }

    /// Releases the replay, which then finds its next records gone and says why it stops. Live goes
    /// on, and a new plan warns of the records that are gone.
    async fn stops_and_live_goes_on(mut self) -> Result<()> {
        self.points().release(point::REPLAY)?;
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
        let before = overtaken.beyond().await?;
        trim(&overtaken.broker, "clicks", before).await?;
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
        // The broker removes whole segments, at a time of its own.
        let beyond = overtaken.beyond().await?;
        eventually(&format!("the topic begins behind {beyond}"), async || {
            Ok(found(overtaken.ends().await?, |(start, _)| *start >= beyond))
        })
        .await?;
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
