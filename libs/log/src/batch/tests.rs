use proptest::{collection::vec, option, prelude::*};

use super::*;

type Headed = Vec<(String, Vec<u8>)>;
type Content = (i64, Option<Vec<u8>>, Option<Vec<u8>>, Headed);

fn content() -> impl Strategy<Value = Content> {
    let bytes = || vec(any::<u8>(), 0..40);
    let timestamp = prop_oneof![any::<i64>(), 1_356_000_000_000i64..1_360_000_000_000];
    (timestamp, option::of(bytes()), option::of(bytes()), vec((".{0,6}", bytes()), 0..4))
}

fn encode(contents: &[Content]) -> EncodedBatch {
    let mut builder = BatchBuilder::new();
    for (timestamp_ms, key, value, headers) in contents {
        let headers: Vec<_> =
            headers.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
        builder.push(*timestamp_ms, key.as_deref(), value.as_deref(), &headers);
    }
    builder.build().unwrap()
}

/// Walks to the first error, touching every byte of every record.
fn walk(bytes: &[u8], from: u64) -> Result<Vec<u64>, Error> {
    let chunk =
        Chunk::new(bytes.to_vec(), Offset(u64::MAX)).of(Name::new("t").unwrap(), PartitionId(3));
    let mut records = chunk.records(Offset(from));
    let mut offsets = Vec::new();
    let outcome = loop {
        match records.next() {
            None => break Ok(offsets),
            Some(Err(error)) => break Err(error),
            Some(Ok(record)) => {
                assert!(record.headers.iter().all(|(name, value)| name.len() + value.unwrap_or_default().len() < 1 << 20));
                assert!(record.offset.0 >= from);
                offsets.push(record.offset.0);
            }
        }
    };
    assert!(records.next().is_none(), "a walk that ended or failed has ended");
    outcome
}

/// Gives the bytes the checksum that fits them, so that what lies behind it is reached.
fn seal(bytes: &mut [u8]) {
    let checksum = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&checksum.to_be_bytes());
}

/// One batch as another client of Kafka encodes it.
#[rustfmt::skip]
const FOREIGN: [u8; 82] = [
    0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 70,
    0, 0, 0, 0,
    2,
    84, 121, 97, 253,
    0, 0,
    0, 0, 0, 0,
    0, 0, 1, 88, 141, 205, 89, 56,
    0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0,
    0, 0,
    0, 0, 0, 0,
    0, 0, 0, 1,
    40, 0, 10, 0,
    8, 1, 2, 3, 4,
    6, 5, 6, 7,
    2, 6, 8, 9, 10, 4, 11, 12,
];

#[test]
fn a_batch_of_another_client_is_read() {
    let batch = EncodedBatch::from_bytes(FOREIGN.to_vec()).unwrap();
    let record = batch.walk().next().unwrap().unwrap();
    assert_eq!((record.offset, record.timestamp_ms), (Offset(0), 1_479_847_795_005));
    assert_eq!((record.key, record.value), (Some(&[1, 2, 3, 4][..]), Some(&[5, 6, 7][..])));
    let headers: Vec<_> = record.headers.iter().collect();
    assert_eq!(headers, [("\u{8}\t\n", Some(&[11, 12][..]))]);
    assert_eq!(record.headers.get("\u{8}\t\n"), Some(&[11, 12][..]));
}

#[test]
fn a_batch_that_we_build_is_laid_out_alike() {
    let mut builder = BatchBuilder::new();
    builder.push(
        1_479_847_795_000,
        Some(&[1, 2, 3, 4]),
        Some(&[5, 6, 7]),
        &[("\u{8}\t\n", &[11, 12])],
    );
    let batch = builder.build().unwrap();
    let mut expected = FOREIGN;
    // No leader, no producer; the greatest timestamp is the first; no delta to it.
    expected[12..16].copy_from_slice(&[255; 4]);
    expected[35..43].copy_from_slice(&1_479_847_795_000i64.to_be_bytes());
    expected[43..57].copy_from_slice(&[255; 14]);
    expected[63] = 0;
    seal(&mut expected);
    assert_eq!(batch.bytes(), expected);
}

