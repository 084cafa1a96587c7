//! A log and a membership with the faults of Kafka's: away, silent about outcomes, with offsets
//! that hold no record.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::FutureExt as _;
use headwater_control::{CONTROL_TOPIC, STATUS_TOPIC};
use headwater_log::{
    Answer, Appended, Assignee, Chunk, EncodedBatch, Ends, Error, FencedWriter, GroupId, Log,
    Member, Membership, MemoryLog, Reader, TopicSpec, WriterId, answered,
};
use headwater_types::{Epoch, Name, Offset, PartitionId};
use parking_lot::Mutex;

/// A log in memory. Every append to its control topic ends with an offset that holds no record, as
/// a transaction does.
pub(super) struct KafkaLikeLog {
    memory: MemoryLog,
    faults: Arc<LogFaults>,
}

#[derive(Default)]
pub(super) struct LogFaults {
    /// The log answers nothing and stores nothing.
    pub(super) away: AtomicBool,
    /// The log goes away as so many of the next fenced appends begin.
    pub(super) leaves: AtomicUsize,
    /// So many of the next fenced appends are stored, and the log does not say so.
    pub(super) silent: AtomicUsize,
    /// So many of the next fenced appends are not stored, and the log does not say so.
    pub(super) deaf: AtomicUsize,
    /// So many of the next fenced appends are not stored, and never end.
    pub(super) hung: AtomicUsize,
    /// Readers of the status topic get nothing more.
    pub(super) stale: AtomicBool,
    pub(super) claims: AtomicUsize,
    control: Mutex<Vec<(Offset, Offset, Vec<u8>)>>,
}

impl LogFaults {
    fn check(&self) -> Result<(), Error> {
        match self.away.load(Ordering::SeqCst) {
            true => Err(Error::Unavailable("no broker at kafka:9092".into())),
            false => Ok(()),
        }
    }

    /// The offset after the last one, whether or not that one holds a record.
    fn end(&self) -> Offset {
        self.control.lock().last().map_or(Offset::ZERO, |(_, end, _)| end.next())
    }
}

