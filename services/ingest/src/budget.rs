//! The limit of memory that requests hold until they are answered.

use std::sync::Arc;

use bytes::Bytes;
use headwater_service::config::ByteSize;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use crate::refusal::Refusal;

/// The limit of memory that all requests together may hold, in bytes.
pub(crate) struct MemoryBudget {
    bytes: Arc<Semaphore>,
    limit: ByteSize,
    gauge: Gauge,
    refused: Counter,
}

/// A request's part of the budget. Dropping it gives the part back.
pub(crate) struct Reservation {
    permit: OwnedSemaphorePermit,
    gauge: Gauge,
    refused: Counter,
    limit: ByteSize,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.gauge.dec_by(self.permit.num_permits() as i64);
    }
}

impl Reservation {
    /// Reserves this many more bytes, or refuses at once.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), Refusal> {
        let (limit, count) = (self.limit, u32::try_from(bytes).unwrap_or(u32::MAX));
        match self.permit.semaphore().clone().try_acquire_many_owned(count) {
            Ok(more) => {
                self.gauge.inc_by(more.num_permits() as i64);
                self.permit.merge(more);
                Ok(())
            }
            Err(TryAcquireError::NoPermits) => {
                self.refused.inc();
                Err(Refusal::Busy { limit })
            }
            Err(TryAcquireError::Closed) => Err(Refusal::Stopping),
        }
    }
}

impl MemoryBudget {
    pub(crate) fn new(limit: ByteSize, gauge: Gauge, refused: Counter) -> Self {
        let permits = limit.bytes().min(Semaphore::MAX_PERMITS);
        Self { bytes: Arc::new(Semaphore::new(permits)), limit, gauge, refused }
    }

    /// The memory that these events hold until they are answered.
    pub(crate) fn cost(events: &[Bytes]) -> usize {
        // Each event also has a slice of the request and a result.
        const PER_EVENT: usize = 96;
        events.iter().map(|event| event.len() + PER_EVENT).sum()
    }

    /// Reserves bytes, or refuses at once.
    pub(crate) fn try_reserve(&self, bytes: usize) -> Result<Reservation, Refusal> {
        let mut reserved = self.empty()?;
        reserved.grow(self.at_most_all(bytes) as usize)?;
        Ok(reserved)
    }

    /// Reserves bytes, and waits until there is room.
    pub(crate) async fn reserve(&self, bytes: usize) -> Result<Reservation, Refusal> {
        let permit = self.bytes.clone().acquire_many_owned(self.at_most_all(bytes)).await;
        let permit = permit.map_err(|_| Refusal::Stopping)?;
        self.gauge.inc_by(permit.num_permits() as i64);
        Ok(self.reservation(permit))
    }

    /// A reservation of no bytes, which can grow.
    pub(crate) fn empty(&self) -> Result<Reservation, Refusal> {
        let permit = self.bytes.clone().try_acquire_many_owned(0).map_err(|_| Refusal::Stopping)?;
        Ok(self.reservation(permit))
    }

    fn reservation(&self, permit: OwnedSemaphorePermit) -> Reservation {
        Reservation {
            permit,
            gauge: self.gauge.clone(),
            refused: self.refused.clone(),
            limit: self.limit,
        }
    }

    /// A request that is larger than the whole budget takes all of it, or it would wait for ever.
    fn at_most_all(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.min(self.limit.bytes())).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_given_back_and_never_overdrawn() {
        let gauge = Gauge::default();
        let budget = MemoryBudget::new(ByteSize(100), gauge.clone(), Counter::default());
        let mut first = budget.try_reserve(60).unwrap();
        assert!(matches!(budget.try_reserve(41), Err(Refusal::Busy { .. })));
        first.grow(40).unwrap();
        assert!(first.grow(1).is_err());
        assert_eq!(gauge.get(), 100);
        drop(first);
        assert_eq!(gauge.get(), 0);
        // A request that is larger than the whole budget is let in alone.
        drop(budget.try_reserve(1000).unwrap());
    }
}
