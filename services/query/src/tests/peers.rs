//! Other instances: who they are, and whether they answer.

use headwater_control::instance_key;
use headwater_proto::status::v1::InstanceStatus;

use super::*;
use crate::peers::pool::{Peer, SERVICE};

fn eager() -> Config {
    Config { max_staleness: Duration::ZERO, ..Config::default() }
}

/// An address at which nobody listens.
async fn closed() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

impl Bench {
    async fn announce(&self, instance: &str, address: &str, directory: &str) {
        let status = InstanceStatus {
            instance: instance.into(),
            service: SERVICE.into(),
            address: address.into(),
            directory: directory.into(),
        };
        let key = instance_key(SERVICE, instance);
        self.say(&key, Some(&status.encode_to_vec())).await;
    }

    fn address(&self, seat: usize) -> String {
        self.seats[seat].node.advertise.clone().unwrap()
    }

    /// A view with a row in each partition, and the key of the one in partition 1.
    async fn with_rows(&mut self) -> Vec<Value> {
        let generation = self.create(PER_REGION).await;
        let regions = ["north", "south", "east", "west"];
        for region in regions {
            self.order(region, "book", 1, 0).await;
        }
        self.process(generation);
        let second =
            |region: &&str| partition_for_key(region.as_bytes(), PARTITIONS) == PartitionId(1);
        vec![text(regions.into_iter().find(second).unwrap()), minute(0)]
    }
}

#[tokio::test]
async fn a_peer_that_is_down_is_passed_over_and_asked_last_for_a_while() {
    let mut bench = Bench::several(2, eager()).await;
    let key = bench.with_rows().await;
    // The same directory, and names that come before and after the living one's.
    bench.announce("a", &closed().await, &directory(1)).await;
    bench.announce("z", &closed().await, &directory(1)).await;
    bench.all_announced(4).await;

    for _ in 0..10 {
        let answer = bench.get("per_region", key.clone(), within(20_000)).await.unwrap();
        assert!(answer.row.is_some());
        assert_eq!(answer.provenance.unwrap().partitions[0].served_by, "query-1");
    }
    let failed =
        bench.seats[0].metric("headwater_query_forwarded_reads_total{code=\"unavailable\"}");
    assert!((1..=2).contains(&failed), "each of the two was tried once at most: {failed}");

    // Nobody answers: it says who was asked last, and why that failed.
    bench.announce("query-1", &closed().await, &directory(1)).await;
    until("it is announced", || {
        let board = bench.rpc.0.locator.board();
        board.instances(SERVICE).all(|status| status.address != bench.address(1))
    })
    .await;
    let error = bench.get("per_region", key, within(1_000)).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("at http://127.0.0.1:"), "{}", error.message());
}

#[tokio::test]
async fn a_stale_announcement_is_refused_by_whoever_is_at_the_address_now() {
    let mut bench = Bench::several(3, eager()).await;
    let key = bench.with_rows().await;
    // At the address of the third instance, which shares another directory, and at our own.
    bench.announce("a", &bench.address(2), &directory(1)).await;
    bench.announce("b", &bench.address(0), &directory(1)).await;
    bench.all_announced(5).await;
    for _ in 0..6 {
        let answer = bench.get("per_region", key.clone(), within(20_000)).await.unwrap();
        assert!(answer.row.is_some());
        assert_eq!(answer.provenance.unwrap().partitions[0].served_by, "query-1");
    }
    let refused = "headwater_query_requests_total{method=\"read_shard\",code=\"not_found\"}";
    assert!(bench.seats[2].metric(refused) + bench.seats[0].metric(refused) >= 1);
}

