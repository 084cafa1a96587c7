//! Kafka and the services in containers: started, asked, killed, removed.
//!
//! | type | |
//! | --- | --- |
//! | [`Broker`] | Kafka on a network of its own; tests that only use it share [`shared_broker`] |
//! | [`Secured`] | a [`Broker`] that wants TLS or a login, or both; [`shared_secured`] |
//! | [`Service`] | one of Headwater's services beside a broker, without any privilege |
//! | [`ObjectStore`] | an S3-compatible store on a broker's network |
//! | [`Volume`] | a directory that outlives a container, or that several share |
//!
//! A test wraps its body in [`test`], which skips it where there is no engine and shows the logs of
//! its containers when it fails.
//!
//! # Nothing is left behind
//!
//! A container is removed when its value is dropped. Containers of a dead process are removed by
//! a child of it that waits for its end, and, should that have died too, by the next process that
//! uses this module: everything carries a label with the number of the process that made it.

use std::{
    collections::BTreeSet,
    future::Future,
    io::Write as _,
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
    sync::Mutex,
};

use anyhow::{Context as _, Result, bail, ensure};

mod broker;
mod container;
mod object_store;
mod ports;
mod secured;
mod service;

pub use broker::{Broker, SharedBroker, shared_broker};
pub use container::{Network, Volume};
pub use object_store::{KEY_ID, ObjectStore, SECRET};
pub use secured::{Secured, SharedSecured, shared_secured};
pub use service::{Kind, Options, Service};

/// The label of every container, network and volume; its value is the process that made it.
const LABEL: &str = "headwater.test";

/// The images, as `scripts/images` and `docker-compose.yml` name them.
const KAFKA: (&str, &str) = ("apache/kafka", "4.1.1");
const STORE: (&str, &str) = ("andrewgaul/s3proxy", "s3proxy-2.6.0");
const TAG: &str = "dev";

/// Removes containers, networks and volumes in any state. `$1` is a filter of docker.
const REMOVE: &str = r#"
docker ps --all --quiet --filter "$1" | xargs -r docker rm --force --volumes
docker network ls --quiet --filter "$1" | xargs -r docker network rm
docker volume ls --quiet --filter "$1" | xargs -r docker volume rm --force
"#;

tokio::task_local! {
    /// Logs of containers that were dropped while the body of [`test`] ran: it may still fail.
    static KEPT: Mutex<Vec<(String, String)>>;
}

/// Runs a test that needs containers.
///
/// Where no engine answers it says so in one line and passes; with `HEADWATER_REQUIRE_DOCKER=1` it
/// fails.
///
/// # Errors
///
/// The error of the body, after the logs of all its containers were printed.
pub async fn test(body: impl Future<Output = Result<()>>) -> Result<()> {
    if !engine().await? {
        return Ok(());
    }
    KEPT.scope(Mutex::default(), async {
        let result = body.await;
        if result.is_err() {
            let kept = KEPT.with(|kept| std::mem::take(&mut *lock(kept)));
            for (name, log) in kept {
                print_log(&name, &log);
            }
        }
        result
    })
    .await
}

/// Keeps the end of a container's log in case the test fails; prints it at once if the test has
/// failed.
fn keep_log(name: &str, since: &str) {
    let failing = std::thread::panicking();
    if !failing && KEPT.try_with(|_| ()).is_err() {
        return;
    }
    let log = log_of(name, &["--since", since, "--tail", "300"]);
    let log = log.unwrap_or_else(|error| format!("no log: {error:#}"));
    if failing {
        print_log(name, &log);
    } else {
        // It is there: this was asked above.
        let _ = KEPT.try_with(|kept| lock(kept).push((name.to_owned(), log)));
    }
}

