//! Which shards this process owns: the groups of the generations, and a lease for each shard.

pub(crate) mod group;
pub(crate) mod lease;
pub(crate) mod partition_check;
