use headwater_proto::{
    control::v1::Phase,
    status::v1::{Checkpoint, ShardStatus},
};

use super::*;
use crate::{Action, LogEnds, Reach, StatusBoard, decide, replay_status};

fn status(generation: u64, partition: u32, position: u64) -> ShardStatus {
    ShardStatus {
        generation: id(generation).to_string(),
        partition,
        position,
        log_end: 10_000,
        records_per_second: 100.0,
        ..ShardStatus::default()
    }
}

fn board(statuses: impl IntoIterator<Item = ShardStatus>) -> StatusBoard {
    let mut board = StatusBoard::default();
    statuses.into_iter().for_each(|status| board.fold(status));
    board
}

fn ends(start: u64, end: u64) -> LogEnds {
    let mut ends = LogEnds::default();
    for partition in partitions() {
        ends.set(
            &Name::new("s").unwrap(),
            partition,
            Reach { start: Offset(start), end: Offset(end) },
        );
    }
    ends
}

fn decided(state: &ControlState, board: &StatusBoard, ends: &LogEnds, now_ms: i64) -> Vec<Event> {
    let actions = decide(state, board, ends, now_ms).into_iter();
    actions
        .map(|action| match action {
            Action::Append(record) => record.event.unwrap(),
            Action::Diff { .. } => panic!("nothing can be compared"),
        })
        .collect()
}

fn replaying() -> ControlState {
    folded([stream_declared(), view_created(0), replay_started("v-1", 1, 0, true)])
}

#[test]
fn a_replay_fails_with_the_reason_of_its_shard_and_its_generation_goes() {
    let mut state = replaying();
    let failing = ShardStatus { error: "sum is out of range".into(), ..status(1, 1, 5) };
    let board = board([status(1, 0, 5), failing]);
    let [Event::ReplayEnded(end)] = &decided(&state, &board, &ends(0, 10_000), 0)[..] else {
        panic!()
    };
    assert!(end.failed);
    assert_eq!(
        end.reason,
        "a shard of the new generation stopped: partition 1: sum is out of range"
    );
    state.fold(state.position(), &record(Event::ReplayEnded(end.clone()))).unwrap();
    let next = decided(&state, &board, &ends(0, 10_000), 0);
    assert!(
        matches!(&next[..], [Event::GenerationRetired(gone)] if gone.generation == id(1).to_string())
    );
    state.fold(state.position(), &record(next[0].clone())).unwrap();
    assert_eq!(decided(&state, &board, &ends(0, 10_000), 0), []);
    assert_eq!(state.views()[&view()].serving, id(0), "live goes on");
}

#[test]
fn a_live_shard_that_has_stopped_keeps_no_replay_from_a_persons_decision() {
    let mut state = folded([
        stream_declared(),
        view_created(0),
        replay_started("v-1", 1, 0, true),
        align("v-1"),
    ]);
    let failing = ShardStatus { error: "disk".into(), ..status(0, 1, 5) };
    let board = board([status(0, 0, 5), failing, status(1, 0, 9), status(1, 1, 9)]);
    let decision = decided(&state, &board, &ends(0, 10), 0);
    let [Event::DiffRecorded(diff)] = &decision[..] else { panic!("{decision:?}") };
    assert_eq!(diff.verdict(), Verdict::Inconclusive, "it never promotes by itself");
    assert_eq!(
        diff.report.as_ref().unwrap().note,
        "nothing was compared: the serving generation has stopped in partition 1: disk"
    );
    state.fold(state.position(), &record(decision[0].clone())).unwrap();
    assert_eq!(decided(&state, &board, &ends(0, 10), 0), []);

    // The stopped shard cannot report that it is muted, and need not.
    state.fold(state.position(), &record(swap_requested("v-1", 1, 0, 1, false))).unwrap();
    assert_eq!(decided(&state, &board, &ends(0, 10), 0), [], "the other one has to");
    let mut muted = board.clone();
    muted.fold(ShardStatus { muted_for: "v-1-s1".into(), muted_at: 6, ..status(0, 0, 8) });
    let [Event::Swapped(swap)] = &decided(&state, &muted, &ends(0, 10), 0)[..] else { panic!() };
    assert_eq!(swap.fence, super::at([6, 5]));
    muted.fold(status(1, 1, 4));
    assert_eq!(decided(&state, &muted, &ends(0, 10), 0), [], "the new one is not there yet");
}

