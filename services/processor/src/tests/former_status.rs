//! The last status of a shard's former owner binds the next owner, whatever comes between the two.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use headwater_proto::{control::v1::Phase, status::v1::ShardStatus};
use headwater_types::Offset;

use super::world::{Process, World, config, expected_letters, swap, within_patience};
use crate::testing::{Connection, Groups, P0, TestLog};

const SWAP: &str = "spend-1-s1";

/// A swap is requested, and the owner of the serving shard vanishes. Just before the next owner's
/// first status, the former owner appends what `last_word` makes of its last status.
async fn owner_that_vanishes(
    groups: &Groups,
    last_word: impl Fn(ShardStatus) -> ShardStatus,
) -> (World, Process, Arc<TestLog>) {
    let mut world = World::new();
    world.declare();
    world.create(1);
    world.log.orders(0..100);
    let one = world.join(groups, "one", false, config()).await;
    world.replay(2, 1);
    world.until("HOLD", |w| w.phase() == Phase::Hold).await;
    one.log.set(Connection::Cut);
    groups.expel("one", "two");
    world.append(swap(1, 1, 2, false));
    let last = ShardStatus { look_back: None, ..world.status(1).unwrap() };
    let log = world.log.another();
    *log.interjection.lock() = Some(last_word(last));
    (world, one, log)
}

fn muted_at_77(last: ShardStatus) -> ShardStatus {
    ShardStatus { muted_for: SWAP.into(), muted_at: 77, ..last }
}

/// A shard that has stopped counts as mute.
fn stopped_at_60(last: ShardStatus) -> ShardStatus {
    ShardStatus { error: "disk".into(), position: 60, ..last }
}

/// Waits until the swap's fence is at this offset and the present owner has looked back. Returns
/// the positions from which that owner reported itself mute. There may be none: a swap that rests
/// on the former owner's status can be over before the next owner reports.
async fn swapped_at(world: &mut World, owner: &str, at: u64) -> BTreeSet<u64> {
    world.until("the swap", |world| world.phase() == Phase::Retain).await;
    let fence = world.state.replays().values().next().unwrap().swap_fence.clone().unwrap();
    assert_eq!(fence[&P0], Offset(at), "{:#?}", world.status_history(1, P0));
    let settled = |status: ShardStatus| status.processor == owner && status.look_back.is_none();
    world.until("the new owner's status", |world| world.status(1).is_some_and(settled)).await;
    let said = world.status_history(1, P0).into_iter().map(|said| said.1);
    let mute = said.filter(|said| said.processor == owner && said.muted_for == SWAP);
    let muted: BTreeSet<_> = mute.map(|said| said.muted_at).collect();
    assert!(muted.iter().all(|muted_at| *muted_at == at), "{:#?}", world.status_history(1, P0));
    muted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_former_owner_said_until_it_was_claimed_counts() {
    let groups = Groups::new(&["one"]);
    let (mut world, one, log) = owner_that_vanishes(&groups, muted_at_77).await;
    let two = world.join_over(log, &groups, "two", false, config()).await;
    assert!(!swapped_at(&mut world, "two", 77).await.is_empty());
    two.stop().await;
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_had_stopped_stays_mute_from_there_under_the_next_owner() {
    let groups = Groups::new(&["one"]);
    let (mut world, one, log) = owner_that_vanishes(&groups, stopped_at_60).await;
    let two = world.join_over(log, &groups, "two", false, config()).await;
    swapped_at(&mut world, "two", 60).await;
    two.stop().await;
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_owner_that_is_interrupted_before_it_looked_back_forgets_nothing() {
    interrupted(muted_at_77, 77, false).await;
    interrupted(stopped_at_60, 60, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_owner_that_dies_before_it_looked_back_leaves_that_to_the_next() {
    interrupted(muted_at_77, 77, true).await;
    interrupted(stopped_at_60, 60, true).await;
}

async fn interrupted(last_word: fn(ShardStatus) -> ShardStatus, at: u64, dies: bool) {
    let groups = Groups::new(&["one"]);
    let (mut world, one, log) = owner_that_vanishes(&groups, last_word).await;
    log.cut_after_interjection.store(true, Ordering::Relaxed);
    let two = world.join_over(log, &groups, "two", false, config()).await;
    within_patience("the interruption", || two.log.connection() == Connection::Cut).await;
    let first = world.status(1).unwrap();
    assert_eq!((first.processor.as_str(), first.muted_for.as_str()), ("two", ""));
    assert!(first.error.is_empty());
    if dies {
        groups.expel("two", "three");
        let three = world.join(&groups, "three", false, config()).await;
        swapped_at(&mut world, "three", at).await;
        three.stop().await;
    } else {
        two.log.set(Connection::Open);
        swapped_at(&mut world, "two", at).await;
    }
    two.stop().await;
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_owner_that_has_not_heard_of_the_swap_yet_is_bound_by_it() {
    let mut world = World::new();
    world.declare();
    world.create(1);
    world.log.orders(0..100);
    let groups = Groups::new(&["one"]);
    let one = world.join(&groups, "one", false, config()).await;
    let two = world.join(&groups, "two", false, config()).await;
    world.replay(2, 1);
    world.until("HOLD", |w| w.phase() == Phase::Hold).await;
    within_patience("outputs", || world.published(1)).await;
    two.log.control_withheld.store(true, Ordering::Relaxed);
    world.append(swap(1, 1, 2, false));
    within_patience("the former owner's status", || world.status(1).unwrap().muted_for == SWAP)
        .await;
    one.log.set(Connection::Cut);
    groups.expel("one", "two");
    world.log.orders(100..200);
    within_patience("the new owner", || world.status(1).unwrap().processor == "two").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(world.letters().len(), 50, "the former owner had stopped to publish");

    two.log.control_withheld.store(false, Ordering::Relaxed);
    assert!(!swapped_at(&mut world, "two", 100).await.is_empty());
    world.until("the end", |world| world.caught_up(2) && world.published(2)).await;
    let mut letters: Vec<_> = world.letters().into_iter().map(|letter| letter.1).collect();
    letters.sort();
    assert_eq!(letters, expected_letters(1, 200), "each once");
    two.stop().await;
    one.stop().await;
}
