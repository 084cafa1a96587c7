//! The words that several crates share.
//!
//! One word per idea, as `ARCHITECTURE.md` lists them. A type belongs here only when at least two
//! crates need it and it says something about Headwater itself; there is no I/O, no clock and no
//! parsing of SQL.
//!
//! | module | words |
//! | --- | --- |
//! | [`log`](crate::Offset) | offset, partition, topic, epoch |
//! | [`time`] | event time, the injected clock |
//! | [`schema`] | columns and types of a stream |
//! | [`tally`] | what became of every record that was read |
//! | [`token`] | what `ingest` hands out and `query --after` waits for |

mod generation;
mod name;
mod position;
mod remedy;
pub mod schema;
pub mod tally;
pub mod time;
pub mod token;

pub use generation::{ENGINE_VERSION, GenerationId, GenerationInputs};
pub use name::{InvalidName, Name};
pub use position::{Epoch, Offset, PartitionId};
pub use remedy::Remedy;
pub use schema::{Column, DataType, StreamDefinition};
pub use tally::Tallies;
pub use time::{Clock, EventTime, SystemClock};
pub use token::Token;

/// The type in which a library hands on an error that it did not make itself.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;
