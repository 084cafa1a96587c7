//! Conversions between messages and `headwater-types`.

use std::collections::BTreeMap;

use headwater_types::{DataType, Offset, PartitionId, Tallies};

use crate::common::v1 as common;

/// One position per partition, as messages carry it.
pub fn positions_to_proto(
    positions: &BTreeMap<PartitionId, Offset>,
) -> Vec<common::PartitionOffset> {
    positions
        .iter()
        .map(|(partition, offset)| common::PartitionOffset {
            partition: partition.0,
            offset: offset.0,
        })
        .collect()
}

/// The inverse of [`positions_to_proto`].
pub fn positions_from_proto(
    positions: &[common::PartitionOffset],
) -> BTreeMap<PartitionId, Offset> {
    positions.iter().map(|p| (PartitionId(p.partition), Offset(p.offset))).collect()
}

impl From<Tallies> for common::Tallies {
    fn from(tallies: Tallies) -> Self {
        let Tallies { applied, filtered, late, duplicate, dead_lettered } = tallies;
        Self { applied, filtered, late, duplicate, dead_lettered }
    }
}

impl From<common::Tallies> for Tallies {
    fn from(tallies: common::Tallies) -> Self {
        let common::Tallies { applied, filtered, late, duplicate, dead_lettered } = tallies;
        Self { applied, filtered, late, duplicate, dead_lettered }
    }
}

impl From<DataType> for common::DataType {
    fn from(data_type: DataType) -> Self {
        match data_type {
            DataType::Boolean => Self::Boolean,
            DataType::Integer => Self::Integer,
            DataType::BigInt => Self::Bigint,
            DataType::Double => Self::Double,
            DataType::Decimal { .. } => Self::Decimal,
            DataType::Varchar => Self::Varchar,
            DataType::Timestamp => Self::Timestamp,
        }
    }
}
