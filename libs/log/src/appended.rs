use headwater_types::Offset;

/// Where the records of a batch were stored, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended(Offsets);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Offsets {
    Consecutive {
        first: Offset,
        records: u32,
    },
    /// Records of others came between them.
    Each(Box<[Offset]>),
}

impl Appended {
    /// One after the other.
    pub fn consecutive(first: Offset, records: u32) -> Self {
        Self(Offsets::Consecutive { first, records })
    }

    /// Rising, and at least one.
    pub fn each(offsets: Vec<Offset>) -> Self {
        match (offsets.first(), offsets.last(), u32::try_from(offsets.len())) {
            (Some(first), Some(last), Ok(records))
                if last.0 - first.0 + 1 == u64::from(records) =>
            {
                Self::consecutive(*first, records)
            }
            _ => Self(Offsets::Each(offsets.into())),
        }
    }

    /// The offset of the first record.
    pub fn first(&self) -> Offset {
        match &self.0 {
            Offsets::Consecutive { first, .. } => *first,
            Offsets::Each(offsets) => offsets.first().copied().unwrap_or_default(),
        }
    }

    /// The position after the last record.
    pub fn end(&self) -> Offset {
        match &self.0 {
            Offsets::Consecutive { first, records } => Offset(first.0 + u64::from(*records)),
            Offsets::Each(offsets) => offsets.last().map(|last| last.next()).unwrap_or_default(),
        }
    }

    /// The offset of the record at `index` of the batch.
    pub fn offset(&self, index: u32) -> Offset {
        match &self.0 {
            Offsets::Consecutive { first, .. } => Offset(first.0 + u64::from(index)),
            Offsets::Each(offsets) => {
                offsets.get(index as usize).copied().unwrap_or_else(|| self.end())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_found_with_and_without_gaps() {
        let one = Appended::each(vec![Offset(4), Offset(5), Offset(6)]);
        assert_eq!(one, Appended::consecutive(Offset(4), 3));
        assert_eq!((one.first(), one.offset(2), one.end()), (Offset(4), Offset(6), Offset(7)));
        let apart = Appended::each(vec![Offset(4), Offset(9)]);
        assert_eq!(
            (apart.first(), apart.offset(1), apart.end()),
            (Offset(4), Offset(9), Offset(10))
        );
    }
}
