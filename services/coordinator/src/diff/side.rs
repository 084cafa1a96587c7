//! One generation at the fence: its checkpoints, and its rows in key order.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context as _, bail, ensure};
use headwater_control::{CheckpointId, GenerationEntry, StatusBoard};
use headwater_engine::{
    plan::{OutputColumn, ViewPlan},
    read::{MergedScan, OutputBatch},
};
use headwater_proto::common::v1::Value;
use headwater_state::{Identity, KeyRange, ShardReader};
use headwater_types::{DataType, GenerationId, Offset, PartitionId};

use super::cell::{Cell, key_values};

/// Rows that are held of each side at once.
const BATCH_ROWS: usize = 1024;

/// Where a generation's checkpoints lie.
pub(super) struct Side {
    generation: GenerationId,
    view_sql: String,
    stream_sql: String,
    checkpoints: Vec<Checkpoint>,
}

struct Checkpoint {
    partition: PartitionId,
    fence: Offset,
    path: PathBuf,
}

impl Side {
    pub(super) fn new(
        entry: &GenerationEntry,
        board: &StatusBoard,
        fence: &BTreeMap<PartitionId, Offset>,
        id: &CheckpointId,
    ) -> anyhow::Result<Self> {
        let checkpoints = fence.iter().map(|(&partition, &fence)| {
            let checkpoint = board.checkpoint(entry.id, partition, id).with_context(|| {
                format!("generation {} has no checkpoint of partition {partition}", entry.id)
            })?;
            Ok(Checkpoint { partition, fence, path: path_of(&checkpoint.location)? })
        });
        Ok(Self {
            generation: entry.id,
            view_sql: entry.view_sql.clone(),
            stream_sql: entry.stream_sql.clone(),
            checkpoints: checkpoints.collect::<anyhow::Result<_>>()?,
        })
    }

    #[cfg(test)]
    pub(super) fn at(
        generation: GenerationId,
        view_sql: &str,
        stream_sql: &str,
        checkpoints: [(PartitionId, Offset, PathBuf); 2],
    ) -> Self {
        let checkpoints =
            checkpoints.map(|(partition, fence, path)| Checkpoint { partition, fence, path });
        let (view_sql, stream_sql) = (view_sql.to_owned(), stream_sql.to_owned());
        Self { generation, view_sql, stream_sql, checkpoints: checkpoints.into() }
    }

    #[cfg(test)]
    pub(super) fn with_fence(mut self, fence: Offset) -> Self {
        self.checkpoints.iter_mut().for_each(|checkpoint| checkpoint.fence = fence);
        self
    }

    pub(super) fn plan(&self) -> anyhow::Result<ViewPlan> {
        let view = headwater_sql::parse_view(&self.view_sql)?;
        let stream = headwater_sql::parse_stream(&self.stream_sql)?;
        Ok(headwater_sql::plan_view(&view, &stream)?)
    }

    /// Opens every checkpoint, and makes sure that each is of this shard and exactly at the fence.
    pub(super) fn open(&self) -> anyhow::Result<Vec<ShardReader>> {
        let readers = self.checkpoints.iter().map(|checkpoint| {
            let Checkpoint { partition, fence, path } = checkpoint;
            let identity = Identity { generation: self.generation, partition: *partition };
            let reader = ShardReader::open_checkpoint(path, &identity)?;
            let position = reader.progress().position;
            ensure!(
                position == *fence,
                "the checkpoint of partition {partition} of generation {} is at {position}, not at the fence {fence}",
                self.generation
            );
            Ok(reader)
        });
        readers.collect()
    }
}

/// The directory that a `file://` URL names.
fn path_of(location: &str) -> anyhow::Result<PathBuf> {
    let Some(path) = location.strip_prefix("file://") else {
        bail!(
            "the checkpoint {location:?} does not lie on this machine's disk: it needs a file:// URL"
        );
    };
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let escaped = match (byte, after) {
            (b'%', [high, low, ..]) => {
                let digits = [*high, *low];
                std::str::from_utf8(&digits)
                    .ok()
                    .and_then(|digits| u8::from_str_radix(digits, 16).ok())
            }
            _ => None,
        };
        bytes.push(escaped.unwrap_or(byte));
        if escaped.is_some() {
            rest = &rest[2..];
        }
    }
    Ok(PathBuf::from(
        String::from_utf8(bytes).context("the location of a checkpoint is not UTF-8")?,
    ))
}

/// A side's rows, one after the other.
pub(super) struct Rows<'a> {
    plan: &'a ViewPlan,
    scan: MergedScan<'a>,
    batch: Option<OutputBatch>,
    row: usize,
    exhausted: bool,
}

impl<'a> Rows<'a> {
    pub(super) fn new(plan: &'a ViewPlan, readers: &'a [ShardReader]) -> anyhow::Result<Self> {
        let scans = readers.iter().map(|reader| reader.view().scan(KeyRange::all())).collect();
        Ok(Self { plan, scan: MergedScan::new(plan, scans), batch: None, row: 0, exhausted: false })
    }

    /// The key of the present row; `None` after the last.
    pub(super) fn key(&mut self) -> anyhow::Result<Option<&[u8]>> {
        while !self.exhausted && self.batch.as_ref().is_none_or(|batch| self.row >= batch.len()) {
            self.batch = self.scan.next_batch(BATCH_ROWS)?;
            self.row = 0;
            self.exhausted = self.batch.is_none();
        }
        Ok(self.batch.as_ref().filter(|_| !self.exhausted).map(|batch| batch.key(self.row)))
    }

    pub(super) fn advance(&mut self) {
        self.row += 1;
    }

    pub(super) fn cell(&self, column: usize) -> anyhow::Result<Cell<'_>> {
        let batch = self.batch.as_ref().context("there is no row")?;
        let output = self.plan.output.get(column).context("there is no such column")?;
        Cell::of(batch.batch.column(column), self.row, output.data_type)
    }

    pub(super) fn key_values(&self) -> anyhow::Result<Vec<Value>> {
        let batch = self.batch.as_ref().context("there is no row")?;
        key_values(batch.key(self.row), &self.plan.key_types())
    }

    pub(super) fn key_names(&self) -> Vec<String> {
        self.plan.key_names()
    }

    /// Each key column with its type, as SQL spells it.
    pub(super) fn key_types(&self) -> Vec<String> {
        let types: Vec<DataType> = self.plan.key_types();
        self.plan
            .key_names()
            .into_iter()
            .zip(types)
            .map(|(name, data_type)| format!("{name} {data_type}"))
            .collect()
    }

    /// The columns that are not just a key, and where they stand.
    pub(super) fn values(&self) -> impl Iterator<Item = (usize, &'a OutputColumn)> + use<'a> {
        self.plan.output.iter().enumerate().filter(|(_, column)| column.key.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_a_file_url_with_or_without_escapes() {
        assert_eq!(path_of("file:///data/a b/1").unwrap(), PathBuf::from("/data/a b/1"));
        assert_eq!(path_of("file:///data/a%20b/1%").unwrap(), PathBuf::from("/data/a b/1%"));
        assert!(path_of("s3://bucket/1").unwrap_err().to_string().contains("file:// URL"));
    }
}
