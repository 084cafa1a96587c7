use std::sync::Arc;

use arrow::{
    array::{
        ArrayRef, BooleanBuilder, Decimal128Builder, Float64Builder, Int32Builder, Int64Builder,
        RecordBatchOptions, StringBuilder, TimestampMicrosecondBuilder,
    },
    record_batch::RecordBatch,
};
use headwater_state::key::{self, OwnedKeyPart};
use headwater_types::{DataType, EventTime, Offset};

use crate::{
    Error,
    aggregate::States,
    decode::PartitionKey,
    plan::{
        AggregateFunction, OutputColumn, ViewPlan, WINDOW_TIME_BEFORE_END_MICROS, arrow_type, scale,
    },
};

/// Rows of a view, in key order.
#[derive(Clone, Debug)]
pub struct OutputBatch {
    /// The rows, with [`ViewPlan::output_schema`].
    pub batch: RecordBatch,
    /// The offset of the last record that changed each row: the greatest over the shards.
    pub last_offsets: Vec<Offset>,
    keys: Vec<u8>,
    key_ends: Vec<usize>,
}

impl OutputBatch {
    pub fn len(&self) -> usize {
        self.last_offsets.len()
    }

    pub fn is_empty(&self) -> bool {
        self.last_offsets.is_empty()
    }

    /// The stored key of a row.
    pub fn key(&self, row: usize) -> &[u8] {
        row_key(&self.keys, &self.key_ends, row)
    }
}

fn row_key<'a>(keys: &'a [u8], ends: &[usize], row: usize) -> &'a [u8] {
    let start = if row == 0 { 0 } else { ends[row - 1] };
    &keys[start..ends[row]]
}

/// Assembles output rows from stored payloads.
pub(super) struct RowAssembler {
    keys: Vec<u8>,
    key_ends: Vec<usize>,
    last_offsets: Vec<Offset>,
    states: States,
}

impl RowAssembler {
    pub(super) fn new(plan: &ViewPlan) -> Self {
        let states = States::new(&plan.aggregates);
        Self { keys: Vec::new(), key_ends: Vec::new(), last_offsets: Vec::new(), states }
    }

    pub(super) fn len(&self) -> usize {
        self.states.groups()
    }

    /// Starts a row.
    pub(super) fn begin(&mut self, key: &[u8]) {
        self.keys.extend_from_slice(key);
        self.key_ends.push(self.keys.len());
        self.last_offsets.push(Offset::ZERO);
        self.states.push();
    }

    pub(super) fn last_key(&self) -> &[u8] {
        match self.key_ends.len() {
            0 => &[],
            rows => row_key(&self.keys, &self.key_ends, rows - 1),
        }
    }

    /// Merges a shard's payload into the last row.
    pub(super) fn merge(
        &mut self,
        plan: &ViewPlan,
        payload: &[u8],
        last_offset: Offset,
    ) -> Result<(), Error> {
        let row = self.len().saturating_sub(1);
        if let Some(last) = self.last_offsets.last_mut() {
            *last = (*last).max(last_offset);
        }
        self.states.merge(row, payload).ok_or_else(|| {
            damaged(plan, self.last_key(), "its aggregates are not what the plan has")
        })
    }

    /// Returns the output of all rows and empties the assembler.
    pub(super) fn finish(&mut self, plan: &ViewPlan) -> Result<OutputBatch, Error> {
        let mut columns = self.key_columns(plan)?;
        for place in 0..plan.aggregates.len() {
            let values = self.states.finish(place);
            columns.push(values.map_err(|row| self.overflow(plan, place, row))?);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(self.len()));
        let wrong = |detail: String| Error::Plan { view: plan.view.clone(), detail };
        let rows = RecordBatch::try_new_with_options(plan.post_schema(), columns, &options)
            .map_err(|error| wrong(error.to_string()))?;
        let output = plan.output.iter().map(|column| self.output(plan, column, &rows));
        let output = output.collect::<Result<Vec<_>, Error>>()?;
        let batch = RecordBatch::try_new_with_options(plan.output_schema(), output, &options)
            .map_err(|error| wrong(error.to_string()))?;
        self.states.clear();
        Ok(OutputBatch {
            batch,
            last_offsets: std::mem::take(&mut self.last_offsets),
            keys: std::mem::take(&mut self.keys),
            key_ends: std::mem::take(&mut self.key_ends),
        })
    }

