//! Shards that go from one processor's directory to another one's.

use super::*;

/// A region of partition 1, which the second instance has first.
fn region_of(partition: u32) -> &'static str {
    ["north", "south", "east", "west", "a", "b"]
        .into_iter()
        .find(|region| partition_for_key(region.as_bytes(), PARTITIONS).0 == partition)
        .unwrap()
}

#[tokio::test]
async fn a_scan_under_way_ends_at_its_commit_when_the_shard_moves() {
    let config = Config { batch_rows: 1.try_into().unwrap(), ..eager() };
    let mut fixture = Fixture::several(2, config).await;
    let generation = fixture.create(PER_REGION).await;
    for minute in 0..300 {
        fixture.order(region_of(0), "book", 1, minute).await;
        fixture.order(region_of(1), "book", 1, minute).await;
    }
    fixture.process(generation);
    let request = ScanRequest { view: "per_region".into(), ..ScanRequest::default() };
    for ((from, to), later) in [(1, 0), (0, 1)].into_iter().zip(300..) {
        let before = fixture.scanned(request.clone()).await;
        let mut parts = fixture.api.scan(Request::new(request.clone())).await.unwrap().into_inner();
        let first = parts.next().await.unwrap().unwrap();
        let served_by = |response: &ScanResponse| {
            response.provenance.as_ref().unwrap().partitions[1].served_by.clone()
        };
        assert_eq!(served_by(&first), if from == 0 { "" } else { "query-1" });

        let left = fixture.shard_dir(from, generation, 1);
        fixture.hand_over(PER_REGION, generation, 1, to).await;
        std::fs::remove_dir_all(left).unwrap();
        fixture.order(region_of(1), "book", 1, later).await;
        fixture.process(generation);

        let after_move = fixture.scan(request.clone()).await.unwrap();
        assert_eq!(served_by(&after_move[0]), if to == 0 { "" } else { "query-1" });
        assert_eq!(shown(&after_move).len(), before.len() + 1, "the new owner has committed more");
        let mut rest = vec![first];
        rest.extend(collect(parts).await.unwrap());
        assert!(shown(&rest) == before, "from {from} to {to}");
    }
}

#[tokio::test]
async fn a_shard_that_moves_while_it_is_waited_for_is_asked_for_where_it_is_then() {
    let mut fixture = Fixture::several(3, eager()).await;
    let generation = fixture.create(PER_REGION).await;
    fixture.process(generation);
    for (minutes, to) in [(0, 2), (1, 0), (2, 1)] {
        let token = fixture.order(region_of(1), "book", 3, minutes).await;
        let key = vec![text(region_of(1)), minute(minutes)];
        let request = GetRequest { view: "per_region".into(), key, freshness: Some(after(&token)) };
        let waiting = fixture.get_aside(request);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waiting.is_finished());
        fixture.hand_over(PER_REGION, generation, 1, to).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        fixture.process(generation);

        let answer = waiting.await.unwrap().unwrap();

        assert!(answer.row.is_some());
        let by = if to == 0 { String::new() } else { format!("query-{to}") };
        assert_eq!(answer.provenance.unwrap().partitions[0].served_by, by);
    }
}

/// Law 3 holds for every owner of a shard.
#[tokio::test]
async fn a_copy_that_was_left_behind_is_neither_read_nor_kept_open() {
    let mut fixture = Fixture::several(2, eager()).await;
    let generation = fixture.create(PER_REGION).await;
    let region = region_of(0);
    fixture.order(region, "book", 1, 0).await;
    fixture.process(generation);
    let key = vec![text(region), minute(0)];
    let ours = fixture.get("per_region", key.clone(), patient()).await.unwrap();
    assert_eq!(show(&ours.row.unwrap()), format!("{region} +0 1 1 1.25"));
    let scratch = layout::reader_dir(&fixture.node.data, "query-0", generation, PartitionId(0));
    assert!(exists(&scratch));

    fixture.hand_over(PER_REGION, generation, 0, 1).await;
    fixture.order(region, "book", 1, 0).await;
    fixture.process(generation);
    // At once: no look of the announcer has noticed the move.
    let theirs = fixture.get("per_region", key.clone(), patient()).await.unwrap();

    assert_eq!(show(&theirs.row.unwrap()), format!("{region} +0 2 2 2.50"));
    assert_eq!(theirs.provenance.unwrap().partitions[0].served_by, "query-1");
    assert!(exists(&fixture.shard_dir(0, generation, 0)), "the copy is still there");
    until("its reader is closed", || !exists(&scratch)).await;
}

#[tokio::test]
async fn an_instance_that_has_just_started_does_not_take_a_copy_for_the_shard() {
    let mut fixture = Fixture::several(2, eager()).await;
    let generation = fixture.create(PER_REGION).await;
    let region = region_of(0);
    fixture.order(region, "book", 1, 0).await;
    fixture.process(generation);
    // Many statuses stand before that of the owner.
    let mut others = BatchBuilder::new();
    for partition in 10..30_000 {
        let status =
            ShardStatus { generation: generation.to_string(), partition, ..ShardStatus::default() };
        let key = status_key(generation, PartitionId(partition));
        others.push(0, Some(key.as_bytes()), Some(&status.encode_to_vec()), &[]);
    }
    let topic = Name::new(STATUS_TOPIC).unwrap();
    fixture.log.append(&topic, PartitionId(0), others.build().unwrap()).await.unwrap();
    fixture.hand_over(PER_REGION, generation, 0, 1).await;
    fixture.order(region, "book", 1, 0).await;
    fixture.process(generation);

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut node = Node::new(fixture.log.clone(), fixture.instances[0].data.path(), "restarted");
    node.directory = directory(0);
    node.advertise = Some(format!("http://{}", listener.local_addr().unwrap()));
    let config = Config { max_staleness: Duration::from_secs(3_600), ..Config::default() };
    let instance = Instance::serve(TempDir::new().unwrap(), node, listener, config).await;
    fixture.api = instance.api.clone();
    let key = vec![text(region), minute(0)];
    let answer = fixture.get("per_region", key, patient()).await.unwrap();

    assert_eq!(show(&answer.row.unwrap()), format!("{region} +0 2 2 2.50"));
    assert_eq!(answer.provenance.unwrap().partitions[0].served_by, "query-1");
}

