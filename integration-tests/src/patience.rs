//! How tests wait: for something that must come in the end, never for a time after which it must
//! have come.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Long enough for any machine: only a test that fails waits so long.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(50);

/// What one question brought: the answer that is waited for, or what is there instead.
pub enum Found<T> {
    Yes(T),
    /// For the message of a test that fails.
    NotYet(String),
}

/// Asks until the answer is the one that is waited for.
///
/// # Errors
///
/// An error of a question at once; [`PATIENCE`] later, what was there last.
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

/// [`Found`] by a condition on what is there.
pub fn found<T: std::fmt::Debug>(there: T, wanted: impl FnOnce(&T) -> bool) -> Found<T> {
    match wanted(&there) {
        true => Found::Yes(there),
        false => Found::NotYet(format!("{there:?}")),
    }
}
