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

use crate::{
    assignment::lease::Lease,
    checkpoint::{local::CopyPaths, setup::ShardSetup},
    error::ShardError,
};

/// A checkpoint is fetched rather than the log read if it has no more than so many times the bytes that
/// would have to be read, for a copy that is on this disk already: fetching only moves bytes, reading
/// computes.
const WORTH: u64 = 8;
/// How often a download looks whether the shard is still ours.
const LOOK: Duration = Duration::from_millis(50);

/// An opened database.
pub(crate) struct OpenedDatabase {
    pub(crate) db: ShardDb,
    /// The newest checkpoint in the store, whether or not it was needed.
    pub(crate) newest: Option<Manifest>,
    /// What was fetched, and how long that took.
    pub(crate) fetched: Option<(u64, Duration)>,
}

/// Opens the shard's database. `announce` is told what is being waited for.
pub(crate) fn open(
    setup: &ShardSetup,
    shutdown: &Shutdown,
    mut announce: impl FnMut(String),
) -> Result<OpenedDatabase, ShardError> {
    let copies = CopyPaths::of(setup.shard_dir());
    copies.settle()?;
    let open = || ShardDb::open(&copies.shard, &setup.identity, &setup.options);
    let Some(store) =
        setup.checkpoint_store.as_ref().map(|checkpoint_store| checkpoint_store.store())
    else {
        return Ok(OpenedDatabase { db: open()?, newest: None, fetched: None });
    };
    let present = copies.shard.join("CURRENT").exists();
    let newest = match wanted(setup, shutdown, store.newest(&setup.identity))? {
        Ok(newest) => newest,
        // What is here is right, if not the newest; what is not here would have to be computed again.
        Err(error) if present && (error.remedy() == Remedy::Retry || error.is_of_store()) => {
            let reason = ShardError::from(error).reason;
            tracing::warn!(shard = %setup.identity, reason, "the store of checkpoints is not available, using the copy on this disk");
            None
        }
        Err(error) => {
            let error = ShardError::from(error);
            // Of anything else a shard stops, and that is said elsewhere.
            if error.remedy == Remedy::Retry {
                announce(format!("{} cannot be restored: {}", setup.identity, error.reason));
            }
            return Err(error);
        }
    };
    let Some(manifest) = newest else {
        return Ok(OpenedDatabase { db: open()?, newest: None, fetched: None });
    };
    let mut position = Offset::ZERO;
    let mut former = None;
    if present {
        match open() {
            Ok(db) => {
                position = db.progress().position;
                if position >= manifest.position() || reading_is_cheaper(setup, position, &manifest)
                {
                    return Ok(OpenedDatabase { db, newest: Some(manifest), fetched: None });
                }
            }
            Err(error) if error.remedy() == Remedy::Repair => {
                let reason = ShardError::from(error).reason;
                tracing::warn!(shard = %setup.identity, reason, "the copy on this disk is damaged, and is replaced");
            }
            Err(error) => return Err(error.into()),
        }
        former = fs::read(copies.shard.join("CURRENT")).ok();
    }

    let begun = Instant::now();
    announce(format!(
        "restoring {} from {position} to {}: {} bytes",
        setup.identity,
        manifest.position(),
        manifest.bytes()
    ));
    match fetch(setup, store, &manifest, &copies, shutdown) {
        Ok(()) => {}
        // The log has all that the checkpoint has.
        Err(FetchError::Damaged(reason)) => {
            tracing::error!(shard = %setup.identity, reason, "checkpoint not usable, going on without it");
            return Ok(OpenedDatabase { db: open()?, newest: None, fetched: None });
        }
        Err(FetchError::Failed(error)) => return Err(error),
    }
    copies.swap()?;
    let mut db = open()?;
    // A reader that has the former copy open knows another by the name of its list of files, and the
    // numbers in these names are counted from the first of each copy on.
    while former.is_some() && fs::read(copies.shard.join("CURRENT")).ok() == former {
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
    Ok(OpenedDatabase { db, newest: Some(manifest), fetched })
}

/// Whether what this disk lacks is less to read from the log than the checkpoint is to fetch.
fn reading_is_cheaper(setup: &ShardSetup, from: Offset, manifest: &Manifest) -> bool {
    let (topic, partition) = (&setup.plan.stream.topic, setup.identity.partition);
    let log: &dyn Log = &*setup.log;
    // Nothing to compare with: the checkpoint is what is certain.
    let Ok(ends) = log.ends(topic, partition) else { return false };
    let Ok(missing) = log.size(topic, partition, from, manifest.position()) else { return false };
    ends.start <= from && missing.saturating_mul(WORTH) < manifest.bytes()
}

enum FetchError {
    Damaged(String),
    Failed(ShardError),
}

fn fetch(
    setup: &ShardSetup,
    store: &Store,
    manifest: &Manifest,
    copies: &CopyPaths,
    shutdown: &Shutdown,
) -> Result<(), FetchError> {
    layout::remove(&copies.restored).map_err(|error| FetchError::Failed(error.into()))?;
    match wanted(setup, shutdown, store.fetch(manifest, &copies.restored)) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) if error.remedy() == Remedy::Repair => {
            Err(FetchError::Damaged(ShardError::from(error).reason))
        }
        Ok(Err(error)) => Err(FetchError::Failed(error.into())),
        Err(error) => Err(FetchError::Failed(error)),
    }
}

/// Waits for the store, which may be slow or away, as long as the shard is to be opened here.
fn wanted<T>(
    setup: &ShardSetup,
    shutdown: &Shutdown,
    asked: impl Future<Output = T>,
) -> Result<T, ShardError> {
    let answer = setup.runtime.block_on(async {
        tokio::select! {
            answer = asked => Some(answer),
            () = no_longer_wanted(&setup.lease, shutdown) => None,
        }
    });
    answer.ok_or_else(|| {
        let reason = format!("{} shall be handed over before it is restored", setup.identity);
        ShardError::new(Remedy::Retry, reason)
    })
}

/// Resolves when the shard is not ours any more, or soon will not be. Meanwhile its thread is there.
async fn no_longer_wanted(lease: &Lease, shutdown: &Shutdown) {
    while !shutdown.is_cancelled() && !lease.is_over() && lease.leaving().is_none() {
        lease.beat();
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests;
