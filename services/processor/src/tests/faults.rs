//! Processors with faults: the log is away, the owner is in doubt, the topic has changed.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use headwater_log::Log;
use headwater_proto::{control::v1::Phase, status::v1::ShardStatus};
use headwater_state::Identity;
use headwater_types::{Epoch, PartitionId};

use super::world::{Traffic, World, config, expected_letters, swap, within_patience};
use crate::{
    config::Config,
    publish::writer_id::writer_id,
    testing::{Connection, Groups, P0, PATIENCE, append_status, generation},
};

fn say(world: &World, status: &ShardStatus) {
    append_status(&world.log.memory, status);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_is_fenced_by_mistake_claims_its_shard_again() {
    let mut world = World::new();
    world.declare();
    world.create(1);
    world.log.orders(0..100);
    let groups = Groups::new(&["one"]);
    let one = world.join(&groups, "one", false, config()).await;
    world.until("work", |world| world.caught_up(1) && world.published(1)).await;
    let before = world.status(1).unwrap();

    // Another process claims the shard just as its own session ends, and reports that.
    let identity = Identity { generation: generation(1), partition: P0 };
    let writer = world.log.memory.writer(&writer_id(identity)).await.unwrap();
    assert_eq!(writer.epoch(), Epoch(before.epoch + 1));
    let zombie = ShardStatus { epoch: writer.epoch().0, processor: "zombie".into(), ..before };
    say(&world, &zombie);
    // Without an output, by which the owner would find out.
    world.log.orders((101..200).step_by(2));
    let again = |world: &World, than: u64| {
        let status = world.status(1).unwrap();
        status.processor == "one" && status.epoch > than && world.caught_up(1)
    };
    world.until("the owner again", |world| again(world, zombie.epoch)).await;

    // Another one claims the shard and reports nothing: then the fence tells the owner.
    let claimed = world.log.memory.writer(&writer_id(identity)).await.unwrap().epoch();
    world.log.orders((200..300).step_by(2));
    world.until("the owner again", |w| again(w, claimed.0) && w.published(1)).await;
    let mut letters: Vec<_> = world.letters().into_iter().map(|letter| letter.1).collect();
    letters.sort();
    let mut expected: Vec<_> =
        (0..100).chain(200..300).step_by(2).map(|number| format!("bad {number}")).collect();
    expected.sort();
    assert_eq!(letters, expected);
    assert!(one.node.health.is_ready() && one.node.tasks.failure().is_none());
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_away_makes_the_process_wait_with_all_that_it_has() {
    let mut world = World::with(2);
    world.declare();
    world.create(1);
    let groups = Groups::new(&["one", "one"]);
    let one = world.join(&groups, "one", false, config()).await;
    let traffic = Traffic::start(&world.log, 2);
    world.until("work", |world| world.status(1).is_some_and(|s| s.published > 200)).await;
    let before = world.status(1).unwrap();
    one.log.set(Connection::Cut);
    within_patience("the outage", || !one.node.health.is_ready()).await;
    let unmet: Vec<_> =
        one.node.health.conditions().into_iter().filter(|(_, reason)| reason.is_some()).collect();
    assert_eq!(unmet.len(), 1, "one condition for all shards: {unmet:?}");
    // Longer than the guard: nothing is written before the group has confirmed.
    tokio::time::sleep(Duration::from_millis(700)).await;
    one.log.set(Connection::Open);
    let count = traffic.stop();
    world.until("the end", |world| world.caught_up(1) && world.published(1)).await;
    world.until("readiness", |_| one.node.health.is_ready()).await;
    let after = world.status(1).unwrap();
    assert!(after.commits > before.commits, "the database stayed open");
    let mut letters: Vec<_> = world.letters().into_iter().map(|letter| letter.1).collect();
    letters.sort();
    assert_eq!(letters, expected_letters(2, count));
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_are_added_under_a_live_view_stop_its_shards_with_what_to_do() {
    let mut world = World::with(2);
    world.declare();
    world.create(1);
    let groups = Groups::new(&["one", "two"]);
    let one = world.join(&groups, "one", false, config()).await;
    let two = world.join(&groups, "two", false, config()).await;
    for partition in world.all() {
        world.log.orders_to(partition, 0..10);
    }
    world.until("work", |world| world.caught_up(1)).await;
    for process in [&one, &two] {
        process.log.added_partitions.store(1, Ordering::Relaxed);
    }
    world
        .until("errors", |world| {
            world.all().all(|p| world.status_of(1, p).is_some_and(|s| !s.error.is_empty()))
        })
        .await;
    let error = world.status(1).unwrap().error;
    for part in ["topic orders has 3 partitions", "stream orders declares 2", "create a new stream"]
    {
        assert!(error.contains(part), "{error}");
    }
    world.until("not ready", |_| !one.node.health.is_ready() && !two.node.health.is_ready()).await;
    world.log.orders(10..20);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(world.status(1).unwrap().position, 10, "not a record more");
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_assignment_of_a_partition_that_is_not_declared_is_noticed_at_once() {
    let mut world = World::with(1);
    world.declare();
    world.create(1);
    world.log.orders(0..10);
    let groups = Groups::new(&["one"]);
    let patient = Config { topic_interval: Duration::from_secs(3600), ..config() };
    let one = world.join(&groups, "one", false, patient).await;
    world.until("work", |world| world.caught_up(1)).await;
    let moving = groups.clone();
    tokio::task::spawn_blocking(move || moving.hand_over(PartitionId(1), "one")).await.unwrap();
    world.until("an error", |world| !world.status(1).unwrap().error.is_empty()).await;
    assert!(world.status(1).unwrap().error.contains("has 2 partitions"));
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_hangs_is_given_up_in_time_and_writes_nothing_afterwards() {
    let mut world = World::new();
    world.declare();
    world.create(1);
    world.log.orders(0..100);
    let groups = Groups::new(&["one"]);
    let hasty = Config { hand_over_timeout: Duration::from_secs(1), ..config() };
    let one = world.join(&groups, "one", false, hasty).await;
    let two = world.join(&groups, "two", false, config()).await;
    world.until("work", |world| world.caught_up(1) && world.published(1)).await;
    one.log.freeze().await;
    let (moving, begun) = (groups.clone(), Instant::now());
    tokio::task::spawn_blocking(move || moving.hand_over(P0, "two")).await.unwrap();
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(1) && took < PATIENCE, "{took:?}");
    assert_eq!(one.metric(r#"headwater_processor_hand_overs_total{outcome="late"}"#), 1.0);
    world.log.orders(100..120);
    world.until("the new owner", |w| w.caught_up(1) && w.published(1)).await;
    let taken_over =
        world.status_history(1, P0).into_iter().find(|s| s.1.processor == "two").unwrap().0;
    one.log.set(Connection::Open);
    tokio::time::sleep(Duration::from_millis(300)).await;
    // One status may have been on its way when the process stood still.
    let late = world
        .status_history(1, P0)
        .into_iter()
        .filter(|s| s.1.processor == "one" && s.0 > taken_over);
    assert!(late.count() <= 1);
    let mut letters: Vec<_> = world.letters().into_iter().map(|letter| letter.1).collect();
    letters.sort();
    assert_eq!(letters, expected_letters(1, 120));
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_not_asked_for_its_ends_at_every_round() {
    let mut world = World::new();
    world.declare();
    world.create(1);
    let groups = Groups::new(&["one"]);
    let interval = Duration::from_millis(200);
    let config = Config { report_interval: interval, ..config() };
    let one = world.join(&groups, "one", false, config).await;
    world.until("work", |world| world.status(1).is_some()).await;
    let traffic = Traffic::start(&world.log, 1);
    let asked = || one.log.ends_asked.load(Ordering::Relaxed);
    let (begun, before) = (Instant::now(), asked());
    world.until("questions", |_| asked() >= before + 4).await;
    assert!(begun.elapsed() >= interval * 3, "{:?}", begun.elapsed());
    traffic.stop();
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_cannot_mute_at_once_mutes_when_the_log_is_back() {
    let mut world = World::new();
    world.declare();
    world.create(1);
    world.log.orders(0..100);
    let process = world.start().await;
    world.replay(2, 1);
    world.until("HOLD", |w| w.phase() == Phase::Hold).await;
    within_patience("outputs", || world.published(1)).await;
    // The shard does not know what it has published, and cannot find that out.
    world.log.refused.store(1, Ordering::Relaxed);
    world.log.claims_refused.store(true, Ordering::Relaxed);
    world.log.orders(100..110);
    within_patience("the doubt", || world.log.refused.load(Ordering::Relaxed) == 0).await;
    assert!(process.node.health.is_ready());
    world.append(swap(1, 1, 2, false));
    within_patience("the outage", || !process.node.health.is_ready()).await;
    world.log.claims_refused.store(false, Ordering::Relaxed);
    world.until("the swap", |world| world.phase() == Phase::Retain).await;
    world.until("the end", |world| world.caught_up(2) && world.published(1)).await;
    let mut letters: Vec<_> = world.letters().into_iter().map(|letter| letter.1).collect();
    letters.sort();
    assert_eq!(letters, expected_letters(1, 110), "each once");
    process.stop().await;
}
