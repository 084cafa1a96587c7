//! A shard's database and its only writer.

use std::{
    fs,
    path::{Path, PathBuf},
};

use headwater_types::EventTime;
use parking_lot::Mutex;
use rocksdb::{ColumnFamily, DB, ReadOptions, WriteBatch, WriteOptions, checkpoint::Checkpoint};

use crate::{
    Error, Identity, Options, OutboxKey, Progress, ShardReader,
    expiry::DurableHorizon,
    layout,
    meta::{CURSOR_KEY, FORMAT, FORMAT_KEY, IDENTITY_KEY, PROGRESS_KEY, ROWS, SEQUENCE_KEY},
    options::OUTBOX_FAMILY,
    row::OUTBOX_KEY_LEN,
};

/// Keys per `multi_get`: enough to share the work, few enough to stay in the CPU's cache.
const LOAD_BATCH: usize = 256;

/// The contents of one commit. RocksDB writes all of it or nothing.
pub struct Commit<'a, R> {
    pub progress: Progress,
    /// Key and row (header and payload) of every row that changed, in the order of the keys.
    pub puts: R,
    /// Entries that the publisher sends to output and dead-letter topics.
    pub outbox: &'a [(OutboxKey, Vec<u8>)],
}

/// A shard's database, opened for writing. A directory has at most one writer at a time.
pub struct ShardDb {
    path: PathBuf,
    identity: Identity,
    db: DB,
    horizon: DurableHorizon,
    /// Every write holds this lock, so that a checkpoint contains exactly the progress that it
    /// reports.
    committed: Mutex<Progress>,
}

impl ShardDb {
    /// Opens the shard's database, and creates it if there is none.
    ///
    /// # Errors
    ///
    /// Refuses a directory that holds another shard or a newer format.
    pub fn open(path: &Path, identity: &Identity, options: &Options) -> Result<Self, Error> {
        fs::create_dir_all(path).map_err(|error| Error::io(path, error))?;
        let horizon = DurableHorizon::unknown();
        let db = DB::open_cf_descriptors(&options.database(), path, options.families(&horizon))
            .map_err(|error| Error::rocksdb(path, error))?;
        let progress = match check(&db, path, identity)? {
            Some(progress) => progress,
            None => begin(&db, path, identity)?,
        };
        // RocksDB flushes rows recovered from the write-ahead log into fsynced files by default,
        // but does not promise it. The horizon therefore stays unknown until the first sync.
        let shard = Self {
            path: path.into(),
            identity: *identity,
            db,
            horizon,
            committed: Mutex::new(progress),
        };
        shard.mark(&mut shard.committed.lock())?;
        Ok(shard)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The progress of the last commit.
    pub fn progress(&self) -> Progress {
        *self.committed.lock()
    }

    /// Calls `found` with the index of each key that has a row, and that row (header and payload).
    ///
    /// `keys` are sorted. Expired rows are included while they exist: the watermark at a record
    /// decides whether the record may still reach a row, not the watermark of the last commit.
    pub fn load(&self, keys: &[&[u8]], mut found: impl FnMut(usize, &[u8])) -> Result<(), Error> {
        let rows = self.rows()?;
        let mut stored = Vec::new();
        let mut ends = Vec::with_capacity(LOAD_BATCH.min(keys.len()));
        for (batch, keys) in keys.chunks(LOAD_BATCH).enumerate() {
            stored.clear();
            ends.clear();
            for key in keys {
                stored.push(ROWS);
                stored.extend_from_slice(key);
                ends.push(stored.len());
            }
            let slices = ends.iter().scan(0, |start, &end| {
                let key = &stored[*start..end];
                *start = end;
                Some(key)
            });
            for (index, row) in
                self.db.batched_multi_get_cf(rows, slices, true).into_iter().enumerate()
            {
                if let Some(row) = row.map_err(|error| self.failed(error))? {
                    found(batch * LOAD_BATCH + index, &row);
                }
            }
        }
        Ok(())
    }

    /// Writes the commit atomically. It survives the end of the process; after a power cut the
    /// database may be at an older commit.
    pub fn commit<'a, R>(&self, commit: Commit<'_, R>) -> Result<(), Error>
    where
        R: IntoIterator<Item = (&'a [u8], &'a [u8])>,
    {
        let (rows, outbox) = (self.rows()?, self.outbox_family()?);
        let mut batch = WriteBatch::new();
        batch.put_cf(rows, PROGRESS_KEY, commit.progress.encode());
        let mut stored = vec![ROWS];
        for (key, row) in commit.puts {
            stored.truncate(1);
            stored.extend_from_slice(key);
            batch.put_cf(rows, &stored, row);
        }
        for (key, value) in commit.outbox {
            batch.put_cf(outbox, key.encode(), value);
        }
        let mut committed = self.committed.lock();
        self.write(&committed, batch)?;
        *committed = commit.progress;
        Ok(())
    }

