use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use headwater_types::{Offset, PartitionId, Remedy};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::{
    ShardDb, digest, dump,
    shard::tests::{at, identity, open, options, put, row},
};

struct Shard {
    dir: TempDir,
    db: ShardDb,
}

impl Shard {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let db = open(&dir.path().join("shard"));
        Self { dir, db }
    }

    fn reader(&self) -> ShardReader {
        ShardReader::open_live(self.db.path(), &self.dir.path().join("scratch"), &identity())
            .unwrap()
    }
}

fn keys(mut scan: RowScan<'_>) -> Vec<String> {
    let mut keys = Vec::new();
    while let Some(row) = scan.next() {
        keys.push(String::from_utf8(row.unwrap().0.to_vec()).unwrap());
    }
    assert!(scan.next().is_none(), "the end is the end");
    keys
}

#[test]
fn a_reader_sees_what_was_committed_when_it_asks() {
    let shard = Shard::new();
    put(&shard.db, at(1), &[("a", row(1, "one"))]);
    let reader = shard.reader();
    assert_eq!(reader.view().progress(), at(1));

    put(&shard.db, at(2), &[("a", row(1, "two"))]);
    assert_eq!(reader.view().get(b"a").unwrap().unwrap().1, b"one", "nobody asked");
    assert_eq!(reader.refresh().unwrap(), at(2));
    let (header, payload) = reader.view().get(b"a").unwrap().unwrap();
    assert_eq!((header.time, payload.as_slice()), (EventTime(1), b"two".as_slice()));
    assert_eq!(reader.view().get(b"b").unwrap(), None);
}

#[test]
fn a_reader_of_a_shard_that_does_not_exist_is_told_to_come_back() {
    let dir = TempDir::new().unwrap();
    let scratch = dir.path().join("scratch");
    for path in [dir.path().to_path_buf(), dir.path().join("none")] {
        for error in [
            ShardReader::open_live(&path, &scratch, &identity()).unwrap_err(),
            ShardReader::open_checkpoint(&path, &identity()).unwrap_err(),
        ] {
            assert!(matches!(error, Error::Missing { .. }), "{error:?}");
            assert_eq!(error.remedy(), Remedy::Retry);
        }
        assert!(!path.join("CURRENT").exists(), "a reader begins nothing");
    }
}

#[test]
fn a_reader_of_another_shard_is_refused() {
    let shard = Shard::new();
    let other = Identity { partition: PartitionId(0), ..identity() };
    let error = ShardReader::open_live(shard.db.path(), &shard.dir.path().join("scratch"), &other)
        .unwrap_err();
    assert!(matches!(error, Error::OtherIdentity { .. }), "{error:?}");
}

#[test]
fn a_reader_outlives_the_writer() {
    let shard = Shard::new();
    put(&shard.db, at(1), &[("a", row(1, "one"))]);
    let reader = shard.reader();
    put(&shard.db, at(2), &[("b", row(1, "two"))]);
    drop(shard.db);
    assert_eq!(reader.refresh().unwrap(), at(2));

    let db = open(&shard.dir.path().join("shard"));
    put(&db, at(3), &[("c", row(1, "three"))]);
    assert_eq!(reader.refresh().unwrap(), at(3));
    assert_eq!(keys(reader.view().scan(KeyRange::all())), ["a", "b", "c"]);
}

#[test]
fn a_scan_keeps_its_range_and_its_order() {
    let shard = Shard::new();
    let rows = ["", "a", "a\0", "ab", "b", "\u{10ffff}"].map(|key| (key, row(1, "x")));
    put(&shard.db, at(1), &rows);
    let reader = shard.reader();
    let scan = |range| keys(reader.view().scan(range));
    assert_eq!(scan(KeyRange::all()), ["", "a", "a\0", "ab", "b", "\u{10ffff}"]);
    assert_eq!(scan(KeyRange::prefix(b"a")), ["a", "a\0", "ab"]);
    assert_eq!(scan(KeyRange::from(b"ab".to_vec())), ["ab", "b", "\u{10ffff}"]);
    assert_eq!(scan(KeyRange { start: b"a\0".to_vec(), end: Some(b"b".to_vec()) }), ["a\0", "ab"]);
    assert!(scan(KeyRange { start: b"b".to_vec(), end: Some(b"a".to_vec()) }).is_empty());
}

