use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::Offset;

/// The version of the engine's results. It must change whenever the engine would store other bytes
/// or compute another result for the same definition and records. It is part of every generation's
/// digest, so that no engine continues state written by another one.
pub const ENGINE_VERSION: u32 = 1;

/// The id of one build of a view: a digest of everything that decides its content. Never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GenerationId([u8; 8]);

/// The inputs of a generation's digest.
#[derive(Clone, Copy, Debug)]
pub struct GenerationInputs<'a> {
    /// The normal form of the stream's definition.
    pub stream_sql: &'a str,
    /// The normal form of the view's definition.
    pub view_sql: &'a str,
    /// The first offset to read, by partition.
    pub floor: &'a [Offset],
    /// The number of generations that the catalog has named before. A second build of the same
    /// definition is another generation.
    pub ordinal: u64,
}

impl GenerationInputs<'_> {
    pub fn digest(&self) -> GenerationId {
        let mut hasher = blake3::Hasher::new_derive_key("headwater generation v1");
        hasher.update(&ENGINE_VERSION.to_le_bytes());
        for text in [self.stream_sql, self.view_sql] {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        for offset in self.floor {
            hasher.update(&offset.0.to_le_bytes());
        }
        hasher.update(&self.ordinal.to_le_bytes());
        let mut id = [0; 8];
        id.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        GenerationId(id)
    }
}

/// The text is not a generation id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{0:?} is not a generation id: it has 16 hexadecimal digits, as `headwater get generations` prints them"
)]
pub struct InvalidGenerationId(String);

impl FromStr for GenerationId {
    type Err = InvalidGenerationId;
    fn from_str(text: &str) -> Result<Self, InvalidGenerationId> {
        let invalid = || InvalidGenerationId(text.into());
        if text.len() != 16 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(invalid());
        }
        u64::from_str_radix(text, 16).map(|n| Self(n.to_be_bytes())).map_err(|_| invalid())
    }
}

impl TryFrom<String> for GenerationId {
    type Error = InvalidGenerationId;
    fn try_from(text: String) -> Result<Self, InvalidGenerationId> {
        text.parse()
    }
}

impl From<GenerationId> for String {
    fn from(id: GenerationId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:016x}", u64::from_be_bytes(self.0)))
    }
}

impl fmt::Debug for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_input_changes_the_digest() {
        let base =
            GenerationInputs { stream_sql: "s", view_sql: "v", floor: &[Offset(1)], ordinal: 0 };
        let others = [
            GenerationInputs { stream_sql: "s2", ..base },
            GenerationInputs { view_sql: "v2", ..base },
            GenerationInputs { stream_sql: "sv", view_sql: "", ..base },
            GenerationInputs { floor: &[Offset(2)], ..base },
            GenerationInputs { ordinal: 1, ..base },
        ];
        for other in others {
            assert_ne!(base.digest(), other.digest(), "{other:?}");
        }
    }

    #[test]
    fn an_id_reads_back_what_it_prints() {
        let id =
            GenerationInputs { stream_sql: "s", view_sql: "v", floor: &[], ordinal: 7 }.digest();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("xyz".parse::<GenerationId>().is_err());
        assert!("+123456789abcdef".parse::<GenerationId>().is_err());
    }
}
