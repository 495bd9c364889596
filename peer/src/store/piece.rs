//! A shard's face of the store: taking space, writing, syncing and reading whole pieces.
//!
//! Writes and syncs run as tasks of their own that hold the blocks, so a caller that is cancelled leaves nothing
//! half done behind: blocks are not reused while the kernel may still write to them. Syncs of one file are grouped:
//! one runs, everybody who asks meanwhile shares the next.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::future::{join_all, try_join_all};

use crate::limits::BLOCK_BYTES;
use crate::rt::arena::{Slot, SlotMut};
use crate::rt::file::DirectFile;
use crate::rt::mailbox::oneshot;
use crate::rt::permits::{Permit, Permits};
use crate::rt::shard::{detached, spawn_local};
use crate::store::StoreError;
use crate::store::allocate::Cursor;
use crate::store::extents::{Extent, ExtentList, blocks_of};
use crate::store::files::{io_error, piece_file_path};
use crate::store::lease::{Held, Lease, Reservation};
use crate::store::plain::{SharedFile, UnsyncedPiece, WriteEnd};
use crate::store::space::{Growth, Space, SpaceStats};

/// Makes a filled slot ready for the store: pads it with zeros to whole blocks, freezes it, and computes the piece's
/// CRC32. The one place where the checksum is made.
pub fn seal(mut slot: SlotMut) -> (Slot, u32) {
    slot.zero_block_tail();
    let crc32 = crc32fast::hash(&slot);
    (slot.freeze(), crc32)
}

/// A write that was taken on. Dropped, it has failed.
pub struct LaterWrite {
    store: PieceStore,
    lease: Lease,
    slot: Slot,
    piece: UnsyncedPiece,
    end: WriteEnd,
    under_way: Permit,
}

impl LaterWrite {
    /// The piece, for another thread that is to sync it.
    pub fn piece(&self) -> UnsyncedPiece {
        self.piece.clone()
    }

    /// Begins. Nobody waits but those who read the piece or sync it.
    pub fn begin(self) {
        let LaterWrite { store, lease, slot, end, under_way, .. } = self;
        spawn_local(async move {
            // What failed is logged where it was found.
            end.ended(store.write_extents(lease.extents(), &slot).await.is_ok());
            drop(under_way);
        });
    }
}

/// The store on one shard. Clones share it.
#[derive(Clone)]
pub struct PieceStore(Rc<Inner>);

struct Inner {
    space: Arc<Space>,
    shard: usize,
    cursor: Cursor,
    files: RefCell<Vec<Option<Rc<OpenFile>>>>,
    /// Writes that were taken on and have not ended.
    later: Permits,
}

struct OpenFile {
    number: u32,
    direct: DirectFile,
    sync: RefCell<SyncQueue>,
}

#[derive(Default)]
struct SyncQueue {
    running: bool,
    waiting: Vec<oneshot::Sender<Result<(), StoreError>>>,
}

impl PieceStore {
    pub(super) fn new(space: Arc<Space>, shard: usize) -> PieceStore {
        PieceStore(Rc::new(Inner {
            space,
            shard,
            cursor: Cursor::default(),
            files: RefCell::default(),
            later: Permits::default(),
        }))
    }

    /// Takes blocks for a piece of `length_bytes` (at least one). Creates a piece file when this shard's are full and
    /// the capacity allows it; the shard goes on meanwhile.
    pub async fn allocate(&self, length_bytes: usize) -> Result<Reservation, StoreError> {
        assert!(length_bytes > 0, "an empty piece has no blocks");
        let Inner { space, shard, cursor, .. } = &*self.0;
        let wanted = blocks_of(length_bytes);
        let reserve = |extents| Reservation::new(space.clone(), extents);
        loop {
            self.check_writable()?;
            if let Some(extents) = space.take(*shard, cursor, wanted, false) {
                return Ok(reserve(extents));
            }
            let failed = match space.growth() {
                Growth::Wait(created) => {
                    created.await;
                    continue;
                }
                Growth::Create(creation) => {
                    let home = *shard;
                    match on_thread(move || creation.create(home)).await {
                        Ok(()) => continue,
                        Err(error) => Some(error),
                    }
                }
                Growth::None => None,
            };
            return match space.take(*shard, cursor, wanted, true) {
                Some(extents) => Ok(reserve(extents)),
                None => Err(failed.unwrap_or_else(|| space.no_space(wanted))),
            };
        }
    }

