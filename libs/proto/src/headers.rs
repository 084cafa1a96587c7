//! Names of the record headers that Headwater writes.
//!
//! Records of a dead-letter topic keep key, value and timestamp of the record that could not be
//! processed; these headers say where it lay and why it was put aside. Every value is UTF-8 text, numbers
//! in decimal digits.

/// The generation that put the record aside, or published it.
pub const GENERATION: &str = "headwater.generation";
/// The shard's input partition. With [`GENERATION`] and [`SEQUENCE`] it tells a repeat from a new record.
pub const PARTITION: &str = "headwater.partition";
/// Counts what a shard has published: a position and an index in it, as `position.index`.
pub const SEQUENCE: &str = "headwater.sequence";
/// The view of that generation.
pub const VIEW: &str = "headwater.view";
/// The stream that the record belongs to.
pub const STREAM: &str = "headwater.stream";
/// The topic that the record was read from.
pub const TOPIC: &str = "headwater.topic";
/// The record's offset in [`PARTITION`] of [`TOPIC`].
pub const OFFSET: &str = "headwater.offset";
/// What refused it: `decode`, `time`, `filter`, `expression` or `late`.
pub const STAGE: &str = "headwater.stage";
/// Why, for a person, naming the field.
pub const REASON: &str = "headwater.reason";
