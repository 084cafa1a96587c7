use std::path::{Path, PathBuf};

use headwater_types::{BoxError, Remedy};

/// Why a shard's state refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "{} was written in state format {found}, and this Headwater knows formats up to {known}: \
         start the newer Headwater again, or delete the directory to have it rebuilt from the log",
        path.display()
    )]
    NewerFormat { path: PathBuf, found: u32, known: u32 },

    #[error(
        "{} holds {found}, not {expected}: it was moved or copied; put it back, or delete it to have \
         it rebuilt from the log",
        path.display()
    )]
    OtherIdentity { path: PathBuf, expected: String, found: String },

    /// The shard has not been created yet, or was deleted.
    #[error("{} holds no state yet", path.display())]
    Missing { path: PathBuf },

    #[error("{} is open in another process or has not been closed yet", path.display())]
    InUse { path: PathBuf },

    #[error("{} holds bytes that Headwater did not write: {detail}; delete the directory to have it rebuilt from the log", path.display())]
    Corrupt { path: PathBuf, detail: String },

    #[error("no space left for {}: make room on that disk", path.display())]
    Full {
        path: PathBuf,
        #[source]
        source: BoxError,
    },

    #[error("the state in {} cannot be read or written", path.display())]
    Storage {
        path: PathBuf,
        #[source]
        source: BoxError,
    },

    #[error("checkpoints.url {url:?} cannot be used: {reason}")]
    StoreUrl { url: String, reason: String },

    /// A checkpoint was removed because a newer one exists. The caller lists again to find the
    /// newer one.
    #[error("{location} is not in the store of checkpoints: it was removed for a newer one")]
    Gone { location: String },

    /// The stored bytes changed. An older checkpoint, or the log, has the same state.
    #[error("{location} in the store of checkpoints is damaged: {detail}; it is not used")]
    Damaged { location: String, detail: String },

    #[error(
        "the store of checkpoints refuses access to {location}: check the credentials, and what their owner may do"
    )]
    StoreRefused {
        location: String,
        #[source]
        source: BoxError,
    },

    /// `url` names any object in the bucket.
    #[error("the bucket of {url} does not exist: create it, or correct checkpoints.url")]
    NoBucket { url: String },

    #[error("the store of checkpoints cannot be used at {location}")]
    Store {
        location: String,
        #[source]
        source: BoxError,
    },
}

impl Error {
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::NewerFormat { .. }
            | Self::OtherIdentity { .. }
            | Self::StoreUrl { .. }
            | Self::NoBucket { .. }
            | Self::StoreRefused { .. } => Remedy::Correct,
            Self::Corrupt { .. } | Self::Damaged { .. } => Remedy::Repair,
            Self::Missing { .. }
            | Self::Gone { .. }
            | Self::Store { .. }
            | Self::InUse { .. }
            | Self::Full { .. }
            | Self::Storage { .. } => Remedy::Retry,
        }
    }

    /// Whether the store of checkpoints is unavailable or refuses access. This process cannot
    /// repair that, and the error may pass without a message to it.
    pub fn is_of_store(&self) -> bool {
        matches!(self, Self::Store { .. } | Self::StoreRefused { .. } | Self::NoBucket { .. })
    }

    pub(crate) fn corrupt(path: &Path, detail: impl Into<String>) -> Self {
        Self::Corrupt { path: path.into(), detail: detail.into() }
    }

    /// RocksDB reports a full disk and a held lock only in the text of an I/O error.
    pub(crate) fn rocksdb(path: &Path, error: rocksdb::Error) -> Self {
        let path = path.to_path_buf();
        let text = error.as_ref();
        if error.kind() == rocksdb::ErrorKind::Corruption {
            Self::Corrupt { path, detail: text.into() }
        } else if text.contains("No space left") {
            Self::Full { path, source: error.into() }
        } else if text.contains("lock file") || text.contains("/LOCK") {
            Self::InUse { path }
        } else {
            Self::Storage { path, source: error.into() }
        }
    }

    pub(crate) fn io(path: &Path, error: std::io::Error) -> Self {
        let path = path.to_path_buf();
        if error.kind() == std::io::ErrorKind::StorageFull {
            Self::Full { path, source: error.into() }
        } else {
            Self::Storage { path, source: error.into() }
        }
    }
}
