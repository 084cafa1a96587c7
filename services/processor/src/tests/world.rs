//! Processors, a log that outlives them, and a coordinator that is reduced to its decisions.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use headwater_control::{
    Action, CONTROL_TOPIC, ControlState, LogEnds, Reach, ReplayId, STATUS_TOPIC, StatusBoard,
    decide,
};
use headwater_log::{BatchBuilder, Log, block_on};
use headwater_proto::{
    common::v1::PartitionOffset,
    control::v1::{
        ControlRecord, DiffRecorded, DiffReport, Generation, Phase, ReplayOptions, ReplayStarted,
        StreamDeclared, SwapRequested, Verdict, ViewCreated, control_record::Event,
    },
    status::v1::ShardStatus,
};
use headwater_service::Node;
use headwater_state::{Identity, ShardReader, digest, layout};
use headwater_types::{ENGINE_VERSION, GenerationId, Name, Offset, PartitionId};
use prost::Message;
use tempfile::TempDir;

use crate::{
    Processor,
    blocking::read_until,
    config::Config,
    testing::{
        Groups, P0, PATIENCE, StatusAt, TestLog, VIEW_SQL, generation, name, read_board, stream_sql,
    },
};

pub(crate) fn built(number: u64, partitions: u32) -> Generation {
    let floor = (0..partitions).map(|partition| PartitionOffset { partition, offset: 0 }).collect();
    Generation {
        id: generation(number).to_string(),
        view: "spend".into(),
        stream: "orders".into(),
        view_sql: headwater_sql::parse_view(VIEW_SQL).unwrap().sql,
        stream_sql: headwater_sql::parse_stream(&stream_sql(partitions)).unwrap().sql,
        floor,
        engine_version: ENGINE_VERSION,
    }
}

