//! Processes and brokers killed at any moment: nothing that was acknowledged is missing, nothing is counted
//! twice, and every shard ends as if nothing had happened.
//!
//! What shall be interrupted is made to stand still, and is seen in the topics to be under way when the process or
//! the broker is gone. A replay is read at the speed of a quota; a shard whose reader has one keeps the other
//! generation waiting in ALIGN; a coordinator with a sliver of a core is long at its DIFF; a processor that is
//! frozen keeps COMMIT from its end.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use headwater_integration_tests::{
    cluster::{Cluster, Pair, QUOTAS_AT_ONCE, reader, throttle},
    dev::PATIENCE,
    docker::{self, Broker, Kind, Options, Service, Volume},
    feed::{self, Told, check_told, dump, feed, token_of},
    flights::{self, Flight, punctuality},
    platform::Platform,
    replays, topics,
    views::{self, after},
};
use headwater_proto::{
    control::v1::{GetCatalogRequest, Phase, Replay},
    headers,
    query::v1::Freshness,
    status::v1::ShardStatus,
};
use headwater_state::{Identity, ShardReader, digest, layout};
use headwater_types::PartitionId;

/// Bytes a second at which a replay of the flights takes long.
const SLOWLY: u32 = 20_000;
/// At which it takes long too, and a client that has more to read than that still gets on.
const AT_HALF_PACE: u32 = 40_000;
/// At which nothing is read any more.
const HARDLY: u32 = 500;

/// Promotes and waits until it serves.
async fn promote(platform: &impl Platform, replay: &str, id: &str) -> Result<()> {
    replays::promote(platform, replay, id).await?;
    replays::wait_for(platform, replay, &[Phase::Retain]).await.map(drop)
}

