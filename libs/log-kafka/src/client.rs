//! What clients of all kinds have in common: their callbacks, their errors, what they know of the
//! brokers together.

pub(crate) mod cluster_status;
pub(crate) mod connection_info;
pub(crate) mod context;
pub(crate) mod error;
pub(crate) mod fault;
pub(crate) mod off_thread;
