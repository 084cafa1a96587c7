//! Plans, events and oracles that several modules' tests share.

use std::{ops::Range, path::Path, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, RecordBatch},
    datatypes::{DataType as ArrowType, Field, Float64Type, Int32Type, Schema},
};
use headwater_log::{BatchBuilder, Chunk};
use headwater_state::{Dump, Identity, Options, OutboxKey, ShardDb, ShardReader};
use headwater_types::{
    Column, DataType, GenerationInputs, Name, Offset, PartitionId, StreamDefinition,
};

use crate::{
    Limits, Shard,
    plan::{
        Aggregate, AggregateFunction, ColumnRef, Expression, ExpressionError, KeyColumn,
        OutputColumn, Tumble, ViewPlan, arrow_type,
    },
};

pub(crate) const SECOND: i64 = 1_000_000;
/// 2020-01-01T00:00:00Z.
pub(crate) const START: i64 = 1_577_836_800 * SECOND;

pub(crate) const USER: usize = 0;
pub(crate) const AMOUNT: usize = 1;
pub(crate) const PRICE: usize = 2;
pub(crate) const NUMBER: usize = 3;
pub(crate) const BIG: usize = 4;
pub(crate) const FLAG: usize = 5;
pub(crate) const TIME: usize = 6;

pub(crate) fn stream() -> StreamDefinition {
    let column =
        |name: &str, data_type, nullable| Column { name: name.into(), data_type, nullable };
    StreamDefinition {
        name: Name::new("orders").unwrap(),
        sql: String::new(),
        columns: vec![
            column("user", DataType::Varchar, true),
            column("amount", DataType::Double, true),
            column("price", DataType::Decimal { precision: 38, scale: 2 }, true),
            column("number", DataType::Integer, true),
            column("big", DataType::BigInt, true),
            column("flag", DataType::Boolean, true),
            column("ts", DataType::Timestamp, false),
        ],
        event_time: TIME,
        watermark_delay_micros: 5 * SECOND,
        topic: Name::new("orders").unwrap(),
        partitions: 4,
        key: Some(USER),
        max_future_micros: 3600 * SECOND,
    }
}

/// A plan over all columns that selects all keys, the window's start and all aggregates.
pub(crate) fn plan(window: Option<Tumble>, keys: &[usize], aggregates: Vec<Aggregate>) -> ViewPlan {
    let stream = stream();
    let fields = stream.columns.iter();
    let fields = fields
        .map(|column| Field::new(&column.name, arrow_type(column.data_type), column.nullable));
    let input_schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let mut output = Vec::new();
    let mut select = |name: String, data_type, place: usize, key| {
        let expression: Arc<dyn Expression> = Arc::new(ColumnRef(place));
        output.push(OutputColumn { name, data_type, expression, key });
    };
    for (place, key) in keys.iter().enumerate() {
        let column = &stream.columns[*key];
        select(column.name.clone(), column.data_type, place, Some(place));
    }
    let mut first = keys.len();
    if window.is_some() {
        select("window_start".into(), DataType::Timestamp, first, Some(first));
        first += 3;
    }
    for (place, aggregate) in aggregates.iter().enumerate() {
        select(format!("a{place}"), aggregate.output_type, first + place, None);
    }
    let key = |column: &usize| KeyColumn {
        name: stream.columns[*column].name.clone(),
        expression: Arc::new(ColumnRef(*column)),
        data_type: stream.columns[*column].data_type,
    };
    ViewPlan {
        view: Name::new("spend").unwrap(),
        input: (0..stream.columns.len()).collect(),
        input_schema,
        filter: None,
        keys: keys.iter().map(key).collect(),
        window,
        aggregates,
        output,
        allowed_lateness_micros: None,
        retention_micros: None,
        key_is_stream_key: keys.contains(&USER),
        stream: Arc::new(stream),
    }
}

pub(crate) fn minute() -> Option<Tumble> {
    Some(Tumble { size_micros: 60 * SECOND, offset_micros: 0 })
}

pub(crate) fn count_star() -> Aggregate {
    Aggregate {
        function: AggregateFunction::CountStar,
        argument: None,
        filter: None,
        input_type: None,
        output_type: DataType::BigInt,
    }
}

