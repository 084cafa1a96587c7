//! Transfers files to the store and back, in pieces.

use std::{
    fs, io,
    path::{Path as FsPath, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use object_store::{
    GetOptions, GetRange, ObjectStore, ObjectStoreExt as _, WriteMultipart, path::Path,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::error::{read_error, store_error};
use crate::Error;

/// The size of a part of a large object. The client holds each part in memory until it is uploaded.
const PART_BYTES: usize = 8 << 20;
/// Parts of one file that are uploaded while the next is read.
const PARTS_IN_FLIGHT: usize = 1;
const READ_BYTES: usize = 256 << 10;
/// Files that one upload or fetch transfers at the same time.
const CONCURRENCY: usize = 4;

/// Runs the futures, a few at a time. After a failure it starts no further one and waits for those
/// that run, so that nothing writes after it returns.
pub(super) async fn run_all<T>(
    work: impl Iterator<Item = impl Future<Output = Result<T, Error>>>,
) -> Result<Vec<T>, Error> {
    let failed = &AtomicBool::new(false);
    let one = |one| async move {
        if failed.load(Ordering::Relaxed) {
            return None;
        }
        let result: Result<T, Error> = one.await;
        failed.fetch_or(result.is_err(), Ordering::Relaxed);
        Some(result)
    };
    let done: Vec<_> = stream::iter(work.map(one)).buffer_unordered(CONCURRENCY).collect().await;
    done.into_iter().flatten().collect()
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            Err(Error::Store { location: "this machine's disk".into(), source: error.into() })
        }
    }
}

/// The files of a checkpoint, by name, without RocksDB's info logs and its lock.
pub(super) async fn checkpoint_files(directory: &FsPath) -> Result<Vec<(String, PathBuf)>, Error> {
    let directory = directory.to_path_buf();
    blocking(move || {
        let failed = |error| Error::io(&directory, error);
        let mut files = Vec::new();
        for entry in fs::read_dir(&directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let file = entry.file_type().map_err(failed)?.is_file();
            if file && name != "LOCK" && name != "LOG" && !name.starts_with("LOG.old") {
                files.push((name, entry.path()));
            }
        }
        if !files.iter().any(|(name, _)| name == "CURRENT") {
            return Err(Error::Missing { path: directory });
        }
        files.sort_unstable();
        Ok(files)
    })
    .await
}

/// The bytes of a file and their hash.
pub(super) async fn hash(path: &FsPath) -> Result<(u64, String), Error> {
    let path = path.to_path_buf();
    blocking(move || hash_now(&path).map_err(|error| Error::io(&path, error))).await
}

fn hash_now(path: &FsPath) -> io::Result<(u64, String)> {
    copy_and_hash(fs::File::open(path)?, &mut io::sink())
}

/// Copies all bytes. Returns their number and their hash.
fn copy_and_hash(mut from: impl io::Read, to: &mut impl io::Write) -> io::Result<(u64, String)> {
    let (mut hasher, mut buffer) = (blake3::Hasher::new(), vec![0; READ_BYTES]);
    let mut bytes = 0;
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => &buffer[..read],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(read);
        to.write_all(read)?;
        bytes += read.len() as u64;
    }
    Ok((bytes, hasher.finalize().to_hex().to_string()))
}

/// Whether RocksDB never changes a file with this name, so that two databases may share it.
fn immutable(name: &FsPath) -> bool {
    name.extension().is_some_and(|extension| extension == "sst" || extension == "blob")
}

/// Puts a file into a store on a disk. The name appears only when the file is complete.
pub(super) fn link_or_copy(file: &FsPath, to: &FsPath) -> Result<(), Error> {
    let failed = |error| Error::io(to, error);
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    // A file with this name and size is complete: names are hashes, and files appear by a rename.
    let bytes = |path: &FsPath| fs::metadata(path).map(|file| file.len());
    match bytes(to) {
        Ok(found) if bytes(file).is_ok_and(|bytes| bytes == found) => return Ok(()),
        Ok(_) => fs::remove_file(to).map_err(failed)?,
        Err(_) => {}
    }
    if immutable(file) && fs::hard_link(file, to).is_ok() {
        return Ok(());
    }
    // The local object store treats a name with `#` as a file that is still being written, and does
    // not list it. An abandoned upload may still be writing another such file, so the name is
    // unique.
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    let staged = to.with_file_name(format!("{name}#{}", STAGED.fetch_add(1, Ordering::Relaxed)));
    fs::copy(file, &staged).and_then(|_| fs::rename(&staged, to)).map_err(|error| {
        // If this fails, pruning removes the file.
        let _ = fs::remove_file(&staged);
        failed(error)
    })
}

