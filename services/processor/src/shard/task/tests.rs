use headwater_control::{CheckpointId, OutputWindow};
use headwater_engine::ViewPlan;
use headwater_log::Log as _;
use headwater_proto::status::v1::ShardStatus;
use headwater_service::Metrics;
use headwater_state::{Identity, Options, ShardReader, Store, digest, layout};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use headwater_service::{Shutdown, Tasks};

use super::*;
use crate::{
    assignment::lease::Lease,
    checkpoint::{restore, store::CheckpointStore},
    config::Config,
    metrics::ProcessorMetrics,
    publish::writer_id::writer_id,
    testing::{P0, TestLog, generation, name, plan},
};

struct TaskFixture {
    dir: TempDir,
    log: Arc<TestLog>,
    runtime: Runtime,
    plan: Arc<ViewPlan>,
    metrics: ProcessorMetrics,
}

impl TaskFixture {
    fn new() -> Self {
        Self {
            dir: TempDir::new().unwrap(),
            log: TestLog::new(),
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap(),
            plan: plan(),
            metrics: ProcessorMetrics::new(&Metrics::new()),
        }
    }

    fn identity(number: u64) -> Identity {
        Identity { generation: generation(number), partition: P0 }
    }

    fn try_open(&self, number: u64, floor: u64) -> Result<ShardTask, ShardError> {
        self.try_open_with(number, floor, None)
    }

    /// A claimed shard with a store, to which so many uploads may run at the same time.
    fn open_with_store(&self, number: u64, at_once: usize) -> ShardTask {
        let url = format!("file://{}", self.dir.path().join("store").display());
        let checkpoint_store = {
            let _inside = self.runtime.enter();
            let (store, every) = (Store::open(&url).unwrap(), Duration::from_secs(3600));
            CheckpointStore::new(
                store,
                at_once,
                every,
                "p".into(),
                Tasks::new(),
                self.metrics.clone(),
            )
        };
        let mut task = self.try_open_with(number, 0, Some(Arc::new(checkpoint_store))).unwrap();
        task.set_writer(block_on(self.log.writer(&writer_id(Self::identity(number)))).unwrap());
        task
    }

    fn try_open_with(
        &self,
        number: u64,
        floor: u64,
        checkpoint_store: Option<Arc<CheckpointStore>>,
    ) -> Result<ShardTask, ShardError> {
        let identity = Self::identity(number);
        let setup = ShardSetup {
            identity,
            lease: Lease::alone(identity),
            checkpoint_store,
            view: name("spend"),
            plan: self.plan.clone(),
            floor: Offset(floor),
            data: self.dir.path().into(),
            log: self.log.clone(),
            runtime: self.runtime.handle().clone(),
            options: Options { write_buffer_bytes: 1 << 20, ..Options::default() },
            config: Config::default(),
        };
        let opened = restore::open(&setup, &Shutdown::new(), |_| {})?;
        ShardTask::open(setup, opened, self.metrics.shard(&name("spend"), &identity))
    }

    fn open(&self, number: u64) -> ShardTask {
        self.try_open(number, 0).unwrap()
    }

    fn digest_of(&self, directory: &std::path::Path, number: u64) -> [u8; 32] {
        let reader = ShardReader::open_checkpoint(directory, &Self::identity(number)).unwrap();
        digest(reader.view()).unwrap()
    }

    /// The digest at this position of a shard that nothing ever disturbed.
    fn undisturbed(&self, number: u64, until: u64) -> [u8; 32] {
        let mut task = self.open(number);
        run(&mut task, &Orders { hold_at: Some(Offset(until)), ..orders() });
        assert_eq!(task.progress().position, Offset(until));
        let directory = task.setup.shard_dir();
        task.close().unwrap();
        self.digest_of(&directory, number)
    }
}

fn position_of(task: &ShardTask, id: &str) -> Option<Offset> {
    let checkpoints = task.visible_checkpoints();
    let found = checkpoints.iter().find(|checkpoint| checkpoint.replay_id == id)?;
    assert!(found.location.starts_with("file:///"), "{}", found.location);
    Some(Offset(found.position))
}

