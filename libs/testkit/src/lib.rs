//! What tests need: a clock, a log with faults, seeded events, real events, and an oracle. Never part of a binary.
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
//! The oracle is worth something only while it shares nothing with what it judges. So there is no
//! engine code here, nor may there be: JSON is read by serde_json, dates by chrono, and every value that
//! went into a row is kept until the row is asked for. It is slow and should be easy to believe.

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
