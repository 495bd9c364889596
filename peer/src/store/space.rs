//! The space of all piece files together, shared by all threads without a lock.
//!
//! The table of files has a fixed number of places; a place is filled once, when its file is created or found. One
//! file is created at a time. Blocks are taken by a shard from its home files first, so that shards rarely meet in a
//! bitmap and each syncs its own files; when those are full, from a new file; when the capacity is used up, from any.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use event_listener::{Event, EventListener};

use crate::limits::{BLOCK_BYTES, SMALLER_PIECE_FILES_MAX};
use crate::rt::time::unix_ms;
use crate::store::allocate::{self, Cursor};
use crate::store::bitmap::Bitmap;
use crate::store::extents::{Extent, ExtentList};
use crate::store::files::{self, HEADER_BLOCKS, PieceFile, SpaceOptions};
use crate::store::lease::Lease;
use crate::store::piece::PieceStore;
use crate::store::{StoreError, piece_file_path};

/// After the file system was found full, no new piece file is tried for this time.
const DISK_FULL_RETRY: Duration = Duration::from_secs(10);

/// How much of the store is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceStats {
    /// Bytes that pieces can take: the configured capacity, or what the existing files have while the file system
    /// has no room for more.
    pub capacity_bytes: u64,
    /// Bytes that pieces take, reservations included.
    pub used_bytes: u64,
    /// Bytes that the piece files take on disk.
    pub file_bytes: u64,
    /// Number of piece files.
    pub file_count: u32,
    /// `fdatasync` calls since the start.
    pub sync_count: u64,
}

/// Why extents that a record names cannot be its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// They lie in no file of the store.
    #[error("outside the piece files")]
    Outside,
    /// Another record claimed one of the blocks before.
    #[error("claimed by another record")]
    Overlap,
}

/// The store as opened at start, before and beside the shards. Clones share it.
#[derive(Clone)]
pub struct StoreSeed(pub(super) Arc<Space>);

impl StoreSeed {
    /// Opens the piece files of the data folder. `named` are the numbers of the files that the catalog's records
    /// name. Blocks; called before the shards start.
    pub fn open(options: SpaceOptions, named: &BTreeSet<u32>) -> Result<StoreSeed, StoreError> {
        let found = files::open_all(&options, named)?;
        Ok(StoreSeed(Arc::new(Space::new(options, found))))
    }

    /// Marks the extents of a record as used and gives the lease of them.
    pub fn claim(&self, extents: &ExtentList) -> Result<Lease, ClaimError> {
        self.0.claim(extents)?;
        Ok(Lease::of_claimed(self.0.clone(), extents.clone()))
    }

    /// The face of the store for one shard. To be called on the shard's thread.
    pub fn shard(&self, shard: usize) -> PieceStore {
        PieceStore::new(self.0.clone(), shard)
    }

    /// How much is in use.
    pub fn stats(&self) -> SpaceStats {
        self.0.stats()
    }

    /// Whether a sync failed, so that nothing is written any more.
    pub fn is_poisoned(&self) -> bool {
        self.0.poisoned.load(Ordering::Acquire)
    }
}

/// The shared state behind [`StoreSeed`] and every [`PieceStore`].
pub(super) struct Space {
    pub(super) options: SpaceOptions,
    table: Box<[OnceLock<PieceFile>]>,
    /// Number of the next file; below it a place of the table is filled or was never used.
    next: AtomicU32,
    file_bytes: AtomicU64,
    file_count: AtomicU32,
    pub(super) sync_count: AtomicU64,
    used_blocks: AtomicU64,
    creating: AtomicBool,
    created: Event,
    disk_full_at_ms: AtomicU64,
    pub(super) poisoned: AtomicBool,
}

/// What a shard may do to get a new piece file.
pub(super) enum Growth {
    /// The capacity or the disk allows none.
    None,
    /// Another thread is creating one: wait for the event, then look again.
    Wait(EventListener),
    /// Create it.
    Create(Creation),
}

