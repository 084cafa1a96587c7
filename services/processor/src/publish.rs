//! Everything that a shard writes to the log: dead letters and statuses.
//!
//! `outbox` publishes each record of the outbox once, through the fenced writer that `writer_id`
//! names. `status_reporter` appends the statuses of all shards, together where it can.

pub(crate) mod outbox;
pub(crate) mod status_reporter;
pub(crate) mod writer_id;
