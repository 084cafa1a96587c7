//! Readers of a shard.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
    thread,
    time::Duration,
};

use headwater_types::EventTime;
use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};
use rocksdb::{DB, DBRawIterator, ReadOptions};

use crate::{
    Error, Identity, KeyRange, Options, Progress, RowHeader,
    meta::expired,
    options::base,
    row::{split_row, stored_key},
    shard::{check, is_current, progress},
};

/// Attempts to catch up before the reader opens the database anew. It waits 1, 2, 4 … milliseconds
/// between attempts, because the writer is about to write the missing part.
const ATTEMPTS: u32 = 6;

/// Reads a shard, or a checkpoint of one.
pub struct ShardReader {
    path: PathBuf,
    identity: Identity,
    /// `None` for a checkpoint, which never changes.
    live: Option<Live>,
    /// The progress that views show. A view holds this lock for reading. A refresh holds it for
    /// writing, because it changes the database under the views.
    seen: RwLock<Progress>,
    opened: OpenDb,
}

/// The state that only a reader of a live shard needs.
struct Live {
    scratch: PathBuf,
    options: Options,
    refreshes: Mutex<Refreshes>,
    done: Condvar,
}

/// Coordinates concurrent refreshes. A caller must see every commit before its call, so a caller
/// that finds a refresh running waits for the next one. All waiting callers share that next
/// refresh.
#[derive(Default)]
struct Refreshes {
    running: bool,
    started: u64,
    /// The last refresh that succeeded.
    completed: u64,
}

/// An open database, and the newer one that replaced it. Scans of the older one may still be
/// running, so the reader keeps both. A replacement is rare: it happens only when catching up fails
/// for good.
struct OpenDb {
    db: DB,
    /// The content of the primary's `CURRENT` at that time. Another content means that the writer
    /// has reopened its database.
    current: Vec<u8>,
    newer: OnceLock<Box<OpenDb>>,
}

impl OpenDb {
    fn new(db: DB, current: Vec<u8>) -> Self {
        Self { db, current, newer: OnceLock::new() }
    }

    fn newest(&self) -> &Self {
        let mut newest = self;
        while let Some(newer) = newest.newer.get() {
            newest = newer;
        }
        newest
    }
}

impl ShardReader {
    /// Reads the shard in `primary` while its writer runs. No other reader may use `scratch`.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`] if the shard has no database yet.
    pub fn open_live(primary: &Path, scratch: &Path, identity: &Identity) -> Result<Self, Error> {
        Self::open_live_with(primary, scratch, identity, &Options::default())
    }

    /// The same, with these options and their cache.
    pub fn open_live_with(
        primary: &Path,
        scratch: &Path,
        identity: &Identity,
        options: &Options,
    ) -> Result<Self, Error> {
        let (opened, seen) = open_secondary(primary, scratch, identity, options)?;
        Ok(Self {
            path: primary.into(),
            identity: *identity,
            live: Some(Live {
                scratch: scratch.into(),
                options: options.clone(),
                refreshes: Mutex::default(),
                done: Condvar::new(),
            }),
            seen: RwLock::new(seen),
            opened,
        })
    }

    /// Reads a checkpoint.
    pub fn open_checkpoint(path: &Path, identity: &Identity) -> Result<Self, Error> {
        Self::open_checkpoint_with(path, identity, &Options::default())
    }

    /// The same, with these options and their cache.
    pub fn open_checkpoint_with(
        path: &Path,
        identity: &Identity,
        options: &Options,
    ) -> Result<Self, Error> {
        if !path.join("CURRENT").exists() {
            return Err(Error::Missing { path: path.into() });
        }
        let db = DB::open_cf_descriptors_read_only(&base(), path, options.reader_families(), false)
            .map_err(|error| Error::rocksdb(path, error))?;
        let seen =
            check(&db, path, identity)?.ok_or_else(|| Error::Missing { path: path.into() })?;
        let opened = OpenDb::new(db, Vec::new());
        Ok(Self {
            path: path.into(),
            identity: *identity,
            live: None,
            seen: RwLock::new(seen),
            opened,
        })
    }

