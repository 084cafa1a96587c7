use std::{collections::HashSet, time::Instant};

use headwater_service::{Condition, Health};
use headwater_state::Identity;
use parking_lot::Mutex;

/// The log's absence, as all shards of the process find it: told once, however many they are and however
/// often they try.
pub(crate) struct Outage {
    health: Health,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Who waits for the log.
    waiting: HashSet<Identity>,
    since: Option<Instant>,
    /// Makes the process not ready meanwhile.
    condition: Option<Condition>,
}

impl Outage {
    pub(crate) fn new(health: Health) -> Self {
        Self { health, state: Mutex::default() }
    }

    /// The shard waits for the log.
    pub(crate) fn met(&self, shard: Identity, reason: &str) {
        let mut state = self.state.lock();
        let first = state.waiting.is_empty();
        if !state.waiting.insert(shard) {
            return;
        }
        if first {
            tracing::warn!(reason, "the log is away, shards wait for it");
            state.since = Some(Instant::now());
            let condition = self.health.condition("shards");
            condition.not_ready(format!("shards wait for the log: {reason}"));
            state.condition = Some(condition);
        }
    }

    /// The shard has reached the log, or waits for it no longer.
    pub(crate) fn over(&self, shard: Identity) {
        let mut state = self.state.lock();
        if !state.waiting.remove(&shard) || !state.waiting.is_empty() {
            return;
        }
        let seconds = state.since.take().map_or(0.0, |since| since.elapsed().as_secs_f64());
        tracing::info!(seconds, "no shard waits for the log any more");
        if let Some(condition) = state.condition.take() {
            condition.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{P0, generation};

    #[test]
    fn an_outage_lasts_until_the_last_shard_is_through() {
        let health = Health::new();
        let outage = Outage::new(health.clone());
        let [one, two] =
            [1, 2].map(|number| Identity { generation: generation(number), partition: P0 });
        outage.met(one, "gone");
        outage.met(one, "gone");
        outage.met(two, "gone");
        outage.over(one);
        assert!(!health.is_ready());
        outage.over(one);
        assert!(!health.is_ready());
        outage.over(two);
        assert!(health.is_ready());
    }
}
