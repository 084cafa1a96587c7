//! Reading: one generation of a view, and each of its shards at one commit.
//!
//! ```text
//! view, Freshness ─► ViewCatalog ─► Pin: one generation, a FreshnessGoal per shard
//!                        │           │
//!                 GenerationCache    ▼
//!                  (plans, shards)  ShardSource, one per shard
//!                                    ├─ on this disk: LocalReader, caught up on demand
//!                                    └─ elsewhere: Forwarder (peers/forward.rs)
//!                                    ▼
//!                                   ShardSnapshot ─► Cursor: rows merged by key, on a thread
//! ```
//!
//! | file | to change |
//! | --- | --- |
//! | `freshness` | what a request may ask for: tokens, timeout, generation |
//! | `catalog` | which generation answers |
//! | `pin` | how fresh its shards must be, and what provenance says |
//! | `generation`, `generation_cache` | how a generation is planned, kept and closed |
//! | `served_positions` | law 4, time never runs backwards |
//! | `shard_source` | where a shard is read, and how long it is waited for |
//! | `local_reader` | opening a shard on this disk, and catching up |
//! | `shard_snapshot` | a shard at one commit |
//! | `cursor` | how rows of several shards are merged |
//! | `deletion` | what a request is told whose view is deleted meanwhile |
//! | `generation_follower` | the task that plans what serves and closes what is retired |

pub(crate) mod catalog;
pub(crate) mod cursor;
pub(crate) mod deletion;
pub(crate) mod freshness;
pub(crate) mod generation;
pub(crate) mod generation_cache;
pub(crate) mod generation_follower;
pub(crate) mod local_reader;
pub(crate) mod pin;
pub(crate) mod read_context;
pub(crate) mod served_positions;
pub(crate) mod shard_snapshot;
pub(crate) mod shard_source;
