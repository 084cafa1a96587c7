//! Several processors, between which the group moves shards.

use std::{collections::BTreeSet, time::Duration};

use headwater_engine::{Limits, Shard};
use headwater_log::{Log, block_on};
use headwater_proto::control::v1::{GenerationRetired, Phase, control_record::Event};
use headwater_service::Service;
use headwater_state::{Identity, Options, ShardDb, layout};
use headwater_types::{Offset, PartitionId};
use tempfile::TempDir;

use super::world::{Process, Traffic, World, config, digest_of, expected_letters};
use crate::{
    assignment::group::group_id,
    testing::{Connection, Groups, P0, TestLog, generation, name, plan_of},
};

const P1: PartitionId = PartitionId(1);
const P2: PartitionId = PartitionId(2);

/// The state of a shard that nothing ever disturbed: the engine alone, over the partition's
/// records.
fn undisturbed(log: &TestLog, partitions: u32, partition: PartitionId) -> [u8; 32] {
    let dir = TempDir::new().unwrap();
    let identity = Identity { generation: generation(99), partition };
    let path = layout::shard_dir(dir.path(), identity.generation, partition);
    let db = ShardDb::open(&path, &identity, &Options::default()).unwrap();
    let mut shard = Shard::open_with(plan_of(partitions), db, Limits::default()).unwrap();
    let mut reader = block_on(log.memory.reader(&name("orders"), partition, Offset::ZERO)).unwrap();
    while let Some(chunk) = reader.read(1 << 20, Duration::ZERO).unwrap() {
        shard.apply(&chunk, None).unwrap();
    }
    shard.commit().unwrap();
    drop(shard);
    digest_of(dir.path(), identity.generation, partition)
}

fn check_letters(world: &World, partitions: u32, count: u64) {
    let mut values: Vec<_> = world.letters().into_iter().map(|letter| letter.1).collect();
    values.sort();
    assert_eq!(values, expected_letters(partitions, count), "each once");
}

/// xorshift: the schedule of a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

