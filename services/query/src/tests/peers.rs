//! Other instances: how they find each other, and whether they answer.

use std::time::Instant;

use headwater_control::instance_key;
use headwater_proto::status::v1::InstanceStatus;

use super::*;
use crate::peers::pool::{DOWN, Peer, PeerPool};

/// An address at which nothing listens.
async fn closed() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

impl Fixture {
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

    fn address(&self, instance: usize) -> String {
        self.instances[instance].node.advertise.clone().unwrap()
    }
}

#[tokio::test]
async fn a_peer_that_is_down_is_passed_over_and_asked_last_for_a_while() {
    let mut fixture = Fixture::several(2, eager()).await;
    let key = fixture.with_rows().await;
    // They share the directory, and their names come before and after that of the living instance.
    fixture.announce("a", &closed().await, &directory(1)).await;
    fixture.announce("z", &closed().await, &directory(1)).await;
    fixture.all_announced(4).await;

    let began = Instant::now();
    for _ in 0..10 {
        let answer = fixture.get("per_region", key.clone(), patient()).await.unwrap();
        assert!(answer.row.is_some());
        assert_eq!(answer.provenance.unwrap().partitions[0].served_by, "query-1");
    }
    let failed =
        fixture.instances[0].metric("headwater_query_forwarded_reads_total{code=\"unavailable\"}");
    let periods = 1 + began.elapsed().as_secs() / DOWN.as_secs();
    assert!((1..=2 * periods).contains(&failed), "each is tried once in {DOWN:?}: {failed}");

    // No instance answers: the error names the one that was asked last, and why that failed.
    fixture.announce("query-1", &closed().await, &directory(1)).await;
    until("it is announced", || {
        let board = fixture.instances[0].board();
        board.instances(SERVICE).all(|status| status.address != fixture.address(1))
    })
    .await;
    let error = refused("at http://127.0.0.1:", async |timeout_ms| {
        fixture.get("per_region", key.clone(), within(timeout_ms)).await
    })
    .await;
    assert_eq!(error.code(), Code::Unavailable);
}

#[tokio::test]
async fn an_instance_at_a_stale_address_refuses_and_the_next_one_is_asked() {
    let mut fixture = Fixture::several(3, eager()).await;
    let key = fixture.with_rows().await;
    // At the address of the third instance, which shares another directory, and at our own.
    fixture.announce("a", &fixture.address(2), &directory(1)).await;
    fixture.announce("b", &fixture.address(0), &directory(1)).await;
    fixture.all_announced(5).await;
    for _ in 0..6 {
        let answer = fixture.get("per_region", key.clone(), patient()).await.unwrap();
        assert!(answer.row.is_some());
        assert_eq!(answer.provenance.unwrap().partitions[0].served_by, "query-1");
    }
    let refused = "headwater_query_requests_total{method=\"read_shard\",code=\"aborted\"}";
    assert!(fixture.instances[2].metric(refused) + fixture.instances[0].metric(refused) >= 1);
}

