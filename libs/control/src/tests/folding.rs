use headwater_proto::control::v1::Phase;
use proptest::prelude::*;

use super::*;
use crate::{CheckpointAt, CheckpointDuty, Effect, FoldError, ShardDuty};

/// The records up to HOLD of the first replay, from generation 0 to generation 1.
pub(super) fn held() -> Vec<Event> {
    vec![
        stream_declared(),
        view_created(0),
        replay_started("v-1", 1, 0, false),
        align("v-1"),
        fence("v-1", [10, 20]),
        diff("v-1", Verdict::Inconclusive),
    ]
}

pub(super) fn promoted() -> Vec<Event> {
    let mut events = held();
    events.extend([
        swap_requested("v-1", 1, 0, 1, false),
        swapped("v-1", 1, 0, 1, false, 2, [30, 40]),
    ]);
    events
}

pub(super) fn phase(state: &ControlState, replay: &str) -> Phase {
    state.replays()[replay].phase
}

pub(super) fn refusal(state: &ControlState, event: Event) -> String {
    let mut copy = state.clone();
    let error = copy.fold(state.position(), &record(event)).unwrap_err();
    assert_eq!(copy, *state, "a refused record leaves the state as it was");
    error.to_string()
}

#[test]
fn outputs_change_hands_at_every_swap_with_no_gap_and_no_overlap() {
    let mut state = folded(promoted());
    check_laws(&state);
    assert_eq!(phase(&state, "v-1"), Phase::Retain);
    assert_eq!(window_pairs(&state, 0, 0), [(0, Some(30))]);
    assert_eq!(window_pairs(&state, 1, 1), [(40, None)]);

    let more = [
        swap_requested("v-1", 2, 1, 0, true),
        swapped("v-1", 2, 1, 0, true, 3, [30, 55]),
        swap_requested("v-1", 3, 0, 1, false),
        swapped("v-1", 3, 0, 1, false, 4, [60, 61]),
    ];
    for event in more {
        state.fold(state.position(), &record(event)).unwrap();
        check_laws(&state);
    }
    assert_eq!(window_pairs(&state, 0, 0), [(0, Some(30)), (30, Some(60))]);
    assert_eq!(window_pairs(&state, 0, 1), [(0, Some(40)), (55, Some(61))]);
    assert_eq!(window_pairs(&state, 1, 0), [(60, None)]);
    assert_eq!(window_pairs(&state, 1, 1), [(40, Some(55)), (61, None)]);
    assert_eq!(state.views()[&view()].epoch.0, 4);
}

#[test]
fn a_shard_is_told_what_the_phase_asks_of_it_and_only_that() {
    let run =
        |hold_at, checkpoints: &[(&str, CheckpointAt)], muted_for: Option<&str>| ShardDuty::Run {
            hold_at,
            checkpoints: checkpoints
                .iter()
                .map(|&(id, at)| CheckpointDuty { id: id.into(), at })
                .collect(),
            muted_for: muted_for.map(Into::into),
        };
    let plain = || run(None, &[], None);
    let duty = |state: &ControlState, generation| state.shard_duty(id(generation), PartitionId(1));
    let events = promoted();
    let state = |upto: usize| folded(events[..upto].iter().cloned());

    assert_eq!(duty(&state(2), 0), plain());
    assert_eq!(duty(&state(2), 1), ShardDuty::Stop, "nobody knows it");
    assert_eq!(duty(&state(3), 1), plain());
    assert_eq!(duty(&state(4), 0), run(None, &[("v-1-a1", CheckpointAt::Now)], None));
    assert_eq!(duty(&state(4), 1), run(Some(Offset::ZERO), &[], None));
    assert_eq!(duty(&state(5), 0), run(None, &[("v-1-a1", CheckpointAt::Now)], None), "it is kept");
    assert_eq!(
        duty(&state(5), 1),
        run(None, &[("v-1-a1", CheckpointAt::Exactly(Offset(20)))], None)
    );
    assert_eq!((duty(&state(6), 0), duty(&state(6), 1)), (plain(), plain()));
    assert_eq!((duty(&state(7), 0), duty(&state(7), 1)), (run(None, &[], Some("v-1-s1")), plain()));
    assert_eq!((duty(&state(8), 0), duty(&state(8), 1)), (plain(), plain()));

    let mut again = state(5);
    again.fold(again.position(), &record(align("v-1"))).unwrap();
    assert_eq!(duty(&again, 0), run(None, &[("v-1-a2", CheckpointAt::Now)], None));
    assert_eq!(duty(&again, 1), run(Some(Offset::ZERO), &[], None));

    let mut over = state(5);
    over.fold(over.position(), &record(ended("v-1", false))).unwrap();
    assert_eq!((duty(&over, 0), duty(&over, 1)), (plain(), ShardDuty::Stop));
    over.fold(over.position(), &record(retired(1))).unwrap();
    assert_eq!(duty(&over, 1), ShardDuty::Delete);
}

