//! The commands: what each request makes of the state.

pub(crate) mod apply;
pub(crate) mod replay_commands;
