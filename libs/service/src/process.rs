//! One service in a process of its own, from its first listener to its last line.
//!
//! ```text
//! listen ──► connect to the log ──► start the service ──► serve ──► signal ──► drain ──► flush ──► end
//!   alive, not ready ─────────────────────────────────────┤ ready ├─ not ready ─────────────────────┤
//! ```
//!
//! The servers answer from the first moment, so that whoever watches the process sees that it is alive and
//! why it is not ready. A log that cannot be reached is no reason to end: it is waited for. What only a
//! person can mend is: a process that is restarted for ever tells nobody what is wrong.

use std::{path::PathBuf, sync::Arc, time::Duration};

use headwater_log::{Log, Membership};
use headwater_log_kafka::{KafkaConfig, KafkaLog};
use headwater_types::{Remedy, SystemClock};
use parking_lot::Mutex;
use tokio::{
    net::TcpListener,
    runtime::Handle,
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tonic::service::Routes;

use crate::{
    Condition, Health, Metrics, Node, Service, Shutdown, StopReport, Tasks, exit_code, follow,
    late::Late,
    outage::Outage,
    remedy_of,
    serve::{Served, Servers},
    settings::Settings,
};

/// How long a log that has not answered yet is waited for before it is asked for something.
const FIRST_CONTACT: Duration = Duration::from_secs(15);

/// How long the tasks of a start that failed may take to end.
const AFTER_FAILED_START: Duration = Duration::from_secs(5);

/// What is always left for the log to write what it holds.
const FLUSH: Duration = Duration::from_secs(1);

/// How long the log may take to be taken down.
const FAREWELL: Duration = Duration::from_secs(2);

/// Is told whether the log can be reached, and else why not.
pub(crate) type Told = Box<dyn Fn(Result<(), String>) + Send + Sync>;

/// A log over a network, as its process sees it.
pub(crate) struct RemoteLog {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) membership: Arc<dyn Membership>,
    pub(crate) on_reachable: Box<dyn FnOnce(Told) + Send>,
    /// Writes what it holds, within the time given.
    pub(crate) close: Box<dyn FnOnce(Duration) + Send>,
}

impl RemoteLog {
    /// Kafka. Waits for no broker: an error is one of the settings.
    pub(crate) fn kafka(config: &KafkaConfig, client: &str) -> Result<Self, headwater_log::Error> {
        let kafka = KafkaLog::connect(config, client)?;
        let (watched, closed) = (kafka.clone(), kafka.clone());
        Ok(Self {
            log: kafka.clone(),
            membership: kafka,
            on_reachable: Box::new(move |told| watched.on_reachable(told)),
            close: Box::new(move |deadline| closed.close(deadline)),
        })
    }
}

/// Where a process is.
pub(crate) struct Place {
    pub(crate) data: PathBuf,
    /// See [`Node::directory`].
    pub(crate) directory: String,
    /// gRPC and HTTP.
    pub(crate) listeners: (TcpListener, TcpListener),
}

/// How a process ended.
#[derive(Debug, PartialEq)]
pub(crate) struct Outcome {
    pub(crate) code: u8,
    /// What a person is told.
    pub(crate) line: String,
}

impl Outcome {
    fn failed(remedy: Option<Remedy>, line: String) -> Self {
        Self { code: remedy.map_or(1, exit_code), line }
    }
}

/// Runs the service until `stop` or a failure.
pub(crate) async fn run<S: Service>(
    settings: Settings<S::Config>,
    place: Place,
    stop: &Shutdown,
    connect: impl FnOnce(&KafkaConfig, &str) -> Result<RemoteLog, headwater_log::Error>,
) -> Outcome {
    let Settings { common, own } = settings;
    let Place { data, directory, listeners } = place;
    let instance = common.server.instance();
    let (health, metrics) = (Health::new(), Metrics::new());
    let process = health.condition(PROCESS);
    let log_condition = health.condition(LOG);
    let servers = common.kafka.bootstrap_servers.clone();
    log_condition.set_quietly(Some(format!("connecting to {servers}")));

    let server_tasks = Tasks::on(Handle::current(), Shutdown::new());
    let (grpc, http) = (Late::new(&health), Late::new(&health));
    let served = Served { grpc: grpc.grpc(), services: S::GRPC.to_vec(), http: http.http() };
    let servers_up = match Servers::start(&server_tasks, listeners, &health, &metrics, served) {
        Ok(servers) => servers,
        Err(error) => return Outcome::failed(None, format!("cannot serve: {error:#}")),
    };
    let client = format!("headwater-{}-{instance}", S::NAME);
    let remote = match connect(&common.kafka, &client) {
        Ok(remote) => remote,
        Err(error) => {
            let line = format!("[kafka] cannot be used: {}", crate::remedy::chain(&error));
            return Outcome::failed(Some(Remedy::Correct), line);
        }
    };
    let reachable = watch_log(remote.on_reachable, log_condition);

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
    let start = Start { process: &process, reachable, stop, servers: &server_tasks };
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
        serve::<S>(&health, [stop, &work.shutdown(), &server_tasks.shutdown()]).await;
    }

    let draining = Instant::now();
    process.not_ready("shutting down");
    let deadline = common.server.stop_deadline;
    let mut report = servers_up.drain(&work, deadline).await;
    let account = service.as_ref().and_then(S::account);
    drop(service);
    let left = deadline.saturating_sub(draining.elapsed()).max(FLUSH);
    let close = remote.close;
    let closing = tokio::task::spawn_blocking(move || close(left));
    if timeout(left + FLUSH, closing).await.is_err() {
        report.still_running.push("log".into());
    }
    // Clients of brokers that are away take long to destroy, and the process ends anyway.
    let _ = timeout(left.min(FAREWELL), tokio::task::spawn_blocking(move || drop(log))).await;
    match refused {
        Some(error) => Outcome::failed(remedy_of(&error), format!("cannot start: {error:#}")),
        None => outcome(&report, draining.elapsed(), deadline, account),
    }
}

