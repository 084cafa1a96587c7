use std::sync::Arc;

use headwater_engine::Shard;
use headwater_log::Log as _;
use headwater_service::{Metrics, Tasks};
use headwater_state::{Identity, Options, Purpose, digest};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::*;
use crate::{
    checkpoint::store::CheckpointStore,
    config::Config,
    metrics::ProcessorMetrics,
    testing::{P0, TestLog, generation, name, plan},
};

/// A shard on two machines, and the store that they share.
struct RestoreFixture {
    dir: TempDir,
    runtime: Runtime,
    log: Arc<TestLog>,
    store: Store,
    checkpoint_store: Arc<CheckpointStore>,
}

fn identity() -> Identity {
    Identity { generation: generation(1), partition: P0 }
}

impl RestoreFixture {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let store = Store::open(&format!("file://{}", dir.path().join("store").display())).unwrap();
        let checkpoint_store = {
            let _inside = runtime.enter();
            let metrics = ProcessorMetrics::new(&Metrics::new());
            let every = Duration::from_secs(60);
            CheckpointStore::new(store.clone(), 2, every, "p".into(), Tasks::new(), metrics)
        };
        let log = TestLog::new();
        log.orders(0..80);
        log.orders(80..100);
        Self { dir, runtime, log, store, checkpoint_store: Arc::new(checkpoint_store) }
    }

    fn uploads_to(&mut self, store: Store) {
        let _inside = self.runtime.enter();
        let metrics = ProcessorMetrics::new(&Metrics::new());
        let every = Duration::from_secs(60);
        let checkpoint_store =
            CheckpointStore::new(store, 2, every, "p".into(), Tasks::new(), metrics);
        self.checkpoint_store = Arc::new(checkpoint_store);
    }

    fn setup(&self, machine: &str) -> ShardSetup {
        ShardSetup {
            identity: identity(),
            view: name("spend"),
            plan: plan(),
            floor: Offset::ZERO,
            data: self.dir.path().join(machine),
            log: self.log.clone(),
            lease: Lease::alone(identity()),
            checkpoint_store: Some(self.checkpoint_store.clone()),
            runtime: self.runtime.handle().clone(),
            options: Options { write_buffer_bytes: 1 << 20, ..Options::default() },
            config: Config::default(),
        }
    }

    fn open(&self, machine: &str) -> OpenedDatabase {
        open(&self.setup(machine), &Shutdown::new(), |_| {}).unwrap()
    }

    /// Lets the machine's copy come to this position.
    fn advance(&self, machine: &str, to: u64) {
        let setup = self.setup(machine);
        let db = ShardDb::open(&setup.shard_dir(), &setup.identity, &setup.options).unwrap();
        let mut shard = Shard::open(plan(), db).unwrap();
        let mut reader = block_on(self.log.reader(&name("orders"), P0, shard.position())).unwrap();
        while shard.position().0 < to {
            let chunk = reader.read(1 << 20, Duration::ZERO).unwrap().unwrap();
            shard.apply(&chunk, Some(Offset(to))).unwrap();
        }
        shard.commit().unwrap();
    }

    /// Stores the machine's copy.
    fn store(&self, machine: &str, epoch: u64) -> Manifest {
        let setup = self.setup(machine);
        let db = ShardDb::open(&setup.shard_dir(), &setup.identity, &setup.options).unwrap();
        let checkpoint = self.dir.path().join(format!("upload-{machine}-{epoch}"));
        let position = db.checkpoint(&checkpoint).unwrap().position;
        let owner = format!("{epoch}-{machine}");
        let identity = identity();
        let stored =
            self.store.upload(&checkpoint, &identity, position, &owner, Purpose::HandOver, None);
        self.runtime.block_on(stored).unwrap()
    }

    fn digest(&self, machine: &str) -> [u8; 32] {
        let path = self.setup(machine).shard_dir();
        let reader = headwater_state::ShardReader::open_checkpoint(&path, &identity()).unwrap();
        digest(reader.view()).unwrap()
    }
}

