//! One shard and its thread.

mod claim;
mod close;
mod open;
mod rate;
mod status;
pub(crate) mod task;
pub(crate) mod thread;
