//! The store of checkpoints: how a shard moves from one machine to another.
//!
//! It is an object store, or a shared directory, that processors and coordinator use. Checkpoints
//! are derived data: a lost one is rebuilt from the log. So nothing is fsynced for the store's
//! sake, and every file is verified when it is read.
//!
//! ```text
//! <url>/<generation>/<partition>/
//!   files/<owner>/<blake3>                  immutable files, named by their content
//!   positions/<position>-<owner>.json       a manifest per hand-over checkpoint
//!   replays/<checkpoint id>/<owner>.json    a manifest per checkpoint for a replay
//! ```
//!
//! An owner is one claim of a shard, `<epoch>-<instance>`. No two processes, and no two runs of one
//! process, are the same owner. A later claim has a greater epoch.
//!
//! `upload.rs`, `fetch.rs` and `prune.rs` are the operations; `backend.rs` is the disk or S3 behind
//! them.
//!
//! # URLs
//!
//! * `file:///path/to/a/directory`, with `%20` and the like for characters that a URL cannot have.
//!   If the shard lies on the same file system, files are hard links and cost nothing.
//! * `s3://bucket/prefix`: S3 or any S3-compatible store. Credentials and settings come from the
//!   usual variables, of which an empty one counts as not set: `AWS_ACCESS_KEY_ID`,
//!   `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION` (or `AWS_DEFAULT_REGION`),
//!   `AWS_ENDPOINT_URL` (or `AWS_ENDPOINT_URL_S3`, `AWS_ENDPOINT`) for stores other than Amazon's,
//!   where an `http://` address is allowed, `AWS_VIRTUAL_HOSTED_STYLE_REQUEST`; without keys
//!   `AWS_WEB_IDENTITY_TOKEN_FILE` with `AWS_ROLE_ARN`, `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI`,
//!   `AWS_CONTAINER_CREDENTIALS_FULL_URI` with `AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE`, or the
//!   machine's own role. The credentials must allow `s3:ListBucket` on the bucket, and
//!   `s3:GetObject`, `s3:PutObject`, `s3:DeleteObject` and `s3:AbortMultipartUpload` below the
//!   prefix. An interrupted upload may leave parts that only a lifecycle rule of the bucket removes
//!   (`AbortIncompleteMultipartUpload`).
//!
//! # Why a former owner can break nothing
//!
//! A process may run on for a while after it has lost a shard, and may even be suspended at any
//! instruction and continue an hour later. Neither a clock nor a lock guards against that. These
//! rules do:
//!
//! 1. A manifest names only files of its own owner. A new owner copies its predecessor's files
//!    inside the store, to its own path.
//! 2. [`Store::newest`] prefers the later owner, then the greater position.
//! 3. [`Store::prune`] on behalf of an owner never removes manifests or files of later owners.
//!
//! By rules 1 and 3, the manifests of later owners stay complete: a former owner never touches
//! their files, and these manifests name no other files.
//!
//! By rules 2 and 3, the new owner may remove files of a *former* owner even while the former owner
//! is about to write a manifest that names them. `prune` removes such files only while the manifest
//! to keep, which belongs to a later owner, exists, so no reader would choose the broken manifest.
//! The coordinator also ignores the former owner's status records, which report its checkpoints for
//! a replay, once the new owner has written one. The kept manifest is itself removed only when a
//! preferred one exists.
//!
//! Uploads and prunings of *one* owner do not overlap: an owner is one process, and clones of a
//! store lock each shard. A reader of a manifest that is pruned meanwhile gets [`Error::Gone`] and
//! looks for the newer one.

mod backend;
mod error;
mod fetch;
mod manifest;
mod prune;
mod s3;
mod transfer;
mod upload;

use std::{collections::HashMap, sync::Arc};

use object_store::{ObjectStoreExt as _, path::Path};
use parking_lot::Mutex;

use crate::{Error, Identity};
use backend::Backend;
use manifest::hand_over_rank;
pub use manifest::{Manifest, Sent, StoredFile};

/// Attempts to find the newest manifest when it is pruned before it is read.
const NEWEST_ATTEMPTS: usize = 5;

/// The reason for an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose<'a> {
    /// Another owner shall be able to continue the shard from this checkpoint.
    HandOver,
    /// A replay compares two generations. The text is the id of the checkpoint.
    Replay(&'a str),
}

