//! The log library on this machine, with a login: everything that the services do with a log, and
//! the messages about brokers that refuse it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures::executor::block_on;
use headwater_log::{
    Assignee, BatchBuilder, EncodedBatch, GroupId, Log as _, Membership as _, TopicSpec, WriterId,
};
use headwater_log_kafka::{KafkaConfig, KafkaLog};
use headwater_types::{Name, PartitionId};

use crate::patience::PATIENCE;

/// A log that logs in on this machine.
pub fn log_as(address: &str, settings: &[(&str, &str)]) -> KafkaConfig {
    let all = [&[("security.protocol", "SASL_PLAINTEXT")], settings].concat();
    KafkaConfig {
        bootstrap_servers: address.to_owned(),
        session_timeout: Duration::from_secs(2),
        request_timeout: Duration::from_secs(4),
        settings: all.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        ..KafkaConfig::default()
    }
}

/// A log that logs in by a name and a password.
pub fn user(address: &str, mechanism: &str, user: &str, password: &str) -> KafkaConfig {
    let login =
        [("sasl.mechanism", mechanism), ("sasl.username", user), ("sasl.password", password)];
    log_as(address, &login)
}

/// A log that logs in by a token, which `client` gets for its secret.
pub fn token(address: &str, endpoint: &str, client: &str, secret: &str) -> KafkaConfig {
    log_as(
        address,
        &[
            ("sasl.mechanism", "OAUTHBEARER"),
            ("sasl.oauthbearer.method", "oidc"),
            ("sasl.oauthbearer.client.id", client),
            ("sasl.oauthbearer.client.secret", secret),
            ("sasl.oauthbearer.token.endpoint.url", endpoint),
        ],
    )
}

/// Runs work on a thread that may block.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await?
}

pub fn one_record(value: &str) -> Result<EncodedBatch> {
    let mut batch = BatchBuilder::new();
    batch.push(1, Some(b"key"), Some(value.as_bytes()), &[]);
    batch.build().context("a batch")
}

/// The partitions that a group has assigned.
#[derive(Default)]
struct Assigned(Mutex<Vec<PartitionId>>);

impl Assignee for Assigned {
    fn assigned(&self, partitions: &[PartitionId]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(partitions);
    }
    fn revoked(&self, _: &[PartitionId]) {}
    fn lost(&self, _: &[PartitionId]) {}
}

/// Does everything that the services do with a log: each kind of client has to log in.
pub fn everything(log: &KafkaLog, name: &str) -> Result<()> {
    let topic = Name::new(format!("ways.{name}"))?;
    headwater_log::block_on(log.create_topic(&topic, TopicSpec::keep(2)))?;
    let first = block_on(log.append(&topic, PartitionId(0), one_record("appended")?))?.first();
    let writer = headwater_log::block_on(log.writer(&WriterId(format!("ways/{name}"))))?;
    block_on(writer.append(&topic, PartitionId(0), one_record("in a transaction")?))?;

    let mut reader = headwater_log::block_on(log.reader(&topic, PartitionId(0), first))?;
    let mut values = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while values.len() < 2 {
        ensure!(Instant::now() < deadline, "{name}: read {values:?}");
        let from = reader.position();
        if let Some(chunk) = reader.read(1 << 20, Duration::from_millis(500))? {
            for record in chunk.records(from) {
                values.push(String::from_utf8(record?.value.unwrap_or_default().to_vec())?);
            }
        }
    }
    assert_eq!(values, ["appended", "in a transaction"], "{name}");

    let (group, assigned) = (GroupId(format!("ways.{name}")), Arc::<Assigned>::default());
    let member = log.join(&group, &topic, assigned.clone())?;
    let deadline = Instant::now() + PATIENCE;
    while assigned.0.lock().unwrap_or_else(PoisonError::into_inner).len() < 2 {
        ensure!(Instant::now() < deadline, "{name}: the group assigns nothing");
        std::thread::sleep(Duration::from_millis(50));
    }
    headwater_log::block_on(member.confirm())?;
    drop(member);
    headwater_log::block_on(log.delete(&group))?;
    Ok(())
}

/// The messages about the brokers, in order.
pub type Told = Arc<Mutex<Vec<Result<(), String>>>>;

/// Connects a log, and collects its messages about the brokers.
pub fn connect(config: &KafkaConfig) -> Result<(Arc<KafkaLog>, Told)> {
    let log = KafkaLog::connect(config, "refused")?;
    let told = Told::default();
    let tell = told.clone();
    log.on_reachable(move |news| tell.lock().unwrap_or_else(PoisonError::into_inner).push(news));
    Ok((log, told))
}

/// Waits until the last message is as wanted.
pub async fn wait_told(told: &Told, is: impl Fn(&Result<(), String>) -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !told.lock().unwrap_or_else(PoisonError::into_inner).last().is_some_and(&is) {
        ensure!(
            Instant::now() < deadline,
            "told {:?}",
            told.lock().unwrap_or_else(PoisonError::into_inner)
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