    /// Writes a sealed piece to its blocks. Not durable before [`sync`](Self::sync).
    pub async fn write(&self, reservation: &Reservation, slot: Slot) -> Result<(), StoreError> {
        self.check_writable()?;
        assert_eq!(u64::from(blocks_of(slot.len())), reservation.extents().block_count(), "blocks fit the piece");
        let (store, held, extents) = (self.clone(), reservation.hold(), reservation.extents().clone());
        detached(async move {
            let result = store.write_extents(&extents, &slot).await;
            drop::<Arc<Held>>(held);
            result
        })
        .await
    }

    /// Takes on the write of a piece that may be asked for before it is written: who reads it waits.
    pub fn write_later(&self, lease: &Lease, slot: Slot) -> Result<LaterWrite, StoreError> {
        self.check_writable()?;
        let (piece, end) = UnsyncedPiece::new(self.shared_files(lease.extents())?);
        lease.wait_for(end.state());
        let under_way = self.0.later.take();
        Ok(LaterWrite { store: self.clone(), lease: lease.clone(), slot, piece, end, under_way })
    }

    /// Waits until every write that was taken on has ended: the catalog waits for them as well, and must not do so when
    /// this shard is gone.
    pub async fn settled(&self) {
        drop(self.0.later.acquire(|| 1).await);
    }

    /// A piece that was written before, for another thread that is to sync it.
    pub fn unsynced(&self, lease: &Lease) -> Result<UnsyncedPiece, StoreError> {
        Ok(UnsyncedPiece::written_to(self.shared_files(lease.extents())?))
    }

    async fn write_extents(&self, extents: &ExtentList, slot: &Slot) -> Result<(), StoreError> {
        let mut at = 0;
        let mut writes = Vec::with_capacity(extents.as_slice().len());
        for extent in extents {
            let file = self.open(extent)?;
            let (slot, offset, len) = (slot.clone(), at, extent.length_bytes());
            at += len;
            writes.push(async move {
                let written = file.direct.write_at(slot, offset, len, extent.offset_bytes()).await;
                written.map_err(|error| self.failed("write", file.number, error))
            });
        }
        // All of them to their end, also when one fails: the blocks must be quiet when they are given back.
        join_all(writes).await.into_iter().collect()
    }

    /// Makes every write to these extents that has completed durable. Calls for the same file share an `fdatasync`.
    pub async fn sync(&self, extents: impl IntoIterator<Item = &ExtentList>) -> Result<(), StoreError> {
        self.check_writable()?;
        let mut files = BTreeSet::new();
        for extent in extents.into_iter().flatten() {
            files.insert(extent.file);
        }
        let mut syncs = Vec::with_capacity(files.len());
        for file in files {
            let file = self.open(&Extent { file, block: 0, count: 1 })?;
            syncs.push(self.sync_file(file));
        }
        try_join_all(syncs).await.map(|_| ())
    }

    fn shared_files(&self, extents: &ExtentList) -> Result<Vec<SharedFile>, StoreError> {
        let shared = |extent: &Extent| {
            let Extent { file: number, block, .. } = *extent;
            let file = self.0.space.file(number).ok_or(StoreError::OutsideFiles { file: number, block })?;
            Ok(SharedFile::new(number, file.file.clone()))
        };
        extents.into_iter().map(shared).collect()
    }

    async fn sync_file(&self, file: Rc<OpenFile>) -> Result<(), StoreError> {
        let (reply, answer) = oneshot::channel();
        let idle = {
            let mut queue = file.sync.borrow_mut();
            queue.waiting.push(reply);
            !std::mem::replace(&mut queue.running, true)
        };
        if idle {
            let store = self.clone();
            spawn_local(async move { store.run_syncs(&file).await });
        }
        answer.await.unwrap_or(Err(StoreError::Poisoned))
    }

    async fn run_syncs(&self, file: &OpenFile) {
        loop {
            let waiting = {
                let mut queue = file.sync.borrow_mut();
                queue.running = !queue.waiting.is_empty();
                std::mem::take(&mut queue.waiting)
            };
            if waiting.is_empty() {
                return;
            }
            let synced = self.sync_once(file).await;
            for reply in waiting {
                let _ = reply.send(synced.clone());
            }
        }
    }

