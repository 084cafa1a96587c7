//! Headwater from outside: the real binary, its gRPC, its files, its exit codes.
//!
//! | module | |
//! | --- | --- |
//! | [`dev`] | `headwater dev` as a child process: started, asked, killed |
//! | [`flights`] | the departures of `examples/flights`, and what the views over them must say, computed without Headwater |
//! | [`views`] | answers of the query service as plain values, with the laws that every one of them must keep |
//! | [`replays`] | waiting for a phase of a replay |
//!
//! `HEADWATER` names the binary, as the scripts set it; without it, it is built on first use.

pub mod dev;
pub mod flights;
pub mod replays;
pub mod views;
