//! Processes and brokers killed at any moment: nothing that was acknowledged is missing, nothing is
//! counted twice, and every shard ends as if nothing had happened.
//!
//! A test makes a phase stand still at a failpoint or has it held before the next one; it sees
//! in the topics that it stands there, and only then kills the process or the broker. No pace and
//! no quota decides what is interrupted. A client sends events exactly when the test allows it to.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use headwater_integration_tests::{
    cluster::{Cluster, Pair, SMALL_STEPS},
    docker::{self, Broker, Kind, Options, Service, Volume},
    failpoints::point,
    feed::{Feeder, Told, check_told, dump},
    flights::{self, Flight, punctuality},
    patience::{Found, PATIENCE, eventually, found},
    platform::Platform,
    replays, topics,
    views::{self, after},
};
use headwater_proto::{
    control::v1::{GetCatalogRequest, HoldBefore, Phase, Replay},
    headers,
    query::v1::Freshness,
    status::v1::ShardStatus,
};
use headwater_state::{Identity, ShardReader, digest, layout};
use headwater_types::PartitionId;

/// Promotes and waits until it serves.
async fn promote(platform: &impl Platform, replay: &str, id: &str) -> Result<()> {
    replays::promote(platform, replay, id).await?;
    replays::wait_for(platform, replay, &[Phase::Retain]).await.map(drop)
}

/// The last statuses of this processor.
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
    eventually("the view has the rows of the topic", async || {
        let answer = views::punctuality(platform, after(&[token.to_owned()])).await;
        Ok(match answer {
            Ok(answer) if answer.rows == expected => Found::Yes(()),
            answer => Found::NotYet(format!("{:?}", answer.map(|answer| answer.provenance))),
        })
    })
    .await
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
        let broker = Broker::start().await?;
        let mut cluster = Cluster::start_with(&broker, 2, 2, &SMALL_STEPS).await?;
        let [stream, v1, v2] = definitions().await?;
        cluster.apply("create", &[&stream, &v1]).await?;
        let flights = Arc::new(flights::read()?);
        let share = |percent: usize| flights.len() * percent / 100;
        let mut feeder = Feeder::start(cluster.ingest_channel(), flights.clone());

        // A processor is killed in the middle of ingest: more events come before it is back.
        feeder.send(share(15)).await?;
        cluster
            .wait_shards("both processors have shards with flights", |shards| {
                ["processor-1", "processor-2"]
                    .iter()
                    .all(|processor| of(processor, shards).any(|shard| shard.position > 0))
            })
            .await?;
        let shards = cluster.wait_processed(&feeder.token()?).await?;
        let interrupted: Vec<_> = of("processor-1", &shards).cloned().collect();
        feeder.allow(share(25));
        cluster.pairs[0].processor.kill().await?;
        feeder.send(share(25)).await?;
        cluster.pairs[0].processor.start_again().await?;

        // The other one is killed in the middle of a replay. It stays away, and a third one comes.
        feeder.send(share(45)).await?;
        cluster.wait_processed(&feeder.token()?).await?;
        let second = &cluster.pairs[1].processor;
        second.failpoints().set(point::REPLAY)?;
        let replay = replays::start(&cluster, "correct", &[&stream, &v2]).await?;
        second.failpoints().reached(point::REPLAY).await?;
        let new = replays::get(&cluster, &replay).await?.new_generation;
        let under_way = |shard: &ShardStatus| {
            shard.generation == new && shard.position > 0 && shard.position + 1_000 < shard.log_end
        };
        let stands = |shards: &[ShardStatus]| of("processor-2", shards).any(under_way);
        cluster.wait_shards("processor-2 is in the middle of a replay", stands).await?;
        feeder.allow(share(60));
        second.kill().await?;
        ensure!(stands(&cluster.shards().await?), "no replay was interrupted");
        cluster.add(&broker, true).await?;
        feeder.allow(flights.len());
        replays::wait_for(&cluster, &replay, &[Phase::Hold]).await?;
        promote(&cluster, &replay, "promote").await?;

        feeder.send(flights.len()).await?;
        let (told, token) = (feeder.told(), feeder.token()?);
        let accepted = told.iter().filter(|told| matches!(told, Told::Accepted { .. })).count();
        assert_eq!(accepted, flights.len(), "a processor's end is nothing to ingest");
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

        // Every processor ends in good order. Their shards are compared with those of one processor
        // that reads the same log undisturbed.
        for pair in &cluster.pairs {
            if pair.processor.exit_code().await?.is_none() {
                ensure!(
                    pair.processor.stop(PATIENCE).await? == 0,
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
        let before = shards;
        let shards = cluster
            .wait_shards("the undisturbed processor is where the others ended", |shards| {
                shards.iter().all(|shard| {
                    shard.processor == "undisturbed"
                        && before.iter().any(|before| {
                            (&before.generation, before.partition, before.position)
                                == (&shard.generation, shard.partition, shard.position)
                        })
                })
            })
            .await?;
        ensure!(alone[0].processor.stop(PATIENCE).await? == 0, "it did not end well");
        let undisturbed = digests(&alone, &shards).await?;
        assert_eq!(disturbed, undisturbed, "law 2 across processes");
        Ok(())
    })
    .await
}

