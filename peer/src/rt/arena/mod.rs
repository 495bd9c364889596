//! The piece arena: one memory area with a fixed budget that every piece buffer of the process comes from.
//!
//! The area is anonymous memory, 2 MiB aligned and advised to use huge pages (plain 4 KiB pages cost a third of
//! the direct-I/O rate). It is cut into slots of a few size classes. A [`SlotMut`] is exclusive: sockets and files
//! fill it. Freezing it gives a [`Slot`]: immutable, counted, `Send`; the same memory is then written to disk, sent
//! to clients and handed to the backend without a copy. When the last holder drops it the slot is free again.
//!
//! Slots are counted by [`Holder`], each with a share of the area, so that no kind of work can starve another.
//! Memory is touched on first use only: an idle peer costs little. What nobody needs now keeps bytes that may be read
//! again soon ([`hot`]); it is given up as soon as somebody asks for memory.

mod hot;
mod slot;

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_queue::ArrayQueue;
use event_listener::Event;

pub use hot::Hot;
pub use slot::{Slot, SlotBlocks, SlotMut};

use crate::limits::{BLOCK_BYTES, PIECE_BYTES};
use hot::HotTier;

const HUGE_PAGE_BYTES: usize = 2 << 20;
/// Slot sizes in bytes, ascending. The last one is a whole piece.
const CLASS_BYTES: [usize; 4] = [BLOCK_BYTES as usize, 64 << 10, 512 << 10, PIECE_BYTES as usize];
/// Classes of which all slots together are far less than any share.
const SMALL_CLASSES: usize = 2;
/// Share of the area each class but the last gets, as a divisor; the last gets the rest.
const CLASS_DIVISOR: [usize; 3] = [64, 16, 8];
/// Slots that reading ahead leaves to those who need a piece now.
const SLOTS_FOR_NOW: usize = 2;
/// Smallest area: below it too few whole pieces fit for the holders' shares.
pub const ARENA_BYTES_MIN: usize = 48 << 20;

const _: () = assert!(CLASS_BYTES[3] == PIECE_BYTES as usize && CLASS_BYTES[3].is_multiple_of(HUGE_PAGE_BYTES));

/// Who holds a slot. The shares (in eighths) add up to the whole area, so a holder that stays within its share
/// never takes what another one is owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    /// Pieces read from disk on their way to a client, and those that stay in memory for the next reader.
    Serve = 0,
    /// Pieces on their way from the backend or a peer to the disk and to the clients that wait for them.
    Fetch = 1,
    /// Pieces on their way from a client to the disk.
    Ingest = 2,
    /// Pieces read from disk on their way to the backend, and scrubbing.
    WriteBack = 3,
}

impl Holder {
    /// All holders, in the order of their numbers.
    pub const ALL: [Holder; 4] = [Holder::Serve, Holder::Fetch, Holder::Ingest, Holder::WriteBack];
    const SHARE_EIGHTHS: [usize; 4] = [3, 2, 2, 1];

    /// The name used in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Holder::Serve => "serve",
            Holder::Fetch => "fetch",
            Holder::Ingest => "ingest",
            Holder::WriteBack => "writeback",
        }
    }
}

/// The area. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct Arena(Arc<Area>);

struct Area {
    base: NonNull<u8>,
    bytes: usize,
    classes: [Class; 4],
    held_bytes: [AtomicUsize; 4],
    share_bytes: [usize; 4],
    freed: Event,
    hot: HotTier,
    keeps_hot: bool,
    /// Takers that wait now, by holder and smallest class that would do.
    waiting: [[AtomicUsize; 4]; 4],
}

struct Class {
    offset: usize,
    /// Free slots that were used before: their memory is there. They go first, because the first touch of a piece's
    /// memory costs more than reading the piece from disk (10 ms for 4 MiB on a small virtual machine).
    free: ArrayQueue<u32>,
    /// Slots that nobody has touched yet.
    fresh: ArrayQueue<u32>,
}

// SAFETY: `base` points to memory that lives as long as `Area`; every byte of it is reachable through at most one
// `SlotMut`, because an index is in exactly one of `free`, `fresh` and one live slot.
unsafe impl Send for Area {}
// SAFETY: as above; the shared parts are atomics and lock-free queues.
unsafe impl Sync for Area {}

