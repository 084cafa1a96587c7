//! One service in a process of its own, from its listeners to the last line that it prints.
//!
//! ```text
//! listen ──► connect ──► start the service ──► serve ──► signal ──► drain ──► flush ──► end
//!   alive, not ready ──────────────────────────┤ ready ├─ not ready ─────────────────────┤
//! ```
//!
//! The servers answer from the first moment, so that probes see that the process is alive and why
//! it is not ready. While the log cannot be reached the process waits for it. The process ends only
//! for a fault that a person must correct: a process that is restarted for ever tells nobody what
//! is wrong.
//!
//! The order of [`run`]: servers with [`DeferredRoutes`], the log ([`RemoteLog`]), the start of the
//! service ([`StartLoop`]), serving, and then the shutdown: drain the servers, flush and close the
//! log.

use std::{path::PathBuf, sync::Arc, time::Duration};

use headwater_log::{Log, Membership};
use headwater_log_kafka::{KafkaConfig, KafkaLog};
use headwater_types::{Remedy, SystemClock, error_chain};
use parking_lot::Mutex;
use tokio::{
    net::TcpListener,
    runtime::Handle,
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tonic::service::Routes;

use crate::{
    Condition, Health, Metrics, Node, Service, Shutdown, StopReport, TaskFailure, Tasks,
    deferred_routes::DeferredRoutes,
    exit_code, follow,
    health::LOG,
    outage::Outage,
    remedy_of,
    serve::{Served, Servers},
    settings::Settings,
};

/// How long a start waits for the log to say that it can be reached, before it asks the log
/// something.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// How long the tasks of a start that failed may take to end.
const FAILED_START_STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// The log has at least this long to write what it holds.
const MIN_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the destruction of the log's clients may take.
const LOG_DROP_TIMEOUT: Duration = Duration::from_secs(2);

/// The name of the condition of the process itself, beside the log's and those of the service.
const PROCESS: &str = "process";

/// Is called when the log becomes reachable, or with the reason why it is not.
pub(crate) type ReachabilityCallback = Box<dyn Fn(Result<(), String>) + Send + Sync>;

/// A log over a network, as its process sees it.
pub(crate) struct RemoteLog {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) membership: Arc<dyn Membership>,
    pub(crate) on_reachable: Box<dyn FnOnce(ReachabilityCallback) + Send>,
    /// Writes what the log holds, within the time given.
    pub(crate) close: Box<dyn FnOnce(Duration) + Send>,
}

impl RemoteLog {
    /// Makes the log on Kafka, without waiting for a broker. An error is a fault in the settings.
    pub(crate) fn kafka(config: &KafkaConfig, client: &str) -> Result<Self, headwater_log::Error> {
        let kafka = KafkaLog::connect(config, client)?;
        let (watched, closed) = (kafka.clone(), kafka.clone());
        Ok(Self {
            log: kafka.clone(),
            membership: kafka,
            on_reachable: Box::new(move |callback| watched.on_reachable(callback)),
            close: Box::new(move |deadline| closed.close(deadline)),
        })
    }
}

/// The resources of its machine that a process holds before it connects to anything.
pub(crate) struct LocalResources {
    pub(crate) data: PathBuf,
    /// See [`Node::directory`].
    pub(crate) directory: String,
    /// The listeners of gRPC and of HTTP.
    pub(crate) listeners: (TcpListener, TcpListener),
}

/// How a process ended.
#[derive(Debug, PartialEq)]
pub(crate) struct ProcessExit {
    pub(crate) code: u8,
    /// The last line, for a person.
    pub(crate) line: String,
}

impl ProcessExit {
    fn failed(remedy: Option<Remedy>, line: String) -> Self {
        Self { code: remedy.map_or(1, exit_code), line }
    }
}

