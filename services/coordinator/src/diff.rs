//! The comparison of two generations at the fence, row by row.
//!
//! Both sides are read from their checkpoints, which lie on this machine's disk or are fetched from the store, in key order and a batch at a time, so that memory is
//! bounded and live shards are not touched. Rows are matched by their stored keys; that needs equal key
//! columns. A row is the same if it is equal in every column that both sides have: exact types by value,
//! doubles by their bits.

mod cell;
mod side;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, bail};
use headwater_control::{CheckpointId, ControlState, ReplayEntry, StatusBoard};
use headwater_proto::{
    common::v1::Value,
    control::v1::{ColumnDiff, DiffReport, ReplayOptions, RowDiff, Verdict},
};
use headwater_state::Store;

use crate::context::Context;
use cell::Cell;
use side::{FetchedCheckpoints, Rows, Side};

/// Two sides, ready to be compared.
pub(crate) struct Comparison {
    old: Side,
    new: Side,
    /// Where what is fetched lies.
    scratch: PathBuf,
    store: Option<Store>,
    options: ReplayOptions,
    samples: usize,
}

impl Comparison {
    /// Collects where both sides' checkpoints lie. Reads nothing yet.
    pub(crate) fn prepare(
        context: &Context,
        state: &ControlState,
        board: &StatusBoard,
        replay: &ReplayEntry,
        samples: usize,
    ) -> anyhow::Result<Self> {
        let fence = replay.fence.as_ref().context("the fence is not known")?;
        let id: CheckpointId = replay.checkpoint_id();
        let side = |generation| {
            let entry = state.generations().get(&generation).context("a generation is unknown")?;
            Side::new(entry, board, fence, &id, context.store.as_ref())
        };
        Ok(Self {
            old: side(replay.old)?,
            new: side(replay.new)?,
            // One that was stopped may still be tidying up.
            scratch: context
                .scratch
                .join(format!("{id}-{}", STARTED.fetch_add(1, Ordering::Relaxed))),
            store: context.store.clone(),
            options: replay.options.clone(),
            samples,
        })
    }
}

/// Comparisons that this process has begun.
static STARTED: AtomicU64 = AtomicU64::new(0);

/// Whether the comparison failed for want of a store that may come back.
pub(crate) fn may_succeed_later(error: &anyhow::Error) -> bool {
    let away =
        |cause: &headwater_state::Error| matches!(cause, headwater_state::Error::Store { .. });
    error.chain().any(|cause| cause.downcast_ref().is_some_and(away))
}

/// Compares, until done or told to stop. It computes and reads files, and needs a runtime for the store.
pub(crate) fn compare(
    comparison: &Comparison,
    stop: &Arc<AtomicBool>,
) -> anyhow::Result<(DiffReport, Verdict)> {
    let Comparison { old, new, scratch, store, options, samples } = comparison;
    let (old_plan, new_plan) = (old.plan()?, new.plan()?);
    // Goes after the readers.
    let fetched = FetchedCheckpoints::new(store.as_ref(), scratch, stop);
    let (old_readers, new_readers) = (old.open(&fetched)?, new.open(&fetched)?);
    let mut old_rows = Rows::new(&old_plan, &old_readers)?;
    let mut new_rows = Rows::new(&new_plan, &new_readers)?;
    let mut tally = Tally::new(&old_rows, &new_rows, *samples);
    if !tally.matched {
        tally.report.note = format!(
            "the key columns differ, ({}) before and ({}) now, so no row can be matched: every row counts as only old or \
             only new",
            old_rows.key_types().join(", "),
            new_rows.key_types().join(", ")
        );
    }
    let mut steps: u64 = 0;
    loop {
        steps += 1;
        if steps.is_multiple_of(1024) && stop.load(Ordering::Relaxed) {
            bail!("it was stopped");
        }
        let order = match (old_rows.key()?, new_rows.key()?) {
            (None, None) => break,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(_), Some(_)) if !tally.matched => std::cmp::Ordering::Less,
            (Some(old), Some(new)) => old.cmp(new),
        };
        match order {
            std::cmp::Ordering::Less => {
                tally.only_old(&old_rows)?;
                old_rows.advance();
            }
            std::cmp::Ordering::Greater => {
                tally.only_new(&new_rows)?;
                new_rows.advance();
            }
            std::cmp::Ordering::Equal => {
                tally.both(&old_rows, &new_rows)?;
                old_rows.advance();
                new_rows.advance();
            }
        }
    }
    let report = tally.finish();
    let verdict = verdict(&report, options);
    Ok((report, verdict))
}

/// What the thresholds say. Shares are of the old generation's rows.
pub(crate) fn verdict(report: &DiffReport, options: &ReplayOptions) -> Verdict {
    let old_rows = report.same + report.changed + report.only_old;
    let share = |rows: u64| match (rows, old_rows) {
        (0, _) => 0.0,
        (_, 0) => f64::INFINITY,
        (rows, old_rows) => rows as f64 / old_rows as f64,
    };
    let limits = [
        (report.changed, options.max_changed),
        (report.only_old, options.max_only_old),
        (report.only_new, options.max_only_new),
    ];
    let (mut fails, mut unsure) = (false, !report.note.is_empty());
    for (rows, limit) in limits {
        match limit {
            Some(limit) => fails |= share(rows) > limit,
            // Nobody said how much of it is fine.
            None => unsure |= rows > 0,
        }
    }
    match (fails, unsure) {
        (true, _) => Verdict::Fail,
        (false, true) => Verdict::Inconclusive,
        (false, false) => Verdict::Pass,
    }
}

/// What was found so far.
struct Tally {
    report: DiffReport,
    /// The key columns of both sides are the same.
    matched: bool,
    /// The columns that both have, in the new order.
    common: Vec<CommonColumn>,
    samples: usize,
    only_samples: [usize; 2],
}

