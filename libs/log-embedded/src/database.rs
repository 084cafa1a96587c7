//! How RocksDB is set up.

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DEFAULT_COLUMN_FAMILY_NAME, LogLevel,
};

use crate::{Options, directory::Directory};

/// Whether a file could not be written since the database was opened.
pub(crate) fn has_failed(db: &DB) -> bool {
    db.property_int_value(rocksdb::properties::BACKGROUND_ERRORS)
        .is_ok_and(|errors| errors != Some(0))
}

pub(crate) fn open_database(
    directory: &Directory,
    options: &Options,
    db_options: &rocksdb::Options,
    cache: &Cache,
) -> Result<DB, rocksdb::Error> {
    let path = directory.database();
    // A database that was never opened has no list.
    let families = match path.join("CURRENT").exists() {
        true => DB::list_cf(db_options, &path)?,
        false => vec![DEFAULT_COLUMN_FAMILY_NAME.to_owned()],
    };
    let families = families
        .into_iter()
        .map(|name| ColumnFamilyDescriptor::new(name, family_options(options, cache)));
    DB::open_cf_descriptors(db_options, path, families)
}

pub(crate) fn database_options(options: &Options) -> rocksdb::Options {
    let mut db_options = rocksdb::Options::default();
    db_options.create_if_missing(true);
    // All column families together.
    db_options.set_db_write_buffer_size(2 * options.write_buffer_bytes);
    db_options.set_max_total_wal_size(4 * options.write_buffer_bytes as u64);
    db_options.set_max_open_files(512);
    db_options.set_max_background_jobs(2);
    db_options.set_bytes_per_sync(1 << 20);
    db_options.set_avoid_unnecessary_blocking_io(true);
    db_options.set_log_level(LogLevel::Warn);
    db_options.set_keep_log_file_num(2);
    db_options.set_max_log_file_size(1 << 20);
    if cfg!(test) {
        db_options.enable_statistics();
    }
    db_options
}

pub(crate) fn family_options(options: &Options, cache: &Cache) -> rocksdb::Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_format_version(5);
    let mut family = rocksdb::Options::default();
    family.set_block_based_table_factory(&table);
    family.set_write_buffer_size(options.write_buffer_bytes);
    family.set_max_write_buffer_number(3);
    // Batches lie in files of their own and are written once; compaction moves only their keys. Its
    // garbage collection would copy the oldest quarter again and again to no end: a trimmed file is
    // removed as a whole.
    family.set_enable_blob_files(true);
    family.set_min_blob_size(256);
    family.set_blob_file_size(256 << 20);
    family
}
