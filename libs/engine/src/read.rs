//! Reads a view's rows, merged from the partial rows of its shards.
//!
//! If a view does not group by its stream's key, several shards have a row under one key. This
//! module merges these rows, computes the aggregates' values, and evaluates the view's output
//! expressions.

mod finish;

use headwater_log::partition_for_key;
use headwater_state::{Row, RowScan, key, key::KeyPart};
use headwater_types::{DataType, Offset, PartitionId};

use crate::{
    Error,
    decode::PartitionKey,
    plan::{ViewPlan, WINDOW_COLUMNS, scale},
};
pub use finish::OutputBatch;
use finish::RowAssembler;
pub(crate) use finish::key_text;

/// The rows of one shard at one commit, in the order of their keys, from this process or another.
pub trait ShardRows {
    type Error: From<Error>;

    /// The next row: key, header and payload, borrowed until the next call.
    fn next_row(&mut self, plan: &ViewPlan) -> Option<Result<Row<'_>, Self::Error>>;
}

impl ShardRows for RowScan<'_> {
    type Error = Error;

    fn next_row(&mut self, plan: &ViewPlan) -> Option<Result<Row<'_>, Error>> {
        let failed = |source| Error::State { view: plan.view.clone(), source };
        self.next().map(|row| row.map_err(failed))
    }
}

/// A merge of the shards' rows, in the order of their keys.
pub struct MergedScan<'a, S = RowScan<'a>> {
    plan: &'a ViewPlan,
    sources: Vec<Source<S>>,
    rows: RowAssembler,
}

struct Source<S> {
    scan: S,
    /// The next row.
    key: Vec<u8>,
    payload: Vec<u8>,
    last_offset: Offset,
    state: SourceState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SourceState {
    NotBegun,
    AtRow,
    Exhausted,
}

impl<'a, S: ShardRows> MergedScan<'a, S> {
    /// `scans` has one scan per shard. All shards belong to one generation.
    pub fn new(plan: &'a ViewPlan, scans: Vec<S>) -> Self {
        let sources = scans.into_iter().map(|scan| Source {
            scan,
            key: Vec::new(),
            payload: Vec::new(),
            last_offset: Offset::ZERO,
            state: SourceState::NotBegun,
        });
        Self { plan, sources: sources.collect(), rows: RowAssembler::new(plan) }
    }

    /// The next rows, at least one and about `max_rows`; `None` after the last.
    pub fn next_batch(&mut self, max_rows: usize) -> Result<Option<OutputBatch>, S::Error> {
        for source in &mut self.sources {
            if source.state == SourceState::NotBegun {
                source.advance(self.plan)?;
            }
        }
        let Self { plan, sources, rows } = self;
        while rows.len() < max_rows.max(1) {
            // There are few shards, so a heap would not be faster.
            let at_row = sources.iter().filter(|source| source.state == SourceState::AtRow);
            let Some(least) = at_row.map(|source| &source.key).min() else { break };
            rows.begin(least);
            for source in sources.iter_mut() {
                if source.state == SourceState::AtRow && source.key == rows.last_key() {
                    rows.merge(plan, &source.payload, source.last_offset)?;
                    source.advance(plan)?;
                }
            }
        }
        if rows.len() == 0 { Ok(None) } else { Ok(Some(rows.finish(plan)?)) }
    }
}

impl<S: ShardRows> Source<S> {
    fn advance(&mut self, plan: &ViewPlan) -> Result<(), S::Error> {
        self.state = SourceState::Exhausted;
        if let Some(row) = self.scan.next_row(plan) {
            let (key, header, payload) = row?;
            self.key.clear();
            self.key.extend_from_slice(key);
            self.payload.clear();
            self.payload.extend_from_slice(payload);
            self.last_offset = header.last_offset;
            self.state = SourceState::AtRow;
        }
        Ok(())
    }
}

/// The row that results from the payloads of all shards under one key.
pub fn merge_rows(
    plan: &ViewPlan,
    key: &[u8],
    payloads: &[(Offset, &[u8])],
) -> Result<OutputBatch, Error> {
    let mut rows = RowAssembler::new(plan);
    rows.begin(key);
    for (last_offset, payload) in payloads {
        rows.merge(plan, payload, *last_offset)?;
    }
    rows.finish(plan)
}

/// A key does not match the view's key columns.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    #[error("view {view} has {expected} key columns ({columns}), not {found}")]
    TooLong { view: String, columns: String, expected: usize, found: usize },
    #[error("key column {column} of view {view} has type {data_type}")]
    WrongType { view: String, column: String, data_type: DataType },
}

/// The stored form of a key, or of its first parts. The window's start comes last, as a timestamp.
pub fn encode_key(plan: &ViewPlan, parts: &[KeyPart<'_>]) -> Result<Vec<u8>, InvalidKey> {
    let types = plan.key_types();
    if parts.len() > types.len() {
        return Err(InvalidKey::TooLong {
            view: plan.view.to_string(),
            columns: plan.key_names().join(", "),
            expected: types.len(),
            found: parts.len(),
        });
    }
    let mut bytes = Vec::new();
    for (place, (part, data_type)) in parts.iter().zip(types).enumerate() {
        let fits = match part {
            KeyPart::Null => true,
            KeyPart::Boolean(_) => data_type == DataType::Boolean,
            KeyPart::Integer(_) => matches!(data_type, DataType::Integer | DataType::BigInt),
            KeyPart::Double(_) => data_type == DataType::Double,
            KeyPart::Decimal(_) => matches!(data_type, DataType::Decimal { .. }),
            KeyPart::Text(_) => data_type == DataType::Varchar,
            KeyPart::Timestamp(_) => data_type == DataType::Timestamp,
        };
        if !fits {
            let column = plan.keys.get(place).map_or(WINDOW_COLUMNS[0], |key| &key.name);
            let (view, column) = (plan.view.to_string(), column.to_owned());
            return Err(InvalidKey::WrongType { view, column, data_type });
        }
        key::encode(*part, &mut bytes);
    }
    Ok(bytes)
}

/// The only partition that can have rows under a key, or under keys with this prefix. `None` if any
/// partition can.
pub fn stream_key_partition(plan: &ViewPlan, parts: &[KeyPart<'_>]) -> Option<PartitionId> {
    if !plan.key_is_stream_key {
        return None;
    }
    let stream_key = plan.input.iter().position(|column| Some(*column) == plan.stream.key)?;
    let place = plan.keys.iter().position(|key| key.expression.as_column() == Some(stream_key))?;
    let key = match *parts.get(place)? {
        // A record without a key may be in any partition.
        KeyPart::Null => return None,
        KeyPart::Boolean(value) => PartitionKey::Boolean(value),
        KeyPart::Integer(value) => PartitionKey::Integer(value),
        KeyPart::Double(value) => PartitionKey::Double(value),
        KeyPart::Decimal(units) => PartitionKey::Decimal(units, scale(plan.keys[place].data_type)),
        KeyPart::Text(text) => PartitionKey::Text(text),
        KeyPart::Timestamp(micros) => PartitionKey::Timestamp(micros),
    };
    let mut text = Vec::new();
    key.write(&mut text);
    Some(partition_for_key(&text, plan.stream.partitions))
}

#[cfg(test)]
mod tests;
