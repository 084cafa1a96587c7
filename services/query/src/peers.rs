//! Other query instances: where shards are, and reading those that are not on this disk.

pub(crate) mod announce;
pub(crate) mod forward;
pub(crate) mod pool;
pub(crate) mod row_codec;
pub(crate) mod session;
pub(crate) mod shard_locator;