fn print_log(name: &str, log: &str) {
    eprintln!("---- {name} said:\n{log}\n----");
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Whether an engine answers; the first call also removes what dead processes left.
async fn engine() -> Result<bool> {
    static FOUND: tokio::sync::OnceCell<Result<(), String>> = tokio::sync::OnceCell::const_new();
    let found = FOUND.get_or_init(|| async {
        let asked = docker(&["version", "--format", "{{.Server.Version}}"]).await;
        asked.map_err(|error| format!("{error:#}"))?;
        let ready = spawn(|| {
            remove_leftovers()?;
            leave_nothing()
        });
        ready.await.map_err(|error| format!("{error:#}"))
    });
    match found.await {
        Ok(()) => Ok(true),
        Err(why) if std::env::var_os("HEADWATER_REQUIRE_DOCKER").is_some_and(|it| it == "1") => {
            bail!("HEADWATER_REQUIRE_DOCKER=1, but there is no Docker engine: {why}")
        }
        Err(why) => {
            let test = std::thread::current().name().unwrap_or("a test").to_owned();
            // The output of a macro would be shown only if the test fails.
            writeln!(
                std::io::stderr(),
                "SKIPPED (no Docker engine): {test} ({})",
                why.lines().last().unwrap_or_default()
            )?;
            Ok(false)
        }
    }
}

/// Says what to do before the engine looks for a registry, which takes long where there is none.
async fn needs_image(image: &str) -> Result<()> {
    let there = docker(&["image", "inspect", "--format", "{{.Id}}", image]).await;
    there.with_context(|| format!("the image {image} is missing: run scripts/images")).map(drop)
}

/// Runs docker's command line and returns its stdout.
async fn docker(arguments: &[&str]) -> Result<String> {
    let arguments: Vec<String> = arguments.iter().map(|&it| it.to_owned()).collect();
    spawn(move || docker_now(&arguments)).await
}

/// Runs work on a thread that may block.
async fn spawn<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await?
}

fn docker_now(arguments: &[impl AsRef<std::ffi::OsStr>]) -> Result<String> {
    let output = Command::new("docker").args(arguments).stdin(Stdio::null()).output();
    let output = output.context("docker's command line")?;
    let shown: Vec<_> = arguments.iter().map(|it| it.as_ref().to_string_lossy()).collect();
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "docker {}: {}: {}",
        shown.join(" "),
        output.status,
        stderr.trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Both streams of a container's log.
fn log_of(name: &str, options: &[&str]) -> Result<String> {
    let output = Command::new("docker").arg("logs").args(options).arg(name).output()?;
    let (stdout, stderr) = (output.stdout, output.stderr);
    Ok(String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

fn our_label() -> String {
    format!("{LABEL}={}", std::process::id())
}

/// A name that no other test uses, neither of this process nor of another that lives.
fn unique(name: &str) -> String {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    format!("headwater-{}-{}-{name}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn remove_labelled(filter: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", REMOVE, "sh", filter]).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn remove_leftovers() -> Result<()> {
    let filter = format!("label={LABEL}");
    let mut makers = BTreeSet::new();
    for list in [&["ps", "--all"][..], &["network", "ls"], &["volume", "ls"]] {
        let format = format!("{{{{.Label \"{LABEL}\"}}}}");
        let listed = docker_now(&[list, &["--filter", &filter, "--format", &format]].concat())?;
        makers.extend(listed.lines().map(str::to_owned));
    }
    for maker in makers {
        if maker.parse().is_ok_and(is_alive) {
            continue;
        }
        remove_labelled(&format!("label={LABEL}={maker}")).status()?;
    }
    Ok(())
}

#[allow(unsafe_code, reason = "the standard library cannot ask whether a process lives")]
fn is_alive(pid: i32) -> bool {
    // SAFETY: kill() takes no pointers, and signal 0 is only a question.
    unsafe { libc::kill(pid, 0) == 0 }
}

/// Starts a child that waits for the end of this process, however it comes, and then removes what
/// it left.
///
/// It has a group of its own, so that what ends the tests does not end it, and none of their
/// descriptors, so that nobody waits for it.
fn leave_nothing() -> Result<()> {
    let mut command = Command::new("sh");
    // The pipe closes with this process.
    command.args(["-c", &format!("cat >/dev/null\n{REMOVE}"), "sh"]);
    command.arg(format!("label={}", our_label())).process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().context("the child that tidies up")?;
    // Its end of the pipe must stay open as long as this process lives.
    std::mem::forget(child);
    Ok(())
}
