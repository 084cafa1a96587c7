//! Reading partitions.
//!
//! ```text
//! broker ══> librdkafka's queue ──> ConsumerThread ──────> PartitionBuffer ──> KafkaReader::read
//!            per consumer,          takes many records      one per reader,
//!            bounded in bytes       at once                 whole batches, bounded in bytes
//! ```
//!
//! librdkafka takes the brokers' batches apart. The consumer's thread puts their records together
//! again, for each reader, in buffers of [`buffer_pool`]. Readers and membership know nothing of
//! each other, so that a reader which speaks Fetch itself can take the place of librdkafka's.

mod buffer_pool;
mod consumer_thread;
mod consumers;
mod cpu_affinity;
mod fetch_failure;
mod message;
mod partition_buffer;
mod read_ahead;
mod reader;
mod size;

pub(crate) use buffer_pool::BufferPool;
pub(crate) use consumers::Consumers;
pub(crate) use reader::{KafkaReader, ReadContext, check_position};
pub(crate) use size::estimate_size;
