use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of bytes. Settings and messages write `"16 MiB"`; a number without a unit is bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, schemars::JsonSchema)]
#[schemars(with = "String", inline)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl ByteSize {
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// The number as a length in memory, limited to what this machine can address.
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// Prints in the greatest unit that divides the number, so that it reads back unchanged.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |&(_, unit): &(&str, u64)| self.0 != 0 && self.0.is_multiple_of(unit);
        let (name, unit) = UNITS.into_iter().find(fits).unwrap_or(("B", 1));
        write!(f, "{} {name}", self.0 / unit)
    }
}

/// The text is not a size.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a size: write a whole number and B, KiB, MiB or GiB, such as \"16 MiB\"")]
pub struct InvalidByteSize(String);

impl FromStr for ByteSize {
    type Err = InvalidByteSize;
    fn from_str(text: &str) -> Result<Self, InvalidByteSize> {
        let invalid = || InvalidByteSize(text.into());
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let number: u64 = digits.trim().parse().map_err(|_| invalid())?;
        let unit = match text[digits.len()..].trim() {
            "" => 1,
            name => {
                UNITS
                    .into_iter()
                    .find(|(unit, _)| unit.eq_ignore_ascii_case(name))
                    .ok_or_else(invalid)?
                    .1
            }
        };
        number.checked_mul(unit).map(Self).ok_or_else(invalid)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = ByteSize;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size such as \"16 MiB\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                u64::try_from(bytes).map(ByteSize).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_reads_back_what_it_prints() {
        for (bytes, text) in
            [(0, "0 B"), (1000, "1000 B"), (1536, "1536 B"), (2048, "2 KiB"), (16 << 20, "16 MiB")]
        {
            assert_eq!(ByteSize(bytes).to_string(), text);
            assert_eq!(text.parse(), Ok(ByteSize(bytes)));
        }
        assert_eq!("16mib".parse(), Ok(ByteSize::mib(16)));
        assert_eq!("7".parse(), Ok(ByteSize(7)));
        for wrong in ["", "MiB", "1.5 MiB", "-1", "3 MB", "99999999999 GiB"] {
            assert!(wrong.parse::<ByteSize>().is_err(), "{wrong}");
        }
    }
}
