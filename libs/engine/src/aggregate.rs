//! Partial states of aggregates: one column per aggregate, one cell per group.
//!
//! Merging is associative and commutative. The stored form of a group is the concatenation of its
//! aggregates' forms in the plan's order. Only [`States::encode`] and [`States::merge`] write and
//! read it. The row's header carries its version.
//!
//! | state | stored form |
//! | --- | --- |
//! | count | varint |
//! | sum | 0 if no value was seen, else 1 and the sum |
//! | avg | varint of the number of values; if not 0 the sum |
//! | min, max | 0 if no value was seen, else 1 and the value |
//!
//! Sums: zigzag varint (integers); length and two's complement, least byte first (decimals);
//! [`ExactSum`] (doubles). Values: zigzag varint (integers, decimals, timestamps, booleans), 8
//! bytes (doubles), varint length and bytes (text).

mod finish;
mod stored;

use arrow::{
    array::{Array, ArrayRef, BooleanArray},
    buffer::{BooleanBuffer, NullBuffer},
    datatypes::i256,
};
use headwater_types::DataType;

use crate::{
    exact::ExactSum,
    plan::{Aggregate, AggregateFunction},
    values::Values,
};

/// The group index of a record that belongs to no group.
pub(crate) const NO_GROUP: u32 = u32::MAX;

/// The states of all aggregates of a plan.
#[derive(Debug)]
pub(crate) struct States {
    columns: Vec<StateColumn>,
    groups: usize,
    /// Heap bytes of minima and maxima of text.
    text_bytes: usize,
}

#[derive(Debug)]
struct StateColumn {
    cells: StateCells,
    function: AggregateFunction,
    input: Option<DataType>,
    output: DataType,
}

#[derive(Debug)]
enum StateCells {
    Count(Vec<u64>),
    Integer(Vec<Sum<i128>>),
    Decimal(Vec<Sum<i256>>),
    Double(Vec<Sum<ExactSum>>),
    /// Minimum or maximum of a type of at most 64 bits, as an integer with the same order.
    Narrow(Vec<Option<i64>>),
    Wide(Vec<Option<i128>>),
    Text(Vec<Option<Vec<u8>>>),
}

/// Number and sum of the values. For SUM the number only says whether there was any value.
#[derive(Clone, Debug, Default)]
struct Sum<T> {
    count: u64,
    sum: T,
}

impl States {
    pub(crate) fn new(aggregates: &[Aggregate]) -> Self {
        Self {
            columns: aggregates.iter().map(StateColumn::new).collect(),
            groups: 0,
            text_bytes: 0,
        }
    }

    pub(crate) fn groups(&self) -> usize {
        self.groups
    }

    /// The size of one group's states without text.
    pub(crate) fn group_bytes(&self) -> usize {
        self.columns.iter().map(|column| column.cells.cell_bytes()).sum()
    }

    pub(crate) fn text_bytes(&self) -> usize {
        self.text_bytes
    }

    /// Adds a group that no record has updated.
    pub(crate) fn push(&mut self) {
        self.groups += 1;
        self.columns.iter_mut().for_each(|column| column.cells.resize(self.groups));
    }

    pub(crate) fn clear(&mut self) {
        self.groups = 0;
        self.text_bytes = 0;
        self.columns.iter_mut().for_each(|column| column.cells.resize(0));
    }

    /// Updates the groups with the values of one batch. `filter` is the result of FILTER for each
    /// record.
    pub(crate) fn update(
        &mut self,
        aggregate: usize,
        groups: &[u32],
        values: Option<&Values<'_>>,
        filter: Option<&BooleanArray>,
    ) {
        let column = &mut self.columns[aggregate];
        let mask = mask(values.and_then(|values| values.nulls()), filter);
        column.update(BatchGroups { groups, mask: mask.as_ref() }, values, &mut self.text_bytes);
    }

    /// The stored form of a group.
    pub(crate) fn encode(&self, group: usize, out: &mut Vec<u8>) {
        self.columns.iter().for_each(|column| column.encode(group, out));
    }