#[tokio::test]
async fn no_read_is_forwarded_twice_whatever_the_instances_believe() {
    let mut bench = Bench::several(2, eager()).await;
    let key = bench.with_rows().await;
    let generation = bench.generations[0];
    // Everybody says of everybody else that it has what nobody has.
    for (name, seat) in [("a", 0), ("b", 1)] {
        bench.announce(name, &bench.address(seat), "directory-9").await;
    }
    bench.all_announced(4).await;
    let forwarded = |bench: &Bench, seat: usize| -> u64 {
        ["ok", "not_found", "unavailable"]
            .iter()
            .map(|code| {
                let name = format!("headwater_query_forwarded_reads_total{{code=\"{code}\"}}");
                bench.seats[seat].metric(&name)
            })
            .sum()
    };
    let lost = ShardStatus {
        generation: generation.to_string(),
        partition: 1,
        processor: "processor-9".into(),
        directory: "directory-9".into(),
        epoch: 9,
        ..ShardStatus::default()
    };
    bench.status(&lost).await;
    let error = bench.get("per_region", key.clone(), within(1_000)).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(forwarded(&bench, 0) >= 2, "it did ask");
    assert_eq!(forwarded(&bench, 1), 0, "who is asked asks nobody");

    // Who does have the directory, but knows of a later move, does not follow it for the asker.
    let open = |epoch: u64| {
        let open = headwater_proto::query::v1::OpenShard {
            generation: generation.to_string(),
            partition: 1,
            directory: directory(1),
            epoch,
            ..Default::default()
        };
        let peer = Peer { instance: "x".into(), address: bench.address(1).as_str().into() };
        let service = bench.seats[0].rpc.0.clone();
        async move { service.peers().open(&peer, open, &[]).await.map(drop) }
    };
    until("the second instance knows", || {
        let board = bench.seats[1].rpc.0.locator.board();
        board.get(generation, PartitionId(1)).is_some_and(|status| status.epoch == 9)
    })
    .await;
    let refused = open(1).await.unwrap_err();
    assert_eq!(refused.status.code(), Code::Unavailable);
    assert!(!refused.down && refused.status.message().contains("has moved"), "{refused:?}");
    // Who asks with newer news is believed.
    assert!(open(10).await.is_ok());
    assert_eq!(forwarded(&bench, 1), 0);
}

#[tokio::test]
async fn an_instance_announces_itself_and_takes_it_back_at_its_end() {
    let bench = Bench::several(2, eager()).await;
    let locator = bench.seats[0].rpc.0.locator.clone();
    let second = move || {
        let board = locator.board();
        board.instances(SERVICE).find(|status| status.instance == "query-1").cloned()
    };
    let said = second().unwrap();
    assert_eq!((said.address, said.directory), (bench.address(1), directory(1)));

    // One of its name that ran before it takes back, late, what it had said.
    bench.say(&instance_key(SERVICE, "query-1"), None).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    until("it says so again", || second().is_some()).await;

    let seat = &bench.seats[1];
    seat.node.tasks.shutdown().begin();
    until("it is taken back", || second().is_none()).await;
}

