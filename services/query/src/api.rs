//! The gRPC surface: what clients ask, and what other query instances ask.
//!
//! `query_service` and `shard_service` are the two gRPC services. Each of their methods measures
//! the request and calls the verb's module:
//!
//! | method | module |
//! | --- | --- |
//! | `Get`, `Describe` | `get`, `describe` |
//! | `Scan` | `scan`, with its `page_token` |
//! | `Query` | `sql/query.rs` |
//! | `Watch` | `watch`, with its `watch_position` (the resume token) |
//! | `ReadShard` | `read_shard`: the answering side of `peers/forward.rs` |

mod answer;
mod describe;
mod get;
mod page_token;
pub(crate) mod query_service;
mod read_shard;
mod scan;
pub(crate) mod shard_service;
mod watch;
mod watch_position;