impl Arena {
    /// Maps an area of `bytes` (rounded down to whole huge pages).
    pub fn new(bytes: usize) -> std::io::Result<Arena> {
        Arena::with_hot(bytes, true)
    }

    /// As [`new`](Self::new). `keeps_hot`: what is read may stay in memory.
    pub fn with_hot(bytes: usize, keeps_hot: bool) -> std::io::Result<Arena> {
        let bytes = bytes / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
        assert!(bytes >= ARENA_BYTES_MIN, "arena of {bytes} bytes: the configuration checks the minimum");
        let base = map_huge(bytes)?;
        let mut offset = bytes;
        let mut classes = Vec::with_capacity(CLASS_BYTES.len());
        // The small classes lie at the end, so that whole pieces stay aligned to huge pages.
        for (class, divisor) in CLASS_DIVISOR.iter().enumerate() {
            let count = bytes / divisor / CLASS_BYTES[class];
            offset -= count * CLASS_BYTES[class];
            classes.push(Class::new(offset, count));
        }
        classes.push(Class::new(0, offset / CLASS_BYTES[3]));
        let classes: [Class; 4] = classes.try_into().unwrap_or_else(|_| unreachable!("four classes"));
        let slots = [0, 1, 2, 3].map(|class: usize| classes[class].free_count());
        Ok(Arena(Arc::new(Area {
            base,
            bytes,
            classes,
            held_bytes: Default::default(),
            share_bytes: Holder::SHARE_EIGHTHS.map(|eighths| bytes / 8 * eighths),
            freed: Event::new(),
            hot: HotTier::new(&slots),
            keeps_hot,
            waiting: Default::default(),
        })))
    }

    /// A slot for `len` bytes (at most a piece), or `None` when the holder's share or the area is used up, or when
    /// others wait for the same: what they are owed is not taken in passing.
    pub fn try_take(&self, len: usize, holder: Holder) -> Option<SlotMut> {
        let waiting = &self.0.waiting[holder as usize][class_for(len)];
        if waiting.load(Ordering::Acquire) > 0 { None } else { self.take_now(len, holder) }
    }

    /// As [`try_take`](Self::try_take), but waits until there is one; who came first looks first. Callers bound the
    /// wait.
    pub async fn take(&self, len: usize, holder: Holder) -> SlotMut {
        if let Some(slot) = self.try_take(len, holder) {
            return slot;
        }
        let mut freed = self.0.freed.listen();
        let place = Place::behind(&self.0, holder, class_for(len));
        // Behind others, the first look comes after the next slot is freed, or the next of them has left.
        let mut looks = place.is_first;
        let mut has_detached = false;
        loop {
            if looks && let Some(slot) = self.take_now(len, holder) {
                return slot;
            }
            if looks && !has_detached && holder == Holder::Serve {
                has_detached = true;
                self.0.hot.detach(class_for(len));
            }
            freed.await;
            freed = self.0.freed.listen();
            looks = true;
        }
    }

    fn take_now(&self, len: usize, holder: Holder) -> Option<SlotMut> {
        let area = &self.0;
        for (class, bytes) in CLASS_BYTES.into_iter().enumerate().skip(class_for(len)) {
            if !area.claim(bytes, holder) {
                continue;
            }
            loop {
                if let Some(index) = area.classes[class].take() {
                    return Some(SlotMut::new(area.clone(), class, index, holder));
                }
                if !area.hot.shed(class) {
                    break;
                }
            }
            area.held_bytes[holder as usize].fetch_sub(bytes, Ordering::AcqRel);
        }
        None
    }

    /// Keeps the bytes of a piece in memory as long as nobody needs the room, for the next who reads them. What others than
    /// those who serve have taken is kept only when they are done with it: they would fill a share that is not theirs. Small
    /// ones cannot.
    pub fn keep_hot(&self, hot: &Hot, slot: Slot) {
        if !self.0.keeps_hot {
            return;
        }
        let may_pass = slot.is_sole() || slot.class() < SMALL_CLASSES;
        if slot.is_of(Holder::Serve) || may_pass && slot.pass_to(Holder::Serve) {
            self.0.hot.keep(hot, slot);
            // Who waits may have it at once, or what was taken for it before.
            self.0.freed.notify(usize::MAX);
        }
    }

    /// Bytes that stay in memory only in case they are read again.
    pub fn idle_hot_bytes(&self) -> usize {
        self.0.hot.idle_bytes()
    }

