//! The store of checkpoints: how a shard moves from one machine to another.
//!
//! It is an object store that processors and coordinator share, or a directory on a disk that they share.
//! What lies there is derived: whatever is lost is rebuilt from the log, so nothing here is fsynced for the
//! store's sake, and everything is verified when it is read.
//!
//! ```text
//! <url>/<generation>/<partition>/files/<owner>/<blake3>                  immutable files, named by their content
//! <url>/<generation>/<partition>/positions/<position>-<owner>.json       a manifest per hand-over checkpoint
//! <url>/<generation>/<partition>/replays/<checkpoint id>/<owner>.json    a manifest per checkpoint for a replay
//! ```
//!
//! An owner is one claim of a shard, `<epoch>-<instance>`: no two processes, and no two runs of one process,
//! have the same, and who claims later has the greater epoch.
//!
//! # Where it may lie
//!
//! * `file:///path/to/a/directory`, with `%20` and the like for characters that a URL cannot have. Where the
//!   shard lies on the same file system, files are hard links and cost nothing.
//! * `s3://bucket/prefix`: S3, or what speaks its language. Credentials and the rest come from the usual
//!   variables, of which an empty one counts as not set: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
//!   `AWS_SESSION_TOKEN`, `AWS_REGION` (or `AWS_DEFAULT_REGION`), `AWS_ENDPOINT_URL` (or `AWS_ENDPOINT_URL_S3`,
//!   `AWS_ENDPOINT`) for other stores than Amazon's, where an `http://` address is taken as it is,
//!   `AWS_VIRTUAL_HOSTED_STYLE_REQUEST`; without keys `AWS_WEB_IDENTITY_TOKEN_FILE` with `AWS_ROLE_ARN`,
//!   `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI`, `AWS_CONTAINER_CREDENTIALS_FULL_URI` with
//!   `AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE`, or the machine's own role. They must be allowed `s3:ListBucket` of the
//!   bucket, and `s3:GetObject`, `s3:PutObject`, `s3:DeleteObject` and `s3:AbortMultipartUpload` below the prefix. An
//!   upload that is cut off may leave parts that only a lifecycle rule of the bucket removes
//!   (`AbortIncompleteMultipartUpload`).
//!
//! # Why a former owner can break nothing
//!
//! A process may go on for a while after it has lost a shard, and may be stopped at any instruction and go on
//! an hour later. No clock and no lock guards against that; these rules do:
//!
//! 1. A manifest names files of its own owner only. What a predecessor has stored is taken over by a copy
//!    inside the store, under the new owner's path.
//! 2. [`Store::newest`] prefers the later owner, then the greater position.
//! 3. [`Store::prune`] on behalf of an owner removes nothing of later owners: neither manifests nor files.
//!
//! By 1 and 3 whatever a former owner removes, the manifests of later owners stay whole: it never touches
//! their files, and they name no others. By 2 and 3 it is harmless to remove the files of a *former* owner,
//! even while that one is about to write a manifest which names them: `prune` does so only while a manifest of
//! a later owner, the one to keep, is there, so that the broken one would never be chosen; and the statuses of
//! a former owner, which tell of its checkpoints for a replay, are ignored once the new one has spoken. That
//! manifest to keep is itself removed only beside one that is preferred to it. Uploads and prunings of *one*
//! owner do not overlap: it is one process, and clones of a store take turns shard by shard. Who reads a
//! manifest just before it is pruned is told so ([`Error::Gone`]) and looks for the newer one.

mod failure;
mod manifest;
mod place;
mod prune;
mod s3;
mod transfer;

