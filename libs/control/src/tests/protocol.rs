use headwater_proto::control::v1::{HoldBefore, Phase};
use proptest::prelude::*;

use super::{world::World, *};

#[derive(Clone, Copy, Debug)]
enum Step {
    Ingest(u32, u64),
    See(u32, usize),
    Work(u32, u64),
    Report(u32),
    RestartShard(u32),
    ReadStatuses(usize),
    Decide,
    RestartCoordinator,
    Operate(u32),
    Wait,
    /// The usual step: some shards work, and the coordinator decides.
    Round(u16, u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..PARTITIONS, 1..60_u64).prop_map(|(partition, n)| Step::Ingest(partition, n)),
        6 => (any::<u32>(), 1..3_usize).prop_map(|(shard, n)| Step::See(shard, n)),
        8 => (any::<u32>(), 1..120_u64).prop_map(|(shard, n)| Step::Work(shard, n)),
        6 => any::<u32>().prop_map(Step::Report),
        1 => any::<u32>().prop_map(Step::RestartShard),
        4 => (1..6_usize).prop_map(Step::ReadStatuses),
        4 => Just(Step::Decide),
        1 => Just(Step::RestartCoordinator),
        2 => (0..8_u32).prop_map(Step::Operate),
        1 => prop::bool::weighted(0.2).prop_map(|delete| Step::Operate(if delete { 8 } else { 0 })),
        1 => Just(Step::Wait),
        6 => (any::<u16>(), 1..200_u64).prop_map(|(shards, n)| Step::Round(shards, n)),
    ]
}

fn hold() -> impl Strategy<Value = HoldBefore> {
    prop_oneof![
        3 => Just(HoldBefore::Unspecified),
        1 => Just(HoldBefore::Align),
        1 => Just(HoldBefore::Diff),
        1 => Just(HoldBefore::Commit),
    ]
}

fn take(world: &mut World, step: Step) {
    let keys = world.keys();
    let pick = |shard: u32| keys[shard as usize % keys.len()];
    match step {
        Step::Ingest(partition, records) => world.ends[partition as usize] += records,
        Step::See(shard, records) => world.see(pick(shard), records),
        Step::Work(shard, records) => world.work(pick(shard), records),
        Step::Report(shard) => world.report(pick(shard)),
        Step::RestartShard(shard) => world.restart_shard(pick(shard)),
        Step::ReadStatuses(count) => world.read_statuses(count),
        Step::Decide => {
            world.decide();
        }
        Step::RestartCoordinator => world.restart_coordinator(),
        // Start, promote and undo are more likely than abort and resume, and those than delete.
        Step::Operate(verb) => world.operate(match verb {
            6 => 3,
            7 => 4,
            8 => 5,
            verb => verb % 3,
        }),
        Step::Wait => world.now_ms += 100,
        Step::Round(shards, records) => {
            for (index, key) in keys.into_iter().enumerate() {
                if shards >> (index % 16) & 1 == 1 {
                    world.see(key, 1);
                    world.work(key, records);
                    world.report(key);
                }
            }
            world.read_statuses(usize::MAX);
            world.decide();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(250))]

    /// At any pace of shards, statuses and coordinator, and with any crashes: every comparison is
    /// made at one fence, every swap has the new shards at its fence, and everything that was
    /// started ends.
    #[test]
    fn the_protocol_reaches_its_end_under_any_interleaving(
        promote in any::<bool>(),
        hold in hold(),
        steps in prop::collection::vec(step(), 0..400),
    ) {
        let mut world = World::holding(promote, hold);
        world.operate(0);
        for step in steps {
            take(&mut world, step);
        }
        world.settle();
        // A held replay stands before the phase that was named, and goes on when it is resumed.
        for replay in world.truth.replays().values().filter(|replay| replay.held_before().is_some()) {
            let stands = match hold {
                HoldBefore::Unspecified => false,
                HoldBefore::Align => replay.phase == Phase::Replay && replay.attempt == 0,
                HoldBefore::Diff => replay.phase == Phase::Align && replay.diff.is_none(),
                HoldBefore::Commit => replay.phase == Phase::Hold && replay.swaps == 0,
            };
            prop_assert!(stands, "{} is held before {hold:?} in {:?}", replay.id, replay.phase);
        }
        world.operate(4);
        world.settle();
        for replay in world.truth.replays().values() {
            prop_assert!(
                matches!(replay.phase, Phase::Hold | Phase::Retain | Phase::Undone | Phase::Retired | Phase::Aborted),
                "{} is stuck in {:?}", replay.id, replay.phase
            );
        }
        // A deleted view leaves nothing behind but its history.
        for entry in world.truth.generations().values() {
            prop_assert!(
                world.truth.view_of(entry.id).is_some() || entry.role == Role::Retired,
                "{} of a deleted view is {:?}", entry.id, entry.role
            );
        }
        // No record may be written twice. Only a repeated ALIGN is another attempt, and a view that
        // was created again may be deleted again.
        for record in &world.control {
            if matches!(record.event, Some(Event::AlignRequested(_) | Event::ViewDeleted(_))) {
                continue;
            }
            let mut state = world.truth.clone();
            prop_assert!(state.fold(state.position(), record).is_err(), "{record:?} was taken twice");
        }
    }
}