    fn output(
        &self,
        plan: &ViewPlan,
        column: &OutputColumn,
        rows: &RecordBatch,
    ) -> Result<ArrayRef, Error> {
        if let Some(place) = column.expression.as_column()
            && let Some(values) = rows.columns().get(place)
        {
            return Ok(Arc::clone(values));
        }
        column.expression.evaluate(rows).map_err(|mut source| {
            // Finds the first row that fails alone, to name it.
            let mut failed = 0;
            for row in 0..rows.num_rows() {
                if let Err(own) = column.expression.evaluate(&rows.slice(row, 1)) {
                    (failed, source) = (row, own);
                    break;
                }
            }
            let key = key_text(plan, row_key(&self.keys, &self.key_ends, failed));
            Error::Output { view: plan.view.clone(), column: column.name.clone(), key, source }
        })
    }

    fn overflow(&self, plan: &ViewPlan, place: usize, row: usize) -> Error {
        let first = plan.keys.len() + if plan.window.is_some() { 3 } else { 0 };
        let aggregate = &plan.aggregates[place];
        let plain = |column: &&OutputColumn| column.expression.as_column() == Some(first + place);
        let column = match plan.output.iter().find(plain) {
            Some(column) => column.name.clone(),
            None => {
                format!("{} (aggregate {} of the view)", function(aggregate.function), place + 1)
            }
        };
        let key = key_text(plan, row_key(&self.keys, &self.key_ends, row));
        Error::Overflow { view: plan.view.clone(), column, data_type: aggregate.output_type, key }
    }

    fn key_columns(&self, plan: &ViewPlan) -> Result<Vec<ArrayRef>, Error> {
        let rows = self.len();
        let mut builders: Vec<KeyBuilder> =
            plan.keys.iter().map(|key| KeyBuilder::new(key.data_type, rows)).collect();
        let mut starts = Vec::with_capacity(if plan.window.is_some() { rows } else { 0 });
        for row in 0..rows {
            let key = row_key(&self.keys, &self.key_ends, row);
            let invalid = || damaged(plan, key, "its key is not what the plan has");
            let mut rest = key;
            for (builder, column) in builders.iter_mut().zip(&plan.keys) {
                let part = key::decode(&mut rest, column.data_type).map_err(|_| invalid())?;
                builder.push(part).ok_or_else(invalid)?;
            }
            if plan.window.is_some() {
                match key::decode(&mut rest, DataType::Timestamp) {
                    Ok(OwnedKeyPart::Timestamp(start)) => starts.push(start),
                    Ok(_) | Err(_) => return Err(invalid()),
                }
            }
            if !rest.is_empty() {
                return Err(invalid());
            }
        }
        let mut columns: Vec<ArrayRef> = builders.into_iter().map(KeyBuilder::finish).collect();
        if let Some(window) = plan.window {
            let size = window.size_micros;
            for after in [0, size, (size - WINDOW_TIME_BEFORE_END_MICROS).max(0)] {
                let mut times =
                    TimestampMicrosecondBuilder::with_capacity(rows).with_timezone("UTC");
                // A window whose end is not a valid time is never stored.
                starts.iter().for_each(|start| times.append_value(start.saturating_add(after)));
                columns.push(Arc::new(times.finish()));
            }
        }
        Ok(columns)
    }
}

enum KeyBuilder {
    Boolean(BooleanBuilder),
    Int32(Int32Builder),
    Int64(Int64Builder),
    Double(Float64Builder),
    Decimal(Decimal128Builder),
    Text(StringBuilder),
    Timestamp(TimestampMicrosecondBuilder),
}

