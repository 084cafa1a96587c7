//! RocksDB options of shard databases and their readers.

use std::fmt;

use rocksdb::{BlockBasedOptions, ColumnFamilyDescriptor, DBCompressionType, LogLevel};

use crate::expiry::{DurableHorizon, ExpiryFactory};

pub(crate) const ROWS_FAMILY: &str = rocksdb::DEFAULT_COLUMN_FAMILY_NAME;
pub(crate) const OUTBOX_FAMILY: &str = "outbox";

const OUTBOX_WRITE_BUFFER: usize = 2 << 20;
const BLOCK_BYTES: usize = 8 << 10;
const BLOOM_BITS: f64 = 10.0;

/// A block cache, shared by all databases that are opened with it.
#[derive(Clone)]
pub struct Cache(rocksdb::Cache);

impl Cache {
    pub fn new(bytes: usize) -> Self {
        Self(rocksdb::Cache::new_lru_cache(bytes))
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("used_bytes", &self.0.get_usage()).finish()
    }
}

/// Options of a shard's database. Clone one for all shards of a process, so that they share the
/// cache.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether compaction removes expired rows. Readers hide them either way.
    pub expire: bool,
    /// The size of the memtable. A larger one means fewer flushes, but each shard uses that much
    /// memory, and each reader of the shard as much again.
    pub write_buffer_bytes: usize,
    pub cache: Cache,
}

impl Default for Options {
    fn default() -> Self {
        Self { expire: true, write_buffer_bytes: 16 << 20, cache: Cache::new(16 << 20) }
    }
}

impl Options {
    pub(crate) fn database(&self) -> rocksdb::Options {
        let mut options = base();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        // Limits how much of the write-ahead log an open replays while a rarely used outbox never
        // fills its memtable.
        options.set_max_total_wal_size(2 * self.write_buffer_bytes as u64);
        // A shard has one writer, so concurrent inserts gain nothing, and their checks cost time.
        options.set_allow_concurrent_memtable_write(false);
        options
    }

    pub(crate) fn families(&self, horizon: &DurableHorizon) -> [ColumnFamilyDescriptor; 2] {
        let mut rows = self.rows();
        if self.expire {
            rows.set_compaction_filter_factory(ExpiryFactory(horizon.clone()));
        }
        let mut outbox = self.table(OUTBOX_WRITE_BUFFER.min(self.write_buffer_bytes));
        // A queue leaves tombstones behind its head. Compact them away before they slow its
        // readers.
        outbox.add_compact_on_deletion_collector_factory(4096, 2048, 0.5);
        [
            ColumnFamilyDescriptor::new(ROWS_FAMILY, rows),
            ColumnFamilyDescriptor::new(OUTBOX_FAMILY, outbox),
        ]
    }

    /// The column family that a reader opens: rows only.
    pub(crate) fn reader_families(&self) -> [ColumnFamilyDescriptor; 1] {
        [ColumnFamilyDescriptor::new(ROWS_FAMILY, self.rows())]
    }

    fn rows(&self) -> rocksdb::Options {
        self.table(self.write_buffer_bytes)
    }

    fn table(&self, write_buffer: usize) -> rocksdb::Options {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&self.cache.0);
        table.set_block_size(BLOCK_BYTES);
        table.set_bloom_filter(BLOOM_BITS, false);
        // Indexes and filters count against the cache too. Otherwise their memory would grow with
        // the number of shards.
        table.set_cache_index_and_filter_blocks(true);
        table.set_pin_l0_filter_and_index_blocks_in_cache(true);
        table.set_format_version(5);

        let mut options = rocksdb::Options::default();
        options.set_block_based_table_factory(&table);
        options.set_write_buffer_size(write_buffer);
        options.set_max_write_buffer_number(2);
        options.set_compression_type(DBCompressionType::Lz4);
        options
    }
}

/// Options that writer and readers share.
pub(crate) fn base() -> rocksdb::Options {
    let mut options = rocksdb::Options::default();
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_max_background_jobs(2);
    // Secondaries need this: the primary deletes files that they still read, and an open file stays
    // readable.
    options.set_max_open_files(-1);
    options
}
