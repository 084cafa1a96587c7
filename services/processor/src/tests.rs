//! The processor as a whole, with the coordinator's decisions made by hand.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use headwater_control::{
    Action, CONTROL_TOPIC, ControlState, LogEnds, Reach, ReplayId, StatusBoard, decide,
};
use headwater_log::{BatchBuilder, Log};
use headwater_proto::{
    common::v1::PartitionOffset,
    control::v1::{
        ControlRecord, DiffRecorded, DiffReport, Generation, GenerationRetired, Phase,
        ReplayOptions, ReplayStarted, StreamDeclared, SwapRequested, Verdict, ViewCreated,
        control_record::Event,
    },
    status::v1::ShardStatus,
};
use headwater_state::{ShardReader, digest, layout};
use headwater_types::{ENGINE_VERSION, GenerationId, Offset, PartitionId};
use prost::Message;
use tempfile::TempDir;

use super::*;
use crate::testing::{P0, STREAM_SQL, TestLog, VIEW_SQL, generation, name};

const PATIENCE: Duration = Duration::from_secs(60);

fn built(number: u64) -> Generation {
    Generation {
        id: generation(number).to_string(),
        view: "spend".into(),
        stream: "orders".into(),
        view_sql: headwater_sql::parse_view(VIEW_SQL).unwrap().sql,
        stream_sql: headwater_sql::parse_stream(STREAM_SQL).unwrap().sql,
        floor: vec![PartitionOffset { partition: 0, offset: 0 }],
        engine_version: ENGINE_VERSION,
    }
}

fn declared() -> Event {
    Event::StreamDeclared(StreamDeclared { name: "orders".into(), sql: built(1).stream_sql })
}

fn created(number: u64) -> Event {
    Event::ViewCreated(ViewCreated { generation: Some(built(number)) })
}

fn replay(number: u64, replaces: u64) -> Event {
    Event::ReplayStarted(ReplayStarted {
        replay_id: "spend-1".into(),
        generation: Some(built(number)),
        replaces: generation(replaces).to_string(),
        options: Some(ReplayOptions { promote: true, retain_ms: 1, ..ReplayOptions::default() }),
    })
}

fn swap(number: u32, from: u64, to: u64, undo: bool) -> Event {
    Event::SwapRequested(SwapRequested {
        swap_id: format!("spend-1-s{number}"),
        view: "spend".into(),
        from: generation(from).to_string(),
        to: generation(to).to_string(),
        replay_id: "spend-1".into(),
        undo,
        reason: String::new(),
    })
}

/// A process: a node with a processor, on a log and a directory that outlive it.
struct Process {
    node: Node,
}

impl Process {
    async fn start(log: &Arc<TestLog>, data: &Path) -> Self {
        let node = Node::new(log.clone(), data, "test");
        Processor::start(Config::default(), &node).await.unwrap();
        Self { node }
    }

    async fn stop(self) {
        let report = self.node.tasks.stop(Duration::from_secs(20)).await;
        assert!(report.is_clean(), "{report:?}");
    }
}

/// The coordinator, reduced to its decisions.
struct World {
    log: Arc<TestLog>,
    dir: TempDir,
    state: ControlState,
}

impl World {
    fn new() -> Self {
        let log = TestLog::new();
        headwater_service::follow::create_topics(&*log).unwrap();
        Self { log, dir: TempDir::new().unwrap(), state: ControlState::default() }
    }

    async fn start(&self) -> Process {
        Process::start(&self.log, self.dir.path()).await
    }

    fn append(&mut self, event: Event) {
        let record = ControlRecord { at_ms: 10, request_id: String::new(), event: Some(event) };
        let mut batch = BatchBuilder::new();
        batch.push(0, None, Some(&record.encode_to_vec()), &[]);
        let append = self.log.append(&name(CONTROL_TOPIC), P0, batch.build().unwrap());
        let offset = futures::executor::block_on(append).unwrap();
        self.state.fold(offset, &record).unwrap();
    }

    fn board(&self) -> StatusBoard {
        reports::read_board(&*self.log).unwrap()
    }

    fn status(&self, number: u64) -> Option<ShardStatus> {
        self.board().get(generation(number), P0).cloned()
    }

    fn phase(&self) -> Phase {
        self.state.replays()[&ReplayId::from("spend-1")].phase
    }

