//! Headwater from outside: the real binary, its gRPC, its files, its exit codes.
//!
//! | module | |
//! | --- | --- |
//! | [`dev`] | `headwater dev` as a child process: started, asked, killed |
//! | [`docker`] | Kafka and the services in containers |
//! | [`flights`] | the departures of `examples/flights`, and what the views over them must say, computed without Headwater |
//! | [`foreign`] | topics that other people's clients write |
//! | [`views`] | answers of the query service as plain values, with the laws that every one of them must keep |
//! | [`feed`] | flights through ingest while things break, and what was said of each |
//! | [`replays`] | replays from their start to their end |
//! | [`platform`] | the services' clients, wherever they run |
//! | [`story`] | the demonstration's story, every number checked |
//! | [`logins`] | the log library on this machine as somebody who logs in |
//! | [`tokens`] | an endpoint that issues tokens for OAUTHBEARER |
//! | [`cluster`] | the services in containers, on a real broker |
//! | [`topics`] | what lies in topics, read past every service |
//!
//! `HEADWATER` names the binary, as the scripts set it; without it, it is built on first use.

pub mod cluster;
pub mod dev;
pub mod docker;
pub mod feed;
pub mod flights;
pub mod foreign;
pub mod logins;
pub mod platform;
pub mod replays;
pub mod story;
pub mod tokens;
pub mod topics;
pub mod views;
