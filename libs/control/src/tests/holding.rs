//! A replay that its operator holds before a phase.

use headwater_proto::{
    control::v1::Phase,
    status::v1::{Checkpoint, ShardStatus},
};

use super::*;
use crate::{Action, Effect, Hold, LogEnds, StatusBoard, decide, replay_status};

fn board(position: u64, checkpoint: Option<&str>) -> StatusBoard {
    let mut board = StatusBoard::default();
    for (generation, partition) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let taken = checkpoint.map(|id| Checkpoint {
            replay_id: id.into(),
            position,
            location: String::new(),
        });
        board.fold(ShardStatus {
            generation: id(generation).to_string(),
            partition,
            position,
            log_end: position,
            checkpoints: taken.into_iter().collect(),
            ..ShardStatus::default()
        });
    }
    board
}

/// A replay that is held before this phase, as far as the coordinator comes by itself, and what the
/// shards say then.
fn held(before: HoldBefore, promote: bool) -> (ControlState, StatusBoard) {
    let mut state = folded([
        stream_declared(),
        view_created(0),
        replay_started_held("v-1", 1, 0, promote, before),
    ]);
    let upto = match before {
        HoldBefore::Unspecified | HoldBefore::Align => 0,
        HoldBefore::Diff => 2,
        HoldBefore::Commit => 3,
    };
    for event in
        [align("v-1"), fence("v-1", [10, 10]), diff("v-1", Verdict::Pass)].iter().take(upto)
    {
        state.fold(state.position(), &record(event.clone())).unwrap();
    }
    let board = board(10, (upto > 0).then_some("v-1-a1"));
    assert_eq!(decided(&state, &board), [kept(before)], "it is held");
    state.fold(state.position(), &record(kept(before))).unwrap();
    (state, board)
}

fn kept(before: HoldBefore) -> Event {
    let reason = match before {
        HoldBefore::Commit => "promoted by itself: the diff passed",
        HoldBefore::Unspecified | HoldBefore::Align | HoldBefore::Diff => "",
    };
    held_for("v-1", before, reason)
}

fn decided(state: &ControlState, board: &StatusBoard) -> Vec<Event> {
    let actions = decide(state, board, &LogEnds::default(), 0).into_iter();
    actions
        .filter_map(|action| match action {
            Action::Append(record) => record.event,
            Action::Diff { .. } => None,
        })
        .collect()
}

const PHASES: [HoldBefore; 3] = [HoldBefore::Align, HoldBefore::Diff, HoldBefore::Commit];

#[test]
fn a_replay_stands_before_the_phase_that_was_named_and_says_what_lets_it_go_on() {
    for before in PHASES {
        let (state, board) = held(before, true);
        assert_eq!(decide(&state, &board, &LogEnds::default(), 0), [], "{before:?}: it stands");
        let replay = &state.replays()["v-1"];
        let said = replay_status(&state, &board, &LogEnds::default(), replay);
        let phase = match before {
            HoldBefore::Unspecified | HoldBefore::Align => Phase::Replay,
            // Both are at the fence, and nothing is compared.
            HoldBefore::Diff => Phase::Align,
            HoldBefore::Commit => Phase::Hold,
        };
        assert_eq!((said.phase(), said.held_before()), (phase, before));
        assert_eq!(said.waiting_for, "a person: resume or abort");
    }
}

#[test]
fn a_resumed_replay_goes_on_and_is_not_held_again() {
    for before in PHASES {
        let (mut state, board) = held(before, true);
        state.fold(state.position(), &record(resumed("v-1"))).unwrap();
        assert_eq!(state.replays()["v-1"].hold, Hold::Resumed);
        let next = decide(&state, &board, &LogEnds::default(), 0);
        match (before, &next[..]) {
            (HoldBefore::Diff, [Action::Diff { .. }]) => {}
            (HoldBefore::Align | HoldBefore::Commit, [Action::Append(record)]) => {
                let event = record.event.as_ref().unwrap();
                assert!(
                    matches!(event, Event::AlignRequested(_) | Event::SwapRequested(_)),
                    "{before:?}: {event:?}"
                );
                state.fold(state.position(), record).unwrap();
            }
            _ => panic!("{before:?}: {next:?}"),
        }
        let said = replay_status(&state, &board, &LogEnds::default(), &state.replays()["v-1"]);
        assert_eq!(said.held_before(), HoldBefore::Unspecified);
    }
}

