use std::time::{Duration, Instant};

/// Tells of an outage once, and once that it is over, however often something is tried meanwhile.
#[derive(Debug)]
pub struct Outage {
    what: String,
    since: Option<Instant>,
    /// What was said of it, without its numbers.
    said: Vec<String>,
    failures: u32,
}

/// Waits between two tries: doubled each time.
const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(5);

/// Reasons that are told apart in one outage; further ones are not said.
const REASONS: usize = 3;

impl Outage {
    /// `what` is the subject of both lines: "the control topic".
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), since: None, said: Vec::new(), failures: 0 }
    }

    /// It failed. Returns whether that is news, and then has said it.
    pub fn failed(&mut self, reason: &str) -> bool {
        let news = self.note(reason);
        if news {
            tracing::warn!(what = self.what, reason, "not available, trying again");
        }
        news
    }

    /// As [`Outage::failed`], for what others have said already.
    pub fn note(&mut self, reason: &str) -> bool {
        self.since.get_or_insert_with(Instant::now);
        self.failures = self.failures.saturating_add(1);
        let kind = kind(reason);
        let news = self.said.len() < REASONS && !self.said.contains(&kind);
        if news {
            self.said.push(kind);
        }
        news
    }

    /// How long to wait before the next try.
    pub fn wait(&self) -> Duration {
        FIRST.saturating_mul(1 << self.failures.saturating_sub(1).min(16)).min(LONGEST)
    }

    /// It works.
    pub fn over(&mut self) {
        if let Some(since) = self.since.take() {
            let seconds = since.elapsed().as_secs_f64();
            tracing::info!(what = self.what, seconds, "is back");
            (self.said, self.failures) = (Vec::new(), 0);
        }
    }
}

/// The same for the same trouble: network libraries put times and counts into their messages.
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
        let said = ('a'..'k').filter(|letter| fail(&letter.to_string()).0).count();
        assert_eq!(said, 1, "what is said of one outage is bounded");

        outage.over();

        assert!(outage.failed("gone"), "a new outage is said again");
        assert_eq!(outage.wait().as_millis(), 250);
    }
}
