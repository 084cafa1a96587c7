//! Copies of a shard: on this disk, in the store of checkpoints, and on the way between the two.

pub(crate) mod local;
pub(crate) mod restore;
pub(crate) mod setup;
pub(crate) mod store;
pub(crate) mod upload;