fn take(count: &AtomicUsize) -> bool {
    count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

impl KafkaLikeLog {
    pub(super) fn new() -> (Arc<Self>, Arc<LogFaults>) {
        let faults = Arc::new(LogFaults::default());
        (Arc::new(Self { memory: MemoryLog::new(), faults: faults.clone() }), faults)
    }
}

impl Log for KafkaLikeLog {
    fn create_topic(&self, topic: &Name, spec: TopicSpec) -> Answer<()> {
        answered(|| {
            self.faults.check()?;
            headwater_log::block_on(self.memory.create_topic(topic, spec))
        })
    }

    fn topic(&self, topic: &Name) -> Answer<Option<TopicSpec>> {
        answered(|| {
            self.faults.check()?;
            headwater_log::block_on(self.memory.topic(topic))
        })
    }

    fn ends(&self, topic: &Name, partition: PartitionId) -> Answer<Ends> {
        answered(|| {
            self.faults.check()?;
            let ends = headwater_log::block_on(self.memory.ends(topic, partition))?;
            match topic.as_str() == CONTROL_TOPIC {
                true => Ok(Ends { start: Offset::ZERO, end: self.faults.end() }),
                false => Ok(ends),
            }
        })
    }

    fn append(
        &self,
        topic: &Name,
        partition: PartitionId,
        batch: EncodedBatch,
    ) -> Answer<Appended> {
        match self.faults.check() {
            Ok(()) => self.memory.append(topic, partition, batch),
            Err(error) => std::future::ready(Err(error)).boxed(),
        }
    }

    fn reader(
        &self,
        topic: &Name,
        partition: PartitionId,
        from: Offset,
    ) -> Answer<Box<dyn Reader>> {
        answered(|| -> Result<Box<dyn Reader>, Error> {
            self.faults.check()?;
            let faults = self.faults.clone();
            match topic.as_str() {
                CONTROL_TOPIC => Ok(Box::new(GappyReader { faults, position: from })),
                STATUS_TOPIC => {
                    let inner =
                        headwater_log::block_on(self.memory.reader(topic, partition, from))?;
                    Ok(Box::new(StaleReader { faults, inner }))
                }
                _ => headwater_log::block_on(self.memory.reader(topic, partition, from)),
            }
        })
    }

    fn writer(&self, id: &WriterId) -> Answer<Arc<dyn FencedWriter>> {
        answered(|| -> Result<Arc<dyn FencedWriter>, Error> {
            self.faults.check()?;
            self.faults.claims.fetch_add(1, Ordering::SeqCst);
            let inner = headwater_log::block_on(self.memory.writer(id))?;
            Ok(Arc::new(Writer {
                faults: self.faults.clone(),
                inner,
                broken: AtomicBool::new(false),
            }))
        })
    }

    fn trim(&self, topic: &Name, partition: PartitionId, before: Offset) -> Answer<()> {
        answered(|| headwater_log::block_on(self.memory.trim(topic, partition, before)))
    }

    fn size(&self, topic: &Name, partition: PartitionId, from: Offset, to: Offset) -> Answer<u64> {
        answered(|| {
            self.faults.check()?;
            headwater_log::block_on(self.memory.size(topic, partition, from, to))
        })
    }
}

struct Writer {
    faults: Arc<LogFaults>,
    inner: Arc<dyn FencedWriter>,
    /// After a failure only another claim may follow.
    broken: AtomicBool,
}

impl FencedWriter for Writer {
    fn epoch(&self) -> Epoch {
        self.inner.epoch()
    }

    fn append(
        &self,
        topic: &Name,
        partition: PartitionId,
        mut batch: EncodedBatch,
    ) -> Answer<Appended> {
        let failed = |error| std::future::ready(Err(error)).boxed();
        if self.broken.load(Ordering::SeqCst) {
            return failed(Error::Uncertain("an earlier append failed".into()));
        }
        if take(&self.faults.leaves) {
            self.faults.away.store(true, Ordering::SeqCst);
        }
        let lost = self.faults.check().err().or_else(|| {
            take(&self.faults.deaf).then(|| Error::Uncertain("it was not stored".into()))
        });
        if let Some(error) = lost {
            self.broken.store(true, Ordering::SeqCst);
            return failed(error);
        }
        if take(&self.faults.hung) {
            self.broken.store(true, Ordering::SeqCst);
            return std::future::pending().boxed();
        }
        let (faults, silent) = (self.faults.clone(), take(&self.faults.silent));
        self.broken.store(silent, Ordering::SeqCst);
        let stored = self.inner.append(topic, partition, batch.clone());
        async move {
            let stored = stored.await?;
            let base = faults.end();
            batch.assign(base);
            let appended = Appended::consecutive(base, batch.records());
            faults.control.lock().push((base, appended.end(), batch.into_bytes()));
            drop(stored);
            match silent {
                true => Err(Error::Uncertain("it was stored".into())),
                false => Ok(appended),
            }
        }
        .boxed()
    }
}

struct GappyReader {
    faults: Arc<LogFaults>,
    position: Offset,
}

impl Reader for GappyReader {
    fn position(&self) -> Offset {
        self.position
    }

    fn read(&mut self, _max_bytes: usize, wait: Duration) -> Result<Option<Chunk>, Error> {
        self.faults.check()?;
        let found =
            self.faults.control.lock().iter().find(|(_, end, _)| *end > self.position).cloned();
        match found {
            Some((_, end, bytes)) => {
                self.position = end;
                let topic = Name::new(CONTROL_TOPIC).unwrap();
                Ok(Some(Chunk::new(bytes, end).of(topic, PartitionId::ONLY)))
            }
            None => {
                self.position = self.position.max(self.faults.end());
                std::thread::sleep(wait.min(Duration::from_millis(5)));
                Ok(None)
            }
        }
    }
}

struct StaleReader {
    faults: Arc<LogFaults>,
    inner: Box<dyn Reader>,
}

impl Reader for StaleReader {
    fn position(&self) -> Offset {
        self.inner.position()
    }

    fn read(&mut self, max_bytes: usize, wait: Duration) -> Result<Option<Chunk>, Error> {
        self.faults.check()?;
        let wait = wait.min(Duration::from_millis(5));
        if self.faults.stale.load(Ordering::SeqCst) {
            std::thread::sleep(wait);
            return Ok(None);
        }
        self.inner.read(max_bytes, wait)
    }
}

/// The coordinators of a group. The group itself decides which of them has the partition.
#[derive(Default)]
pub(super) struct Group {
    members: Mutex<BTreeMap<usize, Arc<dyn Assignee>>>,
    holder: Mutex<Option<usize>>,
    /// The group does not answer whether a member still counts.
    pub(super) silent: AtomicBool,
    /// How often a member asked for confirmation and was refused.
    pub(super) refusals: AtomicUsize,
}

impl Group {
    fn member(&self, index: usize) -> Arc<dyn Assignee> {
        self.members.lock().get(&index).cloned().expect("it has joined")
    }

    pub(super) fn has_joined(&self, index: usize) -> bool {
        self.members.lock().contains_key(&index)
    }

    pub(super) fn assign(&self, index: usize) {
        *self.holder.lock() = Some(index);
        self.member(index).assigned(&[PartitionId::ONLY]);
    }

    /// Takes the partition away, and waits until the member has handed it over.
    pub(super) fn revoke(&self, index: usize) {
        self.member(index).revoked(&[PartitionId::ONLY]);
        *self.holder.lock() = None;
    }

    /// Tells a member late that it has lost the partition.
    pub(super) fn lose(&self, index: usize) {
        self.member(index).lost(&[PartitionId::ONLY]);
    }
}

/// The membership of one process in the group.
pub(super) struct GroupMembership {
    pub(super) group: Arc<Group>,
    pub(super) index: usize,
}

impl Membership for GroupMembership {
    fn join(
        &self,
        group: &GroupId,
        topic: &Name,
        assignee: Arc<dyn Assignee>,
    ) -> Result<Box<dyn Member>, Error> {
        assert_eq!((group.0.as_str(), topic.as_str()), ("headwater.coordinator", CONTROL_TOPIC));
        self.group.members.lock().insert(self.index, assignee);
        Ok(Box::new(GroupMember { group: Arc::downgrade(&self.group), index: self.index }))
    }

    fn delete(&self, _group: &GroupId) -> Answer<()> {
        answered(|| Ok(()))
    }
}

struct GroupMember {
    group: Weak<Group>,
    index: usize,
}

impl Member for GroupMember {
    fn commit(&self, _positions: &[(PartitionId, Offset)]) {}

    fn confirm(&self) -> Answer<()> {
        answered(|| {
            let group = self.group.upgrade();
            if group.as_ref().is_some_and(|group| group.silent.load(Ordering::SeqCst)) {
                return Err(Error::Unavailable("the group does not answer".into()));
            }
            if group.as_ref().is_some_and(|group| *group.holder.lock() == Some(self.index)) {
                return Ok(());
            }
            if let Some(group) = group {
                group.refusals.fetch_add(1, Ordering::SeqCst);
            }
            Err(Error::NotMember { group: GroupId("headwater.coordinator".into()) })
        })
    }
}

impl Drop for GroupMember {
    fn drop(&mut self) {
        let Some(group) = self.group.upgrade() else { return };
        let member = group.members.lock().remove(&self.index);
        if *group.holder.lock() == Some(self.index) {
            member.into_iter().for_each(|member| member.revoked(&[PartitionId::ONLY]));
            *group.holder.lock() = None;
        }
    }
}
