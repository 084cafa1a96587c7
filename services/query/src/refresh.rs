//! A refresh that many requests need and one of them runs.

use std::{future::Future, time::Instant};

use parking_lot::Mutex;

/// Lets the requests that wait for the same news share one look at the log.
#[derive(Default)]
pub(crate) struct SharedRefresh {
    /// When the last refresh that succeeded began; `None` if none has succeeded.
    began: Mutex<Option<Instant>>,
    /// Locked while a refresh runs.
    running: tokio::sync::Mutex<()>,
}

impl SharedRefresh {
    /// Returns once a refresh has succeeded that began at `since` or later. It runs `refresh` if
    /// there is none.
    pub(crate) async fn since<E>(
        &self,
        since: Instant,
        refresh: impl Future<Output = Result<(), E>>,
    ) -> Result<(), E> {
        let is_fresh = || self.began.lock().is_some_and(|began| began >= since);
        if is_fresh() {
            return Ok(());
        }
        let _running = self.running.lock().await;
        if is_fresh() {
            return Ok(());
        }
        let began = Instant::now();
        refresh.await?;
        *self.began.lock() = Some(began);
        Ok(())
    }
}
