use std::fmt::Write as _;

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

/// A table per section: key, default, and the first paragraph of what the code says about it.
fn page() -> String {
    let schema = serde_json::to_value(schemars::schema_for!(DevConfig)).unwrap();
    let defaults = serde_json::to_value(DevConfig::default()).unwrap();
    let mut page = HEAD.to_owned();
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
