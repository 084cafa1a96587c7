//! How a process of a test reaches the log.

use std::sync::atomic::AtomicBool;

use headwater_log::Error;
use parking_lot::{Condvar, Mutex};

/// How a process reaches the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Connection {
    #[default]
    Open,
    /// Every call stands still, as in a process that is stopped.
    Frozen,
    /// Every call fails, as when the log is away, or for a process that is dead to the others.
    Cut,
}

/// The connection of a process to the log.
#[derive(Default)]
pub(super) struct Link {
    pub(super) state: Mutex<Connection>,
    pub(super) changed: Condvar,
    /// A reader of the topic of orders stands still.
    pub(super) reader_stalled: AtomicBool,
}

impl Link {
    /// Stands still or fails, as the connection is.
    pub(super) fn pass(&self) -> Result<(), Error> {
        self.pass_or_stall(|| {})
    }

    pub(super) fn pass_or_stall(&self, stalled: impl Fn()) -> Result<(), Error> {
        let mut state = self.state.lock();
        while *state == Connection::Frozen {
            stalled();
            self.changed.wait(&mut state);
        }
        match *state {
            Connection::Open => Ok(()),
            Connection::Frozen | Connection::Cut => Err(is_cut()),
        }
    }
}

pub(super) fn is_cut() -> Error {
    Error::Unavailable("the connection is cut".into())
}
