//! Opening a shard's database: from this disk, from the store of checkpoints, or from nothing.
//!
//! State after an offset is the same whoever computed it, so the copy that is furthest along is taken. A good
//! copy on this disk is never touched before a better one lies beside it, whole:
//!
//! ```text
//! <partition>.restored    fetched and verified, then
//! <partition>    ──► <partition>.old
//! <partition>.restored ──► <partition>
//! ```

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use headwater_log::Log;
use headwater_service::Shutdown;
use headwater_state::{Manifest, ShardDb, Store, layout};
use headwater_types::{Offset, Remedy};

use crate::{lease::Lease, trouble::Trouble, work::Setup};

/// A checkpoint is fetched rather than the log read if it has no more than so many times the bytes that
/// would have to be read, for a copy that is on this disk already: fetching only moves bytes, reading
/// computes.
const WORTH: u64 = 8;
/// How often a download looks whether the shard is still ours.
const LOOK: Duration = Duration::from_millis(50);

/// An opened database.
pub(crate) struct Opened {
    pub(crate) db: ShardDb,
    /// The newest checkpoint in the store, whether or not it was needed.
    pub(crate) newest: Option<Manifest>,
    /// What was fetched, and how long that took.
    pub(crate) fetched: Option<(u64, Duration)>,
}

/// Opens the shard's database. `announce` is told what is being waited for.
pub(crate) fn open(
    setup: &Setup,
    shutdown: &Shutdown,
    mut announce: impl FnMut(String),
) -> Result<Opened, Trouble> {
    let places = Places::of(setup.shard_dir());
    places.settle()?;
    let open = || ShardDb::open(&places.shard, &setup.identity, &setup.options);
    let Some(store) = setup.uploads.as_ref().map(|uploads| uploads.store()) else {
        return Ok(Opened { db: open()?, newest: None, fetched: None });
    };
    let present = places.shard.join("CURRENT").exists();
    let newest = match wanted(setup, shutdown, store.newest(&setup.identity))? {
        Ok(newest) => newest,
        // What is here is right, if not the newest; what is not here would have to be computed again.
        Err(error) if present && (error.remedy() == Remedy::Retry || error.is_of_store()) => {
            let reason = Trouble::from(error).reason;
            tracing::warn!(shard = %setup.identity, reason, "the store of checkpoints is not available, using the copy on this disk");
            None
        }
        Err(error) => {
            let trouble = Trouble::from(error);
            // Of anything else a shard stops, and that is said elsewhere.
            if trouble.remedy == Remedy::Retry {
                announce(format!("{} cannot be restored: {}", setup.identity, trouble.reason));
            }
            return Err(trouble);
        }
    };
    let Some(manifest) = newest else {
        return Ok(Opened { db: open()?, newest: None, fetched: None });
    };
    let mut position = Offset::ZERO;
    let mut former = None;
    if present {
        match open() {
            Ok(db) => {
                position = db.progress().position;
                if position >= manifest.position() || reading_is_cheaper(setup, position, &manifest)
                {
                    return Ok(Opened { db, newest: Some(manifest), fetched: None });
                }
            }
            Err(error) if error.remedy() == Remedy::Repair => {
                let reason = Trouble::from(error).reason;
                tracing::warn!(shard = %setup.identity, reason, "the copy on this disk is damaged, and is replaced");
            }
            Err(error) => return Err(error.into()),
        }
        former = fs::read(places.shard.join("CURRENT")).ok();
    }

    let begun = Instant::now();
    announce(format!(
        "restoring {} from {position} to {}: {} bytes",
        setup.identity,
        manifest.position(),
        manifest.bytes()
    ));
    match fetch(setup, store, &manifest, &places, shutdown) {
        Ok(()) => {}
        // The log has all that the checkpoint has.
        Err(Failure::Damaged(reason)) => {
            tracing::error!(shard = %setup.identity, reason, "checkpoint not usable, going on without it");
            return Ok(Opened { db: open()?, newest: None, fetched: None });
        }
        Err(Failure::Trouble(trouble)) => return Err(trouble),
    }
    places.swap()?;
    let mut db = open()?;
    // A reader that has the former copy open knows another by the name of its list of files, and the
    // numbers in these names are counted from the first of each copy on.
    while former.is_some() && fs::read(places.shard.join("CURRENT")).ok() == former {
        drop(db);
        db = open()?;
    }
    let took = begun.elapsed();
    tracing::info!(
        shard = %setup.identity,
        from = position.0,
        position = db.progress().position.0,
        bytes = manifest.bytes(),
        seconds = took.as_secs_f64(),
        manifest = manifest.url(),
        "shard restored from the store"
    );
    let fetched = Some((manifest.bytes(), took));
    Ok(Opened { db, newest: Some(manifest), fetched })
}

