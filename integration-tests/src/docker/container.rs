//! A container, and the networks and volumes that containers use.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use testcontainers::{
    ContainerAsync, ContainerRequest, GenericImage, ImageExt as _, core::ExecCommand,
    runners::AsyncRunner as _,
};

use super::{LABEL, docker, docker_now, keep_log, log_of, our_label, spawn, unique};
use crate::patience::PATIENCE;

/// A network of containers; removed with the last of its users.
#[derive(Clone, Debug)]
pub struct Network(Arc<Named>);

/// A named volume; removed with the last of its users.
#[derive(Clone, Debug)]
pub struct Volume(Arc<Named>);

/// Something that the engine keeps until it is removed by its name.
#[derive(Debug)]
struct Named {
    kind: &'static str,
    name: String,
}

impl Named {
    async fn create(kind: &'static str, name: &str) -> Result<Arc<Self>> {
        let name = unique(name);
        docker(&[kind, "create", "--label", &our_label(), &name]).await?;
        Ok(Arc::new(Self { kind, name }))
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        // A container that still has it keeps it; all of them go when the process ends.
        let _ = docker_now(&[self.kind, "rm", &self.name]);
    }
}

impl Network {
    pub async fn create(name: &str) -> Result<Self> {
        Ok(Self(Named::create("network", name).await?))
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }
}

impl Volume {
    /// An empty volume. It takes the owner of the directory at which it is mounted first.
    pub async fn create(name: &str) -> Result<Self> {
        Ok(Self(Named::create("volume", name).await?))
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }
}

/// A container, running or not. Dropping it removes it; its log is kept in case the test fails.
pub(super) struct Container {
    name: String,
    // It is `None` only while it is dropped.
    inner: Option<ContainerAsync<GenericImage>>,
}

impl Container {
    /// Creates and starts it under a name of its own, by which others on its network reach it.
    pub(super) async fn start(
        name: &str,
        network: &Network,
        request: ContainerRequest<GenericImage>,
    ) -> Result<Self> {
        let request = request
            .with_container_name(name)
            .with_network(network.name())
            .with_label(LABEL, std::process::id().to_string())
            .with_startup_timeout(PATIENCE);
        match request.start().await {
            Ok(inner) => Ok(Self { name: name.to_owned(), inner: Some(inner) }),
            Err(error) => {
                // It may exist and not run.
                let said = log_of(name, &["--tail", "50"]).unwrap_or_default();
                let _ = docker(&["rm", "--force", "--volumes", name]).await;
                Err(error).with_context(|| format!("{name} does not start\n{said}"))
            }
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Sends SIGKILL: nothing is flushed, no client is told.
    pub(super) async fn kill(&self) -> Result<()> {
        docker(&["kill", &self.name]).await?;
        self.ended().await
    }

    pub(super) async fn signal(&self, signal: &str) -> Result<()> {
        docker(&["kill", "--signal", signal, &self.name]).await.map(drop)
    }

    /// Sends SIGTERM, and SIGKILL after the deadline. Returns the exit code, 137 after SIGKILL.
    pub(super) async fn stop(&self, deadline: Duration) -> Result<i64> {
        let seconds = deadline.as_secs().to_string();
        docker(&["stop", "-t", &seconds, &self.name]).await?;
        self.exit_code().await?.with_context(|| format!("{} still runs", self.name))
    }

    /// Starts what was stopped or killed, with the disk it had.
    pub(super) async fn start_again(&self) -> Result<()> {
        docker(&["start", &self.name]).await.map(drop)
    }

    /// Stops every process of it at once, until [`Self::thaw`]. The kernel keeps its connections
    /// open.
    pub(super) async fn freeze(&self) -> Result<()> {
        docker(&["pause", &self.name]).await.map(drop)
    }

    pub(super) async fn thaw(&self) -> Result<()> {
        docker(&["unpause", &self.name]).await.map(drop)
    }

    /// `None` while it runs.
    pub(super) async fn exit_code(&self) -> Result<Option<i64>> {
        let format = "{{.State.Running}} {{.State.ExitCode}}";
        let state = docker(&["inspect", "--format", format, &self.name]).await?;
        let (running, code) = state.split_once(' ').context("docker inspect")?;
        Ok(if running == "true" { None } else { Some(code.parse()?) })
    }

    /// Waits for its end.
    pub(super) async fn ended(&self) -> Result<()> {
        docker(&["wait", &self.name]).await.map(drop)
    }

    /// Its log, over all its runs.
    pub(super) async fn log(&self) -> Result<String> {
        let name = self.name.clone();
        spawn(move || log_of(&name, &[])).await
    }

    /// Runs a command in it and returns its stdout.
    pub(super) async fn exec(
        &self,
        command: Vec<String>,
        environment: &[(&str, &str)],
    ) -> Result<String> {
        let inner = self.inner.as_ref().context("it was dropped")?;
        let shown = command.join(" ");
        let command = ExecCommand::new(command).with_env_vars(environment.iter().copied());
        let mut run = inner.exec(command).await?;
        let stdout = String::from_utf8_lossy(&run.stdout_to_vec().await?).into_owned();
        let stderr = String::from_utf8_lossy(&run.stderr_to_vec().await?).into_owned();
        let code = run.exit_code().await?;
        ensure!(
            code == Some(0),
            "{shown} in {}: exit code {code:?}\n{stdout}\n{stderr}",
            self.name
        );
        Ok(stdout)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        keep_log(&self.name, "0");
        if tokio::runtime::Handle::try_current().is_err() {
            // Removing it takes a runtime; without one it is removed when the process ends.
            std::mem::forget(self.inner.take());
        }
    }
}
