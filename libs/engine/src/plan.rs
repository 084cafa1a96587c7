//! The plan of a view, which shards run.
//!
//! `headwater-sql` makes a [`ViewPlan`] from SQL; this crate knows neither SQL nor how expressions
//! are evaluated. A record becomes a row of [`ViewPlan::input_schema`]; filter, keys and aggregate
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

/// `window_time` is the last instant of a window. As in Flink, it is one millisecond before the
/// end.
pub const WINDOW_TIME_BEFORE_END_MICROS: i64 = 1_000;

/// A view, ready to run.
#[derive(Clone, Debug)]
pub struct ViewPlan {
    pub view: Name,
    pub stream: Arc<StreamDefinition>,
    /// Indices of the stream's columns that are decoded, ascending. The event time is always among
    /// them.
    pub input: Vec<usize>,
    /// The Arrow schema of those columns, in that order.
    pub input_schema: SchemaRef,
    /// WHERE, a Boolean expression over the input.
    pub filter: Option<Arc<dyn Expression>>,
    /// GROUP BY without the window's columns.
    pub keys: Vec<KeyColumn>,
    pub window: Option<Tumble>,
    pub aggregates: Vec<Aggregate>,
    /// The select list.
    pub output: Vec<OutputColumn>,
    /// The limit of lateness: how far a record may lie behind its window's end, or behind the
    /// watermark in a view without windows, and still count. `None` means 0 with windows, and
    /// unlimited without.
    pub allowed_lateness_micros: Option<i64>,
    /// The distance behind the watermark at which a row expires. `None` means never.
    pub retention_micros: Option<i64>,
    /// Whether one of the keys is the stream's key unchanged, so that a row lives in one shard.
    pub key_is_stream_key: bool,
}

/// One GROUP BY expression.
#[derive(Clone, Debug)]
pub struct KeyColumn {
    pub name: String,
    pub expression: Arc<dyn Expression>,
    pub data_type: DataType,
}

/// Tumbling windows: `[offset + n * size, offset + (n + 1) * size)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tumble {
    /// Greater than zero.
    pub size_micros: i64,
    pub offset_micros: i64,
}

impl Tumble {
    /// The start and end of the window of a time, also before 1970. `None` if one of them is not a
    /// valid time.
    pub fn window(&self, time_micros: i64) -> Option<(i64, i64)> {
        let into = time_micros.checked_sub(self.offset_micros)?.rem_euclid(self.size_micros);
        let start = time_micros.checked_sub(into)?;
        Some((start, start.checked_add(self.size_micros)?))
    }
}

/// One aggregate call. Equal calls may share an entry. Output columns refer to it by its index.
#[derive(Clone, Debug)]
pub struct Aggregate {
    pub function: AggregateFunction,
    /// `None` for `count(*)` only.
    pub argument: Option<Arc<dyn Expression>>,
    /// `FILTER (WHERE …)`, a Boolean expression over the input. The argument is evaluated only
    /// where it is true.
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
    /// An expression over [`ViewPlan::post_schema`].
    pub expression: Arc<dyn Expression>,
    /// The index of the key that this column repeats, if it does. `window_start` counts as the key
    /// after the last of [`ViewPlan::keys`].
    pub key: Option<usize>,
}

/// A scalar expression over the columns of a batch. It is pure: the value of a row depends on that
/// row alone.
pub trait Expression: Send + Sync + Debug {
    /// Returns one value per row. An error means that at least one row has no value.
    fn evaluate(&self, batch: &RecordBatch) -> Result<ArrayRef, ExpressionError>;

    /// The column that this expression repeats, if it does. Such an expression is never evaluated.
    fn as_column(&self) -> Option<usize> {
        None
    }
}

/// Why an expression has no value for a row.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ExpressionError(pub String);

/// The expression that repeats a column.
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
    /// The input of output expressions: `k0`, `k1`, … for the keys, the three columns of a window,
    /// `a0`, `a1`, … for the aggregates.
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

/// The Arrow type of a column.
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

/// The digits after the point; 0 for types other than DECIMAL.
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
