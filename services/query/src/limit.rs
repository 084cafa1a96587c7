//! How many threads may work at a time.

use std::{sync::Arc, time::Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::Error;

/// Bounds how many threads do one kind of work at a time.
pub(crate) struct ConcurrencyLimit {
    what: &'static str,
    permits: Arc<Semaphore>,
    limit: usize,
}

impl ConcurrencyLimit {
    /// `what` names the work in the plural, as the error says it.
    pub(crate) fn new(what: &'static str, limit: usize) -> Self {
        Self { what, permits: Arc::new(Semaphore::new(limit)), limit }
    }

    /// A permit, if there is one now.
    pub(crate) fn permit_now(&self) -> Result<OwnedSemaphorePermit, Error> {
        self.permits.clone().try_acquire_owned().map_err(|_| self.busy())
    }

    /// A permit, waited for until the deadline.
    pub(crate) async fn permit(&self, deadline: Instant) -> Result<OwnedSemaphorePermit, Error> {
        self.permits(1, deadline).await?.pop().ok_or_else(|| self.busy())
    }

    /// A permit for each of `count` threads, all or none: two requests never wait for each other.
    pub(crate) async fn permits(
        &self,
        count: usize,
        deadline: Instant,
    ) -> Result<Vec<OwnedSemaphorePermit>, Error> {
        let number =
            u32::try_from(count).ok().filter(|_| count <= self.limit).ok_or_else(|| self.busy())?;
        let acquire = self.permits.clone().acquire_many_owned(number);
        let Ok(Ok(mut all)) = tokio::time::timeout_at(deadline.into(), acquire).await else {
            return Err(self.busy());
        };
        // Splits one off as often as there are some left.
        Ok(std::iter::from_fn(|| all.split(1)).collect())
    }

    fn busy(&self) -> Error {
        Error::Busy { what: self.what, limit: self.limit }
    }
}