/// The right to create the next piece file; ends when dropped.
pub(super) struct Creation(Arc<Space>);

impl Space {
    pub(super) fn new(options: SpaceOptions, found: Vec<PieceFile>) -> Space {
        let next = found.last().map_or(0, |file| file.number + 1);
        let file_count = u32::try_from(found.len()).expect("file numbers are u32");
        let file_bytes: u64 = found.iter().map(PieceFile::bytes).sum();
        let more = options.capacity_bytes.saturating_sub(file_bytes) / options.file_bytes();
        let more = usize::try_from(more).expect("files are counted in memory");
        let places = next as usize + more + SMALLER_PIECE_FILES_MAX;
        let table: Box<[OnceLock<PieceFile>]> = (0..places).map(|_| OnceLock::new()).collect();
        for file in found {
            let number = file.number as usize;
            assert!(table[number].set(file).is_ok(), "a file number is found once");
        }
        Space {
            options,
            table,
            next: AtomicU32::new(next),
            file_bytes: AtomicU64::new(file_bytes),
            file_count: AtomicU32::new(file_count),
            sync_count: AtomicU64::new(0),
            used_blocks: AtomicU64::new(0),
            creating: AtomicBool::new(false),
            created: Event::new(),
            disk_full_at_ms: AtomicU64::new(0),
            poisoned: AtomicBool::new(false),
        }
    }

    /// The file with this number.
    pub(super) fn file(&self, number: u32) -> Option<&PieceFile> {
        self.table.get(number as usize)?.get()
    }

    /// Takes `wanted` blocks from existing files: in one run from the shard's home files, or, when `anywhere`, in
    /// one run from any file, else scattered.
    pub(super) fn take(&self, shard: usize, cursor: &Cursor, wanted: u32, anywhere: bool) -> Option<ExtentList> {
        if !self.admit(wanted) {
            return None;
        }
        let home = self.files().filter(|file| file.home == shard).map(bitmap_of);
        let all = self.files().map(bitmap_of);
        let taken = if anywhere {
            allocate::take_run(all.clone(), cursor, wanted).or_else(|| allocate::take_scattered(all, wanted))
        } else {
            allocate::take_run(home, cursor, wanted)
        };
        if taken.is_none() {
            self.used_blocks.fetch_sub(u64::from(wanted), Ordering::AcqRel);
        }
        taken
    }

    /// Counts `wanted` blocks as used unless the capacity forbids it. Matters when the capacity is now smaller than
    /// the files that an earlier run made.
    fn admit(&self, wanted: u32) -> bool {
        let limit = self.stats().capacity_bytes / u64::from(BLOCK_BYTES);
        let admit = |used: u64| Some(used + u64::from(wanted)).filter(|sum| *sum <= limit);
        self.used_blocks.try_update(Ordering::AcqRel, Ordering::Acquire, admit).is_ok()
    }

    /// Gives blocks back.
    pub(super) fn release(&self, extents: &ExtentList) {
        for extent in extents {
            let file = self.file(extent.file).expect("blocks were taken from this file");
            file.bitmap.release(extent.block, extent.count);
        }
        self.used_blocks.fetch_sub(extents.block_count(), Ordering::AcqRel);
    }

    fn claim(&self, extents: &ExtentList) -> Result<(), ClaimError> {
        for (index, extent) in extents.iter().enumerate() {
            if let Err(error) = self.claim_one(extent) {
                for claimed in &extents.as_slice()[..index] {
                    self.file(claimed.file).expect("just claimed").bitmap.release(claimed.block, claimed.count);
                }
                return Err(error);
            }
        }
        self.used_blocks.fetch_add(extents.block_count(), Ordering::AcqRel);
        Ok(())
    }

    fn claim_one(&self, extent: &Extent) -> Result<(), ClaimError> {
        let file = self.file(extent.file).ok_or(ClaimError::Outside)?;
        let end = extent.block.checked_add(extent.count).ok_or(ClaimError::Outside)?;
        if end > file.bitmap.block_count() || extent.block < HEADER_BLOCKS {
            return Err(ClaimError::Outside);
        }
        if file.bitmap.claim(extent.block, extent.count) { Ok(()) } else { Err(ClaimError::Overlap) }
    }

