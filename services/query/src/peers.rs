//! The other query instances: where each shard is, and how shards on another disk are read.
//!
//! ```text
//! status topic ─► ShardLocator ─► is the shard on this disk?
//!                                    │ no
//!                                    ▼
//!                                 Forwarder ──► PeerPool ──► ShardService of a peer
//!                                    │              (connections, which peers are down)
//!                                    ▼
//!                                 PeerSession ─► RemoteRows, one per scan
//!
//! Announcer ─► status topic: this instance, its address, the directory that it shares
//! ```
//!
//! | file | to change |
//! | --- | --- |
//! | `shard_locator` | how this instance knows where a shard is |
//! | `announce` | what this instance tells the others |
//! | `pool` | connections, and the order in which peers are asked |
//! | `forward` | how a shard is asked for at a peer, and what a refusal means |
//! | `session`, `remote_rows` | how rows are read from a peer |
//! | `row_codec` | how rows are encoded between instances |
//!
//! The answering side is `api/read_shard.rs`.

pub(crate) mod announce;
pub(crate) mod forward;
pub(crate) mod pool;
pub(crate) mod remote_rows;
pub(crate) mod row_codec;
pub(crate) mod session;
pub(crate) mod shard_locator;