async fn partitions_move(seed: u64, store: bool) {
    let mut dice = Dice(seed);
    let mut world = World::with(3);
    world.declare();
    world.create(1);
    let groups = Groups::new(&["one", "two", "one"]);
    let processes = [
        world.join(&groups, "one", store, config()).await,
        world.join(&groups, "two", store, config()).await,
    ];
    let traffic = Traffic::start(&world.log, 3);
    world.until("live work", |world| world.status(1).is_some_and(|s| s.position > 100)).await;
    let mut owners = [0, 1, 0];
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(dice.roll(150))).await;
        let partition = dice.roll(3) as usize;
        owners[partition] = 1 - owners[partition];
        let (to, moving) = (["one", "two"][owners[partition]], groups.clone());
        let partition = PartitionId(partition as u32);
        tokio::task::spawn_blocking(move || moving.hand_over(partition, to)).await.unwrap();
    }
    let count = traffic.stop();
    let owned = |world: &World| {
        world.all().all(|partition| {
            let owner = ["one", "two"][owners[partition.0 as usize]];
            world.status_of(1, partition).unwrap().processor == owner
        })
    };
    world.until("the end", |w| w.caught_up(1) && w.published(1) && owned(w)).await;
    for partition in world.all() {
        let owner = &processes[owners[partition.0 as usize]];
        let status = world.status_of(1, partition).unwrap();
        assert_eq!(
            owner.digest(1, partition),
            undisturbed(&world.log, 3, partition),
            "law 2 across owners, seed {seed}, {partition}"
        );
        let tallies = status.tallies.unwrap();
        assert_eq!(
            tallies.applied
                + tallies.late
                + tallies.filtered
                + tallies.duplicate
                + tallies.dead_lettered,
            count,
            "law 5"
        );
        // One owner after the other, each with a claim of its own.
        let epochs: Vec<_> =
            world.status_history(1, partition).into_iter().map(|s| s.1.epoch).collect();
        assert!(epochs.is_sorted() && epochs[0] > 0, "{epochs:?}");
    }
    check_letters(&world, 3, count);
    let group = group_id(generation(1));
    world
        .until("positions in the group", |world| {
            world.all().all(|p| groups.committed(&group, p) == Some(world.end_of(p)))
        })
        .await;
    for process in processes {
        let processor = process.processor.clone();
        process.stop().await;
        let summary = Service::summary(&processor).unwrap();
        assert!(
            summary.contains("0 of them late") && summary.contains("0 outputs left"),
            "{summary}"
        );
    }
    assert!(groups.members(&group).is_empty());
    for partition in world.all().filter(|_| store) {
        let end = world.end_of(partition).0;
        assert!(world.stored(1, partition, end), "the last checkpoint before the end");
        assert_eq!(world.manifests(1, partition).len(), 1, "and no other is left");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_move_between_processors_and_nothing_is_lost_or_twice() {
    partitions_move(0x9e37_79b9_7f4a_7c15, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_move_through_the_store_and_nothing_is_lost_or_twice() {
    for seed in [3, 0xdead_beef] {
        partitions_move(seed, true).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_owner_goes_on_from_the_store_and_not_from_the_beginning() {
    let mut world = World::new();
    world.declare();
    world.create(1);
    world.log.orders(0..1000);
    let groups = Groups::new(&["one"]);
    let one = world.join(&groups, "one", true, config()).await;
    world.until("work", |world| world.caught_up(1) && world.published(1)).await;
    world.log.orders(1000..1100);
    world.until("more work", |world| world.caught_up(1)).await;
    let two = world.join(&groups, "two", true, config()).await;
    let moving = groups.clone();
    tokio::task::spawn_blocking(move || moving.hand_over(P0, "two")).await.unwrap();
    world.log.orders(1100..1200);
    world
        .until("the end", |world| {
            world.caught_up(1) && world.published(1) && world.status(1).unwrap().processor == "two"
        })
        .await;
    assert_eq!(
        *two.log.readers_begun_at.lock(),
        [(P0, Offset(1100))],
        "where the former owner had stopped"
    );
    assert!(two.metric("headwater_processor_restored_bytes_total") > 0.0);
    assert_eq!(one.metric(r#"headwater_processor_hand_overs_total{outcome="closed"}"#), 1.0);
    assert_eq!(two.digest(1, P0), undisturbed(&world.log, 1, P0));
    check_letters(&world, 1, 1200);

    // Back again, where an old copy still lies.
    let moving = groups.clone();
    tokio::task::spawn_blocking(move || moving.hand_over(P0, "one")).await.unwrap();
    world.log.orders(1200..1300);
    world
        .until("the end", |world| {
            world.caught_up(1) && world.published(1) && world.status(1).unwrap().processor == "one"
        })
        .await;
    assert_eq!(one.digest(1, P0), undisturbed(&world.log, 1, P0));
    check_letters(&world, 1, 1300);
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_stood_still_past_its_session_writes_nothing_when_it_goes_on() {
    let mut world = World::new();
    world.declare();
    world.create(1);
    world.log.orders(0..500);
    let groups = Groups::new(&["one"]);
    let one = world.join(&groups, "one", true, config()).await;
    let two = world.join(&groups, "two", true, config()).await;
    world.until("work", |world| world.caught_up(1) && world.published(1)).await;
    world.until("an upload", |world| world.stored(1, P0, 500)).await;

    one.log.freeze().await;
    world.log.orders(500..600);
    groups.expel("one", "two");
    world
        .until("the new owner", |world| {
            world.status(1).is_some_and(|s| s.processor == "two" && s.position == 600)
        })
        .await;
    let begun = two.log.readers_begun_at.lock().clone();
    assert_eq!(begun, [(P0, Offset(500))], "from the store");
    world.until("its outputs", |world| world.published(1)).await;
    let taken_over =
        world.status_history(1, P0).into_iter().find(|s| s.1.processor == "two").unwrap();
    let letters = world.letters().len();

    one.log.set(Connection::Open);
    tokio::time::sleep(Duration::from_millis(300)).await;
    world.log.orders(600..620);
    world.until("more work", |world| world.caught_up(1) && world.published(1)).await;
    // One status may have been on its way when the process stood still. Its epoch is older, so
    // readers ignore it.
    let late: Vec<_> =
        world.status_history(1, P0).into_iter().filter(|s| s.0 > taken_over.0).collect();
    let late: Vec<_> = late.iter().filter(|s| s.1.processor == "one").collect();
    assert!(late.len() <= 1 && late.iter().all(|s| s.1.epoch < taken_over.1.epoch), "{late:?}");
    assert_eq!(world.status(1).unwrap().processor, "two");
    assert_eq!(world.letters().len(), letters + 10);
    check_letters(&world, 1, 620);
    assert!(one.node.tasks.failure().is_none() && one.node.health.is_ready());

    // The group tells it at last, and may give it something again.
    groups.tell_expelled("one");
    let moving = groups.clone();
    tokio::task::spawn_blocking(move || moving.hand_over(P0, "one")).await.unwrap();
    world.log.orders(620..640);
    world
        .until("the old owner again", |world| {
            world.status(1).is_some_and(|s| s.processor == "one" && s.position == 640)
        })
        .await;
    world.until("its outputs", |world| world.published(1)).await;
    assert_eq!(one.digest(1, P0), undisturbed(&world.log, 1, P0));
    check_letters(&world, 1, 640);
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_dies_without_a_word_leaves_all_that_its_successor_needs() {
    for store in [false, true] {
        let mut world = World::with(2);
        world.declare();
        world.create(1);
        let groups = Groups::new(&["one", "two"]);
        let one = world.join(&groups, "one", store, config()).await;
        let two = world.join(&groups, "two", store, config()).await;
        let traffic = Traffic::start(&world.log, 2);
        world
            .until("work", |world| {
                world.all().all(|p| world.status_of(1, p).is_some_and(|s| s.published > 300))
            })
            .await;
        world.until("an upload", |w| !store || !w.manifests(1, P0).is_empty()).await;
        one.log.set(Connection::Cut);
        groups.expel("one", "two");
        world.until("a successor", |world| world.status(1).unwrap().processor == "two").await;
        let count = traffic.stop();
        world.until("the end", |world| world.caught_up(1) && world.published(1)).await;
        for partition in world.all() {
            assert_eq!(two.digest(1, partition), undisturbed(&world.log, 2, partition));
        }
        check_letters(&world, 2, count);
        if store {
            let begun = two.log.readers_begun_at.lock().clone();
            let from = begun.iter().filter(|b| b.0 == P0).map(|b| b.1).min().unwrap();
            assert!(from > Offset::ZERO, "from the store");
        }
        two.stop().await;
        one.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_died_before_its_manifest_is_as_if_it_had_never_been() {
    let mut world = World::new();
    world.declare();
    world.create(1);
    world.log.orders(0..300);
    let groups = Groups::new(&["one"]);
    let one = world.join(&groups, "one", true, config()).await;
    world.until("work", |world| world.caught_up(1) && world.published(1)).await;
    world.until("an upload", |world| world.stored(1, P0, 300)).await;
    one.log.set(Connection::Cut);
    groups.expel("one", "two");
    // The files are in the store, and the manifest that names them is not.
    let shard = world.dir.path().join("store").join(generation(1).to_string()).join("0");
    for manifest in world.manifests(1, P0) {
        std::fs::remove_file(shard.join("positions").join(manifest)).unwrap();
    }
    assert!(std::fs::read_dir(shard.join("files")).unwrap().next().is_some());
    let two = world.join(&groups, "two", true, config()).await;
    world.log.orders(300..400);
    world
        .until("the end", |world| {
            world.caught_up(1) && world.published(1) && world.status(1).unwrap().processor == "two"
        })
        .await;
    assert_eq!(two.log.readers_begun_at.lock()[0], (P0, Offset::ZERO), "from the log alone");
    assert_eq!(two.digest(1, P0), undisturbed(&world.log, 1, P0));
    check_letters(&world, 1, 400);
    two.stop().await;
    one.stop().await;
}

/// Moves everything to the other process whenever the replay comes to a phase.
async fn moved_in_every_phase(store: bool) {
    let mut world = World::with(2);
    world.declare();
    world.create(1);
    let groups = Groups::new(&["one", "two"]);
    let one = world.join(&groups, "one", store, config()).await;
    let two = world.join(&groups, "two", store, config()).await;
    let traffic = Traffic::start(&world.log, 2);
    world.until("live work", |world| world.status(1).is_some_and(|s| s.position > 100)).await;

    let mut owner = 0;
    let mut seen = BTreeSet::new();
    let begun = std::time::Instant::now();
    world.replay(2, 1);
    let names = ["one", "two"];
    let mut turn = async |phase: Phase| {
        if seen.insert(phase as i32) {
            owner = 1 - owner;
            let (moving, to, then) = (groups.clone(), names[owner], names[1 - owner]);
            tokio::task::spawn_blocking(move || {
                moving.hand_over(P0, to);
                moving.hand_over(P1, then);
            })
            .await
            .unwrap();
        }
    };
    while world.phase() != Phase::Retain {
        assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", world.state.replays());
        turn(world.phase()).await;
        world.coordinate();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    turn(Phase::Retain).await;
    for phase in [Phase::Replay, Phase::Align, Phase::Commit] {
        assert!(seen.contains(&(phase as i32)), "{phase:?} was seen");
    }
    let fence = world.state.replays().values().next().unwrap().swap_fence.clone().unwrap();
    for partition in world.all() {
        let muted: BTreeSet<_> = world
            .status_history(1, partition)
            .into_iter()
            .filter(|s| s.1.muted_for == "spend-1-s1")
            .map(|s| s.1.muted_at)
            .collect();
        assert_eq!(muted.into_iter().collect::<Vec<_>>(), [fence[&partition].0], "decided once");
    }
    let count = traffic.stop();
    world
        .until("the end", |world| world.caught_up(1) && world.caught_up(2) && world.published(2))
        .await;
    for partition in world.all() {
        let owner = [&one, &two]
            .into_iter()
            .find(|p| world.status_of(2, partition).unwrap().processor == p.node.instance)
            .unwrap();
        let alone = undisturbed(&world.log, 2, partition);
        assert_eq!(owner.digest(2, partition), alone, "replayed");
        assert_eq!(owner.digest(1, partition), alone, "live");
    }
    check_letters(&world, 2, count);
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_goes_through_while_its_shards_move_in_every_phase() {
    moved_in_every_phase(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_goes_through_the_store_while_its_shards_move_in_every_phase() {
    moved_in_every_phase(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retired_generation_is_deleted_by_its_owners_and_stale_copies_by_their_processes() {
    let mut world = World::with(3);
    world.declare();
    world.create(1);
    let groups = Groups::new(&["one", "two", "one"]);
    let one = world.join(&groups, "one", true, config()).await;
    let two = world.join(&groups, "two", true, config()).await;
    let traffic = Traffic::start(&world.log, 3);
    world.replay(2, 1);
    world.until("COMMIT done", |world| world.phase() == Phase::Retain).await;
    // A copy stays where the shard was.
    let moving = groups.clone();
    tokio::task::spawn_blocking(move || moving.hand_over(P2, "two")).await.unwrap();
    world.until("the move", |w| w.status_of(1, P2).unwrap().processor == "two").await;
    let local = |process: &Process, p| layout::shard_dir(&process.data, generation(1), p);
    assert!(local(&one, P2).exists());
    let count = traffic.stop();
    let stored = world.dir.path().join("store").join(generation(1).to_string());
    world.until("uploads", |_| stored.exists()).await;

    world.append(Event::GenerationRetired(GenerationRetired {
        generation: generation(1).to_string(),
        reason: String::new(),
    }));
    let group = group_id(generation(1));
    world
        .until("deletion", |world| {
            let gone = world.all().all(|p| world.status_of(1, p).is_none());
            gone && groups.is_deleted(&group) && !local(&one, P2).exists()
        })
        .await;
    for process in [&one, &two] {
        assert!(!layout::state_dir(&process.data, generation(1)).exists());
    }
    for partition in world.all() {
        let left = stored.join(partition.to_string());
        assert!(!left.exists() || std::fs::read_dir(left).unwrap().next().is_none());
    }
    world.until("the end", |world| world.caught_up(2) && world.published(2)).await;
    check_letters(&world, 3, count);
    one.stop().await;
    two.stop().await;
}
