//! `Watch` that continues a former watch.

use std::collections::BTreeSet;

use super::*;

fn begin(initial: bool) -> WatchRequest {
    WatchRequest { view: "per_region".into(), initial, ..WatchRequest::default() }
}

fn resume(token: &str) -> WatchRequest {
    WatchRequest { resume_token: token.into(), ..begin(false) }
}

/// A watch as its client sees it.
struct Watching {
    parts: <QueryApi as QueryService>::WatchStream,
    token: String,
}

impl Watching {
    async fn start(fixture: &Fixture, request: WatchRequest) -> (Self, WatchResponse) {
        let parts = fixture.api.watch(Request::new(request)).await.unwrap().into_inner();
        let mut watching = Self { parts, token: String::new() };
        let head = watching.next().await;
        assert_eq!((head.columns.len(), head.rows.len()), (5, 0));
        (watching, head)
    }

    async fn next(&mut self) -> WatchResponse {
        let part = next(&mut self.parts).await;
        self.token.clone_from(&part.resume_token);
        part
    }

    /// The rows of parts up to the one whose token differs from that of the part before.
    async fn look(&mut self) -> Vec<String> {
        let (before, mut rows) = (self.token.clone(), Vec::new());
        while self.token == before {
            rows.extend(self.next().await.rows.iter().map(show));
        }
        rows
    }
}

/// The text of a token.
fn token(generation: GenerationId, provenance: &Provenance) -> String {
    let positions: Vec<String> = provenance
        .partitions
        .iter()
        .map(|partition| format!("{}:{}", partition.partition, partition.offset))
        .collect();
    format!("{generation}@{}", positions.join(","))
}

#[tokio::test]
async fn a_resumed_watch_sends_exactly_the_rows_that_changed_since() {
    let mut fixture = Fixture::start_with(eager()).await;
    let generation = fixture.create(PER_REGION).await;
    for region in ["north", "south", "east", "west"] {
        fixture.order(region, "book", 1, 0).await;
    }
    fixture.process(generation);
    let (mut watching, head) = Watching::start(&fixture, begin(false)).await;
    assert!(!head.reset);
    assert_eq!(head.resume_token, token(generation, head.provenance.as_ref().unwrap()));
    fixture.order("south", "book", 5, 0).await;
    fixture.process(generation);
    assert_eq!(watching.look().await, ["south +0 2 6 6.50"]);
    let left = watching.token.clone();
    drop(watching);

    // Without a watch: one row changes twice, one appears, two stay as they are.
    fixture.order("north", "book", 2, 0).await;
    fixture.process(generation);
    fixture.order("north", "book", 3, 0).await;
    fixture.order("west", "book", 7, 1).await;
    fixture.process(generation);

    let (mut watching, head) = Watching::start(&fixture, resume(&left)).await;
    assert!(!head.reset);
    assert_eq!(head.resume_token, left, "nothing after the token is sent yet");
    assert_eq!(watching.look().await, ["north +0 3 6 6.75", "west +1 1 7 7.25"]);
    let now = watching.token.clone();

    // It goes on like any other watch.
    fixture.order("east", "book", 4, 0).await;
    fixture.process(generation);
    assert_eq!(watching.look().await, ["east +0 2 5 5.50"]);

    // A token may be used again, and has no age.
    let (mut again, _) = Watching::start(&fixture, resume(&now)).await;
    assert_eq!(again.look().await, ["east +0 2 5 5.50"]);
    assert_eq!(again.token, watching.token);
}

#[tokio::test]
async fn a_watch_that_is_resumed_where_nothing_changed_sends_nothing() {
    let mut fixture = Fixture::start_with(eager()).await;
    let generation = fixture.create(PER_REGION).await;
    fixture.order("north", "book", 1, 0).await;
    fixture.process(generation);
    let (_, head) = Watching::start(&fixture, begin(false)).await;

    let (mut watching, resumed) = Watching::start(&fixture, resume(&head.resume_token)).await;

    assert_eq!(resumed.resume_token, head.resume_token);
    fixture.order("south", "book", 1, 0).await;
    fixture.process(generation);
    assert_eq!(watching.look().await, ["south +0 1 1 1.25"], "the first rows are the next change");
}

#[tokio::test]
async fn a_watch_cut_off_among_the_parts_of_a_look_gets_all_of_that_look_again() {
    let config = Config { batch_rows: 1.try_into().unwrap(), ..eager() };
    let mut fixture = Fixture::start_with(config).await;
    let generation = fixture.create(PER_REGION).await;
    fixture.process(generation);
    let (mut watching, head) = Watching::start(&fixture, begin(false)).await;
    let before = head.resume_token;
    for minute in 0..20 {
        fixture.order("north", "book", minute, minute).await;
    }
    fixture.process(generation);
    let first = watching.next().await;
    assert_eq!((first.rows.len(), &first.resume_token), (1, &before), "more of this look follows");
    drop(watching);

    let (mut watching, _) = Watching::start(&fixture, resume(&before)).await;

    let rows = watching.look().await;
    assert_eq!(rows.len(), 20);
    assert!(rows.contains(&show(&first.rows[0])));
}

