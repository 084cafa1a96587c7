use std::collections::BTreeMap;

use headwater_types::{Offset, PartitionId, Remedy, Tallies};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::{KeyRange, NEVER_EXPIRES, RowHeader, dump, encode_header};

pub(crate) fn identity() -> Identity {
    Identity { generation: "0123456789abcdef".parse().unwrap(), partition: PartitionId(3) }
}

pub(crate) fn options() -> Options {
    Options { write_buffer_bytes: 1 << 20, ..Options::default() }
}

pub(crate) fn open(path: &Path) -> ShardDb {
    ShardDb::open(path, &identity(), &options()).unwrap()
}

pub(crate) fn row(time: i64, payload: &str) -> Vec<u8> {
    let mut row = Vec::new();
    encode_header(&RowHeader { time: EventTime(time), last_offset: Offset(9) }, &mut row);
    row.extend_from_slice(payload.as_bytes());
    row
}

pub(crate) fn at(position: u64) -> Progress {
    Progress {
        position: Offset(position),
        tallies: Tallies { applied: position, ..Tallies::default() },
        ..Progress::default()
    }
}

pub(crate) fn put(db: &ShardDb, progress: Progress, rows: &[(&str, Vec<u8>)]) {
    let puts = rows.iter().map(|(key, row)| (key.as_bytes(), row.as_slice()));
    db.commit(Commit { progress, puts, outbox: &[] }).unwrap();
}

fn loaded(db: &ShardDb, keys: &[&str]) -> BTreeMap<usize, Vec<u8>> {
    let keys: Vec<_> = keys.iter().map(|key| key.as_bytes()).collect();
    let mut rows = BTreeMap::new();
    db.load(&keys, |index, row| {
        rows.insert(index, row.to_vec());
    })
    .unwrap();
    rows
}

fn outbox_key(position: u64, index: u32) -> OutboxKey {
    OutboxKey { position: Offset(position), index }
}

#[test]
fn a_new_shard_has_read_nothing() {
    let dir = TempDir::new().unwrap();
    assert_eq!(open(dir.path()).progress(), Progress::default());
}

#[test]
fn what_was_committed_is_found_after_a_restart() {
    let dir = TempDir::new().unwrap();
    let db = open(dir.path());
    put(&db, at(5), &[("a", row(1, "one")), ("b", row(2, "two"))]);
    put(&db, at(7), &[("b", row(3, "three"))]);
    drop(db);

    let db = open(dir.path());
    assert_eq!(db.progress(), at(7));
    assert_eq!(
        loaded(&db, &["", "a", "b", "c"]),
        [(1, row(1, "one")), (2, row(3, "three"))].into()
    );
}

#[test]
fn rows_are_found_among_more_keys_than_are_asked_for_at_once() {
    let dir = TempDir::new().unwrap();
    let db = open(dir.path());
    let keys: Vec<_> = (0..3 * LOAD_BATCH + 7).map(|n| format!("{n:05}")).collect();
    let stored: Vec<_> = keys.iter().step_by(3).map(|key| (key.as_str(), row(1, key))).collect();
    put(&db, at(1), &stored);

    let found = loaded(&db, &keys.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(
        found,
        keys.iter().enumerate().step_by(3).map(|(index, key)| (index, row(1, key))).collect()
    );
}

#[test]
fn a_directory_of_another_shard_is_refused() {
    let dir = TempDir::new().unwrap();
    drop(open(dir.path()));
    let other = Identity { partition: PartitionId(4), ..identity() };
    let error = ShardDb::open(dir.path(), &other, &options()).unwrap_err();
    assert_eq!(error.remedy(), Remedy::Correct);
    let text = error.to_string();
    assert!(
        text.contains("partition 3") && text.contains("partition 4") && text.contains("delete it"),
        "{text}"
    );
}

#[test]
fn a_newer_format_is_refused_with_what_to_do() {
    let dir = TempDir::new().unwrap();
    let db = open(dir.path());
    db.db.put(FORMAT_KEY, (FORMAT + 1).to_be_bytes()).unwrap();
    drop(db);
    let error = ShardDb::open(dir.path(), &identity(), &options()).unwrap_err();
    assert_eq!(error.remedy(), Remedy::Correct);
    assert!(error.to_string().contains("start the newer Headwater"), "{error}");
}

#[test]
fn a_second_writer_is_refused() {
    let dir = TempDir::new().unwrap();
    let _first = open(dir.path());
    let error = ShardDb::open(dir.path(), &identity(), &options()).unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error:?}");
}

