//! Applies a batch of decoded records to its groups.

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch},
    compute::{FilterBuilder, prep_null_mask_filter},
    datatypes::TimestampMicrosecondType,
};
use headwater_log::Record;
use headwater_state::{
    ShardDb,
    key::{self, KeyPart},
};
use headwater_types::{DataType, EventTime};

use super::{
    time_rules::{InvalidTime, RecordTime},
    uncommitted::Uncommitted,
};
use crate::{
    Error, Stage,
    aggregate::NO_GROUP,
    arrow_type,
    evaluate::{Failures, evaluate, evaluate_condition, evaluate_where},
    plan::ViewPlan,
    values::Values,
};

/// Buffers that are reused from batch to batch.
#[derive(Default)]
pub(super) struct Scratch {
    /// One entry per record with a valid event time.
    record_times: Vec<RecordTime>,
    /// For each remaining row, the index of its record and of its time.
    rows: Vec<(u32, u32)>,
    groups: Vec<u32>,
    /// The keys of all rows that have a group, concatenated, and for each row the hash and the end
    /// of its key.
    keys: Vec<u8>,
    hashes: Vec<(u64, usize)>,
}

/// An aggregate's FILTER and argument for each row.
struct Arguments {
    filter: Option<BooleanArray>,
    values: Option<ArrayRef>,
}

