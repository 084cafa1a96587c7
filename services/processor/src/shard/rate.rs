use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

const SPAN: Duration = Duration::from_secs(3);
const STEP: Duration = Duration::from_millis(250);

/// Records per second over the last few seconds.
#[derive(Debug)]
pub(crate) struct Rate {
    /// Times and totals. Never empty.
    samples: VecDeque<(Instant, u64)>,
}

impl Rate {
    pub(crate) fn new(now: Instant, total: u64) -> Self {
        Self { samples: [(now, total)].into() }
    }

    pub(crate) fn at(&mut self, now: Instant, total: u64) -> f64 {
        let newest = self.samples.back().map_or(now, |(when, _)| *when);
        if now.duration_since(newest) >= STEP {
            self.samples.push_back((now, total));
            while self.samples.len() > 2 && now.duration_since(self.samples[1].0) >= SPAN {
                self.samples.pop_front();
            }
        }
        let (when, before) = self.samples.front().copied().unwrap_or((now, total));
        let seconds = now.duration_since(when).as_secs_f64();
        if seconds < STEP.as_secs_f64() {
            0.0
        } else {
            total.saturating_sub(before) as f64 / seconds
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_seconds() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut rate = Rate::new(start, 1000);
        assert_eq!(rate.at(start, 1000), 0.0);
        assert_eq!(rate.at(at(1000), 1500), 500.0);
        let mut last = 0.0;
        for second in 2..20 {
            last = rate.at(at(second * 1000), 1500 + second * 100);
        }
        assert_eq!(last, 100.0, "the first second is forgotten");
        for second in 20..30 {
            last = rate.at(at(second * 1000), 3500);
        }
        assert_eq!(last, 0.0);
    }
}