#[test]
fn a_damaged_file_is_reported_and_not_read() {
    let dir = TempDir::new().unwrap();
    let db = open(dir.path());
    put(&db, at(1), &[("a", row(1, "one"))]);
    db.compact().unwrap();
    drop(db);
    for entry in fs::read_dir(dir.path()).unwrap().flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "sst") {
            let mut bytes = fs::read(entry.path()).unwrap();
            bytes.iter_mut().for_each(|byte| *byte ^= 0x5a);
            fs::write(entry.path(), bytes).unwrap();
        }
    }
    let error = ShardDb::open(dir.path(), &identity(), &options()).unwrap_err();
    assert_eq!(error.remedy(), Remedy::Repair, "{error:?}");
}

#[test]
fn the_outbox_is_read_in_order_and_in_parts() {
    let dir = TempDir::new().unwrap();
    let db = open(dir.path());
    let entries: Vec<_> =
        [(2, 0), (2, 1), (3, 0), (300, 0)].map(|(p, i)| (outbox_key(p, i), vec![b'x'; 100])).into();
    db.commit(Commit { progress: at(301), puts: [], outbox: &entries }).unwrap();

    assert_eq!(db.outbox(OutboxKey::default(), usize::MAX).unwrap(), entries);
    assert_eq!(db.outbox(OutboxKey::default(), 1).unwrap(), entries[..1], "at least one");
    assert_eq!(db.outbox(OutboxKey::default(), 250).unwrap(), entries[..2]);
    assert_eq!(db.outbox(outbox_key(2, 1), usize::MAX).unwrap(), entries[1..]);
}

#[test]
fn what_was_published_leaves_the_outbox_together_with_the_new_cursor() {
    let dir = TempDir::new().unwrap();
    let db = open(dir.path());
    let entries = [(2, 0), (2, 1), (3, 0)].map(|(p, i)| (outbox_key(p, i), vec![1]));
    db.commit(Commit { progress: at(4), puts: [], outbox: &entries }).unwrap();
    assert_eq!(db.outbox_cursor().unwrap(), None);

    db.outbox_published(outbox_key(2, 1), b"there").unwrap();
    drop(db);

    let db = open(dir.path());
    assert_eq!(db.outbox(OutboxKey::default(), usize::MAX).unwrap(), entries[1..]);
    assert_eq!(db.outbox_cursor().unwrap(), Some(b"there".to_vec()));
}

#[test]
fn a_checkpoint_stays_as_it_was_and_is_taken_once() {
    let dir = TempDir::new().unwrap();
    let db = open(&dir.path().join("shard"));
    let copy = dir.path().join("checkpoints/3/replay.1");
    put(&db, at(5), &[("a", row(1, "one"))]);
    assert_eq!(db.checkpoint(&copy).unwrap(), at(5));

    put(&db, at(9), &[("a", row(1, "later")), ("b", row(1, "more"))]);
    assert_eq!(db.checkpoint(&copy).unwrap(), at(5), "it exists, so that nothing is done");
    drop(db);

    let reader = ShardReader::open_checkpoint(&copy, &identity()).unwrap();
    let content = dump(reader.view()).unwrap();
    assert_eq!(content.progress, at(5));
    assert_eq!(content.rows.len(), 1);
    assert_eq!(content.rows[0].2, b"one");
    // The copy is a complete database that a shard can continue from.
    assert_eq!(open(&copy).progress(), at(5));
}

