//! Long-lived work: named, supervised, and waited for when the process ends.

use std::{
    any::Any,
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::watch};

use crate::{Shutdown, remedy::remedy_of, task_failure::TaskFailure};

#[cfg(test)]
mod tests;

/// What the failure of a task means for the process.
///
/// A task that returns `Ok` has finished, whatever this says. A panic is a failure.
#[derive(Clone, Copy, Debug)]
pub enum OnFailure {
    /// Nothing sensible goes on without it: begin shutdown, and end with this failure.
    Stop,
    /// Log it, wait, and run it again.
    Restart(Backoff),
}

impl OnFailure {
    /// [`OnFailure::Restart`] with the usual waits.
    pub fn restart() -> Self {
        Self::Restart(Backoff::default())
    }
}

/// Waits between restarts: from `first`, doubled each time, up to `longest`. After a run that
/// lasted longer than `longest` the waits begin at `first` again.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    pub first: Duration,
    pub longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(100), longest: Duration::from_secs(10) }
    }
}

impl Backoff {
    fn after(self, failures: u32) -> Duration {
        self.first.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX)).min(self.longest)
    }
}

/// How a shutdown ended.
#[derive(Clone, Debug, Default)]
pub struct StopReport {
    /// Tasks that had not ended at the deadline.
    pub still_running: Vec<String>,
    /// Why shutdown began, if a task's failure was the reason.
    pub failure: Option<TaskFailure>,
}

impl StopReport {
    pub fn is_clean(&self) -> bool {
        self.still_running.is_empty() && self.failure.is_none()
    }
}

/// The tasks and threads of a process. Cheap to clone; all clones are one set.
#[derive(Clone)]
pub struct Tasks {
    set: Arc<TaskSet>,
}

struct TaskSet {
    handle: Handle,
    shutdown: Shutdown,
    next: AtomicU64,
    running: Mutex<BTreeMap<u64, String>>,
    count: watch::Sender<usize>,
    failure: Mutex<Option<TaskFailure>>,
}

/// A task in the list of those that run. Dropping it removes the task, however the task ended.
struct RunningEntry {
    set: Arc<TaskSet>,
    id: u64,
}

impl Drop for RunningEntry {
    fn drop(&mut self) {
        let mut running = self.set.running.lock();
        running.remove(&self.id);
        self.set.count.send_replace(running.len());
    }
}

