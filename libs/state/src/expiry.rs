//! Removal of expired rows, when RocksDB compacts.

use std::{
    ffi::CStr,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use headwater_types::EventTime;
use rocksdb::{
    CompactionDecision,
    compaction_filter::CompactionFilter,
    compaction_filter_factory::{CompactionFilterContext, CompactionFilterFactory},
};

use crate::{
    meta::{ROWS, expired},
    row::split_row,
};

/// The horizon up to which rows may be removed for good.
///
/// It is the horizon of a commit that is *known to be on the disk*, not that of the last commit.
/// Commits are not fsynced: after a power cut the database may be found at an older one, with an older
/// horizon, and the log is read again from there. By that older horizon a row that only a later commit
/// expired is still alive: it is visible to readers, and a record that reaches it again must find it
/// and not begin a new row. Compaction, however, writes files that are fsynced and hence survive the
/// power cut. So it must not remove what only a lost commit allowed.
#[derive(Clone, Debug)]
pub(crate) struct DurableHorizon(Arc<AtomicI64>);

impl DurableHorizon {
    /// Nothing may be removed yet.
    pub(crate) fn unknown() -> Self {
        Self(Arc::new(AtomicI64::new(EventTime::MIN.0)))
    }

    /// A commit with this horizon is on the disk.
    pub(crate) fn advance(&self, horizon: EventTime) {
        self.0.fetch_max(horizon.0, Ordering::AcqRel);
    }

    pub(crate) fn get(&self) -> EventTime {
        EventTime(self.0.load(Ordering::Acquire))
    }
}

/// Makes one filter per compaction, so that a compaction works with one horizon.
pub(crate) struct ExpiryFactory(pub(crate) DurableHorizon);

impl CompactionFilterFactory for ExpiryFactory {
    type Filter = Expiry;

    fn create(&mut self, _: CompactionFilterContext) -> Expiry {
        Expiry { horizon: self.0.get() }
    }

    fn name(&self) -> &CStr {
        c"headwater.expiry"
    }
}

pub(crate) struct Expiry {
    horizon: EventTime,
}

impl CompactionFilter for Expiry {
    fn filter(&mut self, _level: u32, key: &[u8], value: &[u8]) -> CompactionDecision {
        if self.horizon.known().is_none() || key.first() != Some(&ROWS) {
            return CompactionDecision::Keep;
        }
        // What cannot be read is kept: a newer form, or damage that a reader shall report.
        match split_row(value) {
            Some((header, _)) if expired(header.time, self.horizon) => CompactionDecision::Remove,
            Some(_) | None => CompactionDecision::Keep,
        }
    }

    fn name(&self) -> &CStr {
        c"headwater.expiry"
    }
}
