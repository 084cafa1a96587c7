//! Flights on their way through ingest while things break. Each is sent once; its fate is
//! remembered and checked against the topic.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail, ensure};
use headwater_proto::ingest::v1::{
    AppendRequest, append_result::Outcome, ingest_service_client::IngestServiceClient,
};
use headwater_types::{Name, Offset, PartitionId, Token};
use tokio::{sync::watch, task::JoinHandle};
use tonic::{Code, transport::Channel};

use crate::{docker::Broker, flights::Flight, patience::PATIENCE, topics};

const BATCH: usize = 100;

/// The fate of one event, as ingest told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Accepted {
        partition: u32,
        offset: u64,
    },
    NotStored,
    /// The log did not answer, or the answer got lost.
    Unknown,
}

/// A client that sends flights in their order, one batch after the other, as far as it is allowed
/// to. So events are on their way exactly when a test wants them to be, on any machine.
pub struct Feeder {
    allowed: watch::Sender<usize>,
    told: watch::Receiver<Vec<Told>>,
    task: JoinHandle<Result<()>>,
}

impl Feeder {
    /// It sends nothing yet.
    #[allow(clippy::disallowed_methods, reason = "a client of its own")]
    pub fn start(ingest: Channel, flights: Arc<Vec<Flight>>) -> Self {
        let (allowed, allows) = watch::channel(0);
        let (tell, told) = watch::channel(Vec::new());
        let task = tokio::spawn(feed(ingest, flights, allows, tell));
        Self { allowed, told, task }
    }

    /// It sends the flights before this place, while the caller does something else.
    pub fn allow(&self, until: usize) {
        self.allowed.send_replace(until);
    }

    /// It sends the flights before this place, and each was answered when this returns.
    pub async fn send(&mut self, until: usize) -> Result<()> {
        self.allow(until);
        self.wait(|told| told.len() >= until).await
    }

    /// Waits until some event after the first `known` ones was not accepted.
    pub async fn refused(&mut self, known: usize) -> Result<()> {
        let refused = |told: &Told| !matches!(told, Told::Accepted { .. });
        self.wait(|told| told.get(known..).is_some_and(|told| told.iter().any(refused))).await
    }

    async fn wait(&mut self, is: impl Fn(&Vec<Told>) -> bool) -> Result<()> {
        let come = tokio::time::timeout(PATIENCE, self.told.wait_for(is)).await;
        if come.context("the client does not get on")?.is_err() {
            (&mut self.task).await??;
            bail!("the client has sent all it has");
        }
        Ok(())
    }

    /// The fate of each flight that was sent, in order.
    pub fn told(&self) -> Vec<Told> {
        self.told.borrow().clone()
    }

    /// How many flights were answered.
    pub fn sent(&self) -> usize {
        self.told.borrow().len()
    }

    /// A token for all that was accepted.
    pub fn token(&self) -> Result<String> {
        let mut token = Token::new(Name::new("flights")?);
        for told in &*self.told.borrow() {
            if let Told::Accepted { partition, offset } = told {
                token.cover(PartitionId(*partition), Offset(*offset));
            }
        }
        Ok(token.to_string())
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn feed(
    ingest: Channel,
    flights: Arc<Vec<Flight>>,
    mut allowed: watch::Receiver<usize>,
    tell: watch::Sender<Vec<Told>>,
) -> Result<()> {
    let mut ingest = IngestServiceClient::new(ingest);
    let mut next = 0;
    while next < flights.len() {
        let Ok(until) = allowed.wait_for(|until| *until > next).await.map(|until| *until) else {
            return Ok(());
        };
        let batch = &flights[next..until.min(next + BATCH).min(flights.len())];
        let events = batch.iter().map(|flight| flight.json.clone().into()).collect();
        let request = AppendRequest { stream: "flights".into(), events };
        let told = match ingest.append(request).await {
            Ok(answer) => {
                let results = answer.into_inner().results;
                ensure!(results.len() == batch.len(), "{} answers", results.len());
                results.into_iter().map(|result| told(result.outcome)).collect::<Result<_>>()?
            }
            Err(status) => {
                ensure!(is_passing(&status), "{status}");
                vec![Told::Unknown; batch.len()]
            }
        };
        next += batch.len();
        tell.send_modify(|all| all.extend(told));
    }
    Ok(())
}

fn told(outcome: Option<Outcome>) -> Result<Told> {
    match outcome.context("an outcome")? {
        Outcome::Accepted(at) => Ok(Told::Accepted { partition: at.partition, offset: at.offset }),
        Outcome::Rejected(rejected) => {
            ensure!(rejected.retryable, "{}", rejected.reason);
            match rejected.reason.starts_with("not stored") {
                true => Ok(Told::NotStored),
                false => Ok(Told::Unknown),
            }
        }
    }
}

/// Whether a client gets this status from a server that is away, or went away while it answered.
pub fn is_passing(status: &tonic::Status) -> bool {
    [Code::Unavailable, Code::Cancelled, Code::Unknown, Code::DeadlineExceeded]
        .contains(&status.code())
}

/// Reads the topic of the flights with librdkafka: JSON by partition and offset.
pub async fn dump(broker: &Broker) -> Result<BTreeMap<(u32, u64), Vec<u8>>> {
    let records = topics::read(broker, "flights").await?.into_iter();
    let json = |record: topics::Record| {
        Ok(((record.partition, record.offset), record.value.context("a record without a value")?))
    };
    records.map(json).collect()
}

/// Checks the fate of each flight against the topic, and returns the flights that are in the topic.
pub fn check_told<'a>(
    flights: &'a [Flight],
    told: &[Told],
    records: &BTreeMap<(u32, u64), Vec<u8>>,
) -> Result<Vec<&'a Flight>> {
    let by_json: HashMap<&[u8], &Flight> =
        flights.iter().map(|flight| (flight.json.as_slice(), flight)).collect();
    let mut times: HashMap<&[u8], u32> = HashMap::new();
    for json in records.values() {
        *times.entry(json).or_default() += 1;
    }
    for (flight, told) in flights.iter().zip(told) {
        let json = flight.json.as_slice();
        match told {
            Told::Accepted { partition, offset } => ensure!(
                records.get(&(*partition, *offset)).map(Vec::as_slice) == Some(json),
                "an event that was acknowledged at {partition}/{offset} is not there"
            ),
            Told::NotStored => {
                ensure!(
                    !times.contains_key(json),
                    "an event that was reported as not stored is there"
                );
            }
            Told::Unknown => {}
        }
        ensure!(times.get(json).copied().unwrap_or(0) <= 1, "an event was stored twice");
    }
    records
        .values()
        .map(|json| by_json.get(json.as_slice()).copied().context("a record that nobody sent"))
        .collect()
}
