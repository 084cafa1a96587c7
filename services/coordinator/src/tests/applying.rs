use headwater_log::{Cleanup, TopicSpec};
use headwater_proto::control::v1::{
    ApplyRequest, ChangeKind, GetCatalogRequest, Phase, ReplayOptions,
    catalog_service_server::CatalogService as _,
};
use headwater_types::{Name, Offset, PartitionId};
use tonic::{Code, Request};

use super::fixture::{ALL, Cluster, ORDERS, PAID, files, other_stream};

type Changes = Vec<(ChangeKind, String, String)>;

fn told(response: &headwater_proto::control::v1::ApplyResponse) -> Changes {
    response.changes.iter().map(|c| (c.kind(), c.object.clone(), c.name.clone())).collect()
}

fn expected(changes: &[(ChangeKind, &str, &str)]) -> Changes {
    changes.iter().map(|(kind, object, name)| (*kind, (*object).into(), (*name).into())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn applying_creates_streams_before_views_and_again_changes_nothing() {
    let mut cluster = Cluster::new().await;
    let created = cluster.apply(&[ALL, ORDERS]).await.unwrap();
    let new = [(ChangeKind::Created, "view", "spend"), (ChangeKind::Created, "stream", "orders")];
    assert_eq!(told(&created), expected(&new));
    for name in ["orders", "orders.dead-letters"] {
        let topic = cluster.log.topic(&Name::new(name).unwrap()).await.unwrap();
        assert_eq!(topic, Some(TopicSpec::keep(2)));
    }

    let shouted = format!("-- the same\n{}", ALL.replace("SELECT", "select   "));
    let again = cluster.apply(&[ORDERS, &shouted]).await.unwrap();
    let same =
        [(ChangeKind::Unchanged, "stream", "orders"), (ChangeKind::Unchanged, "view", "spend")];
    assert_eq!(told(&again), expected(&same));
    assert_eq!(cluster.coordinator.context.state().position(), Offset(2));

    let catalog = cluster
        .catalog()
        .get_catalog(Request::new(GetCatalogRequest {}))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(catalog.streams[0].topic, "orders");
    assert_eq!(catalog.views[0].serving, created.changes[0].generation);
    assert_eq!((catalog.views[0].epoch, catalog.generations[0].role.as_str()), (1, "serving"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_is_answered_alike_and_done_once() {
    let mut cluster = Cluster::new().await;
    cluster.apply(&[ORDERS, ALL]).await.unwrap();
    let request = ApplyRequest {
        files: files(&[ORDERS, PAID]),
        request_id: "once".into(),
        options: Some(ReplayOptions { retain_ms: 5, ..ReplayOptions::default() }),
        dry_run: false,
    };
    let mut first =
        cluster.catalog().apply(Request::new(request.clone())).await.unwrap().into_inner();
    let position = cluster.coordinator.context.state().position();
    cluster.restart().await;
    assert_eq!(
        cluster.coordinator.context.state().position(),
        position,
        "it knows all before it is asked"
    );
    let mut second = cluster.catalog().apply(Request::new(request)).await.unwrap().into_inner();
    // Other processes use the same disk.
    for response in [&mut first, &mut second] {
        response.changes[1].plan.as_mut().unwrap().disk_free_bytes = 0;
    }
    assert_eq!(first, second);
    assert_eq!(first.changes[1].replay_id, "spend-1");
    assert_eq!(cluster.coordinator.context.state().position(), position);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_wrong_definition_keeps_all_others_out_and_names_its_place() {
    let mut cluster = Cluster::new().await;
    let unknown = ALL.replace("amount", "amonut");
    let refused = cluster.apply(&[ORDERS, &unknown]).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().starts_with("1.sql: line 2, column"), "{}", refused.message());
    let state = cluster.coordinator.context.state();
    assert_eq!((state.position(), state.streams().len()), (Offset::ZERO, 0));

    let twice = cluster.apply(&[ORDERS, ORDERS, ALL, "CREATE NONSENSE"]).await.unwrap_err();
    let lines: Vec<_> = twice.message().lines().collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(
        lines[0],
        "1.sql: stream orders is defined twice, first in 0.sql; keep one of the two"
    );

    let orphan = cluster.apply(&[ALL]).await.unwrap_err();
    assert!(
        orphan.message().contains("view spend reads stream orders, which does not exist"),
        "{}",
        orphan.message()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_takes_nullable_columns_at_its_end_and_nothing_else() {
    let mut cluster = Cluster::new().await;
    cluster.apply(&[ORDERS, ALL]).await.unwrap();
    let refusals = [
        (
            ORDERS.replace("amount DOUBLE", "amount BIGINT"),
            "its column amount DOUBLE would become amount BIGINT",
        ),
        (ORDERS.replace("amount DOUBLE, ", ""), "its column amount DOUBLE would become"),
        (ORDERS.replace("5 seconds", "6 seconds"), "its watermark delay would change"),
        (
            ORDERS.replace("partitions = 2", "partitions = 3"),
            "its partitions would change from 2 to 3",
        ),
        (
            ORDERS.replace(
                "ts TIMESTAMP NOT NULL,",
                "ts TIMESTAMP NOT NULL, place VARCHAR NOT NULL,",
            ),
            "is NOT NULL",
        ),
        (
            other_stream().replace("topic = 'others'", "topic = 'orders'"),
            "would share topic orders with stream orders",
        ),
    ];
    for (sql, reason) in refusals {
        let refused = cluster.apply(&[&sql]).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(
            refused.message().contains(reason),
            "{:?} should say {reason:?}",
            refused.message()
        );
    }
    let longer = ORDERS.replace("ts TIMESTAMP NOT NULL,", "ts TIMESTAMP NOT NULL, place VARCHAR,");
    let extended = cluster.apply(&[&longer, ALL]).await.unwrap();
    let kinds =
        [(ChangeKind::Extended, "stream", "orders"), (ChangeKind::Unchanged, "view", "spend")];
    assert_eq!(told(&extended), expected(&kinds));
    // The new column can be used at once, and the plan says that the stream was extended.
    let by_place = PAID.replace("user_id", "place");
    let replayed = cluster.apply(&[&by_place]).await.unwrap();
    let plan = replayed.changes[0].plan.clone().unwrap();
    assert!(
        plan.differences.iter().any(|line| line.contains("stream orders has been extended")),
        "{plan:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_plans_and_does_nothing() {
    let mut cluster = Cluster::new().await;
    cluster.apply(&[ORDERS, ALL]).await.unwrap();
    cluster.ingest(&[(0, 1.0), (1, 1.0), (1, 0.0), (2, 5.0)]).await;
    cluster.log.trim(&Name::new("orders").unwrap(), PartitionId(1), Offset(1)).await.unwrap();
    cluster.processor.step().await;
    cluster.quiet().await;
    let request =
        ApplyRequest { files: files(&[ORDERS, PAID]), dry_run: true, ..ApplyRequest::default() };
    let planned = cluster.catalog().apply(Request::new(request)).await.unwrap().into_inner();
    let plan = planned.changes[1].plan.clone().unwrap();
    assert_eq!(
        (planned.changes[1].kind(), plan.records, plan.disk_bytes),
        (ChangeKind::Replayed, 3, 8192)
    );
    assert!(plan.bytes > 0 && plan.disk_free_bytes > 0 && !plan.differences.is_empty(), "{plan:?}");
    assert_eq!(plan.seconds, 3.0 / 200.0);
    assert!(
        plan.warnings[0].starts_with("partition 1 of topic orders begins at offset 1"),
        "{:?}",
        plan.warnings
    );
    assert_eq!(cluster.coordinator.context.state().replays().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_view_is_refused_while_its_replay_is_open() {
    let mut cluster = Cluster::new().await;
    cluster.apply(&[ORDERS, ALL]).await.unwrap();
    let started = cluster.apply(&[PAID]).await.unwrap();
    assert_eq!(started.changes[0].replay_id, "spend-1");
    let same = cluster.apply(&[PAID]).await.unwrap();
    assert_eq!(
        (same.changes[0].kind(), same.changes[0].replay_id.as_str()),
        (ChangeKind::Unchanged, "spend-1")
    );
    let third = PAID.replace("> 0", "> 1");
    let refused = cluster.apply(&[&third]).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("headwater replay abort spend-1"), "{}", refused.message());
    assert_eq!(cluster.abort("spend-1").await.unwrap().phase(), Phase::Aborted);
    assert_eq!(cluster.apply(&[&third]).await.unwrap().changes[0].replay_id, "spend-2");
}

fn spec(partitions: u32, cleanup: Cleanup) -> TopicSpec {
    TopicSpec { partitions, cleanup }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_others_is_taken_as_it_is_if_it_has_the_declared_partitions() {
    for (cleanup, warning) in [
        (Cleanup::Keep, None),
        (Cleanup::Expire, Some("deletes old records by a retention of its own")),
        (Cleanup::Compact, Some("is compacted")),
    ] {
        let mut cluster = Cluster::new().await;
        let topic = Name::new("orders").unwrap();
        cluster.log.create_topic(&topic, spec(2, cleanup)).await.unwrap();
        let dry = ApplyRequest { files: files(&[ORDERS]), dry_run: true, ..Default::default() };
        let dry = cluster.catalog().apply(Request::new(dry)).await.unwrap().into_inner();
        let created = cluster.apply(&[ORDERS, ALL]).await.unwrap();
        let again = cluster.apply(&[ORDERS, ALL]).await.unwrap();
        for changes in [&dry.changes, &created.changes, &again.changes] {
            let found = &changes[0].warnings;
            assert_eq!(found.len(), usize::from(warning.is_some()), "{found:?}");
            assert!(found.iter().all(|line| line.contains(warning.unwrap())), "{found:?}");
        }
        assert_eq!(
            cluster.log.topic(&topic).await.unwrap(),
            Some(spec(2, cleanup)),
            "it is not ours"
        );
        let replayed = cluster.apply(&[PAID]).await.unwrap();
        let plan = replayed.changes[0].plan.clone().unwrap();
        assert_eq!(plan.warnings.len(), usize::from(warning.is_some()), "{plan:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_with_other_partitions_is_refused_with_both_numbers() {
    for partitions in [1, 3] {
        let mut cluster = Cluster::new().await;
        let topic = Name::new("orders").unwrap();
        cluster.log.create_topic(&topic, spec(partitions, Cleanup::Expire)).await.unwrap();
        let refused = cluster.apply(&[ORDERS, ALL]).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        let said = format!(
            "topic orders has {partitions} partitions, and stream orders declares 2; declare partitions = \
             {partitions}, or name another topic"
        );
        assert!(refused.message().contains(&said), "{}", refused.message());
        assert_eq!(cluster.coordinator.context.state().position(), Offset::ZERO);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_dead_letters_that_would_lose_them_is_refused_with_what_to_set() {
    let mut cluster = Cluster::new().await;
    let topic = Name::new("orders.dead-letters").unwrap();
    cluster.log.create_topic(&topic, spec(2, Cleanup::Expire)).await.unwrap();
    let refused = cluster.apply(&[ORDERS]).await.unwrap_err();
    for part in ["orders.dead-letters", "delete old records", "retention.ms=-1"] {
        assert!(refused.message().contains(part), "{}", refused.message());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_are_added_under_a_view_show_in_the_catalog_and_are_not_declared_over() {
    let mut cluster = Cluster::new().await;
    let created = cluster.apply(&[ORDERS, ALL]).await.unwrap();
    let generation = created.changes[1].generation.parse().unwrap();
    let error = "topic orders has 3 partitions, and stream orders declares 2";
    cluster.processor.failing = Some((generation, error.into()));
    cluster.processor.step().await;
    cluster.quiet().await;
    let catalog = cluster.catalog().get_catalog(Request::new(GetCatalogRequest {})).await;
    let shards = catalog.unwrap().into_inner().shards;
    assert_eq!(shards.len(), 2);
    assert!(shards.iter().all(|shard| shard.error == error), "{shards:?}");
    let more = ORDERS.replace("partitions = 2", "partitions = 3");
    let refused = cluster.apply(&[&more]).await.unwrap_err();
    assert!(
        refused.message().contains("its partitions would change from 2 to 3"),
        "{}",
        refused.message()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_tells_what_the_serving_generation_has_read_and_a_replay_cannot() {
    let mut cluster = Cluster::new().await;
    cluster.apply(&[ORDERS, ALL]).await.unwrap();
    cluster.ingest(&[(0, 1.0), (0, 2.0), (0, 3.0), (1, 1.0)]).await;
    cluster.log.trim(&Name::new("orders").unwrap(), PartitionId(0), Offset(2)).await.unwrap();
    cluster.processor.epoch = 2;
    cluster.processor.step().await;
    cluster.quiet().await;
    let plan = cluster.apply(&[PAID]).await.unwrap().changes[0].plan.clone().unwrap();
    assert_eq!(
        plan.warnings[0],
        "partition 0 of topic orders begins at offset 2: what came before was trimmed and will be missing from the \
         new generation; the serving one has read from offset 0 on"
    );
    assert!(plan.disk_free_bytes > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_free_disk_of_processors_elsewhere_is_unknown() {
    let mut cluster = Cluster::new().await;
    cluster.processor.directory = Some("on another machine".into());
    cluster.apply(&[ORDERS, ALL]).await.unwrap();
    cluster.ingest(&[(0, 1.0)]).await;
    cluster.processor.step().await;
    cluster.quiet().await;
    let plan = cluster.apply(&[PAID]).await.unwrap().changes[0].plan.clone().unwrap();
    assert_eq!((plan.disk_free_bytes, plan.disk_bytes), (0, 8192), "{plan:?}");
}