/// Runs the service until `stop` or a failure.
pub(crate) async fn run<S: Service>(
    settings: Settings<S::Config>,
    local: LocalResources,
    stop: &Shutdown,
    connect: impl FnOnce(&KafkaConfig, &str) -> Result<RemoteLog, headwater_log::Error>,
) -> ProcessExit {
    let Settings { common, own } = settings;
    let LocalResources { data, directory, listeners } = local;
    let instance = common.server.instance();
    let (health, metrics) = (Health::new(), Metrics::new());
    let process = health.condition(PROCESS);
    let log_condition = health.condition(LOG);
    let servers = common.kafka.bootstrap_servers.clone();
    log_condition.set_quietly(Some(format!("connecting to {servers}")));

    // Listen: until the service has started, its routes answer that it is starting.
    let server_tasks = Tasks::on(Handle::current(), Shutdown::new());
    let (grpc, http) = (DeferredRoutes::new(&health), DeferredRoutes::new(&health));
    let served = Served { grpc: grpc.grpc(), services: S::GRPC.to_vec(), http: http.http() };
    let servers_up = match Servers::start(&server_tasks, listeners, &health, &metrics, served) {
        Ok(servers) => servers,
        Err(error) => return ProcessExit::failed(None, format!("cannot serve: {error:#}")),
    };

    // Connect: this waits for no broker.
    let client = format!("headwater-{}-{instance}", S::NAME);
    let remote = match connect(&common.kafka, &client) {
        Ok(remote) => remote,
        Err(error) => {
            let line = format!("[kafka] cannot be used: {}", error_chain(&error));
            return ProcessExit::failed(Some(Remedy::Correct), line);
        }
    };
    let reachable = watch_log(remote.on_reachable, log_condition);

    // Start the service, and serve.
    let log = remote.log;
    let node = Node {
        log: log.clone(),
        membership: remote.membership,
        tasks: Tasks::on(Handle::current(), Shutdown::new()),
        metrics,
        health: health.clone(),
        clock: Arc::new(SystemClock),
        data,
        instance,
        directory,
        checkpoints: common.checkpoints.url.clone(),
        advertise: Some(common.server.advertised()),
    };
    let start = StartLoop { process: &process, reachable, stop, servers: &server_tasks };
    let (started, work) = start.run::<S>(own, node).await;
    let (service, refused) = match started {
        Ok(service) => (service, None),
        Err(error) => (None, Some(error)),
    };
    if let Some(service) = &service {
        let mut routes = Routes::builder();
        service.add_to(&mut routes);
        grpc.set(routes.routes().prepare().into_axum_router());
        http.set(service.http());
        process.ready();
        serve_until_stopped::<S>(&health, [stop, &work.shutdown(), &server_tasks.shutdown()]).await;
    }

    // Drain: accepted requests are finished, then the servers end.
    let draining = Instant::now();
    process.not_ready("shutting down");
    let deadline = common.server.stop_deadline;
    let mut report = servers_up.drain(&work, deadline).await;
    let summary = service.as_ref().and_then(S::summary);
    drop(service);

    // Flush the log and close it.
    let left = deadline.saturating_sub(draining.elapsed()).max(MIN_FLUSH_TIMEOUT);
    let close = remote.close;
    let closing = tokio::task::spawn_blocking(move || close(left));
    if timeout(left + MIN_FLUSH_TIMEOUT, closing).await.is_err() {
        report.still_running.push("log".into());
    }
    // A client whose brokers are away takes long to destroy, and the process ends anyway.
    let _ =
        timeout(left.min(LOG_DROP_TIMEOUT), tokio::task::spawn_blocking(move || drop(log))).await;
    match refused {
        Some(error) => ProcessExit::failed(remedy_of(&error), format!("cannot start: {error:#}")),
        None => exit_of(&report, draining.elapsed(), deadline, summary),
    }
}

/// Waits until one of these shuts down. Prints a line when everything is ready for the first time.
async fn serve_until_stopped<S: Service>(health: &Health, [stop, work, servers]: [&Shutdown; 3]) {
    let mut printed = false;
    loop {
        tokio::select! {
            () = health.wait_ready(), if !printed => {
                printed = true;
                eprintln!("headwater-{}: ready", S::NAME);
            }
            () = stop.cancelled() => return,
            () = work.cancelled() => return,
            () = servers.cancelled() => return,
        }
    }
}