#[test]
fn expired_rows_are_hidden_whether_or_not_they_are_still_there() {
    let shard = Shard::new();
    let horizon = |progress| Progress { rows_expired_before: EventTime(20), ..progress };
    put(&shard.db, horizon(at(1)), &[("a", row(20, "x")), ("b", row(21, "x"))]);
    let reader = shard.reader();
    assert!(shard.db.holds(b"a"));
    assert_eq!(reader.view().get(b"a").unwrap(), None);
    assert!(reader.view().get(b"b").unwrap().is_some());
    assert_eq!(keys(reader.view().scan(KeyRange::all())), ["b"]);
    let before = digest(reader.view()).unwrap();

    shard.db.sync().unwrap();
    shard.db.compact().unwrap();
    assert!(!shard.db.holds(b"a"));
    reader.refresh().unwrap();
    assert_eq!(
        digest(reader.view()).unwrap(),
        before,
        "compaction changes nothing that can be seen"
    );
}

#[test]
fn a_scan_is_of_its_commit_while_the_reader_catches_up() {
    let shard = Shard::new();
    put(&shard.db, at(1), &[("a", row(1, "one")), ("b", row(1, "one"))]);
    let reader = shard.reader();
    let mut scan = reader.view().scan(KeyRange::all());
    assert_eq!(scan.next().unwrap().unwrap().0, b"a");

    let expired = Progress { rows_expired_before: EventTime(5), ..at(2) };
    put(&shard.db, expired, &[("b", row(9, "two")), ("c", row(9, "two"))]);
    shard.db.sync().unwrap();
    shard.db.compact().unwrap();
    assert_eq!(reader.refresh().unwrap(), expired);

    let (key, _, payload) = scan.next().unwrap().unwrap();
    assert_eq!((key, payload), (b"b".as_slice(), b"one".as_slice()));
    assert!(scan.next().is_none());
    assert_eq!(scan.progress(), at(1));
    drop(scan);
    assert_eq!(keys(reader.view().scan(KeyRange::all())), ["b", "c"]);
}

/// A RocksDB secondary keeps rows that it read from a write-ahead log in memory, in front of newer
/// files, until it finds a record in the next log.
#[test]
fn what_went_to_a_file_before_the_reader_looked_is_seen_without_another_commit() {
    for by_checkpoint in [true, false] {
        let shard = Shard::new();
        put(&shard.db, at(1), &[("a", row(1, "one")), ("b", row(1, "one"))]);
        let reader = shard.reader();
        put(&shard.db, at(2), &[("a", row(1, "two"))]);
        match by_checkpoint {
            true => assert_eq!(shard.db.checkpoint(&shard.dir.path().join("copy")).unwrap(), at(2)),
            false => shard.db.compact().unwrap(),
        }
        assert_eq!(reader.refresh().unwrap(), at(2));
        assert_eq!(reader.view().get(b"a").unwrap().unwrap().1, b"two");
        assert!(reader.opened.newer.get().is_none(), "the writer left a mark");
    }
}

#[test]
fn a_reader_whose_writer_died_before_it_left_its_mark_sees_all_that_was_written() {
    let shard = Shard::new();
    put(&shard.db, at(1), &[("a", row(1, "one")), ("b", row(1, "one"))]);
    let reader = shard.reader();
    let mut old = reader.view().scan(KeyRange::all());
    put(&shard.db, at(2), &[("a", row(1, "two"))]);
    shard.db.flush_without_mark();
    assert_eq!(reader.refresh().unwrap(), at(2));
    assert_eq!(reader.view().get(b"a").unwrap().unwrap().1, b"two");
    assert_eq!(reader.view().get(b"b").unwrap().unwrap().1, b"one");
    assert_eq!(old.next().unwrap().unwrap().2, b"one", "an old scan goes on over the old database");
}

