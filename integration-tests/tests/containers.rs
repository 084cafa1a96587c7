//! The containers of all tests: a broker answers inside and outside its network, keeps its data
//! through every stop, kill and freeze, and is gone afterwards.

use std::{
    process::Command,
    sync::mpsc::{Sender, channel},
};

use anyhow::{Context as _, Result, ensure};
use headwater_integration_tests::{
    docker::{self, Broker, Kind, Options, Service, Volume, shared_broker},
    patience::PATIENCE,
};
use rdkafka::{
    ClientConfig, ClientContext, Message as _,
    consumer::{BaseConsumer, Consumer as _},
    error::KafkaError,
    producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext},
};

/// Receives the outcome of a write.
struct Outcome(Sender<Result<i64, KafkaError>>);

impl ClientContext for Outcome {}

impl ProducerContext for Outcome {
    type DeliveryOpaque = ();

    fn delivery(&self, outcome: &DeliveryResult<'_>, (): ()) {
        let outcome = outcome.as_ref().map(|record| record.offset());
        // Nobody waits any more if the test has failed already.
        let _ = self.0.send(outcome.map_err(|(error, _)| error.clone()));
    }
}

/// Writes a record from the host and returns its offset.
async fn produce(broker: &Broker, topic: &str, payload: &str) -> Result<i64> {
    let (sender, outcome) = channel();
    let producer: BaseProducer<Outcome> = ClientConfig::new()
        .set("bootstrap.servers", broker.bootstrap_host())
        .set("acks", "all")
        .set("message.timeout.ms", PATIENCE.as_millis().to_string())
        .create_with_context(Outcome(sender))?;
    let (topic, payload) = (topic.to_owned(), payload.to_owned());
    tokio::task::spawn_blocking(move || {
        let record = BaseRecord::<(), _>::to(&topic).payload(&payload).partition(0);
        producer.send(record).map_err(|(error, _)| error)?;
        producer.flush(PATIENCE)?;
        Ok(outcome.try_recv().context("no outcome")??)
    })
    .await?
}

/// Reads the record at an offset from the host.
async fn read(broker: &Broker, topic: &str, offset: i64) -> Result<String> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", broker.bootstrap_host())
        .set("group.id", "none")
        .set("enable.auto.commit", "false")
        .create()?;
    let mut from = rdkafka::TopicPartitionList::new();
    from.add_partition_offset(topic, 0, rdkafka::Offset::Offset(offset))?;
    consumer.assign(&from)?;
    tokio::task::spawn_blocking(move || {
        let record = consumer.poll(PATIENCE).context("no record")??;
        Ok(String::from_utf8(record.payload().context("no payload")?.to_vec())?)
    })
    .await?
}

/// The names of the containers, networks and volumes that carry this process's label.
fn ours() -> Result<String> {
    let label = format!("label=headwater.test={}", std::process::id());
    let mut found = String::new();
    for list in [&["ps", "--all", "--quiet"][..], &["network", "ls", "-q"], &["volume", "ls", "-q"]]
    {
        let output = Command::new("docker").args(list).args(["--filter", &label]).output()?;
        found += std::str::from_utf8(&output.stdout)?;
    }
    Ok(found)
}

#[tokio::test]
async fn a_broker_keeps_its_data_and_its_addresses_through_stop_kill_and_freeze() -> Result<()> {
    docker::test(async {
        let broker = Broker::start().await?;
        let address = broker.bootstrap_host();
        broker.create_topic("kept", 3, &[("retention.ms", "-1")]).await?;
        let described = broker.exec("kafka-topics", &["--describe", "--topic", "kept"]).await?;
        ensure!(described.contains("PartitionCount: 3"), "{described}");
        ensure!(described.contains("retention.ms=-1"), "{described}");

        ensure!(produce(&broker, "kept", "first").await? == 0);
        broker.kill().await?;
        broker.start_again().await?;
        ensure!(broker.bootstrap_host() == address);
        ensure!(produce(&broker, "kept", "second").await? == 1, "a killed broker lost a record");

        broker.freeze().await?;
        broker.thaw().await?;
        broker.stop().await?;
        broker.start_again().await?;
        ensure!(read(&broker, "kept", 0).await? == "first");
        ensure!(read(&broker, "kept", 1).await? == "second");

        let refused = broker.exec("kafka-topics", &["--describe", "--topic", "missing"]).await;
        let refused = refused.err().context("a tool that fails is an error")?;
        ensure!(format!("{refused:#}").contains("missing"), "{refused:#}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_shared_broker_is_reached_from_its_network_too_and_knows_only_topics_that_were_created()
-> Result<()> {
    docker::test(async {
        let broker = shared_broker().await?;
        ensure!(shared_broker().await?.bootstrap_host() == broker.bootstrap_host());
        broker.create_topic("containers-shared", 1, &[]).await?;
        let said = broker
            .shell(
                "echo 'key:from inside' | kafka-console-producer.sh --bootstrap-server $BOOTSTRAP \
                    --topic containers-shared --property parse.key=true --property key.separator=:",
            )
            .await;
        said?;
        ensure!(read(&broker, "containers-shared", 0).await? == "from inside");
        let topics = broker.exec("kafka-topics", &["--list"]).await?;
        ensure!(topics.lines().any(|topic| topic == "containers-shared"), "{topics}");

        let unknown = produce(&broker, "containers-misspelt", "lost").await;
        ensure!(unknown.is_err(), "a topic came into being that nobody created");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_service_that_refuses_its_settings_is_seen_to_end_with_its_code_and_its_reason()
-> Result<()> {
    docker::test(async {
        let broker = shared_broker().await?;
        let data = Volume::create("data").await?;
        // One setting does not exist; another contradicts a setting of another section.
        for (name, value, named) in [
            ("HEADWATER_SERVER__LISTNE", "1", "HEADWATER_SERVER__LISTNE"),
            ("HEADWATER_PROCESSOR__SESSION_GUARD", "5s", "processor.session-guard is 5s"),
        ] {
            let options = Options::new().data(&data).setting(name, value);
            let service = Service::launch(Kind::Processor, "processor-1", &broker, options).await?;
            ensure!(service.ended().await? == 2, "{}", service.log().await?);
            let said = service.log().await?;
            ensure!(said.contains(named), "{said}");
        }
        Ok(())
    })
    .await
}

#[test]
fn nothing_is_left_when_the_values_are_dropped_also_of_a_frozen_broker() -> Result<()> {
    // The test runs in a process of its own, which has no containers of other tests.
    if std::env::var_os("CONTAINERS_ALONE").is_none() {
        let status = Command::new(std::env::current_exe()?)
            .args([
                "--exact",
                "nothing_is_left_when_the_values_are_dropped_also_of_a_frozen_broker",
            ])
            .arg("--nocapture")
            .env("CONTAINERS_ALONE", "1")
            .status()?;
        ensure!(status.success());
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(docker::test(async {
        let broker = Broker::start().await?;
        let volume = Volume::create("unused").await?;
        ensure!(ours()?.lines().count() == 3, "a container, a network and a volume: {}", ours()?);
        broker.freeze().await?;
        drop((broker, volume));
        ensure!(ours()?.is_empty(), "left behind: {}", ours()?);
        Ok(())
    }))
}
