//! Membership: which partitions this process works on.
//!
//! It is apart from reading. Another log shares its partitions out in another way, and reading is
//! where the time goes.

use std::{fmt, sync::Arc};

use headwater_types::{Name, Offset, PartitionId};

use crate::{Answer, Error, Log, answered, block_on};

/// The name under which processes share the partitions of a topic among them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub String);

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Shares partitions out among the members of a group: each partition has one owner at a time.
pub trait Membership: Send + Sync + 'static {
    /// Joins the group. Partitions come and go through `assignee`, until the member is dropped:
    /// that leaves the group, after what it owned was revoked.
    ///
    /// Returns at once; a log that is away is tried again for as long as the member lives.
    fn join(
        &self,
        group: &GroupId,
        topic: &Name,
        assignee: Arc<dyn Assignee>,
    ) -> Result<Box<dyn Member>, Error>;

    /// Whether this process is the only one: then it owns every partition as soon as it joins.
    fn is_alone(&self) -> bool {
        false
    }

    /// Deletes a group that has no members, and its committed positions. One that does not exist is
    /// deleted already.
    fn delete(&self, group: &GroupId) -> Answer<()>;
}

/// Is told what a member owns. It is called from one thread, one call at a time; while a call
/// lasts, the group waits.
pub trait Assignee: Send + Sync + 'static {
    /// These are ours from now on, beside those that were.
    fn assigned(&self, partitions: &[PartitionId]);

    /// These partitions go to another member. They are handed over when this call returns: nothing
    /// may be written for them from then on.
    fn revoked(&self, partitions: &[PartitionId]);

    /// Another member owns these partitions already: the group had not heard of this one for too
    /// long. Nothing may be written for them any more, and there is nothing to hand over.
    fn lost(&self, partitions: &[PartitionId]);
}

/// A member of a group. Dropping it leaves the group.
pub trait Member: Send + Sync {
    /// Shows the positions to tools that look at the group. The latest call counts. Positions are
    /// sent in the background and dropped if they cannot be sent: the shard's own position is what
    /// counts.
    fn commit(&self, positions: &[(PartitionId, Offset)]);

    /// Asks the log whether this process is still a member: a process that was stopped for a while
    /// may not know. The answer takes up to a few seconds.
    ///
    /// [`Error::NotMember`] if it is not.
    fn confirm(&self) -> Answer<()>;
}

/// The membership of a process that has a log for itself: it owns every partition.
pub struct Alone {
    log: Arc<dyn Log>,
}

impl Alone {
    pub fn new(log: Arc<dyn Log>) -> Self {
        Self { log }
    }
}

impl Membership for Alone {
    fn join(
        &self,
        _group: &GroupId,
        topic: &Name,
        assignee: Arc<dyn Assignee>,
    ) -> Result<Box<dyn Member>, Error> {
        let unknown = || Error::UnknownTopic { topic: topic.clone() };
        // A log that this process has for itself answers within the call.
        let spec = block_on(self.log.topic(topic))?.ok_or_else(unknown)?;
        let all: Vec<_> = (0..spec.partitions).map(PartitionId).collect();
        assignee.assigned(&all);
        Ok(Box::new(OnlyMember { all, assignee }))
    }

    fn is_alone(&self) -> bool {
        true
    }

    fn delete(&self, _group: &GroupId) -> Answer<()> {
        answered(|| Ok(()))
    }
}

struct OnlyMember {
    all: Vec<PartitionId>,
    assignee: Arc<dyn Assignee>,
}

impl Member for OnlyMember {
    fn commit(&self, _positions: &[(PartitionId, Offset)]) {}

    fn confirm(&self) -> Answer<()> {
        answered(|| Ok(()))
    }
}

impl Drop for OnlyMember {
    fn drop(&mut self) {
        self.assignee.revoked(&self.all);
    }
}
