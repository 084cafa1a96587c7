//! Uploads checkpoints.

use std::{
    collections::HashMap,
    path::{Path as FsPath, PathBuf},
};

use headwater_types::Offset;
use object_store::path::Path;

use super::{
    Purpose, Store,
    manifest::{self, Manifest, Owner, Sent, StoredFile, hand_over_name},
    transfer::{self, run_all},
};
use crate::{Error, Identity};

impl Store {
    /// Uploads the checkpoint in `checkpoint_dir`, which is at `position`: first its files, then
    /// the manifest, so that an interrupted upload leaves no manifest.
    ///
    /// Files that the owner has uploaded before are not uploaded again. `known` is the manifest
    /// from which the owner restored the shard; its files are copied inside the store instead of
    /// uploaded.
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
        let lock = self.shard_lock(identity);
        let _held = lock.lock().await;
        let shard = self.backend.shard(identity);
        let own = shard.clone().join("files").join(owner.name.as_str());
        let there: HashMap<Path, u64> = self
            .backend
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
            .filter_map(|file| {
                Some((file.blake3.as_str(), self.backend.below(&shard, &file.path)?))
            })
            .collect();

        let local = transfer::checkpoint_files(checkpoint_dir).await?;
        let hashed = run_all(local.into_iter().map(async |(name, path)| {
            let (bytes, blake3) = transfer::hash(&path).await?;
            Ok((name, path, bytes, blake3))
        }))
        .await?;
        // The store keeps files of equal content once.
        let mut wanted: HashMap<String, (PathBuf, u64)> = HashMap::new();
        let mut files = Vec::new();
        for (name, path, bytes, blake3) in hashed {
            let stored = format!("files/{}/{blake3}", manifest::segment(&owner.name));
            files.push(StoredFile { name, path: stored, bytes, blake3: blake3.clone() });
            if there.get(&own.clone().join(blake3.as_str())) != Some(&bytes) {
                wanted.entry(blake3).or_insert((path, bytes));
            }
        }
        let moved = run_all(wanted.into_iter().map(|(blake3, (path, bytes))| {
            let to = own.clone().join(blake3.as_str());
            let from = elsewhere.get(blake3.as_str()).cloned();
            async move { self.backend.store(&path, bytes, &to, from.as_ref()).await }
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
            Manifest::new(self.backend.url_of(&path), *identity, position, &owner, files, sent);
        self.backend.put(&path, manifest.encode()).await?;
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
}
