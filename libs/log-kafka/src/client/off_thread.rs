//! The one place where a call that blocks leaves the caller's thread.

use headwater_log::{Answer, Error};

/// The answer of a call of librdkafka that blocks for as long as the brokers take.
///
/// The call begins at once, on a pool of threads that grows and shrinks by itself: it needs no
/// runtime, and takes no thread of one. Dropping the answer drops a call that has not begun; one
/// that has begun runs to its end.
pub(crate) fn off_thread<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Answer<T> {
    Box::pin(blocking::unblock(call))
}
