use std::fmt::Write as _;

use headwater_log_kafka::KafkaConfig;
use headwater_service::{BINARY_SECTIONS, CheckpointsConfig, ServerConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::DevConfig;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/config.md");

const HEAD: &str = "\
# Settings

Settings come from one TOML file (`--config FILE`) with a section per service, from environment variables and from flags. The
environment wins over the file, and flags win over both. An unknown key is an error. In the environment two underscores lead into
a section and one stands for a hyphen: `HEADWATER_INGEST__MAX_EVENT` is `max-event` in `[ingest]`.

A size is a whole number with `B`, `KiB`, `MiB` or `GiB`, such as `\"16 MiB\"`. A time is a number with a unit, such as
`\"100ms\"`, `\"10s\"` or `\"1m 30s\"`.

This page is generated from the code: `UPDATE_DOCS=1 cargo test -p headwater settings` writes it.
";

const BINARIES: &str = "
# Settings of the services' own binaries

`headwater-ingest`, `headwater-processor`, `headwater-coordinator` and `headwater-query` read `[telemetry]`, their own section
above, and the sections below. They skip the sections of the others, so one file can serve all of them, and `headwater dev` too.
`--set KEY=VALUE` sets one key. `--check-config` checks all settings and exits with 0 or 2. `--print-config` prints the settings
in force, without secrets. `--health-check` asks the process that runs with these settings whether it is ready, and exits with 0
or 1.

Settings of librdkafka stand in `[kafka.settings]` of the file, in variables such as `HEADWATER_KAFKA__SETTINGS__SASL_PASSWORD`,
and in flags such as `--set kafka.settings.sasl.password=...`. [kafka-security.md](kafka-security.md) shows TLS and logins.
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

/// A table per section, under what the code says about the section: key, default, and all that the
/// code says about the key and about its values.
fn sections<C: Default + Serialize + JsonSchema>() -> String {
    let schema = serde_json::to_value(schemars::schema_for!(C)).unwrap();
    let defaults = serde_json::to_value(C::default()).unwrap();
    let mut page = String::new();
    for (section, settings) in defaults.as_object().unwrap() {
        let definition = definition(&schema, &schema["properties"][section]).unwrap();
        let about = about(section, description(definition));
        let table = "| key | default | meaning |\n| --- | --- | --- |";
        writeln!(page, "\n## `[{section}]`\n\n{about}\n\n{table}").unwrap();
        let mut properties: Vec<_> = definition["properties"].as_object().unwrap().iter().collect();
        properties.sort_by_key(|(key, _)| key.as_str());
        for (key, property) in properties {
            let default = &settings[key];
            let default = if default.is_null() { "none".into() } else { default.to_string() };
            let meaning = meaning(&schema, property);
            writeln!(page, "| `{key}` | `{default}` | {meaning} |").unwrap();
        }
    }
    page
}

/// What the code says about a section, without the section's name.
fn about(section: &str, comment: &str) -> String {
    let text = blocks(comment).join("\n\n");
    let text = text.strip_prefix(&format!("`[{section}]`: ")).unwrap_or(&text);
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// All that the code says about a setting, about its type, and about each of the values that the
/// type has.
fn meaning(schema: &Json, property: &Json) -> String {
    let mut said = blocks(description(property));
    if let Some(definition) = definition(schema, property) {
        said.extend(blocks(description(definition)));
        for value in definition["oneOf"].as_array().into_iter().flatten() {
            let mut about = blocks(description(value)).into_iter();
            let first = about.next().unwrap_or_default();
            said.push(format!("• `{}`: {first}", value["const"]));
            said.extend(about);
        }
    }
    said.join("<br>").replace('|', "\\|")
}

/// A comment as paragraphs and items of lists, each in one line.
fn blocks(comment: &str) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    let mut begun = false;
    for line in comment.lines().map(str::trim) {
        let item = line.strip_prefix("* ").map(|item| format!("• {item}"));
        match (item, blocks.last_mut()) {
            (Some(item), _) => blocks.push(item),
            (None, _) if line.is_empty() => {}
            (None, Some(block)) if begun => *block = format!("{block} {line}"),
            (None, _) => blocks.push(line.to_owned()),
        }
        begun = !line.is_empty();
    }
    blocks
}

fn description(schema: &Json) -> &str {
    schema["description"].as_str().unwrap_or_default()
}

/// The definition of the type that a property refers to, if it has one.
fn definition<'a>(schema: &'a Json, property: &Json) -> Option<&'a Json> {
    let reference = find_reference(property)?;
    schema["$defs"].get(reference.rsplit('/').next()?)
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

/// `[section]`: a comment on the section.
#[derive(Default, Serialize, JsonSchema)]
struct Section {
    /// The first paragraph,
    /// in two lines.
    ///
    /// The second one:
    ///
    /// * **An item** that goes on
    ///   in the next line.
    /// * Another | item.
    ///
    /// The last paragraph.
    key: Option<u32>,
    kind: Kind,
}

/// A comment on the type.
#[derive(Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    /// The first value.
    ///
    /// More about it.
    #[default]
    TheFirst,
    /// The second value.
    Second,
}

#[derive(Default, Serialize, JsonSchema)]
struct Sections {
    section: Section,
}

#[test]
fn the_page_of_settings_loses_no_text_and_no_structure() {
    let expected = "
## `[section]`

A comment on the section.

| key | default | meaning |
| --- | --- | --- |
| `key` | `none` | The first paragraph, in two lines.<br>The second one:<br>• **An item** that goes on in \
        the next line.<br>• Another \\| item.<br>The last paragraph. |
| `kind` | `\"the-first\"` | A comment on the type.<br>• `\"the-first\"`: The first value.<br>More about \
        it.<br>• `\"second\"`: The second value. |
";
    assert_eq!(sections::<Sections>(), expected);
}

/// Every comment that the schema has below its root.
fn comments(schema: &Json, found: &mut Vec<String>) {
    match schema {
        Json::Object(fields) => {
            if let Some(Json::String(comment)) = fields.get("description") {
                found.push(comment.clone());
            }
            fields.values().for_each(|field| comments(field, found));
        }
        Json::Array(items) => items.iter().for_each(|item| comments(item, found)),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
    }
}

#[test]
fn every_word_of_every_setting_is_on_the_page() {
    let words = |text: &str| {
        let text =
            text.to_lowercase().replace("<br>", " ").replace(['*', '•', ':', '|', '\\'], " ");
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let page = words(&page());
    for schema in [schemars::schema_for!(DevConfig), schemars::schema_for!(Binaries)] {
        let schema = serde_json::to_value(schema).unwrap();
        let mut found = Vec::new();
        comments(&schema["properties"], &mut found);
        comments(&schema["$defs"], &mut found);
        assert!(found.len() > 10, "the schema has no comments: {schema}");
        for comment in found {
            assert!(page.contains(&words(&comment)), "{comment:?} is not in docs/config.md");
        }
    }
}
