use headwater_proto::control::v1::Phase;
use prost::Message;

use super::{
    folding::{held, phase, promoted, refusal},
    *,
};
use crate::{Action, Effect, LogEnds, ShardDuty, StatusBoard, decide};

fn after(mut state: ControlState, events: impl IntoIterator<Item = Event>) -> ControlState {
    for event in events {
        state.fold(state.position(), &record(event)).unwrap();
        check_laws(&state);
    }
    state
}

/// Carries out all decisions, and returns the generations that were retired, each with its reason.
fn settled(mut state: ControlState) -> (ControlState, Vec<(String, String)>) {
    let mut retired = Vec::new();
    loop {
        let actions = decide(&state, &StatusBoard::default(), &LogEnds::default(), 5);
        let Some(Action::Append(record)) = actions.into_iter().next() else {
            return (state, retired);
        };
        let Some(Event::GenerationRetired(event)) = &record.event else { panic!("{record:?}") };
        retired.push((event.generation.clone(), event.reason.clone()));
        state.fold(state.position(), &record).unwrap();
        check_laws(&state);
    }
}

#[test]
fn a_deleted_view_is_gone_at_once_and_its_state_follows_by_records_of_their_own() {
    // Generation 0 is retained for undo, generation 1 serves.
    let before = folded(promoted());
    let state = after(before, [view_deleted()]);
    assert!(state.views().is_empty() && state.find_replay("v").is_none());
    let duty = |state: &ControlState, number| state.shard_duty(id(number), PartitionId(1));
    assert_eq!((duty(&state, 0), duty(&state, 1)), (ShardDuty::Stop, ShardDuty::Stop));
    assert_eq!(state.deleted_views()[&view()].reason, "unused");
    assert_eq!(state.deleted_views()[&view()].sql, "view 1");

    let (state, retired) = settled(state);
    let why = "its view was deleted".to_owned();
    assert_eq!(retired, [0, 1].map(|number| (id(number).to_string(), why.clone())));
    assert_eq!((duty(&state, 0), duty(&state, 1)), (ShardDuty::Delete, ShardDuty::Delete));
    assert_eq!(phase(&state, "v-1"), Phase::Retired, "there is nothing left to undo");
    assert!(
        refusal(&state, swap_requested("v-1", 2, 1, 0, true)).contains("view \"v\" does not exist")
    );
}

#[test]
fn what_something_depends_on_is_not_deleted() {
    let held = folded(held());
    assert!(refusal(&held, view_deleted()).contains("replay v-1 of view v is open"));
    assert!(refusal(&held, stream_deleted()).contains("view v reads stream s"));
    let undoing = after(folded(promoted()), [swap_requested("v-1", 2, 1, 0, true)]);
    assert!(refusal(&undoing, view_deleted()).contains("replay v-1 of view v is open"));

    let gone = after(folded(promoted()), [view_deleted()]);
    assert!(refusal(&gone, view_deleted()).contains("view \"v\" does not exist"));
    let gone = after(gone, [stream_deleted()]);
    assert!(gone.streams().is_empty());
    assert!(refusal(&gone, stream_deleted()).contains("stream s does not exist"));
    assert!(refusal(&gone, view_created(7)).contains("stream s does not exist"));
    let (_, retired) = settled(gone);
    assert_eq!(retired.len(), 2, "the state goes without the stream");
}

