//! The command line: an interface that people script against, and `headwater dev`, which runs all
//! four services in one process on the embedded log.
//!
//! [`cli`] parses what was typed, [`commands`] has a module per command, [`client`] connects to the
//! servers, [`output`] prints answers as tables for people or lines for programs, and [`failure`]
//! decides the exit code. [`dev`] is `headwater dev`.

pub mod cli;
pub mod client;
pub mod commands;
pub mod dev;
pub mod failure;
pub mod output;
