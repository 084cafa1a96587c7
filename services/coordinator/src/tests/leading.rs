//! Two coordinators over one log that fails as Kafka may.

use std::{
    future::Future,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::FutureExt as _;
use headwater_control::{ControlState, Role};
use headwater_log::{Log, MemoryLog};
use headwater_proto::control::v1::{
    ApplyRequest, ApplyResponse, GetCatalogRequest, GetReplayRequest, ListReplaysRequest, Phase,
    PlanRequest, PromoteRequest, Replay, UndoRequest, Verdict,
    catalog_service_server::CatalogService as _, replay_service_server::ReplayService as _,
};
use headwater_service::Node;
use headwater_types::{Name, Offset, PartitionId};
use tonic::{Code, Request, Status};

use super::{
    fixture::{ALL, ORDERS, PAID, PATIENCE, Processor, config, files, other_stream, quiet},
    kafka_like::{Group, GroupMembership, KafkaLikeLog, LogFaults},
};
use crate::{
    Coordinator,
    api::{catalog_service::CatalogApi, replay_service::ReplayApi},
    leadership::{Leadership, STANDING_BY},
};

struct Pair {
    log: Arc<dyn Log>,
    faults: Arc<LogFaults>,
    group: Arc<Group>,
    nodes: Vec<Node>,
    coordinators: Vec<Coordinator>,
    data: tempfile::TempDir,
    requests: usize,
}

impl Pair {
    /// Both run, and neither leads.
    async fn new() -> Self {
        let mut pair = Self::without_coordinators();
        pair.start().await;
        pair.start().await;
        pair
    }

    fn without_coordinators() -> Self {
        let (log, faults) = KafkaLikeLog::new();
        let data = tempfile::tempdir().unwrap();
        let (nodes, coordinators) = (Vec::new(), Vec::new());
        Self { log, faults, group: Arc::default(), nodes, coordinators, data, requests: 0 }
    }

    async fn start(&mut self) {
        let index = self.nodes.len();
        let name = format!("coordinator-{index}");
        let mut node = Node::new(self.log.clone(), self.data.path(), name);
        node.membership = Arc::new(GroupMembership { group: self.group.clone(), index });
        self.coordinators.push(Coordinator::start(config(), &node).await.unwrap());
        self.nodes.push(node);
    }

    /// Elects this one, once it has joined.
    async fn give_partition(&self, index: usize) {
        until("it joins", async || self.group.has_joined(index)).await;
        self.group.assign(index);
    }

    async fn assign(&self, index: usize) {
        self.give_partition(index).await;
        until("it leads", async || self.condition(index).is_none()).await;
    }

    async fn revoke(&self, index: usize) {
        let group = self.group.clone();
        tokio::task::spawn_blocking(move || group.revoke(index)).await.unwrap();
    }

    /// Why this one is not ready.
    fn condition(&self, index: usize) -> Option<String> {
        let conditions = self.nodes[index].health.conditions();
        conditions.into_iter().find(|(name, _)| name == "coordinator").unwrap().1
    }

    fn catalog(&self, index: usize) -> CatalogApi {
        self.coordinators[index].catalog_api()
    }

    fn replays(&self, index: usize) -> ReplayApi {
        self.coordinators[index].replay_api()
    }

    fn request(&mut self, sql: &[&str]) -> ApplyRequest {
        self.requests += 1;
        let request_id = format!("r{}", self.requests);
        ApplyRequest { files: files(sql), request_id, ..ApplyRequest::default() }
    }

    async fn apply(&mut self, index: usize, sql: &[&str]) -> Result<ApplyResponse, Status> {
        let request = self.request(sql);
        self.send(index, request).await
    }

    async fn send(&self, index: usize, request: ApplyRequest) -> Result<ApplyResponse, Status> {
        Ok(self.catalog(index).apply(Request::new(request)).await?.into_inner())
    }

    async fn replay(&self, index: usize) -> Replay {
        let request = Request::new(GetReplayRequest { replay: "spend".into() });
        self.replays(index).get(request).await.unwrap().into_inner()
    }

    fn state(&self, index: usize) -> Arc<ControlState> {
        self.coordinators[index].context.state()
    }

    /// The state as other services fold it.
    async fn followed(&self) -> Arc<ControlState> {
        self.coordinators[0].context.view.wait_current().await.unwrap()
    }

    fn alive(&self, index: usize) -> bool {
        self.nodes[index].tasks.failure().is_none()
            && self.nodes[index].tasks.running().iter().any(|task| task == "coordinator")
    }
}

async fn until<R: Future<Output = bool>>(what: &str, holds: impl Fn() -> R) {
    let started = std::time::Instant::now();
    while !holds().await {
        assert!(started.elapsed() < PATIENCE, "{what}: never");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn unavailable(status: &Status, text: &str) {
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains(text), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_leads_the_other_stands_by_and_takes_over() {
    let mut pair = Pair::new().await;
    pair.assign(0).await;
    pair.apply(0, &[ORDERS, ALL]).await.unwrap();

    assert_eq!(pair.condition(1).as_deref(), Some(STANDING_BY));
    assert!(pair.alive(1));
    unavailable(&pair.apply(1, &[PAID]).await.unwrap_err(), STANDING_BY);
    let replay = || GetReplayRequest { replay: "spend".into() };
    let (catalog, replays) = (pair.catalog(1), pair.replays(1));
    let refused = [
        catalog.get_catalog(Request::new(GetCatalogRequest {})).await.err(),
        replays.plan(Request::new(PlanRequest::default())).await.err(),
        replays.start(Request::new(Default::default())).await.err(),
        replays.get(Request::new(replay())).await.err(),
        replays.list(Request::new(ListReplaysRequest::default())).await.err(),
        replays.watch(Request::new(replay())).await.map(|_| ()).err(),
        replays.promote(Request::new(PromoteRequest::default())).await.err(),
        replays.abort(Request::new(Default::default())).await.err(),
        replays.undo(Request::new(UndoRequest::default())).await.err(),
    ];
    for status in refused {
        unavailable(&status.unwrap(), STANDING_BY);
    }

    pair.revoke(0).await;
    pair.assign(1).await;
    assert_eq!(pair.state(1).views().len(), 1, "it knows all that was decided");
    pair.apply(1, &[PAID]).await.unwrap();
    assert_eq!(pair.condition(0).as_deref(), Some(STANDING_BY));
    unavailable(&pair.apply(0, &[ALL]).await.unwrap_err(), STANDING_BY);
    assert!(pair.alive(0) && pair.alive(1));
    let metrics = pair.nodes[0].metrics.encode();
    assert!(metrics.contains("headwater_coordinator_leading 0"), "{metrics}");
    assert!(!metrics.contains("coordinator_view_epoch{"), "{metrics}");

    // A coordinator that ends leaves the lead to the other one.
    let report = pair.nodes[1].tasks.stop(PATIENCE).await;
    assert!(report.is_clean(), "{report:?}");
    assert!(!pair.group.has_joined(1));
    pair.assign(0).await;
    assert_eq!(pair.state(0).replays().len(), 1);
}

/// The process was stopped for a while, and the group went on without it.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_slept_through_its_replacement_writes_nothing_and_fences_nobody() {
    let mut pair = Pair::new().await;
    pair.assign(0).await;
    pair.apply(0, &[ORDERS]).await.unwrap();
    pair.assign(1).await;
    let claims = pair.faults.claims.load(Ordering::SeqCst);

    let written = pair.state(1).position();
    let refused = pair.apply(0, &[ALL]).await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted, "{refused:?}");
    until("it stands by", async || pair.condition(0).as_deref() == Some(STANDING_BY)).await;
    // It has not heard of the hand-over, and asks the group again and again.
    let refusals = pair.group.refusals.load(Ordering::SeqCst);
    until("it asks", async || pair.group.refusals.load(Ordering::SeqCst) > refusals + 1).await;
    assert_eq!(pair.faults.claims.load(Ordering::SeqCst), claims);
    assert_eq!(pair.followed().await.position(), written);
    pair.apply(1, &[ALL]).await.unwrap();
    assert!(pair.alive(0));

    pair.group.lose(0);
    pair.revoke(1).await;
    pair.assign(0).await;
    assert_eq!(pair.state(0).views().len(), 1);
    pair.apply(0, &[PAID]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_that_is_not_elected_any_more_when_the_group_answers_stands_by() {
    let mut pair = Pair::new().await;
    pair.group.silent.store(true, Ordering::SeqCst);
    pair.give_partition(0).await;
    until("it waits for the group", async || {
        pair.condition(0).is_some_and(|why| why.contains("the group does not answer"))
    })
    .await;
    pair.revoke(0).await;
    until("it stands by", async || pair.condition(0).as_deref() == Some(STANDING_BY)).await;
    assert!(pair.alive(0));
    assert_eq!(pair.faults.claims.load(Ordering::SeqCst), 0);
    pair.group.silent.store(false, Ordering::SeqCst);
    pair.assign(0).await;
    pair.apply(0, &[ORDERS]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_goes_on_under_another_leader_in_every_step() {
    async fn story(changes: bool) -> (Vec<Phase>, u64) {
        let mut pair = Pair::new().await;
        pair.assign(0).await;
        pair.apply(0, &[ORDERS, ALL]).await.unwrap();
        ingest(&pair, 6).await;
        let mut processor = Processor::new(pair.log.clone(), pair.data.path().into());
        processor.step().await;
        pair.apply(0, &[PAID]).await.unwrap();
        let (mut leader, mut phases) = (0, Vec::new());
        for wanted in [Phase::Hold, Phase::Retain] {
            if wanted == Phase::Retain {
                let promote = PromoteRequest { replay: "spend".into(), ..Default::default() };
                pair.replays(leader).promote(Request::new(promote)).await.unwrap();
            }
            for step in 0..200 {
                let replay = pair.replay(leader).await;
                if phases.last() != Some(&replay.phase()) {
                    phases.push(replay.phase());
                }
                if replay.phase() == wanted {
                    break;
                }
                assert!(step < 199, "{wanted:?} never came: {replay:?}");
                processor.step().await;
                quiet(&pair.coordinators[leader]).await;
                if changes {
                    pair.revoke(leader).await;
                    leader = 1 - leader;
                    pair.assign(leader).await;
                }
            }
        }
        let state = pair.followed().await;
        assert_eq!(state.position(), pair.state(leader).position());
        // A replay remembers the offset of its record.
        let started = |state: &ControlState| state.replays()["spend-1"].started;
        assert_eq!(started(&state), started(&pair.state(leader)));
        (phases, state.views()["spend"].epoch.0)
    }
    let (straight, changing) = (story(false).await, story(true).await);
    assert_eq!((straight.0.last(), straight.1), (Some(&Phase::Retain), 2));
    assert_eq!((changing.0.last(), changing.1), (Some(&Phase::Retain), 2));
}

/// The stream of orders with another column.
fn longer_orders() -> String {
    ORDERS.replace("ts TIMESTAMP NOT NULL,", "ts TIMESTAMP NOT NULL, x BIGINT,")
}

async fn ingest(pair: &Pair, orders: i64) {
    for user in 0..orders {
        let amount = user % 3;
        let value =
            format!(r#"{{"user_id":{user},"amount":{amount},"ts":"2024-01-01T00:00:00Z"}}"#);
        let mut batch = headwater_log::BatchBuilder::new();
        batch.push(1_704_067_200_000, None, Some(value.as_bytes()), &[]);
        let partition = PartitionId(u32::try_from(user % 2).unwrap());
        let topic = Name::new("orders").unwrap();
        pair.log.append(&topic, partition, batch.build().unwrap()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_away_at_the_start_is_waited_for() {
    let mut pair = Pair::without_coordinators();
    pair.faults.away.store(true, Ordering::SeqCst);
    pair.start().await;
    until("it says why", async || {
        pair.condition(0).is_some_and(|why| why.contains("no broker at kafka:9092"))
    })
    .await;
    let refused = pair.apply(0, &[ORDERS]).await.unwrap_err();
    unavailable(&refused, "no broker at kafka:9092");
    assert!(pair.alive(0));
    pair.faults.away.store(false, Ordering::SeqCst);
    pair.assign(0).await;
    pair.apply(0, &[ORDERS, ALL]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_goes_away_later_ends_nothing_and_is_waited_for() {
    let mut pair = Pair::new().await;
    pair.assign(0).await;
    pair.apply(0, &[ORDERS, ALL]).await.unwrap();
    pair.faults.away.store(true, Ordering::SeqCst);
    // Declaring it asks the log for its topics, which is refused before anything is written.
    let topics = other_stream();
    let refused = pair.apply(0, &[&topics]).await.unwrap_err();
    unavailable(&refused, "no broker");
    // A question to the state alone is answered meanwhile.
    let unknown = pair.replays(0).get(Request::new(GetReplayRequest::default())).await;
    assert_eq!(unknown.err().unwrap().code(), Code::NotFound);
    pair.faults.away.store(false, Ordering::SeqCst);
    pair.apply(0, &[&topics]).await.unwrap();

    // The broker goes away as a record is appended: the topic is claimed anew when it is back.
    let request = pair.request(&[PAID]);
    let mut longer = pair.request(&[&longer_orders()]);
    longer.request_id = "gone".into();
    pair.faults.leaves.store(1, Ordering::SeqCst);
    let gone = pair.send(0, longer);
    let checks = async {
        until("it says why", async || {
            pair.condition(0).is_some_and(|why| why.contains("no broker at kafka:9092"))
        })
        .await;
        unavailable(&pair.send(0, request.clone()).await.unwrap_err(), "no broker");
        pair.faults.away.store(false, Ordering::SeqCst);
    };
    let (gone, ()) = tokio::join!(gone, checks);
    assert_eq!(gone.err().unwrap().code(), Code::Unavailable);
    until("it leads again", async || pair.condition(0).is_none()).await;
    assert!(pair.state(0).effects("gone").is_none(), "what was answered so was not written");
    pair.send(0, request).await.unwrap();
    assert!(pair.alive(0) && pair.alive(1));
    assert_eq!(pair.followed().await.position(), pair.state(0).position());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_of_unknown_outcome_is_looked_up_before_anything_else() {
    let mut pair = Pair::new().await;
    pair.assign(0).await;
    let claims = pair.faults.claims.load(Ordering::SeqCst);

    pair.faults.silent.store(1, Ordering::SeqCst);
    let created = pair.apply(0, &[ORDERS, ALL]).await.unwrap();
    assert_eq!(created.changes.len(), 2, "it was stored, so it is done");
    assert_eq!(pair.faults.claims.load(Ordering::SeqCst), claims + 1);
    assert_eq!(pair.followed().await.views().len(), 1);

    pair.faults.deaf.store(1, Ordering::SeqCst);
    let request = pair.request(&[PAID]);
    let lost = pair.send(0, request.clone()).await.unwrap_err();
    unavailable(&lost, "did not say whether it stored");
    assert_eq!(pair.followed().await.replays().len(), 0, "it was not stored, and never will be");
    pair.send(0, request.clone()).await.unwrap();
    pair.send(0, request).await.unwrap();
    assert_eq!(pair.followed().await.replays().len(), 1, "once");
    assert_eq!(pair.condition(0), None);
    assert_eq!(pair.state(0).position(), pair.followed().await.position());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_outcome_is_not_looked_up_by_a_coordinator_that_was_replaced() {
    let mut pair = Pair::new().await;
    pair.assign(0).await;
    pair.apply(0, &[ORDERS]).await.unwrap();
    // The first one has not heard of it.
    pair.give_partition(1).await;
    until("the other leads", async || pair.condition(1).is_none()).await;
    let claims = pair.faults.claims.load(Ordering::SeqCst);
    pair.faults.deaf.store(1, Ordering::SeqCst);
    pair.apply(0, &[ALL]).await.unwrap_err();
    until("it stands by", async || pair.condition(0).as_deref() == Some(STANDING_BY)).await;
    assert_eq!(pair.faults.claims.load(Ordering::SeqCst), claims);
    pair.apply(1, &[ALL]).await.unwrap();
}

/// The serving shards had stopped, which counts as mute. Then another processor took them over, and
/// they go on.
#[tokio::test(flavor = "multi_thread")]
async fn no_swap_rests_on_an_error_that_was_taken_back() {
    let mut pair = Pair::new().await;
    pair.assign(0).await;
    pair.apply(0, &[ORDERS, ALL]).await.unwrap();
    ingest(&pair, 4).await;
    let mut processor = Processor::new(pair.log.clone(), pair.data.path().into());
    processor.step().await;
    pair.apply(0, &[PAID]).await.unwrap();
    let serving = pair.replay(0).await.old_generation.parse().unwrap();
    processor.failing = Some((serving, "disk".into()));
    for _ in 0..100 {
        if pair.replay(0).await.phase() == Phase::Hold {
            break;
        }
        processor.step().await;
        quiet(&pair.coordinators[0]).await;
    }
    assert_eq!(pair.replay(0).await.verdict(), Verdict::Inconclusive);

    pair.faults.stale.store(true, Ordering::SeqCst);
    processor.failing = None;
    processor.restart().await;
    processor.step().await;
    let promote = PromoteRequest { replay: "spend".into(), ..Default::default() };
    pair.replays(0).promote(Request::new(promote)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1_300)).await;
    assert_eq!(pair.replay(0).await.phase(), Phase::Commit, "it does not know all that was said");
    pair.faults.stale.store(false, Ordering::SeqCst);
    quiet(&pair.coordinators[0]).await;
    let waits = pair.replay(0).await;
    assert_eq!(
        waits.phase(),
        Phase::Commit,
        "the shards run, and have not said that they are mute"
    );
    assert!(waits.waiting_for.contains("to stop publishing"), "{}", waits.waiting_for);
    for _ in 0..100 {
        if pair.replay(0).await.phase() == Phase::Retain {
            break;
        }
        processor.step().await;
        quiet(&pair.coordinators[0]).await;
    }
    let state = pair.followed().await;
    let served = state.generations().values().find(|entry| entry.role == Role::Serving).unwrap();
    assert_ne!(served.id, serving);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_that_waits_does_not_hold_up_the_hand_over() {
    for hung in [true, false] {
        let mut pair = Pair::new().await;
        pair.assign(0).await;
        pair.apply(0, &[ORDERS]).await.unwrap();
        let mut request = pair.request(&[&longer_orders()]);
        request.request_id = "stuck".into();
        pair.faults.hung.store(usize::from(hung), Ordering::SeqCst);
        pair.faults.leaves.store(usize::from(!hung), Ordering::SeqCst);
        {
            let mut answer = std::pin::pin!(pair.send(0, request));
            let tries = until("it tries", async || match hung {
                true => pair.faults.hung.load(Ordering::SeqCst) == 0,
                false => pair.condition(0).is_some(),
            });
            tokio::select! {
                answer = &mut answer => panic!("answered before the hand-over: {answer:?}"),
                () = tries => {}
            }
            pair.revoke(0).await;
            // The leader gives the append up first; else the hand-over ends by its own time limit.
            let answer = answer.now_or_never().expect("the append is not waited for any more");
            unavailable(&answer.unwrap_err(), "hands over");
        }
        pair.faults.away.store(false, Ordering::SeqCst);
        pair.assign(1).await;
        assert!(pair.state(1).effects("stuck").is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_is_alone_leads_from_the_start_and_never_stands_by() {
    let data = tempfile::tempdir().unwrap();
    let node = Node::new(Arc::new(MemoryLog::new()), data.path(), "test");
    let coordinator = Coordinator::start(config(), &node).await.unwrap();
    let mut leadership = coordinator.context.leadership.clone();
    assert_eq!(*leadership.borrow_and_update(), Leadership::Leading);
    assert!(node.health.is_ready());
    quiet(&coordinator).await;
    assert!(!leadership.has_changed().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_topic_that_would_lose_its_records_is_refused_with_what_is_wrong() {
    use headwater_log::{Cleanup, TopicSpec};
    let log: Arc<dyn Log> = Arc::new(MemoryLog::new());
    let topic = Name::new(headwater_control::CONTROL_TOPIC).unwrap();
    let spec = TopicSpec { partitions: 1, cleanup: Cleanup::Expire };
    log.create_topic(&topic, spec).await.unwrap();
    let data = tempfile::tempdir().unwrap();
    let node = Node::new(log, data.path(), "test");
    let error = format!("{:#}", Coordinator::start(config(), &node).await.err().unwrap());
    for part in ["headwater.control", "1 partition that deletes old records", "retention.ms=-1"] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(node.log.ends(&topic, PartitionId(0)).await.unwrap().end, Offset::ZERO);
}