    /// Merges a stored group into a group in memory. `None` if the bytes are damaged; the group is
    /// then unusable.
    pub(crate) fn merge(&mut self, group: usize, mut bytes: &[u8]) -> Option<()> {
        for column in &mut self.columns {
            column.merge(group, &mut bytes, &mut self.text_bytes)?;
        }
        bytes.is_empty().then_some(())
    }

    /// The value of one aggregate for every group. The error is the first group whose value does
    /// not fit the type.
    pub(crate) fn finish(&self, aggregate: usize) -> Result<ArrayRef, usize> {
        self.columns[aggregate].finish()
    }
}

/// The records whose value counts; `None` means all.
fn mask(nulls: Option<&NullBuffer>, filter: Option<&BooleanArray>) -> Option<BooleanBuffer> {
    let filter = filter.map(|filter| match filter.nulls() {
        Some(known) => filter.values() & known.inner(),
        None => filter.values().clone(),
    });
    match (nulls, filter) {
        (None, filter) => filter,
        (Some(nulls), None) => Some(nulls.inner().clone()),
        (Some(nulls), Some(filter)) => Some(nulls.inner() & &filter),
    }
}

/// The groups of a batch's records.
#[derive(Clone, Copy)]
struct BatchGroups<'a> {
    groups: &'a [u32],
    mask: Option<&'a BooleanBuffer>,
}

impl BatchGroups<'_> {
    #[inline]
    fn each(self, mut apply: impl FnMut(usize, usize)) {
        match self.mask {
            None => {
                for (row, group) in self.groups.iter().enumerate() {
                    if *group != NO_GROUP {
                        apply(row, *group as usize);
                    }
                }
            }
            Some(mask) => {
                for row in mask.set_indices() {
                    let group = self.groups[row];
                    if group != NO_GROUP {
                        apply(row, group as usize);
                    }
                }
            }
        }
    }
}

impl StateColumn {
    fn new(aggregate: &Aggregate) -> Self {
        let input = aggregate.input_type;
        let cells = match (aggregate.function, input) {
            (AggregateFunction::CountStar | AggregateFunction::Count, _) | (_, None) => {
                StateCells::Count(Vec::new())
            }
            (AggregateFunction::Sum | AggregateFunction::Avg, Some(input)) => match input {
                DataType::Double => StateCells::Double(Vec::new()),
                DataType::Decimal { .. } => StateCells::Decimal(Vec::new()),
                DataType::Boolean
                | DataType::Integer
                | DataType::BigInt
                | DataType::Varchar
                | DataType::Timestamp => StateCells::Integer(Vec::new()),
            },
            (AggregateFunction::Min | AggregateFunction::Max, Some(input)) => match input {
                DataType::Decimal { .. } => StateCells::Wide(Vec::new()),
                DataType::Varchar => StateCells::Text(Vec::new()),
                DataType::Boolean
                | DataType::Integer
                | DataType::BigInt
                | DataType::Double
                | DataType::Timestamp => StateCells::Narrow(Vec::new()),
            },
        };
        Self { cells, function: aggregate.function, input, output: aggregate.output_type }
    }

