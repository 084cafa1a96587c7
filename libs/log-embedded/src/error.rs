use std::{io, path::PathBuf};

use headwater_types::Remedy;

/// Why a data directory cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Two processes on one directory would both lose.
    #[error("the log in {} is in use by {holder}: stop it first, or choose another data directory", .directory.display())]
    InUse { directory: PathBuf, holder: String },

    #[error(
        "the log in {} has format {found}, and this version knows formats up to {known}: \
         run the version that wrote it, or choose another data directory",
        .directory.display()
    )]
    NewerFormat { directory: PathBuf, found: u32, known: u32 },

    /// Nothing is written into a directory that belongs to something else.
    #[error("{} holds other files and no log: choose an empty directory", .directory.display())]
    Foreign { directory: PathBuf },

    /// What is stored contradicts itself.
    #[error(
        "the log in {} is damaged: {detail}; put back a copy of the directory from before, \
         or choose another data directory and ingest again",
        .directory.display()
    )]
    Damaged { directory: PathBuf, detail: String },

    #[error("the data directory {} cannot be used: check that it exists and may be written", .directory.display())]
    Directory { directory: PathBuf, source: io::Error },

    #[error(transparent)]
    Log(#[from] headwater_log::Error),
}

impl Error {
    /// What the caller should do.
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::InUse { .. }
            | Self::NewerFormat { .. }
            | Self::Foreign { .. }
            | Self::Directory { .. } => Remedy::Correct,
            Self::Damaged { .. } => Remedy::Repair,
            Self::Log(error) => error.remedy(),
        }
    }
}
