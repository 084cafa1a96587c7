use headwater_control::{CheckpointId, OutputWindow};
use headwater_proto::status::v1::ShardStatus;
use headwater_service::Metrics;
use headwater_state::{ShardReader, Store, digest};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use headwater_service::{Shutdown, Tasks};

use super::*;
use crate::{
    claim::writer_id,
    metrics::ProcessorMetrics,
    testing::{P0, TestLog, generation, name, plan},
};

struct Rig {
    dir: TempDir,
    log: Arc<TestLog>,
    runtime: Runtime,
    plan: Arc<ViewPlan>,
    metrics: ProcessorMetrics,
}

impl Rig {
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

    fn try_open(&self, number: u64, floor: u64) -> Result<Work, Trouble> {
        self.try_open_with(number, floor, None)
    }

    /// With a store to which so many uploads go at the same time, and claimed.
    fn open_with_store(&self, number: u64, at_once: usize) -> Work {
        let url = format!("file://{}", self.dir.path().join("store").display());
        let uploads = {
            let _inside = self.runtime.enter();
            let (store, every) = (Store::open(&url).unwrap(), Duration::from_secs(3600));
            Uploads::new(store, at_once, every, "p".into(), Tasks::new(), self.metrics.clone())
        };
        let mut work = self.try_open_with(number, 0, Some(Arc::new(uploads))).unwrap();
        work.claimed(
            headwater_log::block_on(self.log.writer(&writer_id(Self::identity(number)))).unwrap(),
        );
        work
    }

    fn try_open_with(
        &self,
        number: u64,
        floor: u64,
        uploads: Option<Arc<Uploads>>,
    ) -> Result<Work, Trouble> {
        let identity = Self::identity(number);
        let setup = Setup {
            identity,
            lease: Lease::alone(identity),
            uploads,
            view: name("spend"),
            plan: self.plan.clone(),
            floor: Offset(floor),
            data: self.dir.path().into(),
            log: self.log.clone(),
            runtime: self.runtime.handle().clone(),
            options: Options { write_buffer_bytes: 1 << 20, ..Options::default() },
            config: Config::default(),
        };
        let opened = crate::restore::open(&setup, &Shutdown::new(), |_| {})?;
        Work::open(setup, opened, self.metrics.shard(&name("spend"), &identity))
    }

    fn open(&self, number: u64) -> Work {
        self.try_open(number, 0).unwrap()
    }

    fn digest_of(&self, directory: &std::path::Path, number: u64) -> [u8; 32] {
        let reader = ShardReader::open_checkpoint(directory, &Self::identity(number)).unwrap();
        digest(reader.view()).unwrap()
    }

    /// The state at this position of a shard that nothing ever disturbed.
    fn undisturbed(&self, number: u64, until: u64) -> [u8; 32] {
        let mut work = self.open(number);
        run(&mut work, &Orders { hold_at: Some(Offset(until)), ..orders() });
        assert_eq!(work.progress().position, Offset(until));
        let directory = work.setup.shard_dir();
        work.close().unwrap();
        self.digest_of(&directory, number)
    }
}

