use std::fmt::Write as _;

use headwater_log_kafka::KafkaConfig;
use headwater_service::{BINARY_SECTIONS, CheckpointsConfig, ServerConfig};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value as Json;

use super::DevConfig;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/config.md");

const HEAD: &str = "\
# Settings

One TOML file (`--config FILE`) with a section per service; above it the environment, above that flags. A key that nobody
knows is an error. In the environment two underscores lead into a section and one is a hyphen:
`HEADWATER_INGEST__MAX_EVENT` is `max-event` in `[ingest]`.

This page is generated from the code: `UPDATE_DOCS=1 cargo test -p headwater settings` writes it.
";

const BINARIES: &str = "
# Settings of the services' own binaries

`headwater-ingest`, `headwater-processor`, `headwater-coordinator` and `headwater-query` read `[telemetry]`, their own section
above, and the sections below; sections of the others are skipped, so one file can serve all of them, and `headwater dev` too.
`--set KEY=VALUE` sets one key. `--check-config` checks everything and exits with 0 or 2, `--print-config` prints the settings in
force without secrets, `--health-check` asks the process with these settings whether it is ready and exits with 0 or 1.

Settings of librdkafka are `[kafka.settings]` in the file, `HEADWATER_KAFKA__SETTINGS__SASL_PASSWORD` in the environment and
`--set kafka.settings.sasl.password=...` as a flag. [kafka-security.md](kafka-security.md) has what TLS and logins need.
";

/// The sections that `headwater dev` does not have.
#[derive(Default, Serialize, JsonSchema)]
struct Binaries {
    server: ServerConfig,
    kafka: KafkaConfig,
    checkpoints: CheckpointsConfig,
}

fn page() -> String {
    let binaries = sections::<Binaries>();
    for section in BINARY_SECTIONS {
        assert!(binaries.contains(&format!("## `[{section}]`")), "[{section}] is missing");
    }
    [HEAD, &sections::<DevConfig>(), BINARIES, &binaries].concat()
}

/// A table per section: key, default, and the first paragraph of what the code says about it.
fn sections<C: Default + Serialize + JsonSchema>() -> String {
    let schema = serde_json::to_value(schemars::schema_for!(C)).unwrap();
    let defaults = serde_json::to_value(C::default()).unwrap();
    let mut page = String::new();
    for (section, settings) in defaults.as_object().unwrap() {
        writeln!(page, "\n## `[{section}]`\n\n| key | default | meaning |\n| --- | --- | --- |")
            .unwrap();
        let reference = find_reference(&schema["properties"][section]).unwrap();
        let definition = &schema["$defs"][reference.rsplit('/').next().unwrap()];
        let mut settings: Vec<_> = definition["properties"]
            .as_object()
            .unwrap()
            .keys()
            .map(|key| (key, &settings[key]))
            .collect();
        settings.sort_by_key(|(key, _)| key.as_str());
        for (key, default) in settings {
            let description =
                definition["properties"][key]["description"].as_str().unwrap_or_default();
            let meaning = description
                .replace("\n\n", "<br>")
                .replace("\n* ", "<br>")
                .replace('\n', " ")
                .replace('|', "\\|");
            let default = if default.is_null() { "none".to_owned() } else { default.to_string() };
            writeln!(page, "| `{key}` | `{default}` | {meaning} |").unwrap();
        }
    }
    page
}

fn find_reference(property: &Json) -> Option<String> {
    match property {
        Json::Object(fields) => match fields.get("$ref") {
            Some(Json::String(reference)) => Some(reference.clone()),
            _ => fields.values().find_map(find_reference),
        },
        Json::Array(items) => items.iter().find_map(find_reference),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => None,
    }
}

#[test]
fn the_page_of_settings_says_what_the_code_says() {
    let page = page();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(PATH, &page).unwrap();
    }
    let written = std::fs::read_to_string(PATH).unwrap_or_default();
    assert!(
        written == page,
        "docs/config.md is out of date: UPDATE_DOCS=1 cargo test -p headwater settings"
    );
}
