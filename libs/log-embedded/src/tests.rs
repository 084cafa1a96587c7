mod full_disk;
mod model;

use std::{fs, path::PathBuf, time::Duration};

use headwater_log::{BatchBuilder, BatchHeader, block_on, conformance};
use headwater_types::Remedy;
use rocksdb::DB;
use tempfile::TempDir;

use super::*;

const ZERO: PartitionId = PartitionId(0);

fn topic() -> Name {
    Name::new("orders").unwrap()
}

fn batch(values: &[&[u8]]) -> EncodedBatch {
    let mut builder = BatchBuilder::new();
    for value in values {
        builder.push(7, Some(b"key"), Some(value), &[]);
    }
    builder.build().unwrap()
}

fn open(directory: &Path) -> Arc<EmbeddedLog> {
    let log = EmbeddedLog::open(directory, Options::default()).unwrap();
    block_on(log.create_topic(&topic(), TopicSpec::keep(2))).unwrap();
    log
}

fn append(log: &EmbeddedLog, value: &[u8]) -> Result<Offset, LogError> {
    block_on(log.append(&topic(), ZERO, batch(&[value]))).map(|appended| appended.first())
}

fn values(log: &EmbeddedLog) -> Vec<Vec<u8>> {
    let ends = block_on(log.ends(&topic(), ZERO)).unwrap();
    let mut reader = block_on(log.reader(&topic(), ZERO, ends.start)).unwrap();
    let mut values = Vec::new();
    while reader.position() < ends.end {
        let from = reader.position();
        let chunk = reader.read(1 << 16, Duration::ZERO).unwrap().unwrap();
        values.extend(chunk.records(from).map(|record| record.unwrap().value.unwrap().to_vec()));
    }
    values
}

/// A copy of the directory as a crash at this moment would leave it.
fn crashed(directory: &Path) -> TempDir {
    let copy = TempDir::new().unwrap();
    fs::create_dir(copy.path().join("rocksdb")).unwrap();
    for part in ["", "rocksdb"] {
        for entry in fs::read_dir(directory.join(part)).unwrap().map(|entry| entry.unwrap()) {
            if entry.file_type().unwrap().is_file() {
                fs::copy(entry.path(), copy.path().join(part).join(entry.file_name())).unwrap();
            }
        }
    }
    copy
}

/// The database without the log around it.
fn tamper(directory: &Path, change: impl FnOnce(&DB)) {
    let path = directory.join("rocksdb");
    let options = rocksdb::Options::default();
    let families = DB::list_cf(&options, &path).unwrap();
    change(&DB::open_cf(&options, &path, families).unwrap());
}

struct Embedded(TempDir, Options);

impl conformance::Subject for Embedded {
    fn open(&self) -> Arc<dyn Log> {
        EmbeddedLog::open(self.0.path(), self.1.clone()).unwrap()
    }
    fn durable(&self) -> bool {
        true
    }
}

#[test]
fn the_embedded_log_keeps_every_law() {
    conformance::all(&Embedded(TempDir::new().unwrap(), Options::default()));
}

/// Small buffers bring the paths that otherwise only large data takes: flushed files, blob files,
/// and a queue that is full most of the time.
#[test]
fn the_embedded_log_keeps_every_law_with_little_memory() {
    let options = Options {
        queue_bytes: 1_000,
        write_buffer_bytes: 64 << 10,
        block_cache_bytes: 0,
        ..Options::default()
    };
    conformance::all(&Embedded(TempDir::new().unwrap(), options));
}

