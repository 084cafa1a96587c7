//! A coordinator on a log in memory, and a small processor that is driven by hand.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use headwater_control::{CheckpointAt, CheckpointId, STATUS_TOPIC, ShardDuty, status_key};
use headwater_engine::Shard;
use headwater_log::{BatchBuilder, Log, MemoryLog};
use headwater_proto::{
    control::v1::{
        AbortRequest, ApplyRequest, ApplyResponse, DefinitionFile, GetReplayRequest, Phase,
        PromoteRequest, Replay, ReplayOptions, ResumeRequest, UndoRequest,
        catalog_service_server::CatalogService as _, replay_service_server::ReplayService as _,
    },
    status::v1::{Checkpoint, ShardStatus},
};
use headwater_service::{Node, follow::ControlView};
use headwater_state::{Identity, Options, Purpose, ShardDb, Store, layout};
use headwater_types::{Clock, GenerationId, Name, Offset, PartitionId};
use prost::Message as _;
use tonic::{Request, Status};

use crate::{
    Config, Coordinator, api::catalog_service::CatalogApi, api::replay_service::ReplayApi,
};

pub(super) const ORDERS: &str = "CREATE STREAM orders (
    user_id BIGINT NOT NULL, amount DOUBLE, ts TIMESTAMP NOT NULL,
    WATERMARK FOR ts AS ts - INTERVAL '5 seconds'
) WITH (topic = 'orders', format = 'json', key = 'user_id', partitions = 2);";

/// Counts every order.
pub(super) const ALL: &str = "CREATE MATERIALIZED VIEW spend WITH (retention = 'forever') AS
    SELECT user_id, count(*) AS orders, sum(amount) AS spend FROM orders GROUP BY user_id EMIT ON UPDATE;";

/// Counts only orders that cost something.
pub(super) const PAID: &str = "CREATE MATERIALIZED VIEW spend WITH (retention = 'forever') AS
    SELECT user_id, count(*) AS orders, sum(amount) AS spend FROM orders WHERE amount > 0 GROUP BY user_id
    EMIT ON UPDATE;";

pub(super) const PARTITIONS: u32 = 2;

/// A test fails after this time. No machine is so slow.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Default)]
pub(super) struct HandClock(AtomicI64);

impl Clock for HandClock {
    fn now(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed).unsigned_abs())
    }
}

pub(super) struct Cluster {
    pub(super) log: Arc<dyn Log>,
    pub(super) clock: Arc<HandClock>,
    pub(super) data: tempfile::TempDir,
    pub(super) node: Node,
    pub(super) coordinator: Coordinator,
    pub(super) processor: Processor,
    store: Option<String>,
    requests: usize,
}

pub(super) fn config() -> Config {
    Config { decide_every: Duration::from_millis(5), ..Config::default() }
}

impl Cluster {
    pub(super) async fn new() -> Self {
        Self::with_store(None).await
    }

    /// The coordinator knows this store of checkpoints.
    pub(super) async fn with_store(store: Option<&str>) -> Self {
        Self::on(Arc::new(MemoryLog::new()), store).await
    }

    pub(super) async fn on(log: Arc<dyn Log>, store: Option<&str>) -> Self {
        let (clock, data) =
            (Arc::new(HandClock(AtomicI64::new(1_000))), tempfile::tempdir().unwrap());
        let store = store.map(str::to_owned);
        let (node, coordinator) = start(&log, &clock, &data, store.clone()).await;
        let processor = Processor::new(log.clone(), data.path().into());
        Self { log, clock, data, node, coordinator, processor, store, requests: 0 }
    }

    pub(super) fn wait_ms(&self, millis: i64) {
        self.clock.0.fetch_add(millis, Ordering::Relaxed);
    }

    /// The coordinator dies, and another one takes over.
    pub(super) async fn restart(&mut self) {
        assert!(self.node.tasks.stop(PATIENCE).await.is_clean());
        (self.node, self.coordinator) =
            start(&self.log, &self.clock, &self.data, self.store.clone()).await;
    }

