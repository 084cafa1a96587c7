//! The log on a real broker: the conformance suite, and what only Kafka does.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use headwater_integration_tests::docker::{self, shared_broker};
use headwater_log::{BatchBuilder, EncodedBatch, Error, Log, conformance};
use headwater_log_kafka::{KafkaConfig, KafkaLog};
use headwater_types::{Name, Offset, PartitionId, Remedy};

fn config(bootstrap: String) -> KafkaConfig {
    KafkaConfig {
        bootstrap_servers: bootstrap,
        session_timeout: Duration::from_secs(2),
        ..KafkaConfig::default()
    }
}

struct Subject(KafkaConfig);

impl conformance::Subject for Subject {
    fn open(&self) -> Arc<dyn Log> {
        KafkaLog::connect(&self.0, "conformance").expect("the settings are right")
    }

    fn durable(&self) -> bool {
        true
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_on_kafka_keeps_every_law() -> Result<()> {
    docker::test(async {
        let broker = shared_broker().await?;
        let subject = Subject(config(broker.bootstrap_host()));
        tokio::task::spawn_blocking(move || conformance::all(&subject)).await?;
        Ok(())
    })
    .await
}

fn batch(values: &[&[u8]]) -> EncodedBatch {
    let mut batch = BatchBuilder::new();
    for value in values {
        batch.push(1, Some(b"k"), Some(value), &[]);
    }
    batch.build().expect("it is not empty")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_a_topic_is_given_later_is_learnt_from_the_brokers_refusal() -> Result<()> {
    const PART: PartitionId = PartitionId(0);
    docker::test(async {
        let broker = shared_broker().await?;
        let topic = Name::new("limited-later")?;
        broker.create_topic(topic.as_str(), 1, &[]).await?;
        let log = KafkaLog::connect(&config(broker.bootstrap_host()), "test")?;
        // Bytes that lz4 cannot shorten.
        let large: Vec<u8> =
            (0..5000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
        let mixed = || batch(&[b"a", &large, b"b"]);
        assert_eq!(log.append(&topic, PART, mixed()).await?.first(), Offset(0));
        let arguments = ["--alter", "--entity-type", "topics", "--entity-name", topic.as_str()];
        let limit = ["--add-config", "max.message.bytes=10000"];
        broker.exec("kafka-configs", &[&arguments[..], &limit[..]].concat()).await?;

        let refused = log.append(&topic, PART, mixed()).await.expect_err("it is over the limit");
        assert_eq!(refused.remedy(), Remedy::Retry, "two of them are good: {refused:?}");
        let refused = log.append(&topic, PART, mixed()).await.expect_err("it is over the limit");
        let Error::RecordTooLarge { index: 1, limit: 10_000, .. } = refused else {
            panic!("{refused:?}")
        };
        // Each is within the limit, all together are not.
        let many = [&large[..9000]; 50];
        assert_eq!(log.append(&topic, PART, batch(&many)).await?.first(), Offset(3));
        Ok(())
    })
    .await
}
