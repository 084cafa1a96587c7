//! Whether this coordinator leads: the states, and the ways between them.
//!
//! ```text
//!  Joining ---> StandingBy ---> Claiming ---> Leading <---> Recovering
//!     |          ^  ^  ^         ^    |          |              |
//!     |          |  |  +--------------+          |              |
//!     |          |  +----------------------------+              |
//!     |          +----------------------------------------------+
//!     +--------------------------+
//! ```
//!
//! | from | to | when |
//! | --- | --- | --- |
//! | `Joining` | `StandingBy` | it is a member of the group, and is not elected |
//! | `Joining`, `StandingBy` | `Claiming` | it is elected: the group gives it the partition |
//! | `Claiming` | `Leading` | the control topic is claimed and folded |
//! | `Leading` | `Recovering` | the log does not say whether it stored an append |
//! | `Recovering` | `Leading` | the control topic is claimed anew and folded to its end |
//! | `Claiming`, `Leading`, `Recovering` | `StandingBy` | another one is elected, or has claimed |
//!
//! A log that is away changes no state: the coordinator waits, and the reason of the state says so.
//! Shutdown or a damaged control topic ends the leader's task in any state, and so does a newer
//! claim where no other process may claim.

use headwater_service::{Condition, status};
use headwater_types::Remedy;
use tokio::sync::watch;
use tonic::Status;

/// The reason of a coordinator that has just begun to join or to claim.
pub(crate) const READING: &str = "reading the control topic";
pub(crate) const STANDING_BY: &str = "standing by: another coordinator leads";

/// The state of this coordinator in the election. The texts are reasons, for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Leadership {
    Joining(String),
    StandingBy,
    Claiming(String),
    Leading,
    Recovering(String),
}

impl Leadership {
    /// Refuses every request unless this coordinator leads.
    pub(crate) fn require(&self) -> Result<(), Status> {
        self.reason().map_or(Ok(()), |why| Err(refusal(why)))
    }

    /// Why this coordinator does not lead; `None` while it leads.
    pub(crate) fn reason(&self) -> Option<&str> {
        match self {
            Self::Leading => None,
            Self::StandingBy => Some(STANDING_BY),
            Self::Joining(why) | Self::Claiming(why) | Self::Recovering(why) => Some(why),
        }
    }

    /// The table above.
    fn may_become(&self, next: &Self) -> bool {
        use Leadership::{Claiming, Joining, Leading, Recovering, StandingBy};
        match (self, next) {
            (Joining(_), Joining(_) | StandingBy | Claiming(_))
            | (StandingBy, StandingBy | Claiming(_))
            | (Claiming(_), Claiming(_) | Leading | StandingBy)
            | (Leading, Leading | Recovering(_) | StandingBy)
            | (Recovering(_), Recovering(_) | Leading | StandingBy) => true,
            (Joining(_), Leading | Recovering(_))
            | (StandingBy, Joining(_) | Leading | Recovering(_))
            | (Claiming(_) | Recovering(_), Joining(_))
            | (Claiming(_), Recovering(_))
            | (Leading, Joining(_) | Claiming(_))
            | (Recovering(_), Claiming(_)) => false,
        }
    }
}

/// The answer of a coordinator that does not lead.
pub(crate) fn refusal(why: &str) -> Status {
    status(Remedy::Retry, why)
}

/// Tells requests and the readiness of the process what the leadership is.
pub(crate) struct LeadershipPublisher {
    sender: watch::Sender<Leadership>,
    ready: Condition,
}

impl LeadershipPublisher {
    pub(crate) fn new(ready: Condition) -> (Self, watch::Receiver<Leadership>) {
        ready.not_ready(READING);
        let (sender, receiver) = watch::channel(Leadership::Joining(READING.into()));
        (Self { sender, ready }, receiver)
    }

    pub(crate) fn publish(&self, next: Leadership) {
        let reason = next.reason().map(str::to_owned);
        self.sender.send_if_modified(|present| {
            debug_assert!(present.may_become(&next), "no way leads from {present:?} to {next:?}");
            let changes = *present != next;
            *present = next;
            changes
        });
        // Last, so that a client that sees readiness change finds that requests have followed.
        match reason {
            None => self.ready.ready(),
            Some(why) => self.ready.not_ready(why),
        }
    }

    /// The leader lacks something on which it decides, but goes on to answer. The condition holds
    /// again at the next [`publish`](Self::publish).
    pub(crate) fn lacks(&self, why: &str) {
        self.ready.not_ready(why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coordinator_leads_only_after_a_claim_and_recovers_only_from_the_lead() {
        let states = [
            Leadership::Joining("a".into()),
            Leadership::StandingBy,
            Leadership::Claiming("b".into()),
            Leadership::Leading,
            Leadership::Recovering("c".into()),
        ];
        let ways = states.iter().map(|from| {
            let to = states.iter().map(|next| if from.may_become(next) { '+' } else { '-' });
            to.collect::<String>()
        });
        assert_eq!(ways.collect::<Vec<_>>(), ["+++--", "-++--", "-+++-", "-+-++", "-+-++"]);
    }

    #[test]
    fn only_the_leader_takes_requests_and_all_others_say_why_not() {
        let health = headwater_service::Health::new();
        let (publisher, leadership) = LeadershipPublisher::new(health.condition("coordinator"));
        let refused = || leadership.borrow().require().err().map(|status| status.message().into());
        assert_eq!((refused(), health.is_ready()), (Some(READING.to_owned()), false));
        publisher.publish(Leadership::Claiming("no broker".into()));
        assert_eq!((refused(), health.is_ready()), (Some("no broker".to_owned()), false));
        publisher.publish(Leadership::Leading);
        assert_eq!((refused(), health.is_ready()), (None, true));
        publisher.lacks("no topic");
        assert_eq!((refused(), health.is_ready()), (None, false));
        publisher.publish(Leadership::Leading);
        assert_eq!((refused(), health.is_ready()), (None, true));
    }
}
