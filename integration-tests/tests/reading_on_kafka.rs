//! Several readers that share one consumer of a real broker.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use headwater_integration_tests::{
    docker::{self, shared_broker},
    patience::PATIENCE,
};
use headwater_log::{BatchBuilder, Log, Reader};
use headwater_log_kafka::{KafkaConfig, KafkaLog};
use headwater_types::{Name, Offset, PartitionId};

const PART: PartitionId = PartitionId(0);
/// The records are from 1970.
const KEEP: &[(&str, &str)] = &[("retention.ms", "-1")];

/// A log that may hold little ahead of its readers.
fn log(bootstrap: String) -> Result<Arc<KafkaLog>> {
    let config = KafkaConfig {
        bootstrap_servers: bootstrap,
        read_ahead_bytes: 2 << 20,
        ..KafkaConfig::default()
    };
    Ok(KafkaLog::connect(&config, "readers")?)
}

async fn append(log: &KafkaLog, topic: &Name, records: usize, value: &[u8]) -> Result<()> {
    let mut left = records;
    while left > 0 {
        let mut batch = BatchBuilder::new();
        for _ in 0..left.min(500) {
            batch.push(1, None, Some(value), &[]);
        }
        log.append(topic, PART, batch.build().context("it is not empty")?).await?;
        left -= left.min(500);
    }
    Ok(())
}

/// The first offset that the reader gives.
fn first(reader: &mut dyn Reader) -> Result<Offset> {
    let from = reader.position();
    let chunk = reader
        .read(1 << 20, PATIENCE)?
        .with_context(|| format!("nothing comes from {from} on within {PATIENCE:?}"))?;
    let record = chunk.records(from).next().context("a chunk has records")??;
    Ok(record.offset)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_at_its_end_hears_of_news_while_another_leaves_lying_what_it_has() -> Result<()> {
    docker::test(async {
        let broker = shared_broker().await?;
        let (left_lying, quiet) = (Name::new("left-lying")?, Name::new("quiet")?);
        for topic in [&left_lying, &quiet] {
            broker.create_topic(topic.as_str(), 1, KEEP).await?;
        }
        let log = log(broker.bootstrap_host())?;
        append(&log, &left_lying, 8_000, &[b'x'; 1_000]).await?;
        append(&log, &quiet, 1, b"before").await?;
        let mut reader = headwater_log::block_on(log.reader(&quiet, PART, Offset::ZERO))?;
        let (log, mut reader, _idle) = tokio::task::spawn_blocking(move || -> Result<_> {
            assert_eq!(first(&mut *reader)?, Offset(0));
            assert!(
                reader.read(1 << 20, Duration::from_millis(300))?.is_none(),
                "it is at its end"
            );
            let mut idle = headwater_log::block_on(log.reader(&left_lying, PART, Offset::ZERO))?;
            assert_eq!(first(&mut *idle)?, Offset(0));
            // The log holds as much as it may for a reader that does not ask for it.
            assert!(reader.read(1 << 20, Duration::from_secs(2))?.is_none(), "it is at its end");
            Ok((log, reader, idle))
        })
        .await??;
        append(&log, &quiet, 1, b"after").await?;
        let heard = tokio::task::spawn_blocking(move || first(&mut *reader)).await??;
        assert_eq!(heard, Offset(1));
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_gets_nothing_that_was_fetched_for_the_one_before_it() -> Result<()> {
    docker::test(async {
        let broker = shared_broker().await?;
        let topic = Name::new("one-after-the-other")?;
        broker.create_topic(topic.as_str(), 1, KEEP).await?;
        let log = log(broker.bootstrap_host())?;
        append(&log, &topic, 60_000, b"a record").await?;
        tokio::task::spawn_blocking(move || -> Result<()> {
            for round in 0..60 {
                // The first reader goes while the consumer still delivers to it.
                let mut ahead = headwater_log::block_on(log.reader(
                    &topic,
                    PART,
                    Offset(20_000 + 100 * round),
                ))?;
                assert_eq!(first(&mut *ahead)?, Offset(20_000 + 100 * round));
                drop(ahead);
                let mut behind = headwater_log::block_on(log.reader(&topic, PART, Offset(round)))?;
                assert_eq!(first(&mut *behind)?, Offset(round), "nothing is passed over");
            }
            Ok(())
        })
        .await?
    })
    .await
}
