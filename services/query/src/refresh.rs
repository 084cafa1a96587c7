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

#[cfg(test)]
mod tests {
    use std::{cell::Cell, time::Duration};

    use super::*;

    #[tokio::test]
    async fn requests_that_wait_together_share_one_refresh_and_a_later_one_runs_its_own() {
        let (shared, runs, since) = (SharedRefresh::default(), Cell::new(0), Instant::now());
        let refresh = async |outcome: Result<(), ()>| {
            runs.set(runs.get() + 1);
            tokio::task::yield_now().await;
            outcome
        };

        assert_eq!(shared.since(since, refresh(Err(()))).await, Err(()));
        let together = (0..5).map(|_| shared.since(since, refresh(Ok(()))));
        assert!(futures::future::join_all(together).await.iter().all(Result::is_ok));
        assert_eq!(runs.get(), 2, "the one that failed, and one for all five");

        assert_eq!(shared.since(since, refresh(Ok(()))).await, Ok(()));
        assert_eq!(runs.get(), 2, "what is fresh enough is not looked at again");
        let later = Instant::now() + Duration::from_secs(1);
        assert_eq!(shared.since(later, refresh(Ok(()))).await, Ok(()));
        assert_eq!(runs.get(), 3);
    }
}