    /// Makes every commit before this call visible. Concurrent callers share the work. It waits for
    /// open [`ReadView`]s, but not for scans.
    pub fn refresh(&self) -> Result<Progress, Error> {
        let Some(live) = &self.live else { return Ok(self.progress()) };
        let mut refreshes = live.refreshes.lock();
        let wanted = refreshes.started + 1;
        while refreshes.completed < wanted {
            if refreshes.running {
                live.done.wait(&mut refreshes);
                continue;
            }
            refreshes.running = true;
            refreshes.started += 1;
            let mine = refreshes.started;
            drop(refreshes);
            let result = self.catch_up(live);
            refreshes = live.refreshes.lock();
            refreshes.running = false;
            live.done.notify_all();
            result?;
            refreshes.completed = mine;
        }
        drop(refreshes);
        Ok(self.progress())
    }

    fn catch_up(&self, live: &Live) -> Result<(), Error> {
        let mut seen = self.seen.write();
        let newest = self.opened.newest();
        for attempt in 0..ATTEMPTS {
            // A writer that reopens its database flushes rows from its log into files. A secondary
            // that was opened earlier may never find these files.
            if current(&self.path)? != newest.current {
                break;
            }
            if catch_up_once(&newest.db, &self.path)? && current(&self.path)? == newest.current {
                let now = progress(&newest.db, &self.path)?;
                if now.position >= seen.position {
                    *seen = now;
                    return Ok(());
                }
            }
            thread::sleep(Duration::from_millis(1 << attempt));
        }
        let (opened, now) =
            open_secondary(&self.path, &live.scratch, &self.identity, &live.options)?;
        // The write lock is held, so no other thread can have set it.
        let _ = newest.newer.set(Box::new(opened));
        *seen = now;
        Ok(())
    }

    /// The progress that a view taken now would show.
    pub fn progress(&self) -> Progress {
        *self.seen.read()
    }

    /// A view of one commit. Hold it briefly: a refresh waits for it. A thread that holds a view
    /// must not take another view of the same reader, and must not refresh it.
    pub fn view(&self) -> ReadView<'_> {
        let seen = self.seen.read();
        ReadView { db: &self.opened.newest().db, path: &self.path, seen }
    }
}

impl std::fmt::Debug for ShardReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardReader").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Catches up with the primary. Returns whether the secondary now shows all that the primary had.
///
/// RocksDB reads the list of files first and the write-ahead logs after it. If the primary flushes
/// a log into a file in between and deletes the log, the secondary misses those rows. The result is
/// therefore trusted only if the same logs existed before and after: then each log was still there
/// when it was read, and the rows of earlier logs were in the listed files.
fn catch_up_once(db: &DB, primary: &Path) -> Result<bool, Error> {
    catch_up_once_while(db, primary, || {})
}

/// As [`catch_up_once`], and runs `meanwhile` between the two lists of logs.
fn catch_up_once_while(db: &DB, primary: &Path, meanwhile: impl FnOnce()) -> Result<bool, Error> {
    let before = logs(primary)?;
    // The primary may delete files between listing and opening. The next attempt finds newer names.
    if db.try_catch_up_with_primary().is_err() || !is_current(db, primary)? {
        return Ok(false);
    }
    meanwhile();
    Ok(logs(primary)? == before)
}

/// The names of the primary's write-ahead logs. RocksDB never uses a name twice.
fn logs(primary: &Path) -> Result<BTreeSet<OsString>, Error> {
    let failed = |error| Error::io(primary, error);
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(primary).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if Path::new(&name).extension().is_some_and(|extension| extension == "log") {
            names.insert(name);
        }
    }
    Ok(names)
}

/// The content of `CURRENT`, which names the primary's manifest. Each open by the writer starts a
/// new manifest.
fn current(primary: &Path) -> Result<Vec<u8>, Error> {
    let path = primary.join("CURRENT");
    fs::read(&path).map_err(|error| Error::io(&path, error))
}

