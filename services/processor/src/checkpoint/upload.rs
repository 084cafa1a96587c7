//! Checkpoints on their way to the store: for the next owner of a shard, and for the comparison of
//! two generations.
//!
//! The shard's thread only makes hard links; another thread uploads them. So a store that is slow
//! or away stops no shard, with one exception: a new generation that has taken its checkpoint at
//! the fence waits there until the checkpoint is uploaded. From the shard's position the
//! coordinator concludes whether a checkpoint is still to come.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use headwater_service::{OnFailure, Shutdown};
use headwater_state::{Manifest, Purpose, Store, layout};
use headwater_types::{Epoch, Offset, Remedy};
use parking_lot::Mutex;

use crate::{
    assignment::lease::Lease,
    checkpoint::{local::upload_dir, store::CheckpointStore},
    error::ShardError,
};

/// Waits after failures: doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// How often a thread that waits for an upload sends a heartbeat and looks at its deadline.
const POLL: Duration = Duration::from_millis(20);

/// The purpose of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UploadPurpose {
    HandOver,
    /// With the checkpoint's id.
    Replay(String),
}

/// One checkpoint to be uploaded.
pub(crate) struct UploadRequest {
    pub(crate) purpose: UploadPurpose,
    pub(crate) directory: PathBuf,
    pub(crate) position: Offset,
    /// The epoch of this process's claim.
    pub(crate) epoch: Epoch,
    /// The checkpoints for replays that are still needed.
    pub(crate) replays: Vec<String>,
}

