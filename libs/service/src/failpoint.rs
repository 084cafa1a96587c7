//! Named points at which a test makes a process stand still, in builds with debug assertions only.
//!
//! A test must not hope to kill a process in the middle of something: it makes the process stand
//! there, sees that it does, and kills it. `HEADWATER_FAILPOINTS_DIR` names a directory that the
//! process shares with the test, also across containers:
//!
//! | the test | the process |
//! | --- | --- |
//! | writes the file `NAME` | stands still when it comes to the point `NAME` |
//! | waits for `NAME.reached` | copies `NAME` to `NAME.reached` when it stands there |
//! | removes `NAME` | goes on |
//!
//! Without the variable a point costs one comparison. In a release build [`stands`] is a constant,
//! a point is nothing, and the variable is refused like any other that is no setting. Points lie
//! where a round or a step begins, never on the path of a record:
//!
//! | point | what stands still |
//! | --- | --- |
//! | `processor.replay` | a replaying shard, after it has committed some records |
//! | `processor.align` | a shard that owes the checkpoint of an ALIGN |
//! | `processor.mute` | a shard that is asked to stop publishing, before it says that it has |
//! | `coordinator.diff` | a comparison that has begun |
//! | `coordinator.swap` | the coordinator before it writes the record that is the swap |
//! | `ingest.append` | a request whose events are accepted and not yet given to the log |
//!
//! The crate `fail` does not fit. Its points are configured inside the process, by a variable at
//! the start or by calls of the same process: a test outside a container could neither see that a
//! point is reached nor release it. Its points block their thread, too, while a shard here goes on
//! to report and to keep its lease.

use std::time::Duration;

/// How long a caller that stands still waits before it asks again.
pub const PAUSE: Duration = Duration::from_millis(10);

/// Whether the caller has to stand still at this point for now. `applies` says whether the caller
/// is what the point is about; it is asked only where a test has set the point. A caller that
/// stands still asks again soon, until it may go on.
#[cfg(debug_assertions)]
pub fn stands(point: &str, applies: impl FnOnce() -> bool) -> bool {
    use std::{path::PathBuf, sync::OnceLock};
    static DIRECTORY: OnceLock<Option<PathBuf>> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| std::env::var_os(points::VARIABLE).map(PathBuf::from));
    directory.as_deref().is_some_and(|directory| points::stands(directory, point, applies))
}

/// A build without debug assertions has no points.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn stands(_point: &str, _applies: impl FnOnce() -> bool) -> bool {
    false
}

/// Stands still at this point for as long as a test says so, without keeping a thread.
pub async fn stand(point: &str) {
    while stands(point, || true) {
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether this variable names the directory of points, so that it is no setting.
pub(crate) fn is_variable(_name: &str) -> bool {
    #[cfg(debug_assertions)]
    return _name == points::VARIABLE;
    #[cfg(not(debug_assertions))]
    return false;
}

#[cfg(debug_assertions)]
mod points {
    use std::{fs, path::Path};

    pub(super) const VARIABLE: &str = "HEADWATER_FAILPOINTS_DIR";

    pub(super) fn stands(directory: &Path, point: &str, applies: impl FnOnce() -> bool) -> bool {
        let Ok(set) = fs::read(directory.join(point)) else { return false };
        if !applies() {
            return false;
        }
        let reached = directory.join(format!("{point}.reached"));
        // A point that is set anew has another content, so that nobody takes what was said of the
        // last one for this one.
        if fs::read(&reached).ok().as_ref() != Some(&set) {
            tracing::info!(point, "standing still at a failpoint");
            // The file appears with its content: a test never reads it empty.
            let written = directory.join(format!("{point}.writing"));
            let done = fs::write(&written, &set).and_then(|()| fs::rename(&written, &reached));
            if let Err(error) = done {
                tracing::error!(point, %error, "cannot say that a failpoint is reached");
            }
        }
        true
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_point_stands_from_when_it_is_set_until_it_is_removed_and_says_so() {
            let directory = tempfile::tempdir().unwrap();
            let path = |name: &str| directory.path().join(name);
            let ask = |applies| stands(directory.path(), "shard.read", || applies);
            assert!(!ask(true), "nobody has set it");
            fs::write(path("shard.read"), "1").unwrap();
            assert!(!ask(false), "it is about something else");
            assert!(!path("shard.read.reached").exists());
            assert!(ask(true) && ask(true));
            assert_eq!(fs::read(path("shard.read.reached")).unwrap(), b"1");
            assert!(!stands(directory.path(), "shard.commit", || true), "another point is not set");
            fs::remove_file(path("shard.read")).unwrap();
            assert!(!ask(true));
            fs::write(path("shard.read"), "2").unwrap();
            assert!(ask(true));
            assert_eq!(fs::read(path("shard.read.reached")).unwrap(), b"2");
        }

        #[test]
        fn a_point_that_is_not_set_does_not_ask_whether_it_applies() {
            let directory = tempfile::tempdir().unwrap();
            assert!(!stands(directory.path(), "shard.read", || panic!("asked")));
        }
    }
}