fn position_of(work: &Work, id: &str) -> Option<Offset> {
    let checkpoints = work.checkpoints();
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
fn run(work: &mut Work, orders: &Orders) {
    let mut before = None;
    loop {
        work.step(orders).unwrap();
        let now = (work.progress(), work.shard.position(), work.checkpoints.clone());
        if before.as_ref() == Some(&now) && !work.shard.has_uncommitted() {
            return;
        }
        before = Some(now);
    }
}

#[test]
fn a_shard_commits_what_is_there_and_publishes_its_dead_letters() {
    let rig = Rig::new();
    rig.log.orders(0..10);
    let mut work = rig.open(1);
    run(&mut work, &orders());
    let progress = work.progress();
    assert_eq!(progress.position, Offset(10));
    assert_eq!(progress.tallies, Tallies { applied: 5, dead_lettered: 5, ..Tallies::default() });
    assert_eq!(rig.log.dead_letters().len(), 5);
    assert_eq!(work.published().unwrap(), Offset(10));
}

#[test]
fn a_shard_stops_at_exactly_the_fence_for_its_checkpoint_and_goes_on() {
    let rig = Rig::new();
    // One batch, so that the fence lies in the middle of it.
    rig.log.orders(0..10);
    rig.log.orders(10..20);
    for fence in [0, 1, 7, 10, 13, 20] {
        let number = 10 + fence;
        let mut work = rig.open(number);
        let id = format!("spend-1-a{fence}");
        let orders = Orders {
            checkpoints: checkpoint(&id, CheckpointAt::Exactly(Offset(fence))),
            ..orders()
        };
        run(&mut work, &orders);
        assert_eq!(position_of(&work, &id), Some(Offset(fence)));
        assert_eq!(work.progress().position, Offset(20), "it goes on");

        let taken = rig.digest_of(&work.setup.checkpoint_dir(&id), number);
        assert_eq!(taken, rig.undisturbed(100 + fence, fence), "law 2 at the fence");
    }
}

#[test]
fn a_shard_that_is_past_the_fence_takes_no_checkpoint_and_goes_on() {
    let rig = Rig::new();
    rig.log.orders(0..10);
    let mut work = rig.open(1);
    run(&mut work, &orders());
    rig.log.orders(10..20);
    run(
        &mut work,
        &Orders {
            checkpoints: checkpoint("spend-1-a1", CheckpointAt::Exactly(Offset(9))),
            ..orders()
        },
    );
    assert!(work.checkpoints().is_empty());
    assert_eq!(work.progress().position, Offset(20));
}

#[test]
fn a_holding_shard_commits_what_it_has_and_reads_no_more() {
    let rig = Rig::new();
    rig.log.orders(0..10);
    let mut work = rig.open(1);
    run(&mut work, &orders());
    rig.log.orders(10..20);
    let hold = Orders { hold_at: Some(Offset::ZERO), ..orders() };
    run(&mut work, &hold);
    assert_eq!(work.progress().position, Offset(10));
    run(&mut work, &Orders { hold_at: Some(Offset(13)), ..orders() });
    assert_eq!(work.progress().position, Offset(13));
    run(&mut work, &orders());
    assert_eq!(work.progress().position, Offset(20));
}

#[test]
fn a_live_shard_takes_its_checkpoint_where_it_is_and_only_once() {
    let rig = Rig::new();
    rig.log.orders(0..10);
    let now = Orders { checkpoints: checkpoint("spend-1-a1", CheckpointAt::Now), ..orders() };
    let mut work = rig.open(1);
    run(&mut work, &orders());
    assert!(work.step(&now).unwrap(), "others wait for it");
    assert_eq!(position_of(&work, "spend-1-a1"), Some(Offset(10)));

    rig.log.orders(10..20);
    run(&mut work, &now);
    drop(work);
    let mut work = rig.open(1);
    run(&mut work, &now);
    assert_eq!(work.progress().position, Offset(20));
    assert_eq!(position_of(&work, "spend-1-a1"), Some(Offset(10)), "found again after a crash");

    let next = Orders { checkpoints: checkpoint("spend-1-a2", CheckpointAt::Now), ..orders() };
    run(&mut work, &next);
    assert_eq!(position_of(&work, "spend-1-a2"), Some(Offset(20)));
    assert_eq!(work.checkpoints().len(), 1);
    assert!(!work.setup.checkpoint_dir("spend-1-a1").exists(), "nobody needs it any more");
}

#[test]
fn a_crash_leaves_no_trace_in_the_state() {
    let rig = Rig::new();
    rig.log.orders(0..50);
    let mut work = rig.open(1);
    run(&mut work, &Orders { hold_at: Some(Offset(17)), ..orders() });
    // Applied, not committed.
    work.read(Some(Offset(23))).unwrap();
    assert!(work.shard.has_uncommitted());
    drop(work);

    let mut work = rig.open(1);
    assert_eq!(work.progress().position, Offset(17));
    run(&mut work, &orders());
    let directory = work.setup.shard_dir();
    work.close().unwrap();
    assert_eq!(rig.digest_of(&directory, 1), rig.undisturbed(2, 50));
    let own = rig.log.dead_letters().into_iter().filter(|letter| letter.0 == generation(1));
    let values: Vec<_> = own.map(|letter| letter.2).collect();
    assert_eq!(
        values,
        (0..50).step_by(2).map(|n| format!("bad {n}")).collect::<Vec<_>>(),
        "each once"
    );
}

#[test]
fn half_a_checkpoint_of_a_crash_is_taken_again() {
    let rig = Rig::new();
    rig.log.orders(0..10);
    let half = layout::checkpoint_dir(rig.dir.path(), generation(1), P0, "spend-1-a1");
    std::fs::create_dir_all(&half).unwrap();
    std::fs::write(half.join("000001.sst"), b"half").unwrap();
    let mut work = rig.open(1);
    assert!(work.checkpoints().is_empty());
    run(
        &mut work,
        &Orders {
            checkpoints: checkpoint("spend-1-a1", CheckpointAt::Exactly(Offset(4))),
            ..orders()
        },
    );
    assert_eq!(position_of(&work, "spend-1-a1"), Some(Offset(4)));
}

#[test]
fn a_generation_begins_at_its_floor() {
    let rig = Rig::new();
    rig.log.orders(0..10);
    headwater_log::block_on(rig.log.trim(&name("orders"), P0, Offset(4))).unwrap();
    let mut work = rig.try_open(1, 4).unwrap();
    run(&mut work, &orders());
    assert_eq!(work.progress().tallies.read(), 6);
}

#[test]
fn trimmed_input_is_an_error_that_says_what_was_lost_and_what_to_do() {
    let rig = Rig::new();
    rig.log.orders(0..10);
    headwater_log::block_on(rig.log.trim(&name("orders"), P0, Offset(4))).unwrap();
    let trouble = rig.open(1).step(&orders()).unwrap_err();
    assert_eq!(trouble.remedy, Remedy::Correct);
    assert!(trouble.reason.contains("records 0 to 4 of orders[0]"), "{}", trouble.reason);
    assert!(trouble.reason.contains("start a replay"), "{}", trouble.reason);
}

#[test]
fn state_does_not_wait_for_outputs_that_cannot_be_published() {
    let rig = Rig::new();
    rig.log.orders(0..10);
    rig.log.refused.store(1, std::sync::atomic::Ordering::Relaxed);
    let mut work = rig.open(1);
    run(&mut work, &orders());
    assert_eq!(work.progress().position, Offset(10));
    assert_eq!(work.published().unwrap(), Offset(0));
    std::thread::sleep(PUBLISH_RETRY);
    work.step(&orders()).unwrap();
    assert_eq!(rig.log.dead_letters().len(), 5);
}

#[test]
fn a_fence_inside_a_gap_of_the_offsets_is_reached_exactly() {
    let rig = Rig::new();
    rig.log.orders(0..10);
    // Their offsets hold no record, for all that a reader sees.
    rig.log.orders(10..20);
    rig.log.orders(20..30);
    *rig.log.gap.lock() = Some((10, 20));
    for fence in [9, 10, 11, 15, 19, 20, 21] {
        let number = 10 + fence;
        let mut work = rig.open(number);
        let id = format!("spend-1-a{fence}");
        let at = CheckpointAt::Exactly(Offset(fence));
        run(&mut work, &Orders { checkpoints: checkpoint(&id, at), ..orders() });
        assert_eq!(position_of(&work, &id), Some(Offset(fence)));
        assert_eq!(work.progress().position, Offset(30), "it goes on");
        assert_eq!(work.progress().tallies.read(), 20, "and reads the rest");

        let mut held = rig.open(100 + number);
        run(&mut held, &Orders { hold_at: Some(Offset(fence)), ..orders() });
        assert_eq!(held.progress().position, Offset(fence));
        run(&mut held, &orders());
        assert_eq!((held.progress().position, held.progress().tallies.read()), (Offset(30), 20));
    }
}

#[test]
fn the_end_of_the_topic_is_reached_even_if_nothing_is_there() {
    let rig = Rig::new();
    rig.log.orders(0..10);
    rig.log.orders(10..20);
    *rig.log.gap.lock() = Some((10, 20));
    let mut work = rig.open(1);
    run(&mut work, &orders());
    assert_eq!(work.progress().position, Offset(20), "markers are caught up with too");
    assert_eq!(work.progress().tallies.read(), 10);
}

#[test]
fn a_new_generation_waits_at_the_fence_until_others_can_see_its_checkpoint() {
    let rig = Rig::new();
    rig.log.orders(0..10);
    rig.log.orders(10..20);
    let at = CheckpointAt::Exactly(Offset(7));
    let fence = Orders { checkpoints: checkpoint("spend-1-a1", at), ..orders() };
    let mut work = rig.open_with_store(1, 0);
    run(&mut work, &fence);
    assert_eq!(work.progress().position, Offset(7));
    assert!(work.checkpoints().is_empty(), "nobody else could open it yet");
    drop(work);

    // A live shard does not wait for anything.
    let now = Orders { checkpoints: checkpoint("spend-1-a1", CheckpointAt::Now), ..orders() };
    let mut live = rig.open_with_store(2, 0);
    live.step(&now).unwrap();
    run(&mut live, &now);
    assert_eq!(live.progress().position, Offset(20));
    assert!(live.checkpoints().is_empty());

    let mut work = rig.open_with_store(1, 1);
    while work.progress().position < Offset(20) {
        work.step(&fence).unwrap();
    }
    let told = work.checkpoints();
    assert_eq!((told[0].position, told.len()), (7, 1));
    let store = Store::open(&format!("file://{}", rig.dir.path().join("store").display())).unwrap();
    let manifest = rig.runtime.block_on(store.manifest(&told[0].location)).unwrap();
    let fetched = rig.dir.path().join("fetched");
    rig.runtime.block_on(store.fetch(&manifest, &fetched)).unwrap();
    assert_eq!(rig.digest_of(&fetched, 1), rig.undisturbed(3, 7), "law 2 at the fence, for others");

    // The next owner has it too, without a copy of its own.
    let said = ShardStatus { checkpoints: told.clone(), ..ShardStatus::default() };
    work.close().unwrap();
    layout::remove(&layout::checkpoint_dir(rig.dir.path(), generation(1), P0, "")).unwrap();
    let mut next = rig.open_with_store(1, 1);
    next.inherit(&said).unwrap();
    run(&mut next, &fence);
    assert_eq!(next.checkpoints(), told);
}
