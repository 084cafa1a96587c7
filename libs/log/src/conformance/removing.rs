use std::{collections::BTreeMap, time::Duration};

use super::{
    Bench, Content, Seen, Subject, ZERO, at,
    bench::{keyed, numbered},
    one,
};
use crate::{Error, TopicSpec, block_on};

pub(super) fn what_was_trimmed_is_refused(subject: &dyn Subject) {
    let bench = Bench::new(subject, "trimmed", TopicSpec::keep(2));
    let contents = numbered("r", 50);
    for partition in 0..2 {
        bench.append_in(10, partition, &contents);
    }
    let mut behind = block_on(bench.log.reader(&bench.topic, ZERO, at(5))).expect("it is readable");
    // In the middle of a batch, so that the log cannot just drop what it stores.
    for (before, start) in [(25, 25), (10, 25), (30, 30), (30, 30)] {
        block_on(bench.log.trim(&bench.topic, ZERO, at(before))).expect("it can be trimmed");
        assert_eq!(bench.ends(0), (start, 50), "trimmed before {before}");
    }
    let refused = |result: Result<(), Error>, offset: u64| match result {
        Err(Error::Trimmed { topic, partition: ZERO, requested, start }) => {
            assert_eq!((topic, requested, start), (bench.topic.clone(), at(offset), at(30)));
        }
        other => panic!("a trimmed offset: {other:?}"),
    };
    refused(behind.read(1, Duration::ZERO).map(drop), 5);
    for offset in [0, 29] {
        refused(block_on(bench.log.reader(&bench.topic, ZERO, at(offset))).map(drop), offset);
    }
    bench.expect(0, 30, &contents[30..]);
    bench.expect(0, 41, &contents[41..]);
    bench.expect(1, 0, &contents);
    assert_eq!(bench.append(0, &numbered("later", 1)), 50, "offsets are not used again");
    let beyond = block_on(bench.log.trim(&bench.topic, ZERO, at(52)));
    assert!(
        matches!(beyond, Err(Error::OffsetOutOfRange { .. })),
        "trimming beyond the end: {beyond:?}"
    );
}

pub(super) fn a_partition_is_trimmed_to_its_end(subject: &dyn Subject) {
    let bench = Bench::new(subject, "trimmed-whole", one());
    bench.append(0, &numbered("r", 10));
    block_on(bench.log.trim(&bench.topic, ZERO, at(10))).expect("it can be trimmed to its end");
    assert_eq!(bench.ends(0), (10, 10));
    bench.expect(0, 10, &[]);
    let later = numbered("later", 2);
    assert_eq!(bench.append(0, &later), 10, "offsets are not used again");
    bench.expect(0, 10, &later);
}

/// Appends to every partition of a topic that compacts, and what must be readable afterwards.
pub(super) fn append_to_compact(bench: &Bench<'_>, from: u64) -> BTreeMap<Vec<u8>, Seen> {
    let mut latest = BTreeMap::new();
    let mut offset = from;
    for round in 0..30 {
        let mut part: Vec<_> = (0..1 + round % 3)
            .map(|n| keyed(&format!("k{n}"), &format!("round {round}")))
            .collect();
        part.push(Content { value: None, ..keyed(&format!("gone {}", round / 20), "") });
        if round == 3 {
            part.push(keyed("rare", "stays"));
        }
        assert_eq!(bench.append(0, &part), offset);
        for content in part {
            latest.insert(content.key.clone().expect("it has a key"), Seen { offset, content });
            offset += 1;
        }
    }
    latest
}

/// The latest records are all there at their offsets, and nothing else is that was not appended.
pub(super) fn expect_latest(bench: &Bench<'_>, latest: &BTreeMap<Vec<u8>, Seen>) {
    for max_bytes in [1, 1 << 20] {
        let seen = bench.read(0, 0, max_bytes);
        assert!(seen.is_sorted_by_key(|seen| seen.offset), "compaction keeps the order");
        let mut folded = BTreeMap::new();
        for seen in seen {
            folded.insert(seen.content.key.clone().expect("it has a key"), seen);
        }
        assert_eq!(&folded, latest, "the latest record of each key");
    }
    for seen in latest.values() {
        let from = bench.read(0, seen.offset, 1 << 20);
        assert_eq!(from.first(), Some(seen), "a current record is read from its own offset");
    }
}

pub(super) fn compaction_keeps_the_latest_of_each_key(subject: &dyn Subject) {
    let bench = Bench::new(subject, "compact", TopicSpec::compact(1));
    let latest = append_to_compact(&bench, 0);
    expect_latest(&bench, &latest);
    let (start, end) = bench.ends(0);
    assert_eq!(start, 0, "compaction does not trim");
    for from in 0..=end {
        let seen = bench.read(0, from, 1);
        let first = latest.values().map(|seen| seen.offset).filter(|offset| *offset >= from).min();
        assert!(
            seen.first().map(|seen| seen.offset) <= first,
            "a reader begins at the next record from {from}"
        );
    }
}

pub(super) fn compaction_refuses_records_without_a_key(subject: &dyn Subject) {
    let bench = Bench::new(subject, "compact-keyless", TopicSpec::compact(1));
    let refused = bench.try_append(0, &[keyed("a", "b"), Content::default()]);
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    assert_eq!(bench.ends(0), (0, 0), "nothing of the batch was stored");
    assert_eq!(bench.append(0, &[keyed("", "an empty key is a key")]), 0);
}