#[test]
fn what_was_acknowledged_is_there_after_a_crash_at_any_moment() {
    let directory = TempDir::new().unwrap();
    let log = open(directory.path());
    for number in 0..20u8 {
        append(&log, &[number]).unwrap();
        if number % 5 == 0 {
            let copy = crashed(directory.path());
            let after = open(copy.path());
            let expected: Vec<_> = (0..=number).map(|number| vec![number]).collect();
            assert_eq!(values(&after), expected);
            assert_eq!(append(&after, b"next").unwrap(), Offset(u64::from(number) + 1));
        }
    }
    block_on(log.trim(&topic(), ZERO, Offset(3))).unwrap();
    let old = block_on(log.writer(&WriterId("w".into()))).unwrap().epoch();
    let after = crashed(directory.path());
    let after = open(after.path());
    assert_eq!(
        block_on(after.ends(&topic(), ZERO)).unwrap(),
        Ends { start: Offset(3), end: Offset(20) }
    );
    assert!(block_on(after.writer(&WriterId("w".into()))).unwrap().epoch() > old);
}

#[test]
fn every_acknowledgement_comes_after_a_forced_write() {
    let directory = TempDir::new().unwrap();
    let log = open(directory.path());
    let mut syncs = log.shared.store.syncs();
    let mut forced = |what: &str| {
        let now = log.shared.store.syncs();
        assert!(now > syncs, "{what} was only in the memory of the operating system");
        syncs = now;
    };
    for _ in 0..3 {
        append(&log, b"a").unwrap();
        forced("an append");
    }
    block_on(log.writer(&WriterId("w".into()))).unwrap();
    forced("a claim");
    block_on(log.trim(&topic(), ZERO, Offset(1))).unwrap();
    forced("a trim");
    block_on(log.create_topic(&Name::new("other").unwrap(), TopicSpec::keep(1))).unwrap();
    forced("a topic");
}

/// One forced write takes milliseconds, so many writers have to share it.
#[test]
fn appends_that_wait_together_are_forced_together() {
    let directory = TempDir::new().unwrap();
    let log = open(directory.path());
    let before = log.shared.store.syncs();
    let claims = log.shared.claims.lock();
    let appended: Vec<_> = (0..200).map(|_| log.append(&topic(), ZERO, batch(&[b"a"]))).collect();
    drop(claims);
    for (offset, appended) in appended.into_iter().enumerate() {
        assert_eq!(block_on(appended).unwrap().first(), Offset(offset as u64));
    }
    let syncs = log.shared.store.syncs() - before;
    assert!(syncs <= 2, "{syncs} forced writes for 200 appends");
}

#[test]
fn a_second_process_is_told_who_holds_the_directory() {
    let directory = TempDir::new().unwrap();
    let log = open(directory.path());
    let error = EmbeddedLog::open(directory.path(), Options::default()).map(drop).unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error:?}");
    assert_eq!(error.remedy(), Remedy::Correct);
    let text = error.to_string();
    assert!(text.contains(&directory.path().display().to_string()), "{text}");
    assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
    drop(log);
    open(directory.path());
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let directory = TempDir::new().unwrap();
    drop(open(directory.path()));
    let format = directory.path().join("FORMAT");
    assert_eq!(fs::read_to_string(&format).unwrap(), "headwater-log 1\n");
    fs::write(&format, "headwater-log 2\n").unwrap();
    let error = EmbeddedLog::open(directory.path(), Options::default()).map(drop).unwrap_err();
    assert!(matches!(error, Error::NewerFormat { found: 2, known: 1, .. }), "{error:?}");
    assert!(error.to_string().contains("run the version that wrote it"), "{error}");
    fs::write(&format, "what is this").unwrap();
    let error = EmbeddedLog::open(directory.path(), Options::default()).map(drop).unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
    fs::write(&format, "headwater-log 1").unwrap();
    open(directory.path());
}

#[test]
fn a_directory_of_something_else_is_not_touched() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("thesis.txt"), "mine").unwrap();
    let error = EmbeddedLog::open(directory.path(), Options::default()).map(drop).unwrap_err();
    assert!(matches!(error, Error::Foreign { .. }), "{error:?}");
    let file = directory.path().join("thesis.txt");
    let error = EmbeddedLog::open(&file, Options::default()).map(drop).unwrap_err();
    assert!(matches!(error, Error::Directory { .. }), "{error:?}");
    assert_eq!(error.remedy(), Remedy::Correct);
}

