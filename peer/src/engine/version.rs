//! What the owner shard knows of a task: its current version, the pieces of it, who waits for what.
//!
//! A [`Version`] is one content of a task; bytes of two versions never meet in it. It stays reachable for those who
//! opened it (its [`Pin`]) when it is no longer current. A [`Task`] orders what happens to an object: `commit_lock` is held while the
//! current version is replaced, `backend_lock` while the backend's copy is written, so that an older version never
//! overwrites a newer one. When both are needed, `backend_lock` is taken first.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use dfstore_proto::ids::TaskId;
use dfstore_proto::object::{ObjectMeta, Source};
use futures_util::future::{LocalBoxFuture, Shared};
use futures_util::lock::Mutex;

use crate::catalog::{Change, PieceKey, PieceRecord, PieceSet, TaskRecord, TaskState};
use crate::engine::call::{Opened, PieceAnswer, Pin, Reply};
use crate::engine::context::DirtyHold;
use crate::engine::error::ObjectError;
use crate::engine::request::{Standing, Stat, Target, piece_count};
use crate::limits::PIECE_BYTES;
use crate::rt::arena::Slot;
use crate::store::Lease;

/// One object, as its owner shard sees it.
pub struct Task {
    /// Which object.
    pub target: Target,
    /// The newest version, or a tombstone, or nothing known.
    pub current: RefCell<Option<Rc<Version>>>,
    /// Held while the current version is replaced in catalog and memory.
    pub commit_lock: Mutex<()>,
    /// Held while the backend's copy of this object is written, copied over or deleted.
    pub backend_lock: Mutex<()>,
    /// The question to the backend that is under way; all who ask meanwhile share it.
    pub check: RefCell<Option<Check>>,
    /// Counts replacements of `current`: an answer of the backend that is older than the last one says nothing.
    pub epoch: Cell<u64>,
    /// The backend could not be asked at this time (Unix ms); it is left alone for a while.
    pub check_failed_at_ms: Cell<u64>,
}

/// A shared question to the backend; true when its answer counted, false when it crossed a local change.
pub type Check = Shared<LocalBoxFuture<'static, Result<bool, ObjectError>>>;

impl Task {
    /// A task of which nothing is known yet.
    pub fn new(target: Target) -> Rc<Task> {
        Rc::new(Task {
            target,
            current: RefCell::new(None),
            commit_lock: Mutex::new(()),
            backend_lock: Mutex::new(()),
            check: RefCell::new(None),
            epoch: Cell::new(0),
            check_failed_at_ms: Cell::new(0),
        })
    }

    /// The newest version or tombstone.
    pub fn current(&self) -> Option<Rc<Version>> {
        self.current.borrow().clone()
    }

    /// Makes `version` the current one; gives the one before.
    pub fn replace(&self, version: Option<Rc<Version>>) -> Option<Rc<Version>> {
        self.epoch.set(self.epoch.get() + 1);
        self.current.replace(version)
    }

    /// Whether `version` is the current one.
    pub fn is_current(&self, version: &Rc<Version>) -> bool {
        self.current.borrow().as_ref().is_some_and(|current| Rc::ptr_eq(current, version))
    }

    /// The generation for a new version: above every earlier one, also across restarts and evictions, as long as the
    /// clock of this machine does not run backwards by more than the task was forgotten.
    pub fn next_generation(&self, now_ms: u64) -> u64 {
        let last = self.current.borrow().as_ref().map_or(0, |version| version.generation);
        (last + 1).max(now_ms.saturating_mul(1000))
    }
}

/// One content of a task, or its tombstone.
pub struct Version {
    /// The task it belongs to.
    pub task: TaskId,
    /// Its number.
    pub generation: u64,
    /// Attributes. The backend's ETag and time replace ours when it has been written back.
    pub meta: RefCell<ObjectMeta>,
    /// How it stands towards the backend; `Deleted` is a tombstone.
    pub state: Cell<TaskState>,
    /// CRC32 of the whole object where known.
    pub crc32: Option<u32>,
    /// Bytes of each piece but the last.
    pub piece_bytes: u32,
    /// When the backend last confirmed it (Unix ms).
    pub validated_at_ms: Cell<u64>,
    /// Its pieces, as far as anything is known of them.
    pub pieces: RefCell<HashMap<u32, PieceState>>,
    /// Pieces on disk.
    pub stored_count: Cell<u32>,
    /// Whether the catalog has a record of it.
    pub recorded: Cell<bool>,
    /// What it takes of the dirty budget, while the backend does not have it.
    pub dirty: RefCell<Option<DirtyHold>>,
    /// Tells whether someone has it open.
    pub pin: Pin,
}

/// Where a piece is.
pub enum PieceState {
    /// On disk.
    Stored(StoredPiece),
    /// Fetched and verified, on its way to the disk.
    Memory {
        /// The bytes.
        slot: Slot,
        /// Their checksum.
        crc32: u32,
    },
    /// Being fetched; these wait for it.
    Fetching(Vec<Reply<PieceAnswer>>),
}

/// A piece on disk.
#[derive(Clone)]
pub struct StoredPiece {
    /// Bytes.
    pub length: u32,
    /// Their checksum.
    pub crc32: u32,
    /// Where they lie, and the right to read it.
    pub lease: Lease,
}

