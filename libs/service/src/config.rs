//! Settings in layers: defaults, then a TOML file, then `HEADWATER_…` of the environment, then
//! flags.
//!
//! A later layer wins, key by key. An unknown key is an error that names the key and the layer, so
//! that a misspelt setting never means "default". In the environment two underscores lead into a
//! section and one stands for a hyphen: `HEADWATER_INGEST__MAX_EVENT` is `max-event` in `[ingest]`.
//!
//! Settings are data: stores, clocks and clients are passed separately. A settings file that we
//! ship states every default, and a test compares it with [`defaults`].

use std::{fs, io, path::PathBuf};

use headwater_types::Remedy;
use serde::{Serialize, de::DeserializeOwned};
use toml::{Table, Value};

use crate::failpoint;

mod shape;
mod size;
#[cfg(test)]
mod tests;

use shape::Shape;
pub use size::ByteSize;

const PREFIX: &str = "HEADWATER_";

/// Variables with our prefix that are not settings: they stand for flags of the command line.
const FLAGS: [&str; 8] = [
    "HEADWATER_CONFIG",
    "HEADWATER_DATA",
    "HEADWATER_HTTP",
    "HEADWATER_LISTEN",
    "HEADWATER_SERVER",
    "HEADWATER_COORDINATOR_SERVER",
    "HEADWATER_INGEST_SERVER",
    "HEADWATER_QUERY_SERVER",
];

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the configuration file {}", .path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },

    /// The message shows the line and names the key.
    #[error("{}: {detail}", .path.display())]
    File { path: PathBuf, detail: String },

    #[error("environment variable {name}: {detail}")]
    Environment { name: String, detail: String },

    #[error("{flag}: {detail}")]
    Flag { flag: String, detail: String },

    #[error("the default settings are not a table: {0}")]
    Defaults(String),
}

impl Error {
    pub fn remedy(&self) -> Remedy {
        match self {
            Self::Unreadable { .. }
            | Self::File { .. }
            | Self::Environment { .. }
            | Self::Flag { .. }
            | Self::Defaults(_) => Remedy::Correct,
        }
    }
}

/// The layers that settings come from.
#[derive(Clone, Debug, Default)]
pub struct Layers {
    file: Option<PathBuf>,
    environment: Vec<(String, String)>,
    flags: Vec<Flag>,
    foreign: Vec<String>,
    flat: Vec<(String, String)>,
}

#[derive(Clone, Debug)]
struct Flag {
    // The flag as the person typed it, for messages.
    spelling: String,
    key: Vec<String>,
    value: String,
}

impl Layers {
    /// The defaults alone.
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn file(mut self, path: Option<impl Into<PathBuf>>) -> Self {
        self.file = path.map(Into::into);
        self
    }

    /// Adds variables; those without our prefix are skipped. Filter the process's environment with
    /// [`settings_in`] first.
    #[must_use]
    pub fn environment(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        self.environment.extend(variables.into_iter().filter(|(name, _)| name.starts_with(PREFIX)));
        // The system gives them in any order, and `A__B` must come after `A`.
        self.environment.sort();
        self
    }

    /// Adds a flag that sets `key` (`ingest.max-event`); with `None` the flag was not given.
    #[must_use]
    pub fn flag(mut self, spelling: &str, key: &str, value: Option<impl ToString>) -> Self {
        if let Some(value) = value {
            let key = key.split('.').map(str::to_owned).collect();
            self.flags.push(Flag { spelling: spelling.into(), key, value: value.to_string() });
        }
        self
    }

