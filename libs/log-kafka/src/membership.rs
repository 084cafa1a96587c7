//! Membership: librdkafka's consumer groups without its fetching.
//!
//! A member is a consumer that subscribes to the topic. It is told which partitions it owns, but
//! assigns none of them to itself, so it never fetches. The broker's group does not know the
//! difference.
//!
//! ```text
//! joining ──> member ──> leaving (dropped) ──> left
//!    ▲           │
//!    └───────────┘ fatal error: all partitions are lost
//! ```
//!
//! One thread per member creates the consumer, polls it and commits positions. The assignee is
//! called on this thread.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use headwater_log::{Answer, Assignee, Error, GroupId, Member};
use headwater_types::{Name, Offset, PartitionId};
use parking_lot::Mutex;
use rdkafka::{
    ClientContext, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext},
    error::{KafkaError, RDKafkaErrorCode},
    types::RDKafkaRespErr,
};

use crate::{
    client::{
        context::Context, error::unavailable, off_thread::off_thread, rebootstrap::Rebootstrap,
    },
    config::KafkaConfig,
};

/// How long the thread waits for news of the group before it looks whether to leave.
const POLL: Duration = Duration::from_millis(250);
/// How often positions are committed.
const COMMIT: Duration = Duration::from_secs(1);
/// How long to wait before a consumer that cannot be created is tried again.
const RETRY: Duration = Duration::from_secs(2);

type GroupConsumer = BaseConsumer<GroupContext>;

/// The state that the member, its thread and librdkafka's callbacks share.
struct GroupState {
    group: GroupId,
    topic: Name,
    assignee: Arc<dyn Assignee>,
    context: Context,
    timeout: Duration,
    owned: Mutex<BTreeSet<PartitionId>>,
    positions: Mutex<Positions>,
    consumer: Mutex<Option<Arc<GroupConsumer>>>,
    leave: AtomicBool,
}

#[derive(Default)]
struct Positions {
    /// The latest position of each partition that this member owns.
    latest: BTreeMap<PartitionId, Offset>,
    /// Some positions are not committed yet.
    changed: bool,
}

/// A member of a group. Dropping it leaves the group, and waits until that is done.
pub(crate) struct KafkaMember {
    shared: Arc<GroupState>,
    thread: Option<JoinHandle<()>>,
}

impl KafkaMember {
    pub(crate) fn join(
        config: &KafkaConfig,
        client: &str,
        context: &Context,
        group: &GroupId,
        topic: &Name,
        assignee: Arc<dyn Assignee>,
    ) -> Result<Self, Error> {
        let shared = Arc::new(GroupState {
            group: group.clone(),
            topic: topic.clone(),
            assignee,
            context: context.clone(),
            timeout: config.request_timeout,
            owned: Mutex::default(),
            positions: Mutex::default(),
            consumer: Mutex::default(),
            leave: AtomicBool::new(false),
        });
        let settings = config.member(client, &group.0);
        let own = shared.clone();
        let mut rebootstrap = Rebootstrap::new(config);
        let thread = thread::Builder::new()
            .name("kafka-member".into())
            .spawn(move || {
                while !own.leave.load(Ordering::Relaxed) {
                    let created: Result<GroupConsumer, _> =
                        settings.create_with_context(GroupContext(own.clone()));
                    let joined = created.and_then(|consumer| {
                        consumer.subscribe(&[own.topic.as_str()])?;
                        Ok(consumer)
                    });
                    match joined {
                        Ok(consumer) => own.serve(consumer, &mut rebootstrap),
                        Err(error) => {
                            tracing::warn!(group = %own.group, %error, "the group cannot be joined, trying again");
                            thread::sleep(RETRY);
                        }
                    }
                }
            })
            .map_err(|error| Error::Unavailable(error.into()))?;
        Ok(Self { shared, thread: Some(thread) })
    }
}

impl Member for KafkaMember {
    fn commit(&self, positions: &[(PartitionId, Offset)]) {
        let owned = self.shared.owned.lock();
        let mut own = self.shared.positions.lock();
        for (partition, offset) in positions {
            if owned.contains(partition) && own.latest.insert(*partition, *offset) != Some(*offset)
            {
                own.changed = true;
            }
        }
    }

    fn confirm(&self) -> Answer<()> {
        let shared = self.shared.clone();
        off_thread(move || shared.confirm())
    }
}

