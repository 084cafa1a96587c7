//! The token that `ingest` returns and `query --after` waits for.

use std::{collections::BTreeMap, fmt, str::FromStr};

use crate::{Name, Offset, PartitionId};

/// Names a set of events: a stream and, per partition, the position after the last event.
///
/// Its text is `stream@partition:position,…`, short enough for a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub stream: Name,
    pub positions: BTreeMap<PartitionId, Offset>,
}

impl Token {
    pub fn new(stream: Name) -> Self {
        Self { stream, positions: BTreeMap::new() }
    }

    /// Adds the record at `offset`.
    pub fn cover(&mut self, partition: PartitionId, offset: Offset) {
        let position = self.positions.entry(partition).or_default();
        *position = (*position).max(offset.next());
    }

    /// Adds all events of `other`, which must name the same stream.
    pub fn join(&mut self, other: &Self) {
        for (&partition, &position) in &other.positions {
            let own = self.positions.entry(partition).or_default();
            *own = (*own).max(position);
        }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@", self.stream)?;
        for (index, (partition, position)) in self.positions.iter().enumerate() {
            write!(f, "{}{partition}:{position}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// The text is not a token.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is not a token: pass the text that ingest returned, like orders@0:17,3:42")]
pub struct InvalidToken(String);

impl FromStr for Token {
    type Err = InvalidToken;
    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let invalid = || InvalidToken(text.into());
        let (stream, positions) = text.rsplit_once('@').ok_or_else(invalid)?;
        let mut token = Self::new(Name::new(stream).map_err(|_| invalid())?);
        for part in positions.split(',').filter(|part| !part.is_empty()) {
            let (partition, position) = part.split_once(':').ok_or_else(invalid)?;
            let partition = partition.parse().map_err(|_| invalid())?;
            let position = position.parse().map_err(|_| invalid())?;
            token.positions.insert(PartitionId(partition), Offset(position));
        }
        Ok(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_what_it_prints() {
        let mut token = Token::new(Name::new("orders").unwrap());
        assert_eq!("orders@".parse(), Ok(token.clone()));
        token.cover(PartitionId(3), Offset(41));
        token.cover(PartitionId(0), Offset(16));
        token.cover(PartitionId(0), Offset(2));
        assert_eq!(token.to_string(), "orders@0:17,3:42");
        assert_eq!(token.to_string().parse(), Ok(token));
        assert!("orders".parse::<Token>().is_err());
        assert!("orders@1".parse::<Token>().is_err());
    }
}
