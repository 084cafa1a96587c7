use std::time::{Duration, Instant};

/// Logs an outage once when it begins and once when it ends, however often something is tried
/// meanwhile, and says how long to wait before the next try.
#[derive(Debug)]
pub struct Outage {
    what: String,
    since: Option<Instant>,
    /// The kinds of reasons that were logged.
    logged: Vec<String>,
    failures: u32,
}

/// Waits between two tries: from `FIRST`, doubled each time, up to `LONGEST`.
const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(5);

/// Kinds of reasons that are logged in one outage; further kinds are not.
const REASONS: usize = 3;

impl Outage {
    /// `what` is the subject of both log lines: "the control topic".
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), since: None, logged: Vec::new(), failures: 0 }
    }

    /// Notes a failure, and logs it if its kind is new in this outage. Returns whether it is new.
    pub fn failed(&mut self, reason: &str) -> bool {
        let news = self.note(reason);
        if news {
            tracing::warn!(what = self.what, reason, "not available, trying again");
        }
        news
    }

    /// As [`Outage::failed`], without a log line: something else has logged the outage.
    pub fn note(&mut self, reason: &str) -> bool {
        self.since.get_or_insert_with(Instant::now);
        self.failures = self.failures.saturating_add(1);
        let kind = kind(reason);
        let news = self.logged.len() < REASONS && !self.logged.contains(&kind);
        if news {
            self.logged.push(kind);
        }
        news
    }

    /// How long to wait before the next try.
    pub fn wait(&self) -> Duration {
        FIRST.saturating_mul(1 << self.failures.saturating_sub(1).min(16)).min(LONGEST)
    }

    /// Notes a success, which ends an outage.
    pub fn over(&mut self) {
        if let Some(since) = self.since.take() {
            let seconds = since.elapsed().as_secs_f64();
            tracing::info!(what = self.what, seconds, "is back");
            (self.logged, self.failures) = (Vec::new(), 0);
        }
    }
}

/// The kind of a reason: its text without numbers, because network libraries put times and counts
/// into their messages.
fn kind(reason: &str) -> String {
    let reason = reason.split(" (after ").next().unwrap_or_default();
    reason.chars().filter(|c| !c.is_ascii_digit()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_waits_grow_and_each_outage_begins_anew() {
        let mut outage = Outage::new("the log");
        let mut fail = |reason: &str| (outage.failed(reason), outage.wait().as_millis());
        assert_eq!(fail("gone"), (true, 250));
        let waits: Vec<_> = (0..6).map(|_| fail("gone")).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 5000, 5000].map(|wait| (false, wait)));

        assert!(fail("refused (after 3ms in state CONNECT)").0);
        assert!(!fail("refused (after 7ms in state CONNECT, 30 identical error(s) suppressed)").0);
        let logged = ('a'..'k').filter(|letter| fail(&letter.to_string()).0).count();
        assert_eq!(logged, 1, "what is logged of one outage is bounded");

        outage.over();

        assert!(outage.failed("gone"), "a new outage is logged again");
        assert_eq!(outage.wait().as_millis(), 250);
    }
}