    /// Whether this many more slots of `len` bytes could be taken now, those among them that are merely hot.
    pub fn has_room(&self, len: usize, holder: Holder, slots: usize) -> bool {
        let (area, class) = (&self.0, class_for(len));
        let free: usize = area.classes[class..].iter().map(Class::free_count).sum();
        let held = area.held_bytes[holder as usize].load(Ordering::Acquire);
        let missing = (held + slots * CLASS_BYTES[class]).saturating_sub(area.share_bytes[holder as usize]);
        (free >= slots || area.hot.has_idle(class, slots - free))
            && (missing == 0 || holder == Holder::Serve && area.hot.has_idle_bytes(missing))
    }

    /// Whether a piece of `len` bytes that nobody needs yet may take memory of those who serve, or keep hot memory from
    /// becoming free: not when others wait for some, and not the last slots. Those are for pieces that are needed now; else
    /// all of them might come to hold pieces of later use, each behind one that finds no memory.
    pub fn may_read_ahead(&self, len: usize) -> bool {
        let waiting = &self.0.waiting[Holder::Serve as usize][class_for(len)];
        waiting.load(Ordering::Acquire) == 0 && self.has_room(len, Holder::Serve, 1 + SLOTS_FOR_NOW)
    }

    /// Bytes of the whole area.
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// Bytes a holder uses now. Zero for every holder when the process is at rest.
    pub fn held_bytes(&self, holder: Holder) -> usize {
        let held = self.0.held_bytes[holder as usize].load(Ordering::Acquire);
        if holder == Holder::Serve { held.saturating_sub(self.idle_hot_bytes()) } else { held }
    }
}

impl Area {
    /// Counts so many bytes for a holder, if its share has room for them or what is hot makes room.
    fn claim(&self, bytes: usize, holder: Holder) -> bool {
        let (held, share) = (&self.held_bytes[holder as usize], self.share_bytes[holder as usize]);
        // The largest first: one of them may do.
        let mut class = CLASS_BYTES.len() - 1;
        loop {
            let missing = (held.fetch_add(bytes, Ordering::AcqRel) + bytes).saturating_sub(share);
            if missing == 0 {
                return true;
            }
            held.fetch_sub(bytes, Ordering::AcqRel);
            if holder != Holder::Serve || !self.hot.has_idle_bytes(missing) {
                return false;
            }
            while !self.hot.shed(class) {
                let Some(smaller) = class.checked_sub(1) else { return false };
                class = smaller;
            }
        }
    }
}

/// The smallest class that holds `len` bytes.
fn class_for(len: usize) -> usize {
    CLASS_BYTES.iter().position(|bytes| *bytes >= len).expect("a slot is at most a piece")
}

/// A place among those who wait.
struct Place<'a> {
    area: &'a Area,
    holder: Holder,
    class: usize,
    is_first: bool,
}

impl Place<'_> {
    fn behind(area: &Area, holder: Holder, class: usize) -> Place<'_> {
        let before = area.waiting[holder as usize][class].fetch_add(1, Ordering::AcqRel);
        Place { area, holder, class, is_first: before == 0 }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.area.waiting[self.holder as usize][self.class].fetch_sub(1, Ordering::AcqRel);
        // Whoever queued behind this one without a look of its own looks now: nothing free is overlooked.
        self.area.freed.notify(usize::MAX);
    }
}

impl Class {
    fn new(offset: usize, count: usize) -> Class {
        let (free, fresh) = (ArrayQueue::new(count.max(1)), ArrayQueue::new(count.max(1)));
        for index in 0..count {
            let _ = fresh.push(u32::try_from(index).expect("slots are counted in u32"));
        }
        Class { offset, free, fresh }
    }

    fn free_count(&self) -> usize {
        self.free.len() + self.fresh.len()
    }