    /// Another coordinator takes over while this one still runs; returns why the first one ended.
    pub(super) async fn take_over(&mut self) -> String {
        let (node, coordinator) =
            start(&self.log, &self.clock, &self.data, self.store.clone()).await;
        let old = std::mem::replace(&mut self.node, node);
        let old_coordinator = std::mem::replace(&mut self.coordinator, coordinator);
        let refused = old_coordinator
            .catalog_api()
            .apply(Request::new(ApplyRequest {
                files: files(&[&other_stream()]),
                ..ApplyRequest::default()
            }))
            .await
            .unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Aborted, "{refused:?}");
        old.tasks.wait().await;
        old.tasks.failure().unwrap().reason
    }

    pub(super) fn catalog(&self) -> CatalogApi {
        self.coordinator.catalog_api()
    }

    pub(super) fn replays(&self) -> ReplayApi {
        self.coordinator.replay_api()
    }

    fn request_id(&mut self) -> String {
        self.requests += 1;
        format!("r{}", self.requests)
    }

    pub(super) async fn apply(&mut self, sql: &[&str]) -> Result<ApplyResponse, Status> {
        self.apply_with(sql, ReplayOptions::default()).await
    }

    pub(super) async fn apply_with(
        &mut self,
        sql: &[&str],
        options: ReplayOptions,
    ) -> Result<ApplyResponse, Status> {
        let request_id = self.request_id();
        let request =
            ApplyRequest { files: files(sql), request_id, options: Some(options), dry_run: false };
        Ok(self.catalog().apply(Request::new(request)).await?.into_inner())
    }

    pub(super) async fn promote(
        &mut self,
        replay: &str,
        accept_failed: bool,
    ) -> Result<Replay, Status> {
        let (replay, reason, request_id) = (replay.into(), "looks right".into(), self.request_id());
        let request = PromoteRequest { replay, accept_failed, reason, request_id };
        Ok(self.replays().promote(Request::new(request)).await?.into_inner())
    }

    pub(super) async fn resume(&mut self, replay: &str, id: &str) -> Result<Replay, Status> {
        let (replay, reason, request_id) = (replay.into(), "go on".into(), id.into());
        let request = ResumeRequest { replay, reason, request_id };
        Ok(self.replays().resume(Request::new(request)).await?.into_inner())
    }

    pub(super) async fn abort(&mut self, replay: &str) -> Result<Replay, Status> {
        let (replay, reason, request_id) = (replay.into(), "not this".into(), self.request_id());
        Ok(self
            .replays()
            .abort(Request::new(AbortRequest { replay, reason, request_id }))
            .await?
            .into_inner())
    }

    pub(super) async fn undo(&mut self, view: &str) -> Result<Replay, Status> {
        let (view, reason, request_id) = (view.into(), "wrong after all".into(), self.request_id());
        Ok(self
            .replays()
            .undo(Request::new(UndoRequest { view, reason, request_id }))
            .await?
            .into_inner())
    }

    pub(super) async fn replay(&self, replay: &str) -> Replay {
        let request = Request::new(GetReplayRequest { replay: replay.into() });
        self.replays().get(request).await.unwrap().into_inner()
    }

    /// Appends orders: user, amount.
    pub(super) async fn ingest(&self, orders: &[(i64, f64)]) {
        for (user, amount) in orders {
            let value =
                format!(r#"{{"user_id":{user},"amount":{amount},"ts":"2024-01-01T00:00:00Z"}}"#);
            let mut batch = BatchBuilder::new();
            batch.push(
                1_704_067_200_000,
                Some(user.to_string().as_bytes()),
                Some(value.as_bytes()),
                &[],
            );
            let partition = PartitionId((user.unsigned_abs() % u64::from(PARTITIONS)) as u32);
            self.log
                .append(&Name::new("orders").unwrap(), partition, batch.build().unwrap())
                .await
                .unwrap();
        }
    }

    /// Waits until the coordinator has done what it can.
    pub(super) async fn quiet(&self) {
        quiet(&self.coordinator).await;
    }

    /// Lets the processor work until the replay is in this phase.
    pub(super) async fn until(&mut self, replay: &str, phase: Phase) -> Replay {
        self.until_it(replay, |found| found.phase() == phase).await
    }

    /// Lets the processor work until the replay is as wanted.
    pub(super) async fn until_it(
        &mut self,
        replay: &str,
        wanted: impl Fn(&Replay) -> bool,
    ) -> Replay {
        for _ in 0..200 {
            let found = self.replay(replay).await;
            if wanted(&found) {
                return found;
            }
            self.processor.step().await;
            self.quiet().await;
        }
        panic!("it does not come to what is waited for: {:?}", self.replay(replay).await);
    }
}

