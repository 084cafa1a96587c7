//! The groups in memory: a write-back cache of the shard database.
//!
//! The first record of a group loads it. A commit writes each changed group once, in the order of
//! the keys. After a commit, groups stay in memory while there is room. What stays or is evicted
//! never affects what is stored.

use std::hash::{BuildHasher, Hasher};

use foldhash::fast::RandomState;
use hashbrown::{HashTable, hash_table};
use headwater_state::{RowHeader, ShardDb, decode_row, encode_header};
use headwater_types::{EventTime, Offset};

use crate::{Error, aggregate::States, plan::ViewPlan, read::key_text};

/// Bytes of a group in the hash table and its slack, besides its key and states.
const OVERHEAD: usize = 2 * size_of::<Entry>();

pub(crate) struct Groups {
    table: HashTable<Entry>,
    hasher: RandomState,
    /// The keys of all groups, one after the other.
    keys: Vec<u8>,
    heads: Vec<GroupHead>,
    states: States,
    /// Groups that must be loaded before a record may touch them.
    unloaded: Vec<u32>,
    /// Groups that differ from their stored rows; some may have been replaced since.
    dirty: Vec<u32>,
    dirty_bytes: usize,
    /// The size of texts at the last commit.
    committed_text_bytes: usize,
    rows: EncodedRows,
}

struct Entry {
    /// Half of the key's hash, so that a lookup rarely compares another key.
    half_hash: u32,
    group: u32,
}

/// A group's data besides its states.
#[derive(Clone, Copy)]
struct GroupHead {
    hash: u64,
    key_start: usize,
    key_len: u32,
    mark: Mark,
    /// The time in the row's header; [`EventTime::MIN`] until a record updates the group.
    time: EventTime,
    last_offset: Offset,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Clean,
    Dirty,
    /// Another group has taken over the key.
    Replaced,
}

