//! Rows cut into messages that every client accepts.

use headwater_proto::common::v1::Row;
use prost::Message as _;

/// One message has about this many bytes of rows at most: clients accept 4 MiB.
pub(crate) const MESSAGE_BYTES: usize = 1 << 20;

/// Cuts rows into messages.
pub(crate) fn split(rows: Vec<Row>) -> Vec<Vec<Row>> {
    let mut messages: Vec<Vec<Row>> = Vec::new();
    let mut bytes = MESSAGE_BYTES;
    for row in rows {
        let size = row.encoded_len() + 4;
        match messages.last_mut() {
            Some(message) if bytes + size <= MESSAGE_BYTES => {
                message.push(row);
                bytes += size;
            }
            Some(_) | None => {
                messages.push(vec![row]);
                bytes = size;
            }
        }
    }
    messages
}
