use std::{
    ffi::OsString,
    io::{self, Read as _, Write as _, stderr, stdout},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command, value_parser};
use headwater_types::{Remedy, error_chain};
use tokio::net::TcpListener;

use crate::{
    Data, DataDir, Service, Tasks,
    config::{Layers, settings_in},
    directory_id, exit_code,
    process::{self, LocalResources, RemoteLog},
    settings::{Error, Settings},
    telemetry,
};

/// How long a health check waits for its answer.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(3);

/// The `main` of a service's own binary. Its `main.rs` is
///
/// ```ignore
/// fn main() -> std::process::ExitCode {
///     headwater_service::service_main::<headwater_ingest::Ingest>()
/// }
/// ```
///
/// It reads and checks all settings (`--config FILE`, `HEADWATER_…`, `--set KEY=VALUE`) and runs
/// the service on Kafka until a signal. With `--check-config` or `--print-config` it ends before
/// that. With `--health-check` it asks the process that runs with the same settings.
///
/// Exit codes: 0 done; 1 failed, or not stopped within the deadline; 2 wrong settings, or a topic
/// of Headwater's own that somebody has created with other settings; 3 not available now.
pub fn service_main<S: Service>() -> ExitCode {
    let (code, text) = match parse::<S>(std::env::args_os(), std::env::vars()) {
        Invocation::Print(code, text) => (code, text),
        Invocation::HealthCheck(http) => match health_check(http) {
            Ok(text) => (0, text),
            Err(text) => (1, text),
        },
        Invocation::Run(settings) => {
            let (code, line) = run::<S>(*settings);
            eprintln!("headwater-{}: {line}", S::NAME);
            return ExitCode::from(code);
        }
    };
    // If the terminal is gone, nobody is left to tell.
    let _ = if code == 0 {
        stdout().write_all(text.as_bytes())
    } else {
        stderr().write_all(text.as_bytes())
    };
    ExitCode::from(code)
}

/// The action that the command line asks of the binary.
enum Invocation<C> {
    /// Prints this text, and ends with this code.
    Print(u8, String),
    HealthCheck(SocketAddr),
    Run(Box<Settings<C>>),
}

fn parse<S: Service>(
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Invocation<S::Config> {
    let matches = match command::<S>().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        // clap reports help and version as errors with exit code 0.
        Err(error) => {
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            return Invocation::Print(code, error.render().to_string());
        }
    };
    let asks_health = matches.get_flag("health-check");
    let loaded = layers::<S>(&matches, environment)
        .and_then(|layers| Settings::<S::Config>::load::<S>(&layers));
    let settings = match loaded {
        Ok(settings) => settings,
        // A health check knows only healthy (0) and unhealthy (1).
        Err(error) if asks_health => {
            return Invocation::Print(1, format!("error: {}\n", error_chain(&error)));
        }
        Err(error) => {
            return Invocation::Print(
                exit_code(Remedy::Correct),
                format!("error: {}\n", error_chain(&error)),
            );
        }
    };
    if asks_health {
        return Invocation::HealthCheck(settings.common.server.http);
    }
    if matches.get_flag("check-config") {
        return Invocation::Print(0, "configuration is fine\n".into());
    }
    if matches.get_flag("print-config") {
        return match settings.print::<S>() {
            Ok(text) => Invocation::Print(0, text),
            Err(error) => Invocation::Print(exit_code(error.remedy()), format!("error: {error}\n")),
        };
    }
    Invocation::Run(Box::new(settings))
}

fn layers<S: Service>(
    matches: &ArgMatches,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Layers, Error> {
    let mut layers = Layers::new()
        .file(matches.get_one::<PathBuf>("config"))
        .environment(settings_in(environment));
    for pair in matches.get_many::<String>("set").unwrap_or_default() {
        let Some((key, value)) = pair.split_once('=') else {
            let name = S::NAME;
            return Err(Error::Refused(format!(
                "--set {pair}: write KEY=VALUE, such as --set {name}.KEY=VALUE"
            )));
        };
        // The names of librdkafka's settings have dots, which do not lead into sections.
        let key_path = match key.strip_prefix("kafka.settings.") {
            Some(setting) => format!("kafka.settings.{}", setting.replace('.', "-")),
            None => key.to_owned(),
        };
        layers = layers.flag(&format!("--set {key}"), &key_path, Some(value));
    }
    Ok(layers)
}

fn command<S: Service>() -> Command {
    let binary = format!("headwater-{}", S::NAME);
    let flag = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
    };
    Command::new(S::NAME)
        .bin_name(&binary)
        .display_name(&binary)
        .version(env!("CARGO_PKG_VERSION"))
        .about(S::ABOUT)
        .after_help(
            "Exit codes: 0 done; 1 failed, or not stopped within server.stop-deadline; 2 wrong settings;\n\
             3 not available now, try again.",
        )
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .env("HEADWATER_CONFIG")
                .value_parser(value_parser!(PathBuf))
                .help("Read settings from this TOML file"),
        )
        .arg(
            Arg::new("set").long("set").value_name("KEY=VALUE").action(ArgAction::Append).help(
                format!(
                    "Set one setting, such as --set {}.KEY=VALUE; wins over file and environment",
                    S::NAME
                ),
            ),
        )
        .arg(flag("check-config", "Check all settings, and exit: 0 if they are fine, else 2"))
        .arg(flag("print-config", "Print the settings in force as TOML, without secrets, and exit"))
        .arg(flag("health-check", "Ask the process with these settings: exit 0 if it is ready, else 1"))
        .group(
            ArgGroup::new("instead").args(["check-config", "print-config", "health-check"]),
        )
}

