//! Tools for tests: a clock, a log with faults, seeded events, real events, and an oracle. No
//! binary contains this crate.
//!
//! | module | what it gives |
//! | --- | --- |
//! | [`clock`] | wall time that stands still until a test moves it |
//! | [`events`] | streams of events from a seed: in and out of order, late, malformed, extreme |
//! | [`flights`] | the 27,004 departures of `examples/flights` |
//! | [`log`] | a log in memory that is away, slow or unsure |
//! | [`reference`] | what a view must contain, computed naively from the records |
//! | [`exact`] | sums without rounding, as schoolbook arithmetic on long integers |
//!
//! # Law
//!
//! The oracle shares no code with the crates that it judges. So this crate contains no engine code:
//! serde_json parses JSON, chrono parses dates, and the oracle keeps every value of a row until the
//! row is read. It is slow, and simple enough to be believed.

pub mod clock;
pub mod events;
pub mod exact;
pub mod flights;
pub mod log;
pub mod reference;

pub use clock::ManualClock;
pub use events::{Mix, Record, chunk};
pub use log::FaultyLog;
pub use reference::{Datum, Event, Function, Partition, View};