#[test]
fn a_view_that_is_created_again_shares_nothing_with_the_one_before() {
    let deleted = after(folded(promoted()), [view_deleted(), stream_deleted()]);
    assert!(refusal(&deleted, stream_deleted()).contains("does not exist"));
    let state = after(deleted, [stream_declared()]);
    assert!(state.deleted_streams().is_empty() && !state.deleted_views().is_empty());
    assert!(refusal(&state, view_created(1)).contains("was named before"), "not even its id");
    assert_eq!(state.next_ordinal(), 2, "an id is a digest of that number too");

    // The state of the one before is still to be deleted.
    let again = after(state, [view_created(2)]);
    assert_eq!((again.views()[&view()].epoch.0, again.serving("v").unwrap().id), (1, id(2)));
    assert!(again.view_of(id(2)).is_some() && again.view_of(id(1)).is_none());
    assert_eq!(window_pairs(&again, 2, 0), [(0, None)]);
    assert!(again.find_replay("v").is_none(), "no replay of this view was started");
    assert_eq!(again.find_replay("v-1").unwrap().new, id(1), "the history can be read");
    assert!(refusal(&again, swap_requested("v-1", 2, 1, 0, true)).contains("served by"));
    assert!(
        refusal(&again, replay_started("v-1", 3, 2, false)).contains("not the view's next, v-2")
    );

    let (again, retired) = settled(again);
    assert_eq!(retired.len(), 2);
    let again = after(again, [replay_started("v-2", 3, 2, false), align("v-2")]);
    assert_eq!(again.shard_duty(id(1), PartitionId(0)), ShardDuty::Delete);
    let last = after(again, [ended("v-2", false), view_deleted()]);
    assert_eq!(settled(last).1.len(), 2, "generations 2 and 3, and none of the first view's");
}

#[test]
fn a_deletion_is_remembered_by_its_request() {
    let mut state = folded([stream_declared(), view_created(0)]);
    for event in [view_deleted(), stream_deleted()] {
        let record = ControlRecord { request_id: "r".into(), actor: "ann".into(), ..record(event) };
        state.fold(state.position(), &record).unwrap();
    }
    let stream = Name::new("s").unwrap();
    assert_eq!(
        state.effects("r"),
        Some(&[Effect::ViewDeleted { view: view() }, Effect::StreamDeleted { stream }][..])
    );
    assert_eq!(state.deleted_views()[&view()].actor, "ann");
    assert_eq!(
        state.deleted_views()[&view()].to_string(),
        "at 1970-01-01T00:00:00Z (unused)",
        "for messages"
    );
}

#[test]
fn a_replay_knows_who_sent_the_last_request_about_it() {
    let mut state = ControlState::default();
    let actors = ["ann", "ann", "ann", "", "", "", "bob", ""];
    for (event, actor) in promoted().into_iter().zip(actors) {
        let request_id = match (actor, &event) {
            ("", _) => "",
            (_, Event::SwapRequested(_)) => "promote",
            (_, _) => "start",
        };
        let record =
            ControlRecord { request_id: request_id.into(), actor: actor.into(), ..record(event) };
        state.fold(state.position(), &record).unwrap();
    }
    assert_eq!(state.find_replay("v").unwrap().actor, "bob", "not the coordinator's own records");
}

/// A record as it was written before there was an actor: `at_ms` 7, `request_id` "r", stream `s`
/// declared.
const WITHOUT_ACTOR: &[u8] = b"\x08\x07\x12\x01r\x1a\x0b\x0a\x01s\x12\x06stream";
/// The same with an actor.
const WITH_ACTOR: &[u8] = b"\x08\x07\x12\x01r\x1a\x0b\x0a\x01s\x12\x06stream\x9a\x01\x03ann";

#[test]
fn records_from_before_there_was_an_actor_are_read_for_ever() {
    let old = ControlRecord::decode(WITHOUT_ACTOR).unwrap();
    assert_eq!((old.at_ms, old.request_id.as_str(), old.actor.as_str()), (7, "r", ""));
    assert_eq!(old.event, Some(stream_declared()));
    assert_eq!(old.encode_to_vec(), WITHOUT_ACTOR, "and what has no actor is written as before");
    let new = ControlRecord { actor: "ann".into(), ..old.clone() };
    assert_eq!(new.encode_to_vec(), WITH_ACTOR);
    assert_eq!(ControlRecord::decode(WITH_ACTOR), Ok(new));
    let mut state = ControlState::default();
    state.fold(Offset(0), &old).unwrap();
    assert_eq!(state.streams()["s"].declared_at_ms, 7);
}