    fn take(&self) -> Option<u32> {
        self.free.pop().or_else(|| self.fresh.pop())
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: `base` and `bytes` are what `map_huge` mapped, and no slot outlives the area it counts.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Anonymous memory of `bytes` at a 2 MiB border, advised to use huge pages.
fn map_huge(bytes: usize) -> std::io::Result<NonNull<u8>> {
    let mapped = bytes + HUGE_PAGE_BYTES;
    // SAFETY: a fresh private anonymous mapping; no existing memory is affected.
    let raw = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            mapped,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if raw == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error());
    }
    let start = raw as usize;
    let aligned = start.next_multiple_of(HUGE_PAGE_BYTES);
    // SAFETY: both ranges lie within the mapping just made and outside the part that is kept.
    unsafe {
        if aligned > start {
            libc::munmap(raw, aligned - start);
        }
        let tail = start + mapped - (aligned + bytes);
        if tail > 0 {
            libc::munmap((aligned + bytes) as *mut libc::c_void, tail);
        }
        libc::madvise(aligned as *mut libc::c_void, bytes, libc::MADV_HUGEPAGE);
    }
    Ok(NonNull::new(aligned as *mut u8).expect("a mapping is never at zero"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena() -> Arena {
        Arena::new(64 << 20).expect("64 MiB can be mapped")
    }

    #[test]
    fn holders_stay_within_their_share_and_give_all_back() {
        let arena = arena();
        let mut slots = Vec::new();
        while let Some(slot) = arena.try_take(PIECE_BYTES as usize, Holder::Ingest) {
            slots.push(slot);
        }
        assert!(arena.held_bytes(Holder::Ingest) <= arena.bytes() / 4);
        assert!(arena.try_take(PIECE_BYTES as usize, Holder::Serve).is_some(), "another holder's share is untouched");
        drop(slots);
        assert_eq!(arena.held_bytes(Holder::Ingest), 0);
    }

    #[test]
    fn who_waits_comes_before_who_passes_by() {
        let arena = arena();
        let len = PIECE_BYTES as usize;
        let mut slots: Vec<SlotMut> = std::iter::from_fn(|| arena.try_take(len, Holder::Serve)).collect();
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let mut first = std::pin::pin!(arena.take(len, Holder::Serve));
        let mut second = Box::pin(arena.take(len, Holder::Serve));
        assert!(first.as_mut().poll(&mut cx).is_pending());
        assert!(second.as_mut().poll(&mut cx).is_pending());
        drop(slots.pop());
        assert!(arena.try_take(len, Holder::Serve).is_none(), "two others wait");
        assert!(arena.try_take(len, Holder::Fetch).is_some(), "but not for this share");
        let mut third = std::pin::pin!(arena.take(len, Holder::Serve));
        assert!(third.as_mut().poll(&mut cx).is_pending());
        let given = first.as_mut().poll(&mut cx);
        assert!(given.is_ready());
        drop(given);
        drop(second);
        let given = third.as_mut().poll(&mut cx);
        assert!(given.is_ready(), "one who gives up is passed over");
        assert!(arena.try_take(len, Holder::Serve).is_none(), "the share is used up again");
        drop((given, slots));
        assert!(arena.try_take(len, Holder::Serve).is_some());
    }

    #[test]
    fn live_slots_never_overlap() {
        let arena = arena();
        let sizes = [1, 4096, 4097, 65536, 100_000, 512 << 10, PIECE_BYTES as usize];
        let slots: Vec<SlotMut> = sizes.iter().flat_map(|len| arena.try_take(*len, Holder::Serve)).collect();
        let mut ranges: Vec<(usize, usize)> =
            slots.iter().map(|s| (s.start() as usize, s.start() as usize + s.capacity())).collect();
        ranges.sort_unstable();
        assert_eq!(ranges.len(), sizes.len());
        assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0));
        assert!(ranges.iter().all(|(start, _)| start % BLOCK_BYTES as usize == 0));
    }

    #[test]
    fn block_tail_is_zeroed() {
        let arena = arena();
        let mut slot = arena.try_take(8192, Holder::Ingest).expect("free");
        slot.set_len(8192);
        slot.fill(0xff);
        slot.set_len(4100);
        slot.zero_block_tail();
        slot.set_len(8192);
        assert_eq!(&slot[4098..4102], &[0xff, 0xff, 0, 0]);
        assert!(slot[4100..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn frozen_bytes_keep_the_slot() {
        let arena = arena();
        let mut slot = arena.try_take(10, Holder::Serve).expect("free");
        slot.append(b"hello");
        let bytes = slot.freeze().into_bytes().slice(1..3);
        assert_eq!(&bytes[..], b"el");
        assert_eq!(arena.held_bytes(Holder::Serve), 4096);
        drop(bytes);
        assert_eq!(arena.held_bytes(Holder::Serve), 0);
    }
}
