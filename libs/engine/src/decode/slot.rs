//! Slots: the predicted bytes between two values.

/// The slot of a key that was not stored. It predicts nothing.
pub(super) const LOST: u32 = 1;

/// The bytes between two values, and the slots that followed.
#[derive(Debug)]
pub(super) struct Slot {
    /// The first 16 bytes, and a mask of those that the slot has.
    head: u128,
    mask: u128,
    pub(super) bytes: Box<[u8]>,
    pub(super) column: u32,
    /// The slot that followed last, and the one before that.
    pub(super) next: u32,
    pub(super) other: u32,
}

impl Slot {
    pub(super) fn new(bytes: &[u8], column: u32) -> Self {
        let mut head = [0; 16];
        let mut mask = [0; 16];
        for (at, &byte) in bytes.iter().take(16).enumerate() {
            head[at] = byte;
            mask[at] = 0xff;
        }
        Self {
            head: u128::from_le_bytes(head),
            mask: u128::from_le_bytes(mask),
            bytes: bytes.into(),
            column,
            next: LOST,
            other: LOST,
        }
    }

    /// Whether `bytes` continue with this slot at `at`.
    #[inline]
    pub(super) fn fits(&self, bytes: &[u8], at: usize) -> bool {
        let rest = &bytes[at..];
        match rest.first_chunk() {
            Some(&window) => {
                (u128::from_le_bytes(window) ^ self.head) & self.mask == 0
                    && (self.bytes.len() <= 16 || rest.starts_with(&self.bytes))
            }
            None => rest.starts_with(&self.bytes),
        }
    }
}