    /// Names keys that other programs read from the same file and environment: they are skipped,
    /// not refused.
    #[must_use]
    pub fn foreign<'a>(mut self, keys: impl IntoIterator<Item = &'a str>) -> Self {
        self.foreign.extend(keys.into_iter().map(str::to_owned));
        self
    }

    /// Names a table within a section whose keys have dots. A file may write such a key with its
    /// dots, quoted or not, or with hyphens as in the environment. All spellings are one key, so
    /// that a later layer wins.
    #[must_use]
    pub fn flat(mut self, section: &str, table: &str) -> Self {
        self.flat.push((section.into(), table.into()));
        self
    }

    /// Reads the settings, each layer over the one before.
    ///
    /// # Errors
    ///
    /// A layer has an unknown key, or a value that does not fit.
    pub fn load<C>(&self) -> Result<C, Error>
    where
        C: Serialize + DeserializeOwned + Default,
    {
        self.load_as(defaults::<C>()?, Shape::new(None, &self.foreign))
    }

    /// As [`Layers::load`], for a program whose settings are the section `[name]` of a shared file.
    ///
    /// # Errors
    ///
    /// As [`Layers::load`].
    pub fn load_section<C>(&self, name: &str) -> Result<C, Error>
    where
        C: Serialize + DeserializeOwned + Default,
    {
        let table = Table::from_iter([(name.to_owned(), Value::Table(defaults::<C>()?))]);
        self.load_as(table, Shape::new(Some(name), &self.foreign))
    }

    fn load_as<C: DeserializeOwned>(
        &self,
        mut table: Table,
        shape: Shape<'_, C>,
    ) -> Result<C, Error> {
        let mut config = shape.read(&table).map_err(Error::Defaults)?;
        if let Some(path) = &self.file {
            let wrong = |detail| Error::File { path: path.clone(), detail };
            let text = fs::read_to_string(path)
                .map_err(|source| Error::Unreadable { path: path.clone(), source })?;
            // The text alone is read first, because then an error shows the line.
            shape.read_text(&text).map_err(wrong)?;
            let mut layer: Table =
                toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
            layer.retain(|key, _| !self.foreign.iter().any(|foreign| foreign == key));
            for (section, inner) in &self.flat {
                let section = layer.get_mut(section).and_then(Value::as_table_mut);
                if let Some(Value::Table(keys)) = section.and_then(|it| it.get_mut(inner)) {
                    *keys = flattened("", std::mem::take(keys));
                }
            }
            merge(&mut table, layer);
            config = shape.read(&table).map_err(wrong)?;
        }
        for (name, value) in &self.environment {
            let part = |part: &str| part.to_lowercase().replace('_', "-");
            let key: Vec<String> = name[PREFIX.len()..].split("__").map(part).collect();
            if key.first().is_some_and(|first| self.foreign.contains(first)) {
                continue;
            }
            let wrong = |detail| Error::Environment { name: name.clone(), detail };
            config = set(shape, &mut table, &key, value).map_err(wrong)?;
        }
        for Flag { spelling, key, value } in &self.flags {
            if key.first().is_some_and(|first| self.foreign.contains(first)) {
                continue;
            }
            let wrong = |detail| Error::Flag { flag: spelling.clone(), detail };
            config = set(shape, &mut table, key, value).map_err(wrong)?;
        }
        Ok(config)
    }
}

/// The variables that may be settings, without those that stand for flags of the command line.
pub fn settings_in(
    variables: impl IntoIterator<Item = (String, String)>,
) -> impl Iterator<Item = (String, String)> {
    variables
        .into_iter()
        .filter(|(name, _)| !FLAGS.contains(&name.as_str()) && !failpoint::is_variable(name))
}

/// The default settings as a table. A settings file that we ship has to equal it.
///
/// # Errors
///
/// The settings are not a table in TOML.
pub fn defaults<C: Serialize + Default>() -> Result<Table, Error> {
    table_of(&C::default())
}

pub(crate) fn table_of<C: Serialize>(config: &C) -> Result<Table, Error> {
    Table::try_from(config).map_err(|error| Error::Defaults(error.to_string()))
}

fn flattened(prefix: &str, table: Table) -> Table {
    let mut flat = Table::new();
    for (key, value) in table {
        let key = format!("{prefix}{}", key.replace('.', "-"));
        if let Value::Table(inner) = value {
            flat.extend(flattened(&format!("{key}-"), inner));
        } else {
            flat.insert(key, value);
        }
    }
    flat
}

fn merge(into: &mut Table, layer: Table) {
    for (key, value) in layer {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

/// Sets one key from text and reads the whole table again, so that an error is about this key.
///
/// The text has no type. It is tried as text and as a TOML value: as text first where the default
/// is text.
fn set<C: DeserializeOwned>(
    shape: Shape<'_, C>,
    table: &mut Table,
    key: &[String],
    value: &str,
) -> Result<C, String> {
    let text = Value::String(value.to_owned());
    let typed = toml::from_str::<Table>(&format!("value = {value}"))
        .ok()
        .and_then(|mut t| t.remove("value"));
    let text_first = matches!(lookup(table, key), Some(Value::String(_)) | None);
    let mut candidates = [Some(text), typed];
    if !text_first {
        candidates.reverse();
    }
    let mut refusal = None;
    for candidate in candidates.into_iter().flatten() {
        let mut attempt = table.clone();
        insert(&mut attempt, key, candidate)?;
        match shape.read(&attempt) {
            Ok(config) => {
                *table = attempt;
                return Ok(config);
            }
            Err(detail) => {
                refusal.get_or_insert(detail);
            }
        }
    }
    Err(refusal.unwrap_or_default())
}

fn lookup<'a>(table: &'a Table, key: &[String]) -> Option<&'a Value> {
    let (first, rest) = key.split_first()?;
    match (table.get(first)?, rest) {
        (value, []) => Some(value),
        (Value::Table(section), rest) => lookup(section, rest),
        _ => None,
    }
}

fn insert(table: &mut Table, key: &[String], value: Value) -> Result<(), String> {
    let [section @ .., last] = key else { return Err("names no setting".into()) };
    let mut table = table;
    for part in section {
        let entry = table.entry(part.as_str()).or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(inner) = entry else {
            return Err(format!("`{part}` is a setting, not a section"));
        };
        table = inner;
    }
    table.insert(last.clone(), value);
    Ok(())
}
