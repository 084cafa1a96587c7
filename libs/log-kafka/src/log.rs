//! [`KafkaLog`]: owns all parts of the log, and hands each call to the part that answers it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use headwater_log::{
    Answer, Appended, Assignee, EncodedBatch, Ends, Error, FencedWriter, GroupId, Log, Member,
    Membership, Reader, RecordLimit, TopicSpec, WriterId,
};
use headwater_types::{Name, Offset, PartitionId};
use rdkafka::error::KafkaError;

use crate::{
    admin::Admin,
    client::{
        cluster_status::ClusterStatus, connection_info::ConnectionInfo, context::Context,
        error::unavailable, off_thread::off_thread,
    },
    config::KafkaConfig,
    health::Health,
    membership::KafkaMember,
    produce::Appender,
    read::{BufferPool, Consumers, KafkaReader, ReadContext, check_position, estimate_size},
    topic_metadata::TopicMetadata,
    writer::{CLAIMS_SPEC, CLAIMS_TOPIC, KafkaWriter, explain_claims_topic},
};

/// The [`Log`] on Kafka. Clones share it.
#[derive(Clone)]
pub struct KafkaLog {
    parts: Arc<Parts>,
}

struct Parts {
    config: KafkaConfig,
    client: String,
    context: Context,
    topics: Arc<TopicMetadata>,
    admin: Arc<Admin>,
    appender: Appender,
    read: Arc<ReadContext>,
    health: Arc<Health>,
    claims_topic_exists: AtomicBool,
}

impl KafkaLog {
    /// Opens the log without waiting for a broker. `client` names this process to the brokers.
    ///
    /// # Errors
    ///
    /// librdkafka refuses the settings. [`KafkaConfig::check`] names the setting.
    pub fn connect(config: &KafkaConfig, client: &str) -> Result<Arc<Self>, Error> {
        let info = ConnectionInfo::new(config);
        let context = Context { status: ClusterStatus::new(info.user(), info.principal()) };
        let failed = |error: KafkaError| Error::Unavailable(error.into());
        let topics = Arc::<TopicMetadata>::default();
        let admin = Admin::new(config, client, context.clone(), topics.clone());
        let admin = Arc::new(admin.map_err(failed)?);
        let appender = Appender::start(config, client, &context, admin.clone(), &topics)?;
        let health = Arc::new(Health::default());
        health.watch(admin.clone(), context.status.clone(), config);
        let read = Arc::new(ReadContext {
            consumers: Consumers::new(config, client, &context),
            pool: Arc::<BufferPool>::default(),
            admin: admin.clone(),
            health: health.clone(),
            status: context.status.clone(),
            request_timeout: config.request_timeout,
        });
        let parts = Parts {
            config: config.clone(),
            client: client.to_owned(),
            context,
            topics,
            admin,
            appender,
            read,
            health,
            claims_topic_exists: AtomicBool::new(false),
        };
        Ok(Arc::new(Self { parts: Arc::new(parts) }))
    }

    /// Calls `listener` now and at every change with whether the brokers can be reached; if not,
    /// with the reason and their addresses.
    pub fn on_reachable(&self, listener: impl Fn(Result<(), String>) + Send + Sync + 'static) {
        self.parts.health.on_reachable(Box::new(listener));
    }

    /// Waits until every append is answered, or until the deadline.
    pub fn close(&self, deadline: Duration) {
        if let Err(error) = self.parts.appender.flush(deadline) {
            tracing::warn!(%error, "some appends were not answered");
        }
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.health.stop();
    }
}

impl Parts {
    /// Answers off the caller's thread.
    fn ask<T: Send + 'static>(
        self: &Arc<Self>,
        question: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> Answer<T> {
        let parts = self.clone();
        off_thread(move || question(&parts))
    }

    /// Creates the topic of claims before the first claim of the process.
    fn claim(&self, id: &WriterId) -> Result<KafkaWriter, Error> {
        let Self { config, client, context, topics, admin, .. } = self;
        // Several claims may create it at a time: none waits for another one's broker.
        if !self.claims_topic_exists.load(Ordering::Relaxed) {
            let topic =
                Name::new(CLAIMS_TOPIC).map_err(|error| unavailable(error, &context.status))?;
            admin.create(&topic, CLAIMS_SPEC).map_err(explain_claims_topic)?;
            self.claims_topic_exists.store(true, Ordering::Relaxed);
        }
        KafkaWriter::claim(config, client, context, topics, id)
    }
}

impl Log for KafkaLog {
    fn create_topic(&self, topic: &Name, spec: TopicSpec) -> Answer<()> {
        let topic = topic.clone();
        self.parts.ask(move |parts| parts.admin.create(&topic, spec))
    }

    fn topic(&self, topic: &Name) -> Answer<Option<TopicSpec>> {
        let topic = topic.clone();
        self.parts.ask(move |parts| parts.admin.spec(&topic))
    }

    fn ends(&self, topic: &Name, partition: PartitionId) -> Answer<Ends> {
        let topic = topic.clone();
        self.parts.ask(move |parts| parts.admin.ends(&topic, partition))
    }

    fn record_limit(&self, topic: &Name) -> Option<RecordLimit> {
        Some(self.parts.appender.record_limit(topic))
    }

    fn append(
        &self,
        topic: &Name,
        partition: PartitionId,
        batch: EncodedBatch,
    ) -> Answer<Appended> {
        self.parts.appender.append(topic, partition, batch)
    }

    fn reader(
        &self,
        topic: &Name,
        partition: PartitionId,
        from: Offset,
    ) -> Answer<Box<dyn Reader>> {
        let topic = topic.clone();
        self.parts.ask(move |parts| {
            let ends = parts.admin.ends(&topic, partition)?;
            check_position(&topic, partition, from, ends)?;
            let reader = KafkaReader::new(parts.read.clone(), topic, partition, from);
            Ok(Box::new(reader) as Box<dyn Reader>)
        })
    }

    fn writer(&self, id: &WriterId) -> Answer<Arc<dyn FencedWriter>> {
        let id = id.clone();
        self.parts.ask(move |parts| Ok(Arc::new(parts.claim(&id)?) as Arc<dyn FencedWriter>))
    }

    fn trim(&self, topic: &Name, partition: PartitionId, before: Offset) -> Answer<()> {
        let topic = topic.clone();
        self.parts.ask(move |parts| parts.admin.trim(&topic, partition, before))
    }

    fn size(&self, topic: &Name, partition: PartitionId, from: Offset, to: Offset) -> Answer<u64> {
        let topic = topic.clone();
        self.parts.ask(move |parts| estimate_size(&parts.read, &topic, partition, from, to))
    }
}

impl Membership for KafkaLog {
    fn join(
        &self,
        group: &GroupId,
        topic: &Name,
        assignee: Arc<dyn Assignee>,
    ) -> Result<Box<dyn Member>, Error> {
        let Parts { config, client, context, .. } = &*self.parts;
        Ok(Box::new(KafkaMember::join(config, client, context, group, topic, assignee)?))
    }

    fn delete(&self, group: &GroupId) -> Answer<()> {
        let group = group.clone();
        self.parts.ask(move |parts| parts.admin.delete_group(&group))
    }
}
