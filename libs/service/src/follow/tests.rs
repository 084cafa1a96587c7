use headwater_control::status_key;
use headwater_log::{BatchBuilder, MemoryLog};
use headwater_proto::{
    control::v1::{StreamDeclared, control_record::Event},
    status::v1::ShardStatus,
};

use super::*;

async fn append(log: &Arc<dyn Log>, topic: &str, key: Option<&[u8]>, value: Option<&[u8]>) {
    let mut batch = BatchBuilder::new();
    batch.push(0, key, value, &[]);
    log.append(&Name::new(topic).unwrap(), PartitionId::ONLY, batch.build().unwrap())
        .await
        .unwrap();
}

fn declared(name: &str) -> Vec<u8> {
    let event =
        Event::StreamDeclared(StreamDeclared { name: name.into(), sql: "CREATE STREAM".into() });
    ControlRecord { event: Some(event), ..ControlRecord::default() }.encode_to_vec()
}

/// A node whose control plane exists already.
async fn node() -> Node {
    let node = Node::new(Arc::new(MemoryLog::new()), "unused", "test");
    create_topics(&*node.log).await.unwrap();
    node
}

#[tokio::test]
async fn what_was_in_the_topic_when_asked_is_in_the_state() {
    let node = node().await;
    let log = &node.log;
    let view = ControlView::start(&node);
    assert_eq!(view.wait_current().await.unwrap().position(), Offset::ZERO);
    for number in 1..50 {
        append(log, CONTROL_TOPIC, None, Some(&declared(&format!("s{number}")))).await;
        assert_eq!(view.wait_current().await.unwrap().streams().len(), number);
    }
    assert!(node.tasks.stop(Duration::from_secs(5)).await.is_clean());
    assert!(view.wait_current().await.is_ok(), "what was folded stays readable");
    append(log, CONTROL_TOPIC, None, Some(&declared("late"))).await;
    assert!(matches!(view.wait_current().await, Err(Error::Ended)));
}

#[tokio::test]
async fn a_follower_that_starts_later_sees_the_same() {
    let node = node().await;
    let log = &node.log;
    let first = ControlView::start(&node);
    append(log, CONTROL_TOPIC, None, Some(&declared("a"))).await;
    append(log, CONTROL_TOPIC, None, Some(&declared("b"))).await;
    let second = ControlView::start(&node);
    assert_eq!(first.wait_current().await.unwrap(), second.wait_current().await.unwrap());
    node.tasks.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn the_board_has_the_last_status_of_each_shard_and_says_when_it_changes() {
    let node = node().await;
    let log = &node.log;
    let mut view = ControlView::start(&node);
    let generation = "00000000000000aa".parse().unwrap();
    let key = status_key(generation, PartitionId(3));
    let mut status =
        ShardStatus { generation: generation.to_string(), partition: 3, ..ShardStatus::default() };
    for position in [5, 9] {
        status.position = position;
        append(log, STATUS_TOPIC, Some(key.as_bytes()), Some(&status.encode_to_vec())).await;
        while view.board().position(generation, PartitionId(3)) != Some(Offset(position)) {
            view.changed().await;
        }
    }
    append(log, STATUS_TOPIC, Some(b"nonsense"), Some(b"\xff\xff")).await;
    append(log, STATUS_TOPIC, Some(key.as_bytes()), None).await;
    while view.board().get(generation, PartitionId(3)).is_some() {
        view.changed().await;
    }
    assert!(node.tasks.stop(Duration::from_secs(5)).await.is_clean());
}

#[tokio::test]
async fn an_impossible_record_stops_the_process_with_a_reason() {
    let node = node().await;
    let log = &node.log;
    let _view = ControlView::start(&node);
    for _ in 0..2 {
        append(log, CONTROL_TOPIC, None, Some(&declared("twice"))).await;
    }
    node.tasks.wait().await;
    let reason = node.tasks.failure().unwrap().reason;
    assert!(reason.contains("control record 1 cannot follow"), "{reason}");
}

#[tokio::test]
async fn a_remote_log_that_is_away_is_followed_once_it_is_there() {
    let log = headwater_testkit::FaultyLog::new();
    log.away.store(true, std::sync::atomic::Ordering::SeqCst);
    let node = Node::new(log.clone(), "unused", "test");
    let view = ControlView::start(&node);
    let away = view.wait_current().await.unwrap_err();
    assert_eq!(away.remedy(), Remedy::Retry, "{away}");

    log.away.store(false, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(view.wait_current().await.unwrap().position(), Offset::ZERO);
    append(&node.log, CONTROL_TOPIC, None, Some(&declared("a"))).await;
    assert_eq!(view.wait_current().await.unwrap().streams().len(), 1);

    // In the middle of it too; nothing is folded twice.
    log.away.store(true, std::sync::atomic::Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(300)).await;
    log.away.store(false, std::sync::atomic::Ordering::SeqCst);
    append(&node.log, CONTROL_TOPIC, None, Some(&declared("b"))).await;
    assert_eq!(view.wait_current().await.unwrap().streams().len(), 2);
    assert!(node.tasks.stop(Duration::from_secs(5)).await.is_clean());
}

#[tokio::test]
async fn following_a_log_that_is_away_ends_when_the_process_does() {
    let log = headwater_testkit::FaultyLog::new();
    log.away.store(true, std::sync::atomic::Ordering::SeqCst);
    let node = Node::new(log, "unused", "test");
    let _view = ControlView::start(&node);
    tokio::time::sleep(Duration::from_millis(800)).await;
    let started = Instant::now();
    assert!(node.tasks.stop(Duration::from_secs(5)).await.is_clean());
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}
