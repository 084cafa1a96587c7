//! After any operations in any order the embedded log holds what a log in memory holds.

use headwater_log::MemoryLog;
use proptest::{collection::vec, prelude::*, sample::Index};

use super::*;

#[derive(Clone, Debug)]
enum Step {
    /// So many records of so many bytes, to this partition.
    Append(u32, usize, usize),
    Trim(u32, Index),
    Reopen,
    Read(u32, Index, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let partition = 0..2u32;
    prop_oneof![
        6 => (partition.clone(), 1..5usize, 0..3_000usize).prop_map(|(at, records, len)| Step::Append(at, records, len)),
        1 => (partition.clone(), any::<Index>()).prop_map(|(at, before)| Step::Trim(at, before)),
        1 => Just(Step::Reopen),
        2 => (partition, any::<Index>(), 1..20_000usize).prop_map(|(at, from, max)| Step::Read(at, from, max)),
    ]
}

/// An offset of the partition, or just outside.
fn pick(log: &dyn Log, partition: u32, index: Index) -> Offset {
    let end = block_on(log.ends(&topic(), PartitionId(partition))).unwrap().end;
    Offset(index.index(end.0 as usize + 2) as u64)
}

/// The stored bytes from there to the end, or why there are none.
fn read(log: &dyn Log, partition: u32, from: Offset, max_bytes: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut reader = block_on(log.reader(&topic(), PartitionId(partition), from))
        .map_err(|error| error.to_string())?;
    while let Some(chunk) =
        reader.read(max_bytes, Duration::ZERO).map_err(|error| error.to_string())?
    {
        bytes.extend_from_slice(chunk.bytes());
    }
    Ok(bytes)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn it_holds_what_a_log_in_memory_holds(steps in vec(step(), 1..60)) {
        let directory = TempDir::new().unwrap();
        let options = Options { write_buffer_bytes: 64 << 10, ..Options::default() };
        let memory = MemoryLog::new();
        let mut log = EmbeddedLog::open(directory.path(), options.clone()).unwrap();
        for log in [&memory as &dyn Log, &*log] {
            block_on(log.create_topic(&topic(), TopicSpec::keep(2))).unwrap();
        }
        for step in steps {
            match step {
                Step::Append(partition, records, len) => {
                    let value = vec![len as u8; len];
                    let batch = batch(&vec![&value[..]; records]);
                    let [ours, theirs] = [&*log as &dyn Log, &memory].map(|log| {
                        block_on(log.append(&topic(), PartitionId(partition), batch.clone())).unwrap()
                    });
                    prop_assert_eq!(ours, theirs);
                }
                Step::Trim(partition, before) => {
                    let before = pick(&memory, partition, before);
                    let [ours, theirs] = [&*log as &dyn Log, &memory].map(|log| {
                        block_on(log.trim(&topic(), PartitionId(partition), before)).map_err(|error| error.to_string())
                    });
                    prop_assert_eq!(ours, theirs);
                }
                Step::Reopen => {
                    drop(log);
                    log = EmbeddedLog::open(directory.path(), options.clone()).unwrap();
                }
                Step::Read(partition, from, max_bytes) => {
                    let from = pick(&memory, partition, from);
                    let ours = read(&*log, partition, from, max_bytes);
                    prop_assert!(ours == read(&memory, partition, from, 1), "from {from} of {partition}");
                }
            }
            for partition in [0, 1].map(PartitionId) {
                let ends = block_on(log.ends(&topic(), partition)).unwrap();
                prop_assert_eq!(ends, block_on(memory.ends(&topic(), partition)).unwrap());
                let [ours, theirs] = [&*log as &dyn Log, &memory]
                    .map(|log| block_on(log.size(&topic(), partition, ends.start, ends.end)).unwrap());
                prop_assert_eq!(ours, theirs);
            }
        }
    }
}
