//! Whether the brokers can be reached: a thread asks them, and tells all who want to know.
//!
//! Two things show that they can: an answer to the thread's own question, or a recent answer to any
//! other client of the log. A client that hears nothing while others do is deaf, and is replaced.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use headwater_log::Error;
use parking_lot::Mutex;

use crate::{
    admin::Admin,
    client::{
        cluster_status::ClusterStatus,
        connection_info::ConnectionInfo,
        fault::{Fault, FaultKind},
        rebootstrap::Rebootstrap,
    },
    config::KafkaConfig,
};

/// How often the brokers are asked.
const INTERVAL: Duration = Duration::from_secs(2);
/// How often the thread looks whether to end.
const LOOK: Duration = Duration::from_millis(100);
/// How old an answer to another client may be when our own question has failed.
const RECENT: Duration = Duration::from_secs(5);
/// After so many failures in a row the clients are replaced even if no client hears anything: it
/// cannot be seen then which side is deaf.
const FAILURES: u32 = 3;

type ReachabilityListener = Box<dyn Fn(Result<(), String>) + Send + Sync>;

/// Whether the brokers were reached when they were asked last.
#[derive(Default)]
pub(crate) struct Health {
    state: Mutex<HealthState>,
    stop: AtomicBool,
}

#[derive(Default)]
struct HealthState {
    /// `None` until the brokers are asked for the first time.
    reached: Option<Result<(), String>>,
    /// The kind of the fault, if the brokers cannot be reached.
    kind: Option<FaultKind>,
    listeners: Vec<ReachabilityListener>,
}

impl Health {
    /// Starts the thread that asks.
    pub(crate) fn watch(
        self: &Arc<Self>,
        admin: Arc<Admin>,
        status: ClusterStatus,
        config: &KafkaConfig,
    ) {
        let watcher = Watcher {
            health: self.clone(),
            admin,
            status,
            info: ConnectionInfo::new(config),
            rebootstraps: [Rebootstrap::new(config), Rebootstrap::new(config)],
            failures: 0,
        };
        let spawned =
            thread::Builder::new().name("kafka-health".into()).spawn(move || watcher.run());
        if let Err(error) = spawned {
            tracing::error!(%error, "the brokers are not watched: their thread cannot be started");
        }
    }

    /// Tells the listeners if the brokers are reached or not for the first time, or if the kind of
    /// the fault has changed: brokers that come up and then refuse us are news.
    fn tell(&self, kind: Option<FaultKind>, reached: Result<(), String>) {
        let mut state = self.state.lock();
        let changed = state.reached.is_none() || state.kind != kind;
        (state.reached, state.kind) = (Some(reached.clone()), kind);
        if changed {
            for listener in &state.listeners {
                listener(reached.clone());
            }
        }
    }

    /// Calls the listener now, if the state is known, and at every change.
    pub(crate) fn on_reachable(&self, listener: ReachabilityListener) {
        let mut state = self.state.lock();
        if let Some(reached) = &state.reached {
            listener(reached.clone());
        }
        state.listeners.push(listener);
    }

    /// Why the brokers cannot be reached; `None` if they can, or if that is not known yet.
    pub(crate) fn unreachable(&self) -> Option<String> {
        self.state.lock().reached.as_ref().and_then(|reached| reached.as_ref().err().cloned())
    }

    /// Ends the thread soon, without waiting for it.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The thread that asks.
struct Watcher {
    health: Arc<Health>,
    admin: Arc<Admin>,
    status: ClusterStatus,
    info: ConnectionInfo,
    rebootstraps: [Rebootstrap; 2],
    /// In a row.
    failures: u32,
}

impl Watcher {
    fn run(mut self) {
        while !self.has_to_stop() {
            match self.admin.ping() {
                Ok(()) => {
                    self.reached();
                    self.admin.refresh_topics();
                }
                Err(error) => self.failed(&error),
            }
            self.admin.restore_brokers(&mut self.rebootstraps);
            let mut slept = Duration::ZERO;
            while slept < INTERVAL && !self.has_to_stop() {
                thread::sleep(LOOK);
                slept += LOOK;
            }
        }
    }

    fn has_to_stop(&self) -> bool {
        self.health.stop.load(Ordering::Relaxed)
    }

    fn reached(&mut self) {
        self.failures = 0;
        self.status.clear_fault();
        self.health.tell(None, Ok(()));
    }

    fn failed(&mut self, error: &Error) {
        self.failures += 1;
        let others_hear = self.status.answered_within(RECENT);
        if others_hear || self.failures.is_multiple_of(FAILURES) {
            tracing::debug!(%error, others_hear, "the clients that ask are replaced");
            if let Err(error) = self.admin.renew() {
                tracing::warn!(%error, "the clients that ask cannot be replaced");
            }
        }
        if others_hear {
            return self.reached();
        }
        let fault = self.status.fault().unwrap_or_else(|| {
            let source = std::error::Error::source(error);
            let reason = source.map_or_else(|| error.to_string(), |source| source.to_string());
            Fault { kind: FaultKind::Network, reason }
        });
        self.health.tell(Some(fault.kind), Err(self.info.explain(&fault)));
    }
}

#[cfg(test)]
mod tests;