impl Uncommitted {
    /// Applies a batch of decoded records: `batch` has one row per record.
    pub(super) fn apply_batch(
        &mut self,
        db: &ShardDb,
        records: &[Record<'_>],
        batch: RecordBatch,
        scratch: &mut Scratch,
    ) -> Result<(), Error> {
        let batch = self.check_event_times(records, batch, scratch)?;
        let batch = self.filter(records, batch, scratch)?;
        self.aggregate(db, records, &batch, scratch)
    }

    /// Checks event times and advances the watermark, record by record. Returns the remaining rows.
    fn check_event_times(
        &mut self,
        records: &[Record<'_>],
        batch: RecordBatch,
        scratch: &mut Scratch,
    ) -> Result<RecordBatch, Error> {
        let Scratch { record_times, rows, .. } = scratch;
        record_times.clear();
        rows.clear();
        let times = batch.column(self.rules.event_time);
        let Some(times) = times.as_primitive_opt::<TimestampMicrosecondType>() else {
            return Err(self.wrong(format!("the event time is {}", times.data_type())));
        };
        for (index, record) in records.iter().enumerate() {
            if times.is_null(index) {
                self.refuse_time(record, "is NULL".into());
                continue;
            }
            let before = self.applied.watermark;
            let time = times.value(index);
            match self.rules.record_time(
                record.offset,
                record.timestamp_ms,
                time,
                before,
                record_times.last(),
            ) {
                Ok(record_time) => {
                    self.applied.watermark = record_time.after;
                    self.applied.max_event_time = self.applied.max_event_time.max(record_time.time);
                    rows.push((index as u32, record_times.len() as u32));
                    record_times.push(record_time);
                }
                Err(invalid) => self.refuse_invalid_time(record, EventTime(time), invalid),
            }
        }
        if rows.len() == records.len() {
            return Ok(batch);
        }
        let mut kept = vec![false; records.len()];
        rows.iter().for_each(|(record, _)| kept[*record as usize] = true);
        self.keep(&batch, &BooleanArray::from(kept))
    }

    /// Applies WHERE. Returns the remaining rows.
    fn filter(
        &mut self,
        records: &[Record<'_>],
        batch: RecordBatch,
        scratch: &mut Scratch,
    ) -> Result<RecordBatch, Error> {
        let Some(expression) = self.plan.filter.clone() else { return Ok(batch) };
        let mut failures = Failures::new();
        let kept = evaluate_condition(expression.as_ref(), &batch, &mut failures);
        let kept = kept.map_err(|detail| self.wrong(detail))?;
        for (row, reason) in &failures {
            let record = &records[scratch.rows[*row as usize].0 as usize];
            self.refuse(record, Stage::Filter, &format!("WHERE: {reason}"));
        }
        let kept = if kept.null_count() > 0 { prep_null_mask_filter(&kept) } else { kept };
        let (all, passed) = (kept.len(), kept.true_count());
        self.applied.tallies.filtered += (all - passed - failures.len()) as u64;
        if passed == all {
            return Ok(batch);
        }
        let mut place = 0;
        scratch.rows.retain(|_| {
            place += 1;
            kept.value(place - 1)
        });
        self.keep(&batch, &kept)
    }

    fn keep(&self, batch: &RecordBatch, kept: &BooleanArray) -> Result<RecordBatch, Error> {
        let predicate = FilterBuilder::new(kept).optimize().build();
        predicate.filter_record_batch(batch).map_err(|error| self.wrong(error.to_string()))
    }

    /// Groups the rows and updates the states of their groups.
    fn aggregate(
        &mut self,
        db: &ShardDb,
        records: &[Record<'_>],
        batch: &RecordBatch,
        scratch: &mut Scratch,
    ) -> Result<(), Error> {
        let plan = std::sync::Arc::clone(&self.plan);
        let mut failures = Failures::new();
        let keys = keys(&plan, batch, &mut failures).map_err(|detail| self.wrong(detail))?;
        let arguments =
            arguments(&plan, batch, &mut failures).map_err(|detail| self.wrong(detail))?;
        let keys = plan
            .keys
            .iter()
            .zip(&keys)
            .map(|(key, values)| self.typed(values, key.data_type, &key.name));
        let keys = keys.collect::<Result<Vec<_>, Error>>()?;
        let values = plan.aggregates.iter().zip(&arguments).map(|(aggregate, arguments)| {
            let typed = aggregate.input_type.zip(arguments.values.as_ref());
            typed.map(|(data_type, values)| self.typed(values, data_type, "argument")).transpose()
        });
        let values = values.collect::<Result<Vec<_>, Error>>()?;

        self.group(db, records, &keys, &failures, scratch)?;
        for (place, (values, arguments)) in values.iter().zip(&arguments).enumerate() {
            let states = self.groups.states();
            states.update(place, &scratch.groups, values.as_ref(), arguments.filter.as_ref());
        }
        Ok(())
    }

    /// Finds and loads the group of each row that is neither late nor failed. `columns` are the key
    /// columns.
    fn group(
        &mut self,
        db: &ShardDb,
        records: &[Record<'_>],
        columns: &[Values<'_>],
        failures: &Failures,
        scratch: &mut Scratch,
    ) -> Result<(), Error> {
        let Scratch { record_times, rows, groups, keys, hashes } = scratch;
        groups.clear();
        keys.clear();
        hashes.clear();
        let has_windows = self.rules.has_windows();
        let mut window_key = Vec::new();
        let mut window_start = None;
        for (row, (record, record_time)) in rows.iter().enumerate() {
            let record_time = &record_times[*record_time as usize];
            if !failures.is_empty()
                && let Some(reason) = failures.get(&(row as u32))
            {
                self.refuse(&records[*record as usize], Stage::Expression, reason);
                groups.push(NO_GROUP);
                continue;
            }
            if record_time.late {
                self.refuse_late(&records[*record as usize], record_time);
                groups.push(NO_GROUP);
                continue;
            }
            let start = keys.len();
            columns.iter().for_each(|values| values.encode_key(row, keys));
            if has_windows {
                if window_start != Some(record_time.window_start) {
                    window_start = Some(record_time.window_start);
                    window_key.clear();
                    key::encode(KeyPart::Timestamp(record_time.window_start), &mut window_key);
                }
                keys.extend_from_slice(&window_key);
            }
            hashes.push((self.groups.hash(&keys[start..]), keys.len()));
            groups.push(0);
        }

        // A separate loop, so that several lookups wait for memory at the same time.
        let any_stored = self.committed.tallies.applied > 0;
        // Each stored row was updated by a record whose event time lies in its window. So no row of
        // a later window is stored.
        let newest = self.committed.max_event_time.0;
        let mut start = 0;
        let live = groups.iter_mut().zip(rows.iter()).filter(|(group, _)| **group != NO_GROUP);
        for ((group, (_, record_time)), (hash, end)) in live.zip(hashes.iter()) {
            let stored = any_stored
                && !(has_windows && record_times[*record_time as usize].window_start > newest);
            *group = self.groups.group(&keys[start..*end], *hash, stored);
            start = *end;
        }
        self.groups.load(db, &self.plan)?;

        let mut applied = 0;
        let mut renewed = hashbrown::HashMap::<u32, u32, foldhash::fast::FixedState>::default();
        let rows_renew = self.rules.rows_renew();
        for (group, (_, record_time)) in groups.iter_mut().zip(rows.iter()) {
            if *group == NO_GROUP {
                continue;
            }
            let record_time = &record_times[*record_time as usize];
            if rows_renew {
                while let Some(newer) = renewed.get(group) {
                    *group = *newer;
                }
                let horizon = self.rules.horizon(record_time.after);
                if let Some(newer) = self.groups.renew(*group, horizon) {
                    renewed.insert(*group, newer);
                    *group = newer;
                }
            }
            self.groups.touch(*group, record_time.offset, record_time.row_time);
            applied += 1;
        }
        self.applied.tallies.applied += applied;
        Ok(())
    }

    fn typed<'a>(
        &self,
        values: &'a ArrayRef,
        data_type: DataType,
        what: &str,
    ) -> Result<Values<'a>, Error> {
        Values::of(values, data_type)
            .ok_or_else(|| self.wrong(format!("{what} is {}, not {data_type}", values.data_type())))
    }

    fn wrong(&self, detail: String) -> Error {
        Error::Plan { view: self.plan.view.clone(), detail }
    }

    #[cold]
    fn refuse_time(&mut self, record: &Record<'_>, what: String) {
        let column = &self.plan.stream.columns[self.plan.stream.event_time].name;
        let reason = format!("column {column} {what}");
        self.refuse(record, Stage::Time, &reason);
    }

    #[cold]
    fn refuse_invalid_time(&mut self, record: &Record<'_>, time: EventTime, invalid: InvalidTime) {
        let what = match invalid {
            InvalidTime::OutOfRange => "is outside of the years 0000 to 9999".to_owned(),
            InvalidTime::NoWindow => {
                format!("is {time}: its window begins or ends beyond what time can express")
            }
            InvalidTime::Future => format!(
                "is {time}, more than {} s ahead of the record's own timestamp {}",
                self.rules.max_future() / 1_000_000,
                EventTime::from_millis(record.timestamp_ms)
            ),
        };
        self.refuse_time(record, what);
    }

    #[cold]
    fn refuse_late(&mut self, record: &Record<'_>, record_time: &RecordTime) {
        let column = &self.plan.stream.columns[self.plan.stream.event_time].name;
        let (time, before) = (record_time.time, record_time.before);
        let reason = format!("column {column} is {time}, too far behind the watermark {before}");
        self.refuse(record, Stage::Late, &reason);
    }
}

fn keys(
    plan: &ViewPlan,
    batch: &RecordBatch,
    failures: &mut Failures,
) -> Result<Vec<ArrayRef>, String> {
    let mut keys = Vec::with_capacity(plan.keys.len());
    for key in &plan.keys {
        let data_type = arrow_type(key.data_type);
        let values = named(failures, &key.name, |failures| {
            evaluate(key.expression.as_ref(), batch, &data_type, failures)
        });
        keys.push(values?);
    }
    Ok(keys)
}

fn arguments(
    plan: &ViewPlan,
    batch: &RecordBatch,
    failures: &mut Failures,
) -> Result<Vec<Arguments>, String> {
    let mut all = Vec::with_capacity(plan.aggregates.len());
    for (place, aggregate) in plan.aggregates.iter().enumerate() {
        let name = || format!("aggregate {}", place + 1);
        let filter = aggregate.filter.as_ref().map(|filter| {
            let name = format!("FILTER of {}", name());
            named(failures, &name, |failures| evaluate_condition(filter.as_ref(), batch, failures))
        });
        let filter = filter.transpose()?;
        let argument = aggregate.argument.as_ref().zip(aggregate.input_type);
        let values = argument.map(|(argument, data_type)| {
            let data_type = arrow_type(data_type);
            named(failures, &name(), |failures| match &filter {
                None => evaluate(argument.as_ref(), batch, &data_type, failures),
                Some(filter) => {
                    evaluate_where(argument.as_ref(), filter, batch, &data_type, failures)
                }
            })
        });
        all.push(Arguments { filter, values: values.transpose()? });
    }
    Ok(all)
}

/// Prefixes the reason of each new failure with `name`.
fn named<T>(
    failures: &mut Failures,
    name: &str,
    evaluate: impl FnOnce(&mut Failures) -> Result<T, String>,
) -> Result<T, String> {
    let mut new = Failures::new();
    let result = evaluate(&mut new);
    for (row, reason) in new {
        failures.entry(row).or_insert_with(|| format!("{name}: {reason}"));
    }
    result
}