#[test]
fn input_that_was_trimmed_before_it_was_read_fails_the_replay_and_names_the_records() {
    let state = replaying();
    let read = board([status(1, 0, 70), status(1, 1, 70)]);
    assert_eq!(decided(&state, &read, &ends(70, 10_000), 0), []);
    let [Event::ReplayEnded(end)] = &decided(&state, &read, &ends(71, 10_000), 0)[..] else {
        panic!()
    };
    assert!(
        end.failed
            && end.reason.starts_with("records 70 to 71 of partition 0 of stream s were trimmed")
    );
    let [Event::ReplayEnded(end)] = &decided(&state, &board([]), &ends(1, 10_000), 0)[..] else {
        panic!()
    };
    assert!(end.reason.starts_with("records 0 to 1 of partition 0"), "{}", end.reason);
}

#[test]
fn a_shard_that_stops_at_trimmed_input_fails_the_replay_with_the_records_and_live_goes_on() {
    let mut state = replaying();
    // The shard learns of the trim before the coordinator asks the log, and stops.
    let overtaken =
        ShardStatus { log_start: 90, error: "offset 70 is trimmed".into(), ..status(1, 1, 70) };
    let board = board([status(0, 0, 95), status(0, 1, 95), status(1, 0, 95), overtaken]);
    let [Event::ReplayEnded(end)] = &decided(&state, &board, &ends(0, 10_000), 0)[..] else {
        panic!()
    };
    assert!(end.failed);
    assert_eq!(
        end.reason,
        "records 70 to 90 of partition 1 of stream s were trimmed before the replay had read them: keep them \
         longer, or start the replay again from what is left"
    );
    state.fold(state.position(), &record(Event::ReplayEnded(end.clone()))).unwrap();
    assert_eq!(
        (state.views()[&view()].serving, state.generations()[&id(0)].role),
        (id(0), Role::Serving)
    );
    assert_eq!(state.views()[&view()].open_replay, None);
}

#[test]
fn a_swap_to_a_generation_whose_input_was_trimmed_is_cancelled_with_the_records() {
    let mut state = folded([
        stream_declared(),
        view_created(0),
        replay_started("v-1", 1, 0, true),
        align("v-1"),
        fence("v-1", [10, 10]),
        diff("v-1", Verdict::Pass),
        swap_requested("v-1", 1, 0, 1, false),
    ]);
    let serving = |p| ShardStatus { muted_for: "v-1-s1".into(), muted_at: 60, ..status(0, p, 60) };
    let board = board([serving(0), serving(1), status(1, 0, 60), status(1, 1, 20)]);
    assert_eq!(decided(&state, &board, &ends(20, 60), 0), [], "it may still come");
    let [Event::SwapCancelled(cancel)] = &decided(&state, &board, &ends(21, 60), 0)[..] else {
        panic!()
    };
    assert!(
        cancel.reason.contains("cannot reach the fence: records 20 to 21"),
        "{}",
        cancel.reason
    );
    state.fold(state.position(), &record(Event::SwapCancelled(cancel.clone()))).unwrap();
    let ended = decided(&state, &board, &ends(21, 60), 0);
    assert!(matches!(&ended[..], [Event::ReplayEnded(end)] if end.failed), "{ended:?}");
}

