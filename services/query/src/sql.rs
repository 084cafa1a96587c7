//! SQL over views, by DataFusion.

pub(crate) mod query;
pub(crate) mod table;
