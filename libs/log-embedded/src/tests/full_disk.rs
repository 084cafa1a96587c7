//! A real file system that is really full.

use std::{
    io::Write,
    process::Command,
    time::{Duration, Instant},
};

use super::*;

/// A file system of its own, which only root may have.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount(mebibytes: u32) -> Option<Self> {
        let directory = TempDir::new().unwrap();
        let size = format!("size={mebibytes}m");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(directory.path())
            .output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(directory));
        }
        // Past the test harness, which hides what passing tests print.
        let _ = writeln!(std::io::stderr(), "SKIPPED full disk: mounting a tmpfs takes root");
        None
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).output();
    }
}

fn small() -> Options {
    Options { write_buffer_bytes: 1 << 20, ..Options::default() }
}

/// Every value is large, and says its number.
fn value(number: u32) -> Vec<u8> {
    let mut value = vec![number as u8; 50_000];
    value[..4].copy_from_slice(&number.to_be_bytes());
    value
}

/// Appends until it fails; what was acknowledged, and the error.
fn fill(log: &EmbeddedLog, acknowledged: &mut Vec<(Offset, u32)>, next: &mut u32) -> LogError {
    loop {
        *next += 1;
        match append(log, &value(*next)) {
            Ok(offset) => acknowledged.push((offset, *next)),
            Err(error) => return error,
        }
        assert!(*next < 100_000, "the disk does not fill up");
    }
}

fn expect_acknowledged(log: &EmbeddedLog, acknowledged: &[(Offset, u32)]) {
    let start = block_on(log.ends(&topic(), ZERO)).unwrap().start;
    let stored = values(log);
    for (offset, number) in acknowledged {
        let stored = stored.get((offset.0 - start.0) as usize);
        assert!(stored == Some(&value(*number)), "acknowledged record {number} at {offset}");
    }
}

/// Opens the log while the disk is full: that works, or says why not.
fn open_full(data: &Path, acknowledged: &[(Offset, u32)]) {
    match EmbeddedLog::open(data, small()) {
        Ok(log) => expect_acknowledged(&log, acknowledged),
        Err(error) => {
            assert!(matches!(error, Error::Log(LogError::Full(_))), "{error:?}");
            assert_eq!(error.remedy(), Remedy::Retry);
        }
    }
}

#[test]
fn a_full_disk_loses_nothing_and_appends_go_on_when_there_is_room() {
    let Some(disk) = SmallDisk::mount(64) else { return };
    let ballast = disk.path().join("ballast");
    let data = disk.path().join("data");
    let (mut acknowledged, mut next) = (Vec::new(), 0);
    let mut log = EmbeddedLog::open(&data, small()).unwrap();
    block_on(log.create_topic(&topic(), TopicSpec::keep(1))).unwrap();
    for restart in [false, true, false] {
        fs::write(&ballast, vec![0; 12 << 20]).unwrap();
        let error = fill(&log, &mut acknowledged, &mut next);
        assert!(matches!(error, LogError::Full(_)), "{error:?}");
        assert_eq!(error.remedy(), Remedy::Retry);
        assert!(acknowledged.len() > 100, "{} fit on the disk", acknowledged.len());
        // As long as it is full, it says so and can be read.
        for _ in 0..20 {
            let error = append(&log, &value(0)).unwrap_err();
            assert!(matches!(error, LogError::Full(_)), "{error:?}");
        }
        let claim = block_on(log.writer(&WriterId("w".into()))).map(drop);
        assert!(matches!(claim, Err(LogError::Full(_))), "{claim:?}");
        expect_acknowledged(&log, &acknowledged);
        if restart {
            drop(log);
            open_full(&data, &acknowledged);
            fs::remove_file(&ballast).unwrap();
            log = EmbeddedLog::open(&data, small()).unwrap();
        } else {
            fs::remove_file(&ballast).unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            next += 1;
            match append(&log, &value(next)) {
                Ok(offset) => break acknowledged.push((offset, next)),
                Err(error) => {
                    assert!(Instant::now() < deadline, "there is room, and yet: {error:?}")
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        expect_acknowledged(&log, &acknowledged);
        // Room for the next round, which also shows that trimming works after all this.
        let last = acknowledged.split_off(acknowledged.len() - 1);
        acknowledged = last;
        block_on(log.trim(&topic(), ZERO, acknowledged[0].0)).unwrap();
    }
    drop(log);
    let log = EmbeddedLog::open(&data, small()).unwrap();
    expect_acknowledged(&log, &acknowledged);
}
