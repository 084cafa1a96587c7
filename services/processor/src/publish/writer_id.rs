use headwater_log::WriterId;
use headwater_state::Identity;

/// Under this name the owners of a shard succeed each other.
pub(crate) fn writer_id(shard: Identity) -> WriterId {
    WriterId(format!("shards/{}/{}", shard.generation, shard.partition))
}