#[test]
fn offsets_are_assigned_without_touching_the_checksum() {
    let content: Content = (5, None, Some(vec![1]), vec![]);
    let mut batch = encode(&[content.clone(), content.clone(), content]);
    batch.assign(Offset(1 << 40));
    let first = 1 << 40;
    assert_eq!(walk(batch.bytes(), 0).unwrap(), [first, first + 1, first + 2]);
    assert_eq!(BatchHeader::read(batch.bytes()).unwrap().end(), Offset(first + 3));
}

#[test]
fn an_empty_batch_is_none() {
    assert!(BatchBuilder::with_capacity(1000).build().is_none());
}

#[test]
fn a_wrong_checksum_names_topic_partition_and_offset() {
    let mut bytes = encode(&[(0, None, Some(vec![1, 2, 3]), vec![])]).into_bytes();
    *bytes.last_mut().unwrap() ^= 1;
    assert_eq!(
        walk(&bytes, 0).unwrap_err().to_string(),
        "the record batch at offset 0 of t[3] cannot be read: its checksum differs from its bytes"
    );
}

#[test]
fn a_compressed_batch_is_refused_by_its_codec() {
    for (attributes, codec) in
        [(1, "gzip"), (2, "snappy"), (3, "lz4"), (4, "zstd"), (7, "an unknown codec")]
    {
        let mut bytes = encode(&[(0, None, None, vec![])]).into_bytes();
        bytes[22] = attributes;
        seal(&mut bytes);
        let error = walk(&bytes, 0).unwrap_err();
        assert!(matches!(&error, Error::Compressed { codec: own, .. } if *own == codec), "{error}");
        assert!(error.to_string().contains("compression.type=none"), "{error}");
    }
}

#[test]
fn markers_of_transactions_are_passed_over() {
    let content: Content = (0, None, None, vec![]);
    let mut marker = encode(std::slice::from_ref(&content)).into_bytes();
    marker[22] = 32;
    seal(&mut marker);
    assert!(EncodedBatch::from_bytes(marker.clone()).is_err(), "and cannot be appended");
    let mut after = encode(&[content]);
    after.assign(Offset(1));
    assert_eq!(walk(&[&marker[..], after.bytes()].concat(), 0).unwrap(), [1]);
}

#[test]
fn a_log_may_replace_the_timestamps_by_its_own() {
    let mut bytes = encode(&[(100, None, None, vec![]), (200, None, None, vec![])]).into_bytes();
    bytes[22] = 8;
    bytes[35..43].copy_from_slice(&777i64.to_be_bytes());
    seal(&mut bytes);
    let chunk = Chunk::new(bytes, Offset(2));
    let timestamps: Vec<_> =
        chunk.records(Offset(0)).map(|record| record.unwrap().timestamp_ms).collect();
    assert_eq!(timestamps, [777, 777]);
}

#[test]
fn gaps_in_the_offsets_stay() {
    let mut bytes = encode(&[(0, None, None, vec![]), (0, None, None, vec![])]).into_bytes();
    // The last offset delta, then the second record's own: as if the records between were
    // compacted.
    bytes[26] = 9;
    let second = bytes.len() - 7;
    assert_eq!(bytes[second + 3], 2);
    bytes[second + 3] = 14;
    seal(&mut bytes);
    assert_eq!(walk(&bytes, 0).unwrap(), [0, 7]);
    assert_eq!(walk(&bytes, 1).unwrap(), [7]);
    assert_eq!(walk(&bytes, 9).unwrap(), [] as [u64; 0]);
    assert!(EncodedBatch::from_bytes(bytes).is_err(), "but nobody may append them");
}

