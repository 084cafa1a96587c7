use std::{collections::HashSet, time::Instant};

use headwater_service::{Condition, Health};
use headwater_state::Identity;
use parking_lot::Mutex;

/// The log is away, as the shards of this process find it. It is logged once, however many shards
/// find it and however often they try, and not at all if the process as a whole has logged it.
pub(crate) struct LogOutage {
    health: Health,
    state: Mutex<OutageState>,
}

#[derive(Default)]
struct OutageState {
    /// The shards that wait for the log.
    waiting: HashSet<Identity>,
    since: Option<Instant>,
    /// Makes the process not ready during the outage.
    condition: Option<Condition>,
}

impl LogOutage {
    pub(crate) fn new(health: Health) -> Self {
        Self { health, state: Mutex::default() }
    }

    /// The shard waits for the log. Returns whether this was logged.
    pub(crate) fn begin(&self, shard: Identity, reason: &str) -> bool {
        let mut state = self.state.lock();
        let first = state.waiting.is_empty();
        if !state.waiting.insert(shard) || !first {
            return false;
        }
        let news = !self.health.log_is_away();
        if news {
            tracing::warn!(reason, "the log is away, shards wait for it");
        }
        state.since = Some(Instant::now());
        let condition = self.health.condition("shards");
        condition.not_ready(format!("shards wait for the log: {reason}"));
        state.condition = Some(condition);
        news
    }

    /// The shard has reached the log, or waits for it no longer.
    pub(crate) fn end(&self, shard: Identity) {
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
    fn an_outage_lasts_until_the_last_shard_has_reached_the_log() {
        let health = Health::new();
        let outage = LogOutage::new(health.clone());
        let [one, two] =
            [1, 2].map(|number| Identity { generation: generation(number), partition: P0 });
        assert!(outage.begin(one, "gone"));
        assert!(!outage.begin(one, "gone") && !outage.begin(two, "gone"), "logged once");
        outage.end(one);
        assert!(!health.is_ready());
        outage.end(one);
        assert!(!health.is_ready());
        outage.end(two);
        assert!(health.is_ready());
        assert!(outage.begin(one, "gone"), "the next outage is logged again");
    }

    #[test]
    fn shards_do_not_log_an_outage_that_the_process_has_logged() {
        let health = Health::new();
        let log = health.condition("log");
        log.not_ready("no broker");
        let outage = LogOutage::new(health.clone());
        let shard = Identity { generation: generation(1), partition: P0 };
        assert!(!outage.begin(shard, "gone"));
        outage.end(shard);
        log.ready();
        assert!(outage.begin(shard, "gone"), "brokers are there, and the partition is not");
    }
}
