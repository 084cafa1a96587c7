use std::sync::atomic::Ordering;

use headwater_engine::Stage;
use headwater_state::{Commit, Options, Progress};
use headwater_types::PartitionId;
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::*;
use crate::testing::{P0, TestLog, copy, generation, name, plan};

const EVERYTHING: u64 = 0;

fn window(from: u64, until: Option<u64>) -> OutputWindow {
    OutputWindow { from: Offset(from), until: until.map(Offset) }
}

fn permit(windows: &[OutputWindow]) -> Permit {
    Permit { windows: windows.to_vec(), muted_at: None }
}

fn everything() -> Permit {
    permit(&[window(EVERYTHING, None)])
}

/// The part of a generation's shard that publishes its outbox.
struct OutboxFixture {
    dir: TempDir,
    identity: Identity,
    db: ShardDb,
    publisher: Publisher,
    log: Arc<TestLog>,
    runtime: Handle,
}

impl OutboxFixture {
    fn new(number: u64, log: &Arc<TestLog>, runtime: &Runtime) -> Self {
        let dir = TempDir::new().unwrap();
        let identity = Identity { generation: generation(number), partition: P0 };
        let db = open(&dir.path().join("0"), identity);
        let runtime = runtime.handle().clone();
        let publisher = publisher(log, &runtime, identity);
        Self { dir, identity, db, publisher, log: log.clone(), runtime }
    }

    /// Commits one dead letter per position.
    fn commit(&self, positions: std::ops::Range<u64>) {
        let outbox: Vec<_> = positions
            .clone()
            .map(|position| (OutboxKey::at(Offset(position)), letter(position)))
            .collect();
        let progress = Progress { position: Offset(positions.end), ..Progress::default() };
        self.db.commit(Commit { progress, puts: [], outbox: &outbox }).unwrap();
    }

    fn publish(&mut self, permit: &Permit) -> Result<u64, ShardError> {
        self.publisher.publish(&self.db, permit)
    }

    fn frontier(&mut self) -> u64 {
        self.publisher.frontier(&self.db).unwrap().0
    }

    fn position(&self) -> u64 {
        self.db.progress().position.0
    }

    /// The process dies and begins again.
    fn restart(&mut self) {
        self.publisher = publisher(&self.log, &self.runtime, self.identity);
    }

    fn backup(&self, name: &str) {
        copy(self.db.path(), &self.dir.path().join(name));
    }

    /// A power cut takes away what was written since the backup.
    fn power_cut(&mut self, name: &str) {
        self.db = open(&self.dir.path().join(name), self.identity);
        self.restart();
    }

    fn waiting(&self) -> Vec<u64> {
        let entries = self.db.outbox(OutboxKey::default(), usize::MAX).unwrap();
        entries.iter().map(|(key, _)| key.position.0).collect()
    }
}

fn open(path: &std::path::Path, identity: Identity) -> ShardDb {
    ShardDb::open(path, &identity, &Options { write_buffer_bytes: 1 << 20, ..Options::default() })
        .unwrap()
}

fn publisher(log: &Arc<TestLog>, runtime: &Handle, identity: Identity) -> Publisher {
    let lease = Lease::alone(identity);
    Publisher::new(log.clone(), runtime.clone(), lease, name("spend"), &plan().stream)
}

fn letter(position: u64) -> Vec<u8> {
    DeadLetter {
        stage: Stage::Decode,
        reason: "it is no JSON",
        topic: "orders",
        partition: P0,
        offset: Offset(position),
        timestamp_ms: 17,
        key: Some(b"k"),
        value: Some(format!("bad {position}").as_bytes()),
    }
    .encode()
}

fn published(log: &TestLog) -> Vec<String> {
    log.dead_letters().into_iter().map(|(_, _, value)| value).collect()
}