/// A column that both sides have, and how it changed.
struct CommonColumn {
    old: usize,
    new: usize,
    changed: u64,
    numeric: bool,
    sums: [Sum; 2],
    max_delta: f64,
}

/// A sum that hardly loses anything (Neumaier).
#[derive(Clone, Copy, Default)]
struct Sum {
    sum: f64,
    lost: f64,
}

impl Sum {
    fn add(&mut self, value: f64) {
        let sum = self.sum + value;
        self.lost += if self.sum.abs() >= value.abs() {
            (self.sum - sum) + value
        } else {
            (value - sum) + self.sum
        };
        self.sum = sum;
    }

    fn value(self) -> f64 {
        if self.sum.is_finite() { self.sum + self.lost } else { self.sum }
    }
}

impl Tally {
    fn new(old: &Rows<'_>, new: &Rows<'_>, samples: usize) -> Self {
        let matched = old.key_types() == new.key_types();
        let mut common = Vec::new();
        let mut report = DiffReport { key: new.key_names(), ..DiffReport::default() };
        if !matched {
            report.key = old.key_names();
            let others = new.key_names().into_iter().filter(|name| !report.key.contains(name));
            report.key.extend(others.collect::<Vec<_>>());
        }
        for (new_index, column) in new.values() {
            match old.values().find(|(_, candidate)| candidate.name == column.name) {
                Some((old_index, before)) => {
                    let numeric =
                        cell::is_numeric(before.data_type) && cell::is_numeric(column.data_type);
                    report
                        .columns
                        .push(ColumnDiff { column: column.name.clone(), ..ColumnDiff::default() });
                    report.sample_columns.push(column.name.clone());
                    if before.data_type != column.data_type {
                        note(
                            &mut report,
                            &format!(
                                "column {} changes its type from {} to {} and is compared by value",
                                column.name, before.data_type, column.data_type
                            ),
                        );
                    }
                    common.push(CommonColumn {
                        old: old_index,
                        new: new_index,
                        changed: 0,
                        numeric,
                        sums: [Sum::default(); 2],
                        max_delta: 0.0,
                    });
                }
                None => report.columns_only_new.push(column.name.clone()),
            }
        }
        for (_, column) in old.values() {
            if !new.values().any(|(_, candidate)| candidate.name == column.name) {
                report.columns_only_old.push(column.name.clone());
            }
        }
        Self { report, matched, common, samples, only_samples: [0, 0] }
    }

    fn both(&mut self, old: &Rows<'_>, new: &Rows<'_>) -> anyhow::Result<()> {
        let mut changed = false;
        for column in &mut self.common {
            let (before, after) = (old.cell(column.old)?, new.cell(column.new)?);
            let differs = !before.same(&after);
            changed |= differs;
            column.changed += u64::from(differs);
            if column.numeric {
                let (before, after) = (before.number(), after.number());
                column.sums[0].add(before.unwrap_or(0.0));
                column.sums[1].add(after.unwrap_or(0.0));
                if let (true, Some(before), Some(after)) = (differs, before, after) {
                    let delta = (after - before).abs();
                    // NaN on one side is a change that no number measures.
                    column.max_delta =
                        column.max_delta.max(if delta.is_nan() { 0.0 } else { delta });
                }
            }
        }
        match changed {
            false => self.report.same += 1,
            true => {
                self.report.changed += 1;
                if self.report.samples.len() < self.samples {
                    let sample = RowDiff {
                        key: new.key_values()?,
                        old_values: self.values(old, |column| column.old)?,
                        new_values: self.values(new, |column| column.new)?,
                    };
                    self.report.samples.push(sample);
                }
            }
        }
        Ok(())
    }

    fn only_old(&mut self, rows: &Rows<'_>) -> anyhow::Result<()> {
        self.report.only_old += 1;
        if self.room(0) {
            let old_values = self.values(rows, |column| column.old)?;
            self.report.samples.push(RowDiff {
                key: rows.key_values()?,
                old_values,
                new_values: Vec::new(),
            });
        }
        Ok(())
    }

    fn only_new(&mut self, rows: &Rows<'_>) -> anyhow::Result<()> {
        self.report.only_new += 1;
        if self.room(1) {
            let new_values = self.values(rows, |column| column.new)?;
            self.report.samples.push(RowDiff {
                key: rows.key_values()?,
                old_values: Vec::new(),
                new_values,
            });
        }
        Ok(())
    }

    /// Whether another sample of a row on one side only is wanted. Where no row can be matched, one side
    /// comes before the other, and each gets its half.
    fn room(&mut self, side: usize) -> bool {
        let half = if self.matched { self.samples } else { self.samples.div_ceil(2) };
        self.only_samples[side] += 1;
        self.report.samples.len() < self.samples && self.only_samples[side] <= half
    }

    fn values(
        &self,
        rows: &Rows<'_>,
        index: impl Fn(&CommonColumn) -> usize,
    ) -> anyhow::Result<Vec<Value>> {
        self.common.iter().map(|column| rows.cell(index(column)).map(Cell::into_value)).collect()
    }

    fn finish(mut self) -> DiffReport {
        for (column, found) in self.report.columns.iter_mut().zip(&self.common) {
            column.changed = found.changed;
            if found.numeric && self.matched {
                column.sum_old = Some(found.sums[0].value());
                column.sum_new = Some(found.sums[1].value());
                column.max_delta = Some(found.max_delta);
            }
        }
        self.report
    }
}

fn note(report: &mut DiffReport, line: &str) {
    if !report.note.is_empty() {
        report.note.push_str("; ");
    }
    report.note.push_str(line);
}

#[cfg(test)]
mod tests;
