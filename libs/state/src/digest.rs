//! A shard's contents as a digest of 32 bytes, or in full. Tests of law 2 compare them.

use crate::{Error, KeyRange, Progress, ReadView, RowHeader};

/// A digest of the progress and of every row that has not expired. Two shards of one definition
/// have equal digests at one position, whatever crashes, commits and compactions they went through.
pub fn digest(view: ReadView<'_>) -> Result<[u8; 32], Error> {
    let mut hasher = blake3::Hasher::new_derive_key("headwater shard v1");
    hasher.update(&view.progress().encode());
    let mut scan = view.scan(KeyRange::all());
    while let Some(row) = scan.next() {
        let (key, header, payload) = row?;
        for part in [key, payload] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.update(&header.time.0.to_le_bytes());
        hasher.update(&header.last_offset.0.to_le_bytes());
    }
    Ok(*hasher.finalize().as_bytes())
}

/// The input of [`digest`], which shows where two shards differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dump {
    pub progress: Progress,
    /// Key, header and payload, in the order of the keys.
    pub rows: Vec<(Vec<u8>, RowHeader, Vec<u8>)>,
}

/// Reads the progress and every row that has not expired.
pub fn dump(view: ReadView<'_>) -> Result<Dump, Error> {
    let progress = view.progress();
    let mut rows = Vec::new();
    let mut scan = view.scan(KeyRange::all());
    while let Some(row) = scan.next() {
        let (key, header, payload) = row?;
        rows.push((key.to_vec(), header, payload.to_vec()));
    }
    Ok(Dump { progress, rows })
}