/// Waits until this coordinator, which leads, has seen what the shards have reported, and has
/// nothing left to do: no step to take, and no comparison that runs.
pub(super) async fn quiet(coordinator: &Coordinator) {
    let context = &coordinator.context;
    let topic = Name::new(STATUS_TOPIC).unwrap();
    let end = context.log.ends(&topic, PartitionId(0)).await.unwrap().end;
    let waits = async {
        context.view.wait_board(end).await.unwrap();
        let mut rounds = context.idle_rounds.subscribe();
        let seen = *rounds.borrow_and_update();
        // One round may have begun before the board was complete.
        rounds.wait_for(|round| *round >= seen + 2).await.unwrap();
    };
    tokio::time::timeout(PATIENCE, waits).await.expect("the coordinator always has more to do");
}

pub(super) fn other_stream() -> String {
    ORDERS.replace("orders", "others")
}

async fn start(
    log: &Arc<dyn Log>,
    clock: &Arc<HandClock>,
    data: &tempfile::TempDir,
    store: Option<String>,
) -> (Node, Coordinator) {
    let mut node = Node::new(log.clone(), data.path(), "test");
    node.clock = clock.clone();
    (node.directory, node.checkpoints) = ("processor".into(), store);
    let coordinator = Coordinator::start(config(), &node).await.unwrap();
    (node, coordinator)
}

pub(super) fn files(sql: &[&str]) -> Vec<DefinitionFile> {
    let file = |(index, sql): (usize, &&str)| DefinitionFile {
        name: format!("{index}.sql"),
        sql: (*sql).into(),
    };
    sql.iter().enumerate().map(file).collect()
}

/// Runs real shards, one step at a time.
pub(super) struct Processor {
    log: Arc<dyn Log>,
    data: PathBuf,
    node: Node,
    view: ControlView,
    shards: HashMap<(GenerationId, PartitionId), RunningShard>,
    /// Generations whose shards report an error.
    pub(super) failing: Option<(GenerationId, String)>,
    pub(super) deleted: Vec<GenerationId>,
    /// Where checkpoints go besides the disk.
    pub(super) store: Option<Store>,
    /// The epoch of the claims of all shards.
    pub(super) epoch: u64,
    /// The data directory that its statuses name, if it is not its own.
    pub(super) directory: Option<String>,
}

struct RunningShard {
    shard: Shard,
    muted: Option<(String, u64)>,
    checkpoints: HashMap<CheckpointId, (Offset, String)>,
}

impl Processor {
    pub(super) fn new(log: Arc<dyn Log>, data: PathBuf) -> Self {
        let node = Node::new(log.clone(), &data, "processor");
        let view = ControlView::start(&node);
        let (shards, deleted) = (HashMap::new(), Vec::new());
        Self {
            log,
            data,
            node,
            view,
            shards,
            failing: None,
            deleted,
            store: None,
            epoch: 1,
            directory: None,
        }
    }

    /// The processor dies and starts again on what is on its disk.
    pub(super) async fn restart(&mut self) {
        self.shards.clear();
        self.node.tasks.stop(PATIENCE).await;
        let (store, epoch) = (self.store.take(), self.epoch + 1);
        *self = Self { store, epoch, ..Self::new(self.log.clone(), self.data.clone()) };
    }

    pub(super) async fn step(&mut self) {
        self.work(None).await;
    }

    /// A step of one generation's shards.
    pub(super) async fn step_only(&mut self, generation: GenerationId) {
        self.work(Some(generation)).await;
    }

