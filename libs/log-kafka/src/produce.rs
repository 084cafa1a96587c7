//! Appending without a claim.
//!
//! ```text
//! append ──> AppendQueue ───> AppenderThread ──────────────────────────> librdkafka ══> brokers
//!            order of calls   checks topic and limits, waits for room        │
//!                             in the producer's InFlightBudget               │
//!                   answers <── PendingBatch <── thread per producer <── delivery reports
//! ```
//!
//! No caller waits for a broker on its own thread: its future does. Its appends wait in the queue,
//! in memory that the caller bounds. What librdkafka holds is bounded by the budget.

mod append_queue;
mod appender;
mod delivery;
mod in_flight_budget;
mod limits;
mod producer;
mod send;

#[cfg(test)]
mod tests;

pub(crate) use appender::Appender;
pub(crate) use delivery::DeliveryContext;
pub(crate) use limits::own_limit;
pub(crate) use send::send;
