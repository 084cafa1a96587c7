use headwater_control::Role;
use headwater_log::TopicSpec;
use headwater_proto::control::v1::{
    ChangeKind, DefinitionChange, DeleteRequest, GetCatalogRequest, GetCatalogResponse,
    ListReplaysRequest, ObjectKind, Phase, catalog_service_server::CatalogService as _,
    replay_service_server::ReplayService as _,
};
use headwater_types::{GenerationId, Name};
use tonic::{Code, Request, Status};

use super::fixture::{ALL, Cluster, ORDERS, PAID, other_stream};

fn request(kind: ObjectKind, name: &str, request_id: &str) -> DeleteRequest {
    DeleteRequest {
        kind: kind.into(),
        name: name.into(),
        reason: "nobody reads it".into(),
        request_id: request_id.into(),
        ..DeleteRequest::default()
    }
}

async fn delete(cluster: &Cluster, request: DeleteRequest) -> Result<DefinitionChange, Status> {
    let answer = cluster.catalog().delete(Request::new(request)).await?;
    Ok(answer.into_inner().change.unwrap())
}

async fn catalog(cluster: &Cluster) -> GetCatalogResponse {
    let request = Request::new(GetCatalogRequest {});
    cluster.catalog().get_catalog(request).await.unwrap().into_inner()
}

async fn position(cluster: &Cluster) -> u64 {
    cluster.coordinator.context.state().position().0
}

fn kinds(changes: &[DefinitionChange]) -> Vec<(ChangeKind, &str)> {
    changes.iter().map(|change| (change.kind(), change.name.as_str())).collect()
}

