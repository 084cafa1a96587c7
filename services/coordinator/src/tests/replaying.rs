use futures::StreamExt as _;
use headwater_control::{CONTROL_TOPIC, Role};
use headwater_proto::{
    common::v1::{Value, value::Kind},
    control::v1::{
        ControlRecord, GetReplayRequest, HoldBefore, ListReplaysRequest, Phase, Replay,
        ReplayOptions, Verdict, replay_service_server::ReplayService as _,
    },
};
use headwater_types::{Name, Offset, PartitionId};
use prost::Message as _;
use tonic::{Code, Request};

use super::fixture::{ALL, Cluster, ORDERS, PAID, PATIENCE, Processor};

const MIXED: [(i64, f64); 6] = [(0, 1.0), (1, 2.0), (1, 0.0), (2, 0.0), (3, 4.0), (1, 8.0)];

async fn replaying() -> Cluster {
    let mut cluster = Cluster::new().await;
    cluster.apply(&[ORDERS, ALL]).await.unwrap();
    cluster.ingest(&MIXED).await;
    cluster.processor.step().await;
    cluster.apply(&[PAID]).await.unwrap();
    cluster
}

async fn kinds(cluster: &Cluster) -> Vec<String> {
    let topic = Name::new(CONTROL_TOPIC).unwrap();
    let mut reader = cluster.log.reader(&topic, PartitionId(0), Offset::ZERO).await.unwrap();
    let mut kinds = Vec::new();
    while let Some(chunk) = reader.read(1 << 20, std::time::Duration::ZERO).unwrap() {
        for record in chunk.records(Offset::ZERO) {
            let record = ControlRecord::decode(record.unwrap().value.unwrap()).unwrap();
            let name = format!("{:?}", record.event.unwrap());
            kinds.push(name.split('(').next().unwrap().to_owned());
        }
    }
    kinds
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_compares_at_the_fence_swaps_undoes_and_swaps_again() {
    let mut cluster = replaying().await;
    let held = cluster.until("spend-1", Phase::Hold).await;
    assert_eq!(held.verdict(), Verdict::Inconclusive);
    let diff = held.diff.clone().unwrap();
    // User 1 loses an order that cost nothing, and user 2 had only such an order.
    assert_eq!((diff.same, diff.changed, diff.only_old, diff.only_new), (2, 1, 1, 0));
    assert_eq!(
        (diff.key.clone(), diff.sample_columns.clone()),
        (vec!["user_id".into()], vec!["orders".into(), "spend".into()])
    );
    assert_eq!(
        (diff.columns[0].changed, diff.columns[0].sum_old, diff.columns[0].sum_new),
        (1, Some(5.0), Some(4.0))
    );
    assert_eq!((diff.columns[1].changed, diff.columns[1].max_delta), (0, Some(0.0)));
    let integer = |value| Value { kind: Some(Kind::Integer(value)) };
    assert_eq!(diff.samples.len(), 2);
    assert_eq!(
        (&diff.samples[0].key[0], &diff.samples[0].new_values[0]),
        (&integer(1), &integer(2))
    );
    assert_eq!((&diff.samples[1].key[0], diff.samples[1].new_values.len()), (&integer(2), 0));
    assert_eq!(held.waiting_for, "a person: promote or abort");

    cluster.promote("spend", false).await.unwrap();
    let retained = cluster.until("spend-1", Phase::Retain).await;
    assert_eq!((retained.epoch, retained.retain_until_ms), (2, 1_000 + 24 * 3_600_000));
    cluster.ingest(&MIXED).await;
    cluster.processor.step().await;
    cluster.undo("spend").await.unwrap();
    let undone = cluster.until("spend-1", Phase::Undone).await;
    assert_eq!(undone.epoch, 3);
    let positions =
        |replay: &Replay| replay.swap_fence.iter().map(|fence| fence.offset).collect::<Vec<_>>();
    assert!(positions(&undone) > positions(&retained), "it lost nothing that came since");
    let again = cluster.undo("spend").await.unwrap_err();
    assert!(again.message().contains("headwater replay promote spend-1"), "{}", again.message());
    cluster.promote("spend-1", false).await.unwrap();
    cluster.until("spend-1", Phase::Retain).await;

    cluster.wait_ms(24 * 3_600_000);
    let retired = cluster.until("spend-1", Phase::Retired).await;
    cluster.processor.step().await;
    assert_eq!(cluster.processor.deleted, [retired.old_generation.parse().unwrap()]);
    let gone = cluster.undo("spend").await.unwrap_err();
    assert!(gone.message().contains("is retired"), "{}", gone.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_restarts_between_any_two_steps_writes_the_same_history() {
    async fn story(restart: bool) -> Vec<String> {
        let mut cluster = replaying().await;
        let verbs = [Phase::Hold, Phase::Retain, Phase::Undone, Phase::Retain];
        for (verb, phase) in verbs.into_iter().enumerate() {
            match verb {
                1 | 3 => drop(cluster.promote("spend", false).await.unwrap()),
                2 => drop(cluster.undo("spend").await.unwrap()),
                _ => {}
            }
            for step in 0..200 {
                if cluster.replay("spend").await.phase() == phase {
                    break;
                }
                assert!(step < 199, "{phase:?} never came");
                if restart {
                    cluster.restart().await;
                }
                cluster.processor.step().await;
                cluster.quiet().await;
                if restart && step % 2 == 0 {
                    let reason = cluster.take_over().await;
                    assert!(reason.contains("another coordinator took the lead"), "{reason}");
                }
            }
        }
        let state = cluster.coordinator.context.state();
        assert_eq!(state.views()["spend"].epoch.0, 4);
        kinds(&cluster).await
    }
    let straight = story(false).await;
    assert_eq!(story(true).await, straight);
    let expected = [
        "StreamDeclared",
        "ViewCreated",
        "ReplayStarted",
        "AlignRequested",
        "FenceNamed",
        "DiffRecorded",
        "SwapRequested",
        "Swapped",
        "SwapRequested",
        "Swapped",
        "SwapRequested",
        "Swapped",
    ];
    assert_eq!(straight, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_processor_that_restarts_in_every_step_changes_nothing_in_the_comparison() {
    let mut cluster = replaying().await;
    for _ in 0..200 {
        if cluster.replay("spend").await.phase() == Phase::Hold {
            break;
        }
        cluster.processor.restart().await;
        cluster.processor.step().await;
        cluster.quiet().await;
    }
    let diff = cluster.replay("spend").await.diff.unwrap();
    assert_eq!((diff.same, diff.changed, diff.only_old, diff.only_new), (2, 1, 1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn verbs_that_do_not_fit_the_phase_are_refused_with_it_and_with_what_to_do() {
    let mut cluster = replaying().await;
    let early = cluster.promote("spend", false).await.unwrap_err();
    assert_eq!(early.code(), Code::FailedPrecondition);
    assert!(
        early.message().contains("it is in phase REPLAY; wait for phase HOLD"),
        "{}",
        early.message()
    );
    let undo = cluster.undo("spend").await.unwrap_err();
    assert!(undo.message().contains("replay spend-1 is open"), "{}", undo.message());
    assert_eq!(cluster.promote("nothing", false).await.unwrap_err().code(), Code::NotFound);
    cluster.until("spend-1", Phase::Hold).await;
    cluster.promote("spend", false).await.unwrap();
    cluster.promote("spend", false).await.unwrap();
    let undo = cluster.undo("spend").await.unwrap_err();
    assert!(undo.message().contains("is being promoted"), "{}", undo.message());
    let aborted = cluster.abort("spend").await.unwrap();
    assert_eq!((aborted.phase(), aborted.reason.as_str()), (Phase::Aborted, "not this"));
    assert_eq!(cluster.abort("spend").await.unwrap().phase(), Phase::Aborted);
    let late = cluster.promote("spend", false).await.unwrap_err();
    assert!(late.message().contains("phase ABORTED: not this"), "{}", late.message());
    let state = cluster.coordinator.context.state();
    assert_eq!(state.views()["spend"].epoch.0, 1);
    let listed = cluster
        .replays()
        .list(Request::new(ListReplaysRequest::default()))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(listed.replays.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn thresholds_decide_and_a_pass_promotes_by_itself_if_told_to() {
    for (max, promote, verdict, phase) in [
        (0.25, true, Verdict::Pass, Phase::Retain),
        (0.25, false, Verdict::Pass, Phase::Hold),
        (0.24, true, Verdict::Fail, Phase::Hold),
    ] {
        let mut cluster = Cluster::new().await;
        cluster.apply(&[ORDERS, ALL]).await.unwrap();
        cluster.ingest(&MIXED).await;
        let shares = ReplayOptions {
            promote,
            max_changed: Some(max),
            max_only_old: Some(max),
            max_only_new: Some(0.0),
            ..ReplayOptions::default()
        };
        cluster.apply_with(&[PAID], shares).await.unwrap();
        let replay = cluster.until("spend", phase).await;
        assert_eq!(replay.verdict(), verdict);
        if verdict == Verdict::Fail {
            let refused = cluster.promote("spend", false).await.unwrap_err();
            assert!(refused.message().contains("--accept-failed"), "{}", refused.message());
            cluster.promote("spend", true).await.unwrap();
            cluster.until("spend", Phase::Retain).await;
        }
    }
}

/// A cluster, and a replay of its view `spend` as it is held before a phase.
async fn held(before: HoldBefore, promote: bool) -> (Cluster, Replay) {
    let mut cluster = Cluster::new().await;
    cluster.apply(&[ORDERS, ALL]).await.unwrap();
    cluster.ingest(&MIXED).await;
    let options = ReplayOptions {
        promote,
        max_changed: Some(1.0),
        max_only_old: Some(1.0),
        hold_before: before.into(),
        ..ReplayOptions::default()
    };
    cluster.apply_with(&[PAID], options).await.unwrap();
    let held = cluster.until_it("spend", |replay| replay.held_before() == before).await;
    (cluster, held)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_replay_waits_for_its_resume_also_beneath_another_coordinator() {
    for (before, stands_in) in [
        (HoldBefore::Align, Phase::Replay),
        (HoldBefore::Diff, Phase::Align),
        (HoldBefore::Commit, Phase::Hold),
    ] {
        let (mut cluster, held) = held(before, true).await;
        assert_eq!(
            (held.phase(), held.waiting_for.as_str()),
            (stands_in, "a person: resume or abort")
        );
        // A watch ends there: a person must decide.
        let request = GetReplayRequest { replay: "spend".into() };
        let watch = cluster.replays().watch(Request::new(request)).await.unwrap().into_inner();
        let last = watch.map(Result::unwrap).collect::<Vec<_>>().await.pop().unwrap();
        assert_eq!(last.held_before(), before);
        for _ in 0..10 {
            cluster.processor.step().await;
            cluster.quiet().await;
        }
        cluster.restart().await;
        cluster.quiet().await;
        let still = cluster.replay("spend").await;
        assert_eq!((still.phase(), still.held_before()), (stands_in, before));

        let resumed = cluster.resume("spend", "once").await.unwrap();
        assert_eq!(resumed.held_before(), HoldBefore::Unspecified);
        let records = kinds(&cluster).await.len();
        cluster.resume("spend", "once").await.unwrap();
        cluster.resume("spend", "another request").await.unwrap();
        let again =
            kinds(&cluster).await.into_iter().filter(|kind| kind == "ReplayResumed").count();
        assert_eq!(again, 1, "{before:?}: it is resumed once; there were {records} records");
        cluster.until("spend", Phase::Retain).await;
        assert_eq!(kinds(&cluster).await.iter().filter(|kind| *kind == "ReplayHeld").count(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_promote_by_hand_is_held_before_commit_and_swaps_when_it_is_resumed() {
    let mut cluster = Cluster::new().await;
    cluster.apply(&[ORDERS, ALL]).await.unwrap();
    cluster.ingest(&MIXED).await;
    let hold_before = HoldBefore::Commit.into();
    let options = ReplayOptions { hold_before, ..ReplayOptions::default() };
    cluster.apply_with(&[PAID], options).await.unwrap();
    let early = cluster.resume("spend", "too early").await.unwrap_err();
    assert_eq!(early.code(), Code::FailedPrecondition);
    assert!(early.message().contains("not held yet before COMMIT"), "{}", early.message());
    let waits = cluster.until("spend", Phase::Hold).await;
    assert_eq!(waits.held_before(), HoldBefore::Unspecified, "nobody has promoted it");

    let held = cluster.promote("spend", false).await.unwrap();
    assert_eq!((held.phase(), held.held_before()), (Phase::Hold, HoldBefore::Commit));
    assert_eq!(held.reason, "looks right");
    let again = cluster.promote("spend", false).await.unwrap();
    assert_eq!(again.held_before(), HoldBefore::Commit, "it is asked for once");
    assert_eq!(cluster.coordinator.context.state().views()["spend"].epoch.0, 1);

    let resumed = cluster.resume("spend", "go").await.unwrap();
    assert_eq!((resumed.phase(), resumed.reason.as_str()), (Phase::Commit, "looks right"));
    cluster.until("spend", Phase::Retain).await;
    // An undo and another promote are no business of the hold.
    cluster.undo("spend").await.unwrap();
    cluster.until("spend", Phase::Undone).await;
    cluster.promote("spend", false).await.unwrap();
    cluster.until("spend", Phase::Retain).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_replay_can_be_aborted_and_what_is_not_held_says_so() {
    for before in [HoldBefore::Align, HoldBefore::Diff, HoldBefore::Commit] {
        let (mut cluster, _) = held(before, true).await;
        cluster.abort("spend").await.unwrap();
        let aborted = cluster.until("spend", Phase::Aborted).await;
        assert_eq!(aborted.held_before(), HoldBefore::Unspecified);
        let over = cluster.resume("spend", "after the end").await.unwrap_err();
        assert!(over.message().contains("it is over (phase ABORTED)"), "{}", over.message());
        assert_eq!(cluster.coordinator.context.state().views()["spend"].epoch.0, 1);
    }
    let mut cluster = replaying().await;
    let never = cluster.resume("spend", "never held").await.unwrap_err();
    assert!(never.message().contains("started without --hold-before"), "{}", never.message());
    let unknown = ReplayOptions { hold_before: 99, ..ReplayOptions::default() };
    let refused = cluster.apply_with(&[ALL], unknown).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("choose ALIGN, DIFF or COMMIT"), "{}", refused.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_of_the_same_definition_finds_no_difference_and_passes() {
    let mut cluster = Cluster::new().await;
    cluster.apply(&[ORDERS, ALL]).await.unwrap();
    cluster.ingest(&MIXED).await;
    let start =
        headwater_proto::control::v1::StartRequest { view: "spend".into(), ..Default::default() };
    cluster.replays().start(Request::new(start)).await.unwrap();
    let held = cluster.until("spend", Phase::Hold).await;
    let diff = held.diff.unwrap();
    assert_eq!((held.verdict, diff.same, diff.changed), (Verdict::Pass.into(), 4, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_shard_and_trimmed_input_fail_the_replay_and_nothing_else() {
    let mut cluster = replaying().await;
    let new = cluster.replay("spend").await.new_generation;
    cluster.processor.failing = Some((new.parse().unwrap(), "sum is out of range".into()));
    let failed = cluster.until("spend", Phase::Failed).await;
    assert!(failed.reason.ends_with("sum is out of range"), "{}", failed.reason);

    cluster.apply(&[PAID]).await.unwrap();
    cluster.log.trim(&Name::new("orders").unwrap(), PartitionId(1), Offset(2)).await.unwrap();
    let trimmed = cluster.until("spend-2", Phase::Failed).await;
    assert!(
        trimmed.reason.starts_with("records 0 to 2 of partition 1 of stream orders were trimmed")
    );
    let state = cluster.coordinator.context.state();
    assert_eq!(state.generations().values().filter(|entry| entry.role == Role::Retired).count(), 2);
    assert_eq!(state.views()["spend"].epoch.0, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_serving_generation_that_has_stopped_can_be_replaced_and_can_be_undone() {
    let mut cluster = replaying().await;
    let replay = cluster.replay("spend").await;
    cluster.processor.failing = Some((replay.old_generation.parse().unwrap(), "overflow".into()));
    let held = cluster.until("spend", Phase::Hold).await;
    assert_eq!(held.verdict(), Verdict::Inconclusive);
    let note = held.diff.unwrap().note;
    assert!(note.starts_with("nothing was compared: the serving generation has stopped"), "{note}");
    cluster.promote("spend", false).await.unwrap();
    cluster.until("spend", Phase::Retain).await;

    cluster.processor.failing = Some((replay.new_generation.parse().unwrap(), "overflow".into()));
    cluster.processor.step().await;
    cluster.quiet().await;
    cluster.undo("spend").await.unwrap();
    cluster.until("spend", Phase::Undone).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_checkpoint_fails_the_replay_with_the_reason() {
    let mut cluster = replaying().await;
    loop {
        cluster.processor.step().await;
        let state = cluster.coordinator.context.state();
        if state.replays().values().next().unwrap().fence.is_some() {
            break;
        }
        cluster.quiet().await;
    }
    let old = cluster.replay("spend").await.old_generation.parse().unwrap();
    let lost = headwater_state::layout::checkpoints_dir(cluster.data.path(), old);
    // The live shards have reported the checkpoint, and then it is lost.
    headwater_state::layout::remove(&lost).unwrap();
    std::fs::write(&lost, "not a directory").unwrap();
    let new: headwater_types::GenerationId =
        cluster.replay("spend").await.new_generation.parse().unwrap();
    cluster.processor.step_only(new).await;
    let mut reason = String::new();
    for _ in 0..100 {
        cluster.quiet().await;
        let replay = cluster.replay("spend").await;
        if replay.phase() == Phase::Failed {
            reason = replay.reason;
            break;
        }
    }
    assert!(reason.starts_with("the two generations cannot be compared"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_every_phase_until_a_person_must_decide() {
    let mut cluster = replaying().await;
    let watch = cluster
        .replays()
        .watch(Request::new(GetReplayRequest { replay: "spend".into() }))
        .await
        .unwrap();
    #[allow(clippy::disallowed_methods, reason = "a client of its own")]
    let phases = tokio::spawn(async move {
        let phases = watch.into_inner().map(|replay| replay.unwrap().phase());
        tokio::time::timeout(PATIENCE, phases.collect::<Vec<_>>()).await.unwrap()
    });
    cluster.until("spend", Phase::Hold).await;
    let phases = phases.await.unwrap();
    assert_eq!(phases.first(), Some(&Phase::Replay));
    assert_eq!(phases.last(), Some(&Phase::Hold));
    assert!(phases.is_sorted(), "{phases:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_phase_progress_and_eta() {
    let mut cluster = replaying().await;
    cluster.until("spend", Phase::Hold).await;
    cluster.quiet().await;
    let text = cluster.node.metrics.encode();
    assert!(text.contains(r#"headwater_coordinator_replay_phase{view="spend"} 4"#), "{text}");
    assert!(
        text.contains(r#"headwater_coordinator_replay_progress_ratio{view="spend"} 1.0"#),
        "{text}"
    );
    assert!(
        text.contains(r#"headwater_coordinator_replay_eta_seconds{view="spend"} 0.0"#),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn generations_whose_checkpoints_lie_in_the_store_are_compared_and_nothing_is_left() {
    let elsewhere = tempfile::tempdir().unwrap();
    let url = format!("file://{}/a%20store", elsewhere.path().display());
    let mut cluster = Cluster::with_store(Some(&url)).await;
    cluster.processor = Processor::new(cluster.log.clone(), elsewhere.path().join("processor"));
    cluster.processor.store = Some(headwater_state::Store::open(&url).unwrap());
    cluster.apply(&[ORDERS, ALL]).await.unwrap();
    cluster.ingest(&MIXED).await;
    cluster.processor.step().await;
    cluster.apply(&[PAID]).await.unwrap();
    let left = cluster.data.path().join("diffs").join("test").join("left by a crash");
    std::fs::create_dir_all(&left).unwrap();
    cluster.restart().await;
    for _ in 0..100 {
        if !left.exists() {
            break;
        }
        cluster.quiet().await;
    }
    assert!(!left.exists());
    let held = cluster.until("spend-1", Phase::Hold).await;
    let diff = held.diff.unwrap();
    assert_eq!((diff.same, diff.changed, diff.only_old, diff.only_new), (2, 1, 1, 0));
    let scratch = cluster.data.path().join("diffs").join("test");
    let left = std::fs::read_dir(scratch).map_or(0, Iterator::count);
    assert_eq!(left, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_in_a_store_that_the_coordinator_does_not_know_fails_with_what_to_configure() {
    let elsewhere = tempfile::tempdir().unwrap();
    let url = format!("file://{}/store", elsewhere.path().display());
    let mut cluster = replaying().await;
    cluster.processor.store = Some(headwater_state::Store::open(&url).unwrap());
    let failed = cluster.until("spend-1", Phase::Failed).await;
    assert!(failed.reason.contains("set checkpoints.url"), "{}", failed.reason);
    assert!(failed.reason.contains(&url), "{}", failed.reason);
}

/// The store is away for a while: the comparison waits for it, and then compares.
#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_waits_for_a_store_that_is_away() {
    let elsewhere = tempfile::tempdir().unwrap();
    let url = format!("file://{}/store", elsewhere.path().display());
    let mut cluster = Cluster::with_store(Some(&url)).await;
    cluster.processor.store = Some(headwater_state::Store::open(&url).unwrap());
    cluster.apply(&[ORDERS, ALL]).await.unwrap();
    cluster.ingest(&MIXED).await;
    cluster.processor.step().await;
    cluster.apply(&[PAID]).await.unwrap();
    // Until the last checkpoint is uploaded and not reported yet.
    loop {
        cluster.processor.step().await;
        let state = cluster.coordinator.context.state();
        if state.replays().values().next().unwrap().fence.is_some() {
            break;
        }
        cluster.quiet().await;
    }
    // A file replaces the directory of a manifest: the manifest cannot be read, but is not gone.
    let store = elsewhere.path().join("store");
    let new: headwater_types::GenerationId =
        cluster.replay("spend").await.new_generation.parse().unwrap();
    let old = cluster.replay("spend").await.old_generation;
    let manifests = (0..2).find_map(|partition| {
        let replays = store.join(&old).join(partition.to_string()).join("replays");
        Some(std::fs::read_dir(replays).ok()?.flatten().next()?.path())
    });
    let manifests = manifests.unwrap();
    let aside = elsewhere.path().join("aside");
    std::fs::rename(&manifests, &aside).unwrap();
    std::fs::write(&manifests, "").unwrap();
    cluster.processor.step_only(new).await;
    // The comparison has failed then, and waits for the store.
    cluster.quiet().await;
    let waits = cluster.replay("spend").await;
    assert_eq!(waits.phase(), Phase::Diff, "{waits:?}");
    std::fs::remove_file(&manifests).unwrap();
    std::fs::rename(&aside, &manifests).unwrap();
    let held = cluster.until("spend-1", Phase::Hold).await;
    assert_eq!(held.diff.unwrap().same, 2);
}