    /// Whether and how the store may grow by one file.
    pub(super) fn growth(self: &Arc<Self>) -> Growth {
        let listener = self.created.listen();
        if self.creating.swap(true, Ordering::AcqRel) {
            return Growth::Wait(listener);
        }
        // From here on dropping `creation` ends the turn.
        let creation = Creation(self.clone());
        if self.may_grow() { Growth::Create(creation) } else { Growth::None }
    }

    /// Whether another file fits the capacity, and the disk was not full a moment ago.
    fn may_grow(&self) -> bool {
        let bytes = self.file_bytes.load(Ordering::Acquire) + self.options.file_bytes();
        bytes <= self.options.capacity_bytes
            && (self.next.load(Ordering::Acquire) as usize) < self.table.len()
            && !self.disk_is_full()
    }

    fn disk_is_full(&self) -> bool {
        let since = unix_ms().saturating_sub(self.disk_full_at_ms.load(Ordering::Acquire));
        u128::from(since) < DISK_FULL_RETRY.as_millis()
    }

    /// The error that tells why nothing could be taken.
    pub(super) fn no_space(&self, wanted: u32) -> StoreError {
        if self.disk_is_full() {
            return StoreError::DiskFull { dir: self.options.dir.clone() };
        }
        let stats = self.stats();
        StoreError::NoSpace {
            wanted_bytes: u64::from(wanted) * u64::from(BLOCK_BYTES),
            free_bytes: stats.capacity_bytes.saturating_sub(stats.used_bytes),
            capacity_bytes: stats.capacity_bytes,
        }
    }

    pub(super) fn stats(&self) -> SpaceStats {
        let file_bytes = self.file_bytes.load(Ordering::Acquire);
        let file_count = self.file_count.load(Ordering::Acquire);
        let more = if self.disk_is_full() {
            0
        } else {
            self.options.capacity_bytes.saturating_sub(file_bytes) / self.options.file_bytes()
        };
        let headers = (u64::from(file_count) + more) * u64::from(HEADER_BLOCKS * BLOCK_BYTES);
        let total = file_bytes + more * self.options.file_bytes();
        SpaceStats {
            capacity_bytes: total.min(self.options.capacity_bytes).saturating_sub(headers),
            used_bytes: self.used_blocks.load(Ordering::Acquire) * u64::from(BLOCK_BYTES),
            file_bytes,
            file_count,
            sync_count: self.sync_count.load(Ordering::Relaxed),
        }
    }

    fn files(&self) -> impl Iterator<Item = &PieceFile> + Clone {
        self.table.iter().filter_map(OnceLock::get)
    }
}

fn bitmap_of(file: &PieceFile) -> (u32, &Bitmap) {
    (file.number, &file.bitmap)
}

impl Creation {
    /// Creates the file for the home shard. Blocks on the disk.
    pub(super) fn create(self, home: usize) -> Result<(), StoreError> {
        let space = &self.0;
        let number = space.next.load(Ordering::Acquire);
        let file = match files::create(&space.options, number, home) {
            Ok(file) => file,
            Err(error) => {
                if matches!(error, StoreError::DiskFull { .. }) {
                    space.disk_full_at_ms.store(unix_ms(), Ordering::Release);
                }
                return Err(error);
            }
        };
        let path = piece_file_path(&space.options.dir, number);
        tracing::info!(path = %path.display(), bytes = file.bytes(), home, "created a piece file");
        space.file_bytes.fetch_add(file.bytes(), Ordering::AcqRel);
        space.file_count.fetch_add(1, Ordering::AcqRel);
        assert!(space.table[number as usize].set(file).is_ok(), "one thread at a time creates a file");
        space.next.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }
}

impl Drop for Creation {
    fn drop(&mut self) {
        self.0.creating.store(false, Ordering::Release);
        self.0.created.notify(usize::MAX);
    }
}
