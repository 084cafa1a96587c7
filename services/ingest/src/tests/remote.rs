//! Ingest on a log over a network, which is slow, goes away, and sometimes does not know whether it
//! stored a batch.

use std::{
    sync::atomic::Ordering::SeqCst,
    time::{Duration, Instant},
};

use futures::future::join_all;
use headwater_log::{Cleanup, Log as _, TopicSpec};
use headwater_proto::ingest::v1::{AppendRequest, ListDeadLettersRequest};
use headwater_testkit::FaultyLog;
use headwater_types::{Name, Offset, PartitionId};
use tokio::runtime::Handle;
use tonic::Code;

use super::{dead_letters, fixture::*};
use crate::Config;

async fn remote() -> Fixture {
    Fixture::on(FaultyLog::new(), Config::default()).await
}

/// More questions than ingest asks since then, however many requests it gets: a problem is kept for
/// a second, and the followers of the control plane ask a few times a second.
fn questions_within(since: Instant) -> usize {
    60 * (1 + since.elapsed().as_secs() as usize)
}

fn to(stream: &str) -> AppendRequest {
    AppendRequest { stream: stream.into(), events: vec![event(1)] }
}

#[tokio::test]
async fn a_log_that_takes_its_time_holds_no_worker() {
    let fixture = remote().await;
    *fixture.log.delay.lock() = Duration::from_millis(50);
    let letters = || ListDeadLettersRequest { stream: "orders".into(), ..Default::default() };
    assert_eq!(fixture.append(vec![event(1)]).await.accepted, 1);
    let unknown = fixture.client().append(to("none")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    let mut listed = fixture.dead_letters().list(letters()).await.unwrap().into_inner();
    assert!(listed.message().await.unwrap().is_none());

    // One thread runs this whole test. A question that blocked it would be answered before a
    // request that needs no question.
    *fixture.log.delay.lock() = Duration::from_secs(60);
    let asked = fixture.log.questions();
    let (mut client, mut dead_letters) = (fixture.client(), fixture.dead_letters());
    let unknown = Handle::current().spawn(async move { client.append(to("none")).await });
    let listed = Handle::current().spawn(async move { dead_letters.list(letters()).await });
    until(|| fixture.log.questions() >= asked + 2).await;

    assert_eq!(fixture.append(vec![event(1)]).await.accepted, 1);

    assert!(!unknown.is_finished() && !listed.is_finished());
}

#[tokio::test]
async fn events_that_may_be_stored_are_said_to_be_perhaps_not_stored() {
    let fixture = remote().await;
    *fixture.log.uncertain.lock() = vec![PartitionId(partition_of(1))];
    let other = (2..).find(|user| partition_of(*user) != partition_of(1)).unwrap();

    let response = fixture.append(vec![event(1), event(other)]).await;

    let expected = "perhaps not stored: the log did not say whether it stored the batch: no answer came in time";
    assert_eq!(rejected(&response.results[0]), Some(("", expected, true)));
    assert_eq!(accepted(&response.results[1]), Some((partition_of(other), 0)));
    let covered: Vec<_> = token(&response.token).positions.into_keys().collect();
    assert_eq!(covered, [PartitionId(partition_of(other))]);
    let answer = fixture.post(&[], event(1)).await;
    assert_eq!((answer.status.as_u16(), answer.retry_after.as_deref()), (503, Some("1")));
    assert_eq!(answer.json["results"][0]["reason"], expected);
    assert!(fixture.summary().ends_with("1 accepted, 2 rejected, of which 2 are perhaps stored"));
}

#[tokio::test]
async fn answers_and_tokens_name_the_offsets_at_which_the_log_stored_the_events() {
    let fixture = remote().await;
    fixture.log.apart.store(true, SeqCst);

    let response = fixture.append(vec![event(1), event(1), event(1)]).await;

    let offsets: Vec<_> =
        response.results.iter().map(|result| accepted(result).unwrap().1).collect();
    assert_eq!(offsets, [0, 2, 4]);
    let positions = token(&response.token).positions;
    assert_eq!(
        positions.into_iter().collect::<Vec<_>>(),
        [(PartitionId(partition_of(1)), Offset(5))]
    );
}

#[tokio::test]
async fn while_the_log_is_away_requests_are_refused_as_unavailable_and_it_gets_few_questions() {
    let fixture = remote().await;
    assert_eq!(fixture.append(vec![event(1)]).await.accepted, 1);
    fixture.declare("refunds", &ORDERS.replace("orders", "refunds")).await;
    soon(async { while fixture.client().append(to("refunds")).await.is_err() {} }).await;
    fixture.declare("visits", &ORDERS.replace("orders", "visits")).await;
    // The stream is known, and its topic was not looked at yet.
    soon(async {
        loop {
            let known = fixture.client().append(to("nobody")).await.unwrap_err();
            if known.message().contains("visits") {
                break;
            }
        }
    })
    .await;
    fixture.log.away.store(true, SeqCst);
    *fixture.log.delay.lock() = Duration::from_millis(50);
    let (asked, since) = (fixture.log.questions(), Instant::now());

    let requests = (0..200).map(|_| {
        let mut client = fixture.client();
        async move { client.append(to("visits")).await.unwrap_err() }
    });
    for refused in join_all(requests).await {
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        assert_eq!(refused.message(), "the log is unavailable: the broker is gone");
    }
    let asked = fixture.log.questions() - asked;
    assert!(asked < questions_within(since), "{asked} questions for 200 requests");
    let answer = fixture.post_to("visits", &[], event(1)).await;
    assert_eq!((answer.status.as_u16(), answer.retry_after.as_deref()), (503, Some("1")));
    let response = fixture.append(vec![event(1)]).await;
    let expected = "not stored: the log is unavailable: the broker is gone";
    assert_eq!(rejected(&response.results[0]), Some(("", expected, true)));

    fixture.log.away.store(false, SeqCst);
    assert_eq!(fixture.append(vec![event(1)]).await.accepted, 1);
    soon(async { while fixture.client().append(to("visits")).await.is_err() {} }).await;
}

#[tokio::test]
async fn a_topic_that_others_made_is_used_if_it_has_the_declared_partitions() {
    let fixture = remote().await;
    for (name, cleanup) in
        [("kept", Cleanup::Keep), ("expiring", Cleanup::Expire), ("compacted", Cleanup::Compact)]
    {
        let spec = TopicSpec { partitions: 4, cleanup };
        fixture.log.create_topic(&Name::new(name).unwrap(), spec).await.unwrap();
        fixture.declare(name, &ORDERS.replace("orders", name)).await;
        let response = fixture.client().append(to(name)).await.unwrap().into_inner();
        assert_eq!(response.accepted, 1, "{name}");
    }

    fixture.log.create_topic(&Name::new("wide").unwrap(), TopicSpec::keep(6)).await.unwrap();
    fixture.declare("wide", &ORDERS.replace("orders", "wide")).await;
    let refused = fixture.client().append(to("wide")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(
        refused
            .message()
            .contains("topic wide has 6 partitions and the stream was declared with 4"),
        "{refused}"
    );
    assert_eq!(fixture.post_to("wide", &[], event(1)).await.status, 409);
}

#[tokio::test]
async fn partitions_that_are_added_to_a_topic_get_no_event_and_end_the_appends() {
    let config = Config { topic_interval: Duration::from_millis(100), ..Config::default() };
    let fixture = Fixture::on(FaultyLog::new(), config).await;
    let users = || (0..40).map(event).collect();
    assert_eq!(fixture.append(users()).await.accepted, 40);
    dead_letters::put_two(&fixture).await;
    fixture.log.spared.lock().insert("orders.dead-letters".into());
    // An `AppendStream` that is open meanwhile is refused too.
    let (requests, open) = tokio::sync::mpsc::channel(1);
    let open = tokio_stream::wrappers::ReceiverStream::new(open);
    let mut answers = fixture.client().append_stream(open).await.unwrap().into_inner();

    fixture.log.added.store(2, SeqCst);
    let refused = soon(async {
        loop {
            match fixture.client().append(request(users())).await {
                Ok(response) => assert_eq!(response.into_inner().accepted, 40),
                Err(refused) => break refused,
            }
        }
    })
    .await;
    assert_eq!(refused.code(), Code::FailedPrecondition);
    for part in ["topic orders has 6 partitions", "declared with 4", "copy its records"] {
        assert!(refused.message().contains(part), "{refused}");
    }
    assert_eq!(fixture.post(&[], event(1)).await.status, 409);
    requests.send(request(users())).await.unwrap();
    let refused = answers.message().await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let letters = ListDeadLettersRequest { stream: "orders".into(), ..Default::default() };
    let mut letters = fixture.dead_letters().list(letters).await.unwrap().into_inner();
    assert!(letters.message().await.unwrap().is_some(), "they can be read nevertheless");

    // Many requests cost few questions.
    let (asked, since) = (fixture.log.questions(), Instant::now());
    for _ in 0..200 {
        fixture.client().append(to("orders")).await.unwrap_err();
    }
    let asked = fixture.log.questions() - asked;
    assert!(asked < questions_within(since), "{asked} questions for 200 requests");

    fixture.log.added.store(0, SeqCst);
    let stored = fixture.stored().await;
    assert!(stored.iter().map(Vec::len).sum::<usize>() >= 40);
    for (partition, records) in (0..).zip(stored) {
        for (_, key, _) in records {
            let user = String::from_utf8(key.unwrap()).unwrap().parse().unwrap();
            assert_eq!(partition_of(user), partition, "by the declared number, as ever");
        }
    }
    soon(async { while fixture.client().append(to("orders")).await.is_err() {} }).await;
}

#[tokio::test]
async fn a_process_that_ends_answers_for_what_the_log_does_not_answer() {
    let fixture = remote().await;
    fixture.log.let_through.send_replace(1);
    assert_eq!(fixture.append(vec![event(1)]).await.accepted, 1);
    let mut client = fixture.client();
    let waiting = Handle::current().spawn(async move { client.append(to("orders")).await });
    until(|| fixture.log.appends() == 2).await;

    fixture.node.tasks.shutdown().begin();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished(), "there is still time for the log to answer");
    assert!(fixture.node.tasks.running().contains(&"ingest-requests".to_owned()));
    fixture.node.tasks.shutdown().urge();

    let response = soon(waiting).await.unwrap().unwrap().into_inner();
    let (_, reason, retryable) = rejected(&response.results[0]).unwrap();
    assert!(
        reason.starts_with("perhaps not stored: ") && reason.contains("shutting down"),
        "{reason}"
    );
    assert!(retryable);
    assert!(fixture.node.tasks.stop(Duration::from_secs(60)).await.is_clean());
    assert_eq!(
        fixture.summary(),
        "1 requests were waiting for the log and were answered; \
         events since the start: 1 accepted, 1 rejected, of which 1 are perhaps stored"
    );
}

#[tokio::test]
async fn dead_letters_that_are_still_on_their_way_are_waited_for() {
    let fixture = remote().await;
    dead_letters::put_two(&fixture).await;
    fixture.log.late_reads.store(5, SeqCst);
    let request = ListDeadLettersRequest { stream: "orders".into(), ..Default::default() };

    let mut answer = fixture.dead_letters().list(request).await.unwrap().into_inner();

    let mut letters = 0;
    while answer.message().await.unwrap().is_some() {
        letters += 1;
    }
    assert_eq!(letters, 2);
}