fn orders() -> Orders {
    let windows = vec![OutputWindow { from: Offset::ZERO, until: None }];
    Orders { hold_at: None, checkpoints: Vec::new(), permit: Permit { windows, muted_at: None } }
}

fn checkpoint(id: &str, at: CheckpointAt) -> Vec<CheckpointDuty> {
    vec![CheckpointDuty { id: CheckpointId::from(id), at }]
}

/// Steps until there is nothing left to do.
fn run(task: &mut ShardTask, orders: &Orders) {
    let mut before = None;
    loop {
        task.step(orders).unwrap();
        let now = (task.progress(), task.shard.position(), task.checkpoints.clone());
        if before.as_ref() == Some(&now) && !task.shard.has_uncommitted() {
            return;
        }
        before = Some(now);
    }
}

#[test]
fn a_shard_commits_what_is_there_and_publishes_its_dead_letters() {
    let fixture = TaskFixture::new();
    fixture.log.orders(0..10);
    let mut task = fixture.open(1);
    run(&mut task, &orders());
    let progress = task.progress();
    assert_eq!(progress.position, Offset(10));
    assert_eq!(progress.tallies, Tallies { applied: 5, dead_lettered: 5, ..Tallies::default() });
    assert_eq!(fixture.log.dead_letters().len(), 5);
    assert_eq!(task.published().unwrap(), Offset(10));
}

#[test]
fn a_shard_stops_at_exactly_the_fence_for_its_checkpoint_and_goes_on() {
    let fixture = TaskFixture::new();
    // One batch, so that the fence lies in the middle of it.
    fixture.log.orders(0..10);
    fixture.log.orders(10..20);
    for fence in [0, 1, 7, 10, 13, 20] {
        let number = 10 + fence;
        let mut task = fixture.open(number);
        let id = format!("spend-1-a{fence}");
        let orders = Orders {
            checkpoints: checkpoint(&id, CheckpointAt::Exactly(Offset(fence))),
            ..orders()
        };
        run(&mut task, &orders);
        assert_eq!(position_of(&task, &id), Some(Offset(fence)));
        assert_eq!(task.progress().position, Offset(20), "it goes on");

        let taken = fixture.digest_of(&task.setup.checkpoint_dir(&id), number);
        assert_eq!(taken, fixture.undisturbed(100 + fence, fence), "law 2 at the fence");
    }
}

#[test]
fn a_shard_that_is_past_the_fence_takes_no_checkpoint_and_goes_on() {
    let fixture = TaskFixture::new();
    fixture.log.orders(0..10);
    let mut task = fixture.open(1);
    run(&mut task, &orders());
    fixture.log.orders(10..20);
    run(
        &mut task,
        &Orders {
            checkpoints: checkpoint("spend-1-a1", CheckpointAt::Exactly(Offset(9))),
            ..orders()
        },
    );
    assert!(task.visible_checkpoints().is_empty());
    assert_eq!(task.progress().position, Offset(20));
}

#[test]
fn a_holding_shard_commits_what_it_has_and_reads_no_more() {
    let fixture = TaskFixture::new();
    fixture.log.orders(0..10);
    let mut task = fixture.open(1);
    run(&mut task, &orders());
    fixture.log.orders(10..20);
    let hold = Orders { hold_at: Some(Offset::ZERO), ..orders() };
    run(&mut task, &hold);
    assert_eq!(task.progress().position, Offset(10));
    run(&mut task, &Orders { hold_at: Some(Offset(13)), ..orders() });
    assert_eq!(task.progress().position, Offset(13));
    run(&mut task, &orders());
    assert_eq!(task.progress().position, Offset(20));
}

