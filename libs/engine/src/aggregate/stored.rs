//! Encodes and decodes partial states.

use arrow::datatypes::i256;
use headwater_types::DataType;

use super::{StateCells, StateColumn, extreme, extreme_text};
use crate::{plan::AggregateFunction, varint};

impl StateColumn {
    pub(super) fn encode(&self, group: usize, out: &mut Vec<u8>) {
        let avg = self.function == AggregateFunction::Avg;
        let head = |count: u64, out: &mut Vec<u8>| {
            varint::put(if avg { count } else { u64::from(count > 0) }, out);
            count > 0
        };
        match &self.cells {
            StateCells::Count(cells) => varint::put(cells[group], out),
            StateCells::Integer(cells) => {
                if head(cells[group].count, out) {
                    varint::put_wide(varint::zigzag_wide(cells[group].sum), out);
                }
            }
            StateCells::Decimal(cells) => {
                if head(cells[group].count, out) {
                    put_wide_integer(cells[group].sum, out);
                }
            }
            StateCells::Double(cells) => {
                if head(cells[group].count, out) {
                    cells[group].sum.encode(out);
                }
            }
            StateCells::Narrow(cells) => {
                out.push(u8::from(cells[group].is_some()));
                match (cells[group], self.input) {
                    (None, _) => {}
                    (Some(value), Some(DataType::Double)) => out.extend(value.to_le_bytes()),
                    (Some(value), _) => varint::put(varint::zigzag(value), out),
                }
            }
            StateCells::Wide(cells) => {
                out.push(u8::from(cells[group].is_some()));
                if let Some(value) = cells[group] {
                    varint::put_wide(varint::zigzag_wide(value), out);
                }
            }
            StateCells::Text(cells) => {
                out.push(u8::from(cells[group].is_some()));
                if let Some(text) = &cells[group] {
                    varint::put(text.len() as u64, out);
                    out.extend_from_slice(text);
                }
            }
        }
    }

    pub(super) fn merge(
        &mut self,
        group: usize,
        bytes: &mut &[u8],
        text_bytes: &mut usize,
    ) -> Option<()> {
        let greatest = self.function == AggregateFunction::Max;
        let head = varint::take(bytes)?;
        if let StateCells::Count(cells) = &mut self.cells {
            cells[group] = cells[group].checked_add(head)?;
            return Some(());
        } else if head == 0 {
            return Some(());
        } else if self.function != AggregateFunction::Avg && head != 1 {
            return None;
        }
        match &mut self.cells {
            StateCells::Count(_) => {}
            StateCells::Integer(cells) => {
                let cell = &mut cells[group];
                cell.count = cell.count.checked_add(head)?;
                cell.sum =
                    cell.sum.checked_add(varint::unzigzag_wide(varint::take_wide(bytes)?))?;
            }
            StateCells::Decimal(cells) => {
                let cell = &mut cells[group];
                cell.count = cell.count.checked_add(head)?;
                cell.sum = cell.sum.checked_add(take_wide_integer(bytes)?)?;
            }
            StateCells::Double(cells) => {
                let cell = &mut cells[group];
                cell.count = cell.count.checked_add(head)?;
                cell.sum.merge(bytes)?;
            }
            StateCells::Narrow(cells) => {
                let value = match self.input {
                    Some(DataType::Double) => i64::from_le_bytes(varint::take_array(bytes)?),
                    Some(_) | None => varint::unzigzag(varint::take(bytes)?),
                };
                extreme(&mut cells[group], value, greatest);
            }
            StateCells::Wide(cells) => {
                let value = varint::unzigzag_wide(varint::take_wide(bytes)?);
                extreme(&mut cells[group], value, greatest);
            }
            StateCells::Text(cells) => {
                let length = usize::try_from(varint::take(bytes)?).ok()?;
                let text = varint::take_bytes(bytes, length)?;
                std::str::from_utf8(text).ok()?;
                extreme_text(&mut cells[group], text, greatest, text_bytes);
            }
        }
        Some(())
    }
}

/// A length, then the shortest two's complement that keeps the sign.
pub(super) fn put_wide_integer(value: i256, out: &mut Vec<u8>) {
    let bytes = value.to_le_bytes();
    let fill = if value.is_negative() { 0xff } else { 0 };
    let mut length = bytes.len();
    while length > 0
        && bytes[length - 1] == fill
        && (length == 1 || (bytes[length - 2] ^ fill) < 0x80)
    {
        length -= 1;
    }
    out.push(length as u8);
    out.extend_from_slice(&bytes[..length]);
    // Without this, -1 would be encoded as no bytes, as 0 is.
    if length == 0 && fill != 0 {
        out.pop();
        out.extend([1, 0xff]);
    }
}

pub(super) fn take_wide_integer(bytes: &mut &[u8]) -> Option<i256> {
    let length = usize::from(varint::take_byte(bytes)?);
    let stored = varint::take_bytes(bytes, length)?;
    let fill = if stored.last().is_some_and(|last| *last >= 0x80) { 0xff } else { 0 };
    let mut value = [fill; 32];
    value.get_mut(..length)?.copy_from_slice(stored);
    Some(i256::from_le_bytes(value))
}
