//! The gRPC services: requests in, answers out.

pub(crate) mod catalog_service;
pub(crate) mod replay_service;