    async fn work(&mut self, only: Option<GenerationId>) {
        let state = self.view.wait_current().await.unwrap();
        for (&generation, entry) in state.generations() {
            if only.is_some_and(|only| only != generation) {
                continue;
            }
            for partition in entry.partitions() {
                let key = (generation, partition);
                let (hold_at, checkpoints, muted_for) = match state
                    .shard_duty(generation, partition)
                {
                    ShardDuty::Run { hold_at, checkpoints, muted_for } => {
                        (hold_at, checkpoints, muted_for)
                    }
                    ShardDuty::Stop => {
                        self.shards.remove(&key);
                        continue;
                    }
                    ShardDuty::Delete => {
                        self.shards.remove(&key);
                        layout::remove(&layout::state_dir(&self.data, generation)).unwrap();
                        layout::remove(&layout::checkpoints_dir(&self.data, generation)).unwrap();
                        if !self.deleted.contains(&generation) {
                            self.deleted.push(generation);
                        }
                        continue;
                    }
                };
                let data = self.data.clone();
                let running = self.shards.entry(key).or_insert_with(|| {
                    let plan = headwater_sql::compile(&entry.stream_sql, &entry.view_sql);
                    let plan = Arc::new(plan.unwrap());
                    let directory = layout::shard_dir(&data, generation, partition);
                    std::fs::create_dir_all(&directory).unwrap();
                    let db = ShardDb::open(
                        &directory,
                        &Identity { generation, partition },
                        &Options::default(),
                    );
                    let mut shard = Shard::open(plan, db.unwrap()).unwrap();
                    shard.skip_to(entry.floor[&partition]);
                    RunningShard { shard, muted: None, checkpoints: HashMap::new() }
                });
                let shard = &mut running.shard;
                shard.commit().unwrap();
                let error = self.failing.as_ref().filter(|(failing, _)| *failing == generation);
                // A shard that has stopped does nothing that it is asked to.
                let (checkpoints, muted_for, hold_at) = match error {
                    Some(_) => (Vec::new(), None, Some(Offset::ZERO)),
                    None => (checkpoints, muted_for, hold_at),
                };
                let mut until = hold_at;
                running.checkpoints.retain(|id, _| checkpoints.iter().any(|duty| duty.id == *id));
                for duty in checkpoints {
                    let due = match duty.at {
                        CheckpointAt::Now => true,
                        CheckpointAt::Exactly(fence) => {
                            if shard.position() < fence {
                                until = Some(fence);
                            }
                            shard.position() == fence
                        }
                    };
                    let path =
                        layout::checkpoint_dir(&self.data, generation, partition, duty.id.as_str());
                    if due || path.exists() {
                        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                        let position = shard.db().checkpoint(&path).unwrap().position;
                        let location = match &self.store {
                            None => format!("file://{}", path.display()),
                            Some(_) if running.checkpoints.contains_key(&duty.id) => continue,
                            Some(store) => {
                                let identity = Identity { generation, partition };
                                let owner = format!("{}-processor", self.epoch);
                                let purpose = Purpose::Replay(duty.id.as_str());
                                store
                                    .upload(&path, &identity, position, &owner, purpose, None)
                                    .await
                                    .unwrap()
                                    .url()
                                    .to_owned()
                            }
                        };
                        running.checkpoints.insert(duty.id, (position, location));
                    }
                }
                match muted_for {
                    Some(swap)
                        if running
                            .muted
                            .as_ref()
                            .is_none_or(|(muted, _)| muted != swap.as_str()) =>
                    {
                        running.muted = Some((swap.to_string(), shard.position().0));
                    }
                    Some(_) => {}
                    None => running.muted = None,
                }
                let topic = Name::new("orders").unwrap();
                let end = self.log.ends(&topic, partition).await.unwrap();
                if shard.position() >= end.start {
                    let mut reader =
                        self.log.reader(&topic, partition, shard.position()).await.unwrap();
                    while until.is_none_or(|until| shard.position() < until)
                        && let Some(chunk) = reader.read(1 << 20, Duration::ZERO).unwrap()
                    {
                        shard.apply(&chunk, until).unwrap();
                    }
                    shard.commit().unwrap();
                }
                let status = ShardStatus {
                    generation: generation.to_string(),
                    partition: partition.0,
                    position: shard.progress().position.0,
                    log_end: end.end.0,
                    log_start: end.start.0,
                    records_per_second: 100.0,
                    state_bytes: 4096,
                    checkpoints: running
                        .checkpoints
                        .iter()
                        .map(|(id, (position, location))| Checkpoint {
                            replay_id: id.to_string(),
                            position: position.0,
                            location: location.clone(),
                        })
                        .collect(),
                    muted_for: running
                        .muted
                        .as_ref()
                        .map(|(swap, _)| swap.clone())
                        .unwrap_or_default(),
                    muted_at: running.muted.as_ref().map_or(0, |(_, at)| *at),
                    error: error.map(|(_, error)| error.clone()).unwrap_or_default(),
                    epoch: self.epoch,
                    directory: self
                        .directory
                        .clone()
                        .unwrap_or_else(|| self.node.directory.clone()),
                    ..ShardStatus::default()
                };
                let mut batch = BatchBuilder::new();
                let key = status_key(generation, partition);
                batch.push(0, Some(key.as_bytes()), Some(&status.encode_to_vec()), &[]);
                let batch = batch.build().unwrap();
                self.log
                    .append(&Name::new(STATUS_TOPIC).unwrap(), PartitionId(0), batch)
                    .await
                    .unwrap();
            }
        }
    }
}