#[tokio::test]
async fn an_instance_that_nobody_can_reach_forwards_but_announces_nothing() {
    let mut bench = Bench::several(2, eager()).await;
    let key = bench.with_rows().await;
    // It is one of several because its log is shared, which the memory's cannot say: so it has an address,
    // but shares no directory yet.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let data = TempDir::new().unwrap();
    let missing = data.path().join("not/there/yet");
    let scratch = data.path().join("scratch");
    let mut node = Node::new(bench.log.clone(), &missing, "late");
    node.directory = String::new();
    node.advertise = Some(format!("http://{}", listener.local_addr().unwrap()));
    let config = Config { scratch: Some(scratch.clone()), ..eager() };
    let seat = Seat::serve(data, node, listener, config).await;
    let rpc = std::mem::replace(&mut bench.rpc, seat.rpc.clone());

    let answer = bench.get("per_region", key.clone(), within(20_000)).await.unwrap();
    assert!(answer.row.is_some());
    assert_eq!(answer.provenance.unwrap().partitions[0].served_by, "query-1");
    let locator = rpc.0.locator.clone();
    let announced = || {
        let board = locator.board();
        board.instances(SERVICE).find(|status| status.instance == "late").cloned()
    };
    assert!(announced().is_none(), "it has nothing to share");

    // Its processor starts, and is given a shard.
    let owned = headwater_service::DataDir::open(&missing).unwrap();
    until("it says which directory it shares", || {
        announced().is_some_and(|status| status.directory == owned.id())
    })
    .await;
    let generation = bench.generations[0];
    drop(bench.shards.remove(&(generation, 1)));
    let shard = layout::shard_dir(&missing, generation, PartitionId(1));
    copy(&bench.shard_dir(1, generation, 1), &shard);
    let status = ShardStatus {
        generation: generation.to_string(),
        partition: 1,
        directory: owned.id().into(),
        epoch: 5,
        ..ShardStatus::default()
    };
    bench.status(&status).await;
    let answer = bench.get("per_region", key.clone(), within(20_000)).await.unwrap();
    assert_eq!(answer.provenance.unwrap().partitions[0].served_by, "");
    assert!(exists(&layout::readers_dir(&scratch, "late")), "its readers write there");
    assert!(!exists(&missing.join("readers")), "and not into the processor's directory");

    // And the others ask it.
    bench.rpc = rpc;
    let answer = bench.get("per_region", key, within(20_000)).await.unwrap();
    assert_eq!(answer.provenance.unwrap().partitions[0].served_by, "late");
}

/// A log behind a network, which must not be asked on a thread that serves requests.
#[derive(Clone)]
struct Remote {
    log: MemoryLog,
    serving: std::thread::ThreadId,
}

impl Log for Remote {
    fn is_remote(&self) -> bool {
        true
    }

    fn create_topic(&self, topic: &Name, spec: TopicSpec) -> headwater_log::Answer<()> {
        headwater_log::answered(|| headwater_log::block_on(self.log.create_topic(topic, spec)))
    }

    fn topic(&self, topic: &Name) -> headwater_log::Answer<Option<TopicSpec>> {
        headwater_log::answered(|| headwater_log::block_on(self.log.topic(topic)))
    }

    fn ends(
        &self,
        topic: &Name,
        partition: PartitionId,
    ) -> headwater_log::Answer<headwater_log::Ends> {
        headwater_log::answered(|| {
            assert_ne!(std::thread::current().id(), self.serving, "asked for the ends of {topic}");
            std::thread::sleep(Duration::from_millis(1));
            headwater_log::block_on(self.log.ends(topic, partition))
        })
    }

    fn append(
        &self,
        topic: &Name,
        partition: PartitionId,
        batch: headwater_log::EncodedBatch,
    ) -> headwater_log::Answer<headwater_log::Appended> {
        self.log.append(topic, partition, batch)
    }

    fn reader(
        &self,
        topic: &Name,
        partition: PartitionId,
        from: Offset,
    ) -> headwater_log::Answer<Box<dyn headwater_log::Reader>> {
        headwater_log::answered(|| headwater_log::block_on(self.log.reader(topic, partition, from)))
    }

    fn writer(
        &self,
        id: &headwater_log::WriterId,
    ) -> headwater_log::Answer<Arc<dyn headwater_log::FencedWriter>> {
        headwater_log::answered(|| headwater_log::block_on(self.log.writer(id)))
    }

    fn trim(
        &self,
        topic: &Name,
        partition: PartitionId,
        before: Offset,
    ) -> headwater_log::Answer<()> {
        headwater_log::answered(|| headwater_log::block_on(self.log.trim(topic, partition, before)))
    }

    fn size(
        &self,
        topic: &Name,
        partition: PartitionId,
        from: Offset,
        to: Offset,
    ) -> headwater_log::Answer<u64> {
        headwater_log::answered(|| {
            headwater_log::block_on(self.log.size(topic, partition, from, to))
        })
    }
}

