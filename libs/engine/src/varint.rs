//! Variable-length integers: LEB128, least significant group first, and zigzag for signed ones.

pub(crate) fn put(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn put_wide(mut value: u128, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn take(bytes: &mut &[u8]) -> Option<u64> {
    u64::try_from(take_wide(bytes)?).ok()
}

pub(crate) fn take_wide(bytes: &mut &[u8]) -> Option<u128> {
    let mut value = 0_u128;
    for shift in (0..).step_by(7) {
        let byte = take_byte(bytes)?;
        let group = u128::from(byte & 0x7f);
        if shift > 126 || (group << shift) >> shift != group {
            return None;
        }
        value |= group << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

pub(crate) fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

pub(crate) fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

pub(crate) fn zigzag_wide(value: i128) -> u128 {
    ((value << 1) ^ (value >> 127)) as u128
}

pub(crate) fn unzigzag_wide(value: u128) -> i128 {
    (value >> 1) as i128 ^ -((value & 1) as i128)
}

pub(crate) fn take_byte(bytes: &mut &[u8]) -> Option<u8> {
    let (&first, rest) = bytes.split_first()?;
    *bytes = rest;
    Some(first)
}

pub(crate) fn take_bytes<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

pub(crate) fn take_array<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_reads_back() {
        let mut values = vec![0, 1, u128::MAX];
        values.extend((0..128).flat_map(|bit| [1 << bit, (1 << bit) - 1]));
        for value in values {
            let mut bytes = Vec::new();
            put_wide(value, &mut bytes);
            assert_eq!(take_wide(&mut &bytes[..]), Some(value));
            assert_eq!(take(&mut &bytes[..]), u64::try_from(value).ok());
            assert_eq!(take_wide(&mut &bytes[..bytes.len() - 1]), None);
            let signed = value as i128;
            assert_eq!(unzigzag_wide(zigzag_wide(signed)), signed);
            assert_eq!(unzigzag(zigzag(signed as i64)), signed as i64);
        }
        assert_eq!(take_wide(&mut &[0x80; 30][..]), None);
    }
}