/// A store of checkpoints. Cheap to clone: all clones share one state.
#[derive(Clone)]
pub struct Store {
    backend: Arc<Backend>,
    shard_locks: Arc<Mutex<HashMap<Identity, Arc<tokio::sync::Mutex<()>>>>>,
}

impl Store {
    /// Opens the store at a URL. This creates the directory of a `file://` URL, and reads nothing
    /// yet.
    ///
    /// # Errors
    ///
    /// [`Error::StoreUrl`] if the URL names no store.
    pub fn open(url: &str) -> Result<Self, Error> {
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        Self::open_with(url, variables)
    }

    /// As [`Store::open`], with these variables instead of the environment's.
    pub fn open_with(
        url: &str,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Error> {
        Ok(Self { backend: Arc::new(Backend::open(url, variables)?), shard_locks: Arc::default() })
    }

    /// The URL. The URLs of all manifests in this store begin with it.
    pub fn url(&self) -> &str {
        self.backend.url()
    }

    /// Whether this is the URL of a manifest in this store.
    pub fn has(&self, url: &str) -> bool {
        self.backend.path_of(url).is_some()
    }

    /// The hand-over checkpoint from which a new owner continues: the one at the greatest position
    /// of the latest owner. An unreadable one is skipped.
    pub async fn newest(&self, identity: &Identity) -> Result<Option<Manifest>, Error> {
        for _ in 0..NEWEST_ATTEMPTS {
            let mut found: Vec<_> = self
                .hand_overs(identity)
                .await?
                .into_iter()
                .filter_map(|path| Some((hand_over_rank(path.filename()?)?, path)))
                .collect();
            found.sort_unstable_by_key(|(rank, _)| std::cmp::Reverse(*rank));
            let mut vanished = false;
            for (_, path) in found {
                match self.read(&path).await {
                    Ok(manifest) if manifest.identity() == *identity => return Ok(Some(manifest)),
                    Ok(manifest) => tracing::warn!(
                        manifest = manifest.url(),
                        of = %manifest.identity(),
                        "skipped a manifest of another shard"
                    ),
                    // It was pruned after it was listed, so a better one exists.
                    Err(Error::Gone { .. }) => {
                        vanished = true;
                        break;
                    }
                    Err(error @ Error::Damaged { .. }) => {
                        tracing::warn!(%error, "skipped a damaged manifest");
                    }
                    Err(error) => return Err(error),
                }
            }
            if !vanished {
                return Ok(None);
            }
        }
        let location = self.backend.url_of(&self.backend.shard(identity).join("positions"));
        Err(Error::Gone { location })
    }

    /// The manifest at a URL that [`Manifest::url`] gave.
    pub async fn manifest(&self, url: &str) -> Result<Manifest, Error> {
        let Some(path) = self.backend.path_of(url) else {
            return Err(Error::StoreUrl {
                url: url.to_owned(),
                reason: format!(
                    "it does not lie in the store at {}: all services need the same `checkpoints.url`",
                    self.url()
                ),
            });
        };
        self.read(&path).await
    }

    /// Deletes everything stored for a shard whose generation is retired.
    pub async fn remove(&self, identity: &Identity) -> Result<(), Error> {
        let lock = self.shard_lock(identity);
        let _held = lock.lock().await;
        let shard = self.backend.shard(identity);
        let all = self.backend.list(&shard).await?.into_iter().map(|meta| meta.location).collect();
        self.backend.delete(all).await?;
        self.backend.remove_directory(&shard).await?;
        self.shard_locks.lock().remove(identity);
        Ok(())
    }

    async fn hand_overs(&self, identity: &Identity) -> Result<Vec<Path>, Error> {
        let found = self.backend.list(&self.backend.shard(identity).join("positions")).await?;
        Ok(found.into_iter().map(|meta| meta.location).collect())
    }

    async fn read(&self, path: &Path) -> Result<Manifest, Error> {
        let location = self.backend.url_of(path);
        let failed = |error| error::read_error(&location, error);
        let bytes = async { self.backend.objects().get(path).await?.bytes().await };
        let bytes = bytes.await.map_err(failed)?;
        Manifest::decode(location.clone(), &bytes)
            .map_err(|detail| Error::Damaged { location, detail })
    }

    /// Uploads and prunings of a shard hold this lock.
    fn shard_lock(&self, identity: &Identity) -> Arc<tokio::sync::Mutex<()>> {
        self.shard_locks.lock().entry(*identity).or_default().clone()
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("url", &self.url()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