    fn update(
        &mut self,
        rows: BatchGroups<'_>,
        values: Option<&Values<'_>>,
        text_bytes: &mut usize,
    ) {
        let greatest = self.function == AggregateFunction::Max;
        match (&mut self.cells, values) {
            (StateCells::Count(cells), _) => rows.each(|_, group| cells[group] += 1),
            (StateCells::Integer(cells), Some(Values::Int32(values))) => {
                rows.each(|row, group| cells[group].add_integer(i64::from(values.values()[row])));
            }
            (StateCells::Integer(cells), Some(Values::Int64(values))) => {
                rows.each(|row, group| cells[group].add_integer(values.values()[row]));
            }
            (StateCells::Double(cells), Some(Values::Double(values))) => {
                let values = values.values();
                rows.each(|row, group| {
                    cells[group].count += 1;
                    cells[group].sum.add(values[row]);
                });
            }
            (StateCells::Decimal(cells), Some(Values::Decimal(values))) => {
                rows.each(|row, group| {
                    let cell = &mut cells[group];
                    cell.count += 1;
                    cell.sum = cell.sum.wrapping_add(i256::from_i128(values.values()[row]));
                })
            }
            (StateCells::Narrow(cells), Some(Values::Int32(values))) => rows.each(|row, group| {
                extreme(&mut cells[group], i64::from(values.values()[row]), greatest);
            }),
            (StateCells::Narrow(cells), Some(Values::Int64(values))) => {
                rows.each(|row, group| extreme(&mut cells[group], values.values()[row], greatest));
            }
            (StateCells::Narrow(cells), Some(Values::Timestamp(values))) => {
                rows.each(|row, group| extreme(&mut cells[group], values.values()[row], greatest));
            }
            (StateCells::Narrow(cells), Some(Values::Boolean(values))) => {
                rows.each(|row, group| {
                    extreme(&mut cells[group], i64::from(values.value(row)), greatest)
                });
            }
            (StateCells::Narrow(cells), Some(Values::Double(values))) => {
                let values = values.values();
                rows.each(|row, group| extreme(&mut cells[group], ordered(values[row]), greatest));
            }
            (StateCells::Wide(cells), Some(Values::Decimal(values))) => {
                rows.each(|row, group| extreme(&mut cells[group], values.values()[row], greatest));
            }
            (StateCells::Text(cells), Some(Values::Text(values))) => rows.each(|row, group| {
                extreme_text(&mut cells[group], values.value(row).as_bytes(), greatest, text_bytes);
            }),
            // `Values::of` has checked the types.
            (_, _) => debug_assert!(false, "an aggregate got values of another type"),
        }
    }
}

impl StateCells {
    fn resize(&mut self, groups: usize) {
        match self {
            Self::Count(cells) => cells.resize(groups, 0),
            Self::Integer(cells) => cells.resize_with(groups, Sum::default),
            Self::Decimal(cells) => cells.resize_with(groups, || Sum { count: 0, sum: i256::ZERO }),
            Self::Double(cells) => cells.resize_with(groups, Sum::default),
            Self::Narrow(cells) => cells.resize(groups, None),
            Self::Wide(cells) => cells.resize(groups, None),
            Self::Text(cells) => cells.resize_with(groups, || None),
        }
    }

    fn cell_bytes(&self) -> usize {
        match self {
            Self::Count(_) => size_of::<u64>(),
            Self::Integer(_) => size_of::<Sum<i128>>(),
            Self::Decimal(_) => size_of::<Sum<i256>>(),
            Self::Double(_) => size_of::<Sum<ExactSum>>(),
            Self::Narrow(_) => size_of::<Option<i64>>(),
            Self::Wide(_) => size_of::<Option<i128>>(),
            Self::Text(_) => size_of::<Option<Vec<u8>>>(),
        }
    }
}

impl Sum<i128> {
    #[inline]
    fn add_integer(&mut self, value: i64) {
        self.count += 1;
        // 2^64 values of 63 bits cannot overflow 128 bits.
        self.sum += i128::from(value);
    }
}

#[inline]
fn extreme<T: Copy + Ord>(cell: &mut Option<T>, value: T, greatest: bool) {
    *cell = Some(match *cell {
        None => value,
        Some(old) if greatest => old.max(value),
        Some(old) => old.min(value),
    });
}

fn extreme_text(cell: &mut Option<Vec<u8>>, text: &[u8], greatest: bool, text_bytes: &mut usize) {
    match cell {
        Some(old) if (greatest && text <= &old[..]) || (!greatest && text >= &old[..]) => {}
        Some(old) => {
            let before = old.capacity();
            old.clear();
            old.extend_from_slice(text);
            *text_bytes += old.capacity() - before;
        }
        None => {
            *text_bytes += text.len();
            *cell = Some(text.to_vec());
        }
    }
}

/// An integer with the order of doubles: -0.0 before 0.0, any NaN last.
#[inline]
fn ordered(value: f64) -> i64 {
    let bits = if value.is_nan() { f64::NAN.to_bits() } else { value.to_bits() } as i64;
    bits ^ ((bits >> 63) as u64 >> 1) as i64
}

#[cfg(test)]
mod tests;
