//! Waiting for something that must come in the end.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Long enough for any machine: only a test that fails waits so long.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// The time between two questions.
const PAUSE: Duration = Duration::from_millis(50);

/// The result of one question.
pub enum Found<T> {
    Yes(T),
    /// Not yet, with the present state for the message of a test that fails.
    NotYet(String),
}

/// Asks until the answer is the one that is waited for.
///
/// # Errors
///
/// A question fails, or [`PATIENCE`] is over; then the error says what the last answer was.
pub async fn eventually<T>(
    what: &str,
    mut ask: impl AsyncFnMut() -> Result<Found<T>>,
) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask().await? {
            Found::Yes(answer) => return Ok(answer),
            Found::NotYet(instead) if Instant::now() >= deadline => {
                bail!("{what}: not after {PATIENCE:?}; now {instead}")
            }
            Found::NotYet(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Says whether an answer is the one that is waited for.
pub fn found<T: std::fmt::Debug>(there: T, wanted: impl FnOnce(&T) -> bool) -> Found<T> {
    match wanted(&there) {
        true => Found::Yes(there),
        false => Found::NotYet(format!("{there:?}")),
    }
}
