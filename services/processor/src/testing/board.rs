use std::time::Duration;

use headwater_control::{STATUS_TOPIC, StatusBoard};
use headwater_log::Log;

use crate::testing::fixtures::{P0, name};

/// What the shards said last: all that is in the status topic at this moment.
pub(crate) fn read_board(log: &dyn Log) -> StatusBoard {
    let topic = name(STATUS_TOPIC);
    let ends = log.ends(&topic, P0).unwrap();
    let mut reader = log.reader(&topic, P0, ends.start).unwrap();
    let mut board = StatusBoard::default();
    while reader.position() < ends.end {
        let from = reader.position();
        let Some(chunk) = reader.read(1 << 20, Duration::ZERO).unwrap() else { break };
        for record in chunk.records(from) {
            let record = record.unwrap();
            board.fold_record(record.key.unwrap(), record.value).unwrap();
        }
    }
    board
}
