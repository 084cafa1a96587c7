use std::{collections::BTreeMap, thread};

use headwater_types::{Epoch, Offset, PartitionId};

use super::{
    Bench, Subject, ZERO, at, batch,
    bench::{keyed, numbered},
    fresh, one,
};
use crate::{Error, TopicSpec, WriterId, block_on};

pub(super) fn a_batch_gets_consecutive_offsets(subject: &dyn Subject) {
    let bench = Bench::new(subject, "consecutive", one());
    assert_eq!(bench.ends(0), (0, 0), "a new partition is empty");
    let contents = numbered("r", 111);
    assert_eq!(bench.append(0, &contents[..1]), 0);
    assert_eq!(bench.append(0, &contents[1..11]), 1);
    assert_eq!(bench.append(0, &contents[11..]), 11);
    assert_eq!(bench.ends(0), (0, 111), "every record has taken one offset");
    bench.expect(0, 0, &contents);
}

pub(super) fn appends_are_stored_in_the_order_of_calls(subject: &dyn Subject) {
    let bench = Bench::new(subject, "call-order", one());
    let contents = numbered("r", 400);
    let mut appended: Vec<_> = contents
        .chunks(2)
        .map(|two| (two[0].clone(), bench.log.append(&bench.topic, ZERO, batch(two))))
        .collect();
    // Awaiting the last one first shows that the order of calls decides.
    appended.reverse();
    for (index, (_, offset)) in appended.into_iter().enumerate() {
        assert_eq!(
            block_on(offset).expect("an append succeeds").first(),
            at(398 - 2 * index as u64)
        );
    }
    bench.expect(0, 0, &contents);
}