fn bad(positions: impl IntoIterator<Item = u64>) -> Vec<String> {
    positions.into_iter().map(|position| format!("bad {position}")).collect()
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

#[test]
fn a_dead_letter_carries_the_record_and_where_it_came_from() {
    let (runtime, log) = (runtime(), TestLog::new());
    let mut outbox = OutboxFixture::new(5, &log, &runtime);
    outbox.commit(3..4);
    assert_eq!(outbox.publish(&everything()).unwrap(), 1);

    let mut reader = block_on(log.reader(&name("orders.dead-letters"), P0, Offset::ZERO)).unwrap();
    let chunk = reader.read(1 << 20, Duration::ZERO).unwrap().unwrap();
    let record = chunk.records(Offset::ZERO).next().unwrap().unwrap();
    assert_eq!(
        (record.timestamp_ms, record.key, record.value),
        (17, Some(b"k".as_slice()), Some(b"bad 3".as_slice()))
    );
    let headers: Vec<_> = record
        .headers
        .iter()
        .map(|(name, value)| (name, std::str::from_utf8(value.unwrap()).unwrap()))
        .collect();
    assert_eq!(
        headers,
        [
            ("headwater.generation", "0000000000000005"),
            ("headwater.partition", "0"),
            ("headwater.sequence", "3.0"),
            ("headwater.view", "spend"),
            ("headwater.stream", "orders"),
            ("headwater.topic", "orders"),
            ("headwater.offset", "3"),
            ("headwater.stage", "decode"),
            ("headwater.reason", "it is no JSON"),
            ("__connect.errors.topic", "orders"),
            ("__connect.errors.partition", "0"),
            ("__connect.errors.offset", "3"),
            ("__connect.errors.connector.name", "spend"),
            ("__connect.errors.task.id", "0"),
            ("__connect.errors.stage", "VALUE_CONVERTER"),
            ("__connect.errors.class.name", "headwater.Decode"),
            ("__connect.errors.exception.class.name", "headwater.DecodeError"),
            ("__connect.errors.exception.message", "it is no JSON"),
        ]
    );
    assert!(outbox.waiting().is_empty());
    assert_eq!(outbox.publisher.published(&outbox.db).unwrap(), Offset(4));
}

/// The names of the headers of the only dead letter, and its size with an overhead of 30 bytes.
fn headers_and_size(log: &TestLog) -> (Vec<String>, usize) {
    let mut reader = block_on(log.reader(&name("orders.dead-letters"), P0, Offset::ZERO)).unwrap();
    let chunk = reader.read(1 << 20, Duration::ZERO).unwrap().unwrap();
    let record = chunk.records(Offset::ZERO).next().unwrap().unwrap();
    let headers = || record.headers.iter().map(|(name, value)| (name, value.unwrap()));
    let size: usize = headers().map(|(name, value)| 10 + name.len() + value.len()).sum();
    let names = headers().map(|(name, _)| name.to_owned()).collect();
    (names, 30 + record.key.unwrap().len() + record.value.unwrap().len() + size)
}

#[test]
fn a_dead_letter_that_would_be_too_large_with_connects_headers_goes_without_them() {
    let runtime = runtime();
    let published = |limit: Option<usize>| {
        let log = TestLog::new();
        let limit = limit.map(|bytes| RecordLimit { bytes, overhead: 30, set_by: "the test" });
        *log.record_limit.lock() = limit;
        let mut outbox = OutboxFixture::new(5, &log, &runtime);
        outbox.commit(3..4);
        assert_eq!(outbox.publish(&everything()).unwrap(), 1);
        headers_and_size(&log)
    };
    let (all, size) = published(None);
    assert_eq!(published(Some(size)), (all.clone(), size), "just under the limit");
    let (own, smaller) = published(Some(size - 1));
    assert_eq!(own, all[..9], "ours come first, and Connect's go together");
    assert!(own.iter().all(|name| name.starts_with("headwater.")), "{own:?}");
    assert_eq!(published(Some(smaller)), (own.clone(), smaller));
    assert_eq!(published(Some(0)), (own, smaller), "whether it fits at all is for the log to say");
}

#[test]
fn a_backlog_of_small_dead_letters_is_published_in_batches_that_a_log_takes() {
    let (runtime, log) = (runtime(), TestLog::new());
    let mut outbox = OutboxFixture::new(5, &log, &runtime);
    // With so long a name, 1 MiB of the outbox is more than the 16 MiB that a log takes at once.
    let (lease, view) = (Lease::alone(outbox.identity), name(&"v".repeat(180)));
    outbox.publisher =
        Publisher::new(log.clone(), outbox.runtime.clone(), lease, view, &plan().stream);
    outbox.commit(0..30_000);
    let mut count = 0;
    while count < 30_000 {
        let published = outbox.publish(&everything()).unwrap();
        assert!(published > 0);
        count += published;
    }
    assert_eq!(published(&log).len(), 30_000);
    assert!(outbox.waiting().is_empty());
}

#[test]
fn the_windows_say_what_is_published_deleted_and_kept() {
    let windows = permit(&[window(2, Some(4)), window(6, Some(8))]);
    let fates: Vec<_> = (0..10).map(|position| windows.action_for(Offset(position))).collect();
    use EntryAction::{Delete, Keep, Publish};
    assert_eq!(
        fates,
        [Delete, Delete, Publish, Publish, Delete, Delete, Publish, Publish, Keep, Keep]
    );

    let muted = Permit { muted_at: Some(Offset(7)), ..windows };
    assert_eq!([6, 7].map(|position| muted.action_for(Offset(position))), [Publish, Keep]);
    assert_eq!(permit(&[]).action_for(Offset(3)), Keep, "it may own them some day");
}

#[test]
fn a_muted_shard_publishes_nothing_from_where_it_was_muted() {
    let (runtime, log) = (runtime(), TestLog::new());
    let mut outbox = OutboxFixture::new(1, &log, &runtime);
    outbox.commit(0..4);
    let muted = Permit { muted_at: Some(Offset(4)), ..everything() };
    outbox.commit(4..9);
    assert_eq!(outbox.publish(&muted).unwrap(), 4);
    assert_eq!(published(&log), bad(0..4));
    assert_eq!(outbox.publisher.published(&outbox.db).unwrap(), Offset(4));

    outbox.publish(&everything()).unwrap();
    assert_eq!(published(&log), bad(0..9), "the swap was cancelled");
}

#[test]
fn a_crash_between_publishing_and_noting_it_gives_no_duplicate() {
    let (runtime, log) = (runtime(), TestLog::new());
    let mut outbox = OutboxFixture::new(1, &log, &runtime);
    outbox.commit(0..3);
    outbox.publish(&everything()).unwrap();
    outbox.commit(3..6);
    outbox.backup("before");
    outbox.publish(&everything()).unwrap();

    outbox.power_cut("before");
    assert_eq!(outbox.waiting(), [3, 4, 5], "the outbox does not know that they were published");
    outbox.commit(6..7);
    assert_eq!(outbox.publish(&everything()).unwrap(), 1);
    assert_eq!(published(&log), bad(0..7));
}

#[test]
fn a_power_cut_that_takes_commits_away_gives_no_duplicate() {
    let (runtime, log) = (runtime(), TestLog::new());
    let mut outbox = OutboxFixture::new(1, &log, &runtime);
    outbox.commit(0..2);
    outbox.backup("before");
    outbox.publish(&everything()).unwrap();
    outbox.commit(2..6);
    outbox.publish(&everything()).unwrap();

    outbox.power_cut("before");
    outbox.commit(2..8);
    outbox.publish(&everything()).unwrap();
    assert_eq!(published(&log), bad(0..8));
}

#[test]
fn a_batch_of_which_the_log_did_not_say_whether_it_took_it_is_published_once() {
    let (runtime, log) = (runtime(), TestLog::new());
    let mut outbox = OutboxFixture::new(1, &log, &runtime);
    outbox.commit(0..3);
    log.doubtful.store(1, Ordering::Relaxed);
    assert_eq!(outbox.publish(&everything()).unwrap_err().remedy, Remedy::Retry);
    assert_eq!(outbox.waiting(), [0, 1, 2]);
    outbox.publish(&everything()).unwrap();
    assert_eq!(published(&log), bad(0..3));

    outbox.commit(3..5);
    log.refused.store(1, Ordering::Relaxed);
    assert_eq!(outbox.publish(&everything()).unwrap_err().remedy, Remedy::Retry);
    outbox.publish(&everything()).unwrap();
    assert_eq!(published(&log), bad(0..5));
}

#[test]
fn an_older_publisher_of_the_same_shard_is_fenced() {
    let (runtime, log) = (runtime(), TestLog::new());
    let mut outbox = OutboxFixture::new(1, &log, &runtime);
    outbox.commit(0..1);
    outbox.publish(&everything()).unwrap();
    outbox.commit(1..2);
    outbox.backup("other");
    let mut other = publisher(&log, runtime.handle(), outbox.identity);
    let db = open(&outbox.dir.path().join("other"), outbox.identity);
    other.publish(&db, &everything()).unwrap();

    assert_eq!(outbox.publish(&everything()).unwrap_err().remedy, Remedy::StandDown);
    assert_eq!(published(&log), bad(0..2));
}

#[test]
fn a_cursor_reads_back_and_one_of_another_topic_says_nothing() {
    let (runtime, log) = (runtime(), TestLog::new());
    let own = publisher(
        &log,
        runtime.handle(),
        Identity { generation: generation(1), partition: PartitionId(3) },
    );
    assert_eq!(
        own.encode_cursor(Offset(42)),
        b"1 orders.dead-letters@3:42",
        "stored, and read for ever"
    );
    assert_eq!(own.decode_cursor(b"1 orders.dead-letters@3:42"), Some(Offset(42)));
    for other in
        [b"1 others.dead-letters@3:42".as_slice(), b"1 orders.dead-letters@4:42", b"2 x", b""]
    {
        assert_eq!(own.decode_cursor(other), None);
    }
}

#[test]
fn a_trimmed_dead_letter_topic_is_no_obstacle() {
    let (runtime, log) = (runtime(), TestLog::new());
    let mut outbox = OutboxFixture::new(1, &log, &runtime);
    outbox.commit(0..4);
    outbox.publish(&everything()).unwrap();
    block_on(log.trim(&name("orders.dead-letters"), P0, Offset(4))).unwrap();
    outbox.restart();
    outbox.commit(4..6);
    outbox.publish(&everything()).unwrap();
    assert_eq!(published(&log), bad(4..6));
}

#[derive(Clone, Debug)]
enum OutboxEvent {
    Commit {
        side: usize,
        records: u64,
    },
    Publish {
        side: usize,
    },
    Restart {
        side: usize,
    },
    Backup {
        side: usize,
    },
    PowerCut {
        side: usize,
    },
    Doubt,
    Refuse,
    /// The serving side mutes, the other catches up, and they change places.
    Swap {
        cancelled: bool,
    },
}

fn event() -> impl Strategy<Value = OutboxEvent> {
    let side = 0..2usize;
    prop_oneof![
        4 => (side.clone(), 1..4u64).prop_map(|(side, records)| OutboxEvent::Commit { side, records }),
        4 => side.clone().prop_map(|side| OutboxEvent::Publish { side }),
        1 => side.clone().prop_map(|side| OutboxEvent::Restart { side }),
        1 => side.clone().prop_map(|side| OutboxEvent::Backup { side }),
        1 => side.prop_map(|side| OutboxEvent::PowerCut { side }),
        1 => Just(OutboxEvent::Doubt),
        1 => Just(OutboxEvent::Refuse),
        2 => any::<bool>().prop_map(|cancelled| OutboxEvent::Swap { cancelled }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Law 3 for outputs: whatever crashes, doubts and swaps happen, each record's dead letter is
    /// published once, by the generation that owns its offset.
    #[test]
    fn every_dead_letter_is_published_once_by_its_owner(events in proptest::collection::vec(event(), 1..40)) {
        let (runtime, log) = (runtime(), TestLog::new());
        let mut sides = [1, 2].map(|number| OutboxFixture::new(number, &log, &runtime));
        let mut windows = [vec![window(0, None)], vec![]];
        let mut backups = [None, None];
        let (mut serving, mut owners) = (0, Vec::new());
        // The furthest position of either: a power cut takes back the shard, not what was
        // published.
        let mut reached = 0;
        for (step, event) in events.into_iter().enumerate() {
            reached = sides.iter().map(OutboxFixture::position).fold(reached, u64::max);
            match event {
                OutboxEvent::Commit { side, records } => {
                    let position = sides[side].position();
                    sides[side].commit(position..position + records);
                }
                OutboxEvent::Publish { side } => {
                    let _ = sides[side].publish(&permit(&windows[side]));
                }
                OutboxEvent::Restart { side } => sides[side].restart(),
                OutboxEvent::Backup { side } => {
                    let name = format!("backup-{step}");
                    sides[side].backup(&name);
                    backups[side] = Some(name);
                }
                OutboxEvent::PowerCut { side } => {
                    if let Some(name) = backups[side].take() {
                        sides[side].power_cut(&name);
                    }
                }
                OutboxEvent::Doubt => log.doubtful.store(1, Ordering::Relaxed),
                OutboxEvent::Refuse => log.refused.store(1, Ordering::Relaxed),
                OutboxEvent::Swap { cancelled } => {
                    let other = 1 - serving;
                    let position = sides[serving].position();
                    let muted_at = position.max(sides[serving].frontier());
                    sides[serving].commit(position..muted_at + 2);
                    let muted = Permit { windows: windows[serving].clone(), muted_at: Some(Offset(muted_at)) };
                    let _ = sides[serving].publish(&muted);
                    if cancelled {
                        continue;
                    }
                    let position = sides[other].position();
                    sides[other].commit(position..position.max(muted_at));
                    let own: &mut OutputWindow = windows[serving].last_mut().unwrap();
                    let fence = Offset(muted_at).max(own.from);
                    own.until = Some(fence);
                    owners.resize(fence.0 as usize, serving);
                    windows[serving].retain(|window| window.until != Some(window.from));
                    windows[other].push(OutputWindow { from: fence, until: None });
                    serving = other;
                }
            }
        }
        // Without faults both reach the same end.
        let reached = sides.iter().map(OutboxFixture::position).fold(reached, u64::max);
        let end = reached.max(owners.len() as u64) + 1;
        owners.resize(end as usize, serving);
        log.doubtful.store(0, Ordering::Relaxed);
        log.refused.store(0, Ordering::Relaxed);
        for (side, windows) in sides.iter_mut().zip(&windows) {
            side.commit(side.position()..end);
            side.publish(&permit(windows)).unwrap();
        }
        let mut letters: Vec<_> = log
            .dead_letters()
            .into_iter()
            .map(|(generation, sequence, _)| {
                let position: u64 = sequence.split('.').next().unwrap().parse().unwrap();
                (position, generation)
            })
            .collect();
        letters.sort_unstable();
        let expected: Vec<_> = owners
            .iter()
            .enumerate()
            .map(|(position, side)| (position as u64, generation(*side as u64 + 1)))
            .collect();
        prop_assert_eq!(letters, expected);
    }
}
