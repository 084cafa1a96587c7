//! Against librdkafka's mock cluster, and against a listener that never answers.

use std::{
    net::TcpListener,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use headwater_log::{Appended, BatchBuilder, Error, RecordLimit, block_on};
use headwater_types::{Name, Offset, PartitionId};
use rdkafka::{mocking::MockCluster, producer::DefaultProducerContext, types::RDKafkaRespErr};

use super::*;
use crate::{
    admin::Admin, client::context::Context, config::KafkaConfig, topic_metadata::TopicMetadata,
};

const TOPIC: &str = "orders";
const ZERO: PartitionId = PartitionId(0);
/// Far more than any machine needs, and far less than 200 waits for a broker one after the other.
const TOGETHER: Duration = Duration::from_secs(60);

type Cluster = MockCluster<'static, DefaultProducerContext>;
type Answer = headwater_log::Answer<Appended>;

fn topic() -> Name {
    Name::new(TOPIC).unwrap()
}

fn config(servers: String) -> KafkaConfig {
    KafkaConfig {
        bootstrap_servers: servers,
        delivery_timeout: Duration::from_secs(2),
        request_timeout: Duration::from_secs(3),
        ..KafkaConfig::default()
    }
}

fn cluster() -> Cluster {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic(TOPIC, 2, 1).unwrap();
    cluster
}

struct Bench {
    appender: Appender,
    known: Arc<TopicMetadata>,
}

impl Bench {
    fn new(config: &KafkaConfig) -> Self {
        let (context, known) = (Context::default(), Arc::<TopicMetadata>::default());
        let admin = Admin::new(config, "test", context.clone(), known.clone()).unwrap();
        let appender = Appender::start(config, "test", &context, Arc::new(admin), &known).unwrap();
        Self { appender, known }
    }

    fn append(&self, values: &[&[u8]]) -> Answer {
        let mut batch = BatchBuilder::new();
        for value in values {
            batch.push(1, Some(b"k"), Some(value), &[]);
        }
        self.appender.append(&topic(), ZERO, batch.build().unwrap())
    }

    fn stored(&self, values: &[&[u8]]) -> Offset {
        block_on(self.append(values)).unwrap().first()
    }
}

#[test]
fn an_append_never_blocks_and_says_that_it_is_not_stored_while_no_broker_answers() {
    // Like a paused broker, it takes connections and answers nothing.
    let frozen = TcpListener::bind("127.0.0.1:0").unwrap();
    let bench = Bench::new(&config(frozen.local_addr().unwrap().to_string()));
    let begun = Instant::now();
    let answers: Vec<_> = (0..200).map(|_| bench.append(&[b"a", b"b"])).collect();
    assert!(begun.elapsed() < TOGETHER, "each call waits for the broker");
    for answer in answers {
        let error = block_on(answer).unwrap_err();
        assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
    }
    assert!(begun.elapsed() < TOGETHER, "they wait one after the other");
    // An append that still waits when the log is closed is answered, too.
    let last = bench.append(&[b"c"]);
    drop(bench);
    assert!(matches!(block_on(last), Err(Error::Unavailable(_))));
}

#[test]
fn batches_beyond_the_budget_wait_and_are_stored_whole_and_in_order_or_not_at_all() {
    const BATCHES: usize = 100;
    let cluster = cluster();
    let bench = Bench::new(&config(cluster.bootstrap_servers()));
    assert_eq!(bench.stored(&[b"first"]), Offset(0), "the topic is known from now on");
    cluster.broker_down(1).unwrap();
    // A hundred MiB; the budget is 64.
    let value = vec![b'x'; 512 << 10];
    let answers: Vec<_> = (0..BATCHES).map(|_| bench.append(&[&value, &value])).collect();
    let mut uncertain = 0;
    for answer in answers {
        match block_on(answer) {
            Err(Error::Uncertain(_)) => uncertain += 1,
            // Some of the others enter the budget when the first ones are given up.
            Err(Error::Unavailable(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(uncertain > 0, "none was handed over before the broker was away for too long");
    cluster.broker_up(1).unwrap();
    let after = block_on(async {
        loop {
            match bench.append(&[b"after"]).await {
                Ok(appended) => break appended.first(),
                Err(error) => {
                    assert!(error.remedy() == headwater_types::Remedy::Retry, "{error:?}")
                }
            }
        }
    });
    assert!(after.0 <= 1 + 2 * uncertain, "a batch was stored that was reported as not stored");
    // Now those that wait for the budget get it.
    let answers: Vec<_> = (0..BATCHES).map(|_| bench.append(&[&value, &value])).collect();
    let mut next = after.next();
    for answer in answers {
        let appended = block_on(answer).unwrap();
        assert_eq!((appended.first(), appended.end()), (next, Offset(next.0 + 2)));
        next = appended.end();
    }
}

#[test]
fn a_record_over_the_configured_limit_of_the_producer_is_refused_with_its_batch() {
    let cluster = cluster();
    for (set, limit) in [(None, 1_000_000), (Some("5000"), 5000)] {
        let mut config = config(cluster.bootstrap_servers());
        config.settings =
            set.map(|set| ("message.max.bytes".to_owned(), set.to_owned())).into_iter().collect();
        let bench = Bench::new(&config);
        let before = bench.stored(&[b"before"]);
        let RecordLimit { bytes, overhead, .. } = bench.appender.record_limit(&topic());
        assert_eq!(bytes, limit);
        let sized = |bytes: usize| vec![b'x'; bytes - overhead - 1];
        let error = block_on(bench.append(&[b"a", b"b", &sized(limit + 1), b"c"])).unwrap_err();
        assert!(
            matches!(&error, Error::RecordTooLarge { index: 2, bytes, limit: said, .. } if (*bytes, *said) == (limit + 1, limit)),
            "{error:?}"
        );
        // librdkafka takes the record that is as large as our limit.
        assert_eq!(bench.stored(&[b"a", &sized(limit), b"c"]), before.next());
    }
}

#[test]
fn a_batch_that_the_brokers_refuse_for_its_size_is_not_stored_and_the_limit_is_asked_for() {
    let cluster = cluster();
    let bench = Bench::new(&config(cluster.bootstrap_servers()));
    bench.stored(&[b"first"]);
    let too_large = RDKafkaRespErr::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE;
    cluster.request_errors(rdkafka::types::RDKafkaApiKey::Produce, &[too_large]);
    let error = block_on(bench.append(&[b"small", &[b'x'; 600], b"small"])).unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "the small ones may be sent again: {error:?}");
    assert!(bench.known.is_outdated(&topic()));
    // A broker would answer this; the mock cluster cannot.
    bench.known.set_max_batch(&topic(), Some(500));
    let error = block_on(bench.append(&[b"small", &[b'x'; 600], b"small"])).unwrap_err();
    assert!(matches!(error, Error::RecordTooLarge { index: 1, limit: 500, .. }), "{error:?}");
    assert_eq!(bench.stored(&[b"small", b"small"]), Offset(1));
}

#[test]
fn appends_keep_their_order_when_the_topics_limit_changes_between_them() {
    let cluster = cluster();
    let bench = Bench::new(&config(cluster.bootstrap_servers()));
    bench.stored(&[b"first"]);
    let mut answers = Vec::new();
    for limit in [None, Some(3000), None, Some(1500), Some(3000)] {
        bench.known.set_max_batch(&topic(), limit);
        answers.extend((0..20).map(|_| bench.append(&[&[b'x'; 1000], &[b'y'; 1000]])));
        // The next limit is for the appends after these only.
        bench.appender.flush(Duration::ZERO).ok();
        thread::sleep(Duration::from_millis(5));
    }
    let offsets: Vec<_> = answers.into_iter().map(|it| block_on(it).unwrap().first().0).collect();
    assert_eq!(offsets, (0..100).map(|n| 1 + 2 * n).collect::<Vec<_>>());
}
