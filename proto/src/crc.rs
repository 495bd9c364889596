//! CRC32 (IEEE) of a whole object from the CRC32s of its pieces, without reading a byte again.
//!
//! Pure. The same sum that a piece carries over the wire and on disk is what the backend verifies in the end.

/// The CRC32 of pieces put together in order.
#[derive(Clone, Debug, Default)]
pub struct WholeCrc {
    hasher: crc32fast::Hasher,
    length_bytes: u64,
}

impl WholeCrc {
    /// The CRC32 of nothing.
    pub fn new() -> WholeCrc {
        WholeCrc::default()
    }

    /// Appends a piece of `length_bytes` with this CRC32.
    pub fn append(&mut self, crc32: u32, length_bytes: u64) {
        self.hasher.combine(&crc32fast::Hasher::new_with_initial_len(crc32, length_bytes));
        self.length_bytes += length_bytes;
    }

    /// The CRC32 of all that was appended.
    pub fn value(&self) -> u32 {
        self.hasher.clone().finalize()
    }

    /// Bytes of all that was appended.
    pub fn length_bytes(&self) -> u64 {
        self.length_bytes
    }
}

/// The CRC32 of an object of `object_bytes` from the CRC32s of its pieces of `piece_bytes`, in order.
pub fn whole_crc32(object_bytes: u64, piece_bytes: u32, piece_crcs: impl IntoIterator<Item = u32>) -> u32 {
    let mut whole = WholeCrc::new();
    for crc32 in piece_crcs {
        let rest = object_bytes.saturating_sub(whole.length_bytes());
        whole.append(crc32, rest.min(u64::from(piece_bytes)));
    }
    whole.value()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_give_the_sum_of_the_whole_at_every_border() {
        for length in [0_u16, 1, 99, 100, 101, 200, 999] {
            let object: Vec<u8> = (0..length).map(|index| (index * 7 % 251) as u8).collect();
            let crcs = object.chunks(100).map(crc32fast::hash);
            assert_eq!(whole_crc32(object.len() as u64, 100, crcs), crc32fast::hash(&object), "{length} bytes");
        }
    }
}
