//! Checkpoints for replays, as a shard has them on this disk.

use std::{collections::BTreeMap, fs, path::Path};

use headwater_state::{ShardReader, layout};
use headwater_types::{Offset, Remedy};

use crate::{checkpoint::setup::ShardSetup, error::ShardError};

/// A checkpoint for a replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReplayCheckpoint {
    pub(crate) position: Offset,
    /// Where others find it; `None` until it is in the store.
    pub(crate) location: Option<String>,
}

/// The checkpoints that an earlier process or thread has left, by id. Removes unusable ones.
pub(crate) fn find_checkpoints(
    setup: &ShardSetup,
) -> Result<BTreeMap<String, ReplayCheckpoint>, ShardError> {
    let mut found = BTreeMap::new();
    let Ok(entries) = fs::read_dir(setup.checkpoint_dir("").as_path()) else { return Ok(found) };
    for entry in entries.flatten() {
        let Ok(id) = entry.file_name().into_string() else { continue };
        match ShardReader::open_checkpoint_with(&entry.path(), &setup.identity, &setup.options) {
            Ok(reader) => {
                let location = setup.checkpoint_store.is_none().then(|| file_url(&entry.path()));
                let position = reader.progress().position;
                found.insert(id, ReplayCheckpoint { position, location });
            }
            Err(error) if error.remedy() == Remedy::Retry && !is_missing(&error) => {
                return Err(error.into());
            }
            // A crash has left half of it, or it is damaged: another one can be taken.
            Err(error) => {
                tracing::info!(path = %entry.path().display(), %error, "removing an unusable checkpoint");
                layout::remove(&entry.path())?;
            }
        }
    }
    Ok(found)
}

fn is_missing(error: &headwater_state::Error) -> bool {
    matches!(error, headwater_state::Error::Missing { .. })
}

pub(crate) fn file_url(directory: &Path) -> String {
    format!("file://{}", directory.display())
}
