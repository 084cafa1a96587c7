//! Measures Headwater. `scripts/bench` runs it and names the commit.
//!
//! | module | question |
//! | --- | --- |
//! | [`engine`] | CPU per event, from a chunk of the log to committed rows |
//! | [`ingest`] | events per second through gRPC, acknowledged after fsync |
//! | [`reads`] | point reads through gRPC, compared with a bare tonic service in the same run |
//! | [`start`] | time until `headwater dev` is ready on existing data |
//! | [`events`], [`server`], [`figures`] | input, measured process, figures with their bounds |
//!
//! # Law
//!
//! Code that runs per event belongs to the measured crates, not to this one: this crate is built
//! without optimisation, and prepares its input before it starts the clock.

pub mod engine;
pub mod events;
pub mod figures;
pub mod ingest;
pub mod reads;
pub mod server;
pub mod start;