    /// The outbox entries from `from` on, in order: at least one if there is any, then as many as
    /// fit into `max_bytes`.
    pub fn outbox(
        &self,
        from: OutboxKey,
        max_bytes: usize,
    ) -> Result<Vec<(OutboxKey, Vec<u8>)>, Error> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut iterator = self.db.raw_iterator_cf(self.outbox_family()?);
        iterator.seek(from.encode());
        while let Some((key, value)) = iterator.item() {
            bytes += OUTBOX_KEY_LEN + value.len();
            if bytes > max_bytes && !entries.is_empty() {
                break;
            }
            let key = OutboxKey::decode(key).ok_or_else(|| {
                Error::corrupt(&self.path, format!("an outbox key of {} bytes", key.len()))
            })?;
            entries.push((key, value.to_vec()));
            iterator.next();
        }
        iterator.status().map_err(|error| self.failed(error))?;
        Ok(entries)
    }

    /// Deletes the outbox entries before `until`, and stores `cursor` with it: bytes that only the
    /// publisher interprets, which say how far it has read or written its topic.
    pub fn outbox_published(&self, until: OutboxKey, cursor: &[u8]) -> Result<(), Error> {
        let (rows, outbox) = (self.rows()?, self.outbox_family()?);
        let mut batch = WriteBatch::new();
        batch.put_cf(rows, CURSOR_KEY, cursor);
        // Deletes key by key: each range tombstone in the memtable slows every read of the outbox.
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(until.encode());
        let mut iterator = self.db.raw_iterator_cf_opt(outbox, options);
        iterator.seek_to_first();
        while let Some(key) = iterator.key() {
            batch.delete_cf(outbox, key);
            iterator.next();
        }
        iterator.status().map_err(|error| self.failed(error))?;
        drop(iterator);
        self.write(&self.committed.lock(), batch)
    }

    /// The cursor of the last call of [`outbox_published`](Self::outbox_published).
    pub fn outbox_cursor(&self) -> Result<Option<Vec<u8>>, Error> {
        self.db.get_cf(self.rows()?, CURSOR_KEY).map_err(|error| self.failed(error))
    }

    /// Makes a consistent copy of the shard out of hard links. Returns the progress of the copy.
    ///
    /// The copy is built under another name and then renamed, so that `directory` is always
    /// complete. If `directory` exists already, this does nothing and returns its progress.
    pub fn checkpoint(&self, directory: &Path) -> Result<Progress, Error> {
        let mut committed = self.committed.lock();
        if directory.exists() {
            return Ok(ShardReader::open_checkpoint(directory, &self.identity)?.progress());
        }
        let parent = directory.parent().unwrap_or(directory);
        fs::create_dir_all(parent).map_err(|error| Error::io(parent, error))?;
        let name = directory.file_name().unwrap_or_default().to_string_lossy();
        let partial = directory.with_file_name(format!("{name}.partial"));
        layout::remove(&partial)?;
        Checkpoint::new(&self.db)
            .and_then(|checkpoint| checkpoint.create_checkpoint(&partial))
            .map_err(|error| self.failed(error))?;
        // RocksDB has fsynced the files; this fsyncs the directory entry.
        fs::rename(&partial, directory)
            .and_then(|()| fs::File::open(parent)?.sync_all())
            .map_err(|error| Error::io(directory, error))?;
        // RocksDB flushed every commit to fsynced files before it made the links.
        self.horizon.advance(committed.rows_expired_before);
        self.mark(&mut committed)?;
        Ok(*committed)
    }

    /// The size of the database on the disk.
    pub fn size_bytes(&self) -> u64 {
        layout::size_bytes(&self.path)
    }

    /// Makes all commits so far survive a power cut. Compaction removes only rows that a synced
    /// commit has expired, so call this now and then if rows expire.
    pub fn sync(&self) -> Result<(), Error> {
        let horizon = self.committed.lock().rows_expired_before;
        self.db.flush_wal(true).map_err(|error| self.failed(error))?;
        self.horizon.advance(horizon);
        Ok(())
    }

    /// The horizon of the last commit that is known to survive a power cut.
    pub fn durable_horizon(&self) -> EventTime {
        self.horizon.get()
    }

    /// Removes rows expired by the durable horizon now, instead of whenever RocksDB compacts.
    pub fn compact(&self) -> Result<(), Error> {
        let (rows, outbox) = (self.rows()?, self.outbox_family()?);
        for family in [rows, outbox] {
            self.db.flush_cf(family).map_err(|error| self.failed(error))?;
            let mut options = rocksdb::CompactOptions::default();
            // Includes the bottommost level: its rows may have expired since they arrived there.
            options.set_bottommost_level_compaction(rocksdb::BottommostLevelCompaction::Force);
            self.db.compact_range_cf_opt(family, None::<&[u8]>, None::<&[u8]>, &options);
        }
        self.mark(&mut self.committed.lock())
    }

    /// Leaves the database as a crash in the middle of [`ShardDb::compact`] would.
    #[cfg(test)]
    pub(crate) fn flush_without_mark(&self) {
        self.db.flush_cf(self.rows().unwrap()).unwrap();
    }

    /// Whether a row exists on the disk, expired or not.
    #[cfg(test)]
    pub(crate) fn holds(&self, key: &[u8]) -> bool {
        self.db.get_cf(self.rows().unwrap(), crate::row::stored_key(key)).unwrap().is_some()
    }

    /// Writes the current progress again. After a flush this puts a record into the new write-ahead
    /// log; without one, readers would keep the rows that they read from the old log.
    fn mark(&self, committed: &mut Progress) -> Result<(), Error> {
        let mut batch = WriteBatch::new();
        batch.put_cf(self.rows()?, PROGRESS_KEY, committed.encode());
        self.write(committed, batch)
    }

    /// `_committed` proves that the lock is held, so no other write happens meanwhile. The sequence
    /// number depends on that.
    fn write(&self, _committed: &Progress, mut batch: WriteBatch) -> Result<(), Error> {
        let sequence = self.db.latest_sequence_number() + batch.len() as u64 + 1;
        batch.put_cf(self.rows()?, SEQUENCE_KEY, sequence.to_be_bytes());
        let mut options = WriteOptions::default();
        // Rows are sorted, so each insert starts its search where the last one ended.
        options.set_memtable_insert_hint_per_batch(true);
        self.db.write_opt(batch, &options).map_err(|error| self.failed(error))
    }

    fn rows(&self) -> Result<&ColumnFamily, Error> {
        family(&self.db, &self.path, crate::options::ROWS_FAMILY)
    }

    fn outbox_family(&self) -> Result<&ColumnFamily, Error> {
        family(&self.db, &self.path, OUTBOX_FAMILY)
    }

    fn failed(&self, error: rocksdb::Error) -> Error {
        Error::rocksdb(&self.path, error)
    }
}

