//! The records of topics, read past every service: from the first to the last, with librdkafka
//! alone.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use headwater_control::{
    CONTROL_TOPIC, ControlState, LogEnds, STATUS_TOPIC, StatusBoard, replay_status,
};
use headwater_proto::{
    control::v1::{ControlRecord, Replay},
    status::v1::ShardStatus,
};
use headwater_types::Offset;
use prost::Message as _;
use rdkafka::{
    ClientConfig, Message as _, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    error::{KafkaError, RDKafkaErrorCode},
    message::{BorrowedMessage, Headers as _},
};

use crate::{
    docker::Broker,
    patience::{PATIENCE, eventually, found},
};

/// A record as librdkafka hands it out, its headers in order. Names of headers must be text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub partition: u32,
    pub offset: u64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

/// The committed records of a topic, partition by partition, each in order.
pub async fn read(broker: &Broker, topic: &str) -> Result<Vec<Record>> {
    let (bootstrap, topic) = (broker.bootstrap_host(), topic.to_owned());
    let mut records = tokio::task::spawn_blocking(move || -> Result<_> {
        let mut records = Vec::new();
        each(&bootstrap, &topic, |message| {
            records.push(record(message)?);
            Ok(())
        })?;
        Ok(records)
    })
    .await??;
    records.sort_by_key(|record| (record.partition, record.offset));
    Ok(records)
}

/// The number of committed records of a topic, whatever they hold.
pub async fn count(broker: &Broker, topic: &str) -> Result<usize> {
    let (bootstrap, topic) = (broker.bootstrap_host(), topic.to_owned());
    let count = move || {
        let mut count = 0;
        each(&bootstrap, &topic, |_| {
            count += 1;
            Ok(())
        })?;
        Ok(count)
    };
    tokio::task::spawn_blocking(count).await?
}

fn record(message: &BorrowedMessage<'_>) -> Result<Record> {
    let headers = message.headers().into_iter().flat_map(|headers| headers.iter());
    Ok(Record {
        partition: u32::try_from(message.partition())?,
        offset: u64::try_from(message.offset())?,
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        headers: headers.map(|it| (it.key.to_owned(), it.value.map(<[u8]>::to_vec))).collect(),
    })
}

/// Hands each committed record of a topic to `take`, up to the ends that the topic has now.
fn each(
    bootstrap: &str,
    topic: &str,
    mut take: impl FnMut(&BorrowedMessage<'_>) -> Result<()>,
) -> Result<()> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "looking-on")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .set("fetch.wait.max.ms", "10")
        .set("reconnect.backoff.max.ms", "200")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE)?;
    let partitions = metadata.topics().first().context("no topic")?.partitions().len();
    ensure!(partitions > 0, "there is no topic {topic}");
    let mut all = TopicPartitionList::new();
    // The ends as they are now. A writer may go on, so that no record stays the last one.
    let mut left = BTreeMap::new();
    for partition in 0..i32::try_from(partitions)? {
        all.add_partition_offset(topic, partition, rdkafka::Offset::Beginning)?;
        left.insert(partition, consumer.fetch_watermarks(topic, partition, PATIENCE)?.1);
    }
    consumer.assign(&all)?;
    let deadline = Instant::now() + PATIENCE;
    while !left.is_empty() {
        ensure!(Instant::now() < deadline, "the end of {topic} does not come");
        match consumer.poll(Duration::from_secs(1)) {
            Some(Ok(message)) => {
                if left.get(&message.partition()).is_some_and(|end| message.offset() + 1 >= *end) {
                    left.remove(&message.partition());
                }
                take(&message)?;
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(left.remove(&partition)),
            // The client reconnects by itself.
            Some(Err(KafkaError::MessageConsumption(
                RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::AllBrokersDown,
            )))
            | None => {}
            Some(Err(error)) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A replay as the topics have it, which is where the next coordinator begins.
pub async fn replay(broker: &Broker, replay: &str) -> Result<Replay> {
    let (mut state, mut board) = (ControlState::default(), StatusBoard::default());
    for record in read(broker, CONTROL_TOPIC).await? {
        let value = record.value.unwrap_or_default();
        state.fold(Offset(record.offset), &ControlRecord::decode(value.as_slice())?)?;
    }
    for record in read(broker, STATUS_TOPIC).await? {
        board.fold_record(&record.key.unwrap_or_default(), record.value.as_deref())?;
    }
    let entry =
        state.find_replay(replay).with_context(|| format!("there is no replay {replay}"))?;
    Ok(replay_status(&state, &board, &LogEnds::default(), entry))
}

/// Waits until a replay stands in the topics as wanted.
pub async fn replay_until(
    broker: &Broker,
    id: &str,
    wanted: impl Fn(&Replay) -> bool,
) -> Result<Replay> {
    eventually(&format!("the topics show replay {id} as it is waited for"), async || {
        Ok(found(replay(broker, id).await?, &wanted))
    })
    .await
}

/// All statuses of shards, in order.
pub async fn statuses(broker: &Broker) -> Result<Vec<ShardStatus>> {
    let records = read(broker, STATUS_TOPIC).await?.into_iter();
    let of_shards = records
        .filter(|record| record.key.as_deref().is_some_and(|key| !key.starts_with(b"instance/")));
    of_shards
        .filter_map(|record| record.value)
        .map(|value| Ok(ShardStatus::decode(value.as_slice())?))
        .collect()
}
