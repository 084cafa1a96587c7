//! What a shard computes: a view, planned.
//!
//! The planner makes a [`ViewPlan`] from SQL; nothing here knows SQL or how expressions are
//! evaluated. A record becomes a row of [`ViewPlan::input_schema`]; filter, keys and aggregate
//! arguments are expressions over it. A stored row becomes a row of [`ViewPlan::post_schema`]; the
//! output columns are expressions over that.

use std::{fmt::Debug, sync::Arc};

use arrow::{
    array::ArrayRef,
    datatypes::{DataType as ArrowType, Field, Schema, SchemaRef, TimeUnit},
    record_batch::RecordBatch,
};
use headwater_types::{DataType, Name, StreamDefinition};

/// The columns of [`ViewPlan::post_schema`] that a window adds behind the keys.
pub const WINDOW_COLUMNS: [&str; 3] = ["window_start", "window_end", "window_time"];

/// `window_time`, the last moment that belongs to a window, lies this far before its end: one
/// millisecond, as in Flink.
pub const WINDOW_TIME_BEFORE_END_MICROS: i64 = 1_000;

/// A view, ready to run.
#[derive(Clone, Debug)]
pub struct ViewPlan {
    pub view: Name,
    pub stream: Arc<StreamDefinition>,
    /// Which of the stream's columns are decoded, ascending. The event time is always one of them.
    pub input: Vec<usize>,
    /// The Arrow schema of those columns, in that order.
    pub input_schema: SchemaRef,
    /// WHERE: Boolean, over the input.
    pub filter: Option<Arc<dyn Expression>>,
    /// GROUP BY without the window's columns.
    pub keys: Vec<KeyColumn>,
    pub window: Option<Tumble>,
    pub aggregates: Vec<Aggregate>,
    /// The select list.
    pub output: Vec<OutputColumn>,
    /// How long after its end (with a window) or behind the watermark (without) a record still
    /// counts. `None`: 0 for windows, and never late without one.
    pub allowed_lateness_micros: Option<i64>,
    /// How far a row's time may fall behind the watermark before the row expires. `None`: never.
    pub retention_micros: Option<i64>,
    /// The stream's key is one of the keys as it is, so that a row lives in one shard.
    pub key_is_stream_key: bool,
}

/// One GROUP BY expression.
#[derive(Clone, Debug)]
pub struct KeyColumn {
    pub name: String,
    pub expression: Arc<dyn Expression>,
    pub data_type: DataType,
}

/// Windows of one size that follow each other: `[offset + n * size, offset + (n + 1) * size)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tumble {
    /// Greater than zero.
    pub size_micros: i64,
    pub offset_micros: i64,
}

impl Tumble {
    /// The start and end of the window that a time belongs to, rounding down also before 1970.
    /// `None` when one of them cannot be expressed.
    pub fn window(&self, time_micros: i64) -> Option<(i64, i64)> {
        let into = time_micros.checked_sub(self.offset_micros)?.rem_euclid(self.size_micros);
        let start = time_micros.checked_sub(into)?;
        Some((start, start.checked_add(self.size_micros)?))
    }
}

/// One aggregate call. Equal calls may share one entry; output columns refer to it by its place.
#[derive(Clone, Debug)]
pub struct Aggregate {
    pub function: AggregateFunction,
    /// `None` for `count(*)` only.
    pub argument: Option<Arc<dyn Expression>>,
    /// `FILTER (WHERE …)`: Boolean, over the input. Where it is not true the argument is not asked.
    pub filter: Option<Arc<dyn Expression>>,
    /// Type of the argument.
    pub input_type: Option<DataType>,
    pub output_type: DataType,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AggregateFunction {
    CountStar,
    Count,
    Sum,
    Min,
    Max,
    Avg,
}

/// One column of the view.
#[derive(Clone, Debug)]
pub struct OutputColumn {
    pub name: String,
    pub data_type: DataType,
    /// Over [`ViewPlan::post_schema`].
    pub expression: Arc<dyn Expression>,
    /// Set if the column is just this key. `window_start` is the key after the last of
    /// [`ViewPlan::keys`].
    pub key: Option<usize>,
}

/// A scalar expression over the columns of a batch. It is pure: row by row, without memory, the same
/// for a row whatever stands beside it.
pub trait Expression: Send + Sync + Debug {
    /// One value per row. An error means that at least one row has none.
    fn evaluate(&self, batch: &RecordBatch) -> Result<ArrayRef, ExpressionError>;

