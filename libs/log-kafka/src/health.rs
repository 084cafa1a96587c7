//! Whether the brokers can be reached, asked by a thread of its own, so that everybody else is told once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use parking_lot::Mutex;

use crate::{
    admin::Admin,
    client::{
        connection_info::ConnectionInfo,
        context::Context,
        fault::{Fault, FaultKind},
    },
};

/// How often the brokers are asked.
const INTERVAL: Duration = Duration::from_secs(2);
/// How often it looks whether it shall end.
const LOOK: Duration = Duration::from_millis(100);

type ReachabilityListener = Box<dyn Fn(Result<(), String>) + Send + Sync>;

#[derive(Default)]
pub(crate) struct Health {
    state: Mutex<HealthState>,
    stop: AtomicBool,
}

#[derive(Default)]
struct HealthState {
    /// `None`: not known yet.
    reached: Option<Result<(), String>>,
    /// Of what kind the status is.
    kind: Option<FaultKind>,
    told: Vec<ReachabilityListener>,
}

impl Health {
    pub(crate) fn watch(
        self: &Arc<Self>,
        admin: Arc<Admin>,
        context: Context,
        info: ConnectionInfo,
    ) {
        let health = self.clone();
        let spawned = thread::Builder::new().name("kafka-health".into()).spawn(move || {
            while !health.stop.load(Ordering::Relaxed) {
                match admin.ping() {
                    Ok(()) => {
                        context.status.clear_fault();
                        health.tell(None, Ok(()));
                    }
                    Err(error) => {
                        let fault = context.status.fault().unwrap_or_else(|| {
                            let source = std::error::Error::source(&error);
                            let reason =
                                source.map_or_else(|| error.to_string(), |it| it.to_string());
                            Fault { kind: FaultKind::Network, reason }
                        });
                        health.tell(Some(fault.kind), Err(info.explain(&fault)));
                    }
                }
                let mut slept = Duration::ZERO;
                while slept < INTERVAL && !health.stop.load(Ordering::Relaxed) {
                    thread::sleep(LOOK);
                    slept += LOOK;
                }
            }
        });
        if let Err(error) = spawned {
            tracing::error!(%error, "nobody watches the brokers");
        }
    }

    /// ClusterStatus of another kind is news: brokers that are there at last, and then refuse us.
    fn tell(&self, kind: Option<FaultKind>, reached: Result<(), String>) {
        let mut state = self.state.lock();
        let changed = state.reached.is_none() || state.kind != kind;
        (state.reached, state.kind) = (Some(reached.clone()), kind);
        if changed {
            for told in &state.told {
                told(reached.clone());
            }
        }
    }

    pub(crate) fn on_reachable(&self, told: ReachabilityListener) {
        let mut state = self.state.lock();
        if let Some(reached) = &state.reached {
            told(reached.clone());
        }
        state.told.push(told);
    }

    /// Why the brokers cannot be reached, if that is so.
    pub(crate) fn unreachable(&self) -> Option<String> {
        self.state.lock().reached.as_ref().and_then(|reached| reached.as_ref().err().cloned())
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
