//! Which shards this process owns: a consumer group per generation, and a lease per shard.
//!
//! ```text
//!  group            lease               partition_check
//!  join, assign,    may this process    has the topic the partitions
//!  revoke, lose     write for a shard?  that its stream declares?
//! ```

pub(crate) mod group;
pub(crate) mod lease;
pub(crate) mod partition_check;
