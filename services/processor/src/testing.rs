//! Shared by the tests: a stream, a view, a log that can be made to fail, and groups whose
//! rebalances a test makes.

mod board;
mod connection;
mod fixtures;
mod groups;
mod log;

pub(crate) use board::read_board;
pub(crate) use connection::Connection;
pub(crate) use fixtures::{
    P0, PATIENCE, VIEW_SQL, copy, generation, name, plan, plan_of, stream_sql,
};
pub(crate) use groups::Groups;
pub(crate) use log::{StatusAt, TestLog, append_status};