/// Whether what this disk lacks is less to read from the log than the checkpoint is to fetch.
fn reading_is_cheaper(setup: &Setup, from: Offset, manifest: &Manifest) -> bool {
    let (topic, partition) = (&setup.plan.stream.topic, setup.identity.partition);
    let log: &dyn Log = &*setup.log;
    // Nothing to compare with: the checkpoint is what is certain.
    let Ok(ends) = headwater_log::block_on(log.ends(topic, partition)) else { return false };
    let Ok(missing) =
        headwater_log::block_on(log.size(topic, partition, from, manifest.position()))
    else {
        return false;
    };
    ends.start <= from && missing.saturating_mul(WORTH) < manifest.bytes()
}

enum Failure {
    Damaged(String),
    Trouble(Trouble),
}

fn fetch(
    setup: &Setup,
    store: &Store,
    manifest: &Manifest,
    places: &Places,
    shutdown: &Shutdown,
) -> Result<(), Failure> {
    layout::remove(&places.restored).map_err(|error| Failure::Trouble(error.into()))?;
    match wanted(setup, shutdown, store.fetch(manifest, &places.restored)) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) if error.remedy() == Remedy::Repair => {
            Err(Failure::Damaged(Trouble::from(error).reason))
        }
        Ok(Err(error)) => Err(Failure::Trouble(error.into())),
        Err(trouble) => Err(Failure::Trouble(trouble)),
    }
}

/// Waits for the store, which may be slow or away, as long as the shard is to be opened here.
fn wanted<T>(
    setup: &Setup,
    shutdown: &Shutdown,
    asked: impl Future<Output = T>,
) -> Result<T, Trouble> {
    let answer = setup.runtime.block_on(async {
        tokio::select! {
            answer = asked => Some(answer),
            () = no_longer_wanted(&setup.lease, shutdown) => None,
        }
    });
    answer.ok_or_else(|| {
        let reason = format!("{} shall be handed over before it is restored", setup.identity);
        Trouble::new(Remedy::Retry, reason)
    })
}

/// Resolves when the shard is not ours any more, or soon will not be. Meanwhile its thread is there.
async fn no_longer_wanted(lease: &Lease, shutdown: &Shutdown) {
    while !shutdown.is_cancelled() && !lease.is_over() && lease.leaving().is_none() {
        lease.beat();
        tokio::time::sleep(LOOK).await;
    }
}

/// Where the copies of a shard lie.
struct Places {
    shard: PathBuf,
    restored: PathBuf,
    old: PathBuf,
}

impl Places {
    fn of(shard: PathBuf) -> Self {
        let beside = |suffix: &str| {
            let name = shard.file_name().unwrap_or_default().to_string_lossy();
            shard.with_file_name(format!("{name}.{suffix}"))
        };
        Self { restored: beside("restored"), old: beside("old"), shard }
    }

    /// Finishes what a crash interrupted.
    fn settle(&self) -> Result<(), Trouble> {
        if !self.shard.exists() && self.restored.exists() {
            rename(&self.restored, &self.shard)?;
        } else if !self.shard.exists() && self.old.exists() {
            rename(&self.old, &self.shard)?;
        }
        layout::remove(&self.restored)?;
        Ok(layout::remove(&self.old)?)
    }

    fn swap(&self) -> Result<(), Trouble> {
        if self.shard.exists() {
            rename(&self.shard, &self.old)?;
        }
        rename(&self.restored, &self.shard)?;
        Ok(layout::remove(&self.old)?)
    }

    fn all(&self) -> [PathBuf; 4] {
        let partial = self.restored.with_extension("restored.partial");
        [self.shard.clone(), self.restored.clone(), partial, self.old.clone()]
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), Trouble> {
    let parent = to.parent().unwrap_or(to);
    fs::rename(from, to).and_then(|()| fs::File::open(parent)?.sync_all()).map_err(|error| {
        Trouble::new(
            Remedy::Retry,
            format!("{} cannot be renamed to {}: {error}", from.display(), to.display()),
        )
    })
}

/// Removes every copy of the shard from this disk.
pub(crate) fn remove_copies(shard: &Path) -> Result<(), headwater_state::Error> {
    Places::of(shard.into()).all().iter().try_for_each(|path| layout::remove(path))
}

#[cfg(test)]
mod tests;
