//! Slots: pieces of the area that one holder fills, and that many then read.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;

use crate::limits::BLOCK_BYTES;
use crate::rt::arena::{Area, CLASS_BYTES, Holder};

/// An exclusive slot: a buffer that a socket or file may fill. `len` bytes of it are initialised.
pub struct SlotMut {
    area: Arc<Area>,
    class: usize,
    index: u32,
    /// The number of its [`Holder`].
    holder: AtomicU8,
    len: usize,
}

impl SlotMut {
    /// A free slot of the area, which was counted for its holder.
    pub(super) fn new(area: Arc<Area>, class: usize, index: u32, holder: Holder) -> SlotMut {
        SlotMut { area, class, index, holder: AtomicU8::new(holder as u8), len: 0 }
    }

    /// Bytes that fit, a multiple of the block size.
    pub fn capacity(&self) -> usize {
        CLASS_BYTES[self.class]
    }

    /// Sets how many bytes count as filled. What lies between was zeroed or written earlier by this process.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity());
        self.len = len;
    }

    /// Appends as much of `bytes` as fits; returns how much.
    pub fn append(&mut self, bytes: &[u8]) -> usize {
        let n = bytes.len().min(self.capacity() - self.len);
        let start = self.len;
        self.len += n;
        self[start..].copy_from_slice(&bytes[..n]);
        n
    }

    /// Zeroes what lies between the filled bytes and the next block border, so that direct I/O writes no old bytes.
    pub fn zero_block_tail(&mut self) {
        let len = self.len;
        let padded = len.next_multiple_of(BLOCK_BYTES as usize);
        self.len = padded;
        self[len..].fill(0);
        self.len = len;
    }

    /// Makes the slot immutable and shareable.
    pub fn freeze(self) -> Slot {
        let freed = Freed(self.area.clone());
        Slot { shared: Arc::new(self), freed }
    }

    pub(super) fn start(&self) -> *mut u8 {
        let class = &self.area.classes[self.class];
        let offset = class.offset + self.index as usize * self.capacity();
        debug_assert!(offset + self.capacity() <= self.area.bytes);
        // SAFETY: the offset of a slot lies within the area.
        unsafe { self.area.base.as_ptr().add(offset) }
    }
}

impl Deref for SlotMut {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the memory belongs to this slot alone, is mapped (and so zeroed) from the start, and `len` is
        // within its capacity.
        unsafe { std::slice::from_raw_parts(self.start(), self.len) }
    }
}

impl DerefMut for SlotMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`; `&mut self` makes it exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.len) }
    }
}

impl Drop for SlotMut {
    fn drop(&mut self) {
        let returned = self.area.classes[self.class].free.push(self.index);
        debug_assert!(returned.is_ok(), "a slot came back twice");
        let holder = usize::from(*self.holder.get_mut());
        self.area.held_bytes[holder].fetch_sub(self.capacity(), Ordering::AcqRel);
        // All waiters look again: they wait for different classes and shares.
        self.area.freed.notify(usize::MAX);
    }
}

// SAFETY: the pointer stays valid and in place while the slot lives, moved or not; `bytes_init` bytes are readable.
unsafe impl monoio::buf::IoBuf for SlotMut {
    fn read_ptr(&self) -> *const u8 {
        self.start()
    }
    fn bytes_init(&self) -> usize {
        self.len
    }
}

// SAFETY: as above, and `bytes_total` bytes are writable by the one owner.
unsafe impl monoio::buf::IoBufMut for SlotMut {
    fn write_ptr(&mut self) -> *mut u8 {
        self.start()
    }
    fn bytes_total(&mut self) -> usize {
        self.capacity()
    }
    unsafe fn set_init(&mut self, pos: usize) {
        self.len = self.len.max(pos);
    }
}

/// An immutable, counted slot. Clones share the memory.
#[derive(Clone)]
pub struct Slot {
    // Dropped first: who is told by `freed` finds it free, or hot and nobody's.
    shared: Arc<SlotMut>,
    freed: Freed,
}

/// Tells those who wait for memory that a slot is used by one less.
#[derive(Clone)]
struct Freed(Arc<Area>);

impl Drop for Freed {
    fn drop(&mut self) {
        self.0.freed.notify(usize::MAX);
    }
}

impl Slot {
    /// The number of its size class.
    pub(super) fn class(&self) -> usize {
        self.shared.class
    }

    /// Whether nobody else holds it.
    pub(super) fn is_sole(&self) -> bool {
        Arc::strong_count(&self.shared) == 1
    }

    /// Whether it is counted for this holder.
    pub(super) fn is_of(&self, holder: Holder) -> bool {
        self.shared.holder.load(Ordering::Acquire) == holder as u8
    }

    /// Counts it for another holder from now on, if that one has room for it. To be called by its only owner, who then tells
    /// those who wait.
    pub(super) fn pass_to(&self, holder: Holder) -> bool {
        let (area, bytes) = (&self.freed.0, self.shared.capacity());
        let claimed = area.claim(bytes, holder);
        if claimed {
            let before = self.shared.holder.swap(holder as u8, Ordering::AcqRel);
            area.held_bytes[usize::from(before)].fetch_sub(bytes, Ordering::AcqRel);
        }
        claimed
    }

    /// The filled bytes as `Bytes` that keep the slot alive. No copy.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }

    /// The filled bytes padded to whole blocks, for direct I/O. The padding was zeroed before freezing.
    pub fn blocks(self) -> SlotBlocks {
        SlotBlocks(self)
    }
}

impl Deref for Slot {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.shared
    }
}

impl AsRef<[u8]> for Slot {
    fn as_ref(&self) -> &[u8] {
        &self.shared
    }
}

/// A frozen slot seen in whole blocks.
pub struct SlotBlocks(Slot);

// SAFETY: the pointer stays valid while the slot lives; the padding up to the next block lies within the slot, whose
// capacity is a multiple of the block size, and all its memory is initialised.
unsafe impl monoio::buf::IoBuf for SlotBlocks {
    fn read_ptr(&self) -> *const u8 {
        self.0.shared.start()
    }
    fn bytes_init(&self) -> usize {
        self.0.len().next_multiple_of(BLOCK_BYTES as usize)
    }
}
