//! Headwater's services in containers.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use testcontainers::{
    GenericImage, ImageExt as _,
    core::{AccessMode, IntoContainerPort as _, Mount},
};
use tonic::transport::{Channel, Endpoint};

use super::{
    TAG,
    broker::Broker,
    container::{Container, Network, Volume},
    needs_image,
    ports::free_port,
    spawn, unique,
};
use crate::{
    failpoints::{self, Failpoints},
    patience::PATIENCE,
};

/// The ports inside every container, as the images expose them.
const GRPC: u16 = 7400;
const HTTP: u16 = 7401;

/// The directories of the images that belong to their user.
const DATA: &str = "/var/lib/headwater";
const SCRATCH: &str = "/var/lib/headwater-query";
const CHECKPOINTS: &str = "/var/lib/headwater-checkpoints";

/// Where the directory of its failpoints is mounted.
const FAILPOINTS: &str = "/tmp/headwater-failpoints";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ingest,
    Processor,
    Coordinator,
    Query,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Processor => "processor",
            Self::Coordinator => "coordinator",
            Self::Query => "query",
        }
    }
}

/// The differences between services of one kind.
#[derive(Clone, Debug, Default)]
pub struct Options {
    settings: Vec<(String, String)>,
    data: Option<Volume>,
    checkpoints: Option<Volume>,
    bootstrap: Option<String>,
    mounts: Vec<(Volume, String)>,
}

impl Options {
    pub fn new() -> Self {
        Self::default()
    }

    /// A setting by its variable: `("HEADWATER_TELEMETRY__LOG", "debug")`.
    #[must_use]
    pub fn setting(mut self, variable: &str, value: &str) -> Self {
        self.settings.push((variable.into(), value.into()));
        self
    }

    /// A processor's own directory, which the query beside it reads. Without one it gets a
    /// directory that goes with its container.
    #[must_use]
    pub fn data(mut self, volume: &Volume) -> Self {
        self.data = Some(volume.clone());
        self
    }

    /// The store of checkpoints, which processors and the coordinator share.
    #[must_use]
    pub fn checkpoints(mut self, volume: &Volume) -> Self {
        self.checkpoints = Some(volume.clone());
        self
    }

    /// A directory that it only reads.
    #[must_use]
    pub fn mount(mut self, volume: &Volume, path: &str) -> Self {
        self.mounts.push((volume.clone(), path.into()));
        self
    }

    /// An address instead of the broker's own, a wrong one for example.
    #[must_use]
    pub fn bootstrap(mut self, servers: &str) -> Self {
        self.bootstrap = Some(servers.into());
        self
    }
}

/// A service beside a broker: its root file system is read-only, it has no privileges and the
/// image's user.
pub struct Service {
    container: Container,
    kind: Kind,
    grpc: SocketAddr,
    http: SocketAddr,
    channel: Channel,
    failpoints: Failpoints,
    // Fields are dropped in this order: volumes and network must outlive the container.
    _volumes: Vec<Volume>,
    _network: Network,
}

impl Service {
    /// Starts it as the instance `name` and waits until it is ready.
    pub async fn start(kind: Kind, name: &str, broker: &Broker, options: Options) -> Result<Self> {
        let service = Self::launch(kind, name, broker, options).await?;
        service.wait_ready().await?;
        Ok(service)
    }

    /// As [`Service::start`], without waiting.
    pub async fn launch(kind: Kind, name: &str, broker: &Broker, options: Options) -> Result<Self> {
        let image = format!("headwater/{}", kind.word());
        needs_image(&format!("{image}:{TAG}")).await?;
        let container_name = unique(name);
        let (grpc, http) = (local(free_port()?), local(free_port()?));
        let bootstrap = options.bootstrap.unwrap_or_else(|| broker.bootstrap_network());
        let mut volumes = Vec::new();
        let failpoints = Failpoints::new()?;
        let points = failpoints.directory().to_str().context("a path that is no text")?;

        let mut request = GenericImage::new(image.as_str(), TAG)
            .with_mapped_port(grpc.port(), GRPC.tcp())
            .with_mapped_port(http.port(), HTTP.tcp())
            .with_readonly_rootfs(true)
            .with_mount(Mount::tmpfs_mount("/tmp"))
            .with_mount(Mount::bind_mount(points, FAILPOINTS))
            .with_env_var(failpoints::VARIABLE, FAILPOINTS)
            .with_cap_drop("ALL")
            .with_security_opt("no-new-privileges:true")
            .with_env_var("HEADWATER_KAFKA__BOOTSTRAP_SERVERS", bootstrap)
            .with_env_var("HEADWATER_SERVER__INSTANCE", name)
            .with_env_var("HEADWATER_SERVER__LISTEN", format!("0.0.0.0:{GRPC}"))
            .with_env_var("HEADWATER_SERVER__HTTP", format!("0.0.0.0:{HTTP}"))
            .with_env_var("HEADWATER_SERVER__ADVERTISE", format!("http://{container_name}:{GRPC}"));
        if matches!(kind, Kind::Processor | Kind::Query | Kind::Coordinator) {
            let volume = match options.data {
                Some(volume) => volume,
                None => Volume::create("data").await?,
            };
            // The query service only reads there.
            let access =
                if kind == Kind::Query { AccessMode::ReadOnly } else { AccessMode::ReadWrite };
            request = request
                .with_mount(Mount::volume_mount(volume.name(), DATA).with_access_mode(access))
                .with_env_var("HEADWATER_SERVER__DATA", DATA);
            volumes.push(volume);
        }
        if kind == Kind::Query {
            let scratch = Volume::create("scratch").await?;
            request = request
                .with_mount(Mount::volume_mount(scratch.name(), SCRATCH))
                .with_env_var("HEADWATER_QUERY__SCRATCH", SCRATCH);
            volumes.push(scratch);
        }
        if let Some(volume) = options.checkpoints {
            request = request
                .with_mount(Mount::volume_mount(volume.name(), CHECKPOINTS))
                .with_env_var("HEADWATER_CHECKPOINTS__URL", format!("file://{CHECKPOINTS}"));
            volumes.push(volume);
        }
        for (volume, path) in options.mounts {
            let mount = Mount::volume_mount(volume.name(), path);
            request = request.with_mount(mount.with_access_mode(AccessMode::ReadOnly));
            volumes.push(volume);
        }
        for (variable, value) in &options.settings {
            request = request.with_env_var(variable, value);
        }
        let container = Container::start(&container_name, broker.network(), request).await?;
        let channel = Endpoint::from_shared(format!("http://{grpc}"))?.connect_lazy();
        let network = broker.network().clone();
        Ok(Self {
            container,
            kind,
            grpc,
            http,
            channel,
            failpoints,
            _volumes: volumes,
            _network: network,
        })
    }

