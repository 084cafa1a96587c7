//! Flights on their way through ingest while things break: each sent once, what was said of it remembered, and
//! that checked against the topic.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use headwater_proto::ingest::v1::{AppendRequest, append_result::Outcome};
use headwater_types::{Name, Offset, PartitionId, Token};
use tokio::task::JoinHandle;
use tonic::{Code, transport::Channel};

use crate::{docker::Broker, flights::Flight, platform::Platform};

const BATCH: usize = 100;

/// What became of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Accepted {
        partition: u32,
        offset: u64,
    },
    NotStored,
    /// The log did not say, or the answer got lost.
    Unknown,
}

/// Sends flights, each once, and remembers what was said of it.
pub async fn feed(
    platform: &impl Platform,
    flights: &[Flight],
    pace: Duration,
    sent: &AtomicUsize,
) -> Result<Vec<Told>> {
    let mut told = Vec::new();
    for batch in flights.chunks(BATCH) {
        let events = batch.iter().map(|flight| flight.json.clone().into()).collect();
        let request = AppendRequest { stream: "flights".into(), events };
        match platform.ingest().append(request).await {
            Ok(answer) => {
                for result in answer.into_inner().results {
                    told.push(match result.outcome.context("an outcome")? {
                        Outcome::Accepted(place) => {
                            Told::Accepted { partition: place.partition, offset: place.offset }
                        }
                        Outcome::Rejected(rejected) => {
                            ensure!(rejected.retryable, "{}", rejected.reason);
                            match rejected.reason.starts_with("not stored") {
                                true => Told::NotStored,
                                false => Told::Unknown,
                            }
                        }
                    });
                }
            }
            Err(status) => {
                ensure!(is_passing(&status), "{status}");
                told.extend(batch.iter().map(|_| Told::Unknown));
            }
        }
        sent.fetch_add(batch.len(), Ordering::Relaxed);
        tokio::time::sleep(pace).await;
    }
    Ok(told)
}

/// As [`feed`], beside whatever the caller does meanwhile.
#[allow(clippy::disallowed_methods, reason = "a client of its own")]
pub fn begin(
    ingest: Channel,
    flights: Arc<Vec<Flight>>,
    part: Range<usize>,
    pace: Duration,
    sent: Arc<AtomicUsize>,
) -> JoinHandle<Result<Vec<Told>>> {
    tokio::spawn(async move { feed(&Ingest(ingest), &flights[part], pace, &sent).await })
}

/// What a client sees of a server that is away, or went away while it answered.
pub fn is_passing(status: &tonic::Status) -> bool {
    [Code::Unavailable, Code::Cancelled, Code::Unknown, Code::DeadlineExceeded]
        .contains(&status.code())
}

/// A token for all that was accepted.
pub fn token_of(told: &[Told]) -> Result<String> {
    let mut token = Token::new(Name::new("flights")?);
    for told in told {
        if let Told::Accepted { partition, offset } = told {
            token.cover(PartitionId(*partition), Offset(*offset));
        }
    }
    Ok(token.to_string())
}

/// The topic of the flights as Kafka's own consumer reads it: JSON by partition and offset.
pub async fn dump(broker: &Broker) -> Result<BTreeMap<(u32, u64), Vec<u8>>> {
    let script = "kafka-console-consumer.sh --bootstrap-server $BOOTSTRAP --topic flights --from-beginning \
         --isolation-level read_committed --timeout-ms 4000 --property print.partition=true \
         --property print.offset=true 2>/dev/null || true";
    let mut records = BTreeMap::new();
    for line in broker.shell(script).await?.lines() {
        // Partition:0	Offset:12	{…}
        let mut fields = line.splitn(3, '\t');
        let mut field = |name: &str| fields.next()?.strip_prefix(name);
        let (Some(partition), Some(offset), Some(json)) =
            (field("Partition:"), field("Offset:"), field(""))
        else {
            continue;
        };
        records.insert((partition.parse()?, offset.parse()?), json.as_bytes().to_vec());
    }
    Ok(records)
}

/// Checks what was said against what is in the topic, and returns the flights that are there.
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
        .map(|json| by_json.get(json.as_slice()).copied().context("a stranger"))
        .collect()
}

/// The ingest service alone.
struct Ingest(Channel);

impl Platform for Ingest {
    fn ingest_channel(&self) -> Channel {
        self.0.clone()
    }
    fn coordinator_channel(&self) -> Channel {
        self.0.clone()
    }
    fn query_channel(&self) -> Channel {
        self.0.clone()
    }
}
