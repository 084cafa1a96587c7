//! What an answer reads: a pinned generation, and its shards at one commit each.

pub(crate) mod cursor;
pub(crate) mod generation_cache;
pub(crate) mod pin;
pub(crate) mod shard_snapshot;
pub(crate) mod shard_source;