/// Random damage seldom meets the one byte that matters; this meets each of them.
#[test]
fn no_value_of_any_byte_makes_the_walker_panic() {
    for at in 0..FOREIGN.len() {
        for byte in 0..=255 {
            let mut bytes = FOREIGN;
            bytes[at] = byte;
            let _ = walk(&bytes, 0);
            seal(&mut bytes);
            let _ = walk(&bytes, 0);
            let _ = walk(&[bytes, FOREIGN].concat(), 0);
        }
    }
}

#[test]
fn headers_that_do_not_fill_their_record_are_corrupt() {
    let count = FOREIGN.len() - 8;
    let with = |at: usize, byte: u8| {
        let mut bytes = FOREIGN;
        bytes[at] = byte;
        seal(&mut bytes);
        walk(&bytes, 0)
    };
    for (at, byte) in [(count, 0), (count, 1), (count, 4), (count, 6), (count + 1, 0xff)] {
        assert!(matches!(with(at, byte), Err(Error::Corrupt { .. })), "{at} = {byte}");
    }
    // The first byte of a name.
    assert!(with(count + 2, 0xff).is_ok(), "a name in another encoding is somebody else's affair");
}

#[test]
fn batches_that_overlap_are_corrupt() {
    let content: Content = (0, None, None, vec![]);
    let first = encode(&[content.clone(), content.clone()]);
    let mut second = encode(&[content]);
    second.assign(Offset(1));
    let both = [first.bytes(), second.bytes()].concat();
    assert!(matches!(walk(&both, 0), Err(Error::Corrupt { offset: Offset(1), .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_is_built_reads_back(contents in vec(content(), 1..20), base in 0u64..1 << 50) {
        let mut batch = encode(&contents);
        batch.assign(Offset(base));
        prop_assert_eq!(batch.records() as usize, contents.len());
        prop_assert_eq!(EncodedBatch::from_bytes(batch.bytes().to_vec()).unwrap(), batch.clone());
        for (index, (record, content)) in batch.walk().zip(&contents).enumerate() {
            let record = record.unwrap();
            let headers: Headed =
                record.headers.iter().map(|(name, value)| (name.into(), value.unwrap().into())).collect();
            let read: Content = (record.timestamp_ms, record.key.map(Into::into), record.value.map(Into::into), headers);
            prop_assert_eq!(record.offset, Offset(base + index as u64));
            prop_assert_eq!(&read, content);
        }
        prop_assert_eq!(batch.walk().count(), contents.len());
    }

    /// With the checksum set right again, so that the walker itself meets the damage.
    #[test]
    fn damaged_bytes_are_read_or_refused_and_never_panic(
        contents in vec(content(), 1..6),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in option::of(any::<prop::sample::Index>()),
        from in 0u64..8,
        sealed in any::<bool>(),
    ) {
        let batch = encode(&contents).into_bytes();
        let mut bytes = [&batch[..], &batch[..]].concat();
        let second = batch.len();
        bytes[second + 7] = contents.len() as u8;
        prop_assert!(walk(&bytes, from).is_ok());
        for (at, byte) in damage {
            let at = at.index(second);
            bytes[at] = byte;
        }
        if sealed {
            seal(&mut bytes[..second]);
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let _ = walk(&bytes, from);
        let _ = EncodedBatch::from_bytes(bytes);
    }

    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in vec(any::<u8>(), 0..200), from in any::<u64>()) {
        let _ = walk(&bytes, from);
        if bytes.len() > 61 {
            let length = (bytes.len() - 12) as i32;
            bytes[..12].copy_from_slice(&[0; 12]);
            bytes[8..12].copy_from_slice(&length.to_be_bytes());
            bytes[16] = 2;
            bytes[21..23].copy_from_slice(&[0; 2]);
            seal(&mut bytes);
            let _ = walk(&bytes, from);
        }
    }

    #[test]
    fn a_flipped_bit_behind_the_checksum_is_noticed(contents in vec(content(), 1..4), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut bytes = encode(&contents).into_bytes();
        let at = 21 + at.index(bytes.len() - 21);
        bytes[at] ^= 1 << bit;
        prop_assert!(walk(&bytes, 0).is_err());
    }
}
