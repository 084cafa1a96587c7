use bytes::Bytes;
use headwater_log::RecordLimit;
use headwater_proto::{
    control::v1::{StreamDeleted, control_record::Event},
    ingest::v1::{AppendRequest, ListDeadLettersRequest},
};
use headwater_service::config::ByteSize;
use headwater_types::{Offset, PartitionId};
use tonic::Code;

use super::fixture::*;
use crate::Config;

#[tokio::test]
async fn a_batch_of_500_with_one_bad_event_accepts_499_and_keeps_their_order() {
    let fixture = Fixture::new().await;
    let mut events: Vec<Bytes> = (0..500).map(|n| event(n % 37)).collect();
    events[250] =
        Bytes::from_static(br#"{"user_id":1,"amount":"much","ts":"2023-11-14T22:00:00Z"}"#);

    let response = fixture.append(events.clone()).await;

    assert_eq!((response.accepted, response.rejected, response.results.len()), (499, 1, 500));
    let stored = fixture.stored().await;
    let mut next = [0; 4];
    for (index, (result, sent)) in response.results.iter().zip(&events).enumerate() {
        if index == 250 {
            let (field, reason, retryable) = rejected(result).unwrap();
            assert_eq!((field, retryable), ("amount", false), "{reason}");
            continue;
        }
        let user = (index % 37) as u64;
        let partition = partition_of(user);
        let offset = next[partition as usize];
        next[partition as usize] += 1;
        assert_eq!(accepted(result), Some((partition, offset)), "event {index}");
        let expected = (NOW_MS, Some(user.to_string().into_bytes()), sent.to_vec());
        assert_eq!(stored[partition as usize][offset as usize], expected, "event {index}");
    }
    assert_eq!(stored.iter().map(Vec::len).sum::<usize>(), 499);
    let positions = token(&response.token).positions;
    assert_eq!(positions.len(), 4);
    for (partition, position) in positions {
        assert_eq!(position, Offset(next[partition.0 as usize]));
    }
}

#[tokio::test]
async fn each_bad_event_is_told_its_field_and_costs_no_other() {
    let fixture = Fixture::new().await;
    let bad: [(&[u8], &str); 8] = [
        (b"", ""),
        (b"nonsense", ""),
        (b"{\"user_id\":1,\"note\":\"\xff\xfe\",\"ts\":0}", ""),
        (br#"{"user_id":1}"#, "ts"),
        (br#"{"amount":1,"ts":0}"#, "user_id"),
        (br#"{"user_id":null,"ts":0}"#, "user_id"),
        (br#"{"user_id":1,"ts":"yesterday"}"#, "ts"),
        (br#"[1]"#, ""),
    ];
    let mut events = vec![event(1)];
    events.extend(bad.iter().map(|(bytes, _)| Bytes::from_static(bytes)));
    events.push(event(1));

    let response = fixture.append(events).await;

    assert_eq!((response.accepted, response.rejected), (2, 8));
    for (result, (bytes, field)) in response.results[1..].iter().zip(bad) {
        let (found, reason, retryable) = rejected(result).unwrap();
        assert!(!reason.is_empty() && !retryable);
        // Where bytes are no text, either the field or the event as a whole may be blamed.
        if std::str::from_utf8(bytes).is_ok() {
            assert_eq!(found, field, "{}: {reason}", String::from_utf8_lossy(bytes));
        }
    }
    assert_eq!(response.results.first().and_then(accepted).unwrap().1, 0);
    assert_eq!(response.results.last().and_then(accepted).unwrap().1, 1);
}

#[tokio::test]
async fn an_event_over_the_logs_own_limit_is_refused_alone_and_the_reason_names_that_limit() {
    let fixture = Fixture::new().await;
    let limit =
        RecordLimit { bytes: 200, overhead: 30, set_by: "kafka.settings.message.max.bytes" };
    *fixture.log.record_limit.lock() = Some(limit);
    // Its key counts, too: it has two bytes.
    let sized = |bytes: usize| {
        let event = format!("{{\"user_id\":42,\"note\":\"\",\"ts\":{}}}", NOW_MS / 1000);
        let note = "x".repeat(bytes - event.len());
        Bytes::from(event.replace("\"\"", &format!("\"{note}\"")))
    };
    let (largest, larger) = (sized(168), sized(169));
    let events = vec![event(42), larger, largest.clone(), event(42)];

    let response = fixture.append(events.clone()).await;

    assert_eq!((response.accepted, response.rejected), (3, 1));
    let (_, reason, retryable) = rejected(&response.results[1]).unwrap();
    assert!(!retryable, "{reason}");
    for part in ["169 bytes", "counts 201", "200 for a record of topic orders", limit.set_by] {
        assert!(reason.contains(part), "{reason}");
    }
    let stored = &fixture.stored().await[partition_of(42) as usize];
    let stored: Vec<_> = stored.iter().map(|(_, _, event)| event.clone()).collect();
    assert_eq!(stored, [&events[0], &largest, &events[3]].map(|event| event.to_vec()));
    let offsets = [0, 2, 3].map(|index| accepted(&response.results[index]).unwrap().1);
    assert_eq!(offsets, [0, 1, 2]);
}

#[tokio::test]
async fn an_event_time_may_be_as_far_ahead_as_the_stream_says_and_no_further() {
    let fixture = Fixture::new().await;
    let at = |micros: i64| {
        Bytes::from(format!(
            r#"{{"user_id":1,"ts":"2023-11-14T23:13:{:02}.{:06}Z"}}"#,
            20 + micros / 1_000_000,
            micros % 1_000_000
        ))
    };

    let response = fixture.append(vec![at(0), at(1)]).await;

    assert!(accepted(&response.results[0]).is_some());
    let (field, reason, _) = rejected(&response.results[1]).unwrap();
    assert_eq!(field, "ts");
    assert_eq!(
        reason,
        "2023-11-14T23:13:20.000001Z is too far in the future: it is 2023-11-14T22:13:20Z now, \
         and the stream's max_future allows up to 2023-11-14T23:13:20Z"
    );
}

#[tokio::test]
async fn an_event_over_the_limit_is_rejected_alone_and_a_request_over_the_limit_as_a_whole() {
    let fixture = Fixture::new().await;
    let padded = |len: usize| {
        let text = String::from_utf8(event(1).to_vec()).unwrap();
        Bytes::from(
            text.replace('}', &format!(",\"pad\":\"{}\"}}", "x".repeat(len - text.len() - 9))),
        )
    };
    assert_eq!(padded(1000).len(), 1000);

    let response = fixture.append(vec![padded(1 << 20), padded((1 << 20) + 1), event(1)]).await;
    assert_eq!((response.accepted, response.rejected), (2, 1));
    let (_, reason, _) = rejected(&response.results[1]).unwrap();
    assert_eq!(reason, "the event has 1048577 bytes, over the limit of 1 MiB (ingest.max-event)");

    let huge = request(vec![Bytes::from(vec![b'x'; 100 << 20])]);
    let refused = fixture.client().append(huge).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    assert!(refused.message().contains("16777216"), "{refused}");
    assert_eq!(fixture.append(vec![event(1)]).await.accepted, 1);
}

#[tokio::test]
async fn a_request_that_fills_a_partition_is_stored_in_several_batches_and_in_order() {
    let fixture = Fixture::new().await;
    let pad = "x".repeat(900_000);
    let events: Vec<Bytes> =
        (0..15).map(|n| format!(r#"{{"user_id":1,"ts":0,"note":"{n}{pad}"}}"#).into()).collect();

    let response = fixture.append(events.clone()).await;

    assert_eq!(response.accepted, 15);
    let offsets: Vec<u64> =
        response.results.iter().map(|result| accepted(result).unwrap().1).collect();
    assert_eq!(offsets, (0..15).collect::<Vec<_>>());
    assert!(fixture.log.appends() > 1);
    let stored: Vec<_> =
        fixture.stored().await.concat().into_iter().map(|(_, _, value)| value).collect();
    assert_eq!(stored, events);
}

#[tokio::test]
async fn an_unknown_stream_is_refused_with_the_known_ones_and_a_new_one_is_known_at_once() {
    let fixture = Fixture::new().await;
    let request = || AppendRequest { stream: "refunds".into(), events: vec![event(1)] };

    let refused = fixture.client().append(request()).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::NotFound, r#"there is no stream "refunds"; known streams: orders"#)
    );

    fixture.declare("refunds", &ORDERS.replace("orders", "refunds")).await;
    assert_eq!(fixture.client().append(request()).await.unwrap().into_inner().accepted, 1);
}

#[tokio::test]
async fn a_stream_that_gets_another_column_is_checked_by_its_new_definition() {
    let fixture = Fixture::new().await;
    let events = || vec![Bytes::from_static(br#"{"user_id":1,"ts":0,"tip":"none"}"#)];
    assert_eq!(fixture.append(events()).await.accepted, 1);

    fixture.declare("orders", &ORDERS.replace("note VARCHAR", "note VARCHAR, tip DOUBLE")).await;
    // The catalog is followed; ask until the record has arrived.
    soon(async { while fixture.append(events()).await.accepted == 1 {} }).await;
    assert_eq!(rejected(&fixture.append(events()).await.results[0]).unwrap().0, "tip");
}

#[tokio::test]
async fn events_of_a_partition_that_cannot_be_written_are_never_reported_accepted() {
    let fixture = Fixture::new().await;
    *fixture.log.failing.lock() = vec![PartitionId(2)];
    let events: Vec<Bytes> = (0..100).map(event).collect();

    let response = fixture.append(events).await;

    let lost = (0..100).filter(|user| partition_of(*user) == 2).count() as u64;
    assert!(lost > 0 && response.rejected == lost && response.accepted == 100 - lost);
    for (user, result) in response.results.iter().enumerate() {
        match partition_of(user as u64) {
            2 => {
                let (field, reason, retryable) = rejected(result).unwrap();
                assert!(field.is_empty() && retryable);
                assert_eq!(reason, "not stored: the log is unavailable: the broker is gone");
            }
            partition => assert_eq!(accepted(result).unwrap().0, partition),
        }
    }
    let covered: Vec<_> = token(&response.token).positions.into_keys().collect();
    assert_eq!(covered, [PartitionId(0), PartitionId(1), PartitionId(3)]);
}

#[tokio::test]
async fn a_stream_without_a_key_keeps_a_request_together_and_spreads_requests() {
    let fixture = Fixture::new().await;
    fixture
        .declare("clicks", &ORDERS.replace("orders", "clicks").replace("key = 'user_id', ", ""))
        .await;
    let mut used = std::collections::BTreeSet::new();
    for first in 0..40 {
        let events = (first..first + 5).map(event).collect();
        let request = AppendRequest { stream: "clicks".into(), events };
        let response = fixture.client().append(request).await.unwrap().into_inner();
        let positions = token(&response.token).positions;
        assert_eq!((response.accepted, positions.len()), (5, 1));
        used.extend(positions.into_keys());
    }
    assert_eq!(used.len(), 4);
}

#[tokio::test]
async fn more_than_ingest_may_hold_is_refused_until_there_is_room_again() {
    let limit = ByteSize::kib(64);
    let config =
        Config { in_flight: limit, max_request: limit, max_event: limit, ..Config::default() };
    let fixture = Fixture::with(config).await;
    fixture.log.let_through.send_replace(0);
    let mut client = fixture.client();
    let events =
        vec![Bytes::from(format!(r#"{{"user_id":1,"ts":0,"note":"{}"}}"#, "x".repeat(40_000)))];
    let first = tokio::runtime::Handle::current().spawn({
        let (mut client, events) = (client.clone(), events.clone());
        async move { client.append(request(events)).await }
    });
    until(|| fixture.log.appends() > 0).await;

    let refused = client.append(request(events.clone())).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(
        refused.message(),
        "ingest holds 64 KiB of events already (ingest.in-flight): retry in a moment"
    );
    let body = events.concat();
    let busy = fixture.post(&[], body).await;
    assert_eq!((busy.status.as_u16(), busy.retry_after.as_deref()), (429, Some("1")));

    fixture.log.let_through.send_replace(usize::MAX);
    assert_eq!(first.await.unwrap().unwrap().into_inner().accepted, 1);
    assert_eq!(client.append(request(events)).await.unwrap().into_inner().accepted, 1);
    let metrics = fixture.node.metrics.encode();
    assert!(metrics.contains("\nheadwater_ingest_in_flight_bytes 0\n"), "{metrics}");
    assert!(metrics.contains("\nheadwater_ingest_refused_total 2\n"), "{metrics}");
    assert!(
        metrics.contains(r#"headwater_ingest_events_total{stream="orders",outcome="accepted"} 2"#),
        "{metrics}"
    );
    assert!(
        metrics.contains(r#"headwater_ingest_append_seconds_count{stream="orders"} 2"#),
        "{metrics}"
    );
}

#[tokio::test]
async fn too_many_events_in_one_request_are_refused() {
    let fixture =
        Fixture::with(Config { max_events: 10.try_into().unwrap(), ..Config::default() }).await;
    assert_eq!(fixture.append((0..10).map(event).collect()).await.accepted, 10);
    let refused = fixture.client().append(request((0..11).map(event).collect())).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    assert_eq!(fixture.post(&[], "1\n".repeat(11)).await.status, 413);
}

#[tokio::test]
async fn ingest_is_ready_once_the_catalog_is_read() {
    let fixture = Fixture::new().await;
    soon(fixture.node.health.wait_ready()).await;
    assert_eq!(fixture.node.health.conditions(), [("ingest".to_owned(), None)]);
}

#[tokio::test]
async fn a_deleted_stream_takes_nothing_until_it_is_declared_again() {
    let fixture = Fixture::new().await;
    assert_eq!(fixture.append(vec![event(1)]).await.accepted, 1);
    let deleted = StreamDeleted { stream: "orders".into(), reason: "moved".into() };
    fixture.record(Event::StreamDeleted(deleted)).await;

    // The service learns of it as it reads the control topic.
    let refused = loop {
        match fixture.client().append(request(vec![event(2)])).await {
            Ok(_) => tokio::task::yield_now().await,
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused.code(), Code::NotFound);
    let why = "stream orders was deleted at 1970-01-01T00:00:00Z (moved)";
    assert!(refused.message().contains(why), "{}", refused.message());
    let list = ListDeadLettersRequest { stream: "orders".into(), ..Default::default() };
    let refused = fixture.dead_letters().list(list).await.unwrap_err();
    assert!(refused.message().contains(why), "{}", refused.message());

    fixture.declare("orders", ORDERS).await;
    assert_eq!(fixture.append(vec![event(3)]).await.accepted, 1);
}
