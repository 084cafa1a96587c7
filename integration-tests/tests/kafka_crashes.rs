//! Processes and brokers killed at any moment: nothing that was acknowledged is missing, nothing is counted
//! twice, and every shard ends as if nothing had happened.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use headwater_integration_tests::{
    cluster::{Cluster, Pair},
    dev::PATIENCE,
    docker::{self, Broker, Kind, Options, Service, Volume},
    flights::{self, Flight, punctuality},
    platform::Platform,
    replays,
    views::{self, after},
};
use headwater_proto::{
    control::v1::{GetCatalogRequest, Phase, PromoteRequest},
    ingest::v1::{AppendRequest, append_result::Outcome},
    query::v1::Freshness,
    status::v1::ShardStatus,
};
use headwater_state::{Identity, ShardReader, digest, layout};
use headwater_types::{Name, Offset, PartitionId, Token};
use tonic::Code;

const BATCH: usize = 100;

/// What became of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Accepted {
        partition: u32,
        offset: u64,
    },
    NotStored,
    /// The log did not say, or the answer got lost.
    Unknown,
}

/// Sends flights, each once, and remembers what was said of it.
async fn feed(
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

/// What a client sees of a server that is away, or went away while it answered.
fn is_passing(status: &tonic::Status) -> bool {
    [Code::Unavailable, Code::Cancelled, Code::Unknown, Code::DeadlineExceeded]
        .contains(&status.code())
}

/// A token for all that was accepted.
fn token_of(told: &[Told]) -> Result<String> {
    let mut token = Token::new(Name::new("flights")?);
    for told in told {
        if let Told::Accepted { partition, offset } = told {
            token.cover(PartitionId(*partition), Offset(*offset));
        }
    }
    Ok(token.to_string())
}

/// The topic as Kafka's own consumer reads it: JSON by partition and offset.
async fn dump(broker: &Broker) -> Result<BTreeMap<(u32, u64), Vec<u8>>> {
    let mut records = BTreeMap::new();
    for partition in 0..flights::PARTITIONS {
        let script = format!(
            "kafka-console-consumer.sh --bootstrap-server $BOOTSTRAP --topic flights --partition {partition} \
             --offset earliest --isolation-level read_committed --timeout-ms 4000 \
             --property print.offset=true --property print.value=true 2>/dev/null || true"
        );
        for line in broker.shell(&script).await?.lines() {
            // Offset:12	{…}
            let Some((offset, json)) =
                line.strip_prefix("Offset:").and_then(|rest| rest.split_once('\t'))
            else {
                continue;
            };
            records.insert((partition, offset.parse()?), json.as_bytes().to_vec());
        }
    }
    Ok(records)
}

/// Checks what was said against what is in the topic, and returns the flights that are there.
fn check_told<'a>(
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

async fn expect_rows(
    platform: &impl Platform,
    flights: &[&Flight],
    version: u32,
    token: &str,
) -> Result<()> {
    let expected = punctuality(flights.iter().copied(), version);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let answer = views::punctuality(platform, after(&[token.to_owned()])).await;
        match &answer {
            Ok(answer) if answer.rows == expected => return Ok(()),
            _ => {}
        }
        ensure!(
            Instant::now() < deadline,
            "the view has other rows than the topic: {:?}",
            answer.map(|answer| answer.provenance)
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn definitions() -> Result<[String; 3]> {
    Ok([
        flights::definition("stream.sql")?,
        flights::definition("punctuality_v1.sql")?,
        flights::definition("punctuality_v2.sql")?,
    ])
}

async fn start_replay(cluster: &impl Platform, id: &str, sql: &[&str]) -> Result<String> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match cluster.apply(id, sql).await {
            Ok(applied) => {
                let started =
                    applied.changes.into_iter().find(|change| !change.replay_id.is_empty());
                return Ok(started.context("no replay was started")?.replay_id);
            }
            // A coordinator that was killed is asked again: the request has an id.
            Err(status) if is_passing(&status) && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(status) => return Err(status.into()),
        }
    }
}

/// Waits for a phase, whatever happens to the coordinator meanwhile.
async fn wait_for(platform: &impl Platform, replay: &str, phases: &[Phase]) -> Result<Phase> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let state = replays::get(platform, replay).await;
        if let Ok(state) = &state {
            if phases.contains(&state.phase()) {
                return Ok(state.phase());
            }
            let ended = matches!(state.phase(), Phase::Failed | Phase::Aborted);
            ensure!(!ended, "replay {replay} ended: {}", state.reason);
        }
        ensure!(
            Instant::now() < deadline,
            "replay {replay} does not come to {phases:?}: {state:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn promote(platform: &impl Platform, replay: &str, id: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let request = PromoteRequest {
            replay: replay.into(),
            request_id: id.into(),
            reason: "the test".into(),
            ..PromoteRequest::default()
        };
        match platform.replays().promote(request).await {
            Ok(_) => break,
            Err(status) if is_passing(&status) && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(status) => return Err(status.into()),
        }
    }
    wait_for(platform, replay, &[Phase::Retain]).await.map(drop)
}

