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

use crate::{lease::Lease, metrics::ProcessorMetrics, trouble::Trouble};

/// Waits after failures: doubled each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

/// The store, as all shards of this process use it.
pub(crate) struct Uploads {
    store: Store,
    slots: Arc<Semaphore>,
    every: Duration,
    instance: String,
    tasks: Tasks,
    runtime: Handle,
    metrics: ProcessorMetrics,
    /// Told once, however many shards find it out.
    outage: Mutex<Outage>,
    /// The same of what is no longer needed and cannot be removed.
    leftovers: Mutex<Outage>,
}

impl Uploads {
    pub(crate) fn new(
        store: Store,
        at_once: usize,
        every: Duration,
        instance: String,
        tasks: Tasks,
        metrics: ProcessorMetrics,
    ) -> Self {
        let (slots, runtime) = (Arc::new(Semaphore::new(at_once)), Handle::current());
        let outage = Mutex::new(Outage::new("the store of checkpoints"));
        let leftovers = Mutex::new(Outage::new("removing older checkpoints from the store"));
        Self { store, slots, every, instance, tasks, runtime, metrics, outage, leftovers }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }
}

/// What an upload is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Aim {
    HandOver,
    /// The id of the checkpoint.
    Replay(String),
}

/// One checkpoint to be uploaded.
pub(crate) struct Upload {
    pub(crate) aim: Aim,
    pub(crate) directory: PathBuf,
    pub(crate) position: Offset,
    /// Of our claim.
    pub(crate) epoch: Epoch,
    /// The checkpoints for replays that are still needed.
    pub(crate) replays: Vec<String>,
}

/// The uploads of one shard, one at a time.
pub(crate) struct Uploader {
    uploads: Arc<Uploads>,
    lease: Arc<Lease>,
    /// Holds what is being uploaded, and nothing else.
    directory: PathBuf,
    /// What the store has of the shard.
    known: Option<Manifest>,
    /// The position of the newest checkpoint for a hand-over.
    stored: Option<Offset>,
    running: Option<Running>,
    due: Instant,
    failures: u32,
}

struct Running {
    aim: Aim,
    position: Offset,
    outcome: Arc<Mutex<Option<Result<Manifest, Trouble>>>>,
    cancel: Shutdown,
}