impl KeyBuilder {
    fn new(data_type: DataType, rows: usize) -> Self {
        match data_type {
            DataType::Boolean => Self::Boolean(BooleanBuilder::with_capacity(rows)),
            DataType::Integer => Self::Int32(Int32Builder::with_capacity(rows)),
            DataType::BigInt => Self::Int64(Int64Builder::with_capacity(rows)),
            DataType::Double => Self::Double(Float64Builder::with_capacity(rows)),
            DataType::Decimal { .. } => Self::Decimal(
                Decimal128Builder::with_capacity(rows).with_data_type(arrow_type(data_type)),
            ),
            DataType::Varchar => Self::Text(StringBuilder::new()),
            DataType::Timestamp => Self::Timestamp(
                TimestampMicrosecondBuilder::with_capacity(rows).with_timezone("UTC"),
            ),
        }
    }

    /// `None` if the part has another type.
    fn push(&mut self, part: OwnedKeyPart) -> Option<()> {
        use OwnedKeyPart as Part;
        match (self, part) {
            (Self::Boolean(builder), Part::Null) => builder.append_null(),
            (Self::Int32(builder), Part::Null) => builder.append_null(),
            (Self::Int64(builder), Part::Null) => builder.append_null(),
            (Self::Double(builder), Part::Null) => builder.append_null(),
            (Self::Decimal(builder), Part::Null) => builder.append_null(),
            (Self::Text(builder), Part::Null) => builder.append_null(),
            (Self::Timestamp(builder), Part::Null) => builder.append_null(),
            (Self::Boolean(builder), Part::Boolean(value)) => builder.append_value(value),
            (Self::Int32(builder), Part::Integer(value)) => {
                builder.append_value(i32::try_from(value).ok()?)
            }
            (Self::Int64(builder), Part::Integer(value)) => builder.append_value(value),
            (Self::Double(builder), Part::Double(value)) => builder.append_value(value),
            (Self::Decimal(builder), Part::Decimal(value)) => builder.append_value(value),
            (Self::Text(builder), Part::Text(value)) => builder.append_value(value),
            (Self::Timestamp(builder), Part::Timestamp(value)) => builder.append_value(value),
            (_, _) => return None,
        }
        Some(())
    }

    fn finish(self) -> ArrayRef {
        match self {
            Self::Boolean(mut builder) => Arc::new(builder.finish()),
            Self::Int32(mut builder) => Arc::new(builder.finish()),
            Self::Int64(mut builder) => Arc::new(builder.finish()),
            Self::Double(mut builder) => Arc::new(builder.finish()),
            Self::Decimal(mut builder) => Arc::new(builder.finish()),
            Self::Text(mut builder) => Arc::new(builder.finish()),
            Self::Timestamp(mut builder) => Arc::new(builder.finish()),
        }
    }
}

fn function(function: AggregateFunction) -> &'static str {
    match function {
        AggregateFunction::CountStar | AggregateFunction::Count => "count",
        AggregateFunction::Sum => "sum",
        AggregateFunction::Min => "min",
        AggregateFunction::Max => "max",
        AggregateFunction::Avg => "avg",
    }
}

#[cold]
fn damaged(plan: &ViewPlan, key: &[u8], detail: &'static str) -> Error {
    Error::Row { view: plan.view.clone(), key: key_text(plan, key), detail }
}

/// A stored key as text for a person: `(user_id = 7, window_start = 2013-01-01T10:00:00Z)`.
pub(crate) fn key_text(plan: &ViewPlan, mut key: &[u8]) -> String {
    let mut parts = Vec::new();
    for (name, data_type) in plan.key_names().into_iter().zip(plan.key_types()) {
        let value = match key::decode(&mut key, data_type) {
            Ok(OwnedKeyPart::Null) => "NULL".to_owned(),
            Ok(OwnedKeyPart::Boolean(value)) => value.to_string(),
            Ok(OwnedKeyPart::Integer(value)) => value.to_string(),
            Ok(OwnedKeyPart::Double(value)) => value.to_string(),
            Ok(OwnedKeyPart::Decimal(units)) => {
                let mut text = Vec::new();
                PartitionKey::Decimal(units, scale(data_type)).write(&mut text);
                String::from_utf8_lossy(&text).into_owned()
            }
            Ok(OwnedKeyPart::Text(value)) => format!("{value:?}"),
            Ok(OwnedKeyPart::Timestamp(value)) => EventTime(value).to_string(),
            Err(_) => return format!("{key:02x?}"),
        };
        parts.push(format!("{name} = {value}"));
    }
    format!("({})", parts.join(", "))
}
