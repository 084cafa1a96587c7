//! Shards that are in the directories of other instances.

use super::*;

const ORDERS: [(&str, &str); 6] = [
    ("north", "book"),
    ("south", "pen"),
    ("east", "book"),
    ("west", "ink"),
    ("a", "pen"),
    ("b", "book"),
];

/// Views over both partitions, with some orders in each.
async fn filled(mut fixture: Fixture) -> Fixture {
    let regions = fixture.create(PER_REGION).await;
    let kinds = fixture.create(PER_KIND).await;
    for minute in 0..40 {
        for (place, (region, kind)) in ORDERS.iter().enumerate() {
            fixture.order(region, kind, minute * 10 + i64::try_from(place).unwrap(), minute).await;
        }
    }
    fixture.process(regions);
    fixture.process(kinds);
    fixture
}

/// The answers to every kind of request, as text.
async fn everything(fixture: &Fixture) -> Vec<String> {
    let mut all = Vec::new();
    for (region, _) in ORDERS {
        for at in [0, 7, 39, 40] {
            let key = vec![text(region), minute(at)];
            let answer = fixture.get("per_region", key, patient()).await.unwrap();
            all.push(format!("{region} {at}: {:?}", answer.row.as_ref().map(show)));
        }
    }
    for kind in ["book", "pen", "ink", "none"] {
        let answer = fixture.get("per_kind", vec![text(kind)], patient()).await.unwrap();
        all.push(format!("{kind}: {:?}", answer.row.as_ref().map(show)));
        all.push(format!("{:?}", offsets(&answer.provenance.unwrap())));
    }
    for view in ["per_region", "per_kind"] {
        let request = ScanRequest { view: view.into(), ..ScanRequest::default() };
        all.extend(fixture.scanned(request.clone()).await);
        let mut page = ScanRequest { page_size: 7, ..request };
        loop {
            let parts = fixture.scan(page.clone()).await.unwrap();
            all.push(format!("page {:?}", shown(&parts)));
            page.page_token = parts.last().unwrap().next_page_token.clone();
            if page.page_token.is_empty() {
                break;
            }
        }
        let request = DescribeRequest { view: view.into(), freshness: None };
        let answer = fixture.api.describe(Request::new(request)).await.unwrap().into_inner();
        all.push(format!("{:?} {:?}", answer.key, offsets(&answer.provenance.unwrap())));
        let request = WatchRequest { view: view.into(), initial: true, ..WatchRequest::default() };
        let mut watch = fixture.api.watch(Request::new(request)).await.unwrap().into_inner();
        let rows = if view == "per_kind" { 3 } else { 240 };
        let mut seen = Vec::new();
        while seen.len() < rows {
            seen.extend(watch.next().await.unwrap().unwrap().rows.iter().map(show));
        }
        all.extend(seen);
    }
    let windows = ScanRequest {
        view: "per_region".into(),
        prefix: vec![text("south")],
        window_from_micros: Some(START + 3 * MINUTE),
        window_to_micros: Some(START + 9 * MINUTE),
        ..ScanRequest::default()
    };
    all.extend(fixture.scanned(windows).await);
    for sql in [
        "SELECT * FROM per_region ORDER BY amount DESC LIMIT 20",
        "SELECT region, sum(price) FROM per_region WHERE region = 'east' GROUP BY region",
        "SELECT a.region, b.region, a.amount + b.amount FROM per_region a JOIN per_region b
         ON a.window_start = b.window_start AND a.region < b.region ORDER BY 1, 2, 3",
        "SELECT k.kind, k.orders, r.orders FROM per_kind k, (SELECT count(*) AS orders FROM per_region) r
         ORDER BY 1",
        "SELECT amount FROM per_region LIMIT 3",
        "EXPLAIN SELECT * FROM per_region",
    ] {
        all.extend(fixture.rows(sql).await);
    }
    all
}

#[tokio::test]
async fn answers_over_shards_elsewhere_are_those_of_one_instance_that_has_them_all() {
    let one = everything(&filled(Fixture::start().await).await).await;
    let config = Config {
        // So that a scan takes many messages.
        batch_rows: 5.try_into().unwrap(),
        ..eager()
    };
    let mut several = filled(Fixture::several(3, config).await).await;
    for instance in 0..3 {
        several.ask(instance);
        assert_eq!(everything(&several).await, one, "asked at {instance}");
    }
    assert!(one.len() > 1_000);
}

