use super::{
    Bench, Subject, ZERO, at, batch,
    bench::{keyed, numbered},
    fresh, one,
    removing::{append_to_compact, expect_latest},
};
use crate::{Error, TopicSpec, WriterId, block_on};

pub(super) fn what_was_acknowledged_survives(subject: &dyn Subject) {
    if !subject.durable() {
        return;
    }
    let mut bench = Bench::new(subject, "survives", TopicSpec::keep(2));
    let contents = numbered("r", 60);
    for round in 0..3 {
        for partition in 0..2 {
            let own = &contents[20 * round..20 * (round + 1)];
            bench.append_in(7, partition, own);
        }
        bench = bench.reopen();
        assert_eq!(
            block_on(bench.log.topic(&bench.topic)).expect("topics can be asked for"),
            Some(TopicSpec::keep(2))
        );
        for partition in 0..2 {
            assert_eq!(bench.ends(partition), (0, 20 * (round as u64 + 1)));
            bench.expect(partition, 0, &contents[..20 * (round + 1)]);
        }
    }
}

pub(super) fn offsets_go_on_after_opening_again(subject: &dyn Subject) {
    if !subject.durable() {
        return;
    }
    let mut bench = Bench::new(subject, "go-on", one());
    bench = bench.reopen();
    assert_eq!(bench.append(0, &numbered("a", 3)), 0);
    bench = bench.reopen();
    assert_eq!(bench.append(0, &numbered("b", 4)), 3);
    bench = bench.reopen();
    let differs = block_on(bench.log.create_topic(&bench.topic, TopicSpec::keep(9)));
    assert!(matches!(differs, Err(Error::TopicDiffers { .. })), "{differs:?}");
    let other = fresh("go-on-too");
    block_on(bench.log.create_topic(&other, one())).expect("a fresh topic can be created");
    assert_eq!(bench.append(0, &numbered("c", 1)), 7);
    bench.expect(0, 0, &[numbered("a", 3), numbered("b", 4), numbered("c", 1)].concat());
    assert_eq!(
        block_on(bench.log.ends(&other, ZERO)).expect("it has ends").end,
        at(0),
        "a later topic stays apart"
    );
}

pub(super) fn a_trim_survives(subject: &dyn Subject) {
    if !subject.durable() {
        return;
    }
    let mut bench = Bench::new(subject, "trim-survives", TopicSpec::keep(2));
    let contents = numbered("r", 30);
    for partition in 0..2 {
        bench.append_in(10, partition, &contents);
    }
    block_on(bench.log.trim(&bench.topic, ZERO, at(15))).expect("it can be trimmed");
    block_on(bench.log.trim(&bench.topic, super::PartitionId(1), at(30)))
        .expect("it can be trimmed");
    bench = bench.reopen();
    assert_eq!((bench.ends(0), bench.ends(1)), ((15, 30), (30, 30)));
    bench.expect(0, 15, &contents[15..]);
    let trimmed = block_on(bench.log.reader(&bench.topic, ZERO, at(14))).map(drop);
    assert!(matches!(trimmed, Err(Error::Trimmed { .. })), "{trimmed:?}");
    assert_eq!(bench.append(1, &contents[..1]), 30, "offsets are not used again");
    bench = bench.reopen();
    assert_eq!(bench.ends(1), (30, 31));
}

pub(super) fn a_claim_survives(subject: &dyn Subject) {
    if !subject.durable() {
        return;
    }
    let mut bench = Bench::new(subject, "claim-survives", one());
    let id = WriterId(fresh("writer").to_string());
    let before = block_on(bench.log.writer(&id)).expect("a writer can be claimed").epoch();
    bench = bench.reopen();
    let after = block_on(bench.log.writer(&id)).expect("a writer can be claimed");
    assert!(after.epoch() > before, "an epoch was given twice: {before} and {}", after.epoch());
    let appended = block_on(after.append(&bench.topic, ZERO, batch(&[keyed("k", "v")])));
    assert_eq!(appended.expect("the newest claim may write").first(), at(0));
}

pub(super) fn compaction_survives(subject: &dyn Subject) {
    if !subject.durable() {
        return;
    }
    let mut bench = Bench::new(subject, "compact-survives", TopicSpec::compact(1));
    let latest = append_to_compact(&bench, 0);
    let end = bench.ends(0).1;
    bench = bench.reopen();
    assert_eq!(bench.ends(0), (0, end));
    expect_latest(&bench, &latest);
    let latest = append_to_compact(&bench, end);
    bench = bench.reopen();
    expect_latest(&bench, &latest);
}