/// Runs promote, undo and promote again to the end. Calls `before` before each decision.
fn full_story(mut before: impl FnMut(&mut World, usize)) -> World {
    let mut world = World::new(false);
    let mut decisions = 0;
    for verb in [0, 1, 2, 1] {
        world.operate(verb);
        for round in 0..30 {
            world.ends = world.ends.map(|end| end + 7);
            for key in world.keys() {
                // The old generation is slower than the new one at first, so that ALIGN needs a
                // second attempt and undo has to wait.
                world.see(key, 1);
                world.work(key, if key.0 == id(0) && round < 12 { 3 } else { 1_000 });
                world.report(key);
            }
            world.read_statuses(usize::MAX);
            before(&mut world, decisions);
            decisions += 1;
            world.decide();
        }
    }
    world.now_ms += RETAIN_MS as i64;
    world.settle();
    world
}

#[test]
fn a_coordinator_that_dies_between_any_two_appends_writes_the_same_history() {
    let whole = full_story(|_, _| {});
    let kinds = |world: &World| {
        world
            .control
            .iter()
            .map(|record| std::mem::discriminant(record.event.as_ref().unwrap()))
            .collect::<Vec<_>>()
    };
    assert_eq!(whole.truth.replays()["v-1"].phase, Phase::Retired, "the story runs to its end");
    assert_eq!(whole.truth.views()[&view()].epoch.0, 4);
    for death in 0..120 {
        let world = full_story(|world, decision| {
            if decision == death {
                world.restart_coordinator();
                world.read_statuses(usize::MAX);
            }
        });
        assert_eq!(kinds(&world), kinds(&whole), "death before decision {death}");
        assert_eq!(world.diffs, 1);
    }
}

#[test]
fn a_live_shard_behind_the_new_one_is_asked_again_once_it_has_caught_up() {
    let mut world = World::new(false);
    world.operate(0);
    world.ends = [1_000, 1_000];
    let (old, new) = (id(0), id(1));
    let keys = world.keys();
    let round = |world: &mut World, live: u64| {
        for &key in &keys {
            world.see(key, usize::MAX);
            world.work(key, if key.0 == old { live } else { 1_000 });
            world.report(key);
        }
        world.read_statuses(usize::MAX);
        world.decide()
    };
    // The new shards are at the end and the live ones at 10, so the live checkpoints cannot be
    // fences.
    assert!(round(&mut world, 10));
    for _ in 0..10 {
        round(&mut world, 10);
    }
    let replay = &world.truth.replays()["v-1"];
    assert_eq!((replay.attempt, replay.fence.is_none()), (1, true), "not asked again in vain");
    assert_eq!(world.shards[&(new, PartitionId(0))].position, 1_000, "the new one holds");
    world.ends = [1_500, 1_500];
    for _ in 0..6 {
        round(&mut world, 1_000);
    }
    let replay = &world.truth.replays()["v-1"];
    assert_eq!((replay.attempt, replay.phase), (2, Phase::Hold));
}
