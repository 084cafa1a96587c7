//! A compaction filter that removes expired rows.

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
/// Commits are not fsynced, so a power cut may leave the database at an older commit with an older
/// horizon, and the processor reads the log again from there. Under that older horizon a row may
/// still be alive that a later commit expired: readers see the row, and a record that reaches it
/// must find it instead of starting a new one. Compaction writes fsynced files, which survive the
/// power cut. Compaction must therefore not remove rows that only a lost commit expired.
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
        // A row that cannot be decoded is kept: it has a newer form, or a reader must report the
        // damage.
        match split_row(value) {
            Some((header, _)) if expired(header.time, self.horizon) => CompactionDecision::Remove,
            Some(_) | None => CompactionDecision::Keep,
        }
    }

    fn name(&self) -> &CStr {
        c"headwater.expiry"
    }
}