#[test]
fn what_cannot_follow_is_refused_with_a_reason() {
    let held = folded(held());
    let promoted = folded(promoted());
    let cases = [
        (&held, stream_declared(), "stream s is declared like this already"),
        (&held, view_created(7), "view v exists"),
        (&held, replay_started("v-2", 2, 0, false), "replay v-1 of view v is open"),
        (&held, align("v-1"), "replay v-1 is in phase PHASE_HOLD"),
        (&held, align("v-9"), "replay \"v-9\" is unknown"),
        (&held, diff("v-1", Verdict::Pass), "has nothing to compare"),
        (&held, swap_requested("v-1", 1, 1, 0, true), "replay v-1 is in phase PHASE_HOLD"),
        (
            &held,
            swap_requested("v-1", 2, 0, 1, false),
            "swap v-1-s2 is not the replay's next, v-1-s1",
        ),
        (&held, swapped("v-1", 1, 0, 1, false, 2, [30, 40]), "is not under way"),
        (&held, cancelled("v-1", 1), "is not under way"),
        (&held, retired(0), "is serving"),
        (&held, retired(1), "is replaying"),
        (&promoted, ended("v-1", false), "replay v-1 is in phase PHASE_RETAIN"),
        (&promoted, replay_started("v-2", 1, 1, false), "was named before"),
        (&promoted, replay_started("v-2", 2, 0, false), "is served by 0000000000000001"),
        (&promoted, replay_started("v-3", 2, 1, false), "replay v-3 is not the view's next, v-2"),
        (&promoted, retired(0), "is retained for undo until later"),
        (&promoted, swap_requested("v-1", 2, 0, 1, true), "replay v-1 swaps"),
    ];
    for (state, event, reason) in cases {
        let refused = refusal(state, event);
        assert!(refused.contains(reason), "{refused:?} should say {reason:?}");
    }
    let mut undoing = promoted.clone();
    undoing.fold(undoing.position(), &record(swap_requested("v-1", 2, 1, 0, true))).unwrap();
    let early = refusal(&undoing, swapped("v-1", 2, 1, 0, true, 3, [29, 40]));
    assert!(early.contains("lies before the last swap's"), "{early}");
    let epoch = refusal(&undoing, swapped("v-1", 2, 1, 0, true, 4, [30, 40]));
    assert!(epoch.contains("epoch 4 does not follow 2"), "{epoch}");
    let retired_early = refusal(&undoing, retired(0));
    assert!(retired_early.contains("retained"), "{retired_early}");
}

#[test]
fn a_record_of_a_newer_kind_is_not_taken_for_damage() {
    let mut state = folded(held());
    let error = state.fold(state.position(), &ControlRecord::default()).unwrap_err();
    assert!(matches!(error, FoldError::Unknown { .. }));
    assert!(error.to_string().contains("run the newer Headwater"));
    let again = ControlState::default();
    let mut ahead = again.clone();
    ahead.fold(Offset(7), &record(stream_declared())).unwrap();
    assert!(ahead.fold(Offset(7), &record(view_created(0))).is_err(), "an offset is folded once");
    assert!(ahead.fold(Offset(9), &record(view_created(0))).is_ok(), "gaps are the log's business");
}

#[test]
fn a_request_is_remembered_with_what_it_did() {
    let mut state = ControlState::default();
    for event in [stream_declared(), view_created(0)] {
        let record = ControlRecord { request_id: "r1".into(), ..record(event) };
        state.fold(state.position(), &record).unwrap();
    }
    let stream = Name::new("s").unwrap();
    assert_eq!(
        state.effects("r1"),
        Some(
            &[
                Effect::StreamDeclared { stream, extended: false },
                Effect::ViewCreated { view: view(), generation: id(0) }
            ][..]
        )
    );
    assert_eq!(state.effects("r2"), None);
    assert_eq!(state.effects(""), None);
}

