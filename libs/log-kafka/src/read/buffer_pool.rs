//! Buffers of batches that are used again: the system takes long to hand out large ones.

use std::sync::Arc;

use headwater_log::Relayed;
use parking_lot::Mutex;

/// A batch is handed out once it has about this many bytes, or earlier to a reader that waits.
pub(super) const BATCH_BYTES: usize = 128 << 10;

/// How many buffers are kept at most.
const BUFFERS: usize = 32;

/// Buffers whose batches were read.
#[derive(Default)]
pub(crate) struct BufferPool(Mutex<Vec<Vec<u8>>>);

impl BufferPool {
    /// A buffer from the pool, or a new one.
    pub(super) fn take(&self) -> Vec<u8> {
        let buffer = self.0.lock().pop();
        buffer.unwrap_or_else(|| Vec::with_capacity(BATCH_BYTES + (BATCH_BYTES >> 3)))
    }

    fn give_back(&self, buffer: Vec<u8>) {
        // A buffer that grew for a large record is not kept.
        if buffer.capacity() <= 2 * BATCH_BYTES {
            let mut buffers = self.0.lock();
            if buffers.len() < BUFFERS {
                buffers.push(buffer);
            }
        }
    }
}

/// A batch whose buffer goes back to the pool when the batch is dropped.
pub(super) struct PooledBatch {
    /// `None` only while it is dropped.
    batch: Option<Relayed>,
    pool: Arc<BufferPool>,
}

impl PooledBatch {
    pub(super) fn new(batch: Relayed, pool: &Arc<BufferPool>) -> Self {
        Self { batch: Some(batch), pool: pool.clone() }
    }
}

impl AsRef<[u8]> for PooledBatch {
    fn as_ref(&self) -> &[u8] {
        self.batch.as_ref().map_or(&[], Relayed::as_ref)
    }
}

impl Drop for PooledBatch {
    fn drop(&mut self) {
        if let Some(batch) = self.batch.take() {
            self.pool.give_back(batch.into_buffer());
        }
    }
}