pub(crate) fn of(function: AggregateFunction, column: usize) -> Aggregate {
    let input = stream().columns[column].data_type;
    let output_type = match (function, input) {
        (AggregateFunction::Count | AggregateFunction::CountStar, _) => DataType::BigInt,
        (AggregateFunction::Min | AggregateFunction::Max, input) => input,
        (AggregateFunction::Sum, DataType::Decimal { scale, .. }) => {
            DataType::Decimal { precision: 38, scale }
        }
        (AggregateFunction::Sum, DataType::Double) => DataType::Double,
        (AggregateFunction::Sum, _) => DataType::BigInt,
        (AggregateFunction::Avg, DataType::Decimal { scale, .. }) => {
            DataType::Decimal { precision: 38, scale: scale + 4 }
        }
        (AggregateFunction::Avg, _) => DataType::Double,
    };
    let argument: Option<Arc<dyn Expression>> = Some(Arc::new(ColumnRef(column)));
    Aggregate { function, argument, filter: None, input_type: Some(input), output_type }
}

/// Every function over every type that it accepts.
pub(crate) fn all_aggregates() -> Vec<Aggregate> {
    use AggregateFunction::{Avg, Count, Max, Min, Sum};
    let mut all = vec![count_star()];
    for column in [AMOUNT, PRICE, NUMBER, BIG] {
        all.extend([Count, Sum, Min, Max, Avg].map(|function| of(function, column)));
    }
    for column in [USER, FLAG, TIME] {
        all.extend([Count, Min, Max].map(|function| of(function, column)));
    }
    all.push(Aggregate { filter: Some(Arc::new(ColumnRef(FLAG))), ..of(Sum, AMOUNT) });
    all.push(Aggregate { filter: Some(Arc::new(ColumnRef(FLAG))), ..count_star() });
    all
}

/// `amount / number`. It has no value where `number` is zero, and is NULL where one of them is
/// NULL.
#[derive(Debug)]
pub(crate) struct Quotient;

impl Expression for Quotient {
    fn evaluate(&self, batch: &RecordBatch) -> Result<ArrayRef, ExpressionError> {
        let amount = batch.column(AMOUNT).as_primitive::<Float64Type>();
        let number = batch.column(NUMBER).as_primitive::<Int32Type>();
        let quotient = (0..batch.num_rows()).map(|row| {
            if amount.is_null(row) || number.is_null(row) {
                return Ok(None);
            }
            match number.value(row) {
                0 => Err(ExpressionError(format!("{} / 0", amount.value(row)))),
                number => Ok(Some(amount.value(row) / f64::from(number))),
            }
        });
        Ok(Arc::new(quotient.collect::<Result<Float64Array, _>>()?))
    }
}

/// `number >= 0`. It has no value for -1, and is NULL for NULL.
#[derive(Debug)]
pub(crate) struct NotNegative;

impl Expression for NotNegative {
    fn evaluate(&self, batch: &RecordBatch) -> Result<ArrayRef, ExpressionError> {
        let numbers =
            batch.column(NUMBER).as_primitive::<Int32Type>().iter().map(|number| match number {
                Some(-1) => Err(ExpressionError("minus one".into())),
                number => Ok(number.map(|number| number >= 0)),
            });
        Ok(Arc::new(numbers.collect::<Result<BooleanArray, _>>()?))
    }
}

/// A record of a partition under test.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Event {
    pub(crate) timestamp_ms: i64,
    pub(crate) value: Option<Vec<u8>>,
}

pub(crate) fn event(text: impl Into<String>) -> Event {
    Event { timestamp_ms: START / 1000, value: Some(text.into().into_bytes()) }
}

/// An event at so many seconds after [`START`].
pub(crate) fn at(seconds: f64, rest: &str) -> Event {
    let millis = START / 1000 + (seconds * 1000.0) as i64;
    event(format!("{{{rest}{}\"ts\":{millis}}}", if rest.is_empty() { "" } else { "," }))
}

