//! Removes checkpoints and files that are no longer needed.

use std::{collections::HashSet, fs};

use object_store::path::Path;

use super::{
    Store,
    manifest::{Manifest, Owner, epoch_of, hand_over_rank, segment},
    transfer,
};
use crate::{Error, Identity};

impl Store {
    /// Removes what the hand-over checkpoint `keep` supersedes: earlier hand-over checkpoints of
    /// this shard, checkpoints of replays whose ids are not in `replays`, and files that no
    /// manifest names any more. Manifests and files of owners later than that of `keep` stay; the
    /// documentation of the module says why that is enough. If `keep` itself is gone, its owner has
    /// been replaced, and nothing is removed.
    pub async fn prune(
        &self,
        identity: &Identity,
        keep: &Manifest,
        replays: &[String],
    ) -> Result<(), Error> {
        let lock = self.shard_lock(identity);
        let _held = lock.lock().await;
        let shard = self.backend.shard(identity);
        let hand_overs = self.hand_overs(identity).await?;
        let kept = self.backend.path_of(keep.url());
        if !kept.is_some_and(|kept| hand_overs.contains(&kept)) {
            tracing::debug!(
                manifest = keep.url(),
                "nothing pruned: the checkpoint to keep is gone"
            );
            return Ok(());
        }
        let wanted: HashSet<String> = replays.iter().map(|id| segment(id)).collect();
        let (mut remaining, mut removed) = (Vec::new(), Vec::new());
        for path in hand_overs {
            match path.filename().and_then(hand_over_rank) {
                Some(rank) if rank < keep.rank() => removed.push(path),
                Some(_) => remaining.push(path),
                None => {}
            }
        }
        for meta in self.backend.list(&shard.clone().join("replays")).await? {
            let path = meta.location;
            let Some((id, epoch)) = replay_of(&path) else { continue };
            match epoch > keep.rank().epoch || wanted.contains(&id) {
                true => remaining.push(path),
                false => removed.push(path),
            }
        }
        // The files are listed before the manifests are read, so a file of a later manifest is not
        // among them.
        let files = self.backend.list(&shard.clone().join("files")).await?;
        let mut named = HashSet::new();
        for path in remaining {
            match self.read(&path).await {
                Ok(manifest) => named.extend(
                    manifest
                        .files()
                        .iter()
                        .filter_map(|file| self.backend.below(&shard, &file.path)),
                ),
                // A later owner has pruned this manifest.
                Err(Error::Gone { .. }) => {}
                // A damaged manifest cannot be restored, so its files need not be kept.
                Err(error @ Error::Damaged { .. }) => {
                    tracing::warn!(%error, "a manifest is damaged; the files that only it names are removed");
                }
                Err(error) => return Err(error),
            }
        }
        let superfluous = files.into_iter().map(|meta| meta.location).filter(|path| {
            let owner = owner_of(&shard, path).and_then(|owner| epoch_of(&owner));
            owner.is_some_and(|epoch| epoch <= keep.rank().epoch) && !named.contains(path)
        });
        let superfluous: Vec<_> = superfluous.collect();
        if !(removed.is_empty() && superfluous.is_empty()) {
            tracing::debug!(shard = %identity, manifests = removed.len(), files = superfluous.len(), "pruned");
        }
        // Manifests go first, so that no manifest names a missing file.
        self.backend.delete(removed).await?;
        self.backend.delete(superfluous).await?;
        self.sweep(&shard, &keep.owner).await
    }

    /// Removes files that an interrupted upload left in a store on a disk. They are not objects, so
    /// a list does not show them.
    async fn sweep(&self, shard: &Path, keep: &Owner) -> Result<(), Error> {
        let Some(directory) = self.backend.directory(&shard.clone().join("files"))? else {
            return Ok(());
        };
        let epoch = keep.epoch;
        transfer::blocking(move || {
            let Ok(owners) = fs::read_dir(&directory) else { return Ok(()) };
            for owner in owners.flatten() {
                let earlier = owner.file_name().to_str().and_then(epoch_of);
                if earlier.is_none_or(|earlier| earlier > epoch) {
                    continue;
                }
                let Ok(files) = fs::read_dir(owner.path()) else { continue };
                for file in files.flatten() {
                    // If a former owner is still writing this file, its upload fails, as it should.
                    if file.file_name().to_string_lossy().contains('#') {
                        let _ = fs::remove_file(file.path());
                    }
                }
                // This succeeds only for an empty directory.
                let _ = fs::remove_dir(owner.path());
            }
            Ok(())
        })
        .await
    }
}

/// The checkpoint id and the owner's epoch in the path of a replay's manifest; `None` for another
/// path.
fn replay_of(path: &Path) -> Option<(String, u64)> {
    let parts: Vec<_> = path.parts().collect();
    let [.., id, name] = parts.as_slice() else { return None };
    let owner = name.as_ref().strip_suffix(".json")?;
    Some((id.as_ref().to_owned(), epoch_of(owner)?))
}

/// The owner in a file's path.
fn owner_of(shard: &Path, file: &Path) -> Option<String> {
    let mut parts = file.prefix_match(shard)?;
    parts.next().filter(|part| part.as_ref() == "files")?;
    Some(parts.next()?.as_ref().to_owned())
}
