//! Where the next page of a scan begins.

use crate::error::Error;

/// `1 | length of the signature (u16, big-endian) | signature of the key's types | first key of the
/// next page`
pub(super) struct PageToken<'a> {
    pub signature: &'a [u8],
    pub key: &'a [u8],
}

impl<'a> PageToken<'a> {
    const VERSION: u8 = 1;

    pub(super) fn encode(&self) -> Vec<u8> {
        // No key has so many columns that its signature is longer. A token cut short is refused.
        let length = u16::try_from(self.signature.len()).unwrap_or(u16::MAX);
        [&[Self::VERSION], length.to_be_bytes().as_slice(), self.signature, self.key].concat()
    }

    pub(super) fn decode(bytes: &'a [u8]) -> Result<Self, Error> {
        let (head, rest) = bytes.split_first_chunk::<3>().ok_or(Error::PageToken)?;
        let length = usize::from(u16::from_be_bytes([head[1], head[2]]));
        if head[0] != Self::VERSION || rest.len() < length {
            return Err(Error::PageToken);
        }
        let (signature, key) = rest.split_at(length);
        Ok(Self { signature, key })
    }
}