#[test]
fn a_batch_over_the_limit_is_refused_with_the_limit() {
    let directory = TempDir::new().unwrap();
    let options = Options { max_batch_bytes: 1000, ..Options::default() };
    let log = EmbeddedLog::open(directory.path(), options).unwrap();
    block_on(log.create_topic(&topic(), TopicSpec::keep(1))).unwrap();
    let error = append(&log, &[0; 1000]).unwrap_err();
    assert!(matches!(error, LogError::TooLarge { limit: 1000, .. }), "{error:?}");
    assert!(error.to_string().contains("the limit of 1000"), "{error}");
    assert_eq!(append(&log, &[0; 900]).unwrap(), Offset(0));
}

#[test]
fn a_closed_log_answers_with_errors() {
    let directory = TempDir::new().unwrap();
    let log = open(directory.path());
    append(&log, b"a").unwrap();
    let writer = block_on(log.writer(&WriterId("w".into()))).unwrap();
    let mut reader = block_on(log.reader(&topic(), ZERO, Offset(1))).unwrap();
    let waiting = std::thread::spawn(move || reader.read(1, Duration::MAX).map(drop));
    std::thread::sleep(Duration::from_millis(50));
    let last = log.append(&topic(), ZERO, batch(&[b"b"]));
    let mut behind = block_on(log.reader(&topic(), ZERO, Offset(0))).unwrap();
    drop(log);
    assert_eq!(
        block_on(last).unwrap().first(),
        Offset(1),
        "what was appended before is still committed"
    );
    // It was woken by that append or by the end.
    let _ = waiting.join().unwrap();
    assert!(matches!(behind.read(1, Duration::ZERO), Err(LogError::Unavailable(_))));
    let refused = block_on(writer.append(&topic(), ZERO, batch(&[b"c"])));
    assert!(matches!(refused, Err(LogError::Unavailable(_))), "{refused:?}");
    assert_eq!(values(&open(directory.path())), [b"a", b"b"]);
}

#[test]
fn foreign_bytes_in_the_catalog_are_damage() {
    let foreign: [(&[u8], &[u8]); 5] = [
        (b"tother", b"?"),
        (b"t/", &[1; 10]),
        (b"w\xff", &[0; 8]),
        (b"wx", b"short"),
        (b"t\xff", b""),
    ];
    for (key, value) in foreign {
        let directory = TempDir::new().unwrap();
        drop(open(directory.path()));
        tamper(directory.path(), |db| db.put(key, value).unwrap());
        let error = EmbeddedLog::open(directory.path(), Options::default()).map(drop).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{key:?}: {error:?}");
        assert_eq!(error.remedy(), Remedy::Repair);
    }
}

#[test]
fn foreign_bytes_among_the_batches_are_corrupt_where_they_are_read() {
    let key = BatchKey { partition: 0, base: Offset(2), records: 1, before: 0 };
    let good = {
        let mut good = batch(&[b"x"]);
        good.assign(Offset(2));
        good.into_bytes()
    };
    let mut other_base = good.clone();
    other_base[7] = 9;
    let foreign: [(&[u8], &[u8], &str); 5] = [
        (&key.encode(), b"", "it ends within its header"),
        (&key.encode(), &good[..70], "its length is impossible"),
        (&key.encode(), &other_base, "another batch"),
        (&BatchKey { base: Offset(3), ..key }.encode(), &good, "are missing"),
        (&[0, 0, 0, 0, 9], b"", "foreign key"),
    ];
    for (key, value, detail) in foreign {
        let directory = TempDir::new().unwrap();
        let log = open(directory.path());
        for value in [b"a", b"b"] {
            append(&log, value).unwrap();
        }
        drop(log);
        tamper(directory.path(), |db| {
            db.put_cf(db.cf_handle("topic-0").unwrap(), key, value).unwrap()
        });
        let outcome = EmbeddedLog::open(directory.path(), Options::default()).map_err(|error| {
            let Error::Log(error) = error else { panic!("{error:?}") };
            error
        });
        let outcome = outcome.and_then(|log| {
            let mut reader = block_on(log.reader(&topic(), ZERO, Offset(0)))?;
            while reader.read(1, Duration::ZERO)?.is_some() {}
            Ok(())
        });
        let error = outcome.unwrap_err();
        assert_eq!(error.remedy(), Remedy::Repair);
        let text = error.to_string();
        assert!(text.contains("orders[0]") && text.contains(detail), "{text}");
    }
}

