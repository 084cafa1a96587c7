//! How the databases are opened.

use std::fmt;

use rocksdb::{BlockBasedOptions, ColumnFamilyDescriptor, DBCompressionType, LogLevel};

use crate::expiry::{DurableHorizon, ExpiryFactory};

pub(crate) const ROWS_FAMILY: &str = rocksdb::DEFAULT_COLUMN_FAMILY_NAME;
pub(crate) const OUTBOX_FAMILY: &str = "outbox";

const OUTBOX_WRITE_BUFFER: usize = 2 << 20;
const BLOCK_BYTES: usize = 8 << 10;
const BLOOM_BITS: f64 = 10.0;

/// Memory for blocks that were read, shared by all databases that are opened with it.
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

/// How a shard is opened. Clone one for all shards of a process, so that they share the cache.
#[derive(Clone, Debug)]
pub struct Options {
    /// Remove expired rows from the disk. Readers hide them either way.
    pub expire: bool,
    /// Rows written since they were last moved to a file, in bytes. Larger writes less often and costs
    /// that much memory per shard, and as much again per reader of it.
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
        // Bounds what has to be read again at a start when the outbox is hardly used and so never full.
        options.set_max_total_wal_size(2 * self.write_buffer_bytes as u64);
        // One writer: nothing to be gained by concurrent inserts, and their checks cost.
        options.set_allow_concurrent_memtable_write(false);
        options
    }

    pub(crate) fn families(&self, horizon: &DurableHorizon) -> [ColumnFamilyDescriptor; 2] {
        let mut rows = self.rows();
        if self.expire {
            rows.set_compaction_filter_factory(ExpiryFactory(horizon.clone()));
        }
        let mut outbox = self.table(OUTBOX_WRITE_BUFFER.min(self.write_buffer_bytes));
        // A queue leaves deletions behind its head; compact them away before they slow its readers.
        outbox.add_compact_on_deletion_collector_factory(4096, 2048, 0.5);
        [
            ColumnFamilyDescriptor::new(ROWS_FAMILY, rows),
            ColumnFamilyDescriptor::new(OUTBOX_FAMILY, outbox),
        ]
    }

    /// A reader needs the rows only.
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
        // Indexes and filters count against the cache too, or many shards would add up unseen.
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

/// What writer and readers have in common.
pub(crate) fn base() -> rocksdb::Options {
    let mut options = rocksdb::Options::default();
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_max_background_jobs(2);
    // Secondaries must: the primary deletes files that they still read. An open file stays readable.
    options.set_max_open_files(-1);
    options
}
