use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::watch;
use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

use crate::{OnFailure, Tasks};

/// The name of the condition that the log can be reached.
pub(crate) const LOG: &str = "log";

/// Whether the process can serve: ready when every named [`Condition`] holds.
///
/// Cheap to clone; all clones are one. A process without conditions is ready.
#[derive(Clone)]
pub struct Health {
    // `None`: the condition holds. `Some`: why it does not.
    unmet: Arc<watch::Sender<BTreeMap<String, Option<String>>>>,
}

/// One condition for being ready. The part of the process that knows its state holds it.
#[derive(Clone)]
pub struct Condition {
    name: String,
    health: Health,
}

impl Condition {
    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn ready(&self) {
        self.set(None, true);
    }

    /// `reason` tells a person what is missing, and what it waits for.
    pub fn not_ready(&self, reason: impl Into<String>) {
        self.set(Some(reason.into()), true);
    }

    /// As [`Condition::ready`] or [`Condition::not_ready`], for a caller that logs the change
    /// itself.
    pub(crate) fn set_quietly(&self, reason: Option<String>) {
        self.set(reason, false);
    }

    /// Removes the condition: the part of the process that it spoke for has ended.
    pub fn remove(self) {
        self.health.unmet.send_modify(|conditions| {
            conditions.remove(&self.name);
        });
    }

    fn set(&self, reason: Option<String>, say: bool) {
        self.health.unmet.send_if_modified(|conditions| match conditions.get_mut(&self.name) {
            Some(current) if *current == reason => false,
            Some(current) => {
                if say {
                    let ready = reason.is_none();
                    tracing::info!(condition = self.name, reason, ready, "condition changed");
                }
                *current = reason;
                true
            }
            None => false,
        });
    }
}

impl Health {
    pub fn new() -> Self {
        Self { unmet: Arc::new(watch::Sender::new(BTreeMap::new())) }
    }

    /// Adds a condition that does not hold yet; its reason is "starting".
    #[must_use]
    pub fn condition(&self, name: impl Into<String>) -> Condition {
        let name = name.into();
        self.unmet.send_modify(|conditions| {
            conditions.insert(name.clone(), Some("starting".into()));
        });
        Condition { name, health: self.clone() }
    }

    /// Removes all conditions but these: the parts of the process that held the others have ended.
    pub(crate) fn keep(&self, names: &[&str]) {
        self.unmet.send_modify(|conditions| {
            conditions.retain(|name, _| names.contains(&name.as_str()));
        });
    }

    pub fn is_ready(&self) -> bool {
        self.unmet.borrow().values().all(Option::is_none)
    }

    /// The conditions in the order of their names, with the reason of each that does not hold.
    pub fn conditions(&self) -> Vec<(String, Option<String>)> {
        self.unmet.borrow().iter().map(|(name, reason)| (name.clone(), reason.clone())).collect()
    }

    /// Whether the log as a whole cannot be reached. The process has logged that once, so tasks
    /// that wait for the log need not log it again.
    pub fn log_is_away(&self) -> bool {
        self.unmet.borrow().get(LOG).is_some_and(Option::is_some)
    }

    /// Resolves once every condition holds.
    pub async fn wait_ready(&self) {
        // The sender lives in `self`, so the channel cannot close meanwhile.
        let _ = self
            .unmet
            .subscribe()
            .wait_for(|conditions| conditions.values().all(Option::is_none))
            .await;
    }

    /// The standard gRPC health service, and a task that keeps it current. `services` are the full
    /// names of the services that this server offers (`headwater.ingest.v1.IngestService`). The
    /// empty name, which is always there, stands for the whole server.
    pub fn serve(&self, tasks: &Tasks, services: &[&str]) -> HealthServer<HealthService> {
        let reporter = HealthReporter::new();
        let server = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
        let names: Vec<String> = [""].iter().chain(services).map(|&name| name.to_owned()).collect();
        let changes = self.unmet.subscribe();
        tasks.spawn("health", OnFailure::Stop, move |shutdown| {
            let (reporter, names, mut changes) = (reporter.clone(), names.clone(), changes.clone());
            async move {
                loop {
                    let ready = changes.borrow_and_update().values().all(Option::is_none)
                        && !shutdown.is_cancelled();
                    let status =
                        if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
                    for name in &names {
                        reporter.set_service_status(name, status).await;
                    }
                    if shutdown.is_cancelled() {
                        return Ok(());
                    }
                    tokio::select! {
                        () = shutdown.cancelled() => {}
                        changed = changes.changed() => if changed.is_err() { return Ok(()) },
                    }
                }
            }
        });
        server
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic::Request;
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

    use super::*;

    #[test]
    fn a_process_is_ready_when_every_condition_holds() {
        let health = Health::new();
        assert!(health.is_ready());
        let (log, catalog) = (health.condition("log"), health.condition("catalog"));
        log.ready();
        assert!(!health.is_ready());
        catalog.ready();
        assert!(health.is_ready());
        log.not_ready("the disk is full");
        assert_eq!(
            health.conditions(),
            [("catalog".to_owned(), None), ("log".to_owned(), Some("the disk is full".to_owned()))]
        );
        log.remove();
        assert!(health.is_ready());
    }

    #[tokio::test]
    async fn the_grpc_health_service_follows_the_conditions_and_the_shutdown() {
        let (health, tasks) = (Health::new(), Tasks::new());
        let log = health.condition("log");
        let mut client =
            HealthClient::new(health.serve(&tasks, &["headwater.ingest.v1.IngestService"]));
        let mut check = async |service: &str, expected: ServingStatus| {
            // The task that reports runs beside us; the timeout only bounds a failing test.
            tokio::time::timeout(Duration::from_secs(60), async {
                loop {
                    let request = Request::new(HealthCheckRequest { service: service.into() });
                    let answer =
                        client.check(request).await.map(|answer| answer.into_inner().status);
                    if answer.is_ok_and(|status| status == expected as i32) {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
            })
            .await
            .unwrap_or_else(|_| panic!("{service:?} never became {expected:?}"));
        };

        check("headwater.ingest.v1.IngestService", ServingStatus::NotServing).await;
        log.ready();
        check("headwater.ingest.v1.IngestService", ServingStatus::Serving).await;
        check("", ServingStatus::Serving).await;
        tasks.shutdown().begin();
        check("", ServingStatus::NotServing).await;
    }
}
