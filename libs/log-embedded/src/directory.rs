//! The data directory: the process that holds it, and its format.
//!
//! ```text
//! DIR/LOCK      locked while a process has the log open; holds that process's number
//! DIR/FORMAT    "headwater-log 1"
//! DIR/rocksdb/  everything else
//! ```

use std::{
    fs::{self, File, TryLockError},
    io::{self, ErrorKind, Read, Seek, Write},
    path::{Path, PathBuf},
};

use crate::Error;

/// The format that this version writes, and the newest that it reads.
pub(crate) const FORMAT: u32 = 1;

const FORMAT_NAME: &str = "headwater-log";

/// A data directory that is ours until it is released or this is dropped.
pub(crate) struct Directory {
    path: PathBuf,
    lock: File,
}

impl Directory {
    pub(crate) fn claim(path: &Path) -> Result<Self, Error> {
        let failed = |source: io::Error| {
            if source.kind() == ErrorKind::StorageFull {
                return Error::Log(headwater_log::Error::Full(source.into()));
            }
            Error::Directory { directory: path.into(), source }
        };
        fs::create_dir_all(path).map_err(failed)?;
        let lock = lock(path, failed)?;
        check_format(path, failed)?;
        Ok(Self { path: path.into(), lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.path.join("rocksdb")
    }

    /// Lets others have it. The caller touches it no more.
    pub(crate) fn release(&self) {
        // It fails only where there is no lock to let go.
        let _ = self.lock.unlock();
    }

    /// Finds out by trying whether `bytes` more could be written now.
    pub(crate) fn probe(&self, bytes: usize) -> io::Result<()> {
        let path = self.path.join("ROOM");
        let written = (|| {
            let mut file = File::create(&path)?;
            let zeros = vec![0; 1 << 16];
            for _ in 0..bytes.div_ceil(zeros.len()) {
                file.write_all(&zeros)?;
            }
            file.sync_all()
        })();
        fs::remove_file(&path)?;
        written
    }
}

fn lock(path: &Path, failed: impl Fn(io::Error) -> Error) -> Result<File, Error> {
    let options =
        File::options().read(true).write(true).create(true).truncate(false).open(path.join("LOCK"));
    let mut lock = options.map_err(&failed)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // The process that holds the lock may be about to write its number.
            let _ = lock.read_to_string(&mut holder);
            let holder = match holder.trim() {
                "" => "another process".to_owned(),
                pid => format!("process {pid}"),
            };
            return Err(Error::InUse { directory: path.into(), holder });
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    // The number only serves the message above: a full disk must not stop us here.
    let _ = lock
        .set_len(0)
        .and_then(|()| lock.rewind())
        .and_then(|()| write!(lock, "{}", std::process::id()));
    Ok(lock)
}

fn check_format(path: &Path, failed: impl Fn(io::Error) -> Error) -> Result<(), Error> {
    let file = path.join("FORMAT");
    let text = match fs::read(&file) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => return create_format(path, failed),
        Err(error) => return Err(failed(error)),
    };
    let number =
        text.trim().strip_prefix(FORMAT_NAME).and_then(|number| number.trim().parse::<u32>().ok());
    match number {
        Some(1..=FORMAT) => Ok(()),
        Some(found) if found > FORMAT => {
            Err(Error::NewerFormat { directory: path.into(), found, known: FORMAT })
        }
        _ => {
            let detail =
                format!("its file FORMAT says {:?}, not \"{FORMAT_NAME} {FORMAT}\"", text.trim());
            Err(Error::Damaged { directory: path.into(), detail })
        }
    }
}

/// Makes an empty directory a log's.
fn create_format(path: &Path, failed: impl Fn(io::Error) -> Error) -> Result<(), Error> {
    for entry in fs::read_dir(path).map_err(&failed)? {
        let name = entry.map_err(&failed)?.file_name();
        if name != "LOCK" && name != "FORMAT.new" {
            return Err(Error::Foreign { directory: path.into() });
        }
    }
    let write = || {
        let new = path.join("FORMAT.new");
        let mut file = File::create(&new)?;
        writeln!(file, "{FORMAT_NAME} {FORMAT}")?;
        file.sync_all()?;
        fs::rename(&new, path.join("FORMAT"))?;
        File::open(path)?.sync_all()
    };
    write().map_err(failed)
}
