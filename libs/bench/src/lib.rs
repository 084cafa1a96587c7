//! What Headwater costs, measured: `scripts/bench` runs it and says on which commit.
//!
//! | module | question |
//! | --- | --- |
//! | [`engine`] | CPU per event, from a chunk of the log to committed rows |
//! | [`ingest`] | events per second through gRPC, acknowledged after fsync |
//! | [`reads`] | point reads through gRPC, beside a bare tonic service in the same run |
//! | [`start`] | how soon `headwater dev` is ready on existing data |
//!
//! Whatever runs per event is not here but in the crates that are measured: this crate is built
//! without optimisation, and prepares what it sends before it starts the clock.

pub mod engine;
pub mod events;
pub mod figures;
pub mod ingest;
pub mod reads;
pub mod server;
pub mod start;