/// Rows in their stored form.
#[derive(Default)]
struct EncodedRows {
    /// The first bytes of the key, for sorting, and the group.
    order: Vec<(u128, u32)>,
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Groups {
    pub(crate) fn new(plan: &ViewPlan) -> Self {
        Self {
            table: HashTable::new(),
            hasher: RandomState::default(),
            keys: Vec::new(),
            heads: Vec::new(),
            states: States::new(&plan.aggregates),
            unloaded: Vec::new(),
            dirty: Vec::new(),
            dirty_bytes: 0,
            committed_text_bytes: 0,
            rows: EncodedRows::default(),
        }
    }

    /// The approximate memory of all groups.
    pub(crate) fn bytes(&self) -> usize {
        self.heads.len() * self.group_bytes() + self.keys.len() + self.states.text_bytes()
    }

    /// The approximate memory of the groups that the next commit writes.
    pub(crate) fn dirty_bytes(&self) -> usize {
        self.dirty_bytes + self.states.text_bytes().saturating_sub(self.committed_text_bytes)
    }

    fn group_bytes(&self) -> usize {
        size_of::<GroupHead>() + OVERHEAD + self.states.group_bytes()
    }

    pub(crate) fn states(&mut self) -> &mut States {
        &mut self.states
    }

    /// The group of a key. `stored` says whether the database may have a row for it.
    #[inline]
    pub(crate) fn group(&mut self, key: &[u8], hash: u64, stored: bool) -> u32 {
        let Self { table, keys, heads, .. } = self;
        let half_hash = half(hash);
        let found = |entry: &Entry| {
            entry.half_hash == half_hash && heads[entry.group as usize].key(keys) == key
        };
        match table.entry(hash, found, |entry| heads[entry.group as usize].hash) {
            hash_table::Entry::Occupied(entry) => entry.get().group,
            hash_table::Entry::Vacant(place) => {
                // Memory runs out long before 2^32 groups.
                let group = heads.len() as u32;
                place.insert(Entry { half_hash, group });
                heads.push(GroupHead::new(hash, keys.len(), key.len() as u32));
                keys.extend_from_slice(key);
                self.states.push();
                if stored {
                    self.unloaded.push(group);
                }
                group
            }
        }
    }

    #[inline]
    pub(crate) fn hash(&self, key: &[u8]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(key);
        hasher.finish()
    }

    /// Loads the stored rows of the groups that [`Groups::group`] has added since the last call.
    pub(crate) fn load(&mut self, db: &ShardDb, plan: &ViewPlan) -> Result<(), Error> {
        if self.unloaded.is_empty() {
            return Ok(());
        }
        let Self { keys, heads, states, unloaded, .. } = self;
        unloaded.sort_unstable_by_key(|group| heads[*group as usize].key(keys));
        let wanted: Vec<&[u8]> =
            unloaded.iter().map(|group| heads[*group as usize].key(keys)).collect();
        let failed = |source| Error::State { view: plan.view.clone(), source };
        let mut result = Ok(());
        let loaded = db.load(&wanted, |index, row| {
            if result.is_ok() {
                let group = unloaded[index] as usize;
                result = decode_row(row).map_err(failed).and_then(|(header, payload)| {
                    heads[group].time = header.time;
                    heads[group].last_offset = header.last_offset;
                    states.merge(group, payload).ok_or_else(|| damaged(plan, wanted[index]))
                });
            }
        });
        loaded.map_err(failed).and(result)?;
        unloaded.clear();
        Ok(())
    }

    /// Marks a loaded group as changed by a record.
    #[inline]
    pub(crate) fn touch(&mut self, group: u32, offset: Offset, time: EventTime) {
        let head = &mut self.heads[group as usize];
        head.time = head.time.max(time);
        head.last_offset = offset;
        if head.mark == Mark::Clean {
            head.mark = Mark::Dirty;
            self.dirty.push(group);
            self.dirty_bytes += head.key_len as usize + self.group_bytes();
        }
    }

    /// If the stored row of this group has expired, adds an empty group that takes its place.
    pub(crate) fn renew(&mut self, group: u32, horizon: EventTime) -> Option<u32> {
        let old = self.heads[group as usize];
        if old.time == EventTime::MIN || old.time > horizon {
            return None;
        }
        let renewed = self.heads.len() as u32;
        if let Some(entry) = self.table.find_mut(old.hash, |entry| entry.group == group) {
            entry.group = renewed;
        }
        self.heads[group as usize].mark = Mark::Replaced;
        self.heads.push(GroupHead::new(old.hash, old.key_start, old.key_len));
        self.states.push();
        Some(renewed)
    }

    /// Key and row of every group that changed, in the order of the keys.
    pub(crate) fn rows(&mut self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let Self { keys, heads, states, dirty, rows, .. } = self;
        rows.bytes.clear();
        rows.ends.clear();
        rows.order.clear();
        let changed = dirty.iter().filter(|group| heads[**group as usize].mark == Mark::Dirty);
        rows.order
            .extend(changed.map(|group| (first_bytes(heads[*group as usize].key(keys)), *group)));
        let key = |group: u32| heads[group as usize].key(keys);
        rows.order.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| key(a.1).cmp(key(b.1))));
        for (_, group) in &rows.order {
            let head = &heads[*group as usize];
            encode_header(
                &RowHeader { time: head.time, last_offset: head.last_offset },
                &mut rows.bytes,
            );
            states.encode(*group as usize, &mut rows.bytes);
            rows.ends.push(rows.bytes.len());
        }
        let (keys, heads, rows) = (&*keys, &*heads, &*rows);
        rows.order.iter().enumerate().map(move |(index, (_, group))| {
            let start = if index == 0 { 0 } else { rows.ends[index - 1] };
            (heads[*group as usize].key(keys), &rows.bytes[start..rows.ends[index]])
        })
    }

    /// Tells that the result of [`Groups::rows`] is stored. Keeps at most about `limit` bytes in
    /// memory.
    pub(crate) fn committed(&mut self, limit: usize) {
        for group in self.dirty.drain(..) {
            let head = &mut self.heads[group as usize];
            if head.mark == Mark::Dirty {
                head.mark = Mark::Clean;
            }
        }
        self.dirty_bytes = 0;
        if self.bytes() > limit {
            self.table.clear();
            self.keys.clear();
            self.heads.clear();
            self.states.clear();
        }
        self.committed_text_bytes = self.states.text_bytes();
    }
}

impl GroupHead {
    fn new(hash: u64, key_start: usize, key_len: u32) -> Self {
        let (time, last_offset) = (EventTime::MIN, Offset::ZERO);
        Self { hash, key_start, key_len, mark: Mark::Clean, time, last_offset }
    }

    #[inline]
    fn key<'a>(&self, keys: &'a [u8]) -> &'a [u8] {
        &keys[self.key_start..self.key_start + self.key_len as usize]
    }
}

/// The half of the hash by which the table does not select its bucket.
fn half(hash: u64) -> u32 {
    (hash >> 16) as u32
}

/// The first 16 bytes as a number with the same order.
#[inline]
fn first_bytes(key: &[u8]) -> u128 {
    if let Some(first) = key.first_chunk() {
        return u128::from_be_bytes(*first);
    }
    let mut first = [0; 16];
    first[..key.len()].copy_from_slice(key);
    u128::from_be_bytes(first)
}

#[cold]
fn damaged(plan: &ViewPlan, key: &[u8]) -> Error {
    let detail = "its aggregates are not what the plan has";
    Error::Row { view: plan.view.clone(), key: key_text(plan, key), detail }
}
