//! Records of foreign clients: every codec, any headers, values that are empty or missing.

use std::{collections::BTreeSet, ffi::CString, time::Duration};

use anyhow::{Result, ensure};
use headwater_integration_tests::{
    cluster::Cluster,
    docker::{self, Broker},
    foreign::{
        Counted, console, counted_by_kafka, event, expect_view, producer, send, stream, view,
    },
    patience::{PATIENCE, eventually, found},
    platform::Platform,
    topics,
};
use headwater_log::Log as _;
use headwater_log_kafka::{KafkaConfig, KafkaLog};
use headwater_proto::ingest::v1::ListDeadLettersRequest;
use headwater_types::{Name, Offset, PartitionId};
use rdkafka::{
    ClientConfig,
    bindings::{
        RD_KAFKA_MSG_F_COPY, rd_kafka_header_add, rd_kafka_headers_destroy, rd_kafka_headers_new,
        rd_kafka_producev, rd_kafka_resp_err_t as Code, rd_kafka_vtype_t as Vtype,
    },
    producer::{BaseProducer, Producer},
};

/// Events of foreign clients, and the counts that a view of them must have.
struct Foreign {
    number: u64,
    expected: Counted,
}

impl Foreign {
    fn next(&mut self) -> (String, String) {
        let number = self.number;
        self.number += 1;
        let (events, total) = self.expected.entry(format!("u{}", number % 7)).or_default();
        *events += 1;
        *total += number as i64;
        event(number % 7, number)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_every_codec_are_counted_side_by_side() -> Result<()> {
    const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];
    docker::test(async {
        let broker = Broker::start().await?;
        broker.create_topic("mixed", 2, &[]).await?;
        let cluster = Cluster::start(&broker, 1, 1).await?;
        cluster
            .apply("mixed", &[&stream("mixed", "mixed", 2), &view("blend", "mixed", "amount")])
            .await?;
        let mut foreign = Foreign { number: 0, expected: Counted::new() };
        // librdkafka writes, and Kafka's own producer, which compresses with other libraries and
        // frames snappy in its own way.
        let producers = CODECS.map(|codec| {
            let mut config = ClientConfig::new();
            config
                .set("bootstrap.servers", broker.bootstrap_host())
                .set("partitioner", "murmur2_random")
                .set("compression.type", codec);
            config.create::<BaseProducer>()
        });
        let producers = producers.into_iter().collect::<Result<Vec<_>, _>>()?;
        for _ in 0..6 {
            for producer in &producers {
                for _ in 0..40 {
                    let (key, value) = foreign.next();
                    send(producer, "mixed", &key, &value)?;
                }
                producer.flush(PATIENCE)?;
            }
        }
        let mut script = String::new();
        for codec in CODECS {
            script += &format!(
                "kafka-console-producer.sh --bootstrap-server $BOOTSTRAP --topic mixed \
                 --compression-codec {codec} --property parse.key=true --property 'key.separator=|' <<'END'\n"
            );
            for _ in 0..60 {
                let (key, value) = foreign.next();
                script += &format!("{key}|{value}\n");
            }
            script += "END\n";
        }
        broker.shell(&script).await?;

        // The broker stores the batches as they were sent.
        let stored = broker
            .shell("kafka-dump-log.sh --files /var/lib/kafka/data/mixed-0/00000000000000000000.log")
            .await?;
        for codec in CODECS {
            ensure!(stored.contains(&format!("compresscodec: {codec} ")), "no batch is {codec}: {stored}");
        }
        let by_kafka = counted_by_kafka(&broker, "mixed").await?;
        assert_eq!(by_kafka, foreign.expected);
        expect_view(&cluster, "blend", &foreign.expected).await?;
        cluster.terminate().await
    })
    .await
}

/// Name and value.
type Header<'a> = (&'a [u8], Option<&'a [u8]>);

/// Writes a record with headers whose names are any bytes but zero.
#[allow(unsafe_code, reason = "rdkafka takes names that are text only")]
fn send_with_headers(
    producer: &BaseProducer,
    topic: &str,
    key: &str,
    value: Option<&[u8]>,
    headers: &[Header<'_>],
) -> Result<()> {
    let topic = CString::new(topic)?;
    // An empty value is another thing than none: librdkafka tells them apart by the address.
    let (value, length) =
        value.map_or((std::ptr::null(), 0), |value| (value.as_ptr(), value.len()));
    // SAFETY: the list is the caller's to fill, and goes to the producer or is destroyed below.
    let list = unsafe { rd_kafka_headers_new(headers.len()) };
    for (name, value) in headers {
        let (value, length) =
            value.map_or((std::ptr::null(), 0), |value| (value.as_ptr(), value.len()));
        // SAFETY: names and values are copied, as long as is said.
        let code = unsafe {
            rd_kafka_header_add(
                list,
                name.as_ptr().cast(),
                isize::try_from(name.len())?,
                value.cast(),
                isize::try_from(length)?,
            )
        };
        ensure!(code == Code::RD_KAFKA_RESP_ERR_NO_ERROR, "a header is refused: {code:?}");
    }
    // SAFETY: each value has the type that the tag in front of it wants; key and value are copied.
    let code = unsafe {
        rd_kafka_producev(
            producer.client().native_ptr(),
            Vtype::RD_KAFKA_VTYPE_TOPIC,
            topic.as_ptr(),
            Vtype::RD_KAFKA_VTYPE_MSGFLAGS,
            RD_KAFKA_MSG_F_COPY,
            Vtype::RD_KAFKA_VTYPE_KEY,
            key.as_ptr(),
            key.len(),
            Vtype::RD_KAFKA_VTYPE_VALUE,
            value,
            length,
            Vtype::RD_KAFKA_VTYPE_HEADERS,
            list,
            Vtype::RD_KAFKA_VTYPE_END,
        )
    };
    if code != Code::RD_KAFKA_RESP_ERR_NO_ERROR {
        // SAFETY: the producer has not taken it.
        unsafe { rd_kafka_headers_destroy(list) };
        anyhow::bail!("the record is refused: {code:?}");
    }
    Ok(())
}

/// Reads partition 0 of a topic with the log's own reader: offset, value and headers.
async fn read_by_log(broker: &Broker, topic: &str) -> Result<Vec<topics::Record>> {
    let bootstrap_servers = broker.bootstrap_host();
    let topic = Name::new(topic)?;
    let read = move || -> Result<Vec<topics::Record>> {
        let config = KafkaConfig { bootstrap_servers, ..KafkaConfig::default() };
        let log = KafkaLog::connect(&config, "looking-on")?;
        let end = headwater_log::block_on(log.ends(&topic, PartitionId(0)))?.end;
        let mut reader = headwater_log::block_on(log.reader(&topic, PartitionId(0), Offset::ZERO))?;
        let mut records = Vec::new();
        while reader.position() < end {
            let from = reader.position();
            let Some(chunk) = reader.read(1 << 20, Duration::from_secs(5))? else { continue };
            for record in chunk.records(from) {
                let record = record?;
                let headers = record.headers.iter();
                records.push(topics::Record {
                    partition: 0,
                    offset: record.offset.0,
                    key: record.key.map(<[u8]>::to_vec),
                    value: record.value.map(<[u8]>::to_vec),
                    headers: headers
                        .map(|(name, value)| (name.to_owned(), value.map(<[u8]>::to_vec)))
                        .collect(),
                });
            }
        }
        Ok(records)
    };
    tokio::task::spawn_blocking(read).await?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_client_may_put_any_headers_on_its_records_and_have_no_value_for_them()
-> Result<()> {
    docker::test(async {
        let broker = Broker::start().await?;
        broker.create_topic("traced", 1, &[]).await?;
        let cluster = Cluster::start(&broker, 1, 1).await?;
        cluster
            .apply("traced", &[&stream("traced", "traced", 1), &view("traces", "traced", "amount")])
            .await?;
        let mut foreign = Foreign { number: 0, expected: Counted::new() };
        let plain = producer(&broker, None)?;
        let trace: Header<'_> = (b"traceparent", Some(b"00-4bf92f3577b34da6"));
        let some: [&[Header<'_>]; 4] = [
            &[trace],
            // Names may repeat, be empty or no text; values may be missing, empty or no text.
            &[trace, trace, (b"", Some(b"")), (b"none", None), (b"bytes", Some(b"\xff\0\x80"))],
            &[(b"headwater.sequence", Some(b"not ours"))],
            &[],
        ];
        for headers in some {
            let (key, value) = foreign.next();
            send_with_headers(&plain, "traced", &key, Some(value.as_bytes()), headers)?;
        }
        // A record with an empty value or none is no event. Some of them have headers.
        send_with_headers(&plain, "traced", "empty", Some(b""), &[trace])?;
        send_with_headers(&plain, "traced", "gone", None, &[trace])?;
        send_with_headers(&plain, "traced", "empty", Some(b""), &[])?;
        plain.flush(PATIENCE)?;
        let (key, value) = foreign.next();
        // Kafka's own producer writes one, too.
        let script = format!(
            "kafka-console-producer.sh --bootstrap-server $BOOTSTRAP --topic traced \
             --property parse.headers=true --property parse.key=true --property 'key.separator=|' \
             <<'END'\nregion:eu,shop:7\t{key}|{value}\nEND"
        );
        broker.shell(&script).await?;

        // The log hands out what librdkafka does, and Kafka's own consumer sees as many headers.
        let written = topics::read(&broker, "traced").await?;
        let number = |records: &[topics::Record]| -> Vec<_> {
            records.iter().map(|record| record.headers.len()).collect()
        };
        assert_eq!(number(&written), [1, 5, 1, 0, 1, 1, 0, 2]);
        let by_log = read_by_log(&broker, "traced").await?;
        assert_eq!(by_log, written);
        let options = "--property print.offset=true --property print.headers=true \
                       --property print.value=false";
        let shown: Vec<_> = console(&broker, "traced", options)
            .await?
            .iter()
            .filter_map(|line| line.strip_prefix("Offset:")?.split_once('\t'))
            .map(|(_, headers)| match headers.trim_end() {
                "NO_HEADERS" => 0,
                headers => headers.split(',').count(),
            })
            .collect();
        assert_eq!(shown, number(&written));

        // A record with a name that is no text is an event all the same, and so is the next record.
        for headers in [&[(&b"caf\xe9"[..], Some(&b"latin 1"[..])), trace][..], &[trace]] {
            let (key, value) = foreign.next();
            send_with_headers(&plain, "traced", &key, Some(value.as_bytes()), headers)?;
        }
        plain.flush(PATIENCE)?;
        assert_eq!(counted_by_kafka(&broker, "traced").await?, foreign.expected);
        expect_view(&cluster, "traces", &foreign.expected).await?;
        for shard in cluster.shards().await? {
            ensure!(shard.error.is_empty(), "{shard:?}");
        }

        // Each record that is no event is a dead letter, and the letter says where the record was.
        let request = ListDeadLettersRequest { stream: "traced".into(), ..Default::default() };
        let letters = eventually("there are three dead letters", async || {
            let mut list = cluster.dead_letters().list(request.clone()).await?.into_inner();
            let mut letters = BTreeSet::new();
            while let Some(letter) = list.message().await? {
                let key = letter.key.unwrap_or_default().to_vec();
                let new = letters.insert((letter.offset, letter.stage, key));
                ensure!(new, "a dead letter is there twice");
            }
            Ok(found(letters, |letters| letters.len() >= 3))
        })
        .await?;
        let letter =
            |offset: u64, key: &str| (offset, "decode".to_owned(), key.as_bytes().to_vec());
        assert_eq!(letters, [letter(4, "empty"), letter(5, "gone"), letter(6, "empty")].into());
        cluster.terminate().await
    })
    .await
}
