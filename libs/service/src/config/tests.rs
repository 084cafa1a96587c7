use std::time::Duration;

use serde::Deserialize;

use super::*;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Config {
    listen: String,
    endpoint: Option<String>,
    workers: Option<u32>,
    ingest: Section,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Section {
    max_event: ByteSize,
    batch: u32,
    #[serde(with = "humantime_serde")]
    linger: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7400".into(),
            endpoint: None,
            workers: None,
            ingest: Section::default(),
        }
    }
}

impl Default for Section {
    fn default() -> Self {
        Self { max_event: ByteSize::mib(1), batch: 10, linger: Duration::from_millis(5) }
    }
}

fn file(text: &str) -> tempfile::TempPath {
    let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
    fs::write(&path, text).unwrap();
    path
}

fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn each_layer_wins_over_the_one_before_it_key_by_key() {
    let path = file("listen = 'file'\n[ingest]\nbatch = 20\nmax-event = '2 MiB'\nlinger = '1s'");
    let config: Config = Layers::new()
        .file(Some(path.to_path_buf()))
        .environment(env(&[
            ("HEADWATER_INGEST__BATCH", "30"),
            ("HEADWATER_INGEST__MAX_EVENT", "3 MiB"),
            ("PATH", "x"),
        ]))
        .flag("--max-event", "ingest.max-event", Some("4 MiB"))
        .flag("--listen", "listen", None::<String>)
        .load()
        .unwrap();

    assert_eq!(config.listen, "file");
    let section =
        Section { max_event: ByteSize::mib(4), batch: 30, linger: Duration::from_secs(1) };
    assert_eq!(config.ingest, section);
}

#[test]
fn an_absent_option_can_be_set_from_every_layer() {
    let config: Config = Layers::new()
        .environment(env(&[
            ("HEADWATER_ENDPOINT", "http://127.0.0.1:4317"),
            ("HEADWATER_WORKERS", "4"),
        ]))
        .load()
        .unwrap();
    assert_eq!(
        (config.endpoint.as_deref(), config.workers),
        (Some("http://127.0.0.1:4317"), Some(4))
    );

    // A text that looks like a number stays a text.
    let config: Config =
        Layers::new().environment(env(&[("HEADWATER_LISTEN", "7400")])).load().unwrap();
    assert_eq!(config.listen, "7400");
}

#[test]
fn an_unknown_key_is_refused_with_its_name_and_its_place() {
    let path = file("listen = 'x'\n[ingest]\nbatsch = 20");
    let error =
        Layers::new().file(Some(path.to_path_buf())).load::<Config>().unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}: ", path.display())), "{error}");
    assert!(error.contains("line 3") && error.contains("unknown field `batsch`"), "{error}");
    assert!(error.contains("`max-event`, `batch`, `linger`"), "{error}");

    let variables = env(&[("HEADWATER_INGEST__BATSCH", "1")]);
    let error = Layers::new().environment(variables).load::<Config>().unwrap_err().to_string();
    assert!(
        error.starts_with("environment variable HEADWATER_INGEST__BATSCH: unknown field `batsch`"),
        "{error}"
    );

    let error =
        Layers::new().flag("--set x.y", "x.y", Some(1)).load::<Config>().unwrap_err().to_string();
    assert!(error.starts_with("--set x.y: unknown field `x`"), "{error}");
}

#[test]
fn a_value_that_does_not_fit_is_refused_with_what_would() {
    let variables = env(&[("HEADWATER_INGEST__MAX_EVENT", "1.5 MB")]);
    let error = Layers::new().environment(variables).load::<Config>().unwrap_err().to_string();
    assert!(
        error.contains("HEADWATER_INGEST__MAX_EVENT") && error.contains("such as \"16 MiB\""),
        "{error}"
    );

    let error = Layers::new()
        .flag("--batch", "ingest.batch", Some("many"))
        .load::<Config>()
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("--batch: ") && error.contains("expected u32"), "{error}");

    let variables = env(&[("HEADWATER_LISTEN__PORT", "1")]);
    let error = Layers::new().environment(variables).load::<Config>().unwrap_err().to_string();
    assert!(error.ends_with("`listen` is a setting, not a section"), "{error}");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Layers::new().file(Some("/nowhere/headwater.toml")).load::<Config>().unwrap_err();
    assert_eq!(error.to_string(), "cannot read the configuration file /nowhere/headwater.toml");
}

#[test]
fn sections_of_other_programs_are_skipped_and_only_those() {
    let path = file("listen = 'x'\n[query]\nanything = 1\n[ingest]\nbatch = 2");
    let layers = Layers::new()
        .file(Some(path.to_path_buf()))
        .environment(env(&[("HEADWATER_QUERY__X", "1")]));
    assert!(layers.load::<Config>().is_err());
    let config: Config = layers.clone().foreign(["query"]).load().unwrap();
    assert_eq!((config.listen.as_str(), config.ingest.batch), ("x", 2));

    fs::write(&path, "listen = 'x'\n[query]\nanything = 1\n[ingest]\nbatsch = 2").unwrap();
    let error = layers.foreign(["query"]).load::<Config>().unwrap_err().to_string();
    assert!(error.contains("unknown field `batsch`"), "{error}");
}
