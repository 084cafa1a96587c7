//! The words that several crates share.
//!
//! `ARCHITECTURE.md` lists the words and defines each once.
//!
//! # Laws
//!
//! 1. A type belongs here only if at least two crates need it and it says something about Headwater
//!    itself.
//! 2. This crate does no I/O, parses no SQL, and only [`SystemClock`] reads the machine's clock.
//! 3. Stored text and bytes stay readable: what a type here prints, it also reads back.
//!
//! # Which file to open
//!
//! | file | words |
//! | --- | --- |
//! | `position.rs` | offset, partition, epoch |
//! | `name.rs` | the name of a stream, view or topic |
//! | `schema.rs` | the columns and types of a stream |
//! | `generation.rs` | the id of a generation, and the engine's version |
//! | `time.rs` | event time; the clock that callers hand in |
//! | `tally.rs` | the five counters of a shard (law 5 of `ARCHITECTURE.md`) |
//! | `token.rs` | the token that `ingest` returns and `query --after` waits for |
//! | `remedy.rs` | what a caller should do about an error |
//! | `error_chain.rs` | an error printed with its causes |

mod error_chain;
mod generation;
mod name;
mod position;
mod remedy;
pub mod schema;
pub mod tally;
pub mod time;
pub mod token;

pub use error_chain::{error_chain, error_links};
pub use generation::{ENGINE_VERSION, GenerationId, GenerationInputs};
pub use name::{InvalidName, Name};
pub use position::{Epoch, Offset, PartitionId};
pub use remedy::Remedy;
pub use schema::{Column, DataType, StreamDefinition};
pub use tally::Tallies;
pub use time::{Clock, EventTime, SystemClock};
pub use token::Token;

/// An error of another library, as a cause in one of our own errors.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;
