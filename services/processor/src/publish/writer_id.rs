use headwater_log::WriterId;
use headwater_state::Identity;

/// The fenced writer of a shard. Each new owner claims it anew, which fences the one before.
pub(crate) fn writer_id(shard: Identity) -> WriterId {
    WriterId(format!("shards/{}/{}", shard.generation, shard.partition))
}