    fn end(&self) -> Offset {
        self.log.ends(&name("orders"), P0).unwrap().end
    }

    /// Decides and does it.
    fn coordinate(&mut self) {
        let mut ends = LogEnds::default();
        let reach = self.log.ends(&name("orders"), P0).unwrap();
        ends.set(&name("orders"), P0, Reach { start: reach.start, end: reach.end });
        // Retention ends by hand.
        for action in decide(&self.state, &self.board(), &ends, 0) {
            match action {
                Action::Append(record) => self.append(record.event.unwrap()),
                Action::Diff { replay_id, .. } => self.append(Event::DiffRecorded(DiffRecorded {
                    replay_id: replay_id.to_string(),
                    report: Some(DiffReport::default()),
                    verdict: Verdict::Pass.into(),
                })),
            }
        }
    }

    /// Coordinates until it is so.
    async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !done(self) {
            assert!(
                begun.elapsed() < PATIENCE,
                "{what} does not come: {:?}, {:?}",
                self.board().shards().collect::<Vec<_>>(),
                self.state.replays()
            );
            self.coordinate();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn caught_up(&self, number: u64) -> bool {
        self.status(number).is_some_and(|status| status.position == self.end().0)
    }

    fn digest(&self, number: u64) -> [u8; 32] {
        let identity = Identity { generation: generation(number), partition: P0 };
        let path = layout::shard_dir(self.dir.path(), identity.generation, P0);
        let scratch = self.dir.path().join(format!("scratch-{number}"));
        let reader = ShardReader::open_live(&path, &scratch, &identity).unwrap();
        digest(reader.view()).unwrap()
    }

    fn letters(&self) -> Vec<(GenerationId, String)> {
        let letters = self.log.dead_letters();
        letters.into_iter().map(|(generation, _, value)| (generation, value)).collect()
    }
}

/// Events that keep coming while something else happens.
struct Traffic {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Traffic {
    fn start(log: &Arc<TestLog>) -> Self {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (log, stopped, counted) = (log.clone(), stop.clone(), count.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                let next = counted.load(Ordering::Acquire);
                log.orders(next..next + 20);
                counted.store(next + 20, Ordering::Release);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self { stop, count, thread }
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap();
        self.count.load(Ordering::Acquire)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_is_promoted_and_undone_through_restarts_and_every_dead_letter_leaves_once() {
    let mut world = World::new();
    world.append(declared());
    world.append(created(1));
    let traffic = Traffic::start(&world.log);
    let mut process = world.start().await;
    world
        .until("live work", |world| world.status(1).is_some_and(|status| status.position > 100))
        .await;

    world.append(replay(2, 1));
    world.until("ALIGN", |world| world.phase() == Phase::Align).await;
    process.stop().await;
    process = world.start().await;
    world.until("COMMIT", |world| world.phase() == Phase::Commit).await;
    process.stop().await;
    process = world.start().await;
    world.until("RETAIN", |world| world.phase() == Phase::Retain).await;
    assert_eq!(world.state.views()["spend"].serving, generation(2));

    let promoted_at = world.end();
    world
        .until("outputs of the new one", |world| {
            world.status(2).is_some_and(|status| status.published > promoted_at.0 + 100)
        })
        .await;
    world.append(swap(2, 2, 1, true));
    process.stop().await;
    process = world.start().await;
    world.until("UNDONE", |world| world.phase() == Phase::Undone).await;

    let count = traffic.stop();
    world.until("the end", |world| world.caught_up(1) && world.caught_up(2)).await;
    world
        .until("all outputs", |world| {
            world.status(1).is_some_and(|status| status.published == count)
        })
        .await;
    assert_eq!(world.digest(1), world.digest(2), "law 2: live and replayed, byte for byte");
    let tallies = world.status(1).unwrap().tallies.unwrap();
    assert_eq!(
        (tallies.applied + tallies.late, tallies.dead_lettered),
        (count / 2, count / 2),
        "law 5"
    );

    let letters = world.letters();
    assert!(letters.iter().any(|letter| letter.0 == generation(2)), "both have owned outputs");
    let mut values: Vec<_> = letters.into_iter().map(|letter| letter.1).collect();
    values.sort();
    let mut expected: Vec<_> =
        (0..count).step_by(2).map(|number| format!("bad {number}")).collect();
    expected.sort();
    assert_eq!(values, expected, "each once");

    let state = layout::state_dir(world.dir.path(), generation(2));
    assert!(state.exists());
    world.append(Event::GenerationRetired(GenerationRetired {
        generation: generation(2).to_string(),
        reason: String::new(),
    }));
    world.until("deletion", |world| !state.exists() && world.status(2).is_none()).await;
    assert!(!layout::checkpoints_dir(world.dir.path(), generation(2)).exists());
    assert!(world.status(1).is_some());
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_stays_muted_where_it_was_muted_through_a_restart() {
    let mut world = World::new();
    world.append(declared());
    world.append(created(1));
    world.log.orders(0..100);
    let process = world.start().await;
    world.append(replay(2, 1));
    world.until("HOLD", |world| world.phase() == Phase::Hold).await;
    // By hand from here on: nobody swaps.
    world.append(swap(1, 1, 2, false));
    let wait = async |world: &World, position: u64| {
        let begun = Instant::now();
        while !world
            .status(1)
            .is_some_and(|status| status.muted_for == "spend-1-s1" && status.position == position)
        {
            assert!(begun.elapsed() < PATIENCE, "{:?}", world.status(1));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    wait(&world, 100).await;
    assert_eq!(world.status(1).unwrap().muted_at, 100);
    world.log.orders(100..150);
    wait(&world, 150).await;
    process.stop().await;
    world.log.orders(150..200);
    let process = world.start().await;
    wait(&world, 200).await;
    let status = world.status(1).unwrap();
    assert_eq!((status.muted_at, status.published), (100, 100), "it may be the fence by now");
    assert_eq!(world.letters().len(), 50);
    world.until("RETAIN", |world| world.phase() == Phase::Retain).await;
    assert_eq!(world.state.output_windows(generation(2), P0)[0].from, Offset(100));
    world
        .until("outputs", |world| world.status(2).is_some_and(|status| status.published == 200))
        .await;
    let owners =
        |number| world.letters().iter().filter(|letter| letter.0 == generation(number)).count();
    assert_eq!((owners(1), owners(2)), (50, 50));
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_cannot_go_on_says_so_and_the_others_go_on() {
    let mut world = World::new();
    world.append(declared());
    world.append(created(1));
    world.log.orders(0..100);
    let process = world.start().await;
    world.until("live work", |world| world.caught_up(1)).await;
    assert!(process.node.health.is_ready());

    world.log.trim(&name("orders"), P0, Offset(50)).unwrap();
    world.append(replay(2, 1));
    let begun = Instant::now();
    while world.status(2).is_none_or(|status| status.error.is_empty()) {
        assert!(begun.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let error = world.status(2).unwrap().error;
    assert!(error.contains("records 0 to 50 of orders[0] were trimmed"), "{error}");
    assert!(!process.node.health.is_ready());
    let stopped = r#"headwater_processor_shard_stopped{view="spend",generation="0000000000000002",partition="0"} 1"#;
    assert!(process.node.metrics.encode().contains(stopped));
    let text = process.node.metrics.encode();
    assert!(text.contains(r#"headwater_processor_lag_records{view="spend",generation="0000000000000001",partition="0"} 0"#), "{text}");

    world.log.orders(100..120);
    world.until("live work", |world| world.caught_up(1)).await;
    world.until("the end of the replay", |world| world.phase() == Phase::Failed).await;
    let gone = layout::state_dir(world.dir.path(), generation(2));
    world.until("deletion", |world| !gone.exists() && world.status(2).is_none()).await;
    world.until("readiness", |_| process.node.health.is_ready()).await;
    process.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generation_of_another_engine_is_refused_with_what_to_do() {
    let mut world = World::new();
    world.append(declared());
    let mut other = built(1);
    other.engine_version = ENGINE_VERSION + 1;
    world.append(Event::ViewCreated(ViewCreated { generation: Some(other) }));
    let process = world.start().await;
    let begun = Instant::now();
    while world.status(1).is_none_or(|status| status.error.is_empty()) {
        assert!(begun.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let error = world.status(1).unwrap().error;
    assert!(error.contains("start a replay of view spend"), "{error}");
    assert!(!layout::shard_dir(world.dir.path(), generation(1), PartitionId(0)).exists());
    process.stop().await;
}
