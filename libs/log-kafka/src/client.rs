//! Parts that clients of all kinds share: their callbacks, their errors, what they know of the
//! brokers together, and what keeps them alive.

pub(crate) mod cluster_status;
pub(crate) mod connection_info;
pub(crate) mod context;
pub(crate) mod error;
#[cfg(test)]
pub(crate) mod fake_broker;
pub(crate) mod fault;
pub(crate) mod off_thread;
pub(crate) mod rebootstrap;
pub(crate) mod renewable;
