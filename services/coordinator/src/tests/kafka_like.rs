//! A log and a membership as Kafka has them: far away, at times silent, with offsets that hold no record.

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

const ONLY: PartitionId = PartitionId(0);

/// A log in memory, the control topic of which ends every append with an offset that holds no record, as a
/// transaction does.
pub(super) struct KafkaLikeLog {
    memory: MemoryLog,
    far: Arc<Far>,
}

#[derive(Default)]
pub(super) struct Far {
    /// Nothing can be asked or written.
    pub(super) away: AtomicBool,
    /// So many fenced appends are stored, and nobody says so.
    pub(super) silent: AtomicUsize,
    /// So many fenced appends are not stored, and nobody says so.
    pub(super) deaf: AtomicUsize,
    /// So many fenced appends are not stored, and never end.
    pub(super) hung: AtomicUsize,
    /// The status topic hands out nothing more.
    pub(super) stale: AtomicBool,
    pub(super) claims: AtomicUsize,
    control: Mutex<Vec<(Offset, Offset, Vec<u8>)>>,
}

impl Far {
    fn check(&self) -> Result<(), Error> {
        match self.away.load(Ordering::SeqCst) {
            true => Err(Error::Unavailable("no broker at kafka:9092".into())),
            false => Ok(()),
        }
    }

    /// After the last offset, whether or not it holds a record.
    fn end(&self) -> Offset {
        self.control.lock().last().map_or(Offset::ZERO, |(_, end, _)| end.next())
    }
}

fn take(count: &AtomicUsize) -> bool {
    count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

impl KafkaLikeLog {
    pub(super) fn new() -> (Arc<Self>, Arc<Far>) {
        let far = Arc::new(Far::default());
        (Arc::new(Self { memory: MemoryLog::new(), far: far.clone() }), far)
    }
}

impl Log for KafkaLikeLog {
    fn create_topic(&self, topic: &Name, spec: TopicSpec) -> Answer<()> {
        answered(|| {
            self.far.check()?;
            headwater_log::block_on(self.memory.create_topic(topic, spec))
        })
    }

    fn topic(&self, topic: &Name) -> Answer<Option<TopicSpec>> {
        answered(|| {
            self.far.check()?;
            headwater_log::block_on(self.memory.topic(topic))
        })
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn ends(&self, topic: &Name, partition: PartitionId) -> Answer<Ends> {
        answered(|| {
            self.far.check()?;
            let ends = headwater_log::block_on(self.memory.ends(topic, partition))?;
            match topic.as_str() == CONTROL_TOPIC {
                true => Ok(Ends { start: Offset::ZERO, end: self.far.end() }),
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
        match self.far.check() {
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
            self.far.check()?;
            let far = self.far.clone();
            match topic.as_str() {
                CONTROL_TOPIC => Ok(Box::new(GappyReader { far, position: from })),
                STATUS_TOPIC => {
                    let inner =
                        headwater_log::block_on(self.memory.reader(topic, partition, from))?;
                    Ok(Box::new(StaleReader { far, inner }))
                }
                _ => headwater_log::block_on(self.memory.reader(topic, partition, from)),
            }
        })
    }

    fn writer(&self, id: &WriterId) -> Answer<Arc<dyn FencedWriter>> {
        answered(|| -> Result<Arc<dyn FencedWriter>, Error> {
            self.far.check()?;
            self.far.claims.fetch_add(1, Ordering::SeqCst);
            let inner = headwater_log::block_on(self.memory.writer(id))?;
            Ok(Arc::new(Writer { far: self.far.clone(), inner, broken: AtomicBool::new(false) }))
        })
    }

    fn trim(&self, topic: &Name, partition: PartitionId, before: Offset) -> Answer<()> {
        answered(|| headwater_log::block_on(self.memory.trim(topic, partition, before)))
    }

    fn size(&self, topic: &Name, partition: PartitionId, from: Offset, to: Offset) -> Answer<u64> {
        answered(|| {
            self.far.check()?;
            headwater_log::block_on(self.memory.size(topic, partition, from, to))
        })
    }
}

struct Writer {
    far: Arc<Far>,
    inner: Arc<dyn FencedWriter>,
    /// After a failure nothing may follow but another claim.
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
        let lost =
            self.far.check().err().or_else(|| {
                take(&self.far.deaf).then(|| Error::Uncertain("it was not stored".into()))
            });
        if let Some(error) = lost {
            self.broken.store(true, Ordering::SeqCst);
            return failed(error);
        }
        if take(&self.far.hung) {
            self.broken.store(true, Ordering::SeqCst);
            return std::future::pending().boxed();
        }
        let (far, silent) = (self.far.clone(), take(&self.far.silent));
        self.broken.store(silent, Ordering::SeqCst);
        let stored = self.inner.append(topic, partition, batch.clone());
        async move {
            let stored = stored.await?;
            let base = far.end();
            batch.assign(base);
            let appended = Appended::consecutive(base, batch.records());
            far.control.lock().push((base, appended.end(), batch.into_bytes()));
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
    far: Arc<Far>,
    position: Offset,
}

impl Reader for GappyReader {
    fn position(&self) -> Offset {
        self.position
    }

    fn read(&mut self, _max_bytes: usize, wait: Duration) -> Result<Option<Chunk>, Error> {
        self.far.check()?;
        let found =
            self.far.control.lock().iter().find(|(_, end, _)| *end > self.position).cloned();
        match found {
            Some((_, end, bytes)) => {
                self.position = end;
                let topic = Name::new(CONTROL_TOPIC).unwrap();
                Ok(Some(Chunk::new(bytes, end).of(topic, ONLY)))
            }
            None => {
                self.position = self.position.max(self.far.end());
                std::thread::sleep(wait.min(Duration::from_millis(5)));
                Ok(None)
            }
        }
    }
}

struct StaleReader {
    far: Arc<Far>,
    inner: Box<dyn Reader>,
}

impl Reader for StaleReader {
    fn position(&self) -> Offset {
        self.inner.position()
    }

    fn read(&mut self, max_bytes: usize, wait: Duration) -> Result<Option<Chunk>, Error> {
        self.far.check()?;
        let wait = wait.min(Duration::from_millis(5));
        if self.far.stale.load(Ordering::SeqCst) {
            std::thread::sleep(wait);
            return Ok(None);
        }
        self.inner.read(max_bytes, wait)
    }
}

/// The coordinators of a group, and which of them has the partition by the group's own books.
#[derive(Default)]
pub(super) struct Group {
    members: Mutex<BTreeMap<usize, Arc<dyn Assignee>>>,
    holder: Mutex<Option<usize>>,
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
        self.member(index).assigned(&[ONLY]);
    }

    /// Takes the partition away in good order.
    pub(super) fn revoke(&self, index: usize) {
        self.member(index).revoked(&[ONLY]);
        *self.holder.lock() = None;
    }

    /// Tells a member what happened long ago.
    pub(super) fn lose(&self, index: usize) {
        self.member(index).lost(&[ONLY]);
    }
}

/// One process's way to the group.
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
            let holder = self.group.upgrade().and_then(|group| *group.holder.lock());
            match holder == Some(self.index) {
                true => Ok(()),
                false => Err(Error::NotMember { group: GroupId("headwater.coordinator".into()) }),
            }
        })
    }
}

impl Drop for GroupMember {
    fn drop(&mut self) {
        let Some(group) = self.group.upgrade() else { return };
        let member = group.members.lock().remove(&self.index);
        if *group.holder.lock() == Some(self.index) {
            member.into_iter().for_each(|member| member.revoked(&[ONLY]));
            *group.holder.lock() = None;
        }
    }
}
