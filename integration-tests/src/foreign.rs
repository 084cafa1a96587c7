//! Topics that other people's clients write: payments by user, as JSON, and the counts that a view
//! of them must have.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use headwater_proto::{common::v1::value::Kind, query::v1::Freshness};
use rdkafka::{
    ClientConfig,
    producer::{BaseProducer, BaseRecord},
};

use crate::{
    docker::Broker,
    patience::{PATIENCE, eventually, found},
    platform::Platform,
    topics, views,
};

/// The time of the first event.
const T0: i64 = 1_700_000_000_000;

/// A stream of payments over a topic.
pub fn stream(topic: &str, name: &str, partitions: u32) -> String {
    format!(
        "CREATE STREAM {name} (user_id VARCHAR, amount BIGINT, ts TIMESTAMP, \
         WATERMARK FOR ts AS ts - INTERVAL '5 seconds') \
         WITH (topic = '{topic}', format = 'json', key = 'user_id', partitions = {partitions});"
    )
}

/// A view that counts them by user, and adds up an expression.
pub fn view(name: &str, stream: &str, amount: &str) -> String {
    format!(
        "CREATE MATERIALIZED VIEW {name} WITH (retention = 'forever') AS SELECT user_id, count(*) AS events, sum({amount}) AS total \
         FROM {stream} GROUP BY user_id EMIT ON UPDATE;"
    )
}

/// Key and value of a payment. The time rises with the number, so that no event is late.
pub fn event(user: u64, number: u64) -> (String, String) {
    let user = format!("u{user}");
    let value = format!(
        "{{\"user_id\":\"{user}\",\"amount\":{number},\"ts\":\"{}\"}}",
        rfc3339(T0 + number as i64 * 10)
    );
    (user, value)
}

/// Only for moments in November 2023, which is when the events of the tests happen.
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

/// A plain client, or a transactional one of this id.
pub fn producer(broker: &Broker, transactional: Option<&str>) -> Result<BaseProducer> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", broker.bootstrap_host()).set("partitioner", "murmur2_random");
    if let Some(id) = transactional {
        config.set("transactional.id", id);
    }
    Ok(config.create()?)
}

/// Gives a record to the client.
pub fn send(producer: &BaseProducer, topic: &str, key: &str, value: &str) -> Result<()> {
    let record = BaseRecord::to(topic).key(key).payload(value);
    producer.send(record).map_err(|(error, _)| error)?;
    producer.poll(Duration::ZERO);
    Ok(())
}

/// Events and total by user.
pub type Counted = BTreeMap<String, (i64, i64)>;

/// The lines that Kafka's own consumer prints for the committed records of a topic, one for each.
/// `options` are further ones of its command line.
///
/// The tool ends after some time without a record, on a slow machine before its first record. So it
/// runs again, with more time, until it has printed as many lines as librdkafka reads records.
pub async fn console(broker: &Broker, topic: &str, options: &str) -> Result<Vec<String>> {
    let deadline = Instant::now() + PATIENCE;
    let mut wait = Duration::from_secs(4);
    loop {
        let script = format!(
            "kafka-console-consumer.sh --bootstrap-server $BOOTSTRAP --topic {topic} --from-beginning \
             --isolation-level read_committed --timeout-ms {} {options} 2>/dev/null || true",
            wait.as_millis()
        );
        let lines: Vec<_> = broker.shell(&script).await?.lines().map(str::to_owned).collect();
        // Compaction may have removed some meanwhile.
        let there = topics::count(broker, topic).await?;
        if lines.len() >= there {
            return Ok(lines);
        }
        let read = lines.len();
        ensure!(Instant::now() < deadline, "Kafka's consumer reads {read} of {there} records");
        wait *= 2;
    }
}

/// Counts by user what Kafka's own consumer reads of a topic, committed records only.
pub async fn counted_by_kafka(broker: &Broker, topic: &str) -> Result<Counted> {
    let mut counted = Counted::new();
    for line in console(broker, topic, "").await?.iter().filter(|line| line.starts_with('{')) {
        let value: serde_json::Value = serde_json::from_str(line)?;
        let user = value["user_id"].as_str().context("user_id")?;
        let (events, total) = counted.entry(user.to_owned()).or_default();
        *events += 1;
        *total += value["amount"].as_i64().context("amount")?;
    }
    Ok(counted)
}

pub async fn counted_by_view(platform: &impl Platform, view: &str) -> Result<Counted> {
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

/// Waits until the view says what Kafka's own consumer counted.
pub async fn expect_view(platform: &impl Platform, view: &str, expected: &Counted) -> Result<()> {
    let counted = async || {
        let counted = counted_by_view(platform, view).await;
        Ok(found(counted, |counted| counted.as_ref().is_ok_and(|counted| counted == expected)))
    };
    eventually(&format!("view {view} says {expected:?}"), counted).await?.map(drop)
}