/// Asks `/readyz`. The answer is an error unless its status is 200.
fn health_check(http: SocketAddr) -> Result<String, String> {
    // A server that listens on all addresses is reached on the loopback.
    let mut address = http;
    if http.ip().is_unspecified() {
        address.set_ip(match http.ip() {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    let answer = ask(address).map_err(|error| format!("no answer from {address}: {error}\n"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer.as_str(), ""));
    let status = head.split_whitespace().nth(1);
    if status == Some("200") { Ok(body.to_owned()) } else { Err(body.to_owned()) }
}

fn ask(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, HEALTH_TIMEOUT)?;
    stream.set_read_timeout(Some(HEALTH_TIMEOUT))?;
    stream.set_write_timeout(Some(HEALTH_TIMEOUT))?;
    // In HTTP/1.0 the answer is not chunked, and the server closes the connection after it.
    stream.write_all(format!("GET /readyz HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(64 << 10).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn run<S: Service>(settings: Settings<S::Config>) -> (u8, String) {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return (1, format!("cannot start threads: {error}")),
    };
    let ended = runtime.block_on(run_until_signal::<S>(settings));
    // A thread that still blocks after the deadline must not keep the process alive.
    runtime.shutdown_background();
    ended
}

async fn run_until_signal<S: Service>(settings: Settings<S::Config>) -> (u8, String) {
    let correct = |line: String| (exit_code(Remedy::Correct), line);
    let server = settings.common.server.clone();
    let telemetry = match telemetry::init(&settings.common.telemetry, S::NAME, &server.instance()) {
        Ok(telemetry) => telemetry,
        Err(error) => return correct(error_chain(&error)),
    };
    // The directory is locked first: a second process must not touch the files of the first.
    let directory = match DataDirectory::take(S::DATA, &server.data) {
        Ok(directory) => directory,
        Err(error) => {
            return (exit_code(error.remedy()), format!("server.data: {}", error_chain(&error)));
        }
    };
    let (grpc, http) = match (
        bind(server.listen, "server.listen").await,
        bind(server.http, "server.http").await,
    ) {
        (Ok(grpc), Ok(http)) => (grpc, http),
        (Err(line), _) | (_, Err(line)) => return correct(line),
    };
    let signals = Tasks::new();
    if let Err(error) = signals.stop_on_signals() {
        return (1, format!("cannot listen for signals: {error}"));
    }
    eprintln!(
        "headwater-{}: gRPC on {}, HTTP on {}, Kafka at {}",
        S::NAME,
        server.listen,
        server.http,
        settings.common.kafka.bootstrap_servers
    );
    let directory_id = directory.id.clone();
    let local =
        LocalResources { data: server.data, directory: directory_id, listeners: (grpc, http) };
    let exit = process::run::<S>(settings, local, &signals.shutdown(), RemoteLog::kafka).await;
    // `Telemetry::shutdown` blocks.
    let _ = tokio::task::spawn_blocking(move || telemetry.shutdown()).await;
    drop(directory);
    (exit.code, exit.line)
}

/// The data directory of a process, as its service uses it.
struct DataDirectory {
    id: String,
    // Held for as long as the process lives.
    _lock: Option<DataDir>,
}

impl DataDirectory {
    fn take(data: Data, path: &std::path::Path) -> Result<Self, crate::DataDirError> {
        match data {
            Data::Owns => {
                let lock = DataDir::open(path)?;
                Ok(Self { id: lock.id().to_owned(), _lock: Some(lock) })
            }
            Data::Reads => Ok(Self { id: directory_id(path)?.unwrap_or_default(), _lock: None }),
            Data::Unused => Ok(Self { id: String::new(), _lock: None }),
        }
    }
}

async fn bind(address: SocketAddr, key: &str) -> Result<TcpListener, String> {
    TcpListener::bind(address)
        .await
        .map_err(|error| format!("cannot listen on {address} ({error}); choose another {key}"))
}

#[cfg(test)]
mod tests;
