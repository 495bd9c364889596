//! Piece buffers: page-aligned memory that sockets and files read into and write from without a copy.
//!
//! A [`Pool`] hands out at most a fixed number of buffers of one size, and they come back when dropped: memory of a
//! transfer is bounded by its pool whatever the object's size. Buffers may cross threads.

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use event_listener::{Event, Listener};

/// Size of a huge page: buffers start at such a border so that the kernel may back them with some.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// A bounded set of reusable buffers.
#[derive(Clone)]
pub struct Pool(Arc<Shelf>);

struct Shelf {
    capacity_bytes: usize,
    count_max: usize,
    made: AtomicUsize,
    free: ArrayQueue<Memory>,
    returned: Event,
}

impl Pool {
    /// A pool of at most `count_max` buffers of `capacity_bytes` each. Memory is taken when first needed.
    pub fn new(count_max: usize, capacity_bytes: usize) -> Pool {
        Pool(Arc::new(Shelf {
            capacity_bytes,
            count_max,
            made: AtomicUsize::new(0),
            free: ArrayQueue::new(count_max.max(1)),
            returned: Event::new(),
        }))
    }

    /// A free buffer; waits until one comes back when all are out.
    pub async fn take(&self) -> io::Result<Buffer> {
        loop {
            let returned = self.0.returned.listen();
            if let Some(buffer) = self.try_take()? {
                return Ok(buffer);
            }
            returned.await;
        }
    }

    /// A free buffer; blocks this thread at most for `patience` when all are out.
    pub fn take_blocking(&self, patience: Duration) -> io::Result<Option<Buffer>> {
        let deadline = Instant::now() + patience;
        loop {
            let returned = self.0.returned.listen();
            let taken = self.try_take()?;
            if taken.is_some() || returned.wait_deadline(deadline).is_none() {
                return Ok(taken);
            }
        }
    }

    fn try_take(&self) -> io::Result<Option<Buffer>> {
        if let Some(memory) = self.0.free.pop() {
            return Ok(Some(self.dress(memory)));
        }
        let count_max = self.0.count_max;
        let grow = |made: usize| (made < count_max).then_some(made + 1);
        if self.0.made.fetch_update(Ordering::AcqRel, Ordering::Acquire, grow).is_err() {
            return Ok(None);
        }
        Ok(Some(self.dress(Memory::map(self.0.capacity_bytes)?)))
    }

    fn dress(&self, memory: Memory) -> Buffer {
        Buffer { memory: Some(memory), len: 0, home: self.0.clone() }
    }
}

/// What a socket can fill.
pub trait Fill: monoio::buf::IoBuf + monoio::buf::IoBufMut {}

impl<T: monoio::buf::IoBuf + monoio::buf::IoBufMut> Fill for T {}

/// One buffer. The first `len` bytes count as filled; all of its memory is initialised at all times.
pub struct Buffer {
    /// `None` only while dropping.
    memory: Option<Memory>,
    len: usize,
    home: Arc<Shelf>,
}

impl Buffer {
    /// Bytes that fit.
    pub fn capacity(&self) -> usize {
        self.memory().bytes
    }

    /// Sets how many bytes count as filled.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity());
        self.len = len;
    }

    fn memory(&self) -> &Memory {
        self.memory.as_ref().expect("present until dropped")
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping is exclusive to this buffer, initialised, and at least `len` bytes long.
        unsafe { std::slice::from_raw_parts(self.memory().start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`; `&mut self` makes it exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.memory().start.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            // There is room for every buffer that was ever made.
            let _ = self.home.free.push(memory);
            self.home.returned.notify(1);
        }
    }
}

// SAFETY: the mapping stays in place while the buffer lives, moved or not, and is initialised to its full size.
unsafe impl monoio::buf::IoBuf for Buffer {
    fn read_ptr(&self) -> *const u8 {
        self.memory().start.as_ptr()
    }
    fn bytes_init(&self) -> usize {
        self.len
    }
}

// SAFETY: as above; the mapping is writable and belongs to this buffer alone.
unsafe impl monoio::buf::IoBufMut for Buffer {
    fn write_ptr(&mut self) -> *mut u8 {
        self.memory().start.as_ptr()
    }
    fn bytes_total(&mut self) -> usize {
        self.capacity()
    }
    unsafe fn set_init(&mut self, pos: usize) {
        self.len = self.len.max(pos);
    }
}

/// An anonymous mapping, zeroed by the kernel.
struct Memory {
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is owned and not tied to a thread.
unsafe impl Send for Memory {}

impl Memory {
    fn map(bytes: usize) -> io::Result<Memory> {
        let bytes = bytes.next_multiple_of(4096);
        let mapped = bytes + HUGE_PAGE_BYTES;
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh private anonymous mapping; no existing memory is affected.
        let raw = unsafe { libc::mmap(std::ptr::null_mut(), mapped, protection, flags, -1, 0) };
        if raw == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let head = (raw as usize).next_multiple_of(HUGE_PAGE_BYTES) - raw as usize;
        // SAFETY: the head and the tail lie within the mapping just made and outside of what is kept.
        let start = unsafe {
            let start = raw.byte_add(head);
            if head > 0 {
                libc::munmap(raw, head);
            }
            libc::munmap(start.byte_add(bytes), HUGE_PAGE_BYTES - head);
            libc::madvise(start, bytes, libc::MADV_HUGEPAGE);
            start
        };
        Ok(Memory { start: NonNull::new(start.cast()).expect("a mapping is never at zero"), bytes })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` kept, and nobody else refers to it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_reused_and_bounded() {
        let pool = Pool::new(2, 10_000);
        let mut first = pool.try_take().expect("memory").expect("free");
        assert_eq!(first.capacity(), 12_288);
        first.set_len(3);
        first.copy_from_slice(b"abc");
        let second = pool.try_take().expect("memory").expect("free");
        assert!(pool.try_take().expect("no error").is_none());
        drop(first);
        assert!(pool.try_take().expect("memory").expect("free").is_empty(), "a reused buffer counts as empty");
        drop(pool);
        drop(second);
    }
}