/// The uploads of one shard, one at a time.
pub(crate) struct CheckpointUploader {
    store: Arc<CheckpointStore>,
    lease: Arc<Lease>,
    /// Holds the checkpoint that is being uploaded, and nothing else.
    directory: PathBuf,
    /// The newest manifest of the shard in the store: the next upload sends only what it lacks.
    latest: Option<Manifest>,
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
        store: Arc<CheckpointStore>,
        lease: Arc<Lease>,
        data: &Path,
        newest: Option<Manifest>,
    ) -> Result<Self, ShardError> {
        let directory = upload_dir(data, &lease.identity());
        // A crash may have left something.
        layout::remove(&directory)?;
        let due = Instant::now() + store.interval;
        let stored = newest.as_ref().map(Manifest::position);
        Ok(Self {
            store,
            lease,
            directory,
            latest: newest,
            stored,
            running: None,
            due,
            failures: 0,
        })
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store.store
    }

    /// The manifest at this URL, if it exists and belongs to this shard.
    pub(crate) fn manifest(&self, url: &str) -> Result<Option<Manifest>, ShardError> {
        match self.store.runtime.block_on(self.store.store.manifest(url)) {
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

    /// Where the checkpoint for an upload at this position has to be made.
    pub(crate) fn checkpoint_dir(&self, position: Offset) -> PathBuf {
        self.directory.join(position.to_string())
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Whether it is time to upload a checkpoint, and the store has none of this position.
    pub(crate) fn is_due(&self, position: Offset) -> bool {
        self.running.is_none() && self.stored != Some(position) && Instant::now() >= self.due
    }

    /// Whether an upload failed that may not be tried again yet.
    pub(crate) fn is_backing_off(&self) -> bool {
        self.failures > 0 && Instant::now() < self.due
    }

    /// Begins an upload in the background.
    pub(crate) fn begin(&mut self, request: UploadRequest) {
        let outcome = Arc::new(Mutex::new(None));
        let cancel = Shutdown::new();
        self.running = Some(RunningUpload {
            purpose: request.purpose.clone(),
            position: request.position,
            outcome: outcome.clone(),
            cancel: cancel.clone(),
        });
        let (store, lease, latest) = (self.store.clone(), self.lease.clone(), self.latest.clone());
        let name = format!("upload-{}-{}", lease.identity().generation, lease.identity().partition);
        // A thread of its own: an upload hashes what it sends.
        self.store.tasks.spawn_thread(name, OnFailure::restart(), move |_| {
            store.runtime.block_on(async {
                tokio::select! {
                    result = upload(&store, &lease, &request, latest.as_ref()) => {
                        *outcome.lock() = Some(result);
                    }
                    () = cancel.cancelled() => {}
                }
            });
            Ok(())
        });
    }

    /// Takes the outcome of the upload that ran, if it has ended. Returns the id and the manifest
    /// of a checkpoint for a replay: others wait for it.
    pub(crate) fn take_finished(&mut self) -> Result<Option<(String, Manifest)>, ShardError> {
        let Some(running) = &self.running else { return Ok(None) };
        let Some(outcome) = running.outcome.lock().take() else { return Ok(None) };
        let Some(RunningUpload { purpose, position, .. }) = self.running.take() else {
            return Ok(None);
        };
        layout::remove(&self.directory)?;
        match outcome {
            Ok(manifest) => {
                self.failures = 0;
                self.store.outage.lock().over();
                self.due = Instant::now() + self.store.interval;
                Ok(self.note_stored(purpose, position, manifest))
            }
            Err(error) => {
                let wait =
                    FIRST_RETRY.saturating_mul(1 << self.failures.min(10)).min(LONGEST_RETRY);
                if error.from_store {
                    self.store.outage.lock().failed(&error.reason);
                } else if self.failures == 0 {
                    tracing::warn!(shard = %self.lease.identity(), reason = error.reason, "checkpoint not uploaded, trying again");
                }
                self.failures += 1;
                self.due = Instant::now() + wait;
                Ok(None)
            }
        }
    }

    fn note_stored(
        &mut self,
        purpose: UploadPurpose,
        position: Offset,
        manifest: Manifest,
    ) -> Option<(String, Manifest)> {
        self.latest = Some(manifest.clone());
        match purpose {
            UploadPurpose::HandOver => {
                self.stored = Some(position);
                None
            }
            UploadPurpose::Replay(id) => Some((id, manifest)),
        }
    }

    /// Waits a moment for the upload that runs; `false` if there is no time for that.
    pub(crate) fn wait_briefly(&self, shutdown: &Shutdown) -> bool {
        self.lease.heartbeat();
        !self.lease.is_over() && !self.store.runtime.block_on(is_urged(shutdown, POLL))
    }

    /// Whether the store has a checkpoint of this very position.
    pub(crate) fn has_stored(&self, position: Offset) -> bool {
        self.stored == Some(position)
    }

    /// Uploads a last checkpoint on this thread, by the deadline. Returns whether it is stored.
    pub(crate) fn upload_now(
        &mut self,
        request: &UploadRequest,
        until: Instant,
        shutdown: &Shutdown,
    ) -> bool {
        let (store, lease) = (self.store.clone(), self.lease.clone());
        let stored = store.runtime.block_on(async {
            let limit = async {
                while Instant::now() < until && !lease.is_over() && !is_urged(shutdown, POLL).await
                {
                    lease.heartbeat();
                }
            };
            tokio::select! {
                stored = upload(&store, &lease, request, self.latest.as_ref()) => Some(stored),
                () = limit => None,
            }
        });
        let shard = lease.identity();
        match stored {
            Some(Ok(manifest)) => {
                self.note_stored(request.purpose.clone(), request.position, manifest);
                true
            }
            Some(Err(error)) => {
                tracing::warn!(%shard, reason = error.reason, "last checkpoint not uploaded: the next owner reads more of the log");
                false
            }
            None => {
                tracing::warn!(%shard, "last checkpoint not uploaded in time: the next owner reads more of the log");
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
            tracing::info!(%error, "a checkpoint that was to be uploaded stays on the disk until the shard is opened again");
        }
    }
}

/// Waits so long; `true` as soon as shutdown has to hurry.
async fn is_urged(shutdown: &Shutdown, time: Duration) -> bool {
    tokio::time::timeout(time, shutdown.urged()).await.is_ok()
}

async fn upload(
    store: &CheckpointStore,
    lease: &Lease,
    request: &UploadRequest,
    latest: Option<&Manifest>,
) -> Result<Manifest, ShardError> {
    let shard = lease.identity();
    // The semaphore is never closed, so this cannot fail.
    let _slot = store.slots.acquire().await;
    let begun = Instant::now();
    let owner = format!("{}-{}", request.epoch, store.instance);
    let purpose = match &request.purpose {
        UploadPurpose::HandOver => Purpose::HandOver,
        UploadPurpose::Replay(id) => Purpose::Replay(id),
    };
    let stored = store
        .store
        .upload(&request.directory, &shard, request.position, &owner, purpose, latest)
        .await;
    let manifest = match stored {
        Ok(manifest) => manifest,
        Err(error) => {
            store.metrics.upload_failed();
            return Err(error.into());
        }
    };
    store.metrics.uploaded(manifest.sent().uploaded_bytes, begun.elapsed());
    if request.purpose == UploadPurpose::HandOver && lease.may_write() {
        // After a failure the next upload prunes.
        match store.store.prune(&shard, &manifest, &request.replays).await {
            Ok(()) => store.prune_outage.lock().over(),
            Err(error) => {
                store.prune_outage.lock().failed(&ShardError::from(error).reason);
            }
        }
    }
    Ok(manifest)
}

fn is_gone(error: &headwater_state::Error) -> bool {
    matches!(error, headwater_state::Error::Gone { .. })
}