#[test]
fn a_reader_that_opens_while_a_writer_recovers_sees_the_rows_of_the_progress_that_it_shows() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("shard");
    put(&open(&path), at(1), &[("last", row(1, "1"))]);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for reader in 0..2 {
            let (path, scratch, done) =
                (&path, dir.path().join(format!("scratch-{reader}")), &done);
            scope.spawn(move || {
                let check = |reader: &ShardReader| {
                    let view = reader.view();
                    let shown = view.progress().position;
                    let (_, payload) = view.get(b"last").unwrap().unwrap();
                    assert_eq!(String::from_utf8(payload).unwrap(), shown.to_string());
                };
                while !done.load(Ordering::Relaxed) {
                    // A file may be deleted between listing and opening; the next attempt succeeds.
                    let Ok(reader) = ShardReader::open_live(path, &scratch, &identity()) else {
                        continue;
                    };
                    check(&reader);
                    if reader.refresh().is_ok() {
                        check(&reader);
                    }
                }
            });
        }
        let mut position = 1;
        for _ in 0..150 {
            // Reopens the database repeatedly, as after crashes: each open flushes the previous log
            // to a file.
            let db = open(&path);
            // A commit here would hide rows that a reader misses.
            thread::sleep(Duration::from_millis(15));
            for _ in 0..3 {
                position += 1;
                put(&db, at(position), &[("last", row(1, &position.to_string()))]);
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// The writer keeps two rows equal to its position, and flushes and compacts often, so that the
/// reader's files vanish under it. No view may mix two commits or show an older commit than the
/// refresh reported.
#[test]
fn views_are_of_one_commit_and_never_go_back_under_heavy_writing() {
    const COMMITS: u64 = 1500;
    let shard = Shard::new();
    put(&shard.db, at(1), &[("a", row(1, "1")), ("z", row(1, "1"))]);
    let reader = shard.reader();
    let (written, stop) = (AtomicU64::new(1), AtomicBool::new(false));
    thread::scope(|scope| {
        for worker in 0..3 {
            let (reader, written, stop) = (&reader, &written, &stop);
            scope.spawn(move || {
                let mut last = 0;
                while !stop.load(Ordering::Acquire) {
                    let expected = written.load(Ordering::Acquire);
                    if worker != 2 {
                        assert!(
                            reader.refresh().unwrap().position.0 >= expected,
                            "a refresh misses a commit"
                        );
                    }
                    let view = reader.view();
                    let position = view.progress().position.0;
                    assert!(position >= last, "back in time");
                    last = position;
                    if worker == 0 {
                        for key in ["a", "z"] {
                            let (_, payload) = view.get(key.as_bytes()).unwrap().unwrap();
                            assert_eq!(payload, position.to_string().as_bytes());
                        }
                    } else {
                        let content = dump(view).unwrap();
                        assert_eq!(content.progress, at(position));
                        assert!(
                            content.rows.iter().all(|row| row.2 == position.to_string().as_bytes())
                        );
                        assert_eq!(content.rows.len(), 2);
                    }
                }
            });
        }
        for n in 2..=COMMITS {
            put(&shard.db, at(n), &[("a", row(1, &n.to_string())), ("z", row(1, &n.to_string()))]);
            written.store(n, Ordering::Release);
            if n % 100 == 0 {
                shard.db.compact().unwrap();
            }
        }
        stop.store(true, Ordering::Release);
    });
    assert_eq!(reader.refresh().unwrap().position, Offset(COMMITS));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn the_digest_tells_contents_apart_and_nothing_else(
        rows in proptest::collection::btree_map("[ab]{0,3}", "[xy]{0,2}", 1..8),
        split in any::<proptest::sample::Index>(),
        changed in any::<proptest::sample::Index>(),
    ) {
        let content = |rows: &[(&str, Vec<u8>)], split: usize| {
            let shard = Shard::new();
            put(&shard.db, at(1), &rows[..split]);
            if split.is_multiple_of(2) {
                shard.db.compact().unwrap();
            }
            put(&shard.db, at(2), &rows[split..]);
            digest(shard.reader().view()).unwrap()
        };
        let mut rows: Vec<_> = rows.iter().map(|(key, value)| (key.as_str(), row(1, value))).collect();
        let once = content(&rows, 0);
        prop_assert_eq!(content(&rows, split.index(rows.len())), once);
        let at = changed.index(rows.len());
        rows[at].1.push(b'!');
        prop_assert_ne!(content(&rows, 0), once);
    }
}

#[test]
fn readers_can_share_a_cache() {
    let shard = Shard::new();
    put(&shard.db, at(1), &[("a", row(1, "one"))]);
    let copy = shard.dir.path().join("copy");
    shard.db.checkpoint(&copy).unwrap();
    let reader = ShardReader::open_checkpoint_with(&copy, &identity(), &options()).unwrap();
    assert_eq!(reader.refresh().unwrap(), at(1), "nothing to catch up with");
    assert!(reader.view().get(b"a").unwrap().is_some());
}

/// The data directory may be mounted read-only.
#[test]
fn a_reader_writes_nothing_into_the_directory_of_its_shard() {
    use std::{collections::BTreeMap, os::unix::fs::MetadataExt as _};
    let files = |directory: &Path| {
        let entries = fs::read_dir(directory).unwrap().map(|entry| {
            let entry = entry.unwrap();
            let file = entry.metadata().unwrap();
            (entry.file_name(), (file.len(), file.mtime(), file.mtime_nsec(), file.ino()))
        });
        let directory = fs::metadata(directory).unwrap();
        (entries.collect::<BTreeMap<_, _>>(), directory.mtime(), directory.mtime_nsec())
    };
    let Shard { dir, db } = Shard::new();
    let path = db.path().to_path_buf();
    put(&db, at(1), &[("a", row(1, "one"))]);
    db.compact().unwrap();
    put(&db, at(2), &[("b", row(1, "two"))]);
    drop(db);
    let before = files(&path);
    let reader = ShardReader::open_live(&path, &dir.path().join("scratch"), &identity()).unwrap();
    assert_eq!(reader.refresh().unwrap(), at(2));
    assert_eq!(keys(reader.view().scan(KeyRange::all())), ["a", "b"]);
    drop(reader);
    assert_eq!(files(&path), before);

    let copy = dir.path().join("copy");
    open(&path).checkpoint(&copy).unwrap();
    let before = files(&copy);
    let reader = ShardReader::open_checkpoint(&copy, &identity()).unwrap();
    assert_eq!(keys(reader.view().scan(KeyRange::all())), ["a", "b"]);
    drop(reader);
    assert_eq!(files(&copy), before);
}

#[test]
fn a_look_is_trusted_only_if_no_log_came_or_went_meanwhile() {
    let shard = Shard::new();
    put(&shard.db, at(1), &[("a", row(1, "one"))]);
    let reader = shard.reader();
    let look = |meanwhile: &dyn Fn()| {
        catch_up_once_while(&reader.opened.newest().db, shard.db.path(), meanwhile).unwrap()
    };
    assert!(look(&|| {}));
    assert!(
        look(&|| put(&shard.db, at(2), &[("a", row(1, "two"))])),
        "a commit is for the next look"
    );
    assert!(!look(&|| shard.db.compact().unwrap()), "a log was moved to a file and deleted");
    assert!(look(&|| {}));
    assert_eq!(reader.refresh().unwrap(), at(2));
}

#[test]
fn no_two_logs_have_one_name() {
    let shard = Shard::new();
    let mut seen = vec![logs(shard.db.path()).unwrap()];
    for position in 1..=5 {
        put(&shard.db, at(position), &[("a", row(1, "x"))]);
        assert_eq!(logs(shard.db.path()).unwrap(), *seen.last().unwrap(), "a commit begins none");
        shard.db.flush_without_mark();
        let names = logs(shard.db.path()).unwrap();
        assert!(!seen.contains(&names), "{names:?} was seen before: {seen:?}");
        seen.push(names);
    }
}
