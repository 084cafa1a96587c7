//! `headwater dev` as a child process.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use tonic::transport::{Channel, Endpoint};

use crate::{
    failpoints::{self, Failpoints},
    patience::PATIENCE,
    platform::Platform,
};

/// The binary under test.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("HEADWATER") {
            return path.into();
        }
        // target/<profile>/deps/<this test> lies two steps below where cargo puts binaries.
        let test = std::env::current_exe().expect("a test knows its own path");
        let directory =
            test.ancestors().nth(2).expect("cargo puts tests into target/<profile>/deps");
        if let Some(cargo) = std::env::var_os("CARGO") {
            // The whole workspace, so that shared dependencies keep the features they were built
            // with.
            let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
            let mut build = Command::new(cargo);
            build.args([
                "build",
                "--quiet",
                "--workspace",
                "--bin",
                "headwater",
                "--manifest-path",
                manifest,
            ]);
            let built = build.status().is_ok_and(|status| status.success());
            assert!(built, "cargo build --workspace --bin headwater failed");
        }
        let binary = directory.join("headwater");
        assert!(binary.exists(), "{} is missing", binary.display());
        binary
    })
}

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// A running server. Dropping it kills it.
pub struct Dev {
    child: Child,
    data: PathBuf,
    grpc: SocketAddr,
    http: SocketAddr,
    stderr: PathBuf,
    channel: Channel,
    failpoints: Failpoints,
}

impl Dev {
    /// Starts it and waits until it is ready.
    pub async fn start(data: &Path) -> Result<Self> {
        Self::start_with(data, "").await
    }

    /// As [`Dev::start`], with a configuration file of this content.
    pub async fn start_with(data: &Path, config: &str) -> Result<Self> {
        let (grpc, http) = (free_address()?, free_address()?);
        let stderr = data.with_extension("stderr");
        let mut command = Self::command(data, grpc, http);
        if !config.is_empty() {
            let path = data.with_extension("toml");
            fs::write(&path, config)?;
            command.arg("--config").arg(path);
        }
        let log = fs::OpenOptions::new().create(true).append(true).open(&stderr)?;
        let started = log.metadata()?.len();
        let failpoints = Failpoints::new()?;
        command.env(failpoints::VARIABLE, failpoints.directory());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?;
        let channel = Endpoint::from_shared(format!("http://{grpc}"))?.connect_lazy();
        let data = data.to_owned();
        let mut dev = Self { child, data, grpc, http, stderr, channel, failpoints };
        dev.wait_ready(started).await?;
        Ok(dev)
    }

    /// The command that starts it.
    pub fn command(data: &Path, grpc: SocketAddr, http: SocketAddr) -> Command {
        let mut command = Command::new(binary());
        // The settings of the person who runs the tests must not reach the tests.
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HEADWATER_"))
        {
            command.env_remove(name);
        }
        command.arg("dev").arg("--data").arg(data);
        command.args(["--listen", &grpc.to_string(), "--http", &http.to_string()]);
        command
    }

    async fn wait_ready(&mut self, since: u64) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = self.said_since(since);
            if said.contains("headwater dev: ready") {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("headwater dev ended with {status}:\n{said}");
            }
            ensure!(
                Instant::now() < deadline,
                "headwater dev is not ready after {PATIENCE:?}:\n{said}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn said_since(&self, since: u64) -> String {
        let bytes = fs::read(&self.stderr).unwrap_or_default();
        String::from_utf8_lossy(
            bytes.get(usize::try_from(since).unwrap_or(0)..).unwrap_or_default(),
        )
        .into_owned()
    }

    /// Its stderr, over all runs on this directory.
    pub fn said(&self) -> String {
        self.said_since(0)
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The points at which it can be made to stand still.
    pub fn failpoints(&self) -> &Failpoints {
        &self.failpoints
    }

    pub fn http_address(&self) -> SocketAddr {
        self.http
    }

    pub fn grpc_address(&self) -> SocketAddr {
        self.grpc
    }

    /// Sends SIGKILL: nothing is flushed, no client is told.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends SIGKILL while clients are connected: they find out by themselves.
    pub fn kill_beside(&self) -> Result<()> {
        signal(i32::try_from(self.child.id())?, libc::SIGKILL)
    }

    /// Sends SIGTERM, and fails unless the server ends in good order.
    pub async fn terminate(mut self) -> Result<()> {
        signal(i32::try_from(self.child.id())?, libc::SIGTERM)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "headwater dev ended with {status}:\n{}", self.said());
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "headwater dev does not end:\n{}", self.said());
            // The client's side of the connection runs on this thread, and has to close it too.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Whether it ended by itself.
    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Sends an HTTP/1.1 request and returns status and body, also when the server answers before
    /// it has read the whole request.
    pub fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.http)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut head = format!("POST {path} HTTP/1.1\r\nHost: headwater\r\nConnection: close\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        // The server may have answered and closed already; the answer counts.
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) =
            answer.split_once("\r\n\r\n").with_context(|| format!("{read:?}: {answer:?}"))?;
        let status = head.split(' ').nth(1).context("no status line")?.parse()?;
        Ok((status, body.to_owned()))
    }
}

impl Platform for Dev {
    fn ingest_channel(&self) -> Channel {
        self.channel.clone()
    }

    fn coordinator_channel(&self) -> Channel {
        self.channel.clone()
    }

    fn query_channel(&self) -> Channel {
        self.channel.clone()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("headwater dev said:\n{}", self.said());
        }
    }
}

/// An address of this machine that nobody listens on now.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

#[allow(unsafe_code, reason = "the standard library sends no signal but SIGKILL")]
fn signal(pid: i32, signal: i32) -> Result<()> {
    // SAFETY: kill() takes no pointers; the child has not been waited for, so the number is still
    // its own.
    ensure!(unsafe { libc::kill(pid, signal) } == 0, "kill: {}", std::io::Error::last_os_error());
    Ok(())
}
