use headwater_log::{BatchBuilder, Log, TopicSpec};
use headwater_proto::{
    headers,
    ingest::v1::{DeadLetter, ListDeadLettersRequest, ReplayDeadLettersRequest},
};
use headwater_types::{Name, PartitionId};
use tonic::Code;

use super::fixture::*;

struct Letter {
    at: u32,
    stage: &'static str,
    view: &'static str,
    source: (u32, u64),
    timestamp_ms: i64,
    value: Option<&'static [u8]>,
}

const GOOD: &[u8] = br#"{"user_id": 1, "amount":2.50,"ts":0}"#;

/// Puts dead letters where the processor puts them.
async fn put(fixture: &Fixture, letters: &[Letter]) {
    let topic = Name::new("orders.dead-letters").unwrap();
    fixture.log.create_topic(&topic, TopicSpec::keep(2)).await.unwrap();
    for letter in letters {
        let (partition, offset) = (letter.source.0.to_string(), letter.source.1.to_string());
        let mut batch = BatchBuilder::new();
        batch.push(
            letter.timestamp_ms,
            Some(b"1"),
            letter.value,
            &[
                (headers::GENERATION, b"00000000000000aa"),
                (headers::SEQUENCE, b"17.0"),
                (headers::VIEW, letter.view.as_bytes()),
                (headers::STREAM, b"orders"),
                (headers::TOPIC, b"orders"),
                (headers::PARTITION, partition.as_bytes()),
                (headers::OFFSET, offset.as_bytes()),
                (headers::STAGE, letter.stage.as_bytes()),
                (headers::REASON, b"amount: no"),
            ],
        );
        fixture.log.append(&topic, PartitionId(letter.at), batch.build().unwrap()).await.unwrap();
    }
}

/// Two letters, in a partition each.
pub(super) async fn put_two(fixture: &Fixture) {
    let letter = |at| Letter {
        at,
        stage: "decode",
        view: "a",
        source: (at, 5),
        timestamp_ms: 10,
        value: Some(b"nonsense"),
    };
    put(fixture, &[letter(0), letter(1)]).await;
}

async fn with_letters() -> Fixture {
    let fixture = Fixture::new().await;
    let letters = [
        Letter {
            at: 0,
            stage: "decode",
            view: "a",
            source: (0, 5),
            timestamp_ms: 10,
            value: Some(b"nonsense"),
        },
        Letter {
            at: 1,
            stage: "late",
            view: "a",
            source: (1, 9),
            timestamp_ms: 15,
            value: Some(GOOD),
        },
        Letter {
            at: 0,
            stage: "late",
            view: "a",
            source: (0, 6),
            timestamp_ms: 20,
            value: Some(GOOD),
        },
        Letter { at: 0, stage: "decode", view: "b", source: (0, 7), timestamp_ms: 30, value: None },
        Letter {
            at: 1,
            stage: "late",
            view: "b",
            source: (1, 9),
            timestamp_ms: 15,
            value: Some(GOOD),
        },
    ];
    put(&fixture, &letters).await;
    fixture
}

fn all() -> ListDeadLettersRequest {
    ListDeadLettersRequest { stream: "orders".into(), ..ListDeadLettersRequest::default() }
}

async fn list(fixture: &Fixture, request: ListDeadLettersRequest) -> Vec<DeadLetter> {
    let mut stream = fixture.dead_letters().list(request).await.unwrap().into_inner();
    let mut letters = Vec::new();
    while let Some(letter) = stream.message().await.unwrap() {
        letters.push(letter);
    }
    letters
}

fn sources(letters: &[DeadLetter]) -> Vec<(u32, u64)> {
    letters.iter().map(|letter| (letter.partition, letter.offset)).collect()
}

#[tokio::test]
async fn dead_letters_are_listed_oldest_first_with_their_original_bytes() {
    let fixture = with_letters().await;

    let letters = list(&fixture, all()).await;

    assert_eq!(sources(&letters), [(0, 5), (1, 9), (1, 9), (0, 6), (0, 7)]);
    let DeadLetter {
        stream, topic, stage, reason, view, generation, key, value, timestamp_ms, ..
    } = &letters[0];
    assert_eq!((stream.as_str(), topic.as_str(), stage.as_str()), ("orders", "orders", "decode"));
    assert_eq!(
        (reason.as_str(), view.as_str(), generation.as_str()),
        ("amount: no", "a", "00000000000000aa")
    );
    assert_eq!(
        (key.as_deref(), &value[..], *timestamp_ms),
        (Some(&b"1"[..]), &b"nonsense"[..], 10)
    );
}

#[tokio::test]
async fn a_selection_keeps_what_it_names() {
    let fixture = with_letters().await;
    let cases = [
        (ListDeadLettersRequest { stage: "late".into(), ..all() }, vec![(1, 9), (1, 9), (0, 6)]),
        (ListDeadLettersRequest { view: "b".into(), ..all() }, vec![(1, 9), (0, 7)]),
        (ListDeadLettersRequest { partition: Some(0), offset: Some(6), ..all() }, vec![(0, 6)]),
        (ListDeadLettersRequest { stage: "late".into(), limit: 1, ..all() }, vec![(1, 9)]),
        (ListDeadLettersRequest { stage: "filter".into(), ..all() }, vec![]),
    ];
    for (request, expected) in cases {
        assert_eq!(sources(&list(&fixture, request.clone()).await), expected, "{request:?}");
    }
    let request = ListDeadLettersRequest { stage: "lat".into(), ..all() };
    let refused = fixture.dead_letters().list(request).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message().contains("use decode, time")),
        (Code::InvalidArgument, true)
    );
    let request = ListDeadLettersRequest { stream: "refunds".into(), ..all() };
    assert_eq!(fixture.dead_letters().list(request).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_stream_that_never_had_a_dead_letter_has_an_empty_list() {
    let fixture = Fixture::new().await;
    assert_eq!(list(&fixture, all()).await, []);
}

#[tokio::test]
async fn a_replay_appends_each_source_record_once_with_its_original_bytes() {
    let fixture = with_letters().await;

    let request = ReplayDeadLettersRequest { selection: Some(all()) };
    let response = fixture.dead_letters().replay(request).await.unwrap().into_inner();

    // (1, 9) was put aside by two views and is one record.
    assert_eq!((response.accepted, response.rejected), (2, 2));
    assert_eq!(response.reasons.len(), 2, "{:?}", response.reasons);
    assert_eq!(response.token, format!("orders@{}:2", partition_of(1)));
    let stored: Vec<_> =
        fixture.stored().await.concat().into_iter().map(|(_, _, value)| value).collect();
    assert_eq!(stored, [GOOD, GOOD]);
}

#[tokio::test]
async fn a_replay_that_the_log_refuses_says_so() {
    let fixture = with_letters().await;
    *fixture.log.failing.lock() = (0..4).map(PartitionId).collect();
    let request = ReplayDeadLettersRequest { selection: Some(all()) };
    let refused = fixture.dead_letters().replay(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
}