#[tokio::test]
async fn there_is_no_token_before_all_initial_rows_are_sent() {
    let config = Config { batch_rows: 1.try_into().unwrap(), ..eager() };
    let mut fixture = Fixture::start_with(config).await;
    let generation = fixture.create(PER_REGION).await;
    fixture.process(generation);

    // A view without rows has a token at once, in a part of its own.
    let (mut watching, head) = Watching::start(&fixture, begin(true)).await;
    assert!(head.reset && head.resume_token.is_empty());
    assert_eq!(watching.look().await, [""; 0]);

    for minute in 0..5 {
        fixture.order("north", "book", minute, minute).await;
    }
    fixture.process(generation);
    let (mut watching, head) = Watching::start(&fixture, begin(true)).await;
    assert!(head.reset && head.resume_token.is_empty());
    for left in (0..5).rev() {
        let part = watching.next().await;
        assert_eq!(part.rows.len(), 1);
        assert_eq!(part.resume_token.is_empty(), left > 0, "{left} rows are left");
    }
}

#[tokio::test]
async fn a_token_of_another_generation_of_the_view_begins_with_all_rows_and_says_so() {
    let mut fixture = Fixture::start_with(eager()).await;
    let old = fixture.create(PER_REGION).await;
    let new = fixture.replay(PER_REGION_TWICE, old).await;
    fixture.order("north", "book", 1, 0).await;
    fixture.order("south", "book", 1, 0).await;
    fixture.process(old);
    fixture.process(new);
    let (mut before_swap, head) = Watching::start(&fixture, begin(false)).await;
    fixture.compare().await;
    fixture.swap(1, old, new, false).await;

    let (mut resumed, answer) = Watching::start(&fixture, resume(&head.resume_token)).await;

    assert!(answer.reset);
    assert_eq!(answer.provenance.unwrap().generation, new.to_string());
    assert!(answer.resume_token.is_empty(), "cut off now, its client has rows of two generations");
    let all = ["north +0 2 1 1.25", "south +0 2 1 1.25"];
    assert_eq!(resumed.look().await, all);
    assert!(resumed.token.starts_with(&new.to_string()));

    // A watch that saw the swap got the same.
    let answer = before_swap.next().await;
    assert!(answer.reset && answer.columns.len() == 5 && answer.resume_token.is_empty());
    assert_eq!(before_swap.look().await, all);
    assert_eq!(before_swap.token, resumed.token);
}

#[tokio::test]
async fn a_token_that_cannot_be_of_this_view_is_refused_with_the_field_and_the_remedy() {
    let mut fixture = Fixture::start_with(eager()).await;
    let generation = fixture.create(PER_REGION).await;
    let other = fixture.create(PER_KIND).await;
    fixture.process(generation);
    let unknown = GenerationInputs { stream_sql: "", view_sql: "", floor: &[], ordinal: 99 };
    for (token, problem) in [
        ("orders@0:1".to_owned(), "is not one"),
        (format!("{generation}"), "is not one"),
        (format!("{generation}@0:1,2:1"), "is not one"),
        (format!("{generation}@0:1"), "does not name all 2 partitions"),
        (format!("{generation}@0:1,1:1,2:1"), "does not name all 2 partitions"),
        (format!("{other}@0:1,1:1"), "belongs to view per_kind"),
        (format!("{}@0:1,1:1", unknown.digest()), "names a generation that does not exist"),
    ] {
        let error = fixture.api.watch(Request::new(resume(&token))).await.err().expect(problem);
        assert_eq!(error.code(), Code::InvalidArgument, "{token}");
        let message = error.message();
        assert!(message.starts_with(&format!("resume_token {token:?} {problem}: ")), "{message}");
        assert!(message.contains("the last message of a watch of view per_region"), "{message}");
    }
    let both = WatchRequest { initial: true, ..resume(&format!("{generation}@0:0,1:0")) };
    let error = fixture.api.watch(Request::new(both)).await.err().unwrap();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("initial and resume_token"), "{}", error.message());
}

#[tokio::test]
async fn a_shard_that_is_behind_the_token_is_waited_for() {
    let mut fixture = Fixture::start_with(eager()).await;
    let generation = fixture.create(PER_REGION).await;
    fixture.process(generation);
    let ahead = fixture.order("north", "book", 1, 0).await;
    let (&partition, &position) = ahead.positions.first_key_value().unwrap();
    let positions = [0, 1].map(|number| {
        let offset = if PartitionId(number) == partition { position.0 } else { 0 };
        format!("{number}:{offset}")
    });
    let token = format!("{generation}@{}", positions.join(","));
    let mut asked = Box::pin(fixture.api.watch(Request::new(resume(&token))));
    tokio::select! {
        _ = &mut asked => panic!("answered behind the token"),
        () = tokio::time::sleep(Duration::from_millis(20)) => {}
    }
    drop(asked);
    fixture.process(generation);

    let (_, head) = Watching::start(&fixture, resume(&token)).await;

    assert_eq!(head.resume_token, token, "the change before the token is not sent again");
}

#[tokio::test]
async fn a_watch_is_resumed_at_another_instance() {
    let mut fixture = Fixture::several(2, eager()).await;
    let generation = fixture.create(PER_REGION).await;
    fixture.process(generation);
    let (_, head) = Watching::start(&fixture, begin(false)).await;
    for region in ["north", "south", "east", "west"] {
        fixture.order(region, "book", 1, 0).await;
    }
    fixture.process(generation);

    for instance in 0..2 {
        fixture.ask(instance);
        let (mut watching, _) = Watching::start(&fixture, resume(&head.resume_token)).await;
        let rows: BTreeSet<String> = watching.look().await.into_iter().collect();
        let all =
            ["east +0 1 1 1.25", "north +0 1 1 1.25", "south +0 1 1 1.25", "west +0 1 1 1.25"];
        assert!(rows.iter().eq(all), "asked at {instance}: {rows:?}");
    }
}