impl Drop for KafkaMember {
    fn drop(&mut self) {
        self.shared.leave.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl GroupState {
    fn confirm(&self) -> Result<(), Error> {
        let not_member = || Error::NotMember { group: self.group.clone() };
        let consumer = self.consumer.lock().clone().ok_or_else(not_member)?;
        let owned = self.owned.lock().clone();
        if owned.is_empty() {
            return Err(not_member());
        }
        // Only a commit is refused to a former member. This one commits what is true already: our
        // own latest positions, or those that the group has, or zero for a partition that was never
        // read.
        let mut known = self.positions.lock().latest.clone();
        let mut unknown = TopicPartitionList::new();
        for partition in owned.iter().filter(|partition| !known.contains_key(partition)) {
            unknown.add_partition(self.topic.as_str(), number(*partition));
        }
        if unknown.count() > 0 {
            let committed = consumer
                .committed_offsets(unknown, self.timeout)
                .map_err(|error| unavailable(error, &self.context.status))?;
            for element in committed.elements() {
                let offset =
                    element.offset().to_raw().map_or(0, |raw| u64::try_from(raw).unwrap_or(0));
                let partition = PartitionId(u32::try_from(element.partition()).unwrap_or(0));
                known.insert(partition, Offset(offset));
            }
        }
        known.retain(|partition, _| owned.contains(partition));
        match self.commit(&consumer, &known, CommitMode::Sync) {
            Ok(()) => Ok(()),
            Err(error) => match error.rdkafka_error_code() {
                // We are a member, and the group is about to rebalance.
                Some(RDKafkaErrorCode::RebalanceInProgress) => Ok(()),
                Some(
                    RDKafkaErrorCode::UnknownMemberId
                    | RDKafkaErrorCode::IllegalGeneration
                    | RDKafkaErrorCode::AssignmentLost
                    | RDKafkaErrorCode::PollExceeded
                    | RDKafkaErrorCode::State,
                ) => Err(not_member()),
                _ => Err(unavailable(error, &self.context.status)),
            },
        }
    }

    fn serve(&self, consumer: GroupConsumer, rebootstrap: &mut Rebootstrap) {
        let consumer = Arc::new(consumer);
        *self.consumer.lock() = Some(consumer.clone());
        let mut committed_at = Instant::now();
        let (mut fatal, mut denied) = (false, false);
        while !self.leave.load(Ordering::Relaxed) && !fatal {
            if let Some(Err(error)) = consumer.poll(POLL) {
                tracing::debug!(group = %self.group, %error, "group error");
                if is_denied(&error) && !denied {
                    denied = true;
                    let (user, principal) =
                        (self.context.status.user(), self.context.status.principal());
                    tracing::warn!(
                        group = %self.group, topic = %self.topic, %error,
                        "the brokers' ACLs do not let {user} join the group; grant Read on the \
                         topic and on all groups that begin with headwater., for example with \
                         kafka-acls --add --allow-principal {principal} --operation Read \
                         --group headwater. --resource-pattern-type prefixed"
                    );
                }
                fatal = consumer.client().fatal_error().is_some();
            }
            rebootstrap.check(consumer.client());
            if committed_at.elapsed() >= COMMIT {
                committed_at = Instant::now();
                self.commit_changed(&consumer, CommitMode::Async);
            }
        }
        let owned: Vec<_> = self.owned.lock().iter().copied().collect();
        if fatal {
            self.owned.lock().clear();
            tracing::warn!(group = %self.group, "the group is joined anew");
            self.assignee.lost(&owned);
        } else if !owned.is_empty() {
            self.assignee.revoked(&owned);
            self.commit_changed(&consumer, CommitMode::Sync);
            self.owned.lock().clear();
        }
        *self.consumer.lock() = None;
        self.positions.lock().latest.clear();
        // Dropping the last reference leaves the group; a running `confirm` may hold another one.
        drop(consumer);
    }

    fn commit_changed(&self, consumer: &GroupConsumer, mode: CommitMode) {
        let latest = {
            let mut positions = self.positions.lock();
            if !std::mem::take(&mut positions.changed) {
                return;
            }
            positions.latest.clone()
        };
        if let Err(error) = self.commit(consumer, &latest, mode) {
            tracing::debug!(group = %self.group, %error, "positions were not committed");
            self.positions.lock().changed = true;
        }
    }

    fn commit(
        &self,
        consumer: &GroupConsumer,
        positions: &BTreeMap<PartitionId, Offset>,
        mode: CommitMode,
    ) -> Result<(), KafkaError> {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in positions {
            let offset = rdkafka::Offset::Offset(i64::try_from(offset.0).unwrap_or(i64::MAX));
            list.add_partition_offset(self.topic.as_str(), number(*partition), offset)?;
        }
        if list.count() == 0 {
            return Ok(());
        }
        consumer.commit(&list, mode)
    }
}

fn is_denied(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{GroupAuthorizationFailed, TopicAuthorizationFailed};
    matches!(error.rdkafka_error_code(), Some(GroupAuthorizationFailed | TopicAuthorizationFailed))
}

/// The callbacks of a member: tells the assignee what the group has decided.
struct GroupContext(Arc<GroupState>);

impl ClientContext for GroupContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.context.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.context.error(error, reason);
    }
}

impl ConsumerContext for GroupContext {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        event: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let shared = &self.0;
        let partitions: Vec<_> = list
            .elements()
            .iter()
            .filter_map(|element| u32::try_from(element.partition()).ok().map(PartitionId))
            .collect();
        let nothing = TopicPartitionList::new();
        let done = if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            shared.owned.lock().extend(&partitions);
            let done = consumer.incremental_assign(&nothing);
            tracing::info!(group = %shared.group, ?partitions, "partitions assigned");
            shared.assignee.assigned(&partitions);
            done
        } else {
            // A member that is leaving has revoked its partitions already. Until the hand-over is
            // done they are ours.
            let owned: Vec<_> = {
                let all = shared.owned.lock();
                partitions.into_iter().filter(|partition| all.contains(partition)).collect()
            };
            let released = || shared.owned.lock().retain(|partition| !owned.contains(partition));
            if consumer.assignment_lost() {
                tracing::warn!(group = %shared.group, partitions = ?owned, "partitions lost");
                released();
                shared.assignee.lost(&owned);
            } else if !owned.is_empty() {
                tracing::info!(group = %shared.group, partitions = ?owned, "partitions revoked");
                shared.assignee.revoked(&owned);
                shared.commit_changed(consumer, CommitMode::Sync);
                released();
            }
            shared.positions.lock().latest.retain(|partition, _| !owned.contains(partition));
            consumer.incremental_unassign(&nothing)
        };
        if let Err(error) = done {
            tracing::warn!(group = %shared.group, %error, "librdkafka refuses the group's decision");
        }
    }
}

fn number(partition: PartitionId) -> i32 {
    i32::try_from(partition.0).unwrap_or(i32::MAX)
}
