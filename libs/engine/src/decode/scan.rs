//! One checked pass over a record that predicts the next key.
//!
//! Producers write the same keys in the same order, with the same white space, record after record.
//! So the scanner stores, for each key, the bytes between the end of the previous value and the
//! start of the key's value, for example `,"amount":`. These bytes are a *slot*. Each slot also
//! remembers which slot followed it last. After a value, the scanner compares the record with the
//! slot that followed last time, then with the one that followed before that (an optional field
//! comes and goes). If neither matches, it parses the key in full and looks it up, and that slot
//! becomes the next prediction.
//!
//! A prediction never changes the result: the bytes of a slot passed the full check at the same
//! position of the grammar when the slot was stored, so comparing them is checking them. Values are
//! always read in full. A property test holds that results and errors do not depend on the
//! predictions.

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use headwater_types::{DataType, StreamDefinition};

use super::{
    cell::{Cell, number_cell, text_cell},
    describe::not_utf8,
    fault::{DecodeError, Fault, FaultKind, fail},
    json::{self, skip_space},
    number,
    slot::{LOST, Slot},
    timestamp,
};

/// The index that stands for no column.
const NONE: u32 = u32::MAX;
/// The slot before the first key.
const START: u32 = 0;
/// The limit of slots for keys that name no column: records may use the keys of a map as their own.
const UNKNOWN_KEYS: usize = 64;
/// The limit of slots for one column: its key with different white space, or escaped.
const SPELLINGS: usize = 8;
/// Longer keys get no slot.
const LONGEST: usize = 128;

#[derive(Debug)]
struct Field {
    name: String,
    data_type: DataType,
    nullable: bool,
    wanted: bool,
    /// The number of the last record that had the column.
    seen: u64,
    cell: Cell,
}

/// Reads records of one stream.
#[derive(Debug)]
pub(super) struct Scanner {
    fields: Vec<Field>,
    wanted: Vec<u32>,
    by_name: HashMap<Box<[u8]>, u32, FixedState>,
    slots: Vec<Slot>,
    by_bytes: HashMap<Box<[u8]>, u32, FixedState>,
    unknown_keys: usize,
    record: u64,
    unescaped: String,
    stores_slots: bool,
}

impl Scanner {
    pub(super) fn new(stream: &StreamDefinition, wanted: &[usize]) -> Self {
        let field = |(index, column): (usize, &headwater_types::Column)| Field {
            name: column.name.clone(),
            data_type: column.data_type,
            nullable: column.nullable,
            wanted: wanted.contains(&index),
            seen: 0,
            cell: Cell::Null,
        };
        let fields: Vec<Field> = stream.columns.iter().enumerate().map(field).collect();
        let by_name = fields
            .iter()
            .zip(0..)
            .map(|(field, index)| (field.name.as_bytes().into(), index))
            .collect();
        // LOST never matches: no value is followed by a byte that UTF-8 does not have.
        let slots = vec![Slot::new(b"", NONE), Slot::new(b"\xff", NONE)];
        let mut scanner = Self {
            wanted: (0..)
                .zip(&fields)
                .filter(|(_, field)| field.wanted)
                .map(|(index, _)| index)
                .collect(),
            fields,
            by_name,
            slots,
            by_bytes: HashMap::default(),
            unknown_keys: 0,
            record: 0,
            unescaped: String::new(),
            stores_slots: true,
        };
        scanner.predict_the_schema();
        scanner
    }

    /// A scanner that predicts nothing and parses every key in full.
    #[cfg(test)]
    pub(super) fn without_predictions(mut self) -> Self {
        self.stores_slots = false;
        for slot in &mut self.slots {
            (slot.next, slot.other) = (LOST, LOST);
        }
        self
    }

    /// The first prediction: the columns in the schema's order, without white space.
    fn predict_the_schema(&mut self) {
        let mut before = START;
        for index in 0..self.fields.len() {
            let name = &self.fields[index].name;
            if name.chars().any(|c| c == '"' || c == '\\' || c.is_control()) {
                return;
            }
            let bytes = format!("{}\"{name}\":", if index == 0 { '{' } else { ',' });
            before = self.slot_of(before, bytes.as_bytes(), index as u32);
        }
    }