pub(crate) fn swap(number: u32, from: u64, to: u64, undo: bool) -> Event {
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
pub(crate) struct Process {
    pub(crate) node: Node,
    pub(crate) processor: Processor,
    pub(crate) log: Arc<TestLog>,
    pub(crate) data: PathBuf,
}

impl Process {
    pub(crate) async fn stop(self) {
        let report = self.node.tasks.stop(PATIENCE).await;
        assert!(report.is_clean(), "{report:?}");
    }

    pub(crate) fn metric(&self, line: &str) -> f64 {
        let text = self.node.metrics.encode();
        let found = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
        found.map_or(0.0, |number| number.parse().unwrap())
    }

    /// The digest of the state on this process's disk.
    pub(crate) fn digest(&self, number: u64, partition: PartitionId) -> [u8; 32] {
        digest_of(&self.data, generation(number), partition)
    }
}

pub(crate) fn digest_of(data: &Path, generation: GenerationId, partition: PartitionId) -> [u8; 32] {
    let identity = Identity { generation, partition };
    let path = layout::shard_dir(data, generation, partition);
    let scratch = TempDir::new().unwrap();
    let reader = ShardReader::open_live(&path, scratch.path(), &identity).unwrap();
    digest(reader.view()).unwrap()
}

/// Waits until the condition holds, while the coordinator does nothing.
pub(crate) async fn within_patience(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "{what} does not come");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Settings with short times.
pub(crate) fn config() -> Config {
    Config {
        report_interval: Duration::from_millis(20),
        session_guard: Duration::from_millis(500),
        checkpoint_interval: Duration::from_millis(100),
        topic_interval: Duration::from_millis(50),
        hand_over_timeout: Duration::from_secs(30),
        ..Config::default()
    }
}

/// The coordinator, reduced to its decisions, and all that outlives the processes.
pub(crate) struct World {
    pub(crate) log: Arc<TestLog>,
    pub(crate) dir: TempDir,
    pub(crate) state: ControlState,
    pub(crate) partitions: u32,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(1)
    }

    pub(crate) fn with(partitions: u32) -> Self {
        let log = TestLog::with(partitions);
        block_on(headwater_service::follow::create_topics(&*log)).unwrap();
        let dir = TempDir::new().unwrap();
        Self { log, dir, state: ControlState::default(), partitions }
    }

    /// A process that has the log for itself.
    pub(crate) async fn start(&self) -> Process {
        let node = Node::new(self.log.clone(), self.dir.path(), "test");
        let processor = Processor::start(Config::default(), &node).await.unwrap();
        Process { node, processor, log: self.log.clone(), data: self.dir.path().into() }
    }

    pub(crate) fn store(&self) -> String {
        format!("file://{}", self.dir.path().join("store").display())
    }

    pub(crate) fn data_of(&self, process: &str) -> PathBuf {
        self.dir.path().join(process)
    }

    /// One process of several.
    pub(crate) async fn join(
        &self,
        groups: &Groups,
        process: &'static str,
        store: bool,
        config: Config,
    ) -> Process {
        self.join_over(self.log.another(), groups, process, store, config).await
    }

    /// One process of several, over this view of the log.
    pub(crate) async fn join_over(
        &self,
        log: Arc<TestLog>,
        groups: &Groups,
        process: &'static str,
        store: bool,
        config: Config,
    ) -> Process {
        let data = self.data_of(process);
        let mut node = Node::new(log.clone(), &data, process);
        node.membership = groups.of(process, &log);
        node.checkpoints = store.then(|| self.store());
        let processor = Processor::start(config, &node).await.unwrap();
        Process { node, processor, log, data }
    }

    pub(crate) fn declare(&mut self) {
        let sql = built(1, self.partitions).stream_sql;
        self.append(Event::StreamDeclared(StreamDeclared { name: "orders".into(), sql }));
    }

    pub(crate) fn create(&mut self, number: u64) {
        let generation = Some(built(number, self.partitions));
        self.append(Event::ViewCreated(ViewCreated { generation }));
    }

    pub(crate) fn replay(&mut self, number: u64, replaces: u64) {
        self.append(Event::ReplayStarted(ReplayStarted {
            replay_id: "spend-1".into(),
            generation: Some(built(number, self.partitions)),
            replaces: generation(replaces).to_string(),
            options: Some(ReplayOptions {
                promote: true,
                retain_ms: 1,
                ..ReplayOptions::default()
            }),
        }));
    }

    pub(crate) fn append(&mut self, event: Event) {
        let record = ControlRecord { at_ms: 10, event: Some(event), ..ControlRecord::default() };
        let mut batch = BatchBuilder::new();
        batch.push(0, None, Some(&record.encode_to_vec()), &[]);
        let append = self.log.memory.append(&name(CONTROL_TOPIC), P0, batch.build().unwrap());
        let offset = block_on(append).unwrap().first();
        self.state.fold(offset, &record).unwrap();
    }

    pub(crate) fn board(&self) -> StatusBoard {
        read_board(&self.log.memory)
    }

    pub(crate) fn status(&self, number: u64) -> Option<ShardStatus> {
        self.status_of(number, P0)
    }

    pub(crate) fn status_of(&self, number: u64, partition: PartitionId) -> Option<ShardStatus> {
        self.board().get(generation(number), partition).cloned()
    }

    pub(crate) fn phase(&self) -> Phase {
        self.state.replays()[&ReplayId::from("spend-1")].phase
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = PartitionId> + use<> {
        (0..self.partitions).map(PartitionId)
    }

    pub(crate) fn end(&self) -> Offset {
        self.end_of(P0)
    }

    pub(crate) fn end_of(&self, partition: PartitionId) -> Offset {
        block_on(self.log.memory.ends(&name("orders"), partition)).unwrap().end
    }

    /// Decides as a coordinator would, and does it.
    pub(crate) fn coordinate(&mut self) {
        let mut ends = LogEnds::default();
        let orders: Name = name("orders");
        for partition in self.all() {
            let reach = block_on(self.log.memory.ends(&orders, partition)).unwrap();
            ends.set(&orders, partition, Reach { start: reach.start, end: reach.end });
        }
        // At time 0, so that no retention ends.
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

    /// Coordinates until the condition holds.
    pub(crate) async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !done(self) {
            assert!(
                begun.elapsed() < PATIENCE,
                "{what} does not come: {:#?}, {:?}",
                self.board().shards().collect::<Vec<_>>(),
                self.state.replays()
            );
            self.coordinate();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn caught_up(&self, number: u64) -> bool {
        self.all().all(|partition| {
            self.status_of(number, partition)
                .is_some_and(|status| status.position == self.end_of(partition).0)
        })
    }

    /// Whether all outputs up to the end are in their topic.
    pub(crate) fn published(&self, number: u64) -> bool {
        self.all().all(|partition| {
            self.status_of(number, partition)
                .is_some_and(|status| status.published == self.end_of(partition).0)
        })
    }

    pub(crate) fn digest(&self, number: u64) -> [u8; 32] {
        digest_of(self.dir.path(), generation(number), P0)
    }

    pub(crate) fn letters(&self) -> Vec<(GenerationId, String)> {
        let letters = self.log.dead_letters();
        letters.into_iter().map(|(generation, _, value)| (generation, value)).collect()
    }

    /// Every status of the shard that was ever appended, in order, with its offset.
    pub(crate) fn status_history(&self, number: u64, partition: PartitionId) -> Vec<StatusAt> {
        let topic = name(STATUS_TOPIC);
        let end = block_on(self.log.memory.ends(&topic, P0)).unwrap().end;
        let mut history = Vec::new();
        read_until(&self.log.memory, &topic, P0, Offset::ZERO, end, |record| {
            let Some(value) = record.value else { return };
            let status = ShardStatus::decode(value).unwrap();
            if status.generation == generation(number).to_string()
                && status.partition == partition.0
            {
                history.push((record.offset.0, status));
            }
        })
        .unwrap();
        history
    }

    /// The names of the manifests for hand-overs that the store has.
    pub(crate) fn manifests(&self, number: u64, partition: PartitionId) -> BTreeSet<String> {
        let generation = generation(number).to_string();
        let shard = self.dir.path().join("store").join(generation).join(partition.to_string());
        let entries = std::fs::read_dir(shard.join("positions")).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
    }

    /// Whether the store has a checkpoint of the shard at this position.
    pub(crate) fn stored(&self, number: u64, partition: PartitionId, position: u64) -> bool {
        let name = format!("{position:020}-");
        self.manifests(number, partition).iter().any(|manifest| manifest.starts_with(&name))
    }
}

/// Events that keep coming while something else happens, the same number to each partition.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

/// The first number of a partition's events.
pub(crate) fn base(partition: PartitionId) -> u64 {
    u64::from(partition.0) * 1_000_000
}

impl Traffic {
    pub(crate) fn start(log: &Arc<TestLog>, partitions: u32) -> Self {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (log, stopped, counted) = (log.clone(), stop.clone(), count.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                let next = counted.load(Ordering::Acquire);
                for partition in (0..partitions).map(PartitionId) {
                    let from = base(partition) + next;
                    log.orders_to(partition, from..from + 20);
                }
                counted.store(next + 20, Ordering::Release);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self { stop, count, thread }
    }

    /// Returns how many there were in each partition.
    pub(crate) fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Release);
        self.thread.join().unwrap();
        self.count.load(Ordering::Acquire)
    }
}

/// The dead letters that so many events in each partition lead to.
pub(crate) fn expected_letters(partitions: u32, count: u64) -> Vec<String> {
    let of = |partition| {
        let base = base(PartitionId(partition));
        (base..base + count).step_by(2).map(|number| format!("bad {number}"))
    };
    let mut letters: Vec<_> = (0..partitions).flat_map(of).collect();
    letters.sort();
    letters
}
