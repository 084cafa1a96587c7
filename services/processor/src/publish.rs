//! What a shard writes to the log: dead letters and statuses.

pub(crate) mod outbox;
pub(crate) mod status_reporter;
pub(crate) mod writer_id;