#[test]
fn a_live_shard_takes_its_checkpoint_where_it_is_and_only_once() {
    let fixture = TaskFixture::new();
    fixture.log.orders(0..10);
    let now = Orders { checkpoints: checkpoint("spend-1-a1", CheckpointAt::Now), ..orders() };
    let mut task = fixture.open(1);
    run(&mut task, &orders());
    assert!(task.step(&now).unwrap(), "others wait for it");
    assert_eq!(position_of(&task, "spend-1-a1"), Some(Offset(10)));

    fixture.log.orders(10..20);
    run(&mut task, &now);
    drop(task);
    let mut task = fixture.open(1);
    run(&mut task, &now);
    assert_eq!(task.progress().position, Offset(20));
    assert_eq!(position_of(&task, "spend-1-a1"), Some(Offset(10)), "found again after a crash");

    let next = Orders { checkpoints: checkpoint("spend-1-a2", CheckpointAt::Now), ..orders() };
    run(&mut task, &next);
    assert_eq!(position_of(&task, "spend-1-a2"), Some(Offset(20)));
    assert_eq!(task.visible_checkpoints().len(), 1);
    assert!(!task.setup.checkpoint_dir("spend-1-a1").exists(), "it is no longer ordered");
}

#[test]
fn a_crash_leaves_no_trace_in_the_state() {
    let fixture = TaskFixture::new();
    fixture.log.orders(0..50);
    let mut task = fixture.open(1);
    run(&mut task, &Orders { hold_at: Some(Offset(17)), ..orders() });
    // Applied, not committed.
    task.read(Some(Offset(23))).unwrap();
    assert!(task.shard.has_uncommitted());
    drop(task);

    let mut task = fixture.open(1);
    assert_eq!(task.progress().position, Offset(17));
    run(&mut task, &orders());
    let directory = task.setup.shard_dir();
    task.close().unwrap();
    assert_eq!(fixture.digest_of(&directory, 1), fixture.undisturbed(2, 50));
    let own = fixture.log.dead_letters().into_iter().filter(|letter| letter.0 == generation(1));
    let values: Vec<_> = own.map(|letter| letter.2).collect();
    assert_eq!(
        values,
        (0..50).step_by(2).map(|n| format!("bad {n}")).collect::<Vec<_>>(),
        "each once"
    );
}

#[test]
fn half_a_checkpoint_of_a_crash_is_taken_again() {
    let fixture = TaskFixture::new();
    fixture.log.orders(0..10);
    let half = layout::checkpoint_dir(fixture.dir.path(), generation(1), P0, "spend-1-a1");
    std::fs::create_dir_all(&half).unwrap();
    std::fs::write(half.join("000001.sst"), b"half").unwrap();
    let mut task = fixture.open(1);
    assert!(task.visible_checkpoints().is_empty());
    run(
        &mut task,
        &Orders {
            checkpoints: checkpoint("spend-1-a1", CheckpointAt::Exactly(Offset(4))),
            ..orders()
        },
    );
    assert_eq!(position_of(&task, "spend-1-a1"), Some(Offset(4)));
}

#[test]
fn a_generation_begins_at_its_floor() {
    let fixture = TaskFixture::new();
    fixture.log.orders(0..10);
    block_on(fixture.log.trim(&name("orders"), P0, Offset(4))).unwrap();
    let mut task = fixture.try_open(1, 4).unwrap();
    run(&mut task, &orders());
    assert_eq!(task.progress().tallies.read(), 6);
}

#[test]
fn trimmed_input_is_an_error_that_says_what_was_lost_and_what_to_do() {
    let fixture = TaskFixture::new();
    fixture.log.orders(0..10);
    block_on(fixture.log.trim(&name("orders"), P0, Offset(4))).unwrap();
    let error = fixture.open(1).step(&orders()).unwrap_err();
    assert_eq!(error.remedy, Remedy::Correct);
    assert!(error.reason.contains("records 0 to 4 of orders[0]"), "{}", error.reason);
    assert!(error.reason.contains("start a replay"), "{}", error.reason);
}

#[test]
fn state_does_not_wait_for_outputs_that_cannot_be_published() {
    let fixture = TaskFixture::new();
    fixture.log.orders(0..10);
    fixture.log.refused.store(u32::MAX, std::sync::atomic::Ordering::Relaxed);
    let mut task = fixture.open(1);
    run(&mut task, &orders());
    assert_eq!(task.progress().position, Offset(10));
    assert_eq!(task.published().unwrap(), Offset(0));
    fixture.log.refused.store(0, std::sync::atomic::Ordering::Relaxed);
    while task.published().unwrap() < Offset(10) {
        task.step(&orders()).unwrap();
    }
    assert_eq!(fixture.log.dead_letters().len(), 5);
}

