//! A client that can be replaced while it is in use.

use std::{sync::Arc, thread};

use parking_lot::Mutex;
use rdkafka::error::KafkaError;

/// Calls that run on the former client end on it.
pub(crate) struct Renewable<T> {
    current: Mutex<Arc<T>>,
    create: Box<dyn Fn() -> Result<T, KafkaError> + Send + Sync>,
}

impl<T: Send + Sync + 'static> Renewable<T> {
    pub(crate) fn new(
        create: impl Fn() -> Result<T, KafkaError> + Send + Sync + 'static,
    ) -> Result<Self, KafkaError> {
        let current = Mutex::new(Arc::new(create()?));
        Ok(Self { current, create: Box::new(create) })
    }

    pub(crate) fn get(&self) -> Arc<T> {
        self.current.lock().clone()
    }

    pub(crate) fn renew(&self) -> Result<(), KafkaError> {
        let new = Arc::new((self.create)()?);
        let former = std::mem::replace(&mut *self.current.lock(), new);
        // Destroying a client may wait for connections that are being made.
        thread::Builder::new()
            .name("kafka-destroy".into())
            .spawn(move || drop(former))
            .map(drop)
            .map_err(|error| KafkaError::ClientCreation(error.to_string()))
    }
}
