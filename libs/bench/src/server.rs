//! The server process that is measured.

use std::{
    env, fs,
    io::{BufRead, BufReader, Read},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};

/// The time limit for a start or a stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// A `headwater dev` on a directory. It is stopped when dropped.
pub struct Dev {
    child: Child,
    stderr: BufReader<ChildStderr>,
    url: String,
    /// The time from the start of the process until it reported that it is ready.
    pub ready_after: Duration,
}

/// The measured `headwater` command: the variable `HEADWATER`, or the one beside this program.
pub fn headwater() -> anyhow::Result<PathBuf> {
    let path = match env::var_os("HEADWATER") {
        Some(path) => path.into(),
        None => env::current_exe()?.with_file_name("headwater"),
    };
    ensure!(
        path.exists(),
        "{} is missing: build it with `cargo build -p headwater`",
        path.display()
    );
    Ok(path)
}

/// An unused port of 127.0.0.1.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

impl Dev {
    pub fn start(data: &Path) -> anyhow::Result<Self> {
        let (grpc, http) = (free_port()?, free_port()?);
        let mut command = Command::new(headwater()?);
        command.arg("dev").arg("--data").arg(data);
        command.args([
            "--listen",
            &format!("127.0.0.1:{grpc}"),
            "--http",
            &format!("127.0.0.1:{http}"),
        ]);
        command.env("HEADWATER_TELEMETRY__LOG", "warn").stdin(Stdio::null()).stdout(Stdio::null());
        let started = Instant::now();
        let mut child = command.stderr(Stdio::piped()).spawn()?;
        let stderr = child.stderr.take().context("the server has no standard error")?;
        let mut dev = Self {
            child,
            stderr: BufReader::new(stderr),
            url: format!("http://127.0.0.1:{grpc}"),
            ready_after: Duration::ZERO,
        };
        let mut said = String::new();
        loop {
            let before = said.len();
            if dev.stderr.read_line(&mut said)? == 0 {
                bail!("headwater dev ended before it was ready:\n{said}");
            }
            if said[before..].trim_end().ends_with(": ready") {
                dev.ready_after = started.elapsed();
                return Ok(dev);
            }
        }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Runs the command line against this server and returns what it prints.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output =
            Command::new(headwater()?).args(["--server", &self.url]).args(arguments).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "headwater {}: {said}", arguments.join(" "));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The peak resident memory in MiB.
    pub fn peak_memory(&self) -> Option<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
    }

    /// Stops the server by a signal, as a person would, and waits for its end.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.terminate()
    }

    fn terminate(&mut self) -> anyhow::Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status()?;
        let asked = Instant::now();
        while self.child.try_wait()?.is_none() {
            if asked.elapsed() > PATIENCE {
                self.child.kill()?;
                self.child.wait()?;
                bail!("headwater dev did not stop within {} s", PATIENCE.as_secs());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest)?;
        Ok(())
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        if let Err(error) = self.terminate() {
            eprintln!("{error}");
        }
    }
}

/// Writes definitions to a file and applies them.
pub fn apply(dev: &Dev, directory: &Path, name: &str, sql: &str) -> anyhow::Result<()> {
    let file = directory.join(name);
    fs::write(&file, sql)?;
    let file = file.to_str().context("the directory's name is not UTF-8")?;
    dev.run(&["apply", "-f", file]).map(drop)
}