    /// The value of a wanted column in the last record.
    #[inline]
    pub(super) fn cell(&self, column: usize) -> Cell {
        self.fields[column].cell
    }

    /// The unescaped text of the last record.
    #[inline]
    pub(super) fn unescaped(&self) -> &str {
        &self.unescaped
    }

    /// Checks a record in full and reads its wanted columns. The error is the record's first fault.
    #[inline]
    pub(super) fn scan<'v>(&mut self, value: &'v [u8]) -> Result<&'v str, DecodeError> {
        let text = std::str::from_utf8(value).map_err(|error| not_utf8(value, error))?;
        self.unescaped.clear();
        self.record += 1;
        let mut column = NONE;
        match self.walk(text, &mut column).and_then(|()| self.complete(&mut column)) {
            Ok(()) => Ok(text),
            Err(fault) => {
                let field = self.fields.get(column as usize);
                Err(fault.describe(text, field.map(|field| (field.name.as_str(), field.data_type))))
            }
        }
    }

    /// Sets `column` to the current column, for the description of a fault.
    #[inline]
    fn walk(&mut self, text: &str, column: &mut u32) -> Result<(), Fault> {
        let bytes = text.as_bytes();
        let mut slot = START;
        let mut at = 0;
        loop {
            if at + 1 == bytes.len() && bytes[at] == b'}' && slot != START {
                return Ok(());
            }
            let Slot { next, other, .. } = self.slots[slot as usize];
            if self.slots[next as usize].fits(bytes, at) {
                slot = next;
                at += self.slots[next as usize].bytes.len();
                *column = self.slots[next as usize].column;
            } else if self.slots[other as usize].fits(bytes, at) {
                let before = &mut self.slots[slot as usize];
                (before.next, before.other) = (other, next);
                slot = other;
                at += self.slots[other as usize].bytes.len();
                *column = self.slots[other as usize].column;
            } else {
                *column = NONE;
                match self.key(text, slot, at)? {
                    None => return Ok(()),
                    Some(key) => {
                        slot = key.slot;
                        at = key.at;
                        *column = key.column;
                    }
                }
            }
            // The slot has less white space after the key than this record.
            if bytes.get(at).is_some_and(|&byte| byte <= b' ') {
                at = skip_space(bytes, at);
            }
            at = match *column {
                NONE => json::skip_value(bytes, at)?,
                column => self.value(text, column as usize, at)?,
            };
        }
    }

    /// Parses everything between the end of the previous value and the start of the next. Returns
    /// `None` at the end of the record.
    #[inline(never)]
    fn key(&mut self, text: &str, before: u32, start: usize) -> Result<Option<Key>, Fault> {
        let bytes = text.as_bytes();
        let mut at = skip_space(bytes, start);
        let first = before == START;
        let end = |at: usize| {
            let at = skip_space(bytes, at);
            if at == bytes.len() { Ok(None) } else { fail(at, FaultKind::Trailing) }
        };
        match bytes.get(at) {
            Some(b'{') if first => at = skip_space(bytes, at + 1),
            Some(b',') if !first => at = skip_space(bytes, at + 1),
            Some(b'}') if !first => return end(at + 1),
            Some(_) | None => {
                return fail(at, if first { FaultKind::Object } else { FaultKind::CommaOrBrace });
            }
        }
        match bytes.get(at) {
            Some(b'"') => {}
            Some(b'}') if first => return end(at + 1),
            Some(_) | None => return fail(at, FaultKind::Key),
        }
        let name = json::string(bytes, at + 1)?;
        let raw = &text[at + 1..name.end];
        let column = if name.escaped {
            let mut key = String::new();
            json::unescape(raw, &mut key);
            self.by_name.get(key.as_bytes())
        } else {
            self.by_name.get(raw.as_bytes())
        };
        let column = column.copied().unwrap_or(NONE);
        at = json::colon(bytes, name.end + 1)?;
        let slot = self.slot_of(before, &bytes[start..at], column);
        Ok(Some(Key { slot, at, column }))
    }

    /// The slot of these bytes, and the new prediction after `before`.
    fn slot_of(&mut self, before: u32, bytes: &[u8], column: u32) -> u32 {
        let slot = match self.by_bytes.get(bytes) {
            Some(&slot) => slot,
            None => {
                let full = match column {
                    NONE => self.unknown_keys >= UNKNOWN_KEYS,
                    _ => self.slots.len() - self.unknown_keys > SPELLINGS * self.fields.len() + 2,
                };
                if !self.stores_slots || full || bytes.len() > LONGEST {
                    return LOST;
                }
                let slot = self.slots.len() as u32;
                self.unknown_keys += usize::from(column == NONE);
                self.slots.push(Slot::new(bytes, column));
                self.by_bytes.insert(bytes.into(), slot);
                slot
            }
        };
        if self.stores_slots && before != LOST {
            let before = &mut self.slots[before as usize];
            if before.next != slot {
                (before.next, before.other) = (slot, before.next);
            }
        }
        slot
    }

    /// Reads the value of a column, which starts at `at`.
    #[inline]
    fn value(&mut self, text: &str, column: usize, at: usize) -> Result<usize, Fault> {
        let bytes = text.as_bytes();
        let record = self.record;
        let field = &mut self.fields[column];
        if std::mem::replace(&mut field.seen, record) == record {
            return fail(at, FaultKind::Twice);
        }
        if !field.wanted {
            return json::skip_value(bytes, at);
        }
        let (cell, end) = match (field.data_type, bytes.get(at)) {
            (DataType::Varchar, Some(b'"')) => {
                let found = json::string(bytes, at + 1)?;
                (text_cell(&mut self.unescaped, text, at + 1, found), found.end + 1)
            }
            // A number in a VARCHAR column keeps its digits as they are written.
            (DataType::Varchar, Some(b'-' | b'0'..=b'9')) => {
                let end = json::skip_value(bytes, at)?;
                (Cell::Text { start: at, end }, end)
            }
            (DataType::Timestamp, Some(b'"')) => {
                let found = json::string(bytes, at + 1)?;
                let micros = if found.escaped {
                    let mut plain = String::new();
                    json::unescape(&text[at + 1..found.end], &mut plain);
                    timestamp::micros(plain.as_bytes())
                } else {
                    timestamp::micros(&bytes[at + 1..found.end])
                };
                let micros = micros.ok_or(Fault { at, kind: FaultKind::Time })?;
                let micros = timestamp::in_range(micros.into())
                    .ok_or(Fault { at, kind: FaultKind::TimeRange })?;
                (Cell::Integer(micros), found.end + 1)
            }
            (DataType::Boolean, Some(b't')) => {
                (Cell::Boolean(true), json::word_literal(bytes, at, b"true")?)
            }
            (DataType::Boolean, Some(b'f')) => {
                (Cell::Boolean(false), json::word_literal(bytes, at, b"false")?)
            }
            (
                DataType::Integer
                | DataType::BigInt
                | DataType::Double
                | DataType::Decimal { .. }
                | DataType::Timestamp,
                Some(b'-' | b'0'..=b'9'),
            ) => {
                let number = number::number(bytes, at)?;
                let cell = number_cell(field.data_type, &number, &text[at..number.end]);
                (cell.map_err(|kind| Fault { at, kind })?, number.end)
            }
            (_, Some(b'n')) => {
                let end = json::word_literal(bytes, at, b"null")?;
                if !field.nullable {
                    return fail(at, FaultKind::Null);
                }
                (Cell::Null, end)
            }
            (_, Some(_) | None) => {
                json::skip_value(bytes, at)?;
                return fail(at, FaultKind::Type);
            }
        };
        field.cell = cell;
        Ok(end)
    }

    /// Sets the wanted columns that the record does not have to NULL.
    #[inline]
    fn complete(&mut self, column: &mut u32) -> Result<(), Fault> {
        for &index in &self.wanted {
            let field = &mut self.fields[index as usize];
            if field.seen != self.record {
                if !field.nullable {
                    *column = index;
                    return fail(0, FaultKind::Missing);
                }
                field.cell = Cell::Null;
            }
        }
        Ok(())
    }
}

/// A key that was parsed in full.
struct Key {
    slot: u32,
    at: usize,
    column: u32,
}
