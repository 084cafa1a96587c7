//! The service as its clients see it, over gRPC and HTTP, on a log in memory that can fail and be
//! slow.

mod appending;
mod dead_letters;
mod fixture;
mod http;
mod remote;
mod streaming;
