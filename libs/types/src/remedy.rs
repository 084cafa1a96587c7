/// The action that a caller should take on an error.
///
/// A variant exists only if a caller acts differently on it; everything else belongs in the
/// message. `headwater-service` turns it into a gRPC status, a retry and an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// A dependency is unavailable for now: retry with backoff.
    Retry,
    /// The request, the definition or the configuration is wrong: correct it first.
    Correct,
    /// Another instance owns this: stop, and write nothing more.
    StandDown,
    /// Stored bytes are not what was written: halt and page a person.
    Repair,
}
