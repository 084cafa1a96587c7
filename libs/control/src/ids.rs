//! Ids of replays and their attempts: short enough to type, and never reused.

use std::{fmt, sync::Arc};

use headwater_types::Name;

macro_rules! id {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

id! {
    /// Names a replay: the view and a number, `spend_per_minute-1`.
    ReplayId
}

id! {
    /// Names a swap, promote or undo: the replay and a number, `spend_per_minute-1-s2`.
    SwapId
}

id! {
    /// Names the checkpoints of one attempt at ALIGN: the replay and a number,
    /// `spend_per_minute-1-a1`. It is the last part of the checkpoint's directory, and the value of
    /// `Checkpoint.replay_id` in a status.
    CheckpointId
}

impl ReplayId {
    /// The `number`th replay of a view, counted from one.
    pub fn of(view: &Name, number: u32) -> Self {
        Self(format!("{view}-{number}").into())
    }

    /// The id of this replay's `number`th swap, counted from one.
    pub fn swap(&self, number: u32) -> SwapId {
        SwapId(format!("{self}-s{number}").into())
    }

    /// The id of the checkpoints of this replay's `attempt`th ALIGN, counted from one.
    pub fn checkpoint(&self, attempt: u32) -> CheckpointId {
        CheckpointId(format!("{self}-a{attempt}").into())
    }
}
