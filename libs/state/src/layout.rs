//! The directories of state, checkpoints and readers under the data directory.
//!
//! ```text
//! state/<generation>/<partition>/
//! checkpoints/<generation>/<partition>/<checkpoint>/
//! readers/<instance>/<generation>/<partition>/
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use headwater_types::{GenerationId, PartitionId};

use crate::Error;

/// The database of a shard.
pub fn shard_dir(data: &Path, generation: GenerationId, partition: PartitionId) -> PathBuf {
    state_dir(data, generation).join(partition.to_string())
}

/// The databases of all shards of a generation.
pub fn state_dir(data: &Path, generation: GenerationId) -> PathBuf {
    data.join("state").join(generation.to_string())
}

/// One checkpoint of a shard. `checkpoint` is the id of the replay, or of its attempt, that asked
/// for it.
pub fn checkpoint_dir(
    data: &Path,
    generation: GenerationId,
    partition: PartitionId,
    checkpoint: &str,
) -> PathBuf {
    checkpoints_dir(data, generation).join(partition.to_string()).join(checkpoint)
}

/// The checkpoints of all shards of a generation.
pub fn checkpoints_dir(data: &Path, generation: GenerationId) -> PathBuf {
    data.join("checkpoints").join(generation.to_string())
}

/// The scratch directory of a shard's reader: RocksDB's info log of the secondary, nothing of
/// value.
pub fn reader_dir(
    data: &Path,
    instance: &str,
    generation: GenerationId,
    partition: PartitionId,
) -> PathBuf {
    readers_dir(data, instance).join(generation.to_string()).join(partition.to_string())
}

/// The scratch directories of all readers of an instance.
pub fn readers_dir(data: &Path, instance: &str) -> PathBuf {
    data.join("readers").join(instance)
}

/// Removes a directory with its contents. A missing directory is a success.
pub fn remove(directory: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(directory, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The total size of the files in a directory, without subdirectories. Files that vanish meanwhile
/// count as empty.
pub fn size_bytes(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    entries
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .filter(fs::Metadata::is_file)
        .map(|file| file.len())
        .sum()
}