static STAGED: AtomicU64 = AtomicU64::new(0);

/// Copies or links a file out of a store on a disk. Returns its size and its hash.
pub(super) fn fetch_from_disk(
    from: &FsPath,
    to: &FsPath,
    location: &str,
) -> Result<(u64, String), Error> {
    let here = |error| Error::io(to, error);
    let there = |error: io::Error| {
        let location = location.to_owned();
        match error.kind() == io::ErrorKind::NotFound {
            true => Error::Gone { location },
            false => Error::Store { location, source: error.into() },
        }
    };
    let (file, found) = if immutable(to) && fs::hard_link(from, to).is_ok() {
        (fs::File::open(to).map_err(here)?, hash_now(to).map_err(here)?)
    } else {
        let source = fs::File::open(from).map_err(there)?;
        let mut file = fs::File::create_new(to).map_err(here)?;
        let found = copy_and_hash(source, &mut file).map_err(here)?;
        (file, found)
    };
    // The database that opens these files assumes that they survive a power cut.
    file.sync_data().map_err(here)?;
    Ok(found)
}

/// Uploads a file, in parts if it is large.
pub(super) async fn upload(
    objects: &dyn ObjectStore,
    file: &FsPath,
    bytes: u64,
    to: &Path,
    location: &str,
) -> Result<(), Error> {
    let (here, there) = (|error| Error::io(file, error), |error| store_error(location, error));
    let mut source = tokio::fs::File::open(file).await.map_err(here)?;
    if bytes <= PART_BYTES as u64 {
        let mut content = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
        source.read_to_end(&mut content).await.map_err(here)?;
        return objects.put(to, content.into()).await.map(|_| ()).map_err(there);
    }
    let upload = objects.put_multipart(to).await.map_err(there)?;
    let mut parts = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
    let moved: Result<(), Error> = async {
        loop {
            let mut piece = bytes::BytesMut::with_capacity(READ_BYTES);
            if source.read_buf(&mut piece).await.map_err(here)? == 0 {
                return Ok(());
            }
            parts.put(piece.freeze());
            parts.wait_for_capacity(PARTS_IN_FLIGHT).await.map_err(there)?;
        }
    }
    .await;
    match moved {
        Ok(()) => parts.finish().await.map(|_| ()).map_err(there),
        Err(error) => {
            if let Err(left) = parts.abort().await {
                tracing::debug!(error = %left, location, "the parts of an aborted upload stay in the store");
            }
            Err(error)
        }
    }
}

/// Downloads a file, in parts if it is large, so that no single request on a slow connection
/// exceeds the time limit of a request. Returns the size and the hash. If the object's size is not
/// `expected`, nothing is downloaded and the hash is empty.
pub(super) async fn download(
    objects: &dyn ObjectStore,
    from: &Path,
    expected: u64,
    to: &FsPath,
    location: &str,
) -> Result<(u64, String), Error> {
    let (here, there) = (|error| Error::io(to, error), |error| read_error(location, error));
    let mut file = tokio::fs::File::create_new(to).await.map_err(here)?;
    let (mut hasher, mut bytes) = (blake3::Hasher::new(), 0);
    loop {
        // An empty object has no range to ask for.
        let range = (expected > 0).then(|| GetRange::Bounded(bytes..bytes + PART_BYTES as u64));
        let options = GetOptions { range, ..GetOptions::default() };
        let part = objects.get_opts(from, options).await.map_err(there)?;
        if part.meta.size != expected {
            return Ok((part.meta.size, String::new()));
        }
        let mut pieces = part.into_stream();
        let begun = bytes;
        while let Some(piece) = pieces.try_next().await.map_err(there)? {
            hasher.update(&piece);
            bytes += piece.len() as u64;
            file.write_all(&piece).await.map_err(here)?;
        }
        if bytes >= expected || bytes == begun {
            break;
        }
    }
    file.flush().await.map_err(here)?;
    file.sync_data().await.map_err(here)?;
    Ok((bytes, hasher.finalize().to_hex().to_string()))
}