/// The events of this range as a chunk, in batches of this many.
pub(crate) fn chunk(events: &[Event], range: Range<usize>, batch: usize) -> Chunk {
    let mut bytes = Vec::new();
    let mut base = range.start;
    for events in events[range.clone()].chunks(batch) {
        let mut builder = BatchBuilder::new();
        for event in events {
            builder.push(event.timestamp_ms, Some(b"k"), event.value.as_deref(), &[]);
        }
        let mut encoded = builder.build().unwrap();
        encoded.assign(Offset(base as u64));
        bytes.extend_from_slice(encoded.bytes());
        base += events.len();
    }
    Chunk::new(bytes, Offset(range.end as u64))
}

pub(crate) fn identity(partition: u32) -> Identity {
    let inputs = GenerationInputs { stream_sql: "", view_sql: "", floor: &[], ordinal: 0 };
    Identity { generation: inputs.digest(), partition: PartitionId(partition) }
}

pub(crate) fn open(path: &Path, plan: &Arc<ViewPlan>, limits: Limits) -> Shard {
    open_partition(path, 0, plan, limits)
}

pub(crate) fn open_partition(
    path: &Path,
    partition: u32,
    plan: &Arc<ViewPlan>,
    limits: Limits,
) -> Shard {
    let options = Options { expire: plan.retention_micros.is_some(), ..Options::default() };
    let db = ShardDb::open(path, &identity(partition), &options).unwrap();
    Shard::open_with(Arc::clone(plan), db, limits).unwrap()
}

/// Everything that a shard has committed: its rows, its digest and its outbox.
#[derive(Debug, PartialEq)]
pub(crate) struct Contents {
    pub(crate) dump: Dump,
    pub(crate) digest: [u8; 32],
    pub(crate) outbox: Vec<(OutboxKey, Vec<u8>)>,
}

pub(crate) fn contents(shard: Shard, path: &Path) -> Contents {
    let outbox = shard.db().outbox(OutboxKey::default(), usize::MAX).unwrap();
    let identity = *shard.db().identity();
    drop(shard);
    let reader = ShardReader::open_checkpoint(path, &identity).unwrap();
    let digest = headwater_state::digest(reader.view()).unwrap();
    Contents { dump: headwater_state::dump(reader.view()).unwrap(), digest, outbox }
}

/// Runs a history without interruption.
pub(crate) fn run(plan: &Arc<ViewPlan>, events: &[Event]) -> Contents {
    let directory = tempfile::tempdir().unwrap();
    let mut shard = open(directory.path(), plan, Limits::default());
    if !events.is_empty() {
        shard.apply(&chunk(events, 0..events.len(), 1000), None).unwrap();
    }
    shard.commit().unwrap();
    contents(shard, directory.path())
}

/// One row of a batch as text, column by column.
pub(crate) fn row_text(batch: &RecordBatch, row: usize) -> Vec<String> {
    let columns = batch.columns().iter();
    columns.map(|column| value_text(column, row)).collect()
}

#[allow(clippy::wildcard_enum_match_arm, reason = "Arrow has many types that no column has")]
fn value_text(column: &ArrayRef, row: usize) -> String {
    use arrow::datatypes::{Decimal128Type, Int64Type, TimestampMicrosecondType};
    if column.is_null(row) {
        return "NULL".into();
    }
    match column.data_type() {
        ArrowType::Boolean => column.as_boolean().value(row).to_string(),
        ArrowType::Int32 => column.as_primitive::<Int32Type>().value(row).to_string(),
        ArrowType::Int64 => column.as_primitive::<Int64Type>().value(row).to_string(),
        ArrowType::Float64 => format!("{:?}", column.as_primitive::<Float64Type>().value(row)),
        ArrowType::Decimal128(..) => column.as_primitive::<Decimal128Type>().value_as_string(row),
        ArrowType::Utf8 => column.as_string::<i32>().value(row).to_owned(),
        ArrowType::Timestamp(..) => {
            let micros = column.as_primitive::<TimestampMicrosecondType>().value(row);
            headwater_types::EventTime(micros).to_string()
        }
        other => panic!("no column has type {other}"),
    }
}
