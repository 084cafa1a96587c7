use std::sync::atomic::{AtomicU32, Ordering};

use headwater_log::{Answer, Error, GroupId, answered};
use headwater_types::{Offset, PartitionId};

use super::*;
use crate::testing::{P0, generation};

impl Lease {
    /// The lease of a process that has the log for itself.
    pub(crate) fn alone(identity: Identity) -> Arc<Self> {
        let handle = GroupHandle::default();
        handle.set(Box::new(ScriptedMember::default()));
        Self::new(identity, Arc::new(handle), Duration::from_secs(5))
    }

    /// The process stands still for so long.
    fn pause(&self, time: Duration) {
        self.state.lock().confirmed_at -= time;
    }
}

/// A member whose answers a test gives.
#[derive(Clone, Default)]
pub(crate) struct ScriptedMember {
    /// 0: still a member; 1: no longer a member; 2: the log is away.
    pub(crate) answer: Arc<AtomicU32>,
    pub(crate) asked: Arc<AtomicU32>,
}

impl Member for ScriptedMember {
    fn commit(&self, _positions: &[(PartitionId, Offset)]) {}

    fn confirm(&self) -> Answer<()> {
        answered(|| {
            self.asked.fetch_add(1, Ordering::Relaxed);
            match self.answer.load(Ordering::Relaxed) {
                0 => Ok(()),
                1 => Err(Error::NotMember { group: GroupId("g".into()) }),
                _ => Err(Error::Unavailable("the test wants it".into())),
            }
        })
    }
}

fn lease(guard: Duration) -> (Arc<Lease>, ScriptedMember) {
    let (answers, handle) = (ScriptedMember::default(), Arc::new(GroupHandle::default()));
    handle.set(Box::new(answers.clone()));
    let identity = Identity { generation: generation(1), partition: P0 };
    (Lease::new(identity, handle, guard), answers)
}

#[test]
fn nothing_is_asked_while_the_thread_is_there_and_the_group_decides_after_a_pause() {
    let guard = Duration::from_secs(600);
    let (lease, answers) = lease(guard);
    for _ in 0..10 {
        lease.heartbeat();
        lease.check().unwrap();
    }
    assert_eq!(answers.asked.load(Ordering::Relaxed), 0);

    lease.pause(guard);
    lease.heartbeat();
    assert!(!lease.may_write(), "a heartbeat after the pause does not undo it");
    lease.check().unwrap();
    assert!(lease.may_write());
    assert_eq!(answers.asked.load(Ordering::Relaxed), 1);

    lease.pause(guard);
    answers.answer.store(2, Ordering::Relaxed);
    assert_eq!(lease.check().unwrap_err().remedy, Remedy::Retry);
    assert!(!lease.is_over() && !lease.may_write(), "nobody knows, so nothing is written");

    answers.answer.store(1, Ordering::Relaxed);
    assert_eq!(lease.check().unwrap_err().remedy, Remedy::StandDown);
    answers.answer.store(0, Ordering::Relaxed);
    assert_eq!(lease.confirm().unwrap_err().remedy, Remedy::StandDown, "over is over");
}

#[test]
fn a_lease_that_was_lost_is_not_given_back_by_an_answer_that_was_on_its_way() {
    let (lease, _) = lease(Duration::from_secs(5));
    assert!(lease.attach_thread());
    lease.release_by(Instant::now() + Duration::from_secs(5));
    assert!(
        lease.release_deadline().is_some() && lease.may_write(),
        "the last status may still be written"
    );
    lease.lose();
    assert!(lease.release_deadline().is_none() && !lease.may_write());
    lease.release_by(Instant::now() + Duration::from_secs(5));
    assert!(lease.is_over());
}

#[test]
fn a_hand_over_waits_for_the_thread_and_no_longer_than_its_limit() {
    let (lease, _) = lease(Duration::from_secs(5));
    assert!(lease.attach_thread());
    assert!(!lease.attach_thread(), "one thread at a time");
    let closer = lease.clone();
    let closed = ClosedShard { position: 7, uploaded: true, outbox: 0 };
    let thread = std::thread::spawn(move || {
        while closer.release_deadline().is_none() {
            std::thread::sleep(Duration::from_millis(2));
        }
        closer.set_closed(closed);
        closer.detach_thread();
    });
    let until = Instant::now() + Duration::from_secs(20);
    lease.release_by(until);
    lease.await_idle(until);
    assert_eq!(lease.expire(), (true, Some(closed)));
    thread.join().unwrap();

    let (lease, _) = super::tests::lease(Duration::from_secs(5));
    assert!(lease.attach_thread());
    let begun = Instant::now();
    lease.await_idle(begun + Duration::from_millis(30));
    assert_eq!(lease.expire(), (false, None));
    assert!(!lease.may_write(), "late is as good as lost");
}

#[test]
fn leaving_waits_until_the_member_has_answered() {
    struct Slow(Arc<AtomicU32>);
    impl Member for Slow {
        fn commit(&self, _positions: &[(PartitionId, Offset)]) {}
        fn confirm(&self) -> Answer<()> {
            answered(|| {
                std::thread::sleep(Duration::from_millis(50));
                self.0.store(1, Ordering::Release);
                Ok(())
            })
        }
    }
    impl Drop for Slow {
        fn drop(&mut self) {
            assert_eq!(self.0.load(Ordering::Acquire), 1, "dropped while it is asked");
            self.0.store(2, Ordering::Release);
        }
    }
    let (state, handle) = (Arc::new(AtomicU32::new(0)), Arc::new(GroupHandle::default()));
    handle.set(Box::new(Slow(state.clone())));
    let member = handle.member().unwrap();
    let asking = std::thread::spawn(move || block_on(member.confirm()).unwrap());
    handle.leave();
    assert_eq!(state.load(Ordering::Acquire), 2);
    asking.join().unwrap();
}
