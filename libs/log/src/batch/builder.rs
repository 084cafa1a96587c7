use super::{EncodedBatch, HEADER_LEN, varint};

/// Builds one batch. Records get consecutive offsets in the order in which they are pushed.
#[derive(Clone, Debug)]
pub struct BatchBuilder {
    bytes: Vec<u8>,
    records: u32,
    base_timestamp: i64,
    max_timestamp: i64,
}

impl Default for BatchBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl BatchBuilder {
    pub fn new() -> Self {
        Self::with_capacity(0)
    }

    /// With room for batches of up to `bytes` bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        let mut buffer = Vec::with_capacity(bytes.max(HEADER_LEN));
        buffer.resize(HEADER_LEN, 0);
        Self { bytes: buffer, records: 0, base_timestamp: 0, max_timestamp: i64::MIN }
    }

    /// Adds a record; the timestamp counts milliseconds since 1970-01-01T00:00:00Z.
    pub fn push(
        &mut self,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(&str, &[u8])],
    ) {
        if self.records == 0 {
            self.base_timestamp = timestamp_ms;
        }
        self.max_timestamp = self.max_timestamp.max(timestamp_ms);
        // Wraps for timestamps more than 2^63 apart, and reading wraps it back.
        let timestamp_delta = timestamp_ms.wrapping_sub(self.base_timestamp);
        let offset_delta = i64::from(self.records);

        let body = 1
            + varint::len_signed(timestamp_delta)
            + varint::len_signed(offset_delta)
            + blob_len(key)
            + blob_len(value)
            + varint::len_signed(headers.len() as i64)
            + headers
                .iter()
                .map(|(name, value)| blob_len(Some(name.as_bytes())) + blob_len(Some(value)))
                .sum::<usize>();

        let out = &mut self.bytes;
        out.reserve(body + 10);
        varint::put_signed(body as i64, out);
        out.push(0);
        varint::put_signed(timestamp_delta, out);
        varint::put_signed(offset_delta, out);
        put_blob(key, out);
        put_blob(value, out);
        varint::put_signed(headers.len() as i64, out);
        for (name, value) in headers {
            put_blob(Some(name.as_bytes()), out);
            put_blob(Some(value), out);
        }
        self.records += 1;
    }

    /// The number of records so far.
    pub fn len(&self) -> u32 {
        self.records
    }

    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// The bytes of the batch so far.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The batch; `None` if it has no record.
    pub fn build(self) -> Option<EncodedBatch> {
        let Self { mut bytes, records, base_timestamp, max_timestamp } = self;
        if records == 0 {
            return None;
        }
        seal(&mut bytes, records, records - 1, base_timestamp, max_timestamp);
        Some(EncodedBatch { bytes, records })
    }
}

/// Fills in the header of a batch but for its base offset.
fn seal(
    bytes: &mut [u8],
    records: u32,
    last_offset_delta: u32,
    base_timestamp: i64,
    max_timestamp: i64,
) {
    fill(bytes, records, last_offset_delta, base_timestamp, max_timestamp);
    let checksum = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&checksum.to_be_bytes());
}

/// As [`seal`], without a checksum.
pub(super) fn fill(
    bytes: &mut [u8],
    records: u32,
    last_offset_delta: u32,
    base_timestamp: i64,
    max_timestamp: i64,
) {
    // A batch of 2 GiB and more does not fit the layout; no log takes one nearly as large.
    let length = i32::try_from(bytes.len() - 12).unwrap_or(i32::MAX);
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(8, &length.to_be_bytes());
    put(12, &(-1i32).to_be_bytes());
    put(16, &[2]);
    put(23, &last_offset_delta.to_be_bytes());
    put(27, &base_timestamp.to_be_bytes());
    put(35, &max_timestamp.to_be_bytes());
    put(43, &(-1i64).to_be_bytes());
    put(51, &(-1i16).to_be_bytes());
    put(53, &(-1i32).to_be_bytes());
    put(57, &records.to_be_bytes());
}

/// The length of a key or value written by [`put_blob`].
#[inline(always)]
pub(super) fn blob_len(blob: Option<&[u8]>) -> usize {
    match blob {
        None => varint::len_signed(-1),
        Some(blob) => varint::len_signed(blob.len() as i64) + blob.len(),
    }
}

fn put_blob(blob: Option<&[u8]>, out: &mut Vec<u8>) {
    match blob {
        None => varint::put_signed(-1, out),
        Some(blob) => {
            varint::put_signed(blob.len() as i64, out);
            out.extend_from_slice(blob);
        }
    }
}
