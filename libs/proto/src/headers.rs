//! Names of the record headers that Headwater writes.
//!
//! Records of a dead-letter topic keep key, value and timestamp of the record that could not be
//! processed; these headers say where it lay and why it was put aside. Every value is UTF-8 text,
//! numbers in decimal digits.

/// The generation that put the record aside, or published it.
pub const GENERATION: &str = "headwater.generation";
/// The shard's input partition. With [`GENERATION`] and [`SEQUENCE`] it tells a repeat from a new
/// record.
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

/// Kafka Connect's names for the same facts, so that tools which read the dead letters of
/// connectors read Headwater's too. Headwater does not read them. Connect's `exception.stacktrace`
/// has no meaning here: it would depend on the program and not on the record.
pub mod connect {
    /// As [`super::TOPIC`].
    pub const TOPIC: &str = "__connect.errors.topic";
    /// As [`super::PARTITION`].
    pub const PARTITION: &str = "__connect.errors.partition";
    /// As [`super::OFFSET`].
    pub const OFFSET: &str = "__connect.errors.offset";
    /// The view: it takes the place of a connector.
    pub const CONNECTOR_NAME: &str = "__connect.errors.connector.name";
    /// The shard's partition: a shard takes the place of a task.
    pub const TASK_ID: &str = "__connect.errors.task.id";
    /// Connect's stage that is closest to [`super::STAGE`], such as `VALUE_CONVERTER`.
    pub const STAGE: &str = "__connect.errors.stage";
    /// The step that refused it, such as `headwater.Decode`.
    pub const CLASS_NAME: &str = "__connect.errors.class.name";
    /// The kind of error, such as `headwater.DecodeError`.
    pub const EXCEPTION_CLASS_NAME: &str = "__connect.errors.exception.class.name";
    /// As [`super::REASON`].
    pub const EXCEPTION_MESSAGE: &str = "__connect.errors.exception.message";
}