/// Kills the broker while a replay stands still. The replay goes on, and a client sends, while the
/// broker is dead.
struct Outages<'a> {
    broker: &'a Broker,
    cluster: &'a Cluster,
    feeder: &'a Feeder,
    number: usize,
}

impl Outages<'_> {
    /// Waits until something stands at the point and the topics show it; kills the broker, lets go,
    /// and brings the broker back.
    async fn strike(
        &mut self,
        service: &Service,
        point: &str,
        replay: &str,
        stands: impl Fn(&Replay) -> bool,
    ) -> Result<()> {
        service.failpoints().reached(point).await?;
        topics::replay_until(self.broker, replay, stands)
            .await
            .with_context(|| point.to_owned())?;
        self.feeder.allow(self.feeder.sent() + 200);
        self.broker.kill().await?;
        service.failpoints().release(point)?;
        self.number += 1;
        self.broker.start_again().await?;
        self.cluster.all_ready().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_is_killed_during_ingest_replay_and_swap_and_nothing_is_lost_or_counted_twice()
-> Result<()> {
    docker::test(async {
        let broker = Broker::start().await?;
        let settings = [&SMALL_STEPS[..], &[("HEADWATER_KAFKA__DELIVERY_TIMEOUT", "3s")]].concat();
        let cluster = Cluster::start_with(&broker, 1, 1, &settings).await?;
        let (coordinator, processor) = (&cluster.coordinator, &cluster.pairs[0].processor);
        let [stream, v1, v2] = definitions().await?;
        cluster.apply("create", &[&stream, &v1]).await?;
        let flights = Arc::new(flights::read()?);
        let half = flights.len() / 2;
        let mut feeder = Feeder::start(cluster.ingest_channel(), flights.clone());
        feeder.send(half).await?;
        cluster.wait_processed(&feeder.token()?).await?;
        let mut outages =
            Outages { broker: &broker, cluster: &cluster, feeder: &feeder, number: 0 };

        // The broker is killed during a replay.
        processor.failpoints().set(point::REPLAY)?;
        let replay = replays::start(&cluster, "correct", &[&stream, &v2]).await?;
        outages.strike(processor, point::REPLAY, &replay, replays::in_the_middle).await?;
        replays::wait_for(&cluster, &replay, &[Phase::Hold]).await?;

        // It is killed during the swap: while that waits for the processor, and before it is
        // written.
        let commits = |state: &Replay| state.phase() == Phase::Commit;
        processor.failpoints().set(point::MUTE)?;
        coordinator.failpoints().set(point::SWAP)?;
        replays::promote(&cluster, &replay, "promote").await?;
        outages.strike(processor, point::MUTE, &replay, commits).await?;
        outages.strike(coordinator, point::SWAP, &replay, commits).await?;
        replays::wait_for(&cluster, &replay, &[Phase::Retain]).await?;

        // It is killed while two generations are aligned, and while they are compared.
        processor.failpoints().set(point::ALIGN)?;
        coordinator.failpoints().set(point::DIFF)?;
        let replay = replays::start(&cluster, "back", &[&stream, &v1]).await?;
        let aligns = |state: &Replay| state.phase() == Phase::Align;
        outages.strike(processor, point::ALIGN, &replay, aligns).await?;
        let compares = |state: &Replay| state.phase() == Phase::Diff;
        outages.strike(coordinator, point::DIFF, &replay, compares).await?;
        replays::wait_for(&cluster, &replay, &[Phase::Hold]).await?;
        promote(&cluster, &replay, "promote back").await?;
        let number = outages.number;

        // It is killed during ingest: events that were checked go to a dead broker, and are given
        // up.
        let sent = feeder.sent();
        cluster.ingest.failpoints().set(point::APPEND)?;
        feeder.allow(sent + 1_000);
        cluster.ingest.failpoints().reached(point::APPEND).await?;
        broker.kill().await?;
        cluster.ingest.failpoints().release(point::APPEND)?;
        feeder.refused(sent).await?;
        broker.start_again().await?;
        cluster.all_ready().await?;
        feeder.send(flights.len()).await?;

        let told = feeder.told();
        let records = dump(&broker).await?;
        let stored = check_told(&flights, &told, &records)?;
        let accepted = told.iter().filter(|told| matches!(told, Told::Accepted { .. })).count();
        ensure!(accepted > flights.len() / 2, "only {accepted} events were accepted");
        ensure!(accepted < flights.len(), "the outage was not noticed");
        expect_rows(&cluster, &stored, 1, &feeder.token()?).await?;

        // An outage is a line or two, not a flood.
        for service in [&cluster.ingest, processor] {
            let log = service.log().await?;
            let complaints = log.lines().filter(|line| line.contains("cannot be reached")).count();
            ensure!(complaints <= 4 * (number + 1), "{complaints} complaints:\n{log}");
        }
        Ok(())
    })
    .await
}

/// Replaces the coordinator while a replay stands still. The next one finds the replay in the
/// topics.
struct Coordinators<'a> {
    broker: &'a Broker,
    cluster: &'a Cluster,
}