#[test]
fn half_a_checkpoint_of_a_crash_is_thrown_away() {
    let dir = TempDir::new().unwrap();
    let db = open(&dir.path().join("shard"));
    put(&db, at(5), &[("a", row(1, "one"))]);
    for half in ["copy.partial", "copy.partial.tmp"] {
        fs::create_dir_all(dir.path().join(half)).unwrap();
        fs::write(dir.path().join(half).join("CURRENT"), b"half").unwrap();
    }
    assert_eq!(db.checkpoint(&dir.path().join("copy")).unwrap(), at(5));
    assert!(!dir.path().join("copy.partial").exists());
}

/// A power cut may lose the last commits, and their horizon with them.
#[test]
fn a_row_that_only_an_unsynced_commit_expired_survives_compaction() {
    let dir = TempDir::new().unwrap();
    let db = open(dir.path());
    put(
        &db,
        at(1),
        &[("old", row(10, "x")), ("new", row(30, "x")), ("ever", row(NEVER_EXPIRES.0, "x"))],
    );
    let expired = Progress { rows_expired_before: EventTime(20), ..at(2) };
    put(&db, expired, &[]);

    db.compact().unwrap();
    assert!(db.holds(b"old"), "the horizon may be lost, and then this row is alive");

    db.sync().unwrap();
    assert_eq!(db.durable_horizon(), EventTime(20));
    db.compact().unwrap();
    assert!(!db.holds(b"old"));
    assert!(db.holds(b"new"));
    assert!(db.holds(b"ever"));
}

#[test]
fn rows_are_kept_if_expiry_is_off() {
    let dir = TempDir::new().unwrap();
    let db =
        ShardDb::open(dir.path(), &identity(), &Options { expire: false, ..options() }).unwrap();
    put(&db, Progress { rows_expired_before: EventTime(20), ..at(1) }, &[("old", row(10, "x"))]);
    db.sync().unwrap();
    db.compact().unwrap();
    assert!(db.holds(b"old"));
}

/// Copies a database in the state in which a crash of the process leaves it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        if entry.file_name() != "LOCK" {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// Simulates a power cut: cuts the last bytes off the write-ahead log.
fn cut_log(directory: &Path, keep: impl Fn(u64) -> u64) {
    let logs = fs::read_dir(directory).unwrap().flatten().map(|entry| entry.path());
    let log = logs
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .max()
        .unwrap();
    let file = fs::OpenOptions::new().write(true).open(&log).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(keep(length)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Law 3 rests on this: after a crash the database has rows, position and outbox of one commit.
    #[test]
    fn wherever_the_log_is_cut_some_commit_is_found_whole(
        commits in 1u64..20,
        cut in 0.0f64..=1.0,
    ) {
        let dir = TempDir::new().unwrap();
        let (live, crashed) = (dir.path().join("live"), dir.path().join("crashed"));
        let db = open(&live);
        for n in 1..=commits {
            let (count, other) = (row(1, &n.to_string()), row(1, "x"));
            let key = format!("only {n:03}");
            let puts = [(b"count".as_slice(), count.as_slice()), (key.as_bytes(), other.as_slice())];
            let outbox = [(outbox_key(n, 0), n.to_be_bytes().to_vec())];
            db.commit(Commit { progress: at(n), puts, outbox: &outbox }).unwrap();
        }
        copy(&live, &crashed);
        drop(db);
        cut_log(&crashed, |length| (length as f64 * cut) as u64);

        let Ok(db) = ShardDb::open(&crashed, &identity(), &options()) else {
            panic!("a cut log is no damage");
        };
        let found = db.progress().position.0;
        prop_assert!(found <= commits);
        prop_assert_eq!(db.progress(), if found == 0 { Progress::default() } else { at(found) });
        let count = loaded(&db, &["count"]);
        prop_assert_eq!(count.get(&0).cloned(), (found > 0).then(|| row(1, &found.to_string())));
        prop_assert_eq!(db.outbox(OutboxKey::default(), usize::MAX).unwrap().len() as u64, found);
        drop(db);
        let reader = ShardReader::open_checkpoint(&crashed, &identity()).unwrap();
        let mut rows = 0;
        let mut scan = reader.view().scan(KeyRange::prefix(b"only "));
        while let Some(row) = scan.next() {
            row.unwrap();
            rows += 1;
        }
        prop_assert_eq!(rows, found);
    }
}