#[test]
fn align_begins_only_when_every_new_shard_is_close_and_has_said_so() {
    let state = replaying();
    let cases = [
        (vec![status(1, 0, 9_900)], false),
        (vec![status(1, 0, 9_900), status(1, 1, 9_000)], false),
        (vec![status(1, 0, 9_900), status(1, 1, 9_500)], true),
        (
            vec![
                status(1, 0, 9_900),
                ShardStatus { records_per_second: 10_000.0, ..status(1, 1, 8_000) },
            ],
            true,
        ),
    ];
    for (statuses, close) in cases {
        let actions = decided(&state, &board(statuses.clone()), &ends(0, 10_000), 0);
        assert_eq!(matches!(&actions[..], [Event::AlignRequested(_)]), close, "{statuses:?}");
    }
}

fn with_checkpoint(status: ShardStatus, checkpoint: &str, position: u64) -> ShardStatus {
    let checkpoint = Checkpoint { replay_id: checkpoint.into(), position, location: String::new() };
    ShardStatus { checkpoints: vec![checkpoint], ..status }
}

#[test]
fn markers_of_another_attempt_are_ignored() {
    let align_twice = [
        stream_declared(),
        view_created(0),
        replay_started("v-1", 1, 0, true),
        align("v-1"),
        align("v-1"),
    ];
    let state = folded(align_twice);
    let at = |id: &str, position| {
        board(
            [0, 1]
                .map(|p| with_checkpoint(status(0, p, 50), id, position))
                .into_iter()
                .chain([0, 1].map(|p| status(1, p, 40))),
        )
    };
    assert_eq!(decided(&state, &at("v-1-a1", 45), &ends(0, 50), 0), []);
    let named = decided(&state, &at("v-1-a2", 45), &ends(0, 50), 0);
    assert_eq!(named, [fence("v-1", [45, 45])]);

    let mut events =
        vec![stream_declared(), view_created(0), replay_started("v-1", 1, 0, false), align("v-1")];
    events.extend([
        fence("v-1", [10, 10]),
        diff("v-1", Verdict::Pass),
        swap_requested("v-1", 1, 0, 1, false),
    ]);
    events.extend([cancelled("v-1", 1), swap_requested("v-1", 2, 0, 1, false)]);
    let state = folded(events);
    let muted = |swap: &str| {
        let serving = [0, 1].map(|p| ShardStatus {
            muted_for: swap.into(),
            muted_at: 60,
            ..status(0, p, 60)
        });
        board(serving.into_iter().chain([0, 1].map(|p| status(1, p, 70))))
    };
    assert_eq!(decided(&state, &muted("v-1-s1"), &ends(0, 70), 0), []);
    let [Event::Swapped(swap)] = &decided(&state, &muted("v-1-s2"), &ends(0, 70), 500)[..] else {
        panic!()
    };
    assert_eq!(
        (swap.fence.clone(), swap.epoch, swap.retain_until_ms),
        (at_all(60), 2, 500 + RETAIN_MS as i64)
    );
}

fn at_all(offset: u64) -> Vec<PartitionOffset> {
    super::at([offset, offset])
}

#[test]
fn a_new_shard_that_went_past_the_fence_makes_for_another_attempt() {
    let state = folded([
        stream_declared(),
        view_created(0),
        replay_started("v-1", 1, 0, true),
        align("v-1"),
        fence("v-1", [10, 10]),
    ]);
    let live = [0, 1].map(|p| with_checkpoint(status(0, p, 50), "v-1-a1", 10));
    let before = board(live.clone().into_iter().chain([status(1, 0, 10), status(1, 1, 4)]));
    assert_eq!(decided(&state, &before, &ends(0, 50), 0), []);
    let past = board(live.into_iter().chain([status(1, 0, 11), status(1, 1, 4)]));
    assert_eq!(decided(&state, &past, &ends(0, 50), 0), [align("v-1")]);
    let lost = [0, 1].map(|p| with_checkpoint(status(0, p, 50), "v-1-a1", 50));
    let lost = board(lost.into_iter().chain([status(1, 0, 10), status(1, 1, 4)]));
    assert_eq!(decided(&state, &lost, &ends(0, 50), 0), [align("v-1")]);
}