use std::{
    collections::HashMap,
    fs,
    path::{Path as FsPath, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::{StreamExt as _, stream};
use headwater_types::Offset;
use object_store::{ObjectStoreExt as _, path::Path};
use parking_lot::Mutex;

use crate::{Error, Identity, layout};
pub use manifest::{Manifest, Sent, StoredFile};
use manifest::{Owner, hand_over_name, hand_over_rank};
use place::Place;

/// Files that are moved at the same time.
const CONCURRENCY: usize = 4;
/// How often the newest manifest is looked for when it vanishes before it is read.
const LOOKS: usize = 5;

/// What a checkpoint is uploaded for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose<'a> {
    /// So that another owner can go on with the shard.
    HandOver,
    /// For the comparison of two generations; the id of the checkpoint.
    Replay(&'a str),
}

/// A store of checkpoints. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Store {
    place: Arc<Place>,
    turns: Arc<Mutex<HashMap<Identity, Arc<tokio::sync::Mutex<()>>>>>,
}

impl Store {
    /// Opens the store at a URL. It reads nothing yet, but begins the directory of a `file://` URL.
    ///
    /// # Errors
    ///
    /// [`Error::StoreUrl`] if the URL is none of a store.
    pub fn open(url: &str) -> Result<Self, Error> {
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        Self::open_with(url, variables)
    }

    /// As [`Store::open`], with these variables instead of those of the process.
    pub fn open_with(
        url: &str,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Error> {
        Ok(Self { place: Arc::new(Place::open(url, variables)?), turns: Arc::default() })
    }

    /// The URL, in the form that those of manifests begin with.
    pub fn url(&self) -> &str {
        self.place.url()
    }

    /// Whether this is the URL of a manifest in this store.
    pub fn has(&self, url: &str) -> bool {
        self.place.path_of(url).is_some()
    }

    /// Stores the checkpoint in `checkpoint_dir`, which is at `position`: its files first, then the manifest, so
    /// that an upload which dies halfway leaves none.
    ///
    /// Files that the owner has stored before are referred to. Files that `known` has, the manifest from which
    /// the owner restored the shard, are copied within the store instead of uploaded.
    pub async fn upload(
        &self,
        checkpoint_dir: &FsPath,
        identity: &Identity,
        position: Offset,
        owner: &str,
        purpose: Purpose<'_>,
        known: Option<&Manifest>,
    ) -> Result<Manifest, Error> {
        let owner = Owner::new(owner)?;
        let turn = self.turn(identity);
        let _turn = turn.lock().await;
        let shard = self.place.shard(identity);
        let own = shard.clone().join("files").join(owner.name.as_str());
        let there: HashMap<Path, u64> = self
            .place
            .list(&own)
            .await?
            .into_iter()
            .map(|meta| (meta.location, meta.size))
            .collect();
        let elsewhere: HashMap<&str, Path> = known
            .filter(|known| known.identity() == *identity)
            .map(|known| known.files().iter())
            .into_iter()
            .flatten()
            .filter_map(|file| Some((file.blake3.as_str(), self.place.below(&shard, &file.path)?)))
            .collect();

        let local = transfer::files_of(checkpoint_dir).await?;
        let hashed = all(local.into_iter().map(async |(name, path)| {
            let (bytes, blake3) = transfer::hash(&path).await?;
            Ok((name, path, bytes, blake3))
        }))
        .await?;
        // Two files of equal content are one in the store.
        let mut wanted: HashMap<String, (PathBuf, u64)> = HashMap::new();
        let mut files = Vec::new();
        for (name, path, bytes, blake3) in hashed {
            let stored = format!("files/{}/{blake3}", manifest::segment(&owner.name));
            files.push(StoredFile { name, path: stored, bytes, blake3: blake3.clone() });
            if there.get(&own.clone().join(blake3.as_str())) != Some(&bytes) {
                wanted.entry(blake3).or_insert((path, bytes));
            }
        }
        let moved = all(wanted.into_iter().map(|(blake3, (path, bytes))| {
            let to = own.clone().join(blake3.as_str());
            let from = elsewhere.get(blake3.as_str()).cloned();
            async move { self.place.store(&path, bytes, &to, from.as_ref()).await }
        }))
        .await?;
        let mut sent = Sent::default();
        moved.into_iter().for_each(|one| sent.add(one));

        let path = match purpose {
            Purpose::HandOver => {
                shard.join("positions").join(hand_over_name(position, &owner).as_str())
            }
            Purpose::Replay(id) => {
                shard.join("replays").join(id).join(format!("{}.json", owner.name).as_str())
            }
        };
        let manifest =
            Manifest::new(self.place.url_of(&path), *identity, position, &owner, files, sent);
        self.place.put(&path, manifest.encode()).await?;
        tracing::info!(
            shard = %identity,
            position = position.0,
            files = manifest.files().len(),
            uploaded = sent.uploaded,
            copied = sent.copied,
            uploaded_bytes = sent.uploaded_bytes,
            manifest = manifest.url(),
            "checkpoint stored"
        );
        Ok(manifest)
    }

    /// The hand-over checkpoint that a new owner goes on from: the one furthest along of the latest owner.
    /// One that cannot be read is passed over.
    pub async fn newest(&self, identity: &Identity) -> Result<Option<Manifest>, Error> {
        for _ in 0..LOOKS {
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
                        "a manifest lies where another shard's belong and is passed over"
                    ),
                    // Pruned since it was listed: there is a better one.
                    Err(Error::Gone { .. }) => {
                        vanished = true;
                        break;
                    }
                    Err(error @ Error::Damaged { .. }) => {
                        tracing::warn!(%error, "a manifest is passed over");
                    }
                    Err(error) => return Err(error),
                }
            }
            if !vanished {
                return Ok(None);
            }
        }
        let location = self.place.url_of(&self.place.shard(identity).join("positions"));
        Err(Error::Gone { location })
    }

    /// The manifest at a URL that [`Manifest::url`] gave.
    pub async fn manifest(&self, url: &str) -> Result<Manifest, Error> {
        let Some(path) = self.place.path_of(url) else {
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

    /// Makes the directory `into` out of a checkpoint: wholly and verified, or not at all.
    ///
    /// # Errors
    ///
    /// [`Error::Gone`] if it was pruned, [`Error::Damaged`] if a file is not what was stored.
    pub async fn fetch(&self, manifest: &Manifest, into: &FsPath) -> Result<(), Error> {
        if into.exists() {
            let taken = std::io::Error::new(std::io::ErrorKind::AlreadyExists, "it exists already");
            return Err(Error::io(into, taken));
        }
        let shard = self.place.shard(&manifest.identity());
        let name = into.file_name().unwrap_or_default().to_string_lossy();
        let partial = Partial(into.with_file_name(format!("{name}.partial")));
        layout::remove(&partial.0)?;
        fs::create_dir_all(&partial.0).map_err(|error| Error::io(&partial.0, error))?;
        all(manifest.files().iter().map(|file| {
            let (shard, to) = (&shard, partial.0.join(&file.name));
            async move {
                let from = self.place.below(shard, &file.path).ok_or_else(|| Error::Damaged {
                    location: manifest.url().to_owned(),
                    detail: format!("it names {:?}, which is no place for a file", file.path),
                })?;
                self.place.load(&from, file, &to).await
            }
        }))
        .await?;
        let to = into.to_path_buf();
        transfer::blocking(move || {
            fs::File::open(&partial.0)
                .and_then(|directory| directory.sync_all())
                .and_then(|()| fs::rename(&partial.0, &to))
                .map_err(|error| Error::io(&to, error))
        })
        .await
    }

    /// Deletes all that is stored for a shard whose generation is retired.
    pub async fn remove(&self, identity: &Identity) -> Result<(), Error> {
        let turn = self.turn(identity);
        let _turn = turn.lock().await;
        let shard = self.place.shard(identity);
        let all = self.place.list(&shard).await?.into_iter().map(|meta| meta.location).collect();
        self.place.delete(all).await?;
        self.place.remove_directory(&shard).await?;
        self.turns.lock().remove(identity);
        Ok(())
    }

    async fn hand_overs(&self, identity: &Identity) -> Result<Vec<Path>, Error> {
        let found = self.place.list(&self.place.shard(identity).join("positions")).await?;
        Ok(found.into_iter().map(|meta| meta.location).collect())
    }

    async fn read(&self, path: &Path) -> Result<Manifest, Error> {
        let location = self.place.url_of(path);
        let failed = |error| failure::unread(&location, error);
        let bytes = async { self.place.objects().get(path).await?.bytes().await };
        let bytes = bytes.await.map_err(failed)?;
        Manifest::decode(location.clone(), &bytes)
            .map_err(|detail| Error::Damaged { location, detail })
    }

    /// Uploads and prunings of a shard take turns.
    fn turn(&self, identity: &Identity) -> Arc<tokio::sync::Mutex<()>> {
        self.turns.lock().entry(*identity).or_default().clone()
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("url", &self.url()).finish_non_exhaustive()
    }
}

/// Does all of it, a few at a time. After a failure nothing more is begun, and what was begun is waited for:
/// then nobody writes any more.
async fn all<T>(
    work: impl Iterator<Item = impl Future<Output = Result<T, Error>>>,
) -> Result<Vec<T>, Error> {
    let failed = &AtomicBool::new(false);
    let one = |one| async move {
        if failed.load(Ordering::Relaxed) {
            return None;
        }
        let result: Result<T, Error> = one.await;
        failed.fetch_or(result.is_err(), Ordering::Relaxed);
        Some(result)
    };
    let done: Vec<_> = stream::iter(work.map(one)).buffer_unordered(CONCURRENCY).collect().await;
    done.into_iter().flatten().collect()
}

/// A directory that is removed unless it was renamed: nothing is left of what was not finished.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        if let Err(error) = layout::remove(&self.0) {
            tracing::warn!(%error, "what was fetched halfway stays on the disk");
        }
    }
}

#[cfg(test)]
mod tests;
