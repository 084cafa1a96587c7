use headwater_control::{STATUS_TOPIC, StatusBoard};
use headwater_log::{Log, block_on};

use crate::{
    blocking::read_until,
    testing::fixtures::{P0, name},
};

/// The last status of every shard: all that is in the status topic at this moment.
pub(crate) fn read_board(log: &dyn Log) -> StatusBoard {
    let topic = name(STATUS_TOPIC);
    let ends = block_on(log.ends(&topic, P0)).unwrap();
    let mut board = StatusBoard::default();
    read_until(log, &topic, P0, ends.start, ends.end, |record| {
        board.fold_record(record.key.unwrap(), record.value).unwrap();
    })
    .unwrap();
    board
}