impl Coordinators<'_> {
    /// Waits until the topics show the replay as wanted, kills the coordinator and starts the next
    /// one.
    async fn replace(&self, replay: &str, stands: impl Fn(&Replay) -> bool) -> Result<()> {
        topics::replay_until(self.broker, replay, &stands).await?;
        self.cluster.coordinator.kill().await?;
        let left = topics::replay(self.broker, replay).await?;
        ensure!(stands(&left), "it went on before it was killed: {left:?}");
        self.cluster.coordinator.start_again().await
    }

    /// As [`Coordinators::replace`], once something stands at the point, which is released before
    /// the next one starts.
    async fn replace_at(
        &self,
        service: &Service,
        point: &str,
        replay: &str,
        stands: impl Fn(&Replay) -> bool,
    ) -> Result<()> {
        service.failpoints().reached(point).await?;
        topics::replay_until(self.broker, replay, &stands).await?;
        self.cluster.coordinator.kill().await?;
        let left = topics::replay(self.broker, replay).await?;
        ensure!(stands(&left), "at {point} it went on before it was killed: {left:?}");
        service.failpoints().release(point)?;
        self.cluster.coordinator.start_again().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_coordinator_is_killed_at_each_phase_and_the_next_one_finishes() -> Result<()> {
    docker::test(async {
        let broker = Broker::start().await?;
        let cluster = Cluster::start_with(&broker, 1, 1, &SMALL_STEPS).await?;
        let coordinators = Coordinators { broker: &broker, cluster: &cluster };
        let (coordinator, processor) = (&cluster.coordinator, &cluster.pairs[0].processor);
        let [stream, v1, v2] = definitions().await?;
        cluster.apply("create", &[&stream, &v1]).await?;
        let flights = Arc::new(flights::read()?);
        let most = flights.len() * 3 / 4;
        let mut feeder = Feeder::start(cluster.ingest_channel(), flights.clone());
        feeder.send(most).await?;
        cluster.wait_processed(&feeder.token()?).await?;
        let is = |phase: Phase| move |state: &Replay| state.phase() == phase;

        // The coordinator is killed in REPLAY and in HOLD. A person asks the next one to promote.
        processor.failpoints().set(point::REPLAY)?;
        let replay = replays::start(&cluster, "first", &[&stream, &v2]).await?;
        let middle = replays::in_the_middle;
        coordinators.replace_at(processor, point::REPLAY, &replay, middle).await?;
        replays::wait_for(&cluster, &replay, &[Phase::Hold]).await?;
        coordinators.replace(&replay, is(Phase::Hold)).await?;
        promote(&cluster, &replay, "promote first").await?;
        let some: Vec<&Flight> = flights[..most].iter().collect();
        expect_rows(&cluster, &some, 2, &feeder.token()?).await?;

        // It is killed in ALIGN and in DIFF, while events come.
        feeder.allow(flights.len());
        processor.failpoints().set(point::ALIGN)?;
        coordinator.failpoints().set(point::DIFF)?;
        let replay = replays::start(&cluster, "second", &[&stream, &v1]).await?;
        coordinators.replace_at(processor, point::ALIGN, &replay, is(Phase::Align)).await?;
        feeder.send(flights.len()).await?;
        coordinators.replace_at(coordinator, point::DIFF, &replay, is(Phase::Diff)).await?;
        let held = replays::wait_for(&cluster, &replay, &[Phase::Hold]).await?;
        let mut fence = vec![0; flights::PARTITIONS as usize];
        for position in &held.fence {
            fence[position.partition as usize] = position.offset;
        }
        let compared = flights::before(&flights, &fence);
        let diff = held.diff.context("a diff")?;
        let (old, new) = (punctuality(compared.iter().copied(), 2), punctuality(compared, 1));
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
        replays::abort(&cluster, &replay, "abort second").await?;
        replays::until(&cluster, &replay, is(Phase::Aborted)).await?;
        let (all, token) = (flights.iter().collect::<Vec<_>>(), feeder.token()?);
        expect_rows(&cluster, &all, 2, &token).await?;

        // It is killed in COMMIT, while the swap waits for the processor.
        let replay = replays::start(&cluster, "third", &[&stream, &v1]).await?;
        replays::wait_for(&cluster, &replay, &[Phase::Hold]).await?;
        processor.failpoints().set(point::MUTE)?;
        replays::promote(&cluster, &replay, "promote third").await?;
        coordinators.replace_at(processor, point::MUTE, &replay, is(Phase::Commit)).await?;
        replays::wait_for(&cluster, &replay, &[Phase::Retain]).await?;
        expect_rows(&cluster, &all, 1, &token).await?;

        // It is killed in RETAIN: undo is still possible. It is killed before it writes the undo,
        // when every shard has answered.
        coordinators.replace(&replay, is(Phase::Retain)).await?;
        coordinator.failpoints().set(point::SWAP)?;
        replays::undo(&cluster, "punctuality", "undo").await?;
        coordinators.replace_at(coordinator, point::SWAP, &replay, is(Phase::Commit)).await?;
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
async fn a_replay_that_an_operator_holds_stays_held_when_the_coordinator_is_killed() -> Result<()> {
    docker::test(async {
        let broker = Broker::start().await?;
        let cluster = Cluster::start(&broker, 1, 1).await?;
        let coordinators = Coordinators { broker: &broker, cluster: &cluster };
        let [stream, v1, v2] = definitions().await?;
        cluster.apply("create", &[&stream, &v1]).await?;
        let flights = Arc::new(flights::read()?);
        let mut feeder = Feeder::start(cluster.ingest_channel(), flights.clone());
        feeder.send(flights.len()).await?;
        let (all, token) = (flights.iter().collect::<Vec<_>>(), feeder.token()?);
        cluster.wait_processed(&token).await?;
        let is_held = |before: HoldBefore, phase: Phase| {
            move |state: &Replay| (state.held_before(), state.phase()) == (before, phase)
        };

        for (before, phase) in
            [(HoldBefore::Align, Phase::Replay), (HoldBefore::Diff, Phase::Align)]
        {
            let id = before.as_str_name();
            let replay = replays::start_held(&cluster, id, &[&stream, &v2], before).await?;
            coordinators.replace(&replay, is_held(before, phase)).await?;
            // The same request again does nothing.
            let resumed = replays::resume(&cluster, &replay, &format!("resume {id}")).await?;
            let again = replays::resume(&cluster, &replay, &format!("resume {id}")).await?;
            assert_eq!(resumed.replay_id, again.replay_id);
            let held = replays::wait_for(&cluster, &replay, &[Phase::Hold]).await?;
            ensure!(held.diff.is_some_and(|diff| diff.changed > 0), "nothing was compared");
            replays::abort(&cluster, &replay, &format!("abort {id}")).await?;
            replays::until(&cluster, &replay, |state| state.phase() == Phase::Aborted).await?;
        }

        let before = HoldBefore::Commit;
        let replay = replays::start_held(&cluster, "commit", &[&stream, &v2], before).await?;
        replays::wait_for(&cluster, &replay, &[Phase::Hold]).await?;
        let held = replays::promote(&cluster, &replay, "promote").await?;
        assert_eq!((held.phase(), held.held_before()), (Phase::Hold, before), "{held:?}");
        coordinators.replace(&replay, is_held(before, Phase::Hold)).await?;
        expect_rows(&cluster, &all, 1, &token).await?;
        replays::resume(&cluster, &replay, "resume commit").await?;
        replays::wait_for(&cluster, &replay, &[Phase::Retain]).await?;
        expect_rows(&cluster, &all, 2, &token).await?;
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
        let flights = Arc::new(flights::read()?);
        let quarter = flights.len() / 4;
        let mut feeder = Feeder::start(cluster.ingest_channel(), flights.clone());
        // A foreign client writes records that cannot be processed: each must become one dead
        // letter.
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
        feeder.send(quarter).await?;
        bad(0).await?;
        let owners = |shards: &[ShardStatus]| -> BTreeMap<u32, (String, u64)> {
            shards.iter().map(|s| (s.partition, (s.processor.clone(), s.epoch))).collect()
        };
        let both = |shards: &[ShardStatus]| {
            ["processor-1", "processor-2"].iter().all(|name| of(name, shards).next().is_some())
        };
        cluster.wait_shards("both processors have shards", both).await?;
        let before = owners(&cluster.wait_processed(&feeder.token()?).await?);

        cluster.pairs[0].processor.freeze().await?;
        feeder.send(2 * quarter).await?;
        bad(40).await?;
        // The other processor takes over.
        let taken = cluster
            .wait_shards("processor-2 has every shard", |shards| {
                of("processor-2", shards).count() == shards.len()
            })
            .await?;
        let taken = owners(&taken);
        cluster.wait_processed(&feeder.token()?).await?;
        for (partition, (_, epoch)) in &taken {
            let (owner, old) = &before[partition];
            ensure!(
                owner == "processor-2" || epoch > old,
                "partition {partition} has no newer claim"
            );
        }

        cluster.pairs[0].processor.thaw().await?;
        feeder.send(3 * quarter).await?;
        bad(80).await?;
        let token = feeder.token()?;
        cluster.wait_processed(&token).await?;
        let seen: Vec<&Flight> = flights[..3 * quarter].iter().collect();
        expect_rows(&cluster, &seen, 1, &token).await?;

        // Each record that could not be processed is a dead letter, once.
        eventually("every record that cannot be processed is a dead letter", async || {
            let letters = topics::read(&broker, "flights.dead-letters").await?.into_iter();
            let mut numbers: Vec<u32> = letters
                .filter_map(|letter| {
                    let text = String::from_utf8(letter.value?).ok()?;
                    text.strip_prefix("not json ")?.parse().ok()
                })
                .collect();
            numbers.sort_unstable();
            ensure!(
                numbers.is_sorted_by(|one, next| one < next),
                "a dead letter was published twice: {numbers:?}"
            );
            Ok(found(numbers, |numbers| numbers.iter().copied().eq(0..120)))
        })
        .await?;
        let answer = views::punctuality(&cluster, Freshness::default()).await?;
        assert_eq!(answer.version(), 1);

        // Once the next owner of a shard has written, its former owner writes neither a status nor
        // a dead letter.
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
                let (_, value) = letter
                    .headers
                    .iter()
                    .find(|(own, _)| own == name)
                    .with_context(|| name.to_owned())?;
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
