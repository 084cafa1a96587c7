//! What is no longer needed, removed.

use std::{collections::HashSet, fs};

use object_store::path::Path;

use super::{
    Store,
    manifest::{Manifest, Owner, epoch_of, hand_over_rank, segment},
    transfer,
};
use crate::{Error, Identity};

impl Store {
    /// Removes what `keep`, a hand-over checkpoint of this shard, makes superfluous: hand-over checkpoints that
    /// come before it, checkpoints for replays whose ids are not among `replays`, and files that no manifest
    /// has any more. What later owners than that of `keep` have stored stays; the module says why that is
    /// enough. If `keep` itself is gone, its owner has been replaced, and nothing is done.
    pub async fn prune(
        &self,
        identity: &Identity,
        keep: &Manifest,
        replays: &[String],
    ) -> Result<(), Error> {
        let turn = self.turn(identity);
        let _turn = turn.lock().await;
        let shard = self.place.shard(identity);
        let hand_overs = self.hand_overs(identity).await?;
        let kept = self.place.path_of(keep.url());
        if !kept.is_some_and(|kept| hand_overs.contains(&kept)) {
            tracing::debug!(
                manifest = keep.url(),
                "nothing is pruned: the checkpoint to keep is gone"
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
        for meta in self.place.list(&shard.clone().join("replays")).await? {
            let path = meta.location;
            let Some((id, epoch)) = replay_of(&path) else { continue };
            match epoch > keep.rank().epoch || wanted.contains(&id) {
                true => remaining.push(path),
                false => removed.push(path),
            }
        }
        // Listed before the manifests are read: a file of a later manifest is not among them.
        let files = self.place.list(&shard.clone().join("files")).await?;
        let mut named = HashSet::new();
        for path in remaining {
            match self.read(&path).await {
                Ok(manifest) => named.extend(
                    manifest.files().iter().filter_map(|file| self.place.below(&shard, &file.path)),
                ),
                // A later owner has pruned it.
                Err(Error::Gone { .. }) => {}
                // What cannot be read cannot be restored either.
                Err(error @ Error::Damaged { .. }) => {
                    tracing::warn!(%error, "a manifest cannot be read, and its files are not kept for it");
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
        // Manifests first: none may name a file that is gone.
        self.place.delete(removed).await?;
        self.place.delete(superfluous).await?;
        self.sweep(&shard, &keep.owner).await
    }

    /// Removes what was written halfway to a store on a disk: it is no object and is not listed.
    async fn sweep(&self, shard: &Path, keep: &Owner) -> Result<(), Error> {
        let Some(directory) = self.place.directory(&shard.clone().join("files"))? else {
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
                    // A former owner that is still writing it fails, as it should.
                    if file.file_name().to_string_lossy().contains('#') {
                        let _ = fs::remove_file(file.path());
                    }
                }
                // Succeeds only on an empty one.
                let _ = fs::remove_dir(owner.path());
            }
            Ok(())
        })
        .await
    }
}

/// The id and the owner's epoch of a replay's manifest; `None` if it is none.
fn replay_of(path: &Path) -> Option<(String, u64)> {
    let parts: Vec<_> = path.parts().collect();
    let [.., id, name] = parts.as_slice() else { return None };
    let owner = name.as_ref().strip_suffix(".json")?;
    Some((id.as_ref().to_owned(), epoch_of(owner)?))
}

/// Whose file it is, by its path.
fn owner_of(shard: &Path, file: &Path) -> Option<String> {
    let mut parts = file.prefix_match(shard)?;
    parts.next().filter(|part| part.as_ref() == "files")?;
    Some(parts.next()?.as_ref().to_owned())
}
