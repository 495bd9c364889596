//! Payloads that look random, never compress, and can be made and checked at any offset.
//!
//! A payload is a seed and a length: nothing is kept in memory, and any range of any object can be verified without
//! having the rest. Two payloads of different seeds differ in every block.

use std::io::{self, Read};
use std::ops::Range;

/// Bytes of a piece of the peers under test.
pub const PIECE: u64 = dfstore_peer::limits::PIECE_BYTES as u64;

/// Bytes that come from one state of the generator.
const BLOCK_BYTES: u64 = 4096;

/// A reproducible content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// Tells contents apart.
    pub seed: u64,
    /// Length in bytes.
    pub length: u64,
}

impl Payload {
    /// The content of this seed and length.
    pub fn new(seed: u64, length: u64) -> Payload {
        Payload { seed, length }
    }

    /// All of it, in memory.
    pub fn bytes(&self) -> Vec<u8> {
        self.range(0..self.length)
    }

    /// Some of it, in memory. The range lies within the payload.
    pub fn range(&self, range: Range<u64>) -> Vec<u8> {
        assert!(range.start <= range.end && range.end <= self.length, "{range:?} of {}", self.length);
        let length = usize::try_from(range.end - range.start).expect("a range held in memory fits a usize");
        let mut bytes = vec![0; length];
        self.fill(range.start, &mut bytes);
        bytes
    }

    /// Fills `bytes` with what stands at `offset`.
    pub fn fill(&self, offset: u64, bytes: &mut [u8]) {
        let (mut offset, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let (block, start) = (offset / BLOCK_BYTES, offset % BLOCK_BYTES);
            let start = usize::try_from(start).expect("below the block size");
            let count = rest.len().min(4096 - start);
            let (now, later) = rest.split_at_mut(count);
            fill_block(self.seed, block, start, now);
            offset += count as u64;
            rest = later;
        }
    }

    /// Where `bytes`, found at `offset`, first differ from this payload; `None` when they are right.
    pub fn first_difference(&self, offset: u64, bytes: &[u8]) -> Option<u64> {
        let mut expected = vec![0; bytes.len().min(1 << 20)];
        let mut at = offset;
        for chunk in bytes.chunks(1 << 20) {
            let expected = &mut expected[..chunk.len()];
            self.fill(at, expected);
            if expected != chunk {
                let index = expected.iter().zip(chunk).position(|(want, have)| want != have)?;
                return Some(at + index as u64);
            }
            at += chunk.len() as u64;
        }
        None
    }

    /// CRC32 (IEEE) of all of it.
    pub fn crc32(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        let mut buffer = vec![0; 1 << 16];
        let mut reader = self.reader();
        while let Ok(count @ 1..) = reader.read(&mut buffer) {
            hasher.update(&buffer[..count]);
        }
        hasher.finalize()
    }

    /// Reads it from the start to the end.
    pub fn reader(&self) -> PayloadReader {
        PayloadReader { payload: *self, offset: 0 }
    }
}

/// Reads a [`Payload`] from the start to the end.
#[derive(Clone, Debug)]
pub struct PayloadReader {
    payload: Payload,
    offset: u64,
}

impl Read for PayloadReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.payload.length - self.offset;
        let count = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.payload.fill(self.offset, &mut buffer[..count]);
        self.offset += count as u64;
        Ok(count)
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): one addition and a mix per word, so any word can be reached directly.
fn word(seed: u64, block: u64, index: u64) -> u64 {
    let position = block.wrapping_mul(BLOCK_BYTES / 8).wrapping_add(index).wrapping_add(1);
    let mut word = seed.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(position.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

fn fill_block(seed: u64, block: u64, start: usize, bytes: &mut [u8]) {
    if start.is_multiple_of(8) {
        for (index, chunk) in bytes.chunks_mut(8).enumerate() {
            let word = word(seed, block, (start / 8 + index) as u64).to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
        return;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        let at = start + index;
        *byte = word(seed, block, (at / 8) as u64).to_le_bytes()[at % 8];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_agree_with_the_whole() {
        let payload = Payload::new(7, 20_000);
        let whole = payload.bytes();
        for (start, end) in [(0, 20_000), (1, 4097), (4095, 4096), (4096, 8192), (8191, 19_999), (5, 5)] {
            let part: &[u8] = &whole[start..end];
            assert_eq!(payload.range(start as u64..end as u64), part, "{start}..{end}");
            assert_eq!(payload.first_difference(start as u64, part), None);
        }
        let mut read = Vec::new();
        payload.reader().read_to_end(&mut read).expect("memory");
        assert_eq!(read, whole);
        assert_eq!(payload.crc32(), crc32fast::hash(&whole));
    }

    #[test]
    fn finds_the_first_wrong_byte() {
        let payload = Payload::new(1, 3 << 20);
        let mut bytes = payload.range(100..payload.length);
        bytes[2_000_000] ^= 1;
        bytes[2_100_000] ^= 1;
        assert_eq!(payload.first_difference(100, &bytes), Some(2_000_100));
    }

    #[test]
    fn seeds_give_different_bytes() {
        assert_ne!(Payload::new(1, 64).bytes(), Payload::new(2, 64).bytes());
    }
}
