//! The directories of a shard on this disk: its database, copies of it, and checkpoints on their
//! way to the store.

use std::{
    fs,
    path::{Path, PathBuf},
};

use headwater_state::{Identity, layout};
use headwater_types::Remedy;

use crate::error::ShardError;

/// Where the copies of a shard's database lie.
pub(crate) struct CopyPaths {
    pub(crate) shard: PathBuf,
    /// Fetched from the store, and not in use yet.
    pub(crate) restored: PathBuf,
    /// In use before the restored copy.
    pub(crate) old: PathBuf,
}

impl CopyPaths {
    pub(crate) fn of(shard: PathBuf) -> Self {
        let beside = |suffix: &str| {
            let name = shard.file_name().unwrap_or_default().to_string_lossy();
            shard.with_file_name(format!("{name}.{suffix}"))
        };
        Self { restored: beside("restored"), old: beside("old"), shard }
    }

    /// Finishes a swap that a crash interrupted.
    pub(crate) fn recover(&self) -> Result<(), ShardError> {
        if !self.shard.exists() && self.restored.exists() {
            rename(&self.restored, &self.shard)?;
        } else if !self.shard.exists() && self.old.exists() {
            rename(&self.old, &self.shard)?;
        }
        layout::remove(&self.restored)?;
        Ok(layout::remove(&self.old)?)
    }

    /// Puts the restored copy in the place of the one that is in use.
    pub(crate) fn swap(&self) -> Result<(), ShardError> {
        if self.shard.exists() {
            rename(&self.shard, &self.old)?;
        }
        rename(&self.restored, &self.shard)?;
        Ok(layout::remove(&self.old)?)
    }

    fn all(&self) -> [PathBuf; 4] {
        let partial = self.restored.with_extension("restored.partial");
        [self.shard.clone(), self.restored.clone(), partial, self.old.clone()]
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), ShardError> {
    let parent = to.parent().unwrap_or(to);
    fs::rename(from, to).and_then(|()| fs::File::open(parent)?.sync_all()).map_err(|error| {
        ShardError::new(
            Remedy::Retry,
            format!("{} cannot be renamed to {}: {error}", from.display(), to.display()),
        )
    })
}

/// Where the shard's checkpoints lie while they are uploaded.
pub(crate) fn upload_dir(data: &Path, shard: &Identity) -> PathBuf {
    data.join("uploads").join(shard.generation.to_string()).join(shard.partition.to_string())
}

/// Removes all that this disk has of the shard.
pub(crate) fn remove_local(data: &Path, shard: &Identity) -> Result<(), headwater_state::Error> {
    let Identity { generation, partition } = *shard;
    let uploads = upload_dir(data, shard);
    layout::remove(&layout::checkpoint_dir(data, generation, partition, ""))?;
    layout::remove(&uploads)?;
    let copies = CopyPaths::of(layout::shard_dir(data, generation, partition));
    copies.all().iter().try_for_each(|path| layout::remove(path))?;
    // These succeed for the generation's last shard only: the directories are not empty before.
    let _ = fs::remove_dir(layout::state_dir(data, generation));
    let _ = fs::remove_dir(layout::checkpoints_dir(data, generation));
    if let Some(uploads) = uploads.parent() {
        let _ = fs::remove_dir(uploads);
    }
    Ok(())
}
