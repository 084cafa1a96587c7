use std::sync::atomic::AtomicUsize;

use super::*;

/// Bounds a failing test.
const SOON: Duration = Duration::from_secs(60);

#[tokio::test]
async fn shutdown_waits_for_every_task_and_thread() {
    let tasks = Tasks::new();
    let done = Arc::new(AtomicUsize::new(0));
    let in_task = done.clone();
    tasks.spawn_once("task", {
        let shutdown = tasks.shutdown();
        async move {
            shutdown.cancelled().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            in_task.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    });
    let in_thread = done.clone();
    tasks.spawn_thread_once("thread", move |shutdown| {
        while !shutdown.is_cancelled() {
            std::thread::sleep(Duration::from_millis(1));
        }
        in_thread.fetch_add(1, Ordering::SeqCst);
        Ok(())
    });
    assert_eq!(tasks.running(), ["task", "thread"]);

    let report = tasks.stop(SOON).await;

    assert!(report.is_clean(), "{report:?}");
    assert_eq!(done.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_task_that_does_not_stop_by_the_deadline_is_named() {
    let tasks = Tasks::new();
    tasks.spawn_once("deaf", std::future::pending());
    tasks.spawn_once("prompt", async { Ok(()) });
    while tasks.running() != ["deaf"] {
        tokio::task::yield_now().await;
    }

    let report = tasks.stop(Duration::from_millis(50)).await;

    assert_eq!(report.still_running, ["deaf"]);
}

#[tokio::test]
async fn a_failure_that_must_stop_the_process_does_and_is_reported() {
    let tasks = Tasks::new();
    tasks.spawn("writer", OnFailure::Stop, |_| async {
        Err(anyhow::anyhow!("disk").context("cannot write"))
    });
    tokio::time::timeout(SOON, tasks.wait()).await.expect("shutdown begins");

    let failure = tasks.stop(SOON).await.failure.expect("a failure");

    assert_eq!(failure.to_string(), "writer failed: cannot write: disk");
}

#[tokio::test]
async fn a_panic_is_a_failure_in_tasks_and_in_threads() {
    let tasks = Tasks::new();
    tasks.spawn("task", OnFailure::Stop, |_| async { panic!("index 7") });
    tokio::time::timeout(SOON, tasks.wait()).await.expect("shutdown begins");
    assert_eq!(tasks.failure().expect("a failure").reason, "panicked: index 7");

    let tasks = Tasks::new();
    tasks.spawn("task", OnFailure::Stop, |_| -> std::future::Ready<anyhow::Result<()>> {
        panic!("index 7")
    });
    tokio::time::timeout(SOON, tasks.wait()).await.expect("shutdown begins");
    assert_eq!(tasks.failure().expect("a failure").reason, "panicked: index 7");

    let tasks = Tasks::new();
    tasks.spawn_thread("thread", OnFailure::Stop, |_| panic!("index {}", 8));
    tokio::time::timeout(SOON, tasks.wait()).await.expect("shutdown begins");
    assert_eq!(tasks.failure().expect("a failure").reason, "panicked: index 8");
}

#[tokio::test]
async fn a_task_that_may_be_restarted_runs_until_it_succeeds() {
    let tasks = Tasks::new();
    let backoff = Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(4) };
    let runs = Arc::new(AtomicUsize::new(0));
    let count = |runs: &Arc<AtomicUsize>| match runs.fetch_add(1, Ordering::SeqCst) {
        0..3 => Err(anyhow::anyhow!("not yet")),
        _ => Ok(()),
    };
    let (in_task, in_thread) = (runs.clone(), Arc::new(AtomicUsize::new(0)));
    let thread_runs = in_thread.clone();
    tasks.spawn("task", OnFailure::Restart(backoff), move |_| std::future::ready(count(&in_task)));
    tasks.spawn_thread("thread", OnFailure::Restart(backoff), move |_| count(&in_thread));
    while !tasks.running().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    assert_eq!((runs.load(Ordering::SeqCst), thread_runs.load(Ordering::SeqCst)), (4, 4));
    assert!(tasks.failure().is_none() && !tasks.shutdown().is_cancelled());
}

#[test]
fn backoff_doubles_up_to_its_limit() {
    let backoff = Backoff::default();
    let waits: Vec<_> = [0, 1, 6, 7, 31, 32, 4000].map(|n| backoff.after(n).as_millis()).to_vec();
    assert_eq!(waits, [100, 200, 6400, 10_000, 10_000, 10_000, 10_000]);
}
