//! Checkpoints on their way to the store: for the next owner of a shard, and for the comparison of two
//! generations.
//!
//! The shard's thread only makes hard links; a task uploads them. So a store that is slow or away stops no
//! shard, with one exception: a new generation that has taken its checkpoint at the fence waits there until
//! it is uploaded, for its position says to the coordinator whether a checkpoint is still to come.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_service::{OnFailure, Outage, Shutdown, Tasks};
use headwater_state::{Identity, Manifest, Purpose, Store, layout};
use headwater_types::{Epoch, Offset, Remedy};
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::Semaphore};

use crate::{
    assignment::lease::Lease,
    checkpoint::{local::upload_dir, store::CheckpointStore},
    error::ShardError,
};

/// Waits after failures: doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

/// What an upload is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UploadPurpose {
    HandOver,
    /// The id of the checkpoint.
    Replay(String),
}

/// One checkpoint to be uploaded.
pub(crate) struct UploadRequest {
    pub(crate) purpose: UploadPurpose,
    pub(crate) directory: PathBuf,
    pub(crate) position: Offset,
    /// Of our claim.
    pub(crate) epoch: Epoch,
    /// The checkpoints for replays that are still needed.
    pub(crate) replays: Vec<String>,
}

/// The uploads of one shard, one at a time.
pub(crate) struct CheckpointUploader {
    checkpoint_store: Arc<CheckpointStore>,
    lease: Arc<Lease>,
    /// Holds what is being uploaded, and nothing else.
    directory: PathBuf,
    /// What the store has of the shard.
    known: Option<Manifest>,
    /// The position of the newest checkpoint for a hand-over.
    stored: Option<Offset>,
    running: Option<RunningUpload>,
    due: Instant,
    failures: u32,
}

struct RunningUpload {
    purpose: UploadPurpose,
    position: Offset,
    outcome: Arc<Mutex<Option<Result<Manifest, ShardError>>>>,
    cancel: Shutdown,
}

impl CheckpointUploader {
    pub(crate) fn new(
        checkpoint_store: Arc<CheckpointStore>,
        lease: Arc<Lease>,
        data: &Path,
        newest: Option<Manifest>,
    ) -> Result<Self, ShardError> {
        let directory = upload_dir(data, &lease.identity());
        // Of an earlier life.
        layout::remove(&directory)?;
        let due = Instant::now() + checkpoint_store.every;
        let stored = newest.as_ref().map(Manifest::position);
        Ok(Self {
            checkpoint_store,
            lease,
            directory,
            known: newest,
            stored,
            running: None,
            due,
            failures: 0,
        })
    }

    pub(crate) fn store(&self) -> &Store {
        &self.checkpoint_store.store
    }

    /// What is in the store at this URL, if it is there and of this shard.
    pub(crate) fn manifest(&self, url: &str) -> Result<Option<Manifest>, ShardError> {
        match self.checkpoint_store.runtime.block_on(self.checkpoint_store.store.manifest(url)) {
            Ok(manifest) => {
                Ok(Some(manifest).filter(|manifest| manifest.identity() == self.lease.identity()))
            }
            Err(error) if error.remedy() == Remedy::Retry && !is_gone(&error) => Err(error.into()),
            Err(error) => {
                tracing::info!(shard = %self.lease.identity(), %error, "a checkpoint of the former owner is not used");
                Ok(None)
            }
        }
    }

