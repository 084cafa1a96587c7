//! A topic's batches in the database.

use headwater_log::Error;
use headwater_types::{Offset, PartitionId};
use rocksdb::{ColumnFamily, DB, DBRawIterator, ErrorKind, ReadOptions};

use crate::{keys::BatchKey, partition::Topic};

impl Topic {
    pub(crate) fn family<'a>(&self, db: &'a DB) -> Result<&'a ColumnFamily, Error> {
        db.cf_handle(&self.family)
            .ok_or_else(|| self.corrupt(PartitionId(0), Offset::ZERO, "its column family is gone"))
    }

    /// An iterator over the batches of one partition.
    pub(crate) fn batches<'a>(
        &self,
        db: &'a DB,
        partition: PartitionId,
    ) -> Result<DBRawIterator<'a>, Error> {
        let mut options = ReadOptions::default();
        // A batch has a checksum of its own. Walking it verifies the checksum and says which
        // offsets it has, which is compared with its key.
        options.set_verify_checksums(false);
        options.set_iterate_lower_bound(BatchKey::lower(partition.0, Offset::ZERO));
        options
            .set_iterate_upper_bound(BatchKey::lower(partition.0.saturating_add(1), Offset::ZERO));
        Ok(db.raw_iterator_cf_opt(self.family(db)?, options))
    }

    /// The key at which the iterator stands; `None` behind the last one.
    pub(crate) fn key_at(
        &self,
        batches: &DBRawIterator<'_>,
        partition: PartitionId,
    ) -> Result<Option<BatchKey>, Error> {
        let Some(key) = batches.key() else {
            return match batches.status() {
                Ok(()) => Ok(None),
                Err(error) => Err(self.unreadable(partition, Offset::ZERO, error)),
            };
        };
        match BatchKey::decode(key) {
            Some(key) => Ok(Some(key)),
            None => Err(self.corrupt(
                partition,
                Offset::ZERO,
                format!("a batch lies under the foreign key {key:02x?}"),
            )),
        }
    }

    /// An error of reading.
    pub(crate) fn unreadable(
        &self,
        partition: PartitionId,
        offset: Offset,
        error: rocksdb::Error,
    ) -> Error {
        if error.kind() == ErrorKind::Corruption {
            return self.corrupt(partition, offset, error.into_string());
        }
        Error::Unavailable(error.into())
    }
}
