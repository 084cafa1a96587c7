//! The oracle: computes naively what a view must contain.
//!
//! A [`View`] consists of closures over decoded events. [`View::run`] takes the records of one
//! partition one at a time, in order, and keeps every value that went into a row. [`merge`]
//! combines the partitions' rows and computes the aggregates once, with exact arithmetic.
//!
//! ```
//! use headwater_testkit::{Datum, Function, View, flights, reference};
//!
//! let stream = flights::stream(1, 0);
//! let view = View::new(&stream)
//!     .wanting(&["origin", "dep_delay"])
//!     .key(|event| Ok(event.get("origin")))
//!     .tumble(3_600_000_000)
//!     .aggregate(Function::Avg, |event| Ok(event.get("dep_delay")));
//! let partition = view.run(&[]);
//! assert!(reference::merge(&view, &[partition]).is_empty());
//! ```

mod datum;
mod decode;
mod finish;

use std::collections::BTreeMap;

use headwater_types::{EventTime, Offset, StreamDefinition, Tallies};

use crate::events::Record;
pub use datum::{Datum, Evaluated, Function};
pub use decode::Event;

type Expression = Box<dyn Fn(&Event) -> Evaluated + Send + Sync>;

struct Aggregate {
    function: Function,
    argument: Option<Expression>,
    filter: Option<Expression>,
}

/// A view over one stream.
pub struct View {
    stream: StreamDefinition,
    wanted: Vec<usize>,
    filter: Option<Expression>,
    keys: Vec<Expression>,
    window: Option<(i64, i64)>,
    aggregates: Vec<Aggregate>,
    allowed_lateness: Option<i64>,
    retention: Option<i64>,
}

/// The result of one partition.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Partition {
    pub rows: BTreeMap<Vec<Datum>, Row>,
    pub tallies: Tallies,
    /// `None` until the partition has delivered an event.
    pub watermark: Option<i64>,
    pub max_event_time: Option<i64>,
    pub position: Offset,
    /// The late and the refused records, in order.
    pub refused: Vec<(Offset, Stage)>,
}

/// The stage at which a record was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Decode,
    Time,
    Filter,
    Expression,
    Late,
}

/// The values of one row, by aggregate.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The window's end, or the greatest event time.
    pub time: EventTime,
    pub last_offset: Offset,
    pub values: Vec<Vec<Datum>>,
}

impl View {
    pub fn new(stream: &StreamDefinition) -> Self {
        Self {
            wanted: vec![stream.event_time],
            stream: stream.clone(),
            filter: None,
            keys: Vec::new(),
            window: None,
            aggregates: Vec::new(),
            allowed_lateness: None,
            retention: None,
        }
    }

    /// The columns that the view reads. Other columns are not decoded, except for the event time.
    #[must_use]
    pub fn wanting(mut self, columns: &[&str]) -> Self {
        let index = |name: &&str| match self.stream.column(name) {
            Some(index) => index,
            None => panic!("the stream {} has no column {name}", self.stream.name),
        };
        let wanted: Vec<usize> = columns.iter().map(index).collect();
        self.wanted.extend(wanted);
        self
    }

    #[must_use]
    pub fn filter(mut self, filter: impl Fn(&Event) -> Evaluated + Send + Sync + 'static) -> Self {
        self.filter = Some(Box::new(filter));
        self
    }

    #[must_use]
    pub fn key(mut self, key: impl Fn(&Event) -> Evaluated + Send + Sync + 'static) -> Self {
        self.keys.push(Box::new(key));
        self
    }

    /// Windows of this size. The window's start is the last part of a row's key.
    #[must_use]
    pub fn tumble(self, size_micros: i64) -> Self {
        self.tumble_from(size_micros, 0)
    }

    #[must_use]
    pub fn tumble_from(mut self, size_micros: i64, offset_micros: i64) -> Self {
        self.window = Some((size_micros, offset_micros));
        self
    }

    #[must_use]
    pub fn count_star(mut self) -> Self {
        self.aggregates.push(Aggregate {
            function: Function::CountStar,
            argument: None,
            filter: None,
        });
        self
    }

    #[must_use]
    pub fn aggregate(
        mut self,
        function: Function,
        argument: impl Fn(&Event) -> Evaluated + Send + Sync + 'static,
    ) -> Self {
        self.aggregates.push(Aggregate {
            function,
            argument: Some(Box::new(argument)),
            filter: None,
        });
        self
    }

    /// `FILTER (WHERE …)` of the aggregate that was added last.
    #[must_use]
    pub fn only(mut self, filter: impl Fn(&Event) -> Evaluated + Send + Sync + 'static) -> Self {
        if let Some(last) = self.aggregates.last_mut() {
            last.filter = Some(Box::new(filter));
        }
        self
    }

    #[must_use]
    pub fn allowed_lateness(mut self, micros: i64) -> Self {
        self.allowed_lateness = Some(micros);
        self
    }

    #[must_use]
    pub fn retention(mut self, micros: i64) -> Self {
        self.retention = Some(micros);
        self
    }