#[test]
fn the_copy_that_is_furthest_along_is_taken() {
    let fixture = RestoreFixture::new();
    assert_eq!(fixture.open("one").db.progress().position, Offset(0), "nothing anywhere");
    fixture.advance("one", 40);
    fixture.store("one", 1);

    let mut announced = Vec::new();
    let fresh = open(&fixture.setup("two"), &Shutdown::new(), |text| announced.push(text)).unwrap();
    assert!(announced[0].starts_with("restoring partition 0 of generation"), "{announced:?}");
    assert_eq!(fresh.db.progress().position, Offset(40));
    assert!(fresh.fetched.is_some());
    drop(fresh);
    assert_eq!(fixture.digest("two"), fixture.digest("one"));

    fixture.advance("two", 70);
    let ahead = fixture.open("two");
    assert_eq!(ahead.db.progress().position, Offset(70));
    assert!(ahead.fetched.is_none() && ahead.newest.is_some(), "nothing is downloaded");
    drop(ahead);
    fixture.store("two", 2);
    // The log no longer has these records, so reading them is no alternative.
    block_on(fixture.log.trim(&name("orders"), P0, Offset(60))).unwrap();
    let behind = fixture.open("one");
    assert_eq!(behind.db.progress().position, Offset(70));
    drop(behind);
    assert_eq!(fixture.digest("two"), fixture.digest("one"));
}

#[test]
fn a_copy_that_lacks_little_reads_it_from_the_log_instead_of_fetching_all() {
    let fixture = RestoreFixture::new();
    fixture.advance("one", 90);
    let manifest = fixture.store("one", 1);
    fixture.advance("two", 80);
    let opened = fixture.open("two");
    let sizes =
        (block_on(fixture.log.size(&name("orders"), P0, Offset(80), Offset(90))), manifest.bytes());
    assert_eq!(opened.db.progress().position, Offset(80), "{sizes:?}");
    // Its own uploads need the manifest.
    assert_eq!(opened.newest.unwrap().position(), Offset(90));
}

#[test]
fn a_reader_that_has_the_former_copy_open_sees_the_new_one() {
    let fixture = RestoreFixture::new();
    fixture.advance("one", 50);
    fixture.store("one", 1);
    block_on(fixture.log.trim(&name("orders"), P0, Offset(20))).unwrap();
    for opens in 0..3 {
        let machine = format!("machine-{opens}");
        let (path, options) =
            (fixture.setup(&machine).shard_dir(), fixture.setup(&machine).options);
        for _ in 0..=opens {
            drop(ShardDb::open(&path, &identity(), &options).unwrap());
        }
        let before = fs::read(path.join("CURRENT")).unwrap();
        let scratch = fixture.dir.path().join(format!("scratch-{opens}"));
        let reader = headwater_state::ShardReader::open_live(&path, &scratch, &identity()).unwrap();
        assert_eq!(reader.progress().position, Offset(0));
        let opened = fixture.open(&machine);
        assert_eq!(opened.db.progress().position, Offset(50));
        assert_ne!(fs::read(path.join("CURRENT")).unwrap(), before);
        assert_eq!(reader.refresh().unwrap().position, Offset(50), "after {opens} openings");
    }
}

#[test]
fn a_damaged_copy_is_replaced_and_a_damaged_checkpoint_is_passed_over() {
    let fixture = RestoreFixture::new();
    fixture.advance("one", 40);
    let manifest = fixture.store("one", 1);
    fixture.advance("two", 60);
    let current = fixture.setup("two").shard_dir().join("CURRENT");
    fs::write(&current, "MANIFEST-999999\n").unwrap();
    let opened = open(&fixture.setup("two"), &Shutdown::new(), |_| {});
    // RocksDB does not report every damage as such. Then a person has to act, and nothing is lost.
    if let Ok(opened) = opened {
        assert_eq!(opened.db.progress().position, Offset(40));
    }

    let file = manifest.files().iter().find(|file| file.name.ends_with(".sst")).unwrap();
    let shard = fixture.dir.path().join("store").join(generation(1).to_string()).join("0");
    let stored = shard.join(&file.path);
    let mut bytes = fs::read(&stored).unwrap();
    bytes[7] ^= 1;
    // Not in place: it may be a hard link.
    fs::remove_file(&stored).unwrap();
    fs::write(&stored, bytes).unwrap();
    let opened = fixture.open("three");
    assert_eq!(opened.db.progress().position, Offset(0), "the log has it all");
    assert!(!fixture.setup("three").shard_dir().with_file_name("0.restored").exists());
}