fn open_secondary(
    primary: &Path,
    scratch: &Path,
    identity: &Identity,
    options: &Options,
) -> Result<(OpenDb, Progress), Error> {
    let missing = || Error::Missing { path: primary.into() };
    // RocksDB has no error of its own for a missing primary.
    if !primary.join("CURRENT").exists() {
        return Err(missing());
    }
    fs::create_dir_all(scratch).map_err(|error| Error::io(scratch, error))?;
    let mut failure = None;
    for attempt in 0..ATTEMPTS {
        let before = current(primary)?;
        let opened = DB::open_cf_descriptors_as_secondary(
            &base(),
            primary,
            scratch,
            options.reader_families(),
        );
        match opened {
            Ok(db) => {
                check(&db, primary, identity)?.ok_or_else(missing)?;
                if catch_up_once(&db, primary)? && current(primary)? == before {
                    let now = progress(&db, primary)?;
                    return Ok((OpenDb::new(db, before), now));
                }
            }
            // The primary deleted files between listing and opening.
            Err(error) => failure = Some(Error::rocksdb(primary, error)),
        }
        thread::sleep(Duration::from_millis(1 << attempt));
    }
    Err(failure.unwrap_or_else(|| Error::Storage {
        path: primary.into(),
        source: "the secondary does not show the writer's last commit yet; try again".into(),
    }))
}

/// The rows and the progress of one commit.
pub struct ReadView<'a> {
    db: &'a DB,
    path: &'a Path,
    seen: RwLockReadGuard<'a, Progress>,
}

impl<'a> ReadView<'a> {
    pub fn progress(&self) -> Progress {
        *self.seen
    }

    /// A row's header and payload; `None` if there is no such row or it has expired.
    pub fn get(&self, key: &[u8]) -> Result<Option<(RowHeader, Vec<u8>)>, Error> {
        let stored = self
            .db
            .get_pinned(stored_key(key))
            .map_err(|error| Error::rocksdb(self.path, error))?;
        let Some(stored) = stored else { return Ok(None) };
        let (header, payload) = split_row(&stored)
            .ok_or_else(|| Error::corrupt(self.path, "a row without a header"))?;
        Ok((!self.seen.expired(header.time)).then(|| (header, payload.to_vec())))
    }

    /// The rows of a range in the order of their keys, all of this view's commit, however long the
    /// scan takes. The view itself is released.
    pub fn scan(self, range: KeyRange) -> RowScan<'a> {
        let (start, end) = range.stored();
        let mut options = ReadOptions::default();
        // RocksDB does not define a range whose end lies before its start.
        options.set_iterate_upper_bound(end.max(start.clone()));
        let mut rows = self.db.raw_iterator_opt(options);
        rows.seek(start);
        RowScan { rows, path: self.path, progress: *self.seen, begun: false }
    }
}

/// Key, header and payload.
pub type Row<'a> = (&'a [u8], RowHeader, &'a [u8]);

/// A scan over the rows of one commit.
pub struct RowScan<'a> {
    rows: DBRawIterator<'a>,
    path: &'a Path,
    progress: Progress,
    begun: bool,
}

impl RowScan<'_> {
    /// The progress of the commit that the rows belong to.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// The next row that has not expired: key, header and payload, borrowed until the next call.
    #[allow(clippy::should_implement_trait, reason = "an iterator cannot lend")]
    pub fn next(&mut self) -> Option<Result<Row<'_>, Error>> {
        loop {
            if self.begun {
                self.rows.next();
            }
            self.begun = true;
            match self.rows.value().map(split_row) {
                None => {
                    // RocksDB reports an error if an exhausted iterator is advanced.
                    self.begun = false;
                    return self
                        .rows
                        .status()
                        .err()
                        .map(|error| Err(Error::rocksdb(self.path, error)));
                }
                Some(None) => {
                    return Some(Err(Error::corrupt(self.path, "a row without a header")));
                }
                Some(Some((header, _))) if self.is_expired(header.time) => {}
                Some(Some(_)) => break,
            }
        }
        let (key, value) = self.rows.item()?;
        let (header, payload) = split_row(value)?;
        Some(Ok((key.get(1..).unwrap_or_default(), header, payload)))
    }

    fn is_expired(&self, time: EventTime) -> bool {
        expired(time, self.progress.rows_expired_before)
    }
}

#[cfg(test)]
mod tests;
