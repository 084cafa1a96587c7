//! Copies of a shard: on this disk, in the store of checkpoints, and on the way between the two.
//!
//! | file | what it does |
//! | --- | --- |
//! | `setup` | what a shard is opened from |
//! | `store` | the store of checkpoints, as all shards of this process use it |
//! | `restore` | opens a shard's database: from this disk, from the store, or empty |
//! | `upload` | brings checkpoints to the store, in the background |
//! | `replay` | checkpoints for replays that lie on this disk |
//! | `local` | the directories of a shard on this disk |

pub(crate) mod local;
pub(crate) mod replay;
pub(crate) mod restore;
pub(crate) mod setup;
pub(crate) mod store;
pub(crate) mod upload;
