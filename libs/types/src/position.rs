use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$meta:meta])* $name:ident($inner:ty)) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// The position of a record in its partition. As a *position* of a reader or writer it is the
    /// next offset to be read or written, so that offset 0 means "nothing yet".
    Offset(u64)
}

number! {
    /// A partition of a topic, counted from zero.
    PartitionId(u32)
}

number! {
    /// Counts claims of a writer, or promotions of a view's generations. The higher epoch wins.
    Epoch(u64)
}

impl Offset {
    pub const ZERO: Self = Self(0);

    /// The position after this record.
    #[must_use]
    #[inline]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl PartitionId {
    /// The only partition of a topic that has one, such as the control topic.
    pub const ONLY: Self = Self(0);
}

impl Epoch {
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}