impl Tasks {
    /// Tasks on the current runtime.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn new() -> Self {
        Self::on(Handle::current(), Shutdown::new())
    }

    /// Tasks on this runtime that end with this shutdown.
    pub fn on(handle: Handle, shutdown: Shutdown) -> Self {
        let set = TaskSet {
            handle,
            shutdown,
            next: AtomicU64::new(0),
            running: Mutex::default(),
            count: watch::Sender::new(0),
            failure: Mutex::default(),
        };
        Self { set: Arc::new(set) }
    }

    /// The signal that every task gets, for servers and streams that run beside the tasks.
    pub fn shutdown(&self) -> Shutdown {
        self.set.shutdown.clone()
    }

    /// Runs `run` as a task, and calls it again for each restart.
    pub fn spawn<F, R>(&self, name: impl Into<String>, on_failure: OnFailure, mut run: F)
    where
        F: FnMut(Shutdown) -> R + Send + 'static,
        R: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let name = name.into();
        let (set, entry) = (self.set.clone(), self.list(&name));
        let supervise = async move {
            let _entry = entry;
            let mut failures = 0;
            loop {
                let started = tokio::time::Instant::now();
                // The future is a task of its own: a panic in it must not end this supervisor. The
                // call that makes the future may panic too.
                let future = catch_unwind(AssertUnwindSafe(|| run(set.shutdown.clone())));
                let outcome = match future {
                    Ok(future) => set.handle.spawn(future).await,
                    Err(panic) => Ok(Err(anyhow::anyhow!(panic_reason(&*panic)))),
                };
                let failure = match outcome {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => failed_with(&name, &error),
                    Err(error) if error.is_panic() => panicked(&name, &*error.into_panic()),
                    Err(_) => return,
                };
                let Some(wait) = set.failed(failure, on_failure, started.elapsed(), &mut failures)
                else {
                    return;
                };
                tokio::select! {
                    () = set.shutdown.cancelled() => return,
                    () = tokio::time::sleep(wait) => {}
                }
            }
        };
        self.set.handle.spawn(supervise);
    }

    /// Runs a future that cannot be restarted; its failure stops the process.
    pub fn spawn_once<R>(&self, name: impl Into<String>, future: R)
    where
        R: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let mut future = Some(future);
        self.spawn(name, OnFailure::Stop, move |_| {
            let future = future.take();
            async move {
                match future {
                    Some(future) => future.await,
                    None => Ok(()),
                }
            }
        });
    }

    /// Runs `run` on a thread of its own, for work that blocks or computes, and calls it again for
    /// each restart. `run` must ask its [`Shutdown`] between two pieces of work.
    pub fn spawn_thread<F>(&self, name: impl Into<String>, on_failure: OnFailure, mut run: F)
    where
        F: FnMut(Shutdown) -> anyhow::Result<()> + Send + 'static,
    {
        let name = name.into();
        let (set, entry) = (self.set.clone(), self.list(&name));
        let thread_name = name.clone();
        let body = move || {
            let _entry = entry;
            // A thread may start tasks and wait for asynchronous answers.
            let _runtime = set.handle.enter();
            let mut failures = 0;
            loop {
                let started = std::time::Instant::now();
                let outcome = catch_unwind(AssertUnwindSafe(|| run(set.shutdown.clone())));
                let failure = match outcome {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => failed_with(&name, &error),
                    Err(panic) => panicked(&name, &*panic),
                };
                let Some(wait) = set.failed(failure, on_failure, started.elapsed(), &mut failures)
                else {
                    return;
                };
                let ended = set.handle.block_on(async {
                    tokio::time::timeout(wait, set.shutdown.cancelled()).await.is_ok()
                });
                if ended {
                    return;
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name(thread_name.clone()).spawn(body) {
            let reason = format!("its thread could not be started: {error}");
            self.set.stop_for(TaskFailure { task: thread_name, reason, remedy: None });
        }
    }

    /// Runs `run` on a thread of its own, once; its failure stops the process.
    pub fn spawn_thread_once<F>(&self, name: impl Into<String>, run: F)
    where
        F: FnOnce(Shutdown) -> anyhow::Result<()> + Send + 'static,
    {
        let mut run = Some(run);
        self.spawn_thread(name, OnFailure::Stop, move |shutdown| match run.take() {
            Some(run) => run(shutdown),
            None => Ok(()),
        });
    }

    /// Begins shutdown at the first SIGTERM or SIGINT. The second signal ends the process at once,
    /// as an impatient operator expects.
    ///
    /// # Errors
    ///
    /// The system refuses signal handlers.
    pub fn stop_on_signals(&self) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let _runtime = self.set.handle.enter();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = self.shutdown();
        // This task is not listed: it waits for signals for ever, and shutdown must not wait for
        // it.
        self.set.handle.spawn(async move {
            let mut next = async || {
                tokio::select! {
                    _ = terminate.recv() => ("SIGTERM", 143),
                    _ = interrupt.recv() => ("SIGINT", 130),
                }
            };
            let (signal, _) = next().await;
            tracing::info!(signal, "shutting down");
            shutdown.begin();
            let (signal, code) = next().await;
            tracing::warn!(signal, "second signal, ending at once");
            std::process::exit(code);
        });
        Ok(())
    }

    /// The names of the tasks that run now.
    pub fn running(&self) -> Vec<String> {
        self.set.running.lock().values().cloned().collect()
    }

    /// The failure for which shutdown began; `None` if something else was the reason.
    pub fn failure(&self) -> Option<TaskFailure> {
        self.set.failure.lock().clone()
    }

    /// Waits until shutdown has begun, by a signal, a failure or [`Tasks::stop`].
    pub async fn wait(&self) {
        self.set.shutdown.cancelled().await;
    }

    /// Waits until no task runs, for `longest` at most. Returns whether no task runs.
    pub async fn wait_idle(&self, longest: Duration) -> bool {
        let mut count = self.set.count.subscribe();
        tokio::time::timeout(longest, count.wait_for(|&count| count == 0)).await.is_ok()
    }

    /// Begins shutdown and waits until all tasks have ended, at most `deadline`.
    pub async fn stop(&self, deadline: Duration) -> StopReport {
        self.set.shutdown.begin();
        // A timeout shows in `running`.
        let _ = self.wait_idle(deadline).await;
        let report = StopReport { still_running: self.running(), failure: self.failure() };
        if !report.still_running.is_empty() {
            tracing::warn!(tasks = ?report.still_running, "tasks did not stop in time");
        }
        report
    }

    fn list(&self, name: &str) -> RunningEntry {
        let id = self.set.next.fetch_add(1, Ordering::Relaxed);
        let mut running = self.set.running.lock();
        running.insert(id, name.to_owned());
        self.set.count.send_replace(running.len());
        RunningEntry { set: self.set.clone(), id }
    }
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

impl TaskSet {
    /// Handles a failure. Returns how long to wait before the next run; `None`: the task ends.
    fn failed(
        &self,
        failure: TaskFailure,
        on_failure: OnFailure,
        ran: Duration,
        failures: &mut u32,
    ) -> Option<Duration> {
        let TaskFailure { task, reason, remedy: _ } = &failure;
        if self.shutdown.is_cancelled() {
            tracing::warn!(task, reason, "task failed during shutdown");
            return None;
        }
        match on_failure {
            OnFailure::Stop => {
                self.stop_for(failure);
                None
            }
            OnFailure::Restart(backoff) => {
                if ran > backoff.longest {
                    *failures = 0;
                }
                let wait = backoff.after(*failures);
                *failures = failures.saturating_add(1);
                tracing::error!(task, reason, ?wait, "task failed and will be restarted");
                Some(wait)
            }
        }
    }

    fn stop_for(&self, failure: TaskFailure) {
        tracing::error!(task = failure.task, reason = failure.reason, "task failed, shutting down");
        self.failure.lock().get_or_insert(failure);
        self.shutdown.begin();
    }
}

fn failed_with(task: &str, error: &anyhow::Error) -> TaskFailure {
    let (reason, remedy) = (format!("{error:#}"), remedy_of(error));
    TaskFailure { task: task.to_owned(), reason, remedy }
}

fn panicked(task: &str, panic: &(dyn Any + Send)) -> TaskFailure {
    TaskFailure { task: task.to_owned(), reason: panic_reason(panic), remedy: None }
}

fn panic_reason(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("panicked: {}", text.unwrap_or("without a message"))
}
