//! An S3-compatible store in a container: S3Proxy, which checks signatures and keeps objects as
//! files.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use testcontainers::{GenericImage, ImageExt as _, core::IntoContainerPort as _};

use super::{
    STORE,
    container::{Container, Network},
    needs_image,
    ports::free_port,
    spawn, unique,
};
use crate::patience::PATIENCE;

const PORT: u16 = 8_080;
/// Buckets are directories here.
const DATA: &str = "/data";

/// The credentials of the store. No log and no setting that is printed may show the secret.
pub const KEY_ID: &str = "headwater-checkpoints-id";
pub const SECRET: &str = "a-secret-that-nobody-shows";

/// A running store. Its objects live as long as this value, through every stop and start.
pub struct ObjectStore {
    container: Container,
    host_port: u16,
    // Must outlive the container.
    _network: Network,
}

impl ObjectStore {
    /// Starts one without buckets and waits until it answers.
    pub async fn start(network: &Network) -> Result<Self> {
        needs_image(&format!("{}:{}", STORE.0, STORE.1)).await?;
        let (name, host_port) = (unique("store"), free_port()?);
        let request = GenericImage::new(STORE.0, STORE.1)
            .with_mapped_port(host_port, PORT.tcp())
            .with_env_var("S3PROXY_ENDPOINT", format!("http://0.0.0.0:{PORT}"))
            .with_env_var("S3PROXY_AUTHORIZATION", "aws-v2-or-v4")
            .with_env_var("S3PROXY_IDENTITY", KEY_ID)
            .with_env_var("S3PROXY_CREDENTIAL", SECRET)
            // The checksum of a request that removes many objects is such a header.
            .with_env_var("S3PROXY_IGNORE_UNKNOWN_HEADERS", "true")
            .with_env_var("S3PROXY_JAVA_OPTS", "-Xms64m -Xmx256m -XX:TieredStopAtLevel=1")
            .with_env_var("JCLOUDS_PROVIDER", "filesystem")
            .with_env_var("JCLOUDS_FILESYSTEM_BASEDIR", DATA);
        let container = Container::start(&name, network, request).await?;
        let store = Self { container, host_port, _network: network.clone() };
        store.wait_answering().await?;
        Ok(store)
    }

    /// Its address for programs on this machine; the same after every start.
    pub fn endpoint_host(&self) -> String {
        format!("http://127.0.0.1:{}", self.host_port)
    }

    /// Its address for containers on its network.
    pub fn endpoint_network(&self) -> String {
        format!("http://{}:{PORT}", self.container.name())
    }

    pub async fn create_bucket(&self, bucket: &str) -> Result<()> {
        self.container.exec(vec!["mkdir".into(), format!("{DATA}/{bucket}")], &[]).await.map(drop)
    }

    /// The keys in a bucket, in order, read from its disk without a line of Headwater.
    pub async fn keys(&self, bucket: &str) -> Result<Vec<String>> {
        let script = format!("cd {DATA}/{bucket} && find . -type f -printf '%P\\n' | sort");
        let listed = self.container.exec(vec!["sh".into(), "-c".into(), script], &[]).await?;
        Ok(listed.lines().map(str::to_owned).collect())
    }

    /// Sends SIGKILL.
    pub async fn kill(&self) -> Result<()> {
        self.container.kill().await
    }

    /// Starts it after [`ObjectStore::kill`], at the same addresses and with the same objects, and
    /// waits until it answers.
    pub async fn start_again(&self) -> Result<()> {
        self.container.start_again().await?;
        self.wait_answering().await
    }

    /// Stops it where it is, until [`ObjectStore::thaw`]: connections are made, and nobody answers.
    pub async fn freeze(&self) -> Result<()> {
        self.container.freeze().await
    }

    pub async fn thaw(&self) -> Result<()> {
        self.container.thaw().await
    }

    /// Its log, over all its runs.
    pub async fn log(&self) -> Result<String> {
        self.container.log().await
    }

    /// Waits until it refuses a request without credentials.
    async fn wait_answering(&self) -> Result<()> {
        let (port, deadline) = (self.host_port, Instant::now() + PATIENCE);
        loop {
            let asked = spawn(move || ask(port)).await;
            if asked.as_ref().is_ok_and(|answer| answer.starts_with("HTTP/1.1 403")) {
                return Ok(());
            }
            let ended = self.container.exit_code().await?;
            ensure!(
                ended.is_none() && Instant::now() < deadline,
                "{} does not answer: {asked:?}\n{}",
                self.container.name(),
                self.container.log().await.unwrap_or_default()
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

fn ask(port: u16) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: store\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