impl StoredPiece {
    /// The record that the catalog keeps of it.
    pub fn to_record(&self) -> PieceRecord {
        PieceRecord { length: self.length, crc32: self.crc32, extents: self.lease.extents().clone() }
    }
}

impl Version {
    /// A version without pieces.
    pub fn new(task: TaskId, generation: u64, meta: ObjectMeta, state: TaskState, crc32: Option<u32>) -> Version {
        Version {
            task,
            generation,
            meta: RefCell::new(meta),
            state: Cell::new(state),
            crc32,
            piece_bytes: PIECE_BYTES,
            validated_at_ms: Cell::new(0),
            pieces: RefCell::default(),
            stored_count: Cell::new(0),
            recorded: Cell::new(false),
            dirty: RefCell::default(),
            pin: Pin::default(),
        }
    }

    /// The version a catalog record describes, still without pieces.
    pub fn from_record(task: TaskId, record: TaskRecord) -> Version {
        let version = Version {
            piece_bytes: record.piece_bytes,
            validated_at_ms: Cell::new(record.validated_at_ms),
            ..Version::new(task, record.generation, record.meta, record.state, record.crc32)
        };
        version.recorded.set(true);
        version
    }

    /// The record that the catalog keeps of it.
    pub fn to_record(&self, target: &Target) -> TaskRecord {
        TaskRecord {
            name: target.name.clone(),
            query: String::new(),
            generation: self.generation,
            state: self.state.get(),
            meta: self.meta.borrow().clone(),
            piece_bytes: self.piece_bytes,
            crc32: self.crc32,
            validated_at_ms: self.validated_at_ms.get(),
        }
    }

    /// Notes that a piece is on disk.
    pub fn put_stored(&self, number: u32, piece: StoredPiece) {
        let before = self.pieces.borrow_mut().insert(number, PieceState::Stored(piece));
        if !matches!(before, Some(PieceState::Stored(_))) {
            self.stored_count.set(self.stored_count.get() + 1);
        }
    }

    /// Forgets a piece on disk; gives its extents.
    pub fn take_stored(&self, number: u32) -> Option<StoredPiece> {
        let mut pieces = self.pieces.borrow_mut();
        if !matches!(pieces.get(&number), Some(PieceState::Stored(_))) {
            return None;
        }
        let Some(PieceState::Stored(piece)) = pieces.remove(&number) else { return None };
        self.stored_count.set(self.stored_count.get() - 1);
        Some(piece)
    }

    /// All pieces on disk, in order.
    pub fn stored_pieces(&self) -> Vec<(u32, StoredPiece)> {
        let pieces = self.pieces.borrow();
        let mut stored: Vec<(u32, StoredPiece)> = pieces
            .iter()
            .filter_map(|(number, state)| match state {
                PieceState::Stored(piece) => Some((*number, piece.clone())),
                _ => None,
            })
            .collect();
        stored.sort_unstable_by_key(|(number, _)| *number);
        stored
    }

    /// Bytes of disk its pieces take.
    pub fn disk_bytes(&self) -> u64 {
        let pieces = self.pieces.borrow();
        pieces
            .values()
            .map(|state| match state {
                PieceState::Stored(piece) => piece.lease.length_bytes(),
                _ => 0,
            })
            .sum()
    }

    /// The changes that make the catalog forget its pieces.
    pub fn forgetting(&self) -> Vec<Change> {
        if !self.recorded.get() {
            return Vec::new();
        }
        vec![Change::RemovePieces { task: self.task, generation: self.generation, pieces: PieceSet::All }]
    }

    /// The change that puts a stored piece into the catalog.
    pub fn piece_change(&self, number: u32, piece: &StoredPiece) -> Change {
        let key = PieceKey { task: self.task, generation: self.generation, number };
        Change::PutPiece { key, record: piece.to_record() }
    }

    /// Whether every piece is on disk.
    pub fn is_whole(&self) -> bool {
        self.stored_count.get() == piece_count(self.meta.borrow().length, self.piece_bytes)
    }

    /// Whether it is in the backend and nobody has it open.
    pub fn is_idle_clean(&self) -> bool {
        self.state.get() == TaskState::Clean && !self.pin.is_shared()
    }

    /// What a client may know, and the pin that keeps it readable. `stale` when the backend could not be asked.
    pub fn open(&self, stale: bool) -> Opened {
        let standing = match self.state.get() {
            TaskState::Dirty => Standing::Dirty,
            TaskState::Ephemeral => Standing::Ephemeral,
            TaskState::Clean | TaskState::Deleted => Standing::Clean,
        };
        Opened {
            task: self.task,
            stat: Stat {
                meta: self.meta.borrow().clone(),
                generation: self.generation,
                piece_bytes: self.piece_bytes,
                standing,
                source: self.source(stale),
                crc32: self.crc32,
                pieces_local: self.stored_count.get(),
            },
            pin: self.pin.clone(),
        }
    }

    fn source(&self, stale: bool) -> Source {
        match self.state.get() {
            TaskState::Dirty => Source::Pending,
            _ if stale => Source::Stale,
            _ if self.is_whole() => Source::Local,
            _ => Source::Backend,
        }
    }
}
