//! Up to where a watch has sent the changes of a view.

use std::{fmt, str::FromStr};

use headwater_types::{GenerationId, Offset};

/// A position in the changes of one generation: all changes before it have been sent.
///
/// As a resume token its text is `generation@partition:position,…`, with every partition in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WatchPosition {
    pub generation: GenerationId,
    /// One per partition, by its number.
    pub positions: Vec<Offset>,
}

impl fmt::Display for WatchPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@", self.generation)?;
        for (partition, position) in self.positions.iter().enumerate() {
            write!(f, "{}{partition}:{position}", if partition == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// The text is not that of a position.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InvalidPosition;

impl FromStr for WatchPosition {
    type Err = InvalidPosition;

    fn from_str(text: &str) -> Result<Self, InvalidPosition> {
        let (generation, list) = text.split_once('@').ok_or(InvalidPosition)?;
        let generation = generation.parse().map_err(|_| InvalidPosition)?;
        let mut positions = Vec::new();
        for part in list.split(',') {
            let (partition, position) = part.split_once(':').ok_or(InvalidPosition)?;
            if partition.parse() != Ok(positions.len()) {
                return Err(InvalidPosition);
            }
            positions.push(Offset(position.parse().map_err(|_| InvalidPosition)?));
        }
        Ok(Self { generation, positions })
    }
}

#[cfg(test)]
mod tests {
    use headwater_types::GenerationInputs;

    use super::*;

    #[test]
    fn a_position_reads_back_what_it_prints_and_nothing_else() {
        let inputs =
            GenerationInputs { stream_sql: "", view_sql: "", floor: &[Offset::ZERO], ordinal: 0 };
        let generation = inputs.digest();
        let position =
            WatchPosition { generation, positions: vec![Offset(17), Offset(0), Offset(u64::MAX)] };
        let text = position.to_string();
        assert_eq!(text, format!("{generation}@0:17,1:0,2:18446744073709551615"));
        assert_eq!(text.parse(), Ok(position));
        for wrong in ["", "@", "0:1", "orders@0:1"] {
            assert_eq!(wrong.parse::<WatchPosition>(), Err(InvalidPosition), "{wrong}");
        }
        for list in ["", "1:0", "0:1,0:2", "0:1,2:2", "0:1,", "0:-1", "0", "0:18446744073709551616"]
        {
            let wrong = format!("{generation}@{list}");
            assert_eq!(wrong.parse::<WatchPosition>(), Err(InvalidPosition), "{wrong}");
        }
    }
}