fn exit_of(
    report: &StopReport,
    took: Duration,
    deadline: Duration,
    summary: Option<String>,
) -> ProcessExit {
    if let Some(failure) = &report.failure {
        return ProcessExit::failed(failure.remedy, failure.to_string());
    }
    let summary = summary.map(|summary| format!("; {summary}")).unwrap_or_default();
    if report.still_running.is_empty() {
        let line = format!("stopped in {:.1} s{summary}", took.as_secs_f64());
        return ProcessExit { code: 0, line };
    }
    let running = report.still_running.join(", ");
    ProcessExit::failed(None, format!("did not stop within {deadline:?}: {running}{summary}"))
}

/// Keeps the condition of the log current, and logs each outage once when it begins and once when
/// it ends.
fn watch_log(
    on_reachable: Box<dyn FnOnce(ReachabilityCallback) + Send>,
    condition: Condition,
) -> watch::Receiver<Option<bool>> {
    let (sender, reachable) = watch::channel(None);
    let outage = Mutex::new(Outage::new("Kafka"));
    on_reachable(Box::new(move |reached| {
        // The lock is held to the end, so that two calls at a time cannot leave contradictory
        // states.
        let mut outage = outage.lock();
        sender.send_replace(Some(reached.is_ok()));
        match reached {
            Ok(()) => {
                outage.over();
                condition.set_quietly(None);
            }
            Err(reason) => {
                if outage.failed(&reason) {
                    condition.set_quietly(Some(reason));
                }
            }
        }
    }));
    reachable
}

/// Starts a service, again and again until it succeeds or a person is needed.
struct StartLoop<'a> {
    process: &'a Condition,
    /// Whether the log can be reached; `None` until that is known.
    reachable: watch::Receiver<Option<bool>>,
    stop: &'a Shutdown,
    servers: &'a Tasks,
}

impl StartLoop<'_> {
    /// Returns the service, or `None` if the process must end; and the tasks to wait for in any
    /// case.
    async fn run<S: Service>(
        self,
        config: S::Config,
        mut node: Node,
    ) -> (anyhow::Result<Option<S>>, Tasks) {
        let Self { process, mut reachable, stop, servers } = self;
        let mut outage = Outage::new("the start");
        loop {
            node.tasks = Tasks::on(Handle::current(), Shutdown::new());
            let tasks = node.tasks.clone();
            let started = tokio::select! {
                started = start_once::<S>(&mut reachable, config.clone(), &node) => started,
                () = stop.cancelled() => return (Ok(None), tasks),
                () = servers.wait() => return (Ok(None), tasks),
                () = tasks.wait() => match tasks.failure() {
                    Some(failure) => Err(start_error(failure)),
                    None => return (Ok(None), tasks),
                },
            };
            let error = match started {
                Ok(service) => return (Ok(Some(service)), tasks),
                Err(error) => error,
            };
            if remedy_of(&error) != Some(Remedy::Retry) {
                return (Err(error), tasks);
            }
            // The next start must find nothing of this one.
            tasks.stop(FAILED_START_STOP_TIMEOUT).await;
            node.health.keep(&[PROCESS, LOG]);
            node.metrics.clear();
            let reason = format!("{error:#}");
            // `watch_log` has logged already that the log is away.
            let away = *reachable.borrow() == Some(false);
            let news = if away { outage.note(&reason) } else { outage.failed(&reason) };
            if news {
                process.set_quietly(Some(format!("starting: {reason}")));
            }
            tokio::select! {
                () = sleep(outage.wait()) => {}
                () = stop.cancelled() => {}
            }
        }
    }
}

async fn start_once<S: Service>(
    reachable: &mut watch::Receiver<Option<bool>>,
    config: S::Config,
    node: &Node,
) -> anyhow::Result<S> {
    // The log may not say anything by itself: after the timeout it is asked.
    let there = reachable.wait_for(|reachable| *reachable == Some(true));
    let _ = timeout(CONNECT_TIMEOUT, there).await;
    follow::create_topics(&*node.log).await?;
    S::start(config, node).await
}

/// The failure of a task as the error of a start.
fn start_error(failure: TaskFailure) -> anyhow::Error {
    match failure.remedy {
        // The task was restarted by its own rule already, so the start is not tried again for it.
        Some(Remedy::Retry) | None => anyhow::anyhow!(failure.to_string()),
        Some(Remedy::Correct | Remedy::StandDown | Remedy::Repair) => anyhow::Error::new(failure),
    }
}

#[cfg(test)]
mod tests;