/// Digests by generation and partition, of the shards as their present owners hold them.
async fn digests(
    pairs: &[Pair],
    shards: &[ShardStatus],
) -> Result<BTreeMap<(String, u32), [u8; 32]>> {
    let directory = tempfile::tempdir()?;
    let mut homes = BTreeMap::new();
    for (index, pair) in pairs.iter().enumerate() {
        let copy = directory.path().join(index.to_string());
        pair.processor.copy_data(&copy).await?;
        let id = std::fs::read_to_string(copy.join("DIRECTORY"))?.trim().to_owned();
        homes.insert(id, copy);
    }
    let mut digests = BTreeMap::new();
    for status in shards {
        let home =
            homes.get(&status.directory).with_context(|| format!("{status:?} is nowhere"))?;
        let identity = Identity {
            generation: status.generation.parse()?,
            partition: PartitionId(status.partition),
        };
        let shard = layout::shard_dir(home, identity.generation, identity.partition);
        let scratch = directory.path().join("scratch").join(format!("{identity}"));
        let reader = ShardReader::open_live(&shard, &scratch, &identity)?;
        let position = reader.progress().position;
        ensure!(
            position.0 == status.position,
            "{identity} is at {position}, not {}",
            status.position
        );
        digests.insert((status.generation.clone(), status.partition), digest(reader.view())?);
    }
    Ok(digests)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processors_are_killed_and_added_and_every_shard_ends_as_if_nothing_had_happened()
-> Result<()> {
    docker::test(async {
        let broker = Broker::start().await?;
        let mut cluster = Cluster::start(&broker, 2, 2).await?;
        let [stream, v1, v2] = definitions().await?;
        cluster.apply("create", &[&stream, &v1]).await?;
        let flights = Arc::new(flights::read()?);
        let sent = Arc::new(AtomicUsize::new(0));
        let feeder = {
            let (ingest, flights, sent) =
                (Ingest(cluster.ingest_channel()), flights.clone(), sent.clone());
            tokio::spawn(
                async move { feed(&ingest, &flights, Duration::from_millis(60), &sent).await },
            )
        };
        let reached = async |share: usize| {
            while sent.load(Ordering::Relaxed) < flights.len() * share / 100 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };

        // In the middle of ingest.
        reached(15).await;
        cluster.pairs[0].processor.kill().await?;
        reached(25).await;
        cluster.pairs[0].processor.start_again().await?;

        // In the middle of a replay; this one stays away, and a third comes.
        reached(45).await;
        let replay = start_replay(&cluster, "correct", &[&stream, &v2]).await?;
        cluster.pairs[1].processor.kill().await?;
        cluster.add(&broker, true).await?;
        wait_for(&cluster, &replay, &[Phase::Hold]).await?;
        promote(&cluster, &replay, "promote").await?;

        let told = feeder.await??;
        let accepted = told.iter().filter(|told| matches!(told, Told::Accepted { .. })).count();
        assert_eq!(accepted, flights.len(), "a processor's end is nothing to ingest");
        let token = token_of(&told)?;
        cluster.wait_processed(&token).await?;
        let all: Vec<&Flight> = flights.iter().collect();
        expect_rows(&cluster, &all, 2, &token).await?;

        // Every processor ends in good order, and what they hold is compared with what one process makes of the
        // log that nobody disturbs.
        for pair in &cluster.pairs {
            if pair.processor.exit_code().await?.is_none() {
                ensure!(
                    pair.processor.stop(Duration::from_secs(30)).await? == 0,
                    "{}",
                    pair.processor.log().await?
                );
            }
        }
        let shards = cluster.shards().await?;
        assert_eq!(shards.len(), 2 * flights::PARTITIONS as usize);
        let disturbed = digests(&cluster.pairs, &shards).await?;

        let data = Volume::create("undisturbed").await?;
        let processor =
            Service::start(Kind::Processor, "undisturbed", &broker, Options::new().data(&data))
                .await?;
        let alone = vec![Pair { processor, query: None, data }];
        let deadline = Instant::now() + PATIENCE;
        let shards = loop {
            let now = cluster.shards().await?;
            let done = now.iter().all(|shard| {
                shard.processor == "undisturbed"
                    && shards.iter().any(|before| {
                        (&before.generation, before.partition, before.position)
                            == (&shard.generation, shard.partition, shard.position)
                    })
            });
            if done {
                break now;
            }
            ensure!(Instant::now() < deadline, "it does not catch up: {now:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        ensure!(
            alone[0].processor.stop(Duration::from_secs(30)).await? == 0,
            "it did not end well"
        );
        let undisturbed = digests(&alone, &shards).await?;
        assert_eq!(disturbed, undisturbed, "law 2 across processes");
        Ok(())
    })
    .await
}

/// The ingest service alone.
struct Ingest(tonic::transport::Channel);

impl Platform for Ingest {
    fn ingest_channel(&self) -> tonic::transport::Channel {
        self.0.clone()
    }
    fn coordinator_channel(&self) -> tonic::transport::Channel {
        self.0.clone()
    }
    fn query_channel(&self) -> tonic::transport::Channel {
        self.0.clone()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_is_killed_during_ingest_replay_and_swap_and_nothing_is_lost_or_counted_twice()
-> Result<()> {
    docker::test(async {
        let broker = Broker::start().await?;
        let cluster =
            Cluster::start_with(&broker, 1, 1, &[("HEADWATER_KAFKA__DELIVERY_TIMEOUT", "3s")])
                .await?;
        let [stream, v1, v2] = definitions().await?;
        cluster.apply("create", &[&stream, &v1]).await?;
        let flights = Arc::new(flights::read()?);
        let sent = Arc::new(AtomicUsize::new(0));
        let feeder = {
            let (ingest, flights, sent) =
                (Ingest(cluster.ingest_channel()), flights.clone(), sent.clone());
            tokio::spawn(
                async move { feed(&ingest, &flights, Duration::from_millis(80), &sent).await },
            )
        };
        let reached = async |share: usize| {
            while sent.load(Ordering::Relaxed) < flights.len() * share / 100 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let outage = async |length: u64| -> Result<()> {
            broker.kill().await?;
            tokio::time::sleep(Duration::from_millis(length)).await;
            broker.start_again().await
        };

        // During ingest, long enough for appends to be given up.
        reached(10).await;
        outage(5_000).await?;
        cluster.processor_ready().await?;

        // During a replay, and while it is aligned and compared.
        reached(30).await;
        let replay = start_replay(&cluster, "correct", &[&stream, &v2]).await?;
        outage(500).await?;
        wait_for(&cluster, &replay, &[Phase::Align, Phase::Diff, Phase::Hold]).await?;
        outage(500).await?;
        wait_for(&cluster, &replay, &[Phase::Hold]).await?;

        // During the swap.
        let promoting = promote(&cluster, &replay, "promote");
        let (promoted, out) = tokio::join!(promoting, async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            outage(500).await
        });
        out?;
        promoted?;

        let told = feeder.await??;
        let records = dump(&broker).await?;
        let stored = check_told(&flights, &told, &records)?;
        let accepted = told.iter().filter(|told| matches!(told, Told::Accepted { .. })).count();
        ensure!(accepted > flights.len() / 2, "only {accepted} events were accepted");
        ensure!(accepted < flights.len(), "the outage was not noticed");
        expect_rows(&cluster, &stored, 2, &token_of(&told)?).await?;

        // An outage is a line or two, not a flood.
        for service in [&cluster.ingest, &cluster.pairs[0].processor] {
            let log = service.log().await?;
            let complaints = log.lines().filter(|line| line.contains("cannot be reached")).count();
            ensure!(complaints <= 12, "{complaints} complaints:\n{log}");
        }
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_coordinator_is_killed_at_each_phase_and_the_next_one_finishes() -> Result<()> {
    docker::test(async {
        let broker = Broker::start().await?;
        let cluster = Cluster::start(&broker, 1, 1).await?;
        let [stream, v1, v2] = definitions().await?;
        cluster.apply("create", &[&stream, &v1]).await?;
        let flights = flights::read()?;
        let sent = AtomicUsize::new(0);
        let told = feed(&cluster, &flights, Duration::ZERO, &sent).await?;
        let token = token_of(&told)?;
        let all: Vec<&Flight> = flights.iter().collect();

        let phases =
            [Phase::Replay, Phase::Align, Phase::Diff, Phase::Hold, Phase::Commit, Phase::Retain];
        for (round, phase) in phases.into_iter().enumerate() {
            let (sql, version) = if round % 2 == 0 { (&v2, 2) } else { (&v1, 1) };
            let replay = start_replay(&cluster, &format!("round {round}"), &[&stream, sql]).await?;
            let killed = AtomicBool::new(false);
            let kill = async {
                cluster.coordinator.kill().await?;
                killed.store(true, Ordering::Relaxed);
                cluster.coordinator.start_again().await
            };
            match phase {
                Phase::Commit | Phase::Retain => {
                    wait_for(&cluster, &replay, &[Phase::Hold]).await?;
                    let id = format!("promote {round}");
                    let delay = if phase == Phase::Commit { 5 } else { 150 };
                    let (promoted, restarted) =
                        tokio::join!(promote(&cluster, &replay, &id), async {
                            tokio::time::sleep(Duration::from_millis(delay)).await;
                            kill.await
                        });
                    restarted?;
                    promoted?;
                }
                before => {
                    // A phase may be over before it was seen: then a later one is what is interrupted.
                    let later = phases.into_iter().filter(|phase| *phase as i32 >= before as i32);
                    wait_for(&cluster, &replay, &later.collect::<Vec<_>>()).await?;
                    kill.await?;
                    wait_for(&cluster, &replay, &[Phase::Hold]).await?;
                    promote(&cluster, &replay, &format!("promote {round}")).await?;
                }
            }
            ensure!(killed.load(Ordering::Relaxed), "nothing was killed in round {round}");
            expect_rows(&cluster, &all, version, &token).await?;
        }
        let catalog = cluster.catalog().get_catalog(GetCatalogRequest {}).await?.into_inner();
        let serving = catalog.generations.iter().filter(|info| info.role == "serving").count();
        assert_eq!(serving, 1, "exactly one generation serves: {:?}", catalog.generations);
        cluster.terminate().await
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_processor_that_was_stopped_past_its_session_writes_nothing_when_it_goes_on() -> Result<()>
{
    docker::test(async {
        let broker = Broker::start().await?;
        let cluster = Cluster::start(&broker, 2, 2).await?;
        let [stream, v1, _] = definitions().await?;
        cluster.apply("create", &[&stream, &v1]).await?;
        let flights = flights::read()?;
        let sent = AtomicUsize::new(0);
        let quarter = flights.len() / 4;
        // A foreign client writes records that cannot be processed: each must become one dead letter.
        let bad = async |from: usize| -> Result<()> {
            let mut lines = String::new();
            for number in from..from + 40 {
                lines += &format!("{}|not json {number}\n", ["JFK", "LGA", "EWR"][number % 3]);
            }
            let script = format!(
                "kafka-console-producer.sh --bootstrap-server $BOOTSTRAP --topic flights \
                 --property parse.key=true --property 'key.separator=|' <<'END'\n{lines}END"
            );
            broker.shell(&script).await.map(drop)
        };
        let mut told = feed(&cluster, &flights[..quarter], Duration::ZERO, &sent).await?;
        bad(0).await?;
        cluster.wait_processed(&token_of(&told)?).await?;
        let owners = |shards: &[ShardStatus]| -> BTreeMap<u32, (String, u64)> {
            shards.iter().map(|s| (s.partition, (s.processor.clone(), s.epoch))).collect()
        };
        let before = owners(&cluster.shards().await?);
        ensure!(
            before.values().any(|(owner, _)| owner == "processor-1")
                && before.values().any(|(owner, _)| owner == "processor-2"),
            "both processors have shards: {before:?}"
        );

        cluster.pairs[0].processor.freeze().await?;
        told.extend(feed(&cluster, &flights[quarter..2 * quarter], Duration::ZERO, &sent).await?);
        bad(40).await?;
        // The other one has everything now.
        let deadline = Instant::now() + PATIENCE;
        let taken = loop {
            let now = owners(&cluster.shards().await?);
            if now.values().all(|(owner, _)| owner == "processor-2") {
                break now;
            }
            ensure!(Instant::now() < deadline, "nobody took over: {now:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        cluster.wait_processed(&token_of(&told)?).await?;
        for (partition, (_, epoch)) in &taken {
            let (owner, old) = &before[partition];
            ensure!(owner == "processor-2" || epoch > old, "partition {partition} has no newer claim");
        }

        cluster.pairs[0].processor.thaw().await?;
        told.extend(feed(&cluster, &flights[2 * quarter..3 * quarter], Duration::from_millis(5), &sent).await?);
        bad(80).await?;
        let token = token_of(&told)?;
        cluster.wait_processed(&token).await?;
        let seen: Vec<&Flight> = flights[..3 * quarter].iter().collect();
        expect_rows(&cluster, &seen, 1, &token).await?;

        // Each record that could not be processed is a dead letter, once.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let script = "kafka-console-consumer.sh --bootstrap-server $BOOTSTRAP --topic flights.dead-letters \
                 --from-beginning --isolation-level read_committed --timeout-ms 3000 2>/dev/null || true";
            let mut letters: Vec<_> = broker
                .shell(script)
                .await?
                .lines()
                .filter_map(|line| line.strip_prefix("not json ").and_then(|n| n.parse::<u32>().ok()))
                .collect();
            letters.sort_unstable();
            if letters == (0..120).collect::<Vec<_>>() {
                break;
            }
            ensure!(
                letters.is_sorted_by(|one, next| one < next),
                "a dead letter was published twice: {letters:?}"
            );
            ensure!(Instant::now() < deadline, "dead letters are missing: {letters:?}");
        }
        let answer = views::punctuality(&cluster, Freshness::default()).await?;
        assert_eq!(answer.version(), 1);
        cluster.terminate().await
    })
    .await
}
