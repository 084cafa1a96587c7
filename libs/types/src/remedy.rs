/// What the caller should do about an error.
///
/// A variant earns its place only if a caller would act differently on it; everything else belongs
/// in the message. `headwater-service` turns it into a gRPC status, a retry and an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// A dependency is away for now: retry with backoff.
    Retry,
    /// The request, the definition or the configuration is wrong: correct it first.
    Correct,
    /// Another instance owns this: stop, and write nothing more.
    StandDown,
    /// Stored bytes are not what was written: halt and page a person.
    Repair,
}
