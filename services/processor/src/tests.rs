//! The processor as a whole, with the coordinator's decisions made by hand.

mod faults;
mod former_status;
mod rebalance;
mod world;

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use headwater_log::Log;
use headwater_proto::control::v1::{
    GenerationRetired, Phase, ViewCreated, ViewDeleted, control_record::Event,
};
use headwater_state::layout;
use headwater_types::{ENGINE_VERSION, Offset, PartitionId};

use crate::testing::{P0, PATIENCE, generation, name};
use world::{Traffic, World, built, swap, within_patience};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_is_promoted_and_undone_through_restarts_and_every_dead_letter_leaves_once() {
    let mut world = World::new();
    world.declare();
    world.create(1);
    let traffic = Traffic::start(&world.log, 1);
    let mut process = world.start().await;
    world
        .until("live work", |world| world.status(1).is_some_and(|status| status.position > 100))
        .await;

    world.replay(2, 1);
    world.until("ALIGN", |world| world.phase() == Phase::Align).await;
    process.stop().await;
    process = world.start().await;
    world.until("COMMIT", |world| world.phase() == Phase::Commit).await;
    process.stop().await;
    process = world.start().await;
    world.until("RETAIN", |world| world.phase() == Phase::Retain).await;
    assert_eq!(world.state.views()["spend"].serving, generation(2));

    let promoted_at = world.end();
    world
        .until("outputs of the new one", |world| {
            world.status(2).is_some_and(|status| status.published > promoted_at.0 + 100)
        })
        .await;
    world.append(swap(2, 2, 1, true));
    process.stop().await;
    process = world.start().await;
    world.until("UNDONE", |world| world.phase() == Phase::Undone).await;

    let count = traffic.stop();
    world.until("the end", |world| world.caught_up(1) && world.caught_up(2)).await;
    world
        .until("all outputs", |world| {
            world.status(1).is_some_and(|status| status.published == count)
        })
        .await;
    assert_eq!(world.digest(1), world.digest(2), "law 2: live and replayed, byte for byte");
    let tallies = world.status(1).unwrap().tallies.unwrap();
    assert_eq!(
        (tallies.applied + tallies.late, tallies.dead_lettered),
        (count / 2, count / 2),
        "law 5"
    );

    let letters = world.letters();
    assert!(letters.iter().any(|letter| letter.0 == generation(2)), "both have owned outputs");
    let mut values: Vec<_> = letters.into_iter().map(|letter| letter.1).collect();
    values.sort();
    let mut expected: Vec<_> =
        (0..count).step_by(2).map(|number| format!("bad {number}")).collect();
    expected.sort();
    assert_eq!(values, expected, "each once");

    let state = layout::state_dir(world.dir.path(), generation(2));
    assert!(state.exists());
    world.append(Event::GenerationRetired(GenerationRetired {
        generation: generation(2).to_string(),
        reason: String::new(),
    }));
    world.until("deletion", |world| !state.exists() && world.status(2).is_none()).await;
    assert!(!layout::checkpoints_dir(world.dir.path(), generation(2)).exists());
    assert!(world.status(1).is_some());
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_views_shards_publish_what_they_have_committed_and_are_deleted() {
    delete_view(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_owner_of_a_deleted_views_shard_publishes_what_the_former_one_had_committed() {
    delete_view(true).await;
}

/// `lost`: the owner that deletes the shard has nothing of its state.
async fn delete_view(lost: bool) {
    let mut world = World::new();
    world.declare();
    world.create(1);
    // The topic of dead letters takes nothing.
    world.log.refused.store(u32::MAX, Ordering::Relaxed);
    world.log.orders(0..100);
    let mut process = world.start().await;
    world.until("live work", |world| world.caught_up(1)).await;
    assert_eq!(world.letters().len(), 0);

    world.append(Event::ViewDeleted(ViewDeleted { view: "spend".into(), reason: String::new() }));
    // Nobody may be in the generation's group by the time it is retired.
    process.stop().await;
    world.log.refused.store(0, Ordering::Relaxed);
    let state = layout::state_dir(world.dir.path(), generation(1));
    assert!(state.exists());
    if lost {
        std::fs::remove_dir_all(&state).unwrap();
    }
    process = world.start().await;
    world.log.orders(100..120);
    // The coordinator retires it by a record of its own.
    world.until("deletion", |world| !state.exists() && world.status(1).is_none()).await;
    let mut letters: Vec<_> = world.letters().into_iter().map(|letter| letter.1).collect();
    letters.sort();
    let mut expected: Vec<_> = (0..100).step_by(2).map(|number| format!("bad {number}")).collect();
    expected.sort();
    assert_eq!(letters, expected, "what it had read, each once, and nothing of what came later");
    let text = process.node.metrics.encode();
    assert!(!text.contains(r#"view="spend""#), "{text}");

    // The same name again: another generation, which reads everything from the start.
    world.create(2);
    world.until("the new view", |world| world.caught_up(2) && world.published(2)).await;
    assert!(!state.exists());
    assert_eq!(world.letters().len(), 50 + 60);
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_stays_muted_where_it_was_muted_through_a_restart() {
    let mut world = World::new();
    world.declare();
    world.create(1);
    world.log.orders(0..100);
    let process = world.start().await;
    world.replay(2, 1);
    world.until("HOLD", |world| world.phase() == Phase::Hold).await;
    // From here on the test alone appends control records, and does not swap yet.
    world.append(swap(1, 1, 2, false));
    let wait = async |world: &World, position: u64| {
        let begun = Instant::now();
        while !world
            .status(1)
            .is_some_and(|status| status.muted_for == "spend-1-s1" && status.position == position)
        {
            assert!(begun.elapsed() < PATIENCE, "{:?}", world.status(1));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    wait(&world, 100).await;
    assert_eq!(world.status(1).unwrap().muted_at, 100);
    world.log.orders(100..150);
    wait(&world, 150).await;
    process.stop().await;
    world.log.orders(150..200);
    let process = world.start().await;
    wait(&world, 200).await;
    let status = world.status(1).unwrap();
    assert_eq!((status.muted_at, status.published), (100, 100), "it may be the fence by now");
    assert_eq!(world.letters().len(), 50);
    world.until("RETAIN", |world| world.phase() == Phase::Retain).await;
    assert_eq!(world.state.output_windows(generation(2), P0)[0].from, Offset(100));
    world
        .until("outputs", |world| world.status(2).is_some_and(|status| status.published == 200))
        .await;
    let owners =
        |number| world.letters().iter().filter(|letter| letter.0 == generation(number)).count();
    assert_eq!((owners(1), owners(2)), (50, 50));
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_cannot_go_on_says_so_and_the_others_go_on() {
    let mut world = World::new();
    world.declare();
    world.create(1);
    world.log.orders(0..100);
    let process = world.start().await;
    world.until("live work", |world| world.caught_up(1)).await;
    assert!(process.node.health.is_ready());

    world.log.trim(&name("orders"), P0, Offset(50)).await.unwrap();
    world.replay(2, 1);
    let halted = || world.status(2).is_some_and(|status| !status.error.is_empty());
    within_patience("an error", halted).await;
    let error = world.status(2).unwrap().error;
    assert!(error.contains("records 0 to 50 of orders[0] were trimmed"), "{error}");
    assert!(!process.node.health.is_ready());
    let stopped = r#"headwater_processor_shard_stopped{view="spend",generation="0000000000000002",partition="0"} 1"#;
    assert!(process.node.metrics.encode().contains(stopped));
    let text = process.node.metrics.encode();
    assert!(text.contains(r#"headwater_processor_lag_records{view="spend",generation="0000000000000001",partition="0"} 0"#), "{text}");

    world.log.orders(100..120);
    world.until("live work", |world| world.caught_up(1)).await;
    world.until("the end of the replay", |world| world.phase() == Phase::Failed).await;
    let gone = layout::state_dir(world.dir.path(), generation(2));
    world.until("deletion", |world| !gone.exists() && world.status(2).is_none()).await;
    world.until("readiness", |_| process.node.health.is_ready()).await;
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generation_of_another_engine_is_refused_with_what_to_do() {
    let mut world = World::new();
    world.declare();
    let mut other = built(1, 1);
    other.engine_version = ENGINE_VERSION + 1;
    world.append(Event::ViewCreated(ViewCreated { generation: Some(other) }));
    let process = world.start().await;
    let halted = || world.status(1).is_some_and(|status| !status.error.is_empty());
    within_patience("an error", halted).await;
    let error = world.status(1).unwrap().error;
    assert!(error.contains("start a replay of view spend"), "{error}");
    assert!(!layout::shard_dir(world.dir.path(), generation(1), PartitionId(0)).exists());
    process.stop().await;
}
