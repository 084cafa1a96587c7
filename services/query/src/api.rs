//! The gRPC surface: one module for each verb.

pub(crate) mod get;
pub(crate) mod read_shard;
pub(crate) mod rpc;
pub(crate) mod scan;
pub(crate) mod watch;
