//! The consumers of a process: as many as there are readers of one partition at a time.

use std::sync::Arc;

use headwater_types::Offset;
use parking_lot::Mutex;
use rdkafka::error::KafkaError;

use super::{
    consumer_thread::ConsumerThread, partition_buffer::PartitionBuffer, read_ahead::ReadAheadBudget,
};
use crate::{client::context::Context, config::KafkaConfig};

/// Starts consumers when readers need them. Dropping it stops them.
pub(crate) struct Consumers {
    config: KafkaConfig,
    client: String,
    context: Context,
    budget: Arc<ReadAheadBudget>,
    threads: Mutex<Vec<Arc<ConsumerThread>>>,
}

impl Consumers {
    /// Starts nothing yet. `client` names this process to the brokers.
    pub(crate) fn new(config: &KafkaConfig, client: &str, context: &Context) -> Self {
        Self {
            config: config.clone(),
            client: client.to_owned(),
            context: context.clone(),
            budget: Arc::new(ReadAheadBudget::new(config.read_ahead_bytes)),
            threads: Mutex::default(),
        }
    }

    /// Has the buffer filled from `from` on, by the first consumer that does not read its partition
    /// yet: a consumer has one position per partition.
    pub(super) fn attach(
        &self,
        buffer: &Arc<PartitionBuffer>,
        from: Offset,
    ) -> Result<Arc<ConsumerThread>, KafkaError> {
        let mut threads = self.threads.lock();
        threads.retain(|thread| !thread.has_ended());
        if let Some(thread) = threads.iter().find(|thread| thread.attach(buffer, from)) {
            return Ok(thread.clone());
        }
        let in_use = |index: &usize| threads.iter().any(|thread| thread.index == *index);
        let index = (0..).find(|index| !in_use(index)).unwrap_or_default();
        let Self { config, client, context, budget, .. } = self;
        let thread = ConsumerThread::start(config, client, index, context, budget)?;
        // It succeeds: no other reader knows this consumer yet.
        thread.attach(buffer, from);
        threads.push(thread.clone());
        Ok(thread)
    }
}

impl Drop for Consumers {
    fn drop(&mut self) {
        for thread in self.threads.lock().drain(..) {
            thread.stop();
        }
    }
}
