//! One generation at the fence: its checkpoints, and its rows in key order.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context as _, bail, ensure};
use headwater_control::{CheckpointId, GenerationEntry, StatusBoard};
use headwater_engine::{
    plan::{OutputColumn, ViewPlan},
    read::{MergedScan, OutputBatch},
};
use headwater_proto::common::v1::Value;
use headwater_state::{Identity, KeyRange, ShardReader, Store, layout};
use headwater_types::{DataType, GenerationId, Offset, PartitionId};

use super::cell::{Cell, key_values};

/// Rows that are held of each side at once.
const BATCH_ROWS: usize = 1024;

/// A generation whose checkpoints can be opened.
pub(super) struct Side {
    generation: GenerationId,
    view_sql: String,
    stream_sql: String,
    checkpoints: Vec<FencedCheckpoint>,
}

struct FencedCheckpoint {
    partition: PartitionId,
    fence: Offset,
    place: CheckpointLocation,
}

/// Where a checkpoint lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CheckpointLocation {
    /// On this machine's disk.
    Directory(PathBuf),
    /// In the store: the URL of its manifest.
    Stored(String),
}

/// The checkpoints that were fetched from the store for a comparison. Dropping it removes them.
pub(super) struct FetchedCheckpoints<'a> {
    store: Option<&'a Store>,
    scratch: &'a Path,
    stop: &'a AtomicBool,
}

impl<'a> FetchedCheckpoints<'a> {
    pub(super) fn new(store: Option<&'a Store>, scratch: &'a Path, stop: &'a AtomicBool) -> Self {
        Self { store, scratch, stop }
    }

    /// The directory of a checkpoint. Blocks until the checkpoint is there.
    fn directory(
        &self,
        place: &CheckpointLocation,
        identity: &Identity,
    ) -> anyhow::Result<PathBuf> {
        let url = match place {
            CheckpointLocation::Directory(path) => return Ok(path.clone()),
            CheckpointLocation::Stored(url) => url,
        };
        ensure!(!self.stop.load(Ordering::Relaxed), "it was stopped");
        let store = self.store.context("there is no store of checkpoints")?;
        let into = layout::shard_dir(self.scratch, identity.generation, identity.partition);
        // An earlier attempt may have left files.
        layout::remove(&into)?;
        tokio::runtime::Handle::current().block_on(async {
            let manifest = store.manifest(url).await?;
            ensure!(
                manifest.identity() == *identity,
                "{url} is a checkpoint of {}, not of {identity}",
                manifest.identity()
            );
            store.fetch(&manifest, &into).await.with_context(|| {
                let below = self.scratch.display();
                format!(
                    "the checkpoint {url} cannot be fetched to {below}, which is below server.data"
                )
            })
        })?;
        Ok(into)
    }
}

impl Drop for FetchedCheckpoints<'_> {
    fn drop(&mut self) {
        if let Err(error) = layout::remove(self.scratch) {
            tracing::warn!(%error, "the checkpoints that were fetched for a comparison stay on the disk");
        }
    }
}

impl Side {
    pub(super) fn new(
        entry: &GenerationEntry,
        board: &StatusBoard,
        fence: &BTreeMap<PartitionId, Offset>,
        id: &CheckpointId,
        store: Option<&Store>,
    ) -> anyhow::Result<Self> {
        let checkpoints = fence.iter().map(|(&partition, &fence)| {
            let checkpoint = board.checkpoint(entry.id, partition, id).with_context(|| {
                format!("generation {} has no checkpoint of partition {partition}", entry.id)
            })?;
            Ok(FencedCheckpoint {
                partition,
                fence,
                place: location_of(&checkpoint.location, store)?,
            })
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
        let checkpoints = checkpoints.map(|(partition, fence, path)| FencedCheckpoint {
            partition,
            fence,
            place: CheckpointLocation::Directory(path),
        });
        let (view_sql, stream_sql) = (view_sql.to_owned(), stream_sql.to_owned());
        Self { generation, view_sql, stream_sql, checkpoints: checkpoints.into() }
    }

    #[cfg(test)]
    pub(super) fn with_fence(mut self, fence: Offset) -> Self {
        self.checkpoints.iter_mut().for_each(|checkpoint| checkpoint.fence = fence);
        self
    }

    pub(super) fn plan(&self) -> anyhow::Result<ViewPlan> {
        Ok(headwater_sql::compile(&self.stream_sql, &self.view_sql)?)
    }

    /// Opens every checkpoint, and makes sure that each is of this shard and exactly at the fence.
    pub(super) fn open(
        &self,
        fetched: &FetchedCheckpoints<'_>,
    ) -> anyhow::Result<Vec<ShardReader>> {
        let readers = self.checkpoints.iter().map(|checkpoint| {
            let FencedCheckpoint { partition, fence, place } = checkpoint;
            let identity = Identity { generation: self.generation, partition: *partition };
            let path = fetched.directory(place, &identity)?;
            let reader = ShardReader::open_checkpoint(&path, &identity).with_context(|| match place {
                CheckpointLocation::Directory(_) => {
                    "a checkpoint is not on this machine's disk; if the processors run on others, set \
                     checkpoints.url for them and for the coordinator"
                }
                CheckpointLocation::Stored(_) => "a checkpoint from the store cannot be read",
            })?;
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

/// Where a checkpoint lies, by the location that the processor has reported.
fn location_of(location: &str, store: Option<&Store>) -> anyhow::Result<CheckpointLocation> {
    match store {
        Some(store) if store.has(location) => Ok(CheckpointLocation::Stored(location.to_owned())),
        Some(store) if !location.starts_with("file://") || location.ends_with(".json") => bail!(
            "the checkpoint {location:?} does not lie in the store at {}: set checkpoints.url to the same URL for the \
             coordinator and all processors",
            store.url()
        ),
        None if !location.starts_with("file://") || location.ends_with(".json") => bail!(
            "the checkpoint {location:?} lies in a store, and the coordinator knows of none: set checkpoints.url for \
             it as it is set for the processors"
        ),
        Some(_) | None => path_of(location).map(CheckpointLocation::Directory),
    }
}

/// The directory that a `file://` URL names.
fn path_of(location: &str) -> anyhow::Result<PathBuf> {
    let path = location.strip_prefix("file://").unwrap_or(location);
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

    /// The columns that are not just a key, with their indexes.
    pub(super) fn values(&self) -> impl Iterator<Item = (usize, &'a OutputColumn)> + use<'a> {
        self.plan.output.iter().enumerate().filter(|(_, column)| column.key.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_a_directory_or_a_manifest_in_the_store() {
        let directory = |path: &str| CheckpointLocation::Directory(PathBuf::from(path));
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file://{}/store", dir.path().display());
        let store = Store::open(&url).unwrap();
        for store in [None, Some(&store)] {
            let place = |location| location_of(location, store).unwrap();
            assert_eq!(place("file:///data/a b/1"), directory("/data/a b/1"));
            assert_eq!(place("file:///data/a%20b/1%"), directory("/data/a b/1%"));
            for elsewhere in ["s3://bucket/g/0/replays/v-1-a1/7-p.json", "file:///other/7-p.json"] {
                let error = location_of(elsewhere, store).unwrap_err().to_string();
                assert!(error.contains("checkpoints.url") && error.contains(elsewhere), "{error}");
            }
        }
        let manifest = format!("{url}/g/0/replays/v-1-a1/7-p.json");
        assert_eq!(
            location_of(&manifest, Some(&store)).unwrap(),
            CheckpointLocation::Stored(manifest.clone())
        );
        assert!(location_of(&manifest, None).is_err());
    }
}