#[test]
fn a_damaged_file_is_noticed() {
    let directory = TempDir::new().unwrap();
    let log = open(directory.path());
    for _ in 0..100 {
        append(&log, &[b'x'; 5000]).unwrap();
    }
    // Trimming writes what is in memory to files.
    block_on(log.trim(&topic(), ZERO, Offset(1))).unwrap();
    drop(log);
    let blob: Vec<PathBuf> = fs::read_dir(directory.path().join("rocksdb"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "blob"))
        .collect();
    let [blob] = &blob[..] else { panic!("{blob:?}") };
    let mut bytes = fs::read(blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(blob, bytes).unwrap();
    let log = open(directory.path());
    let mut reader = block_on(log.reader(&topic(), ZERO, Offset(1))).unwrap();
    let error = loop {
        let chunk = reader.read(1, Duration::ZERO);
        let chunk = chunk.map(|chunk| chunk.expect("the damage went unnoticed"));
        match chunk
            .and_then(|chunk| chunk.records(Offset(1)).try_for_each(|record| record.map(drop)))
        {
            Ok(()) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.remedy(), Remedy::Repair, "{error}");
    assert!(error.to_string().contains("orders[0]"), "{error}");
}

#[test]
fn trimming_gives_the_disk_back() {
    let directory = TempDir::new().unwrap();
    let options = Options { write_buffer_bytes: 256 << 10, ..Options::default() };
    let log = EmbeddedLog::open(directory.path(), options).unwrap();
    block_on(log.create_topic(&topic(), TopicSpec::keep(1))).unwrap();
    for number in 0..400u32 {
        append(&log, &[number as u8; 20_000]).unwrap();
    }
    let used = || -> u64 {
        fs::read_dir(directory.path().join("rocksdb"))
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum()
    };
    let before = used();
    block_on(log.trim(&topic(), ZERO, Offset(399))).unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while used() > before / 2 {
        assert!(
            std::time::Instant::now() < deadline,
            "{} of {before} bytes are still there",
            used()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(values(&log).len(), 1);
}

#[test]
fn a_topic_that_compacts_does_not_grow_with_its_history() {
    let directory = TempDir::new().unwrap();
    let compact = Name::new("status").unwrap();
    let stored = |log: &EmbeddedLog| {
        let mut reader = block_on(log.reader(&compact, ZERO, Offset(0))).unwrap();
        let mut bases = Vec::new();
        while let Some(chunk) = reader.read(1, Duration::ZERO).unwrap() {
            bases.push(BatchHeader::read(chunk.bytes()).unwrap().base_offset.0);
        }
        bases
    };
    let log = EmbeddedLog::open(directory.path(), Options::default()).unwrap();
    block_on(log.create_topic(&compact, TopicSpec::compact(1))).unwrap();
    for number in 0..100u8 {
        block_on(log.append(&compact, ZERO, batch(&[&[number]]))).unwrap();
    }
    // The last removal runs behind the last acknowledgement; a claim waits for it.
    block_on(log.writer(&WriterId("w".into()))).unwrap();
    assert_eq!(stored(&log), [99]);
    drop(log);
    let log = EmbeddedLog::open(directory.path(), Options::default()).unwrap();
    assert_eq!(stored(&log), [99]);
    assert_eq!(block_on(log.ends(&compact, ZERO)).unwrap().end, Offset(100));
}