#[test]
fn a_crash_at_any_moment_of_the_swap_leaves_a_whole_copy() {
    let fixture = RestoreFixture::new();
    let shard = fixture.setup("one").shard_dir();
    let copies = CopyPaths::of(shard.clone());
    // Which of the shard, the restored copy and the old copy exist, and which one is used then.
    for (present, used) in [
        ([true, true, false], "shard"),
        ([false, true, true], "restored"),
        ([true, false, true], "shard"),
        ([false, false, true], "old"),
        ([false, true, false], "restored"),
    ] {
        layout::remove(shard.parent().unwrap()).unwrap();
        let all = [(&copies.shard, "shard"), (&copies.restored, "restored"), (&copies.old, "old")];
        for ((path, text), present) in all.into_iter().zip(present) {
            if present {
                fs::create_dir_all(path).unwrap();
                fs::write(path.join("CURRENT"), text).unwrap();
            }
        }
        copies.recover().unwrap();
        assert_eq!(fs::read_to_string(shard.join("CURRENT")).unwrap(), used, "{present:?}");
        let left: Vec<_> = fs::read_dir(shard.parent().unwrap()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }
}

#[test]
fn a_store_that_is_away_stops_no_shard_that_has_a_copy() {
    let fixture = RestoreFixture::new();
    fixture.advance("one", 40);
    fixture.store("one", 1);
    let generations = fixture.dir.path().join("store").join(generation(1).to_string());
    layout::remove(&generations.join("0")).unwrap();
    // A file where the store expects a directory.
    fs::write(generations.join("0"), "").unwrap();
    let opened = open(&fixture.setup("one"), &Shutdown::new(), |_| {});
    match opened {
        Ok(opened) => assert_eq!(opened.db.progress().position, Offset(40)),
        Err(error) => panic!("{error:?}"),
    }
}

/// A server in the place of S3 that does this with every connection.
fn server(serve: impl Fn(std::net::TcpStream) + Send + 'static) -> Store {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || listener.incoming().flatten().for_each(serve));
    let variables = [
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_ACCESS_KEY_ID", "id"),
        ("AWS_SECRET_ACCESS_KEY", "hush"),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Store::open_with("s3://bucket/prefix", variables).unwrap()
}

/// A store whose server always gives this answer.
fn answering(status: &'static str) -> Store {
    use std::io::{Read as _, Write as _};
    server(move |mut connection| {
        let _ = connection.read(&mut [0; 4096]);
        let _ = write!(
            connection,
            "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        );
    })
}

#[test]
fn a_shard_without_a_copy_says_that_it_waits_for_a_store_that_is_none() {
    let mut fixture = RestoreFixture::new();
    fixture.uploads_to(answering("404 Not Found"));
    let mut announced = Vec::new();
    let opened = open(&fixture.setup("one"), &Shutdown::new(), |text| announced.push(text));
    let error = opened.err().unwrap();
    assert_eq!((error.remedy, error.from_store), (Remedy::Retry, true));
    assert!(error.reason.contains("it answers 404 Not Found"), "{}", error.reason);
    assert!(announced.concat().contains(&error.reason), "{announced:?}");
}

#[test]
fn a_store_that_refuses_keeps_no_shard_from_going_on_with_its_copy() {
    let mut fixture = RestoreFixture::new();
    fixture.advance("one", 40);
    fixture.uploads_to(answering("403 Forbidden"));
    let with_copy = fixture.open("one");
    assert_eq!(with_copy.db.progress().position, Offset(40));
    assert!(with_copy.newest.is_none());

    let mut announced = Vec::new();
    let without = open(&fixture.setup("two"), &Shutdown::new(), |text| announced.push(text));
    let error = without.err().unwrap();
    assert_eq!((error.remedy, error.from_store), (Remedy::Correct, true));
    assert!(error.reason.contains("check the credentials"), "{}", error.reason);
    assert!(announced.is_empty(), "the shard stops, and says so itself: {announced:?}");
}

#[test]
fn a_store_that_hangs_holds_up_no_hand_over() {
    let mut fixture = RestoreFixture::new();
    let (keep, kept) = std::sync::mpsc::channel();
    fixture.uploads_to(server(move |connection| keep.send(connection).unwrap_or_default()));
    let setup = fixture.setup("one");
    let lease = setup.lease.clone();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        lease.release_by(Instant::now() + Duration::from_secs(1));
    });
    let error = open(&setup, &Shutdown::new(), |_| {}).err().unwrap();
    assert!(error.reason.contains("handed over before it is restored"), "{}", error.reason);
    drop(kept);
}
