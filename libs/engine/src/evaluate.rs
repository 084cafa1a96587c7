//! Evaluates expressions over batches and finds the single rows that fail.
//!
//! An expression that fails says only that some row of a batch has no value. Which rows these are
//! must not depend on the other rows of the batch, so the batch is halved until the rows that fail
//! alone are found.

use std::collections::BTreeMap;

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, UInt32Array, new_empty_array, new_null_array},
    compute::{concat, take, take_record_batch},
    datatypes::DataType as ArrowType,
    error::ArrowError,
    record_batch::RecordBatch,
};

use crate::plan::Expression;

/// The rows of a batch that have no value, each with the first reason.
pub(crate) type Failures = BTreeMap<u32, String>;

/// The value of each row, NULL where the expression fails. `Err` means that the expression broke
/// its contract.
pub(crate) fn evaluate(
    expression: &dyn Expression,
    batch: &RecordBatch,
    data_type: &ArrowType,
    failures: &mut Failures,
) -> Result<ArrayRef, String> {
    if let Some(column) = expression.as_column() {
        return batch
            .columns()
            .get(column)
            .cloned()
            .ok_or_else(|| format!("there is no column {column}"));
    }
    if batch.num_rows() == 0 {
        // In an empty batch, even an expression that always fails has no row to fail for.
        return Ok(new_empty_array(data_type));
    }
    match expression.evaluate(batch) {
        Ok(values) => sized(values, batch.num_rows()),
        Err(_) => evaluate_halves(expression, batch, data_type, failures),
    }
}

/// As [`evaluate`], only for rows where `filter` is true.
pub(crate) fn evaluate_where(
    expression: &dyn Expression,
    filter: &BooleanArray,
    batch: &RecordBatch,
    data_type: &ArrowType,
    failures: &mut Failures,
) -> Result<ArrayRef, String> {
    if let Some(column) = expression.as_column() {
        return batch
            .columns()
            .get(column)
            .cloned()
            .ok_or_else(|| format!("there is no column {column}"));
    }
    if let Ok(values) = expression.evaluate(batch) {
        return sized(values, batch.num_rows());
    }
    let asked = |row: &u32| filter.is_valid(*row as usize) && filter.value(*row as usize);
    let rows: Vec<u32> = (0..batch.num_rows() as u32).filter(asked).collect();
    let part = take_record_batch(batch, &UInt32Array::from(rows.clone())).map_err(text)?;
    let mut part_failures = Failures::new();
    let values = evaluate(expression, &part, data_type, &mut part_failures)?;
    for (row, reason) in part_failures {
        failures.entry(rows[row as usize]).or_insert(reason);
    }
    let mut places = vec![None; batch.num_rows()];
    rows.iter().enumerate().for_each(|(place, row)| places[*row as usize] = Some(place as u32));
    take(&values, &UInt32Array::from(places), None).map_err(text)
}

/// As [`evaluate`], for a condition.
pub(crate) fn evaluate_condition(
    expression: &dyn Expression,
    batch: &RecordBatch,
    failures: &mut Failures,
) -> Result<BooleanArray, String> {
    let values = evaluate(expression, batch, &ArrowType::Boolean, failures)?;
    let condition = values.as_boolean_opt().cloned();
    condition.ok_or_else(|| format!("a condition is {}, not Boolean", values.data_type()))
}

#[cold]
fn evaluate_halves(
    expression: &dyn Expression,
    batch: &RecordBatch,
    data_type: &ArrowType,
    failures: &mut Failures,
) -> Result<ArrayRef, String> {
    let mut found: Vec<(usize, Option<ArrayRef>)> = Vec::new();
    let mut left = vec![(0, batch.num_rows())];
    while let Some((start, rows)) = left.pop() {
        match expression.evaluate(&batch.slice(start, rows)) {
            Ok(values) => found.push((rows, Some(sized(values, rows)?))),
            Err(error) if rows <= 1 => {
                failures.entry(start as u32).or_insert(error.0);
                found.push((rows, None));
            }
            Err(_) => {
                let half = rows / 2;
                left.push((start + half, rows - half));
                left.push((start, half));
            }
        }
    }
    let data_type = found
        .iter()
        .find_map(|(_, values)| values.as_ref().map(|values| values.data_type().clone()))
        .unwrap_or_else(|| data_type.clone());
    let parts = found
        .into_iter()
        .map(|(rows, values)| values.unwrap_or_else(|| new_null_array(&data_type, rows)));
    let parts: Vec<ArrayRef> = parts.collect();
    let parts: Vec<&dyn Array> = parts.iter().map(|part| part.as_ref()).collect();
    concat(&parts).map_err(text)
}

fn sized(values: ArrayRef, rows: usize) -> Result<ArrayRef, String> {
    match values.len() {
        len if len == rows => Ok(values),
        len => Err(format!("an expression gave {len} values for {rows} rows")),
    }
}

fn text(error: ArrowError) -> String {
    error.to_string()
}
