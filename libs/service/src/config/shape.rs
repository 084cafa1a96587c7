//! Reads a type from a whole settings file, or from one section of a file that programs share.

use std::{fmt, marker::PhantomData};

use headwater_log_kafka::is_secret;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error as _, IgnoredAny, IntoDeserializer,
    MapAccess, Visitor, value::MapAccessDeserializer,
};
use toml::Table;

/// Reads a `C` from a whole table, or from the one section that is allowed besides foreign keys.
/// Foreign keys are skipped.
pub(super) struct Shape<'a, C> {
    section: Option<&'a str>,
    foreign: &'a [String],
    reads: PhantomData<C>,
}

impl<C> Clone for Shape<'_, C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C> Copy for Shape<'_, C> {}

impl<'a, C: DeserializeOwned> Shape<'a, C> {
    pub(super) fn new(section: Option<&'a str>, foreign: &'a [String]) -> Self {
        Self { section, foreign, reads: PhantomData }
    }

    pub(super) fn read(self, table: &Table) -> Result<C, String> {
        self.deserialize(table.clone()).map_err(|error| line(&error))
    }

    /// Checks the text of a file, as [`Shape::read`] does a table; an error shows the line. A file
    /// may lack our section: only the table that it is merged into must have it.
    pub(super) fn read_text(self, text: &str) -> Result<(), String> {
        let table: Table = toml::from_str(text).map_err(|error| line(&error))?;
        if self.section.is_some_and(|section| !table.contains_key(section)) {
            return table.keys().find(|key| !self.foreign.contains(key)).map_or(Ok(()), |key| {
                Err(format!(
                    "unknown section or key `{key}`, expected [{}]",
                    self.section.unwrap_or_default()
                ))
            });
        }
        let document = toml::Deserializer::parse(text).map_err(|error| line(&error))?;
        self.deserialize(document).map(|_| ()).map_err(|error| line(&error))
    }
}

/// The message of an error with the line of the file, unless the line has a secret.
fn line(error: &toml::de::Error) -> String {
    let text = error.to_string();
    let shows_secret = |line: &str| {
        line.split_once(" | ").is_some_and(|(_, source)| {
            source.split_once('=').is_some_and(|(name, _)| is_secret(name))
        })
    };
    if !text.lines().any(shows_secret) {
        return text.trim_end().to_owned();
    }
    let place = text.lines().next().unwrap_or_default();
    format!("{place}, which has a secret and is not shown: write NAME = \"VALUE\" there")
}

impl<'de, C: DeserializeOwned> DeserializeSeed<'de> for Shape<'_, C> {
    type Value = C;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<C, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, C: DeserializeOwned> Visitor<'de> for Shape<'_, C> {
    type Value = C;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of settings")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<C, A::Error> {
        let mut own = Own { map, foreign: self.foreign };
        let Some(section) = self.section else {
            return C::deserialize(MapAccessDeserializer::new(own));
        };
        let mut config = None;
        while let Some(key) = own.next_key::<String>()? {
            if key != section {
                return Err(A::Error::custom(format!(
                    "unknown section or key `{key}`, expected [{section}]"
                )));
            }
            config = Some(own.next_value()?);
        }
        config.ok_or_else(|| A::Error::custom(format!("there is no section [{section}]")))
    }
}

/// A map without its foreign keys.
struct Own<'a, A> {
    map: A,
    foreign: &'a [String],
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Own<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        while let Some(key) = self.map.next_key::<String>()? {
            if !self.foreign.contains(&key) {
                return seed.deserialize(key.into_deserializer()).map(Some);
            }
            self.map.next_value::<IgnoredAny>()?;
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}