    /// Applies the records of one partition in their order.
    pub fn run<'r>(&self, records: impl IntoIterator<Item = &'r Record>) -> Partition {
        let mut partition = Partition::default();
        for record in records {
            partition.position = record.offset.next();
            let refused = match self.apply(record, &mut partition) {
                Ok(true) => {
                    partition.tallies.applied += 1;
                    continue;
                }
                Ok(false) => {
                    partition.tallies.filtered += 1;
                    continue;
                }
                Err(stage) => stage,
            };
            match refused {
                Stage::Late => partition.tallies.late += 1,
                Stage::Decode | Stage::Time | Stage::Filter | Stage::Expression => {
                    partition.tallies.dead_lettered += 1;
                }
            }
            partition.refused.push((record.offset, refused));
        }
        partition
    }

    /// Applies one record. Returns `false` if the filter left it out.
    fn apply(&self, record: &Record, partition: &mut Partition) -> Result<bool, Stage> {
        let value = record.value.as_deref().ok_or(Stage::Decode)?;
        let event = Event::decode(&self.stream, &self.wanted, value).map_err(|fault| {
            let of_time = fault.column == Some(self.stream.event_time);
            if of_time { Stage::Time } else { Stage::Decode }
        })?;
        let time = event.time;
        let now = i128::from(record.timestamp_ms) * 1_000;
        if i128::from(time) > now + i128::from(self.stream.max_future_micros) {
            return Err(Stage::Time);
        }
        let window = self.window.map(|(size, offset)| {
            let start = time - (time - offset).rem_euclid(size);
            (start, start + size)
        });

        let before = partition.watermark;
        let reached = time - self.stream.watermark_delay_micros;
        partition.watermark = Some(before.map_or(reached, |before| before.max(reached)));
        partition.max_event_time = Some(partition.max_event_time.map_or(time, |max| max.max(time)));

        if let Some(filter) = &self.filter
            && filter(&event).map_err(|_| Stage::Filter)? != Datum::Boolean(true)
        {
            return Ok(false);
        }
        let keys: Result<Vec<Datum>, String> = self.keys.iter().map(|key| key(&event)).collect();
        let mut key = keys.map_err(|_| Stage::Expression)?;
        let values: Result<Vec<Option<Datum>>, String> =
            self.aggregates.iter().map(|aggregate| aggregate.value(&event)).collect();
        let values = values.map_err(|_| Stage::Expression)?;

        if before.is_some_and(|watermark| self.is_late(time, window, watermark)) {
            return Err(Stage::Late);
        }
        key.extend(window.map(|(start, _)| Datum::Timestamp(start)));
        let time = EventTime(window.map_or(time, |(_, end)| end));
        let horizon = self.horizon(partition.watermark);
        let empty = Row {
            time,
            last_offset: record.offset,
            values: vec![Vec::new(); self.aggregates.len()],
        };
        let row = partition.rows.entry(key).or_insert_with(|| empty.clone());
        if horizon.is_some_and(|horizon| row.time.0 <= horizon) {
            *row = empty;
        }
        row.time = row.time.max(time);
        row.last_offset = record.offset;
        for (kept, value) in row.values.iter_mut().zip(values) {
            kept.extend(value);
        }
        Ok(true)
    }

    fn is_late(&self, time: i64, window: Option<(i64, i64)>, watermark: i64) -> bool {
        let expired =
            |time: i64| self.retention.is_some_and(|retention| time + retention <= watermark);
        match window {
            Some((_, end)) => end + self.allowed_lateness.unwrap_or(0) <= watermark || expired(end),
            None => {
                self.allowed_lateness.is_some_and(|allowed| time + allowed < watermark)
                    || expired(time)
            }
        }
    }

    /// The horizon: rows with this time or an earlier one have expired.
    fn horizon(&self, watermark: Option<i64>) -> Option<i64> {
        Some(watermark? - self.retention?)
    }
}

impl Aggregate {
    /// The value that the event adds; `None` if the aggregate's filter leaves the event out.
    fn value(&self, event: &Event) -> Result<Option<Datum>, String> {
        if let Some(filter) = &self.filter
            && filter(event)? != Datum::Boolean(true)
        {
            return Ok(None);
        }
        self.argument
            .as_ref()
            .map_or(Ok(Some(Datum::Boolean(true))), |argument| argument(event).map(Some))
    }
}

/// The rows that a reader sees: partial rows of one key are combined, aggregates computed, and
/// expired rows left out. An error is an aggregate that does not fit its type.
pub fn merge(view: &View, partitions: &[Partition]) -> BTreeMap<Vec<Datum>, Vec<Evaluated>> {
    let mut all: BTreeMap<Vec<Datum>, Vec<Vec<Datum>>> = BTreeMap::new();
    for partition in partitions {
        let horizon = view.horizon(partition.watermark);
        for (key, row) in &partition.rows {
            if horizon.is_some_and(|horizon| row.time.0 <= horizon) {
                continue;
            }
            let merged =
                all.entry(key.clone()).or_insert_with(|| vec![Vec::new(); row.values.len()]);
            for (merged, values) in merged.iter_mut().zip(&row.values) {
                merged.extend(values.iter().cloned());
            }
        }
    }
    let finish = |values: Vec<Vec<Datum>>| {
        let pairs = view.aggregates.iter().zip(values);
        pairs.map(|(aggregate, values)| finish::finish(aggregate.function, &values)).collect()
    };
    all.into_iter().map(|(key, values)| (key, finish(values))).collect()
}

#[cfg(test)]
mod tests;
