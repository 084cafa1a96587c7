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

/// How often catching up is tried before the database is opened anew. Between them it waits 1, 2, 4 …
/// milliseconds: the writer is about to write what is missing.
const ATTEMPTS: u32 = 6;

/// Reads a shard, or a checkpoint of one.
pub struct ShardReader {
    path: PathBuf,
    identity: Identity,
    /// `None`: a checkpoint, which never changes.
    live: Option<Live>,
    /// What readers see. A view holds it for reading; catching up holds it for writing, because it
    /// changes the database under the views.
    seen: RwLock<Progress>,
    opened: Opened,
}

/// What a reader of a live shard has besides.
struct Live {
    scratch: PathBuf,
    options: Options,
    refreshes: Mutex<Refreshes>,
    done: Condvar,
}

/// A caller must see what was committed before it called, so one that finds a refresh running waits
/// for the next. All who wait share that one.
#[derive(Default)]
struct Refreshes {
    running: bool,
    started: u64,
    /// The last that succeeded.
    completed: u64,
}

/// A database and what it was replaced by. Scans of an older one may still be running, so that it is
/// kept as long as the reader: it is replaced only when catching up fails for good.
struct Opened {
    db: DB,
    /// What the primary's `CURRENT` said then: another text means that the writer opened it anew.
    current: Vec<u8>,
    newer: OnceLock<Box<Opened>>,
}

impl Opened {
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
    /// Reads the shard in `primary` while it is written. `scratch` is a directory for this reader alone.
    ///
    /// # Errors
    ///
    /// [`Error::Missing`] if the shard has not been begun yet.
    pub fn open_live(primary: &Path, scratch: &Path, identity: &Identity) -> Result<Self, Error> {
        Self::open_live_with(primary, scratch, identity, &Options::default())
    }

    /// The same, sharing the options' cache.
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

    /// The same, sharing the options' cache.
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
        let opened = Opened::new(db, Vec::new());
        Ok(Self {
            path: path.into(),
            identity: *identity,
            live: None,
            seen: RwLock::new(seen),
            opened,
        })
    }

    /// Sees all that was committed before the call. Callers at the same time share the work. It waits
    /// for the [`ReadView`]s that are held, but not for scans.
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
            // A writer that opened its database anew has moved rows from its log into files, and a
            // secondary that was opened before may never find these.
            if current(&self.path)? != newest.current {
                break;
            }
            if look(&newest.db, &self.path)? && current(&self.path)? == newest.current {
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
        // The lock for writing is held: nobody else can have set it.
        let _ = newest.newer.set(Box::new(opened));
        *seen = now;
        Ok(())
    }

    /// What a view would see.
    pub fn progress(&self) -> Progress {
        *self.seen.read()
    }

    /// One commit, as long as it is held. Hold it briefly: catching up waits for it. A thread that
    /// holds one must not ask for another of the same reader, or for a refresh.
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

/// Catches up, and says whether the secondary is now where the primary was.
///
/// It reads first which files there are, and then the write-ahead logs. What the primary moves from a log into
/// a file in between is missed if that log is deleted before it is read. So it is trusted only if the same logs
/// were there before and after: then each was there when it was read, and what had been in an earlier one was
/// in the files from the beginning.
fn look(db: &DB, primary: &Path) -> Result<bool, Error> {
    look_while(db, primary, || {})
}

/// The primary does `meanwhile` while we look.
fn look_while(db: &DB, primary: &Path, meanwhile: impl FnOnce()) -> Result<bool, Error> {
    let before = logs(primary)?;
    // The primary deletes files while we read their names: then the next look finds newer names.
    if db.try_catch_up_with_primary().is_err() || !is_current(db, primary)? {
        return Ok(false);
    }
    meanwhile();
    Ok(logs(primary)? == before)
}

/// The names of the primary's write-ahead logs. A name is never used twice.
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

/// Names the file that lists the primary's files; each opening by its writer begins another.
fn current(primary: &Path) -> Result<Vec<u8>, Error> {
    let path = primary.join("CURRENT");
    fs::read(&path).map_err(|error| Error::io(&path, error))
}

fn open_secondary(
    primary: &Path,
    scratch: &Path,
    identity: &Identity,
    options: &Options,
) -> Result<(Opened, Progress), Error> {
    let missing = || Error::Missing { path: primary.into() };
    // RocksDB has no error of its own for a primary that does not exist.
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
                if look(&db, primary)? && current(primary)? == before {
                    let now = progress(&db, primary)?;
                    return Ok((Opened::new(db, before), now));
                }
            }
            // Files were deleted between finding their names and opening them.
            Err(error) => failure = Some(Error::rocksdb(primary, error)),
        }
        thread::sleep(Duration::from_millis(1 << attempt));
    }
    Err(failure.unwrap_or_else(|| Error::Storage {
        path: primary.into(),
        source: "its last write is not to be found yet; try again".into(),
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

    /// A row and its payload, unless it has expired.
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

    /// The rows of a range in the order of their keys. They stay those of this view's commit, however
    /// long it takes; the view itself is released.
    pub fn scan(self, range: KeyRange) -> RowScan<'a> {
        let (start, end) = range.stored();
        let mut options = ReadOptions::default();
        // An empty range would have an end before its start, which RocksDB does not define.
        options.set_iterate_upper_bound(end.max(start.clone()));
        let mut rows = self.db.raw_iterator_opt(options);
        rows.seek(start);
        RowScan { rows, path: self.path, progress: *self.seen, begun: false }
    }
}

/// Key, header and payload.
pub type Row<'a> = (&'a [u8], RowHeader, &'a [u8]);

/// Rows of one commit.
pub struct RowScan<'a> {
    rows: DBRawIterator<'a>,
    path: &'a Path,
    progress: Progress,
    begun: bool,
}

impl RowScan<'_> {
    /// Of the commit that the rows are from.
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
                    // Asking an exhausted iterator for its next is an error in RocksDB.
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