#[tokio::test]
async fn an_answer_says_who_gave_it_and_who_read_each_shard() {
    let mut fixture = filled(Fixture::several(2, Config::default()).await).await;
    for (instance, other) in [(0, "query-1"), (1, "query-0")] {
        fixture.ask(instance);
        let key = vec![text("book")];
        let answer = fixture.get("per_kind", key, patient()).await.unwrap();
        let provenance = answer.provenance.unwrap();
        assert_eq!(provenance.served_by, format!("query-{instance}"));
        for partition in &provenance.partitions {
            let here = partition.partition as usize == instance;
            assert_eq!(partition.served_by, if here { "" } else { other });
            assert!(partition.watermark_micros.is_some());
        }
        // A row whose key names its shard takes one hop, or none.
        let name = "headwater_query_forwarded_reads_total{code=\"ok\"}";
        let before = fixture.instances[instance].metric(name);
        for (region, _) in ORDERS {
            let hops = fixture.instances[instance].metric(name);
            let key = vec![text(region), minute(1)];
            let answer = fixture.get("per_region", key, patient()).await.unwrap();
            let elsewhere = partition_for_key(region.as_bytes(), PARTITIONS).0 as usize != instance;
            assert_eq!(answer.provenance.unwrap().partitions.len(), 1);
            assert_eq!(
                fixture.instances[instance].metric(name) - hops,
                u64::from(elsewhere),
                "{region}"
            );
        }
        assert!(fixture.instances[instance].metric(name) > before);
    }
}

#[tokio::test]
async fn a_token_is_waited_for_where_the_shard_is() {
    // Only the token makes an instance catch up.
    let config = Config { max_staleness: Duration::from_secs(3_600), ..Config::default() };
    let mut fixture = filled(Fixture::several(2, config).await).await;
    let generation = fixture.generations[0];
    let asked = [(0, "north"), (0, "south"), (0, "east"), (1, "north"), (1, "south"), (1, "east")];
    for ((instance, region), at) in asked.into_iter().zip(100..) {
        fixture.ask(instance);
        let key = vec![text(region), minute(at)];
        assert!(fixture.get("per_region", key.clone(), patient()).await.unwrap().row.is_none());
        let token = fixture.order(region, "book", 3, at).await;

        let error = refused("the token asks for position", async |timeout_ms| {
            let early = Freshness { timeout_ms, ..after(&token) };
            fixture.get("per_region", key.clone(), early).await
        })
        .await;
        assert_eq!(error.code(), Code::DeadlineExceeded, "{}", error.message());

        let request = GetRequest { view: "per_region".into(), key, freshness: Some(after(&token)) };
        let waiting = fixture.get_aside(request);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waiting.is_finished());
        fixture.process(generation);
        let row = waiting.await.unwrap().unwrap().row.unwrap();
        assert_eq!(show(&row), format!("{region} +{at} 1 3 3.25"));
    }
}

/// Law 2: every record is one order, so that the orders counted are the positions added up.
#[tokio::test]
async fn all_that_a_query_reads_of_a_shard_elsewhere_is_one_commit_while_it_is_written() {
    let config = Config { batch_rows: 3.try_into().unwrap(), ..eager() };
    let mut fixture = Fixture::several(2, config).await;
    let regions = fixture.create(PER_REGION).await;
    let kinds = fixture.create(PER_KIND).await;
    let sql = "SELECT (SELECT sum(orders) FROM per_region) AS a,
        (SELECT sum(orders) FROM per_region WHERE amount >= 0) AS b,
        (SELECT count(*) FROM per_region a JOIN per_region b USING (region, window_start)) AS c,
        (SELECT count(*) FROM per_region) AS d, (SELECT sum(orders) FROM per_kind) AS e";
    for minute in 0..40 {
        for (region, kind) in ORDERS {
            fixture.order(region, kind, minute, minute).await;
        }
        let instance = usize::try_from(minute % 2).unwrap();
        let api = fixture.instances[instance].api.clone();
        let query = QueryRequest { sql: sql.into(), ..QueryRequest::default() };
        let asked = tokio::task::spawn_blocking(move || {
            tokio::runtime::Handle::current().block_on(async {
                collect(api.query(Request::new(query)).await?.into_inner()).await
            })
        });
        while !asked.is_finished() {
            fixture.order("north", "pen", 1, minute).await;
            fixture.order("south", "pen", 1, minute).await;
            fixture.process(regions);
            fixture.process(kinds);
            // Other requests make each instance catch up in the meantime.
            for instance in &fixture.instances {
                for (view, key) in [
                    ("per_region", vec![text("north"), super::minute(0)]),
                    ("per_region", vec![text("south"), super::minute(0)]),
                    ("per_kind", vec![text("pen")]),
                ] {
                    let request = GetRequest { view: view.into(), key, freshness: None };
                    instance.api.get(Request::new(request)).await.unwrap();
                }
            }
        }
        let parts = asked.await.unwrap().unwrap();
        let positions = |view: &str| -> u64 {
            let provenance = parts[0].provenance.iter().find(|it| it.view == view).unwrap();
            offsets(provenance).iter().sum()
        };
        let row = show(parts.iter().flat_map(|part| &part.rows).next().unwrap());
        let values: Vec<&str> = row.split(' ').collect();
        let number = |text: &str| text.parse::<u64>().unwrap_or(0);
        assert_eq!(number(values[0]), positions("per_region"), "{row}");
        assert_eq!(values[0], values[1], "{row}");
        assert_eq!(values[2], values[3], "{row}");
        assert_eq!(number(values[4]), positions("per_kind"), "{row}");
    }
}

