//! The command line: an interface that people script against, and `headwater dev`, which runs all
//! four services in one process on the embedded log.
//!
//! What was typed ([`cli`]) becomes calls to a server ([`client`]), and answers become tables for
//! people or lines for programs ([`output`]). [`failure`] decides the exit code.

pub mod cli;
pub mod client;
pub mod commands;
pub mod dev;
pub mod failure;
pub mod output;