    async fn sync_once(&self, file: &OpenFile) -> Result<(), StoreError> {
        self.check_writable()?;
        self.0.space.sync_count.fetch_add(1, Ordering::Relaxed);
        file.direct.sync_data().await.map_err(|error| self.failed("sync", file.number, error))
    }

    /// The error of a write or a sync. If it is the disk that failed, nothing is written any more: the kernel may have
    /// dropped what it could not write, and a second sync that succeeds would prove nothing.
    fn failed(&self, operation: &'static str, file: u32, error: std::io::Error) -> StoreError {
        let error = self.io_error(operation, file, error);
        if error.is_disk_failure() && !self.0.space.poisoned.swap(true, Ordering::AcqRel) {
            tracing::error!(%error, "the disk failed: the store takes no more writes");
        }
        error
    }

    /// Reads a whole piece into `slot` and verifies it. `slot` must have room for the piece in whole blocks. Works
    /// for the pieces of every shard; the lease keeps the blocks from being reused meanwhile.
    pub async fn read(&self, lease: &Lease, length: usize, crc32: u32, slot: SlotMut) -> Result<Slot, StoreError> {
        assert!(lease.length_bytes() >= length as u64, "the blocks hold the piece");
        lease.written().await?;
        let mut slot = slot;
        let mut at = 0;
        for extent in lease.extents() {
            let file = self.open(extent)?;
            let (result, filled) = file.direct.read_at(slot, at, extent.length_bytes(), extent.offset_bytes()).await;
            result.map_err(|error| self.io_error("read", file.number, error))?;
            slot = filled;
            at += extent.length_bytes();
        }
        slot.set_len(length);
        verify(lease.extents(), &slot, crc32)?;
        Ok(slot.freeze())
    }

    /// How much of the store, all shards together, is in use.
    pub fn stats(&self) -> SpaceStats {
        self.0.space.stats()
    }

    /// Whether a sync failed, so that nothing is written any more.
    pub fn is_poisoned(&self) -> bool {
        self.0.space.poisoned.load(Ordering::Acquire)
    }

    fn check_writable(&self) -> Result<(), StoreError> {
        if self.is_poisoned() { Err(StoreError::Poisoned) } else { Ok(()) }
    }

    /// The file of an extent, opened on this shard when first needed.
    fn open(&self, extent: &Extent) -> Result<Rc<OpenFile>, StoreError> {
        let Extent { file: number, block, .. } = *extent;
        let mut files = self.0.files.borrow_mut();
        if let Some(Some(open)) = files.get(number as usize) {
            return Ok(open.clone());
        }
        let shared = self.0.space.file(number).ok_or(StoreError::OutsideFiles { file: number, block })?;
        let direct = DirectFile::new(shared.file.clone()).map_err(|error| self.io_error("open", number, error))?;
        let open = Rc::new(OpenFile { number, direct, sync: RefCell::default() });
        let places = files.len().max(number as usize + 1);
        files.resize(places, None);
        files[number as usize] = Some(open.clone());
        Ok(open)
    }

    fn io_error(&self, operation: &'static str, file: u32, error: std::io::Error) -> StoreError {
        io_error(operation, &piece_file_path(&self.0.space.options.dir, file), error)
    }
}

/// Whether the bytes are those the checksum was made of.
pub(crate) fn verify(extents: &ExtentList, bytes: &[u8], expected: u32) -> Result<(), StoreError> {
    let found = crc32fast::hash(bytes);
    if found == expected {
        return Ok(());
    }
    let Extent { file, block, .. } = extents.as_slice()[0];
    Err(StoreError::Corrupt { file, block, expected, found })
}

/// Runs blocking `work` on a thread of its own.
async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let (reply, answer) = oneshot::channel();
    let thread = std::thread::Builder::new().name("store-grow".to_owned());
    let started = thread.spawn(move || {
        let _ = reply.send(work());
    });
    match started {
        Ok(_) => answer.await.unwrap_or(Err(StoreError::Poisoned)),
        Err(error) => Err(io_error("start a thread for", std::path::Path::new("a new piece file"), error)),
    }
}

const _: () = assert!(BLOCK_BYTES == 4096);