impl std::fmt::Debug for ShardDb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardDb")
            .field("path", &self.path)
            .field("progress", &self.progress())
            .finish_non_exhaustive()
    }
}

fn family<'a>(db: &'a DB, path: &Path, name: &str) -> Result<&'a ColumnFamily, Error> {
    db.cf_handle(name).ok_or_else(|| Error::corrupt(path, format!("no column family {name}")))
}

/// Checks format and identity. Returns the progress, or `None` if the database is new.
pub(crate) fn check(db: &DB, path: &Path, identity: &Identity) -> Result<Option<Progress>, Error> {
    let get = |key| db.get(key).map_err(|error| Error::rocksdb(path, error));
    let Some(format) = get(FORMAT_KEY)? else { return Ok(None) };
    let format = format.try_into().map(u32::from_be_bytes).map_err(|other: Vec<u8>| {
        Error::corrupt(path, format!("a format of {} bytes", other.len()))
    })?;
    if format > FORMAT {
        return Err(Error::NewerFormat { path: path.into(), found: format, known: FORMAT });
    }
    let found = get(IDENTITY_KEY)?.unwrap_or_default();
    if Identity::decode(&found) != Some(*identity) {
        let found = Identity::decode(&found)
            .map_or_else(|| format!("{found:02x?}"), |found| found.to_string());
        return Err(Error::OtherIdentity {
            path: path.into(),
            expected: identity.to_string(),
            found,
        });
    }
    progress(db, path).map(Some)
}

pub(crate) fn progress(db: &DB, path: &Path) -> Result<Progress, Error> {
    let bytes = db.get_pinned(PROGRESS_KEY).map_err(|error| Error::rocksdb(path, error))?;
    let bytes = bytes.ok_or_else(|| Error::corrupt(path, "no progress"))?;
    Progress::decode(&bytes).map_err(|detail| Error::corrupt(path, detail))
}

/// Whether reads see the last write that the database knows of.
pub(crate) fn is_current(db: &DB, path: &Path) -> Result<bool, Error> {
    let stored = db.get_pinned(SEQUENCE_KEY).map_err(|error| Error::rocksdb(path, error))?;
    Ok(stored.is_some_and(|stored| *stored == db.latest_sequence_number().to_be_bytes()))
}

/// Writes the identity and the first progress in one batch, so that a half-created database cannot
/// exist.
fn begin(db: &DB, path: &Path, identity: &Identity) -> Result<Progress, Error> {
    let mut iterator = db.raw_iterator();
    iterator.seek_to_first();
    if iterator.valid() {
        return Err(Error::corrupt(path, "rows without a format"));
    }
    iterator.status().map_err(|error| Error::rocksdb(path, error))?;
    drop(iterator);
    let progress = Progress::default();
    let mut batch = WriteBatch::new();
    batch.put(FORMAT_KEY, FORMAT.to_be_bytes());
    batch.put(IDENTITY_KEY, identity.encode());
    batch.put(PROGRESS_KEY, progress.encode());
    db.write(batch).map_err(|error| Error::rocksdb(path, error))?;
    Ok(progress)
}

#[cfg(test)]
pub(crate) mod tests;