#[test]
fn an_undone_replay_can_be_promoted_again_until_its_generation_is_retired() {
    let mut state = folded(promoted());
    let undone = [swap_requested("v-1", 2, 1, 0, true), swapped("v-1", 2, 1, 0, true, 3, [50, 50])];
    for event in undone {
        state.fold(state.position(), &record(event)).unwrap();
    }
    assert_eq!(phase(&state, "v-1"), Phase::Undone);
    assert_eq!(state.views()[&view()].open_replay, None);
    let mut again = state.clone();
    again.fold(again.position(), &record(swap_requested("v-1", 3, 0, 1, false))).unwrap();
    assert_eq!(phase(&again, "v-1"), Phase::Commit);
    let late = ControlRecord { at_ms: RETAIN_MS as i64, ..record(retired(1)) };
    assert!(again.clone().fold(again.position(), &late).is_err(), "it is about to serve");
    again.fold(again.position(), &record(cancelled("v-1", 3))).unwrap();
    assert_eq!(phase(&again, "v-1"), Phase::Undone);

    state.fold(state.position(), &late).unwrap();
    assert_eq!(phase(&state, "v-1"), Phase::Retired);
    assert!(refusal(&state, swap_requested("v-1", 3, 0, 1, false)).contains("PHASE_RETIRED"));
    check_laws(&state);
}

#[test]
fn a_newer_replay_keeps_what_an_older_one_retains() {
    let mut state = folded(promoted());
    let second = [
        replay_started("v-2", 2, 1, false),
        align("v-2"),
        fence("v-2", [50, 50]),
        diff("v-2", Verdict::Pass),
    ];
    for event in second {
        state.fold(state.position(), &record(event)).unwrap();
    }
    let undo = refusal(&state, swap_requested("v-1", 2, 1, 0, true));
    assert!(undo.contains("another replay of view v is open"), "{undo}");
    for event in
        [swap_requested("v-2", 1, 1, 2, false), swapped("v-2", 1, 1, 2, false, 3, [60, 60])]
    {
        state.fold(state.position(), &record(event)).unwrap();
        check_laws(&state);
    }
    assert_eq!(state.generations()[&id(0)].role, Role::Retained);
    assert_eq!(state.views()[&view()].previous, Some(id(1)));
    let late = ControlRecord { at_ms: RETAIN_MS as i64, ..record(retired(0)) };
    state.fold(state.position(), &late).unwrap();
    assert_eq!((phase(&state, "v-1"), phase(&state, "v-2")), (Phase::Retired, Phase::Retain));
    assert_eq!(state.find_replay("v").unwrap().id.as_str(), "v-2");
    assert_eq!(state.find_replay("v-1").unwrap().id.as_str(), "v-1");
}

fn hold(number: u32) -> HoldBefore {
    HoldBefore::try_from(number.cast_signed()).unwrap()
}

/// Any event over few names, so that many are nearly valid.
fn any_event() -> impl Strategy<Value = Event> {
    let replay = prop::sample::select(vec!["v-1", "v-2", "v-3"]);
    let offsets = [0_u64..40, 0_u64..40];
    (0..17_u8, replay, 0..4_u64, 0..4_u64, 1..4_u32, any::<bool>(), 1..6_u64, offsets).prop_map(
        |(kind, replay, a, b, swap, flag, epoch, offsets)| match kind {
            0 => stream_declared(),
            1 => view_created(a),
            2 => replay_started_held(replay, a, b, flag, hold(swap * u32::from(flag))),
            3 => align(replay),
            4 => fence(replay, offsets),
            5 => diff(replay, if flag { Verdict::Pass } else { Verdict::Unspecified }),
            6 | 7 => swap_requested(replay, swap, a, b, flag),
            8 | 9 => swapped(replay, swap, a, b, flag, epoch, offsets),
            10 => cancelled(replay, swap),
            11 => ended(replay, flag),
            12 => view_deleted(),
            13 => stream_deleted(),
            14 => held_before(replay, hold(swap)),
            15 => resumed(replay),
            _ => retired(a),
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Law 1: the fold is total and deterministic, and takes a record whole or not at all. Law 2
    /// holds after every record that is taken.
    #[test]
    fn no_sequence_of_records_breaks_the_fold(
        start in 0..9_usize,
        events in prop::collection::vec((any_event(), 0..3_000_i64), 1..200),
    ) {
        let mut state = folded(promoted().into_iter().take(start));
        let mut taken = Vec::new();
        for (event, at_ms) in events {
            let record = ControlRecord { at_ms, ..record(event) };
            let before = state.clone();
            match state.fold(before.position(), &record) {
                Ok(()) => taken.push(record),
                Err(_) => prop_assert_eq!(&state, &before),
            }
            check_laws(&state);
        }
        let mut again = folded(promoted().into_iter().take(start));
        for record in &taken {
            again.fold(again.position(), record).unwrap();
        }
        prop_assert_eq!(again, state);
    }
}