/// The processor has deleted the state of these generations.
async fn until_deleted(cluster: &mut Cluster, generations: &[GenerationId]) {
    for _ in 0..200 {
        if generations.iter().all(|id| cluster.processor.deleted.contains(id)) {
            return;
        }
        cluster.processor.step().await;
        cluster.quiet().await;
    }
    panic!("{generations:?} are not deleted, {:?} are", cluster.processor.deleted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_view_goes_at_once_and_its_state_follows() {
    let mut cluster = Cluster::new().await;
    let created = cluster.apply(&[ORDERS, ALL]).await.unwrap();
    let generation: GenerationId = created.changes[1].generation.parse().unwrap();
    cluster.ingest(&[(0, 1.0), (1, 2.0)]).await;
    cluster.processor.step().await;
    cluster.quiet().await;
    assert_eq!(catalog(&cluster).await.shards.len(), 2);

    let deleted = delete(&cluster, request(ObjectKind::View, "spend", "d1")).await.unwrap();
    assert_eq!((deleted.kind(), deleted.object.as_str()), (ChangeKind::Deleted, "view"));
    assert!(deleted.notes[0].contains("stay in their topics"), "{:?}", deleted.notes);
    let now = catalog(&cluster).await;
    assert_eq!((now.views.len(), now.generations.len(), now.shards.len()), (0, 0, 0), "{now:?}");
    assert_eq!(now.streams.len(), 1);

    until_deleted(&mut cluster, &[generation]).await;
    let state = cluster.coordinator.context.state();
    assert_eq!(state.generations()[&generation].role, Role::Retired, "the history stays");
    assert_eq!(state.deleted_views()["spend"].reason, "nobody reads it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_delete_is_answered_alike_and_done_once() {
    let mut cluster = Cluster::new().await;
    cluster.apply(&[ORDERS, ALL]).await.unwrap();
    let first = delete(&cluster, request(ObjectKind::View, "spend", "d1")).await.unwrap();
    cluster.restart().await;
    let second = delete(&cluster, request(ObjectKind::View, "spend", "d1")).await.unwrap();
    assert_eq!(first, second);

    let stream = delete(&cluster, request(ObjectKind::Stream, "orders", "d2")).await.unwrap();
    let note = "topics orders and orders.dead-letters stay with all of their records";
    assert_eq!(stream.notes, [note]);
    let again = delete(&cluster, request(ObjectKind::Stream, "orders", "d2")).await.unwrap();
    assert_eq!(stream, again);
    let topic =
        |name: &str| headwater_log::block_on(cluster.log.topic(&Name::new(name).unwrap())).unwrap();
    assert_eq!(topic("orders"), Some(TopicSpec::keep(2)));
    assert_eq!(topic("orders.dead-letters"), Some(TopicSpec::keep(2)));

    let other = delete(&cluster, request(ObjectKind::View, "spend", "d2")).await.unwrap_err();
    assert!(other.message().contains("this request id was used"), "{}", other.message());
    let gone = delete(&cluster, request(ObjectKind::View, "spend", "d3")).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    assert!(
        gone.message().contains("view spend was deleted at 1970-01-01T00:00:01Z (nobody reads it)"),
        "{}",
        gone.message()
    );
    let passed = DeleteRequest { if_exists: true, ..request(ObjectKind::View, "spend", "d4") };
    assert_eq!(delete(&cluster, passed).await.unwrap().kind(), ChangeKind::Unchanged);
    let never = delete(&cluster, request(ObjectKind::Stream, "never", "d5")).await.unwrap_err();
    assert!(never.message().contains("there is no stream never"), "{}", never.message());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_something_depends_on_is_refused_with_what_to_do_first() {
    let mut cluster = Cluster::new().await;
    cluster.apply(&[ORDERS, ALL]).await.unwrap();
    let before = position(&cluster).await;
    let read = delete(&cluster, request(ObjectKind::Stream, "orders", "d1")).await.unwrap_err();
    assert_eq!(read.code(), Code::FailedPrecondition);
    assert!(read.message().contains("`headwater delete view spend`"), "{}", read.message());
    let dropped = cluster.apply(&["DROP STREAM orders"]).await.unwrap_err();
    assert_eq!(dropped.code(), Code::FailedPrecondition);
    assert!(dropped.message().starts_with("0.sql: stream orders"), "{}", dropped.message());
    assert_eq!(position(&cluster).await, before);

    cluster.apply(&[PAID]).await.unwrap();
    let busy = delete(&cluster, request(ObjectKind::View, "spend", "d2")).await.unwrap_err();
    assert_eq!(busy.code(), Code::FailedPrecondition);
    assert!(busy.message().contains("`headwater replay abort spend-1`"), "{}", busy.message());
    let busy = cluster.apply(&["DROP VIEW spend; DROP STREAM orders"]).await.unwrap_err();
    assert!(busy.message().contains("spend-1"), "{}", busy.message());

    cluster.abort("spend-1").await.unwrap();
    let dry = DeleteRequest { dry_run: true, ..request(ObjectKind::View, "spend", "d3") };
    assert_eq!(delete(&cluster, dry).await.unwrap().kind(), ChangeKind::Deleted);
    assert!(cluster.coordinator.context.state().views().contains_key("spend"), "it was a dry run");
    let deleted = delete(&cluster, request(ObjectKind::View, "spend", "d4")).await.unwrap();
    assert_eq!(deleted.kind(), ChangeKind::Deleted);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_is_kept_for_undo_may_be_deleted_and_its_replays_are_over() {
    let mut cluster = Cluster::new().await;
    cluster.apply(&[ORDERS, ALL]).await.unwrap();
    cluster.ingest(&[(0, 1.0), (1, 0.0)]).await;
    cluster.apply(&[PAID]).await.unwrap();
    cluster.until("spend-1", Phase::Hold).await;
    cluster.promote("spend", false).await.unwrap();
    let retained = cluster.until("spend-1", Phase::Retain).await;

    delete(&cluster, request(ObjectKind::View, "spend", "d1")).await.unwrap();
    let undo = cluster.undo("spend").await.unwrap_err();
    assert!(undo.message().contains("view spend was deleted"), "{}", undo.message());
    let undo = cluster.undo("spend-1").await.unwrap_err();
    assert!(undo.message().contains("its view spend was deleted"), "{}", undo.message());
    let sides = [&retained.old_generation, &retained.new_generation];
    until_deleted(&mut cluster, &sides.map(|id| id.parse().unwrap())).await;

    assert_eq!(cluster.replay("spend-1").await.phase(), Phase::Retired, "the history stays");
    let listed = cluster.replays().list(Request::new(ListReplaysRequest::default())).await.unwrap();
    assert_eq!(listed.into_inner().replays, [], "lists have what there is");
    let text = cluster.node.metrics.encode();
    assert!(!text.contains(r#"view="spend""#), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_can_be_used_again_and_the_same_definition_is_another_generation() {
    let mut cluster = Cluster::new().await;
    let first = cluster.apply(&[ORDERS, ALL]).await.unwrap();
    cluster.ingest(&[(0, 1.0), (1, 0.0)]).await;
    cluster.apply(&[PAID]).await.unwrap();
    cluster.abort("spend-1").await.unwrap();
    let dropped = cluster.apply(&["DROP STREAM orders; DROP VIEW spend;"]).await.unwrap();
    assert_eq!(
        kinds(&dropped.changes),
        [(ChangeKind::Deleted, "orders"), (ChangeKind::Deleted, "spend")],
        "in the order of the statements, whatever is deleted first"
    );
    assert!(dropped.changes[0].notes[0].contains("orders.dead-letters"), "{dropped:?}");

    let again = cluster.apply(&[ORDERS, ALL]).await.unwrap();
    assert_eq!(
        kinds(&again.changes),
        [(ChangeKind::Created, "orders"), (ChangeKind::Created, "spend")]
    );
    let (old, new) = (&first.changes[1].generation, &again.changes[1].generation);
    assert_ne!(old, new, "the same text over the same records");
    until_deleted(&mut cluster, &[old.parse().unwrap()]).await;
    cluster.processor.step().await;
    cluster.quiet().await;
    let now = catalog(&cluster).await;
    assert_eq!((now.views[0].serving.as_str(), now.views[0].epoch), (new.as_str(), 1));
    assert_eq!(now.generations.len(), 1, "{:?}", now.generations);
    assert!(now.shards.iter().all(|shard| shard.generation == *new) && now.shards.len() == 2);
    assert!(!cluster.processor.deleted.contains(&new.parse().unwrap()));

    let none = cluster.promote("spend", false).await.unwrap_err();
    assert!(none.message().contains("view spend has no replay yet"), "{}", none.message());
    let started = cluster.apply(&[PAID]).await.unwrap();
    assert_eq!(started.changes[0].replay_id, "spend-2", "an id is never used again");
    cluster.until("spend-2", Phase::Hold).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drops_and_definitions_of_one_request_are_taken_together() {
    let mut cluster = Cluster::new().await;
    cluster.apply(&[ORDERS, ALL]).await.unwrap();
    let before = position(&cluster).await;

    let twice = cluster.apply(&["DROP VIEW spend", ALL]).await.unwrap_err();
    assert_eq!(twice.code(), Code::InvalidArgument);
    assert!(
        twice.message().contains("1.sql: view spend is to be dropped and has another statement"),
        "{}",
        twice.message()
    );
    let orphan = ALL.replace("VIEW spend", "VIEW other");
    let orphan =
        cluster.apply(&["DROP VIEW spend; DROP STREAM orders", &orphan]).await.unwrap_err();
    assert!(
        orphan.message().contains("reads stream orders, which does not exist"),
        "{}",
        orphan.message()
    );
    let missing = cluster.apply(&["DROP VIEW nothing"]).await.unwrap_err();
    assert_eq!(missing.code(), Code::InvalidArgument);
    assert!(missing.message().contains("there is no view nothing"), "{}", missing.message());
    assert_eq!(position(&cluster).await, before, "wholly or not at all");

    // Another stream takes the topic over.
    let other = other_stream().replace("topic = 'others'", "topic = 'orders'");
    let drops =
        "DROP VIEW IF EXISTS spend; DROP VIEW IF EXISTS nothing; DROP STREAM IF EXISTS orders;";
    let applied = cluster.apply(&[&other, drops]).await.unwrap();
    assert_eq!(
        kinds(&applied.changes),
        [
            (ChangeKind::Created, "others"),
            (ChangeKind::Deleted, "spend"),
            (ChangeKind::Unchanged, "nothing"),
            (ChangeKind::Deleted, "orders"),
        ]
    );
    let again = cluster.apply(&[&other, drops]).await.unwrap();
    assert!(again.changes.iter().all(|change| change.kind() == ChangeKind::Unchanged), "{again:?}");
    assert_eq!(position(&cluster).await, before + 4, "three records and a retirement");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_takes_a_replays_id_as_well_as_a_views_name() {
    let mut cluster = Cluster::new().await;
    cluster.apply(&[ORDERS, ALL]).await.unwrap();
    cluster.ingest(&[(0, 1.0), (1, 0.0)]).await;
    for (replay, sql) in [("spend-1", PAID), ("spend-2", ALL)] {
        cluster.apply(&[sql]).await.unwrap();
        let open = cluster.undo(replay).await.unwrap_err();
        assert!(open.message().contains(&format!("replay {replay} is open")), "{open}");
        cluster.until(replay, Phase::Hold).await;
        cluster.promote(replay, false).await.unwrap();
        cluster.until(replay, Phase::Retain).await;
    }
    let older = cluster.undo("spend-1").await.unwrap_err();
    assert_eq!(older.code(), Code::FailedPrecondition);
    assert!(
        older
            .message()
            .contains("replay spend-1 cannot be undone: replay spend-2 was promoted last"),
        "{}",
        older.message()
    );
    assert_eq!(cluster.undo("spend-3").await.unwrap_err().code(), Code::NotFound);

    let undone = cluster.undo("spend-2").await.unwrap();
    assert_eq!((undone.replay_id.as_str(), undone.phase()), ("spend-2", Phase::Commit));
    assert_eq!(cluster.undo("spend-2").await.unwrap().replay_id, "spend-2", "it is under way");
    let other = cluster.undo("spend-1").await.unwrap_err();
    assert!(other.message().contains("replay spend-2 is being undone"), "{}", other.message());
    cluster.until("spend-2", Phase::Undone).await;
    let done = cluster.undo("spend-2").await.unwrap_err();
    assert!(done.message().contains("that is done already"), "{}", done.message());
}