#[test]
fn a_fence_inside_a_gap_of_the_offsets_is_reached_exactly() {
    let fixture = TaskFixture::new();
    fixture.log.orders(0..10);
    // The reader shows no record at these offsets.
    fixture.log.orders(10..20);
    fixture.log.orders(20..30);
    *fixture.log.gap.lock() = Some((10, 20));
    for fence in [9, 10, 11, 15, 19, 20, 21] {
        let number = 10 + fence;
        let mut task = fixture.open(number);
        let id = format!("spend-1-a{fence}");
        let at = CheckpointAt::Exactly(Offset(fence));
        run(&mut task, &Orders { checkpoints: checkpoint(&id, at), ..orders() });
        assert_eq!(position_of(&task, &id), Some(Offset(fence)));
        assert_eq!(task.progress().position, Offset(30), "it goes on");
        assert_eq!(task.progress().tallies.read(), 20, "and reads the rest");

        let mut held = fixture.open(100 + number);
        run(&mut held, &Orders { hold_at: Some(Offset(fence)), ..orders() });
        assert_eq!(held.progress().position, Offset(fence));
        run(&mut held, &orders());
        assert_eq!((held.progress().position, held.progress().tallies.read()), (Offset(30), 20));
    }
}

#[test]
fn the_end_of_the_topic_is_reached_even_if_nothing_is_there() {
    let fixture = TaskFixture::new();
    fixture.log.orders(0..10);
    fixture.log.orders(10..20);
    *fixture.log.gap.lock() = Some((10, 20));
    let mut task = fixture.open(1);
    run(&mut task, &orders());
    assert_eq!(task.progress().position, Offset(20), "markers are caught up with too");
    assert_eq!(task.progress().tallies.read(), 10);
}

#[test]
fn a_new_generation_waits_at_the_fence_until_others_can_see_its_checkpoint() {
    let fixture = TaskFixture::new();
    fixture.log.orders(0..10);
    fixture.log.orders(10..20);
    let at = CheckpointAt::Exactly(Offset(7));
    let fence = Orders { checkpoints: checkpoint("spend-1-a1", at), ..orders() };
    let mut task = fixture.open_with_store(1, 0);
    run(&mut task, &fence);
    assert_eq!(task.progress().position, Offset(7));
    assert!(task.visible_checkpoints().is_empty(), "no other process could open it yet");
    drop(task);

    // A live shard does not wait for anything.
    let now = Orders { checkpoints: checkpoint("spend-1-a1", CheckpointAt::Now), ..orders() };
    let mut live = fixture.open_with_store(2, 0);
    live.step(&now).unwrap();
    run(&mut live, &now);
    assert_eq!(live.progress().position, Offset(20));
    assert!(live.visible_checkpoints().is_empty());

    let mut task = fixture.open_with_store(1, 1);
    while task.progress().position < Offset(20) {
        task.step(&fence).unwrap();
    }
    let told = task.visible_checkpoints();
    assert_eq!((told[0].position, told.len()), (7, 1));
    let store =
        Store::open(&format!("file://{}", fixture.dir.path().join("store").display())).unwrap();
    let manifest = fixture.runtime.block_on(store.manifest(&told[0].location)).unwrap();
    let fetched = fixture.dir.path().join("fetched");
    fixture.runtime.block_on(store.fetch(&manifest, &fetched)).unwrap();
    assert_eq!(
        fixture.digest_of(&fetched, 1),
        fixture.undisturbed(3, 7),
        "law 2 at the fence, for others"
    );

    // The next owner has it too, without a copy of its own.
    let said = ShardStatus { checkpoints: told.clone(), ..ShardStatus::default() };
    task.close().unwrap();
    layout::remove(&layout::checkpoint_dir(fixture.dir.path(), generation(1), P0, "")).unwrap();
    let mut next = fixture.open_with_store(1, 1);
    next.adopt_checkpoints(&said).unwrap();
    run(&mut next, &fence);
    assert_eq!(next.visible_checkpoints(), told);
}
