//! The counts, sums and samples of a comparison.

use headwater_proto::{
    common::v1::Value,
    control::v1::{ColumnDiff, DiffReport, RowDiff},
};

use super::{
    cell::{self, Cell},
    side::Rows,
};

/// The report as far as the comparison has come.
pub(super) struct Tally {
    pub(super) report: DiffReport,
    /// The key columns of both sides are the same.
    pub(super) matched: bool,
    /// The columns that both sides have, in the new order.
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

/// A compensated sum (Neumaier's).
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
    pub(super) fn new(old: &Rows<'_>, new: &Rows<'_>, samples: usize) -> Self {
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

    pub(super) fn both(&mut self, old: &Rows<'_>, new: &Rows<'_>) -> anyhow::Result<()> {
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

    pub(super) fn only_old(&mut self, rows: &Rows<'_>) -> anyhow::Result<()> {
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

    pub(super) fn only_new(&mut self, rows: &Rows<'_>) -> anyhow::Result<()> {
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

    /// Whether there is room for another sample of a row on one side only. Where no row can be
    /// matched, one side comes before the other, and each gets half of the samples.
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

    pub(super) fn finish(mut self) -> DiffReport {
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