    /// Which column it merely repeats, if it does: such an expression is never evaluated.
    fn as_column(&self) -> Option<usize> {
        None
    }
}

/// An expression has no value for a row, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ExpressionError(pub String);

/// The expression that is just a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColumnRef(pub usize);

impl Expression for ColumnRef {
    fn evaluate(&self, batch: &RecordBatch) -> Result<ArrayRef, ExpressionError> {
        match batch.columns().get(self.0) {
            Some(column) => Ok(Arc::clone(column)),
            None => Err(ExpressionError(format!("there is no column {}", self.0))),
        }
    }

    fn as_column(&self) -> Option<usize> {
        Some(self.0)
    }
}

impl ViewPlan {
    /// The columns that output expressions see: `k0`, `k1`, … for the keys, the window's three if
    /// there is one, `a0`, `a1`, … for the aggregates.
    pub fn post_schema(&self) -> SchemaRef {
        let numbered = |letter: char, place: usize, data_type| {
            Field::new(format!("{letter}{place}"), arrow_type(data_type), true)
        };
        let keys =
            self.keys.iter().enumerate().map(|(place, key)| numbered('k', place, key.data_type));
        let window = WINDOW_COLUMNS.iter().take(if self.window.is_some() { 3 } else { 0 });
        let window = window.map(|name| Field::new(*name, arrow_type(DataType::Timestamp), true));
        let aggregates = self.aggregates.iter().enumerate();
        let aggregates =
            aggregates.map(|(place, aggregate)| numbered('a', place, aggregate.output_type));
        Arc::new(Schema::new(keys.chain(window).chain(aggregates).collect::<Vec<_>>()))
    }

    /// The view's columns as its readers see them.
    pub fn output_schema(&self) -> SchemaRef {
        let fields = self.output.iter();
        let fields =
            fields.map(|column| Field::new(&column.name, arrow_type(column.data_type), true));
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }

    /// The parts of a row's key in order; `window_start` comes last if there is a window.
    pub fn key_names(&self) -> Vec<String> {
        let keys = self.keys.iter().map(|key| key.name.clone());
        keys.chain(self.window.map(|_| WINDOW_COLUMNS[0].to_owned())).collect()
    }

    /// The types of [`ViewPlan::key_names`].
    pub fn key_types(&self) -> Vec<DataType> {
        let keys = self.keys.iter().map(|key| key.data_type);
        keys.chain(self.window.map(|_| DataType::Timestamp)).collect()
    }
}

/// How Arrow holds a column.
pub fn arrow_type(data_type: DataType) -> ArrowType {
    match data_type {
        DataType::Boolean => ArrowType::Boolean,
        DataType::Integer => ArrowType::Int32,
        DataType::BigInt => ArrowType::Int64,
        DataType::Double => ArrowType::Float64,
        // The scale is at most 38.
        DataType::Decimal { precision, scale } => ArrowType::Decimal128(precision, scale as i8),
        DataType::Varchar => ArrowType::Utf8,
        DataType::Timestamp => ArrowType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
    }
}

/// Digits behind the point; 0 for what is no decimal.
pub(crate) fn scale(data_type: DataType) -> u8 {
    match data_type {
        DataType::Decimal { scale, .. } => scale,
        DataType::Boolean
        | DataType::Integer
        | DataType::BigInt
        | DataType::Double
        | DataType::Varchar
        | DataType::Timestamp => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_rounds_down_also_before_1970() {
        let minute = Tumble { size_micros: 60, offset_micros: 0 };
        assert_eq!(minute.window(0), Some((0, 60)));
        assert_eq!(minute.window(59), Some((0, 60)));
        assert_eq!(minute.window(-1), Some((-60, 0)));
        assert_eq!(minute.window(-60), Some((-60, 0)));
        let shifted = Tumble { size_micros: 60, offset_micros: 7 };
        assert_eq!(shifted.window(6), Some((-53, 7)));
        assert_eq!(shifted.window(7), Some((7, 67)));
    }

    #[test]
    fn a_window_that_time_cannot_express_is_none_rather_than_wrapped() {
        let odd = Tumble { size_micros: 1_000_003, offset_micros: 0 };
        assert_eq!(odd.window(i64::MIN), None);
        assert_eq!(odd.window(i64::MAX), None);
        assert_eq!(Tumble { size_micros: 60, offset_micros: i64::MAX }.window(-2), None);
        assert_eq!(
            Tumble { size_micros: i64::MAX, offset_micros: 0 }.window(5),
            Some((0, i64::MAX))
        );
    }
}
