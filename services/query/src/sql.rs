//! Ad-hoc SQL over views, by DataFusion.
//!
//! ```text
//! statement ─► views, each pinned once ─► plan ─► snapshots, cursors ─► rows
//! ```
//!
//! A query computes on a thread of its own, so that it never delays a point read, and each of its
//! scans has a thread too. Memory and duration are bounded, and only a SELECT is let through.
//!
//! | file | to change |
//! | --- | --- |
//! | `query` | how a query runs |
//! | `statement` | which statements are let through |
//! | `session` | which functions and how much memory a query may use |
//! | `table` | which keys a scan reads |
//! | `encoder` | how rows are sent |

mod encoder;
pub(crate) mod query;
mod session;
mod statement;
mod table;
