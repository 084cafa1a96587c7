//! Fetches checkpoints to the local disk.

use std::{
    fs,
    path::{Path as FsPath, PathBuf},
};

use super::{
    Store,
    manifest::Manifest,
    transfer::{self, run_all},
};
use crate::{Error, layout};

impl Store {
    /// Downloads a checkpoint into the new directory `into`. The directory appears only when it is
    /// complete and verified.
    ///
    /// # Errors
    ///
    /// [`Error::Gone`] if the checkpoint was pruned, [`Error::Damaged`] if a file is not what was
    /// stored.
    pub async fn fetch(&self, manifest: &Manifest, into: &FsPath) -> Result<(), Error> {
        if into.exists() {
            let taken = std::io::Error::new(std::io::ErrorKind::AlreadyExists, "it exists already");
            return Err(Error::io(into, taken));
        }
        let shard = self.backend.shard(&manifest.identity());
        let name = into.file_name().unwrap_or_default().to_string_lossy();
        let partial = PartialDirectory(into.with_file_name(format!("{name}.partial")));
        layout::remove(&partial.0)?;
        fs::create_dir_all(&partial.0).map_err(|error| Error::io(&partial.0, error))?;
        run_all(manifest.files().iter().map(|file| {
            let (shard, to) = (&shard, partial.0.join(&file.name));
            async move {
                let from = self.backend.below(shard, &file.path).ok_or_else(|| Error::Damaged {
                    location: manifest.url().to_owned(),
                    detail: format!(
                        "it names {:?}, which is not the path of a file of this shard",
                        file.path
                    ),
                })?;
                self.backend.load(&from, file, &to).await
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
}

/// A directory that is removed unless it was renamed, so that an unfinished fetch leaves nothing.
struct PartialDirectory(PathBuf);

impl Drop for PartialDirectory {
    fn drop(&mut self) {
        if let Err(error) = layout::remove(&self.0) {
            tracing::warn!(%error, "cannot remove a directory that was fetched partly");
        }
    }
}