#[tokio::test]
async fn a_long_scan_elsewhere_arrives_whole_and_a_page_of_it_reads_little() {
    let mut fixture = Fixture::several(2, Config::default()).await;
    let generation = fixture.create(PER_REGION).await;
    let wide = "w".repeat(200);
    let region = (0..10)
        .map(|tail| format!("{wide}{tail}"))
        .find(|region| partition_for_key(region.as_bytes(), PARTITIONS).0 == 1)
        .unwrap();
    for minute in 0..4_000 {
        fixture.order(&region, "book", minute, minute).await;
    }
    fixture.process(generation);

    let request = ScanRequest { view: "per_region".into(), ..ScanRequest::default() };
    let rows = fixture.scanned(request.clone()).await;

    assert_eq!(rows.len(), 4_000);
    for (minute, row) in rows.iter().enumerate() {
        assert_eq!(*row, format!("{region} +{minute} 1 {minute} {minute}.25"));
    }
    let page = fixture.scan(ScanRequest { page_size: 3, ..request }).await.unwrap();
    assert_eq!(shown(&page), rows[..3]);
    assert!(!page.last().unwrap().next_page_token.is_empty());
}

#[tokio::test]
async fn watch_sends_what_changes_in_shards_elsewhere() {
    let config = eager();
    let mut fixture = filled(Fixture::several(2, config).await).await;
    let generation = fixture.generations[0];
    for instance in 0..2 {
        fixture.ask(instance);
        let request = WatchRequest { view: "per_region".into(), ..WatchRequest::default() };
        let mut watch = fixture.api.watch(Request::new(request)).await.unwrap().into_inner();
        assert!(watch.next().await.unwrap().unwrap().rows.is_empty());
        for region in ["north", "south", "east"] {
            let at = 50 + i64::try_from(instance).unwrap();
            fixture.order(region, "book", 5, at).await;
            fixture.process(generation);
            let rows: Vec<String> = next(&mut watch).await.rows.iter().map(show).collect();
            assert_eq!(rows, [format!("{region} +{at} 1 5 5.25")], "asked at {instance}");
        }
    }
}

#[tokio::test]
async fn scans_for_others_are_bounded_and_the_next_one_waits_its_turn() {
    let config = Config {
        max_forwarded: 1.try_into().unwrap(),
        batch_rows: 1.try_into().unwrap(),
        ..Config::default()
    };
    let fixture = filled(Fixture::several(2, config).await).await;
    let request = ScanRequest { view: "per_region".into(), ..ScanRequest::default() };
    let mut first = fixture.api.scan(Request::new(request.clone())).await.unwrap().into_inner();
    first.next().await.unwrap().unwrap();

    let error = refused("1 scans for other instances run now", async |timeout_ms| {
        let freshness = Some(within(timeout_ms));
        fixture.scan(ScanRequest { freshness, ..request.clone() }).await
    })
    .await;
    assert_eq!(error.code(), Code::Unavailable);
    let reason = "query-1 at http://127.0.0.1";
    assert!(error.message().contains(reason), "{}", error.message());
    // A request that opens no scan needs no thread.
    assert!(fixture.get("per_kind", vec![text("book")], patient()).await.is_ok());

    drop(first);
    assert_eq!(fixture.scanned(request).await.len(), 240);
}
