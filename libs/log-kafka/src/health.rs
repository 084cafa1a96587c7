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

use crate::{admin::Admin, context::Context};

/// How often the brokers are asked.
const INTERVAL: Duration = Duration::from_secs(2);
/// How often it looks whether it shall end.
const LOOK: Duration = Duration::from_millis(100);

type Told = Box<dyn Fn(Result<(), String>) + Send + Sync>;

#[derive(Default)]
pub(crate) struct Health {
    state: Mutex<State>,
    stop: AtomicBool,
}

#[derive(Default)]
struct State {
    /// `None`: not known yet.
    reached: Option<Result<(), String>>,
    told: Vec<Told>,
}

impl Health {
    pub(crate) fn watch(self: &Arc<Self>, admin: Arc<Admin>, context: Context, servers: String) {
        let health = self.clone();
        let spawned = thread::Builder::new().name("kafka-health".into()).spawn(move || {
            while !health.stop.load(Ordering::Relaxed) {
                let reached = admin.ping().map_err(|error| {
                    let reason = match std::error::Error::source(&error) {
                        Some(source) => source.to_string(),
                        None => error.to_string(),
                    };
                    format!("Kafka at {servers} cannot be reached: {reason}")
                });
                if reached.is_ok() {
                    context.trouble.clear();
                }
                health.tell(reached);
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

    fn tell(&self, reached: Result<(), String>) {
        let mut state = self.state.lock();
        let changed = state.reached.as_ref().map(Result::is_ok) != Some(reached.is_ok());
        state.reached = Some(reached.clone());
        if changed {
            for told in &state.told {
                told(reached.clone());
            }
        }
    }

    pub(crate) fn on_reachable(&self, told: Told) {
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