    /// Where the checkpoint for an upload at this position is made.
    pub(crate) fn place(&self, position: Offset) -> PathBuf {
        self.directory.join(position.to_string())
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Whether a checkpoint of this position shall be uploaded now.
    pub(crate) fn is_due(&self, position: Offset) -> bool {
        self.running.is_none() && self.stored != Some(position) && Instant::now() >= self.due
    }

    /// Whether something failed that shall be tried again only later.
    pub(crate) fn rests(&self) -> bool {
        self.failures > 0 && Instant::now() < self.due
    }

    /// Begins an upload in the background.
    pub(crate) fn begin(&mut self, upload: UploadRequest) {
        let outcome = Arc::new(Mutex::new(None));
        let cancel = Shutdown::new();
        self.running = Some(RunningUpload {
            purpose: upload.purpose.clone(),
            position: upload.position,
            outcome: outcome.clone(),
            cancel: cancel.clone(),
        });
        let (checkpoint_store, lease, known) =
            (self.checkpoint_store.clone(), self.lease.clone(), self.known.clone());
        let name = format!("upload-{}-{}", lease.identity().generation, lease.identity().partition);
        // A thread of its own: it hashes what it sends.
        self.checkpoint_store.tasks.spawn_thread(name, OnFailure::restart(), move |_| {
            checkpoint_store.runtime.block_on(async {
                tokio::select! {
                    result = store(&checkpoint_store, &lease, &upload, known.as_ref()) => {
                        *outcome.lock() = Some(result);
                    }
                    () = cancel.cancelled() => {}
                }
            });
            Ok(())
        });
    }

    /// What became of the upload that ran, if it has ended. Returns the manifest of a checkpoint for a
    /// replay: others wait for it.
    pub(crate) fn finished(&mut self) -> Result<Option<(String, Manifest)>, ShardError> {
        let Some(running) = &self.running else { return Ok(None) };
        let Some(outcome) = running.outcome.lock().take() else { return Ok(None) };
        let Some(RunningUpload { purpose, position, .. }) = self.running.take() else {
            return Ok(None);
        };
        layout::remove(&self.directory)?;
        match outcome {
            Ok(manifest) => {
                self.failures = 0;
                self.checkpoint_store.outage.lock().over();
                self.due = Instant::now() + self.checkpoint_store.every;
                Ok(self.note(purpose, position, manifest))
            }
            Err(error) => {
                let wait =
                    FIRST_RETRY.saturating_mul(1 << self.failures.min(10)).min(LONGEST_RETRY);
                if error.store {
                    self.checkpoint_store.outage.lock().failed(&error.reason);
                } else if self.failures == 0 {
                    tracing::warn!(shard = %self.lease.identity(), reason = error.reason, "checkpoint not uploaded, trying again");
                }
                self.failures += 1;
                self.due = Instant::now() + wait;
                Ok(None)
            }
        }
    }

    fn note(
        &mut self,
        purpose: UploadPurpose,
        position: Offset,
        manifest: Manifest,
    ) -> Option<(String, Manifest)> {
        self.known = Some(manifest.clone());
        match purpose {
            UploadPurpose::HandOver => {
                self.stored = Some(position);
                None
            }
            UploadPurpose::Replay(id) => Some((id, manifest)),
        }
    }

    /// Waits a moment for the upload that runs; `false` if there is no time for that.
    pub(crate) fn linger(&self, shutdown: &Shutdown) -> bool {
        self.lease.beat();
        !self.lease.is_over() && !self.checkpoint_store.runtime.block_on(urged(shutdown, LOOK))
    }

    /// Whether the store has a checkpoint of this very position.
    pub(crate) fn has(&self, position: Offset) -> bool {
        self.stored == Some(position)
    }

    /// Uploads a last checkpoint, on this thread, at most until then. Says whether it is there.
    pub(crate) fn last(
        &mut self,
        upload: &UploadRequest,
        until: Instant,
        shutdown: &Shutdown,
    ) -> bool {
        let (checkpoint_store, lease) = (self.checkpoint_store.clone(), self.lease.clone());
        let stored = checkpoint_store.runtime.clone().block_on(async {
            let limit = async {
                while Instant::now() < until && !lease.is_over() && !urged(shutdown, LOOK).await {
                    lease.beat();
                }
            };
            tokio::select! {
                stored = store(&checkpoint_store, &lease, upload, self.known.as_ref()) => Some(stored),
                () = limit => None,
            }
        });
        match stored {
            Some(Ok(manifest)) => {
                self.note(upload.purpose.clone(), upload.position, manifest);
                true
            }
            Some(Err(error)) => {
                tracing::warn!(shard = %lease.identity(), reason = error.reason, "last checkpoint not uploaded: the next owner reads more of the log");
                false
            }
            None => {
                tracing::warn!(shard = %lease.identity(), "last checkpoint not uploaded in time: the next owner reads more of the log");
                false
            }
        }
    }
}

impl Drop for CheckpointUploader {
    fn drop(&mut self) {
        if let Some(running) = &self.running {
            running.cancel.begin();
        }
        if let Err(error) = layout::remove(&self.directory) {
            tracing::info!(%error, "what was to be uploaded stays on the disk until the shard is opened again");
        }
    }
}

/// Waits a while; `true` as soon as shutdown has to hurry.
async fn urged(shutdown: &Shutdown, time: Duration) -> bool {
    tokio::time::timeout(time, shutdown.urged()).await.is_ok()
}

async fn store(
    checkpoint_store: &CheckpointStore,
    lease: &Lease,
    upload: &UploadRequest,
    known: Option<&Manifest>,
) -> Result<Manifest, ShardError> {
    let shard = lease.identity();
    // Nobody closes it.
    let _slot = checkpoint_store.slots.acquire().await;
    let begun = Instant::now();
    let owner = format!("{}-{}", upload.epoch, checkpoint_store.instance);
    let purpose = match &upload.purpose {
        UploadPurpose::HandOver => Purpose::HandOver,
        UploadPurpose::Replay(id) => Purpose::Replay(id),
    };
    let stored = checkpoint_store
        .store
        .upload(&upload.directory, &shard, upload.position, &owner, purpose, known)
        .await;
    let manifest = match stored {
        Ok(manifest) => manifest,
        Err(error) => {
            checkpoint_store.metrics.upload_failed();
            return Err(error.into());
        }
    };
    checkpoint_store.metrics.uploaded(manifest.sent().uploaded_bytes, begun.elapsed());
    if upload.purpose == UploadPurpose::HandOver && lease.allows() {
        // The next upload tries again.
        match checkpoint_store.store.prune(&shard, &manifest, &upload.replays).await {
            Ok(()) => checkpoint_store.leftovers.lock().over(),
            Err(error) => {
                checkpoint_store.leftovers.lock().failed(&ShardError::from(error).reason);
            }
        }
    }
    Ok(manifest)
}

fn is_gone(error: &headwater_state::Error) -> bool {
    matches!(error, headwater_state::Error::Gone { .. })
}
