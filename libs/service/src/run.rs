use std::{
    ffi::OsString,
    io::{Write as _, stderr, stdout},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Arg, ArgAction, Command, value_parser};
use headwater_types::Remedy;
use serde::{Serialize, de::DeserializeOwned};

use crate::{config, config::Layers, exit_code, remedy::chain, telemetry::TelemetryConfig};

/// The sections that the four services have in a shared configuration file.
const SERVICES: [&str; 4] = ["coordinator", "ingest", "processor", "query"];

/// Names that the command line uses itself and that are no settings.
const RESERVED: [&str; 2] = ["server", "config"];

/// The whole `main` of a service's own binary: `main.rs` is
///
/// ```ignore
/// fn main() -> std::process::ExitCode {
///     headwater_service::service_main::<headwater_ingest::Config>("ingest", "Accepts events into the log")
/// }
/// ```
///
/// `name` is also the service's section in the configuration file, and `C` what that section may hold.
/// Reads and checks all settings (`--config FILE`, `HEADWATER_…`, `--set KEY=VALUE`), prints them with
/// `--print-config`, and otherwise refuses: a service on its own needs a log that it can share with the
/// others over a network, and this version has only the embedded one. It exits with 2, and points to
/// `headwater dev`, which runs the same service with the same section.
pub fn service_main<C>(name: &'static str, about: &'static str) -> ExitCode
where
    C: Serialize + DeserializeOwned + Default,
{
    let (code, text) = run::<C>(name, about, std::env::args_os(), std::env::vars());
    // Nobody is left to tell if the terminal is gone.
    let _ = if code == 0 {
        stdout().write_all(text.as_bytes())
    } else {
        stderr().write_all(text.as_bytes())
    };
    ExitCode::from(code)
}

/// What one service reads of the file: the common settings and its own section.
#[derive(Debug, Default, PartialEq, Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Common {
    telemetry: TelemetryConfig,
}

fn run<C>(
    name: &'static str,
    about: &'static str,
    arguments: impl IntoIterator<Item = OsString>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> (u8, String)
where
    C: Serialize + DeserializeOwned + Default,
{
    let matches = match command(name, about).try_get_matches_from(arguments) {
        Ok(matches) => matches,
        // Help and version are no errors: clap says so by its exit code.
        Err(error) => {
            return (u8::try_from(error.exit_code()).unwrap_or(2), error.render().to_string());
        }
    };
    let mut layers = Layers::new()
        .file(matches.get_one::<PathBuf>("config"))
        .environment(environment)
        .foreign(RESERVED);
    for pair in matches.get_many::<String>("set").unwrap_or_default() {
        let Some((key, value)) = pair.split_once('=') else {
            return (
                2,
                format!("error: --set {pair}: write KEY=VALUE, such as --set {name}.KEY=VALUE\n"),
            );
        };
        layers = layers.flag(&format!("--set {key}"), key, Some(value));
    }
    match settings::<C>(name, &layers) {
        Err(error) => (exit_code(error.remedy()), format!("error: {}\n", chain(&error))),
        Ok(text) if matches.get_flag("print-config") => (0, text),
        Ok(_) => (exit_code(Remedy::Correct), refusal(name)),
    }
}

/// The effective settings as TOML, if they are all right.
fn settings<C>(name: &str, layers: &Layers) -> Result<String, config::Error>
where
    C: Serialize + DeserializeOwned + Default,
{
    let common: Common = layers.clone().foreign(SERVICES).load()?;
    let others = SERVICES.into_iter().filter(|&service| service != name);
    let own: C = layers.clone().foreign(others).foreign(["telemetry"]).load_section(name)?;
    let mut table = config::table_of(&common)?;
    table.insert(name.to_owned(), toml::Value::Table(config::table_of(&own)?));
    toml::to_string(&table).map_err(|error| config::Error::Defaults(error.to_string()))
}

fn command(name: &'static str, about: &'static str) -> Command {
    Command::new(name)
        .bin_name(format!("headwater-{name}"))
        .display_name(format!("headwater-{name}"))
        .version(env!("CARGO_PKG_VERSION"))
        .about(about)
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .env("HEADWATER_CONFIG")
                .value_parser(value_parser!(PathBuf))
                .help("Read settings from this TOML file"),
        )
        .arg(Arg::new("set").long("set").value_name("KEY=VALUE").action(ArgAction::Append).help(
            format!(
                "Set one setting, such as --set {name}.KEY=VALUE; wins over file and environment"
            ),
        ))
        .arg(
            Arg::new("print-config")
                .long("print-config")
                .action(ArgAction::SetTrue)
                .help("Print the settings in force as TOML, and exit"),
        )
}

fn refusal(name: &str) -> String {
    format!(
        "error: the settings are fine, but headwater-{name} cannot run on its own yet: it needs a log that it can \
         share with the other services over a network, and this version has only the embedded log; run `headwater \
         dev`, which runs all four services in one process with the same [{name}] section\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, Serialize, serde::Deserialize)]
    #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
    struct Settings {
        max_events: u32,
    }

    fn run_with(arguments: &[&str], environment: &[(&str, &str)]) -> (u8, String) {
        let arguments =
            ["headwater-ingest"].iter().chain(arguments).map(OsString::from).collect::<Vec<_>>();
        let environment =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        run::<Settings>("ingest", "Accepts events", arguments, environment)
    }

    #[test]
    fn a_service_on_its_own_is_refused_with_what_to_run_instead() {
        let (code, text) = run_with(&[], &[("HEADWATER_SERVER", "http://127.0.0.1:7400")]);
        assert_eq!(code, 2);
        assert!(text.contains("run `headwater dev`"), "{text}");
    }

    #[test]
    fn the_settings_in_force_can_be_printed_and_are_checked_first() {
        let environment = [("HEADWATER_INGEST__MAX_EVENTS", "5"), ("HEADWATER_QUERY__X", "1")];
        let (code, text) =
            run_with(&["--print-config", "--set", "telemetry.log=debug"], &environment);
        assert_eq!(code, 0, "{text}");
        assert!(text.contains("max-events = 5") && text.contains("log = \"debug\""), "{text}");

        let (code, text) = run_with(&["--set", "ingest.max-event=5"], &[]);
        assert_eq!(code, 2);
        assert!(
            text.starts_with("error: --set ingest.max-event: unknown field `max-event`"),
            "{text}"
        );
        assert_eq!(run_with(&["--set", "ingest"], &[]).0, 2);
        assert_eq!(run_with(&["--config", "/nowhere.toml"], &[]).0, 2);
        assert_eq!(run_with(&["--set", "nonsense.x=1"], &[]).0, 2);
    }
}