#[test]
fn a_swap_to_a_failing_generation_is_cancelled_and_promotes_itself_no_second_time() {
    let mut state = folded([
        stream_declared(),
        view_created(0),
        replay_started("v-1", 1, 0, true),
        align("v-1"),
        fence("v-1", [10, 10]),
        diff("v-1", Verdict::Pass),
    ]);
    let quiet = board([]);
    let [Event::SwapRequested(swap)] = &decided(&state, &quiet, &ends(0, 50), 0)[..] else {
        panic!()
    };
    state.fold(state.position(), &record(Event::SwapRequested(swap.clone()))).unwrap();
    let failing = board([ShardStatus { error: "boom".into(), ..status(1, 0, 5) }]);
    let [Event::SwapCancelled(cancel)] = &decided(&state, &failing, &ends(0, 50), 0)[..] else {
        panic!()
    };
    state.fold(state.position(), &record(Event::SwapCancelled(cancel.clone()))).unwrap();
    assert_eq!(decided(&state, &quiet, &ends(0, 50), 0), [], "a person decided, or an error did");
    assert!(
        matches!(&decided(&state, &failing, &ends(0, 50), 0)[..], [Event::ReplayEnded(end)] if end.failed)
    );
}

#[test]
fn only_a_pass_promotes_by_itself() {
    for (verdict, promotes) in
        [(Verdict::Pass, true), (Verdict::Fail, false), (Verdict::Inconclusive, false)]
    {
        let state = folded([
            stream_declared(),
            view_created(0),
            replay_started("v-1", 1, 0, true),
            align("v-1"),
            fence("v-1", [10, 10]),
            diff("v-1", verdict),
        ]);
        assert_eq!(
            decided(&state, &board([]), &ends(0, 50), 0).len(),
            usize::from(promotes),
            "{verdict:?}"
        );
    }
}

#[test]
fn a_retained_generation_goes_when_its_time_is_over_and_not_before() {
    let state = folded([
        stream_declared(),
        view_created(0),
        replay_started("v-1", 1, 0, false),
        align("v-1"),
        fence("v-1", [10, 10]),
        diff("v-1", Verdict::Pass),
        swap_requested("v-1", 1, 0, 1, false),
        swapped("v-1", 1, 0, 1, false, 2, [30, 30]),
    ]);
    let until = RETAIN_MS as i64;
    assert_eq!(decided(&state, &board([]), &ends(0, 50), until - 1), []);
    let gone = decided(&state, &board([]), &ends(0, 50), until);
    assert!(
        matches!(&gone[..], [Event::GenerationRetired(gone)] if gone.generation == id(0).to_string())
    );
    let mut undoing = state.clone();
    undoing.fold(undoing.position(), &record(swap_requested("v-1", 2, 1, 0, true))).unwrap();
    assert_eq!(
        decided(&undoing, &board([]), &ends(0, 50), until),
        [],
        "it is about to serve again"
    );
}

#[test]
fn progress_counts_from_the_floor_and_the_eta_allows_for_what_still_comes_in() {
    let state = replaying();
    let live = [status(0, 0, 9_999), status(0, 1, 9_999)];
    let fast = [0, 1].map(|p| ShardStatus { records_per_second: 1_100.0, ..status(1, p, 5_000) });
    let report = |new: [ShardStatus; 2]| {
        replay_status(
            &state,
            &board(live.clone().into_iter().chain(new)),
            &ends(0, 10_000),
            &state.replays()["v-1"],
        )
    };
    let replay = report(fast);
    assert_eq!((replay.records_done, replay.records_total), (10_000, 20_000));
    assert_eq!(replay.eta_seconds, Some(10_000.0 / 2_000.0));
    assert_eq!(replay.phase(), Phase::Replay);
    assert_eq!(replay.waiting_for, "the new generation to come close to the end of partition 1");
    let slow = [0, 1].map(|p| ShardStatus { records_per_second: 99.0, ..status(1, p, 5_000) });
    assert_eq!(report(slow).eta_seconds, None, "it never will at this rate");
    let done = [status(1, 0, 10_000), status(1, 1, 10_000)];
    assert_eq!(report(done).eta_seconds, Some(0.0));
}