impl Uploader {
    pub(crate) fn new(
        uploads: Arc<Uploads>,
        lease: Arc<Lease>,
        data: &Path,
        newest: Option<Manifest>,
    ) -> Result<Self, Trouble> {
        let directory = directory(data, &lease.identity());
        // Of an earlier life.
        layout::remove(&directory)?;
        let due = Instant::now() + uploads.every;
        let stored = newest.as_ref().map(Manifest::position);
        Ok(Self {
            uploads,
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
        &self.uploads.store
    }

    /// What is in the store at this URL, if it is there and of this shard.
    pub(crate) fn manifest(&self, url: &str) -> Result<Option<Manifest>, Trouble> {
        match self.uploads.runtime.block_on(self.uploads.store.manifest(url)) {
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
    pub(crate) fn begin(&mut self, upload: Upload) {
        let outcome = Arc::new(Mutex::new(None));
        let cancel = Shutdown::new();
        self.running = Some(Running {
            aim: upload.aim.clone(),
            position: upload.position,
            outcome: outcome.clone(),
            cancel: cancel.clone(),
        });
        let (uploads, lease, known) =
            (self.uploads.clone(), self.lease.clone(), self.known.clone());
        let name = format!("upload-{}-{}", lease.identity().generation, lease.identity().partition);
        // A thread of its own: it hashes what it sends.
        self.uploads.tasks.spawn_thread(name, OnFailure::restart(), move |_| {
            uploads.runtime.block_on(async {
                tokio::select! {
                    result = store(&uploads, &lease, &upload, known.as_ref()) => {
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
    pub(crate) fn finished(&mut self) -> Result<Option<(String, Manifest)>, Trouble> {
        let Some(running) = &self.running else { return Ok(None) };
        let Some(outcome) = running.outcome.lock().take() else { return Ok(None) };
        let Some(Running { aim, position, .. }) = self.running.take() else { return Ok(None) };
        layout::remove(&self.directory)?;
        match outcome {
            Ok(manifest) => {
                self.failures = 0;
                self.uploads.outage.lock().over();
                self.due = Instant::now() + self.uploads.every;
                Ok(self.note(aim, position, manifest))
            }
            Err(trouble) => {
                let wait =
                    FIRST_RETRY.saturating_mul(1 << self.failures.min(10)).min(LONGEST_RETRY);
                if trouble.store {
                    self.uploads.outage.lock().failed(&trouble.reason);
                } else if self.failures == 0 {
                    tracing::warn!(shard = %self.lease.identity(), reason = trouble.reason, "checkpoint not uploaded, trying again");
                }
                self.failures += 1;
                self.due = Instant::now() + wait;
                Ok(None)
            }
        }
    }

    fn note(
        &mut self,
        aim: Aim,
        position: Offset,
        manifest: Manifest,
    ) -> Option<(String, Manifest)> {
        self.known = Some(manifest.clone());
        match aim {
            Aim::HandOver => {
                self.stored = Some(position);
                None
            }
            Aim::Replay(id) => Some((id, manifest)),
        }
    }

    /// Waits a moment for the upload that runs; `false` if there is no time for that.
    pub(crate) fn linger(&self, shutdown: &Shutdown) -> bool {
        self.lease.beat();
        !self.lease.is_over() && !self.uploads.runtime.block_on(urged(shutdown, LOOK))
    }

    /// Whether the store has a checkpoint of this very position.
    pub(crate) fn has(&self, position: Offset) -> bool {
        self.stored == Some(position)
    }

    /// Uploads a last checkpoint, on this thread, at most until then. Says whether it is there.
    pub(crate) fn last(&mut self, upload: &Upload, until: Instant, shutdown: &Shutdown) -> bool {
        let (uploads, lease) = (self.uploads.clone(), self.lease.clone());
        let stored = uploads.runtime.clone().block_on(async {
            let limit = async {
                while Instant::now() < until && !lease.is_over() && !urged(shutdown, LOOK).await {
                    lease.beat();
                }
            };
            tokio::select! {
                stored = store(&uploads, &lease, upload, self.known.as_ref()) => Some(stored),
                () = limit => None,
            }
        });
        match stored {
            Some(Ok(manifest)) => {
                self.note(upload.aim.clone(), upload.position, manifest);
                true
            }
            Some(Err(trouble)) => {
                tracing::warn!(shard = %lease.identity(), reason = trouble.reason, "last checkpoint not uploaded: the next owner reads more of the log");
                false
            }
            None => {
                tracing::warn!(shard = %lease.identity(), "last checkpoint not uploaded in time: the next owner reads more of the log");
                false
            }
        }
    }
}

impl Drop for Uploader {
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
    uploads: &Uploads,
    lease: &Lease,
    upload: &Upload,
    known: Option<&Manifest>,
) -> Result<Manifest, Trouble> {
    let shard = lease.identity();
    // Nobody closes it.
    let _slot = uploads.slots.acquire().await;
    let begun = Instant::now();
    let owner = format!("{}-{}", upload.epoch, uploads.instance);
    let purpose = match &upload.aim {
        Aim::HandOver => Purpose::HandOver,
        Aim::Replay(id) => Purpose::Replay(id),
    };
    let stored = uploads
        .store
        .upload(&upload.directory, &shard, upload.position, &owner, purpose, known)
        .await;
    let manifest = match stored {
        Ok(manifest) => manifest,
        Err(error) => {
            uploads.metrics.upload_failed();
            return Err(error.into());
        }
    };
    uploads.metrics.uploaded(manifest.sent().uploaded_bytes, begun.elapsed());
    if upload.aim == Aim::HandOver && lease.allows() {
        // The next upload tries again.
        match uploads.store.prune(&shard, &manifest, &upload.replays).await {
            Ok(()) => uploads.leftovers.lock().over(),
            Err(error) => {
                uploads.leftovers.lock().failed(&Trouble::from(error).reason);
            }
        }
    }
    Ok(manifest)
}

fn is_gone(error: &headwater_state::Error) -> bool {
    matches!(error, headwater_state::Error::Gone { .. })
}

/// Where this process holds what it is uploading of a shard.
pub(crate) fn directory(data: &Path, shard: &Identity) -> PathBuf {
    data.join("uploads").join(shard.generation.to_string()).join(shard.partition.to_string())
}