pub(super) fn concurrent_appends_are_all_stored_once(subject: &dyn Subject) {
    const WRITERS: usize = 8;
    const BATCHES: usize = 40;
    let bench = Bench::new(subject, "concurrent", TopicSpec::keep(2));
    // By partition and offset: what the writer was told.
    let mut told = BTreeMap::new();
    thread::scope(|scope| {
        let bench = &bench;
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                scope.spawn(move || {
                    let partition = writer as u32 % 2;
                    (0..BATCHES)
                        .map(|number| {
                            let contents = numbered(&format!("{writer}/{number}"), 1 + number % 3);
                            ((partition, bench.append(partition, &contents)), contents)
                        })
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        for writer in writers {
            let own = writer.join().expect("no writer panics");
            assert!(
                own.is_sorted_by_key(|(place, _)| *place),
                "the batches of one writer keep their order"
            );
            for (place, contents) in own {
                assert!(
                    told.insert(place, contents).is_none(),
                    "two batches were given one offset: {place:?}"
                );
            }
        }
    });
    for partition in 0..2 {
        let own = told.range((partition, 0)..(partition + 1, 0));
        let contents: Vec<_> = own.flat_map(|(_, contents)| contents.clone()).collect();
        bench.expect(partition, 0, &contents);
    }
}

pub(super) fn partitions_and_topics_are_apart(subject: &dyn Subject) {
    let bench = Bench::new(subject, "apart", TopicSpec::keep(3));
    let other = fresh("apart-too");
    block_on(bench.log.create_topic(&other, TopicSpec::keep(1)))
        .expect("a fresh topic can be created");
    let contents: Vec<_> =
        (0..3).map(|partition| numbered(&format!("p{partition}"), 20 + partition)).collect();
    for round in 0..4 {
        for (partition, contents) in contents.iter().enumerate() {
            let part = &contents[5 * round..];
            let part = if round < 3 { &part[..5] } else { part };
            bench.append(partition as u32, part);
        }
    }
    for (partition, contents) in contents.iter().enumerate() {
        bench.expect(partition as u32, 0, contents);
    }
    let ends = block_on(bench.log.ends(&other, ZERO)).expect("the other topic has ends");
    assert_eq!((ends.start, ends.end), (Offset::ZERO, Offset::ZERO), "another topic stays empty");
}

pub(super) fn a_topic_is_created_once(subject: &dyn Subject) {
    let bench = Bench::new(subject, "created", TopicSpec::keep(2));
    let log = &bench.log;
    block_on(log.create_topic(&bench.topic, TopicSpec::keep(2)))
        .expect("creating it again alike changes nothing");
    for other in [TopicSpec::keep(3), TopicSpec::compact(2)] {
        let error = block_on(log.create_topic(&bench.topic, other))
            .expect_err("it exists with another specification");
        let Error::TopicDiffers { existing, requested, topic } = &error else {
            panic!("{error:?}")
        };
        assert_eq!((topic, *existing, *requested), (&bench.topic, TopicSpec::keep(2), other));
    }
    assert_eq!(
        block_on(log.topic(&bench.topic)).expect("topics can be asked for"),
        Some(TopicSpec::keep(2))
    );
    assert_eq!(
        block_on(log.topic(&fresh("never-created"))).expect("topics can be asked for"),
        None
    );
    let none = block_on(log.create_topic(&fresh("no-partition"), TopicSpec::keep(0)));
    assert!(matches!(none, Err(Error::Refused { .. })), "a topic without partitions: {none:?}");
}

pub(super) fn a_record_over_the_limit_is_refused_with_its_batch(subject: &dyn Subject) {
    let bench = Bench::new(subject, "over-the-limit", one());
    let Some(limit) = bench.log.record_limit(&bench.topic) else { return };
    let sized = |bytes: usize| {
        let content = keyed("k", &"x".repeat(bytes - limit.overhead - 1));
        let counted =
            limit.count(content.key.as_deref(), content.value.as_deref().expect("it has one"));
        assert_eq!(counted, bytes);
        content
    };
    let (largest, larger) = (sized(limit.bytes), sized(limit.bytes + 1));
    let small = numbered("r", 4);
    bench.append(0, &small[..1]);
    let error = bench
        .try_append(0, &[small[1].clone(), larger, small[2].clone()])
        .expect_err("one of its records is too large");
    let Error::RecordTooLarge { topic, index, bytes, limit: said, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!((topic, *index), (&bench.topic, 1), "{error}");
    assert_eq!((*bytes, *said), (limit.bytes + 1, limit.bytes), "{error}");
    let rest = [small[1].clone(), largest, small[2].clone()];
    assert_eq!(bench.append(0, &rest), 1, "nothing of the refused batch was stored");
    bench.append(0, &small[3..]);
    bench.expect(0, 0, &[&small[..1], &rest, &small[3..]].concat());
}

pub(super) fn a_newer_claim_fences_the_older_ones(subject: &dyn Subject) {
    let bench = Bench::new(subject, "fenced", TopicSpec::keep(2));
    let id = WriterId(fresh("writer").to_string());
    let append = |writer: &dyn crate::FencedWriter, partition: u32, text: &str| {
        block_on(writer.append(&bench.topic, PartitionId(partition), batch(&[keyed("k", text)])))
    };
    let first = block_on(bench.log.writer(&id)).expect("a writer can be claimed");
    assert_eq!(append(&*first, 0, "one").expect("the only claim may write").first(), at(0));
    let second = block_on(bench.log.writer(&id)).expect("a writer can be claimed again");
    assert!(second.epoch() > first.epoch(), "every claim has a higher epoch");
    for partition in 0..2 {
        let error = append(&*first, partition, "stale").expect_err("the older claim is fenced");
        let Error::Fenced { writer, ours } = &error else { panic!("{error:?}") };
        assert_eq!((writer, *ours), (&id, first.epoch()));
    }
    // A fenced append may take more offsets than it has records.
    let two = append(&*second, 0, "two").expect("the newest claim may write");
    assert!(two.first() >= at(1));
    let other = block_on(bench.log.writer(&WriterId(fresh("writer").to_string())))
        .expect("another writer can be claimed");
    assert!(other.epoch() > Epoch::default());
    let three = append(&*other, 0, "three").expect("another writer is not fenced");
    let four = append(&*second, 0, "four").expect("and fences nobody");
    let five = bench.append(0, &[keyed("k", "five")]);
    let told = [at(0), two.first(), three.first(), four.first(), at(five)];
    assert!(told.is_sorted(), "whoever needs no claim may write: {told:?}");
    let seen = bench.read(0, 0, 1 << 20);
    let expected = ["one", "two", "three", "four", "five"].map(|text| keyed("k", text));
    assert_eq!(seen.iter().map(|seen| at(seen.offset)).collect::<Vec<_>>(), told);
    assert!(seen.iter().map(|seen| &seen.content).eq(&expected), "{seen:?}");
    assert_eq!(bench.read(1, 0, 1 << 20), [], "nothing of the fenced claim was stored");
}