#[tokio::test]
async fn a_log_behind_a_network_is_never_asked_on_a_thread_that_serves() {
    let log = MemoryLog::new();
    let remote = Remote { log: log.clone(), serving: std::thread::current().id() };
    let mut seats = Vec::new();
    for number in 0..2 {
        seats.push(Seat::among(Arc::new(remote.clone()), number, eager()).await);
    }
    let mut bench = Bench::of(Arc::new(log), seats).await;
    bench.all_announced(2).await;
    let key = bench.with_rows().await;
    let generation = bench.generations[0];
    for seat in 0..2 {
        bench.ask(seat);
        for _ in 0..3 {
            let answer = bench.get("per_region", key.clone(), within(20_000)).await.unwrap();
            assert!(answer.row.is_some());
        }
        assert_eq!(bench.rows("SELECT sum(orders) FROM per_region").await, ["4"]);
    }
    let Some(Kind::Text(region)) = &key[0].kind else { unreachable!() };
    let token = bench.order(region, "book", 1, 0).await;
    bench.process(generation);
    let answer = bench.get("per_region", key, after(&token)).await.unwrap();
    assert!(show(&answer.row.unwrap()).contains(" +0 2 "));
}

/// Stands between the instances and one of them, until it is cut.
struct Proxy {
    address: String,
    cut: Shutdown,
}

impl Proxy {
    async fn before(bench: &Bench, seat: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let target = bench.address(seat).strip_prefix("http://").unwrap().to_owned();
        let cut = Shutdown::new();
        let (tasks, ended) = (bench.node.tasks.clone(), cut.clone());
        bench.node.tasks.spawn_once("proxy", async move {
            loop {
                let mut near = tokio::select! {
                    accepted = listener.accept() => accepted?.0,
                    () = ended.cancelled() => return Ok(()),
                };
                let (target, ended) = (target.clone(), ended.clone());
                tasks.spawn_once("proxied", async move {
                    let mut far = tokio::net::TcpStream::connect(target).await?;
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => Ok(()),
                        () = ended.cancelled() => Ok(()),
                    }
                });
            }
        });
        Self { address, cut }
    }
}

#[tokio::test]
async fn a_peer_that_dies_in_a_scan_ends_the_answer_with_its_name_and_a_watcher_begins_again() {
    let config = Config { batch_rows: 1.try_into().unwrap(), ..eager() };
    let mut bench = Bench::several(2, config).await;
    let key = bench.with_rows().await;
    let Some(Kind::Text(region)) = key[0].kind.clone() else { unreachable!() };
    for at in 1..500 {
        bench.order(&region, "book", at, at).await;
    }
    bench.process(bench.generations[0]);
    let all = ScanRequest { view: "per_region".into(), ..ScanRequest::default() };
    let rows = bench.scanned(all.clone()).await;

    let through = async |address: &str| {
        bench.announce("query-1", address, &directory(1)).await;
        until("it is announced", || {
            let board = bench.rpc.0.locator.board();
            board.instances(SERVICE).any(|status| status.address == address)
        })
        .await;
    };
    let proxy = Proxy::before(&bench, 1).await;
    through(&proxy.address).await;
    let mut scan = bench.rpc.scan(Request::new(all)).await.unwrap().into_inner();
    let request = WatchRequest { view: "per_region".into(), initial: true };
    let mut watch = bench.rpc.watch(Request::new(request)).await.unwrap().into_inner();
    for _ in 0..5 {
        scan.next().await.unwrap().unwrap();
        watch.next().await.unwrap().unwrap();
    }

    proxy.cut.begin();
    through(&bench.address(1)).await;

    let error = collect(scan).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{}", error.message());
    assert!(error.message().contains("is read by query-1 at http://"), "{}", error.message());
    let mut left: std::collections::BTreeSet<String> = rows.into_iter().collect();
    while !left.is_empty() {
        let part = tokio::time::timeout(Duration::from_secs(20), watch.next()).await;
        for row in part.expect("the rest comes").unwrap().unwrap().rows {
            left.remove(&show(&row));
        }
    }
}