/// What this processor said last.
fn of<'a>(processor: &str, shards: &'a [ShardStatus]) -> impl Iterator<Item = &'a ShardStatus> {
    shards.iter().filter(move |shard| shard.processor == processor)
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
        let broker = Broker::start_with(&[QUOTAS_AT_ONCE]).await?;
        let mut cluster = Cluster::start(&broker, 2, 2).await?;
        let [stream, v1, v2] = definitions().await?;
        cluster.apply("create", &[&stream, &v1]).await?;
        let flights = Arc::new(flights::read()?);
        let sent = Arc::new(AtomicUsize::new(0));
        let pace = Duration::from_millis(60);
        let ingest = cluster.ingest_channel();
        let feeder = feed::begin(ingest, flights.clone(), 0..flights.len(), pace, sent.clone());
        let reached = async |share: usize| {
            while sent.load(Ordering::Relaxed) < flights.len() * share / 100 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };

        // In the middle of ingest.
        reached(15).await;
        cluster.pairs[0].processor.kill().await?;
        let interrupted = cluster.shards().await?;
        let interrupted: Vec<_> = of("processor-1", &interrupted).cloned().collect();
        reached(25).await;
        cluster.pairs[0].processor.start_again().await?;

        // In the middle of a replay; this one stays away, and a third comes.
        reached(45).await;
        let readers: Vec<_> = ["processor-1", "processor-2"]
            .into_iter()
            .flat_map(|processor| [reader(processor, 0), reader(processor, 1)])
            .collect();
        throttle(&broker, &readers, Some(AT_HALF_PACE)).await?;
        let replay = replays::start(&cluster, "correct", &[&stream, &v2]).await?;
        let new = replays::get(&cluster, &replay).await?.new_generation;
        let under_way = |shard: &&ShardStatus| {
            shard.generation == new && shard.position > 0 && shard.position + 1_000 < shard.log_end
        };
        let deadline = Instant::now() + PATIENCE;
        while !of("processor-2", &cluster.shards().await?).any(|shard| under_way(&shard)) {
            ensure!(
                Instant::now() < deadline,
                "processor-2 does not replay: {:?}",
                cluster.shards().await?
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        cluster.pairs[1].processor.kill().await?;
        let left = cluster.shards().await?;
        ensure!(
            of("processor-2", &left).any(|shard| under_way(&shard)),
            "no replay was interrupted: {left:?}"
        );
        throttle(&broker, &readers, None).await?;
        cluster.add(&broker, true).await?;
        replays::wait_for(&cluster, &replay, &[Phase::Hold]).await?;
        promote(&cluster, &replay, "promote").await?;

        let told = feeder.await??;
        let accepted = told.iter().filter(|told| matches!(told, Told::Accepted { .. })).count();
        assert_eq!(accepted, flights.len(), "a processor's end is nothing to ingest");
        let token = token_of(&told)?;
        let shards = cluster.wait_processed(&token).await?;
        for before in &interrupted {
            let after = shards.iter().find(|shard| {
                (&shard.generation, shard.partition) == (&before.generation, before.partition)
            });
            let after = after.context("a shard is gone")?;
            // One partition gets no flights.
            ensure!(
                after.log_end == 0 || (0 < before.position && before.position < after.position),
                "ingest was not interrupted in its middle: {before:?}, in the end {after:?}"
            );
        }
        ensure!(!interrupted.is_empty(), "the first processor had no shards");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_is_killed_during_ingest_replay_and_swap_and_nothing_is_lost_or_counted_twice()
-> Result<()> {
    docker::test(async {
        let broker = Broker::start_with(&[QUOTAS_AT_ONCE]).await?;
        let cluster =
            Cluster::start_with(&broker, 1, 1, &[("HEADWATER_KAFKA__DELIVERY_TIMEOUT", "3s")])
                .await?;
        let processor = &cluster.pairs[0].processor;
        let [stream, v1, v2] = definitions().await?;
        cluster.apply("create", &[&stream, &v1]).await?;
        let flights = Arc::new(flights::read()?);
        let sent = Arc::new(AtomicUsize::new(0));
        let begin = |from: usize, to: usize| {
            let pace = Duration::from_millis(80);
            feed::begin(cluster.ingest_channel(), flights.clone(), from..to, pace, sent.clone())
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
        let (tenth, half) = (flights.len() / 10, flights.len() / 2);
        let mut told = begin(0, tenth).await??;
        let replay = replays::start(&cluster, "correct", &[&stream, &v2]).await?;
        replays::wait_for(&cluster, &replay, &[Phase::Hold]).await?;
        promote(&cluster, &replay, "promote").await?;
        let replay = replays::start(&cluster, "back", &[&stream, &v1]).await?;
        replays::wait_for(&cluster, &replay, &[Phase::Hold]).await?;
        promote(&cluster, &replay, "promote back").await?;

        // While two generations are aligned: the one that serves now is the third reader's, which has a quota and does
        // not get to where the new one is. (The second reads what new owners want to know of former ones.)
        let third = [reader("processor-1", 2)];
        throttle(&broker, &third, Some(HARDLY)).await?;
        let feeder = begin(tenth, half);
        reached(20).await;
        let replay = replays::start(&cluster, "correct again", &[&stream, &v2]).await?;
        replays::wait_for(&cluster, &replay, &[Phase::Align]).await?;
        outage(500).await?;
        let left = topics::replay(&broker, &replay).await?;
        ensure!(left.phase() == Phase::Align, "nothing was being aligned: {left:?}");
        throttle(&broker, &third, None).await?;
        replays::wait_for(&cluster, &replay, &[Phase::Hold]).await?;

        // During the swap: it waits for the processor, which does not come to know of it before the broker is gone.
        processor.freeze().await?;
        replays::promote(&cluster, &replay, "promote correct again").await?;
        let asked = topics::replay(&broker, &replay).await?;
        ensure!(asked.phase() == Phase::Commit, "no swap is under way: {asked:?}");
        broker.kill().await?;
        processor.thaw().await?;
        broker.start_again().await?;
        replays::wait_for(&cluster, &replay, &[Phase::Retain]).await?;
        told.extend(feeder.await??);

        // During ingest, long enough for appends to be given up.
        let feeder = begin(half, flights.len());
        reached(60).await;
        outage(5_000).await?;
        let sent_by_then = sent.load(Ordering::Relaxed);
        ensure!(sent_by_then < flights.len(), "ingest had ended before the broker was back");
        cluster.processor_ready().await?;

        // During a replay.
        // By then the readers before these have partitions of the four generations that there are.
        let readers: Vec<_> = (4..6).map(|number| reader("processor-1", number)).collect();
        throttle(&broker, &readers, Some(AT_HALF_PACE)).await?;
        let replay = replays::start(&cluster, "back again", &[&stream, &v1]).await?;
        replays::until(&cluster, &replay, replays::in_the_middle).await?;
        outage(500).await?;
        let left = topics::replay(&broker, &replay).await?;
        ensure!(replays::in_the_middle(&left), "no replay was interrupted: {left:?}");
        throttle(&broker, &readers, None).await?;
        replays::wait_for(&cluster, &replay, &[Phase::Hold]).await?;
        promote(&cluster, &replay, "promote back again").await?;

        told.extend(feeder.await??);
        let records = dump(&broker).await?;
        let stored = check_told(&flights, &told, &records)?;
        let accepted = told.iter().filter(|told| matches!(told, Told::Accepted { .. })).count();
        ensure!(accepted > flights.len() / 2, "only {accepted} events were accepted");
        ensure!(accepted < flights.len(), "the outage was not noticed");
        expect_rows(&cluster, &stored, 1, &token_of(&told)?).await?;

        // An outage is a line or two, not a flood.
        for service in [&cluster.ingest, processor] {
            let log = service.log().await?;
            let complaints = log.lines().filter(|line| line.contains("cannot be reached")).count();
            ensure!(complaints <= 12, "{complaints} complaints:\n{log}");
        }
        Ok(())
    })
    .await
}

/// Kills the coordinator and says how it left the replay.
async fn kill_coordinator(broker: &Broker, cluster: &Cluster, replay: &str) -> Result<Replay> {
    cluster.coordinator.kill().await?;
    topics::replay(broker, replay).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_coordinator_is_killed_at_each_phase_and_the_next_one_finishes() -> Result<()> {
    docker::test(async {
        let broker = Broker::start_with(&[QUOTAS_AT_ONCE]).await?;
        let cluster = Cluster::start(&broker, 1, 1).await?;
        let (coordinator, processor) = (&cluster.coordinator, &cluster.pairs[0].processor);
        let [stream, v1, v2] = definitions().await?;
        cluster.apply("create", &[&stream, &v1]).await?;
        let flights = flights::read()?;
        let (most, sent) = (flights.len() * 3 / 4, AtomicUsize::new(0));
        let mut told = feed(&cluster, &flights[..most], Duration::ZERO, &sent).await?;
        cluster.wait_processed(&token_of(&told)?).await?;
        let second = [reader("processor-1", 1)];

        // REPLAY: the second reader replays, and has a quota.
        throttle(&broker, &second, Some(SLOWLY)).await?;
        let replay = replays::start(&cluster, "replay", &[&stream, &v2]).await?;
        replays::until(&cluster, &replay, replays::in_the_middle).await?;
        let left = kill_coordinator(&broker, &cluster, &replay).await?;
        ensure!(replays::in_the_middle(&left), "it was not killed in REPLAY: {left:?}");
        throttle(&broker, &second, None).await?;
        coordinator.start_again().await?;
        replays::wait_for(&cluster, &replay, &[Phase::Hold]).await?;
        promote(&cluster, &replay, "promote replay").await?;
        let some: Vec<&Flight> = flights[..most].iter().collect();
        expect_rows(&cluster, &some, 2, &token_of(&told)?).await?;

        // HOLD: nothing is to be done before a person decides, who asks the next one.
        let replay = replays::start(&cluster, "hold", &[&stream, &v1]).await?;
        replays::wait_for(&cluster, &replay, &[Phase::Hold]).await?;
        let left = kill_coordinator(&broker, &cluster, &replay).await?;
        ensure!(left.phase() == Phase::Hold, "it was not killed in HOLD: {left:?}");
        coordinator.start_again().await?;
        promote(&cluster, &replay, "promote hold").await?;
        expect_rows(&cluster, &some, 1, &token_of(&told)?).await?;

        // ALIGN: the third reader's generation serves now, and does not get to where the new one is. (The second reads what
        // new owners want to know of former ones.)
        let third = [reader("processor-1", 2)];
        throttle(&broker, &third, Some(HARDLY)).await?;
        told.extend(feed(&cluster, &flights[most..], Duration::ZERO, &sent).await?);
        let token = token_of(&told)?;
        let all: Vec<&Flight> = flights.iter().collect();
        let replay = replays::start(&cluster, "align", &[&stream, &v2]).await?;
        replays::wait_for(&cluster, &replay, &[Phase::Align]).await?;
        let left = kill_coordinator(&broker, &cluster, &replay).await?;
        ensure!(left.phase() == Phase::Align, "it was not killed in ALIGN: {left:?}");
        throttle(&broker, &third, None).await?;
        coordinator.start_again().await?;
        replays::wait_for(&cluster, &replay, &[Phase::Hold]).await?;
        promote(&cluster, &replay, "promote align").await?;
        expect_rows(&cluster, &all, 2, &token).await?;

        // DIFF: both sides are there, and the coordinator has hardly any time to compare them.
        processor.freeze().await?;
        let replay = replays::start(&cluster, "diff", &[&stream, &v1]).await?;
        coordinator.slow(Some(3)).await?;
        processor.thaw().await?;
        let deadline = Instant::now() + PATIENCE;
        while topics::replay(&broker, &replay).await?.phase() != Phase::Diff {
            ensure!(Instant::now() < deadline, "nothing is compared");
        }
        let left = kill_coordinator(&broker, &cluster, &replay).await?;
        ensure!(left.phase() == Phase::Diff, "it was not killed in DIFF: {left:?}");
        coordinator.slow(None).await?;
        coordinator.start_again().await?;
        let held = replays::wait_for(&cluster, &replay, &[Phase::Hold]).await?;
        let diff = held.diff.context("a diff")?;
        let (old, new) = (punctuality(all.iter().copied(), 2), punctuality(all.iter().copied(), 1));
        let changed = old.iter().filter(|(hour, row)| {
            let new = &new[hour];
            (row.departures, row.on_time, row.max_delay)
                != (new.departures, new.on_time, new.max_delay)
                || row.avg_delay.map(f64::to_bits) != new.avg_delay.map(f64::to_bits)
        });
        let changed = changed.count() as u64;
        ensure!(
            (diff.same, diff.changed, diff.only_old, diff.only_new)
                == (old.len() as u64 - changed, changed, 0, 0),
            "{diff:?}"
        );
        replays::abort(&cluster, &replay, "abort").await?;
        replays::until(&cluster, &replay, |state| state.phase() == Phase::Aborted).await?;
        expect_rows(&cluster, &all, 2, &token).await?;

        // COMMIT: the swap waits for the processor.
        let replay = replays::start(&cluster, "commit", &[&stream, &v1]).await?;
        replays::wait_for(&cluster, &replay, &[Phase::Hold]).await?;
        processor.freeze().await?;
        replays::promote(&cluster, &replay, "promote commit").await?;
        let left = kill_coordinator(&broker, &cluster, &replay).await?;
        ensure!(left.phase() == Phase::Commit, "it was not killed in COMMIT: {left:?}");
        processor.thaw().await?;
        coordinator.start_again().await?;
        replays::wait_for(&cluster, &replay, &[Phase::Retain]).await?;
        expect_rows(&cluster, &all, 1, &token).await?;

        // RETAIN: the way back is still open.
        let left = kill_coordinator(&broker, &cluster, &replay).await?;
        ensure!(left.phase() == Phase::Retain, "it was not killed in RETAIN: {left:?}");
        coordinator.start_again().await?;
        replays::undo(&cluster, "punctuality", "undo").await?;
        replays::wait_for(&cluster, &replay, &[Phase::Undone]).await?;
        expect_rows(&cluster, &all, 2, &token).await?;

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

        // Nobody hears of a former owner once the next one has said something: neither of where the shard is, nor
        // of what could not be processed.
        let mut epochs: BTreeMap<_, Vec<u64>> = BTreeMap::new();
        for status in topics::statuses(&broker).await? {
            let said = epochs.entry((status.generation.clone(), status.partition)).or_default();
            ensure!(
                said.last().is_none_or(|last| *last <= status.epoch),
                "a former owner was heard after {said:?}: {status:?}"
            );
            said.push(status.epoch);
        }
        let changed = epochs.values().filter(|said| said.first() != said.last()).count();
        let lost = before.values().filter(|(owner, _)| owner == "processor-1").count();
        ensure!(changed >= lost, "the topic does not show that shards changed hands: {epochs:?}");
        let mut sequences: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for letter in topics::read(&broker, "flights.dead-letters").await? {
            let text = |name: &str| -> Result<String> {
                let (_, value) =
                    letter.headers.iter().find(|(own, _)| own == name).with_context(|| name.to_owned())?;
                Ok(String::from_utf8(value.clone().unwrap_or_default())?)
            };
            let sequence = text(headers::SEQUENCE)?;
            let (position, index) = sequence.split_once('.').context("position.index")?;
            let sequence = (position.parse()?, index.parse()?);
            let last = sequences.insert(text(headers::PARTITION)?, sequence);
            ensure!(
                last.is_none_or(|last| last < sequence),
                "a dead letter comes after a later one of its shard: {last:?}, {sequence:?}"
            );
        }
        cluster.terminate().await
    })
    .await
}