#[tokio::test]
async fn no_read_is_forwarded_twice_whatever_the_instances_believe() {
    let mut fixture = Fixture::several(2, eager()).await;
    let key = fixture.with_rows().await;
    let generation = fixture.generations[0];
    // Each instance is announced as one that has the shard, and none has it.
    for (name, instance) in [("a", 0), ("b", 1)] {
        fixture.announce(name, &fixture.address(instance), "directory-9").await;
    }
    fixture.all_announced(4).await;
    let forwarded = |fixture: &Fixture, instance: usize| -> u64 {
        ["ok", "aborted", "not_found", "unavailable"]
            .iter()
            .map(|code| {
                let name = format!("headwater_query_forwarded_reads_total{{code=\"{code}\"}}");
                fixture.instances[instance].metric(&name)
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
    fixture.status(&lost).await;
    let error = refused(" says: ", async |timeout_ms| {
        fixture.get("per_region", key.clone(), within(timeout_ms)).await
    })
    .await;
    assert_eq!(error.code(), Code::Unavailable);
    assert!(forwarded(&fixture, 0) >= 2, "it did ask");
    assert_eq!(forwarded(&fixture, 1), 0, "an instance that is asked asks no other");

    // An instance that has the directory and knows a later move does not follow it for the asker.
    let open = |epoch: u64| {
        let open = headwater_proto::query::v1::OpenShard {
            generation: generation.to_string(),
            partition: 1,
            directory: directory(1),
            epoch,
            ..Default::default()
        };
        let peer = Peer { instance: "x".into(), address: fixture.address(1).as_str().into() };
        let pool = PeerPool::new("asker".into());
        async move { pool.open(&peer, open, &[]).await.map(drop) }
    };
    until("the second instance knows", || {
        let board = fixture.instances[1].board();
        board.get(generation, PartitionId(1)).is_some_and(|status| status.epoch == 9)
    })
    .await;
    let refused = open(1).await.unwrap_err();
    assert_eq!(refused.status.code(), Code::Unavailable);
    assert!(!refused.down && refused.status.message().contains("has moved"), "{refused:?}");
    // An asker that knows a newer claim is answered.
    assert!(open(10).await.is_ok());
    assert_eq!(forwarded(&fixture, 1), 0);
}

#[tokio::test]
async fn an_instance_announces_itself_and_takes_it_back_at_its_end() {
    let fixture = Fixture::several(2, eager()).await;
    let locator = fixture.instances[0].shards.locator.clone();
    let second = || {
        let board = locator.board();
        board.instances(SERVICE).find(|status| status.instance == "query-1").cloned()
    };
    let said = second().unwrap();
    assert_eq!((said.address, said.directory), (fixture.address(1), directory(1)));

    // A former process with its name takes its own announcement back late.
    fixture.say(&instance_key(SERVICE, "query-1"), None).await;
    locator.refresh(Instant::now()).await.unwrap();
    until("it announces itself again", || second().is_some()).await;

    let instance = &fixture.instances[1];
    instance.node.tasks.shutdown().begin();
    until("it is taken back", || second().is_none()).await;
}

#[tokio::test]
async fn an_instance_that_shares_no_directory_forwards_but_announces_nothing() {
    let mut fixture = Fixture::several(2, eager()).await;
    let key = fixture.with_rows().await;
    // It has an address, but shares no directory yet.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let data = TempDir::new().unwrap();
    let missing = data.path().join("not/there/yet");
    let scratch = data.path().join("scratch");
    let mut node = Node::new(fixture.log.clone(), &missing, "late");
    node.directory = String::new();
    node.advertise = Some(format!("http://{}", listener.local_addr().unwrap()));
    let config = Config { scratch: Some(scratch.clone()), ..eager() };
    let instance = Instance::serve(data, node, listener, config).await;
    let first = std::mem::replace(&mut fixture.api, instance.api.clone());

    let answer = fixture.get("per_region", key.clone(), patient()).await.unwrap();
    assert!(answer.row.is_some());
    assert_eq!(answer.provenance.unwrap().partitions[0].served_by, "query-1");
    let locator = fixture.instances[0].shards.locator.clone();
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
    let generation = fixture.generations[0];
    drop(fixture.shards.remove(&(generation, 1)));
    let shard = layout::shard_dir(&missing, generation, PartitionId(1));
    copy(&fixture.shard_dir(1, generation, 1), &shard);
    let status = ShardStatus {
        generation: generation.to_string(),
        partition: 1,
        directory: owned.id().into(),
        epoch: 5,
        ..ShardStatus::default()
    };
    fixture.status(&status).await;
    let answer = fixture.get("per_region", key.clone(), patient()).await.unwrap();
    assert_eq!(answer.provenance.unwrap().partitions[0].served_by, "");
    assert!(exists(&layout::readers_dir(&scratch, "late")), "its readers write there");
    assert!(!exists(&missing.join("readers")), "and not into the processor's directory");

    // And the others ask it.
    fixture.api = first;
    let answer = fixture.get("per_region", key, patient()).await.unwrap();
    assert_eq!(answer.provenance.unwrap().partitions[0].served_by, "late");
}

/// A connection to an instance that the test can cut.
struct Proxy {
    address: String,
    cut: Shutdown,
}

impl Proxy {
    async fn before(fixture: &Fixture, instance: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let target = fixture.address(instance).strip_prefix("http://").unwrap().to_owned();
        let cut = Shutdown::new();
        let (tasks, ended) = (fixture.node.tasks.clone(), cut.clone());
        fixture.node.tasks.spawn_once("proxy", async move {
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
    let mut fixture = Fixture::several(2, config).await;
    let key = fixture.with_rows().await;
    let Some(Kind::Text(region)) = key[0].kind.clone() else { unreachable!() };
    for at in 1..500 {
        fixture.order(&region, "book", at, at).await;
    }
    fixture.process(fixture.generations[0]);
    let all = ScanRequest { view: "per_region".into(), ..ScanRequest::default() };
    let rows = fixture.scanned(all.clone()).await;

    let through = async |address: &str| {
        fixture.announce("query-1", address, &directory(1)).await;
        until("it is announced", || {
            let board = fixture.instances[0].board();
            board.instances(SERVICE).any(|status| status.address == address)
        })
        .await;
    };
    let proxy = Proxy::before(&fixture, 1).await;
    through(&proxy.address).await;
    let mut scan = fixture.api.scan(Request::new(all)).await.unwrap().into_inner();
    let request =
        WatchRequest { view: "per_region".into(), initial: true, ..WatchRequest::default() };
    let mut watch = fixture.api.watch(Request::new(request)).await.unwrap().into_inner();
    for _ in 0..5 {
        scan.next().await.unwrap().unwrap();
        watch.next().await.unwrap().unwrap();
    }

    proxy.cut.begin();
    through(&fixture.address(1)).await;

    let error = collect(scan).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable, "{}", error.message());
    assert!(error.message().contains("is read by query-1 at http://"), "{}", error.message());
    let mut left: std::collections::BTreeSet<String> = rows.into_iter().collect();
    while !left.is_empty() {
        for row in next(&mut watch).await.rows {
            left.remove(&show(&row));
        }
    }
}
