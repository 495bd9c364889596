//! Which blocks of one piece file are in use: a bitmap that several threads change without a lock.
//!
//! A set bit is a block in use. A claim sets bits that were clear, a release clears bits that were set; a word is
//! changed by compare-and-swap, so two claims never get the same block. Any thread may release, which is what lets
//! the last lease of a piece give its blocks back wherever it is dropped. Pure memory, no I/O.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const WORD_BITS: u32 = 64;

/// The bitmap of one file.
pub struct Bitmap {
    words: Box<[AtomicU64]>,
    block_count: u32,
    used: AtomicU32,
    /// No run of free blocks is longer than this, as far as the last scan saw. A release resets it.
    run_bound: AtomicU32,
}

/// A run of free blocks that a scan found; it may be gone when it is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Run {
    /// Number of blocks; first, so that runs sort by it.
    pub count: u32,
    /// First block.
    pub block: u32,
}

impl Bitmap {
    /// A bitmap of `block_count` free blocks.
    pub fn new(block_count: u32) -> Bitmap {
        let words: Box<[AtomicU64]> = (0..block_count.div_ceil(WORD_BITS)).map(|_| AtomicU64::new(0)).collect();
        let tail = block_count % WORD_BITS;
        if let (Some(last), 1..) = (words.last(), tail) {
            // Blocks beyond the file count as in use for ever.
            last.store(u64::MAX << tail, Ordering::Relaxed);
        }
        Bitmap { words, block_count, used: AtomicU32::new(0), run_bound: AtomicU32::new(u32::MAX) }
    }

    /// Blocks of the file.
    pub fn block_count(&self) -> u32 {
        self.block_count
    }

    /// Blocks in use now.
    pub fn used(&self) -> u32 {
        self.used.load(Ordering::Acquire)
    }

    /// Blocks free now.
    pub fn free(&self) -> u32 {
        self.block_count.saturating_sub(self.used())
    }

    /// Takes exactly these blocks. False, and nothing changed, when one of them is in use or outside the file.
    pub fn claim(&self, block: u32, count: u32) -> bool {
        let Some(end) = block.checked_add(count).filter(|end| *end <= self.block_count) else { return false };
        let mut at = block;
        while at < end {
            let (word, mask, next) = word_mask(at, end);
            let claimed = self.words[word]
                .try_update(Ordering::AcqRel, Ordering::Acquire, |bits| (bits & mask == 0).then_some(bits | mask));
            if claimed.is_err() {
                self.clear(block, at);
                return false;
            }
            at = next;
        }
        self.used.fetch_add(count, Ordering::AcqRel);
        true
    }

    /// Gives blocks back that were claimed. Panics when one of them is free: whoever holds it now would lose data.
    pub fn release(&self, block: u32, count: u32) {
        assert!(u64::from(block) + u64::from(count) <= u64::from(self.block_count), "released outside the file");
        self.used.fetch_sub(count, Ordering::AcqRel);
        self.clear(block, block + count);
        self.run_bound.store(u32::MAX, Ordering::Release);
    }

    /// The first run of at least `wanted` free blocks at or after `from`, cut to `wanted`; wraps round.
    pub fn find(&self, from: u32, wanted: u32) -> Option<Run> {
        if self.free() < wanted || self.run_bound.load(Ordering::Acquire) < wanted {
            return None;
        }
        let from = if from < self.block_count { from } else { 0 };
        let fits = |run: &Run| run.count >= wanted;
        let mut longest = 0;
        let mut runs = self.runs(from).chain(self.runs(0)).inspect(|run| longest = longest.max(run.count));
        let found = runs.find(fits).map(|run| Run { count: wanted, block: run.block });
        if found.is_none() {
            self.run_bound.store(longest, Ordering::Release);
        }
        found
    }

    /// All runs of free blocks from `from` to the end of the file.
    pub fn runs(&self, from: u32) -> impl Iterator<Item = Run> + '_ {
        let mut at = from;
        std::iter::from_fn(move || {
            loop {
                let block = self.next_with(at, false)?;
                at = self.next_with(block, true).unwrap_or(self.block_count);
                // Another thread may have taken the block between the two looks: then there is no run.
                if at > block {
                    return Some(Run { count: at - block, block });
                }
            }
        })
    }

    /// The first block at or after `from` that is in use (`used`) or free.
    fn next_with(&self, from: u32, used: bool) -> Option<u32> {
        let mut at = from;
        while at < self.block_count {
            let bits = self.words[(at / WORD_BITS) as usize].load(Ordering::Acquire);
            let wanted = (if used { bits } else { !bits }) & (u64::MAX << (at % WORD_BITS));
            if wanted != 0 {
                let block = at / WORD_BITS * WORD_BITS + wanted.trailing_zeros();
                return (block < self.block_count).then_some(block);
            }
            at = (at / WORD_BITS + 1) * WORD_BITS;
        }
        None
    }

    fn clear(&self, block: u32, end: u32) {
        let mut at = block;
        while at < end {
            let (word, mask, next) = word_mask(at, end);
            let before = self.words[word].fetch_and(!mask, Ordering::AcqRel);
            assert!(before & mask == mask, "a block was released that nobody held");
            at = next;
        }
    }
}

/// The word that holds block `at`, the mask of the blocks `at..end` in it, and the first block after it.
fn word_mask(at: u32, end: u32) -> (usize, u64, u32) {
    let next = ((at / WORD_BITS + 1) * WORD_BITS).min(end);
    let mask = (u64::MAX >> (WORD_BITS - (next - at))) << (at % WORD_BITS);
    ((at / WORD_BITS) as usize, mask, next)
}
