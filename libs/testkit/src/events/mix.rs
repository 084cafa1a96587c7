//! Shares and ranges of generated events.

/// The shares and ranges of a generated stream. Shares are independent probabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct Mix {
    /// Records in all partitions together.
    pub records: usize,
    /// The number of distinct values of the key column.
    pub keys: u64,
    /// Event time of the first record.
    pub start_micros: i64,
    /// Event time from one record to the next.
    pub step_micros: i64,
    /// The usual limit of how far event times are out of order.
    pub disorder_micros: i64,
    /// The share of event times on whole seconds, the boundaries of windows and watermarks.
    pub whole_seconds: f64,
    /// The limit of how late a late record is.
    pub lateness_micros: i64,
    pub late: f64,
    /// The share of event times far ahead of the record's own timestamp.
    pub future: f64,
    /// The share of values that are not JSON, not UTF-8, or cut off.
    pub malformed: f64,
    /// The share of values of the wrong type or out of range.
    pub unfit: f64,
    /// The share of records without a value.
    pub tombstones: f64,
    /// The share of columns that are missing or null.
    pub missing: f64,
    /// The share of events with reordered keys and keys that name no column.
    pub reordered: f64,
    /// The share of text with escapes or beyond ASCII, and of numbers at the limits of their range.
    pub extreme: f64,
}

impl Default for Mix {
    fn default() -> Self {
        Self {
            records: 1_000,
            keys: 20,
            // 2024-02-29T23:00:00Z
            start_micros: 1_709_247_600_000_000,
            step_micros: 700_000,
            disorder_micros: 4_000_000,
            whole_seconds: 0.5,
            lateness_micros: 400_000_000,
            late: 0.05,
            future: 0.005,
            malformed: 0.01,
            unfit: 0.01,
            tombstones: 0.005,
            missing: 0.1,
            reordered: 0.1,
            extreme: 0.1,
        }
    }
}

impl Mix {
    /// Only valid events, out of order by at most `disorder_micros`.
    #[must_use]
    pub fn clean() -> Self {
        Self {
            late: 0.0,
            future: 0.0,
            malformed: 0.0,
            unfit: 0.0,
            tombstones: 0.0,
            missing: 0.0,
            reordered: 0.0,
            extreme: 0.0,
            ..Self::default()
        }
    }

    #[must_use]
    pub fn records(self, records: usize) -> Self {
        Self { records, ..self }
    }
}
