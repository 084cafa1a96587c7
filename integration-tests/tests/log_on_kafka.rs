//! The log on a real broker: the conformance suite, and what only Kafka does.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use headwater_integration_tests::docker::{self, shared_broker};
use headwater_log::{Log, conformance};
use headwater_log_kafka::{KafkaConfig, KafkaLog};

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
