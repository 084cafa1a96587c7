//! `Scan`.

use super::*;

#[tokio::test]
async fn scan_pages_through_a_prefix_and_a_range_of_windows() {
    let mut fixture = Fixture::start().await;
    let generation = fixture.create(PER_REGION).await;
    for minute in 0..10 {
        for region in ["east", "north", "south"] {
            fixture.order(region, "book", minute, minute).await;
        }
    }
    fixture.process(generation);
    let shown = |parts: &[ScanResponse]| -> Vec<String> {
        parts.iter().flat_map(|part| &part.rows).map(show).collect()
    };

    let all = fixture
        .scan(ScanRequest { view: "per_region".into(), ..ScanRequest::default() })
        .await
        .unwrap();
    assert_eq!(shown(&all).len(), 30);
    assert!(shown(&all).is_sorted(), "in key order over all shards");
    assert_eq!(all[0].columns.len(), 5);
    assert_eq!(offsets(all[0].provenance.as_ref().unwrap()).iter().sum::<u64>(), 30);
    assert!(all.last().unwrap().next_page_token.is_empty());

    let windows = |prefix: Vec<Value>| ScanRequest {
        view: "per_region".into(),
        prefix,
        window_from_micros: Some(START + 3 * MINUTE),
        window_to_micros: Some(START + 5 * MINUTE),
        ..ScanRequest::default()
    };
    let north = fixture.scan(windows(vec![text("north")])).await.unwrap();
    assert_eq!(shown(&north), ["north +3 1 3 3.25", "north +4 1 4 4.25"]);
    let any = fixture.scan(windows(vec![])).await.unwrap();
    assert_eq!(shown(&any).len(), 6);

    for page_size in [1, 2, 3, 5, 6] {
        let (mut paged, mut pages) = (Vec::new(), 0);
        let mut request = ScanRequest { page_size, ..windows(vec![]) };
        loop {
            let parts = fixture.scan(request.clone()).await.unwrap();
            paged.extend(shown(&parts));
            pages += 1;
            request.page_token = parts.last().unwrap().next_page_token.clone();
            if request.page_token.is_empty() {
                break;
            }
        }
        assert_eq!(paged, shown(&any), "pages of {page_size}");
        assert_eq!(pages, 6_u64.div_ceil(page_size), "no empty page at the end");
    }
    let damaged = ScanRequest { page_token: vec![1, 2, 3], ..windows(vec![]) };
    assert_eq!(fixture.scan(damaged).await.unwrap_err().code(), Code::InvalidArgument);
}
