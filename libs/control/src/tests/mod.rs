//! Tests of the fold, the decisions, and the whole protocol in simulation.

mod decisions;
mod deleting;
mod folding;
mod holding;
mod protocol;
mod world;

use headwater_proto::{
    common::v1::PartitionOffset,
    control::v1::{
        AlignRequested, ControlRecord, DiffRecorded, DiffReport, FenceNamed, Generation,
        GenerationRetired, HoldBefore, ReplayEnded, ReplayHeld, ReplayOptions, ReplayResumed,
        ReplayStarted, StreamDeclared, StreamDeleted, SwapCancelled, SwapRequested, Swapped,
        Verdict, ViewCreated, ViewDeleted, control_record::Event,
    },
};
use headwater_types::{GenerationId, Name, Offset, PartitionId};

use crate::{ControlState, Role};

pub(crate) const PARTITIONS: u32 = 2;
pub(crate) const RETAIN_MS: u64 = 1_000;

pub(crate) fn record(event: Event) -> ControlRecord {
    ControlRecord { event: Some(event), ..ControlRecord::default() }
}

pub(crate) fn id(number: u64) -> GenerationId {
    format!("{number:016x}").parse().unwrap()
}

pub(crate) fn view() -> Name {
    Name::new("v").unwrap()
}

pub(crate) fn partitions() -> impl Iterator<Item = PartitionId> {
    (0..PARTITIONS).map(PartitionId)
}

pub(crate) fn at(offsets: [u64; PARTITIONS as usize]) -> Vec<PartitionOffset> {
    (0..).zip(offsets).map(|(partition, offset)| PartitionOffset { partition, offset }).collect()
}

pub(crate) fn generation(number: u64) -> Generation {
    Generation {
        id: id(number).to_string(),
        view: "v".into(),
        stream: "s".into(),
        view_sql: format!("view {number}"),
        stream_sql: "stream".into(),
        floor: at([0, 0]),
        engine_version: 1,
    }
}

pub(crate) fn stream_declared() -> Event {
    Event::StreamDeclared(StreamDeclared { name: "s".into(), sql: "stream".into() })
}

pub(crate) fn view_created(number: u64) -> Event {
    Event::ViewCreated(ViewCreated { generation: Some(generation(number)) })
}

pub(crate) fn replay_started(replay: &str, number: u64, replaces: u64, promote: bool) -> Event {
    replay_started_held(replay, number, replaces, promote, HoldBefore::Unspecified)
}

pub(crate) fn replay_started_held(
    replay: &str,
    number: u64,
    replaces: u64,
    promote: bool,
    hold_before: HoldBefore,
) -> Event {
    Event::ReplayStarted(ReplayStarted {
        replay_id: replay.into(),
        generation: Some(generation(number)),
        replaces: id(replaces).to_string(),
        options: Some(ReplayOptions {
            promote,
            retain_ms: RETAIN_MS,
            hold_before: hold_before.into(),
            ..ReplayOptions::default()
        }),
    })
}

pub(crate) fn held_before(replay: &str, before: HoldBefore) -> Event {
    held_for(replay, before, "")
}

pub(crate) fn held_for(replay: &str, before: HoldBefore, reason: &str) -> Event {
    let (replay_id, before, reason) = (replay.into(), before.into(), reason.into());
    Event::ReplayHeld(ReplayHeld { replay_id, before, reason })
}

pub(crate) fn resumed(replay: &str) -> Event {
    Event::ReplayResumed(ReplayResumed { replay_id: replay.into(), reason: String::new() })
}

pub(crate) fn align(replay: &str) -> Event {
    Event::AlignRequested(AlignRequested { replay_id: replay.into() })
}

pub(crate) fn fence(replay: &str, offsets: [u64; 2]) -> Event {
    Event::FenceNamed(FenceNamed { replay_id: replay.into(), fence: at(offsets) })
}

pub(crate) fn diff(replay: &str, verdict: Verdict) -> Event {
    let report = Some(DiffReport::default());
    Event::DiffRecorded(DiffRecorded { replay_id: replay.into(), report, verdict: verdict.into() })
}

pub(crate) fn swap_requested(replay: &str, swap: u32, from: u64, to: u64, undo: bool) -> Event {
    Event::SwapRequested(SwapRequested {
        swap_id: format!("{replay}-s{swap}"),
        view: "v".into(),
        from: id(from).to_string(),
        to: id(to).to_string(),
        replay_id: replay.into(),
        undo,
        reason: String::new(),
    })
}

