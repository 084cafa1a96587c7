use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use headwater_log::{Answer, Assignee, Error, GroupId, Member, Membership, answered};
use headwater_types::{Name, Offset, PartitionId};
use parking_lot::Mutex;

use crate::testing::{connection::Connection, log::TestLog};

/// Consumer groups whose rebalances a test makes. A partition has the same owner in every group.
#[derive(Clone, Default)]
pub(crate) struct Groups(Arc<Mutex<GroupsState>>);

#[derive(Default)]
struct GroupsState {
    /// The owner that a test chose for each partition.
    owners: BTreeMap<PartitionId, &'static str>,
    members: BTreeMap<(GroupId, &'static str), Arc<dyn Assignee>>,
    /// The partitions that each member was told it owns.
    told: BTreeMap<(GroupId, &'static str), BTreeSet<PartitionId>>,
    /// Processes that the groups no longer count in.
    expelled: BTreeSet<&'static str>,
    committed: BTreeMap<(GroupId, PartitionId), Offset>,
    deleted: BTreeSet<GroupId>,
}

impl Groups {
    pub(crate) fn new(owners: &[&'static str]) -> Self {
        let owners = owners.iter().enumerate();
        let owners = owners.map(|(index, owner)| (PartitionId(index as u32), *owner)).collect();
        Self(Arc::new(Mutex::new(GroupsState { owners, ..GroupsState::default() })))
    }

    /// The groups as a process sees them.
    pub(crate) fn of(&self, process: &'static str, log: &Arc<TestLog>) -> Arc<dyn Membership> {
        Arc::new(ProcessMembership { groups: self.clone(), process, log: log.clone() })
    }

    /// The partition goes from its owner to another: revoked, and then assigned.
    pub(crate) fn hand_over(&self, partition: PartitionId, to: &'static str) {
        self.take(partition, |assignee, partitions| assignee.revoked(partitions));
        self.0.lock().owners.insert(partition, to);
        self.settle();
    }

    /// All that the process owns goes to another; the process is not told.
    pub(crate) fn expel(&self, process: &'static str, to: &'static str) {
        let mut state = self.0.lock();
        state.expelled.insert(process);
        for owner in state.owners.values_mut().filter(|owner| **owner == process) {
            *owner = to;
        }
        drop(state);
        self.settle();
    }

    /// The process that was expelled is told, and may own something again.
    pub(crate) fn tell_expelled(&self, process: &'static str) {
        let mut state = self.0.lock();
        state.expelled.remove(process);
        let mut lost = Vec::new();
        for ((group, member), assignee) in &state.members {
            if *member == process {
                lost.push((group.clone(), assignee.clone()));
            }
        }
        let mut calls = Vec::new();
        for (group, assignee) in lost {
            let partitions = state.told.remove(&(group, process)).unwrap_or_default();
            calls.push((assignee, partitions.into_iter().collect::<Vec<_>>()));
        }
        drop(state);
        for (assignee, partitions) in calls {
            assignee.lost(&partitions);
        }
        self.settle();
    }

    pub(crate) fn committed(&self, group: &GroupId, partition: PartitionId) -> Option<Offset> {
        self.0.lock().committed.get(&(group.clone(), partition)).copied()
    }

    pub(crate) fn is_deleted(&self, group: &GroupId) -> bool {
        self.0.lock().deleted.contains(group)
    }

    pub(crate) fn members(&self, group: &GroupId) -> Vec<&'static str> {
        let state = self.0.lock();
        state.members.keys().filter(|key| key.0 == *group).map(|key| key.1).collect()
    }

    fn take(&self, partition: PartitionId, end: impl Fn(&dyn Assignee, &[PartitionId])) {
        let mut state = self.0.lock();
        let keys: Vec<_> = state.told.keys().cloned().collect();
        let mut calls = Vec::new();
        for key in keys {
            if state.told.get_mut(&key).is_some_and(|told| told.remove(&partition))
                && let Some(assignee) = state.members.get(&key)
            {
                calls.push(assignee.clone());
            }
        }
        drop(state);
        for assignee in calls {
            end(&*assignee, &[partition]);
        }
    }

    /// Tells every member which partitions are new.
    fn settle(&self) {
        let mut state = self.0.lock();
        let mut calls = Vec::new();
        let members: Vec<_> = state.members.keys().cloned().collect();
        for key in members {
            if state.expelled.contains(key.1) {
                continue;
            }
            let wanted = state.owners.iter().filter(|(_, owner)| **owner == key.1);
            let wanted: BTreeSet<_> = wanted.map(|(partition, _)| *partition).collect();
            let told = state.told.entry(key.clone()).or_default();
            let new: Vec<_> = wanted.difference(told).copied().collect();
            told.extend(new.iter().copied());
            if !new.is_empty() {
                calls.push((state.members[&key].clone(), new));
            }
        }
        drop(state);
        for (assignee, partitions) in calls {
            assignee.assigned(&partitions);
        }
    }
}

struct ProcessMembership {
    groups: Groups,
    process: &'static str,
    log: Arc<TestLog>,
}

impl Membership for ProcessMembership {
    fn join(
        &self,
        group: &GroupId,
        _topic: &Name,
        assignee: Arc<dyn Assignee>,
    ) -> Result<Box<dyn Member>, Error> {
        let key = (group.clone(), self.process);
        assert!(self.groups.0.lock().members.insert(key, assignee).is_none(), "joined twice");
        self.groups.settle();
        Ok(Box::new(TestMember {
            groups: self.groups.clone(),
            group: group.clone(),
            process: self.process,
            log: self.log.clone(),
        }))
    }

    fn delete(&self, group: &GroupId) -> Answer<()> {
        answered(|| {
            let mut state = self.groups.0.lock();
            if state.members.keys().any(|key| key.0 == *group) {
                return Err(Error::Unavailable("the group has members".into()));
            }
            state.deleted.insert(group.clone());
            Ok(())
        })
    }
}

struct TestMember {
    groups: Groups,
    group: GroupId,
    process: &'static str,
    log: Arc<TestLog>,
}

impl Member for TestMember {
    fn commit(&self, positions: &[(PartitionId, Offset)]) {
        let mut state = self.groups.0.lock();
        if self.log.connection() == Connection::Open && !state.expelled.contains(self.process) {
            for (partition, position) in positions {
                state.committed.insert((self.group.clone(), *partition), *position);
            }
        }
    }

    fn confirm(&self) -> Answer<()> {
        answered(|| {
            self.log.connection.pass()?;
            match self.groups.0.lock().expelled.contains(self.process) {
                true => Err(Error::NotMember { group: self.group.clone() }),
                false => Ok(()),
            }
        })
    }
}

impl Drop for TestMember {
    fn drop(&mut self) {
        let key = (self.group.clone(), self.process);
        let mut state = self.groups.0.lock();
        let owned: Vec<_> = state.told.remove(&key).unwrap_or_default().into_iter().collect();
        let assignee = state.members.remove(&key);
        drop(state);
        if let Some(assignee) = assignee {
            assignee.revoked(&owned);
        }
    }
}