#[test]
fn a_promote_by_hand_is_held_before_commit_too_and_keeps_its_reason() {
    let mut state = folded([
        stream_declared(),
        view_created(0),
        replay_started_held("v-1", 1, 0, false, HoldBefore::Commit),
        align("v-1"),
        fence("v-1", [10, 10]),
        diff("v-1", Verdict::Inconclusive),
    ]);
    assert_eq!(decided(&state, &board(10, None)), [], "nobody has asked for it yet");
    let refused = state
        .clone()
        .fold(state.position(), &record(swap_requested("v-1", 1, 0, 1, false)))
        .unwrap_err();
    assert!(refused.to_string().contains("is held before COMMIT"), "{refused}");
    let by_hand = held_for("v-1", HoldBefore::Commit, "the numbers are right");
    let request = ControlRecord { request_id: "r1".into(), ..record(by_hand) };
    state.fold(state.position(), &request).unwrap();
    assert_eq!(state.effects("r1").unwrap(), [Effect::ReplayHeld { replay: "v-1".into() }]);
    assert_eq!(state.replays()["v-1"].reason, "the numbers are right");
    assert_eq!(decided(&state, &board(10, None)), [], "it stands");
    for event in [resumed("v-1"), swap_requested("v-1", 1, 0, 1, false)] {
        state.fold(state.position(), &record(event)).unwrap();
    }
    assert_eq!(state.replays()["v-1"].phase, Phase::Commit);

    // A swap that is taken back can be asked for again without being held.
    state.fold(state.position(), &record(cancelled("v-1", 1))).unwrap();
    state.fold(state.position(), &record(swap_requested("v-1", 2, 0, 1, false))).unwrap();
}

#[test]
fn a_held_replay_can_be_aborted_and_fails_for_the_same_reasons_as_any_other() {
    for before in PHASES {
        let (mut state, board) = held(before, true);
        let mut failing = board.clone();
        failing.fold(ShardStatus {
            generation: id(1).to_string(),
            error: "sum is out of range".into(),
            ..ShardStatus::default()
        });
        assert!(
            matches!(&decided(&state, &failing)[..], [Event::ReplayEnded(end)] if end.failed),
            "{before:?}"
        );
        state.fold(state.position(), &record(ended("v-1", false))).unwrap();
        let replay = &state.replays()["v-1"];
        assert_eq!((replay.phase, replay.held_before()), (Phase::Aborted, None));
        assert!(state.fold(state.position(), &record(resumed("v-1"))).is_err());
    }
}

#[test]
fn a_replay_that_is_held_before_diff_keeps_to_a_fence_that_both_sides_can_reach() {
    let (mut state, _) = held(HoldBefore::Diff, true);
    // A shard of the new generation has lost its checkpoint and gone past the fence.
    let past = board(11, None);
    assert_eq!(decided(&state, &past), [align("v-1")]);
    state.fold(state.position(), &record(align("v-1"))).unwrap();
    assert_eq!(decided(&state, &board(12, Some("v-1-a2"))), [fence("v-1", [12, 12])]);
    state.fold(state.position(), &record(fence("v-1", [12, 12]))).unwrap();
    assert_eq!(decide(&state, &board(12, Some("v-1-a2")), &LogEnds::default(), 0), []);
    state.fold(state.position(), &record(resumed("v-1"))).unwrap();
    let next = decide(&state, &board(12, Some("v-1-a2")), &LogEnds::default(), 0);
    assert!(matches!(&next[..], [Action::Diff { .. }]), "{next:?}");
}

#[test]
fn a_replay_that_passes_the_place_of_its_hold_without_a_comparison_is_not_held_any_more() {
    let (mut state, _) = held(HoldBefore::Diff, true);
    let held = |state: &ControlState| state.find_replay("v-1").unwrap().held_before();
    assert_eq!(held(&state), Some(HoldBefore::Diff));
    // Its checkpoints are lost, and then the serving shard stops: nothing can be compared.
    state.fold(state.position(), &record(align("v-1"))).unwrap();
    assert_eq!(held(&state), None, "there is no fence to compare at");
    state.fold(state.position(), &record(diff("v-1", Verdict::Inconclusive))).unwrap();
    assert_eq!(held(&state), None, "a person decides in HOLD");
}

#[test]
fn a_record_that_passes_by_a_hold_is_refused() {
    let start = |hold| {
        folded([stream_declared(), view_created(0), replay_started_held("v-1", 1, 0, true, hold)])
    };
    let refused = |state: &ControlState, event: Event| {
        state.clone().fold(state.position(), &record(event)).unwrap_err().to_string()
    };
    let align_held = start(HoldBefore::Align);
    assert!(refused(&align_held, align("v-1")).contains("is held before ALIGN"));
    assert!(refused(&align_held, resumed("v-1")).contains("is not held"));
    let other = refused(&align_held, held_before("v-1", HoldBefore::Commit));
    assert!(other.contains("is not to be held before HOLD_BEFORE_COMMIT"), "{other}");
    let mut diff_held = start(HoldBefore::Diff);
    let early = refused(&diff_held, held_before("v-1", HoldBefore::Diff));
    assert!(early.contains("after which HOLD_BEFORE_DIFF does not come"), "{early}");
    for event in [align("v-1"), fence("v-1", [10, 10])] {
        diff_held.fold(diff_held.position(), &record(event)).unwrap();
    }
    assert!(refused(&diff_held, diff("v-1", Verdict::Pass)).contains("is held before DIFF"));
    diff_held.fold(diff_held.position(), &record(held_before("v-1", HoldBefore::Diff))).unwrap();
    assert!(refused(&diff_held, held_before("v-1", HoldBefore::Diff)).contains("was held already"));
    let unheld = start(HoldBefore::Unspecified);
    let none = refused(&unheld, held_before("v-1", HoldBefore::Unspecified));
    assert!(none.contains("is not to be held"), "{none}");
}