/// Conditions of the process itself, beside those of the service.
const PROCESS: &str = "process";
pub(crate) const LOG: &str = "log";

/// Waits for the end, and says when everything is ready.
async fn serve<S: Service>(health: &Health, [stop, work, servers]: [&Shutdown; 3]) {
    let mut said = false;
    loop {
        tokio::select! {
            () = health.wait_ready(), if !said => {
                said = true;
                eprintln!("headwater-{}: ready", S::NAME);
            }
            () = stop.cancelled() => return,
            () = work.cancelled() => return,
            () = servers.cancelled() => return,
        }
    }
}

fn outcome(
    report: &StopReport,
    took: Duration,
    deadline: Duration,
    account: Option<String>,
) -> Outcome {
    if let Some(failure) = &report.failure {
        return Outcome::failed(failure.remedy, failure.to_string());
    }
    let account = account.map(|account| format!("; {account}")).unwrap_or_default();
    if report.still_running.is_empty() {
        let line = format!("stopped in {:.1} s{account}", took.as_secs_f64());
        return Outcome { code: 0, line };
    }
    let running = report.still_running.join(", ");
    Outcome::failed(None, format!("did not stop within {deadline:?}: {running}{account}"))
}

/// Keeps the condition of the log, and says once that it is away and once that it is back.
fn watch_log(
    on_reachable: Box<dyn FnOnce(Told) + Send>,
    condition: Condition,
) -> watch::Receiver<Option<bool>> {
    let (sender, reachable) = watch::channel(None);
    let outage = Mutex::new(Outage::new("Kafka"));
    on_reachable(Box::new(move |told| {
        // Held for the whole of it, so that two calls at a time cannot say the opposite of each other.
        let mut outage = outage.lock();
        sender.send_replace(Some(told.is_ok()));
        match told {
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

/// The start of a service, tried until it succeeds or a person is needed.
struct Start<'a> {
    process: &'a Condition,
    /// `None` until the log has said so for the first time.
    reachable: watch::Receiver<Option<bool>>,
    stop: &'a Shutdown,
    servers: &'a Tasks,
}

impl Start<'_> {
    /// The service, unless the process is to end; and the tasks to be waited for in any case.
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
                started = attempt::<S>(&mut reachable, config.clone(), &node) => started,
                () = stop.cancelled() => return (Ok(None), tasks),
                () = servers.wait() => return (Ok(None), tasks),
                () = tasks.wait() => match tasks.failure() {
                    Some(failure) => Err(failed(failure)),
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
            // The next attempt begins from nothing.
            tasks.stop(AFTER_FAILED_START).await;
            node.health.keep(&[PROCESS, LOG]);
            node.metrics.clear();
            let reason = format!("{error:#}");
            // Of a log that is away enough is said.
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

async fn attempt<S: Service>(
    reachable: &mut watch::Receiver<Option<bool>>,
    config: S::Config,
    node: &Node,
) -> anyhow::Result<S> {
    // A log that says that it is away need not be asked; one that says nothing has to be.
    let there = reachable.wait_for(|reachable| *reachable == Some(true));
    let _ = timeout(FIRST_CONTACT, there).await;
    follow::create_topics(&*node.log).await?;
    S::start(config, node).await
}

/// A failure of a task as an error with the remedy that it had.
fn failed(failure: crate::Failure) -> anyhow::Error {
    match failure.remedy {
        // What failed has been tried again by its own rules: whoever started it decides no more.
        Some(Remedy::Retry) | None => anyhow::anyhow!(failure.to_string()),
        Some(Remedy::Correct | Remedy::StandDown | Remedy::Repair) => anyhow::Error::new(failure),
    }
}

#[cfg(test)]
mod tests;
