//! Figures and their bounds.

use std::{fmt, fs, time::Duration};

/// The direction in which a figure improves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    Lower,
    Higher,
}

/// One measured figure.
#[derive(Clone, Debug)]
pub struct Figure {
    pub name: String,
    pub value: f64,
    pub unit: &'static str,
    pub better: Better,
    /// The required bound, and the goal.
    pub must: Option<f64>,
    pub goal: Option<f64>,
}

impl Figure {
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str, better: Better) -> Self {
        Self { name: name.into(), value, unit, better, must: None, goal: None }
    }

    #[must_use]
    pub fn must(self, bound: f64) -> Self {
        Self { must: Some(bound), ..self }
    }

    #[must_use]
    pub fn goal(self, bound: f64) -> Self {
        Self { goal: Some(bound), ..self }
    }

    fn meets(&self, bound: Option<f64>) -> Option<bool> {
        bound.map(|bound| match self.better {
            Better::Lower => self.value <= bound,
            Better::Higher => self.value >= bound,
        })
    }

    /// Whether the figure meets its required bound, if it has one.
    pub fn is_good(&self) -> bool {
        self.meets(self.must) != Some(false)
    }
}

/// Prints a row of a Markdown table.
impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |value: f64| match value {
            _ if value >= 1_000.0 => grouped(value),
            _ if value >= 10.0 => format!("{value:.1}"),
            _ => format!("{value:.2}"),
        };
        let bound = |bound: Option<f64>| bound.map_or_else(String::new, number);
        let verdict = match (self.meets(self.must), self.meets(self.goal)) {
            (Some(false), _) => "missed",
            (_, Some(true)) => "goal reached",
            (Some(true), _) => "met",
            (None, Some(false)) => "below the goal",
            (None, None) => "",
        };
        let (value, must, goal) = (number(self.value), bound(self.must), bound(self.goal));
        write!(f, "| {} | {value} {} | {must} | {goal} | {verdict} |", self.name, self.unit)
    }
}

/// The head of the table.
pub const HEAD: &str = "| figure | measured | must | goal | |\n| --- | ---: | ---: | ---: | --- |";

fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The value below which this share of the others lies. Sorts `values`.
pub fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    values.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}

/// The CPU time of all current threads of this process.
pub fn cpu_time() -> Duration {
    // The kernel updates a thread's figure when the thread yields.
    std::thread::yield_now();
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let nanos = threads.filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_whether_the_bounds_hold() {
        let rate = Figure::new("rate", 123_456.7, "events/s", Better::Higher);
        let row = rate.clone().must(100_000.0).goal(300_000.0).to_string();
        assert_eq!(row, "| rate | 123,457 events/s | 100,000 | 300,000 | met |");
        assert!(rate.clone().must(100_000.0).is_good());
        assert!(!rate.clone().must(200_000.0).is_good());
        assert!(rate.must(200_000.0).to_string().ends_with("| missed |"));
        let time = Figure::new("time", 0.5, "µs", Better::Lower).must(1.2).goal(0.6);
        assert_eq!(time.to_string(), "| time | 0.50 µs | 1.20 | 0.60 | goal reached |");
    }

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let mut values = vec![5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(quantile(&mut values, 0.5), 3.0);
        assert_eq!(quantile(&mut values, 1.0), 5.0);
    }
}
