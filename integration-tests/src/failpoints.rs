//! The directory by which a test makes one process stand still at a named point
//! (`headwater_service::failpoint`).

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context as _, Result};

use crate::patience::{Found, eventually};

/// The points that the product has, by what stands still there.
pub mod point {
    /// A replaying shard, after it has committed some records.
    pub const REPLAY: &str = "processor.replay";
    /// A shard that owes the checkpoint of an ALIGN.
    pub const ALIGN: &str = "processor.align";
    /// A shard that is asked to stop publishing, before it says that it has.
    pub const MUTE: &str = "processor.mute";
    /// A comparison that has begun.
    pub const DIFF: &str = "coordinator.diff";
    /// The coordinator before it writes the record that is the swap.
    pub const SWAP: &str = "coordinator.swap";
    /// A request whose events are accepted and not yet given to the log.
    pub const APPEND: &str = "ingest.append";
}

/// The variable that names the directory.
pub const VARIABLE: &str = "HEADWATER_FAILPOINTS_DIR";

/// The points of one process, through every stop and start of it.
pub struct Failpoints {
    directory: tempfile::TempDir,
}

impl Failpoints {
    /// None is set.
    pub fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        // A service in a container is another user.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777))?;
        Ok(Self { directory })
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// From now on whatever comes to this point stands still there.
    pub fn set(&self, point: &str) -> Result<()> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let content = NEXT.fetch_add(1, Ordering::Relaxed).to_string();
        fs::write(self.directory().join(point), content).context("a failpoint")
    }

    /// Waits until something stands at this point, which is set.
    pub async fn reached(&self, point: &str) -> Result<()> {
        let read = |name: &str| fs::read(self.directory().join(name)).ok();
        eventually(&format!("something stands at {point}"), async || {
            let (set, reached) =
                (read(point).context("it is not set")?, read(&format!("{point}.reached")));
            Ok(match reached == Some(set) {
                true => Found::Yes(()),
                false => Found::NotYet("nothing does".into()),
            })
        })
        .await
    }

    /// Lets everything that stands there go on.
    pub fn release(&self, point: &str) -> Result<()> {
        fs::remove_file(self.directory().join(point)).context("it is not set")
    }
}
