//! The gRPC services: a request becomes a question to the state, or a command for the leader.

pub(crate) mod catalog_service;
pub(crate) mod replay_service;
