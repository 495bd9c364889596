//! Memory for direct I/O outside the arena: bytes that begin at the border of a block.

use std::ops::{Deref, DerefMut};

use crate::limits::BLOCK_BYTES;

const ALIGNMENT: usize = BLOCK_BYTES as usize;

/// Zeroed bytes, whole blocks of them, at a block's border.
pub struct AlignedBytes {
    memory: Box<[u8]>,
    start: usize,
    length: usize,
}

impl AlignedBytes {
    /// At least `length` bytes, made up to whole blocks.
    pub fn zeroed(length: usize) -> AlignedBytes {
        let length = length.next_multiple_of(ALIGNMENT);
        let memory = vec![0; length + ALIGNMENT].into_boxed_slice();
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        assert!(start < ALIGNMENT, "bytes can be aligned");
        AlignedBytes { memory, start, length }
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}
