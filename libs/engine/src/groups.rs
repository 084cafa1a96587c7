//! The groups that are in memory: a write-back cache of the shard database.
//!
//! A group that a record touches for the first time is loaded, stays while records touch it, and is
//! written once per commit, in the order of the keys. After a commit it is kept as long as there is
//! room. What is kept or forgotten never shows in what is stored.

use std::hash::{BuildHasher, Hasher};

use foldhash::fast::RandomState;
use hashbrown::{HashTable, hash_table};
use headwater_state::{RowHeader, ShardDb, decode_row, encode_header};
use headwater_types::{EventTime, Offset};

use crate::{Error, aggregate::States, plan::ViewPlan, read::key_text};

/// What a group's place in the table and its growth take besides its key and states.
const OVERHEAD: usize = 2 * size_of::<Entry>();

pub(crate) struct Groups {
    table: HashTable<Entry>,
    hasher: RandomState,
    /// The keys of all groups, one after the other.
    keys: Vec<u8>,
    heads: Vec<Head>,
    states: States,
    /// Groups that must be loaded before a record may touch them.
    unloaded: Vec<u32>,
    /// Groups that differ from what is stored; some may have been replaced since.
    dirty: Vec<u32>,
    dirty_bytes: usize,
    /// What texts took at the last commit.
    committed_text_bytes: usize,
    rows: Rows,
}

struct Entry {
    /// Half of the key's hash, so that hardly any other key is looked at.
    half_hash: u32,
    group: u32,
}

/// What is known of a group besides its states.
#[derive(Clone, Copy)]
struct Head {
    hash: u64,
    key_start: usize,
    key_len: u32,
    mark: Mark,
    /// As in the row's header; [`EventTime::MIN`] while no record has touched the group.
    time: EventTime,
    last_offset: Offset,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Clean,
    Dirty,
    /// The key has another group now.
    Replaced,
}

/// Rows in the form in which they are committed.
#[derive(Default)]
struct Rows {
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
            rows: Rows::default(),
        }
    }

    /// Memory that the groups take, roughly.
    pub(crate) fn bytes(&self) -> usize {
        self.heads.len() * self.group_bytes() + self.keys.len() + self.states.text_bytes()
    }

    /// The part of it that the next commit writes.
    pub(crate) fn dirty_bytes(&self) -> usize {
        self.dirty_bytes + self.states.text_bytes().saturating_sub(self.committed_text_bytes)
    }

    fn group_bytes(&self) -> usize {
        size_of::<Head>() + OVERHEAD + self.states.group_bytes()
    }

    pub(crate) fn states(&mut self) -> &mut States {
        &mut self.states
    }

    /// The group of a key. `stored` says that the database may know it.
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
                // Memory ends long before 2^32 groups do.
                let group = heads.len() as u32;
                place.insert(Entry { half_hash, group });
                heads.push(Head::new(hash, keys.len(), key.len() as u32));
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

    /// Loads the groups that [`Groups::group`] has made since, as far as they are stored.
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

    /// Lets a record touch a group that is loaded.
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

    /// The group that a record touches instead of this one, if what is stored under the key has
    /// expired: one that starts from nothing.
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
        self.heads.push(Head::new(old.hash, old.key_start, old.key_len));
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

    /// Says that what [`Groups::rows`] gave is stored now. Keeps at most about this many bytes.
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

impl Head {
    fn new(hash: u64, key_start: usize, key_len: u32) -> Self {
        let (time, last_offset) = (EventTime::MIN, Offset::ZERO);
        Self { hash, key_start, key_len, mark: Mark::Clean, time, last_offset }
    }

    #[inline]
    fn key<'a>(&self, keys: &'a [u8]) -> &'a [u8] {
        &keys[self.key_start..self.key_start + self.key_len as usize]
    }
}

/// The half that the table does not begin its search with.
fn half(hash: u64) -> u32 {
    (hash >> 16) as u32
}

/// Sorts as the key does, up to its 17th byte.
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
