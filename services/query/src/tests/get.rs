//! `Get` and `Describe`.

use super::*;

#[tokio::test]
async fn get_returns_the_row_and_says_where_it_comes_from() {
    let mut fixture = Fixture::start().await;
    let generation = fixture.create(PER_REGION).await;
    fixture.order("north", "book", 3, 0).await;
    fixture.order("north", "pen", 4, 0).await;
    fixture.order("south", "book", 9, 1).await;
    fixture.process(generation);

    let answer =
        fixture.get("per_region", vec![text("north"), minute(0)], patient()).await.unwrap();

    assert_eq!(show(&answer.row.unwrap()), "north +0 2 7 7.50");
    let names: Vec<&str> = answer.columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(names, ["region", "window_start", "orders", "amount", "price"]);
    assert_eq!(answer.columns[4].sql_type, "DECIMAL(38,2)");
    let provenance = answer.provenance.unwrap();
    assert_eq!(provenance.generation, generation.to_string());
    assert_eq!((provenance.epoch, provenance.served_by.as_str()), (1, "here"));
    let partition = partition_for_key(b"north", PARTITIONS);
    assert_eq!(provenance.partitions.len(), 1, "only the shard of the key is read");
    assert_eq!(provenance.partitions[0].partition, partition.0);
    assert!(provenance.partitions[0].offset >= 2);
    assert!(provenance.partitions[0].watermark_micros.is_some());

    let absent =
        fixture.get("per_region", vec![text("north"), minute(5)], patient()).await.unwrap();
    assert!(absent.row.is_none() && absent.provenance.is_some());
}

#[tokio::test]
async fn a_row_whose_key_is_not_the_streams_is_merged_from_all_shards() {
    let mut fixture = Fixture::start().await;
    let generation = fixture.create(PER_KIND).await;
    let regions = ["a", "b", "c", "d", "e", "f"];
    for (place, region) in regions.iter().enumerate() {
        fixture.order(region, "book", 1 << place, 0).await;
    }
    fixture.process(generation);

    let answer = fixture.get("per_kind", vec![text("book")], patient()).await.unwrap();

    let provenance = answer.provenance.unwrap();
    assert_eq!(show(&answer.row.unwrap()), "book 6 63");
    assert_eq!(offsets(&provenance).len(), 2);
    assert!(offsets(&provenance).iter().all(|&offset| offset > 0), "both shards must have a part");
    assert_eq!(offsets(&provenance).iter().sum::<u64>(), 6);
}

#[tokio::test]
async fn a_wrong_key_is_refused_with_the_columns_that_it_should_have() {
    let mut fixture = Fixture::start().await;
    fixture.create(PER_REGION).await;
    let error = fixture.get("per_region", vec![text("north")], patient()).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(
        error.message().contains("(region VARCHAR, window_start TIMESTAMP)"),
        "{}",
        error.message()
    );
    let error =
        fixture.get("per_region", vec![text("north"), text("now")], patient()).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(
        error.message().contains("value 2 (window_start) is text, not TIMESTAMP"),
        "{}",
        error.message()
    );

    let error = fixture.get("per_regoin", vec![text("north")], patient()).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert!(error.message().contains("there are: per_region"), "{}", error.message());
}

#[tokio::test]
async fn describe_says_columns_key_and_definition() {
    let mut fixture = Fixture::start().await;
    let generation = fixture.create(PER_REGION).await;
    fixture.process(generation);
    let request = DescribeRequest { view: "per_region".into(), freshness: None };
    let answer = fixture.api.describe(Request::new(request)).await.unwrap().into_inner();
    assert_eq!(answer.key, ["region", "window_start"]);
    assert_eq!(answer.stream, "orders");
    assert_eq!(answer.columns.len(), 5);
    assert!(answer.sql.contains("per_region"));
    assert_eq!(answer.provenance.unwrap().generation, generation.to_string());
}
