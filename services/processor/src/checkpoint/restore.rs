//! Opening a shard's database: from this disk, from the store of checkpoints, or empty.
//!
//! State at an offset is the same on every process, so the copy that is furthest along is taken.
//! A good copy on this disk is not touched before a better one lies beside it, whole:
//!
//! ```text
//! <partition>.restored    fetched and verified, then
//! <partition>    ──► <partition>.old
//! <partition>.restored ──► <partition>
//! ```

use std::{
    fs,
    time::{Duration, Instant},
};

use headwater_log::{Log, block_on};
use headwater_service::Shutdown;
use headwater_state::{Manifest, ShardDb, Store, layout};
use headwater_types::{Offset, Remedy};

use crate::{
    assignment::lease::Lease,
    checkpoint::{local::CopyPaths, setup::ShardSetup},
    error::ShardError,
};

/// A checkpoint is fetched if it has at most so many times the bytes of the log that a copy on this
/// disk lacks: fetching only moves bytes, reading the log computes.
const FETCH_ADVANTAGE: u64 = 8;
/// How often a download sends a heartbeat and looks whether the shard is still wanted here.
const POLL: Duration = Duration::from_millis(50);

/// An opened database.
pub(crate) struct OpenedDatabase {
    pub(crate) db: ShardDb,
    /// The newest checkpoint in the store, whether or not it was needed.
    pub(crate) newest: Option<Manifest>,
    /// How many bytes were fetched, and how long that took.
    pub(crate) fetched: Option<(u64, Duration)>,
}

/// Opens the shard's database. `announce` is told what takes long.
pub(crate) fn open(
    setup: &ShardSetup,
    shutdown: &Shutdown,
    mut announce: impl FnMut(String),
) -> Result<OpenedDatabase, ShardError> {
    let copies = CopyPaths::of(setup.shard_dir());
    copies.recover()?;
    let open = || ShardDb::open(&copies.shard, &setup.identity, &setup.options);
    let Some(store) = setup.checkpoint_store.as_ref().map(|store| store.store()) else {
        return Ok(OpenedDatabase { db: open()?, newest: None, fetched: None });
    };
    let present = copies.shard.join("CURRENT").exists();
    let newest = match unless_released(setup, shutdown, store.newest(&setup.identity))? {
        Ok(newest) => newest,
        // The copy on this disk is right, if not the newest. Without one the state would have to
        // be computed again.
        Err(error) if present && (error.remedy() == Remedy::Retry || error.is_of_store()) => {
            let reason = ShardError::from(error).reason;
            tracing::warn!(shard = %setup.identity, reason, "the store of checkpoints is not available, using the copy on this disk");
            None
        }
        Err(error) => {
            let error = ShardError::from(error);
            // Any other remedy halts the shard, which reports the reason itself.
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
    // A reader that has the former copy open recognises another one by the name of RocksDB's
    // manifest. Each copy counts these names from the start, so they may be equal: opening counts
    // on.
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

/// Whether reading what this disk lacks from the log costs less than fetching the checkpoint.
fn reading_is_cheaper(setup: &ShardSetup, from: Offset, manifest: &Manifest) -> bool {
    let (topic, partition) = (&setup.plan.stream.topic, setup.identity.partition);
    let log: &dyn Log = &*setup.log;
    // If the log cannot say, the checkpoint is the safe choice.
    let Ok(ends) = block_on(log.ends(topic, partition)) else { return false };
    let missing = block_on(log.size(topic, partition, from, manifest.position()));
    let Ok(missing) = missing else { return false };
    ends.start <= from && missing.saturating_mul(FETCH_ADVANTAGE) < manifest.bytes()
}

enum FetchError {
    /// The checkpoint in the store cannot be used.
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
    match unless_released(setup, shutdown, store.fetch(manifest, &copies.restored)) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) if error.remedy() == Remedy::Repair => {
            Err(FetchError::Damaged(ShardError::from(error).reason))
        }
        Ok(Err(error)) => Err(FetchError::Failed(error.into())),
        Err(error) => Err(FetchError::Failed(error)),
    }
}

/// Waits for the store, which may be slow or away, for as long as the shard is wanted here.
fn unless_released<T>(
    setup: &ShardSetup,
    shutdown: &Shutdown,
    answer: impl Future<Output = T>,
) -> Result<T, ShardError> {
    let answer = setup.runtime.block_on(async {
        tokio::select! {
            answer = answer => Some(answer),
            () = released(&setup.lease, shutdown) => None,
        }
    });
    answer.ok_or_else(|| {
        let reason = format!("{} shall be handed over before it is restored", setup.identity);
        ShardError::new(Remedy::Retry, reason)
    })
}

/// Resolves when the lease ends or is to be released. Sends heartbeats until then.
async fn released(lease: &Lease, shutdown: &Shutdown) {
    while !shutdown.is_cancelled() && !lease.is_over() && lease.release_deadline().is_none() {
        lease.heartbeat();
        tokio::time::sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests;
