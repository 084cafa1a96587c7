//! A clock that a test controls.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use headwater_types::Clock;

/// A clock that advances only when a test moves it. Clones show the same time.
#[derive(Clone, Debug, Default)]
pub struct ManualClock {
    micros: Arc<AtomicU64>,
}

impl ManualClock {
    /// A clock that starts at this time since 1970.
    pub fn at(now: Duration) -> Self {
        let clock = Self::default();
        clock.set(now);
        clock
    }

    /// Moves to this time since 1970, forwards or backwards.
    pub fn set(&self, now: Duration) {
        self.micros.store(micros(now), Ordering::SeqCst);
    }

    pub fn advance(&self, by: Duration) {
        self.micros.fetch_add(micros(by), Ordering::SeqCst);
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        Duration::from_micros(self.micros.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes_only_when_told_and_for_all_clones() {
        let clock = ManualClock::at(Duration::from_secs(10));
        let other = clock.clone();
        assert_eq!(other.now_millis(), 10_000);
        clock.advance(Duration::from_millis(1));
        assert_eq!(other.now_millis(), 10_001);
        other.set(Duration::from_secs(1));
        assert_eq!(clock.now_millis(), 1_000);
    }
}