pub(crate) fn swapped(
    replay: &str,
    swap: u32,
    from: u64,
    to: u64,
    undo: bool,
    epoch: u64,
    offsets: [u64; 2],
) -> Event {
    Event::Swapped(Swapped {
        swap_id: format!("{replay}-s{swap}"),
        view: "v".into(),
        from: id(from).to_string(),
        to: id(to).to_string(),
        epoch,
        fence: at(offsets),
        replay_id: replay.into(),
        undo,
        retain_until_ms: RETAIN_MS as i64,
    })
}

pub(crate) fn cancelled(replay: &str, swap: u32) -> Event {
    Event::SwapCancelled(SwapCancelled {
        swap_id: format!("{replay}-s{swap}"),
        view: "v".into(),
        reason: "changed our mind".into(),
    })
}

pub(crate) fn ended(replay: &str, failed: bool) -> Event {
    Event::ReplayEnded(ReplayEnded { replay_id: replay.into(), failed, reason: "because".into() })
}

pub(crate) fn retired(number: u64) -> Event {
    Event::GenerationRetired(GenerationRetired {
        generation: id(number).to_string(),
        reason: "over".into(),
    })
}

pub(crate) fn view_deleted() -> Event {
    Event::ViewDeleted(ViewDeleted { view: "v".into(), reason: "unused".into() })
}

pub(crate) fn stream_deleted() -> Event {
    Event::StreamDeleted(StreamDeleted { stream: "s".into(), reason: String::new() })
}

pub(crate) fn folded(events: impl IntoIterator<Item = Event>) -> ControlState {
    let mut state = ControlState::default();
    for event in events {
        state.fold(state.position(), &record(event)).unwrap();
    }
    state
}

/// Law 2: one generation of a view serves, and the windows of all generations tile every partition.
pub(crate) fn check_laws(state: &ControlState) {
    for (name, entry) in state.views() {
        let of_view: Vec<_> = state
            .generations()
            .values()
            .filter(|generation| generation.view == *name && state.view_of(generation.id).is_some())
            .collect();
        let serving: Vec<_> =
            of_view.iter().filter(|g| g.role == Role::Serving).map(|g| g.id).collect();
        assert_eq!(serving, [entry.serving], "exactly one generation of {name} serves");
        let first = of_view.iter().min_by_key(|generation| generation.ordinal).unwrap();
        for (&partition, &floor) in &first.floor {
            let mut windows: Vec<_> =
                of_view.iter().flat_map(|g| state.output_windows(g.id, partition)).collect();
            windows.sort_by_key(|window| window.from);
            let mut next = Some(floor);
            for window in &windows {
                assert_eq!(Some(window.from), next, "partition {partition}: {windows:?}");
                next = window.until;
            }
            assert_eq!(
                next, None,
                "partition {partition}: nobody owns what comes next: {windows:?}"
            );
            let open = state.output_windows(entry.serving, partition).last().copied();
            assert!(
                open.is_some_and(|window| window.until.is_none()),
                "the serving one owns what comes next"
            );
        }
        assert_eq!(
            entry.open_replay.is_some(),
            state
                .replays()
                .values()
                .any(|replay| replay.view == *name && crate::is_open(replay.phase)),
        );
        assert!(state.streams().contains_key(&entry.stream), "{name} reads what is not there");
        assert!(!state.deleted_views().contains_key(name), "{name} exists");
    }
    for entry in state.generations().values() {
        let over = matches!(entry.role, Role::Ended | Role::Retired);
        assert!(over || state.view_of(entry.id).is_some(), "{} has no view", entry.id);
    }
    let numbers = |view: &Name| {
        let of_view = state.replays().values().filter(|replay| replay.view == *view);
        of_view.count()
    };
    assert_eq!(
        state.next_replay_id(&view()).as_str(),
        format!("v-{}", if state.views().contains_key(&view()) { numbers(&view()) + 1 } else { 1 }),
        "the id of a replay is never used again"
    );
}

pub(crate) fn window_pairs(
    state: &ControlState,
    number: u64,
    partition: u32,
) -> Vec<(u64, Option<u64>)> {
    let windows = state.output_windows(id(number), PartitionId(partition));
    windows.iter().map(|window| (window.from.0, window.until.map(|Offset(until)| until))).collect()
}