    /// Waits until it says that it serves.
    pub async fn wait_ready(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = self.get("/readyz").await;
            if matches!(said, Ok((200, _))) {
                return Ok(());
            }
            if let Some(code) = self.container.exit_code().await? {
                bail!("{} ended with {code}:\n{}", self.container.name(), self.tail().await);
            }
            ensure!(
                Instant::now() < deadline,
                "{} is not ready after {PATIENCE:?}: {said:?}\n{}",
                self.container.name(),
                self.tail().await
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn tail(&self) -> String {
        let log = self.container.log().await.unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The points at which this service, and no other, can be made to stand still.
    pub fn failpoints(&self) -> &Failpoints {
        &self.failpoints
    }

    /// Its gRPC on this machine; the same after every start.
    pub fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    /// Its HTTP on this machine; the same after every start.
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Its gRPC for other containers, as it advertises it.
    pub fn advertised(&self) -> String {
        format!("http://{}:{GRPC}", self.container.name())
    }

    /// A connection that is made when it is used, and again when it was lost.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// `GET path` of its HTTP server: status and body.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        self.exchange(format!("GET {path} HTTP/1.1\r\n"), Vec::new()).await
    }

    /// `POST path` with a body: status and body.
    pub async fn post(&self, path: &str, body: impl Into<Vec<u8>>) -> Result<(u16, String)> {
        let body = body.into();
        self.exchange(format!("POST {path} HTTP/1.1\r\nContent-Length: {}\r\n", body.len()), body)
            .await
    }

    async fn exchange(&self, head: String, body: Vec<u8>) -> Result<(u16, String)> {
        let address = self.http;
        spawn(move || {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(
                format!("{head}Host: headwater\r\nConnection: close\r\n\r\n").as_bytes(),
            )?;
            // The server may have answered and closed already; the answer counts.
            let _ = stream.write_all(&body);
            let mut answer = Vec::new();
            let read = stream.read_to_end(&mut answer);
            let answer = String::from_utf8_lossy(&answer).into_owned();
            let (head, body) =
                answer.split_once("\r\n\r\n").with_context(|| format!("{read:?}: {answer:?}"))?;
            let status = head.split(' ').nth(1).context("no status line")?.parse()?;
            Ok((status, body.to_owned()))
        })
        .await
    }

    /// Sends SIGKILL: nothing is flushed, no client is told.
    pub async fn kill(&self) -> Result<()> {
        self.container.kill().await
    }

    /// Sends a signal by its name: `SIGSTOP`, `SIGCONT`, `SIGTERM`.
    pub async fn signal(&self, signal: &str) -> Result<()> {
        self.container.signal(signal).await
    }

    /// Stops it where it is, as SIGSTOP would, until [`Service::thaw`]; its connections stay open.
    pub async fn freeze(&self) -> Result<()> {
        self.container.freeze().await
    }

    pub async fn thaw(&self) -> Result<()> {
        self.container.thaw().await
    }

    /// Sends SIGTERM, and SIGKILL after the deadline. Returns the exit code, 137 after SIGKILL.
    pub async fn stop(&self, deadline: Duration) -> Result<i64> {
        self.container.stop(deadline).await
    }

    /// Starts it after [`Service::stop`] or [`Service::kill`], with the same addresses and
    /// directories, and waits until it is ready.
    pub async fn start_again(&self) -> Result<()> {
        self.launch_again().await?;
        self.wait_ready().await
    }

    /// As [`Service::start_again`], without waiting.
    pub async fn launch_again(&self) -> Result<()> {
        self.container.start_again().await
    }

    /// `None` while it runs.
    pub async fn exit_code(&self) -> Result<Option<i64>> {
        self.container.exit_code().await
    }

    /// Waits until it has ended by itself, and returns the exit code.
    pub async fn ended(&self) -> Result<i64> {
        tokio::time::timeout(PATIENCE, self.container.ended())
            .await
            .context("it does not end")??;
        self.container.exit_code().await?.context("it still runs")
    }

    /// Copies its data directory, whether it runs or not, to a place that does not exist yet.
    pub async fn copy_data(&self, to: &std::path::Path) -> Result<()> {
        let from = format!("{}:{DATA}", self.container.name());
        let to = to.to_str().context("a path that is no text")?;
        super::docker(&["cp", &from, to]).await.map(drop)
    }

    /// Runs a command in its container, with its environment, and returns its stdout.
    pub async fn exec(&self, command: &[&str]) -> Result<String> {
        let command = command.iter().map(|&word| word.to_owned()).collect();
        self.container.exec(command, &[]).await
    }

    /// Its log, over all its runs.
    pub async fn log(&self) -> Result<String> {
        self.container.log().await
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}