/// Law 4 holds over a hand-over to an owner that has to catch up.
#[tokio::test]
async fn time_never_runs_backwards_when_the_next_owner_is_behind() {
    let mut fixture = Fixture::several(2, eager()).await;
    let generation = fixture.create(PER_REGION).await;
    let region = region_of(0);
    fixture.order(region, "book", 1, 0).await;
    fixture.process(generation);
    let old = TempDir::new().unwrap();
    drop(fixture.shards.remove(&(generation, 0)));
    copy(&fixture.shard_dir(0, generation, 0), old.path());
    fixture.own(PER_REGION, generation, 0, 0).await;
    fixture.order(region, "book", 1, 0).await;
    fixture.process(generation);
    let key = vec![text(region), minute(0)];
    let seen = fixture.get("per_region", key.clone(), patient()).await.unwrap();
    assert_eq!(offsets(&seen.provenance.unwrap()), [2]);

    drop(fixture.shards.remove(&(generation, 0)));
    copy(old.path(), &fixture.shard_dir(1, generation, 0));
    fixture.own(PER_REGION, generation, 0, 1).await;

    let error = refused("an earlier answer had already shown position 2", async |timeout_ms| {
        fixture.get("per_region", key.clone(), within(timeout_ms)).await
    })
    .await;
    assert_eq!(error.code(), Code::DeadlineExceeded, "{}", error.message());
    assert!(error.message().contains("its shard is at 1"), "{}", error.message());
    fixture.process(generation);
    let answer = fixture.get("per_region", key, patient()).await.unwrap();
    assert_eq!(offsets(&answer.provenance.unwrap()), [2]);
}

/// An owner that got a shard back may delete its directory and make it anew between two requests.
#[tokio::test]
async fn a_directory_that_was_made_anew_is_opened_anew() {
    let mut fixture = Fixture::several(2, eager()).await;
    let generation = fixture.create(PER_REGION).await;
    let region = region_of(0);
    fixture.order(region, "book", 1, 0).await;
    fixture.process(generation);
    let key = vec![text(region), minute(0)];
    assert!(fixture.get("per_region", key.clone(), patient()).await.is_ok());

    fixture.hand_over(PER_REGION, generation, 0, 1).await;
    for _ in 0..3 {
        fixture.order(region, "book", 1, 0).await;
        fixture.process(generation);
    }
    fixture.hand_over(PER_REGION, generation, 0, 0).await;
    let answer = fixture.get("per_region", key.clone(), patient()).await.unwrap();
    assert_eq!(show(&answer.row.unwrap()), format!("{region} +0 4 4 5.00"));
    assert_eq!(answer.provenance.unwrap().partitions[0].served_by, "");

    // Rebuilt from the log, its files have the names that the first ones had.
    for orders in 5..8 {
        drop(fixture.shards.remove(&(generation, 0)));
        std::fs::remove_dir_all(fixture.shard_dir(0, generation, 0)).unwrap();
        fixture.own(PER_REGION, generation, 0, 0).await;
        fixture.order(region, "book", 1, 0).await;
        fixture.process(generation);
        let answer = fixture.get("per_region", key.clone(), patient()).await.unwrap();
        let row = show(&answer.row.unwrap());
        assert!(row.starts_with(&format!("{region} +0 {orders} {orders} ")), "{row}");
    }
}

#[tokio::test]
async fn a_shard_in_a_directory_that_no_instance_shares_is_named_with_what_to_check() {
    let mut fixture = Fixture::several(2, eager()).await;
    let generation = fixture.create(PER_REGION).await;
    fixture.process(generation);
    fixture
        .status(&ShardStatus {
            generation: generation.to_string(),
            partition: 1,
            processor: "processor-9".into(),
            directory: "directory-9".into(),
            epoch: 9,
            ..ShardStatus::default()
        })
        .await;
    let key = vec![text(region_of(1)), minute(0)];

    for instance in 0..2 {
        fixture.ask(instance);
        let reason = "no query instance says that it shares that directory";
        let error = refused(reason, async |timeout_ms| {
            fixture.get("per_region", key.clone(), within(timeout_ms)).await
        })
        .await;
        assert_eq!(error.code(), Code::Unavailable);
        for said in [
            format!("partition 1 of generation {generation} of view per_region"),
            "processor-9 said last that it keeps it in data directory directory-9".into(),
            "check that processor-9 runs".into(),
        ] {
            assert!(error.message().contains(&said), "{}", error.message());
        }
    }

    // An older claim changes nothing, a newer one does.
    for (epoch, found) in [(8, false), (10, true)] {
        fixture
            .status(&ShardStatus {
                generation: generation.to_string(),
                partition: 1,
                directory: directory(1),
                epoch,
                ..ShardStatus::default()
            })
            .await;
        let wait = if found { patient() } else { within(100) };
        let answer = fixture.get("per_region", key.clone(), wait).await;
        assert_eq!(answer.is_ok(), found, "{epoch}");
    }
}
