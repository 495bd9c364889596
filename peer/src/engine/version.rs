//! One content of a task: its pieces, who waits for what.
//!
//! A [`Version`] stays reachable for those who opened it (its [`Pin`]) when it is no longer current; bytes of two
//! versions never meet in it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use dfstore_proto::ids::TaskId;
use dfstore_proto::message::VersionState;
use dfstore_proto::object::{ObjectMeta, PieceRun, Source};
use event_listener::Event;

use crate::catalog::{Change, PieceKey, PieceRecord, PieceSet, TaskRecord, TaskState};
use crate::engine::call::{Opened, PieceAnswer, Pin, Reply};
use crate::engine::context::DirtyHold;
use crate::engine::download::Download;
use crate::engine::holders::Holders;
use crate::engine::numbers;
use crate::engine::request::{Standing, Stat, Target, piece_count, piece_length};
use crate::limits::{PIECE_BYTES, REMOTE_READ_KEEP};
use crate::rt::arena::Slot;
use crate::rt::permits::Permits;
use crate::rt::time::{milliseconds, unix_ms};
use crate::store::Lease;
use crate::swarm::Pace;

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
    /// What the home said of it; where this peer decides itself, nothing.
    pub afar: Cell<Option<Afar>>,
    /// Whether the home was told of it. Of a version that the backend does not have.
    pub published: Cell<bool>,
    /// Seeds that should keep a copy; 0 when nobody asked for any.
    pub replicas: Cell<u16>,
    /// Other peers read it until then (Unix ms): it stays readable though it be replaced.
    pub read_until_ms: Cell<u64>,
    /// Who else has pieces of it, where this peer decides about the task.
    pub holders: RefCell<Holders>,
    /// Whether what is on disk of it was synced.
    pub durable: Cell<bool>,
    /// Whether copies of it are being made.
    pub spreading: Cell<bool>,
    /// The home that was told of it though the backend has it: a seed that came later does not know what others hold.
    pub home_told: RefCell<Option<Arc<str>>>,
    /// Told when a node has come to hold all of it.
    pub spread: Event,
    /// Told when a piece has come to disk, or was lost on its way there.
    pub stored: Event,
    /// Its pieces on their way here from other peers.
    pub download: RefCell<Option<Rc<Download>>>,
    /// At the home: how many pieces to bring from the backend at once for other peers, and those that are on their way.
    pub pace: RefCell<Pace>,
    /// See `pace`.
    pub paced: Permits,
}

/// What the home said of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Afar {
    /// How it stands towards the backend.
    pub state: VersionState,
    /// Where its bytes come from for who does not have them.
    pub source: Source,
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
        /// Where they came from.
        source: Source,
    },
    /// Being fetched; these wait for it.
    Fetching(Vec<Waiter>),
}

/// Somebody who waits for a piece.
pub struct Waiter {
    /// Where the answer goes.
    pub reply: Reply<PieceAnswer>,
    /// Whether a client waits for it now; else it is read ahead.
    pub urgent: bool,
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
            afar: Cell::new(None),
            published: Cell::new(false),
            replicas: Cell::new(0),
            read_until_ms: Cell::new(0),
            holders: RefCell::default(),
            durable: Cell::new(false),
            spreading: Cell::new(false),
            home_told: RefCell::default(),
            spread: Event::new(),
            stored: Event::new(),
            download: RefCell::default(),
            pace: RefCell::default(),
            paced: Permits::default(),
        }
    }

    /// The version a catalog record describes, still without pieces.
    pub fn from_record(task: TaskId, record: TaskRecord) -> Version {
        let version = Version {
            piece_bytes: record.piece_bytes,
            validated_at_ms: Cell::new(record.validated_at_ms),
            published: Cell::new(record.published),
            replicas: Cell::new(record.replicas),
            ..Version::new(task, record.generation, record.meta, record.state, record.crc32)
        };
        version.recorded.set(true);
        version.durable.set(true);
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
            replicas: self.replicas.get(),
            published: self.published.get(),
        }
    }

    /// Notes that a piece is on disk.
    pub fn put_stored(&self, number: u32, piece: StoredPiece) {
        let before = self.pieces.borrow_mut().insert(number, PieceState::Stored(piece));
        if !matches!(before, Some(PieceState::Stored(_))) {
            self.stored_count.set(self.stored_count.get() + 1);
        }
        self.stored.notify(usize::MAX);
    }

    /// Whether a piece is on disk.
    pub fn has_stored(&self, number: u32) -> bool {
        matches!(self.pieces.borrow().get(&number), Some(PieceState::Stored(_)))
    }

    /// Whether anything is known of a piece here.
    pub fn holds(&self, number: u32) -> bool {
        self.pieces.borrow().contains_key(&number)
    }

    /// Pieces that are on their way.
    pub fn fetching_count(&self) -> usize {
        self.pieces.borrow().values().filter(|state| matches!(state, PieceState::Fetching(_))).count()
    }

    /// Its pieces, on disk or not.
    pub fn piece_count(&self) -> u32 {
        piece_count(self.meta.borrow().length, self.piece_bytes)
    }

    /// Bytes of a piece.
    pub fn piece_length(&self, number: u32) -> u32 {
        piece_length(self.meta.borrow().length, self.piece_bytes, number)
    }

    /// The pieces on disk, as runs.
    pub fn stored_runs(&self) -> Vec<PieceRun> {
        let pieces = self.pieces.borrow();
        let mut numbers: Vec<u32> = pieces
            .iter()
            .filter(|(_, state)| matches!(state, PieceState::Stored(_)))
            .map(|(number, _)| *number)
            .collect();
        numbers.sort_unstable();
        let mut runs: Vec<PieceRun> = Vec::new();
        for number in numbers {
            match runs.last_mut() {
                Some(run) if run.first + run.count == number => run.count += 1,
                _ => runs.push(PieceRun { first: number, count: 1 }),
            }
        }
        runs
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

    /// Bytes of the object that are on disk.
    pub fn stored_bytes(&self) -> u64 {
        self.stored_pieces().iter().map(|(_, piece)| u64::from(piece.length)).sum()
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

    /// The changes that put all stored pieces into the catalog.
    pub fn piece_changes(&self) -> impl Iterator<Item = Change> {
        self.stored_pieces().into_iter().map(|(number, piece)| self.piece_change(number, &piece))
    }

    /// Whether every piece is on disk.
    pub fn is_whole(&self) -> bool {
        self.stored_count.get() == self.piece_count()
    }

    /// Its number, as one that what the backend has is to be above. What was only read here does not count: who answers
    /// for it will tell of it.
    pub fn known_generation(&self) -> u64 {
        let is_read_only = self.is_clean() && numbers::is_own_etag(&self.meta.borrow().etag, self.generation);
        if is_read_only { 0 } else { self.generation }
    }

    /// Whether it may be forgotten now: nobody has it open.
    pub fn is_idle_clean(&self) -> bool {
        self.is_clean() && !self.pin.is_shared()
    }

    /// Whether it may be forgotten: the backend has it, or another peer answers for it.
    pub fn is_clean(&self) -> bool {
        self.state.get() == TaskState::Clean
    }

    /// Whether someone here or elsewhere still reads it.
    pub fn is_read(&self) -> bool {
        self.pin.is_shared() || self.read_until_ms.get() > unix_ms()
    }

    /// Another peer reads it now and goes on for a while.
    pub fn note_remote_reader(&self) {
        let keep_ms = milliseconds(REMOTE_READ_KEEP);
        self.read_until_ms.set(unix_ms().saturating_add(keep_ms));
    }

    /// How it stands towards the backend.
    pub fn standing(&self) -> Standing {
        match (self.afar.get(), self.state.get()) {
            (Some(Afar { state: VersionState::Clean, .. }), _) | (None, TaskState::Clean | TaskState::Deleted) => {
                Standing::Clean
            }
            (Some(Afar { state: VersionState::Dirty, .. }), _) | (None, TaskState::Dirty) => Standing::Dirty,
            (Some(Afar { state: VersionState::Ephemeral, .. }), _) | (None, TaskState::Ephemeral) => {
                Standing::Ephemeral
            }
        }
    }

    /// What a client may know, and the pin that keeps it readable. `stale` when the backend could not be asked.
    pub fn open(&self, stale: bool) -> Opened {
        Opened {
            task: self.task,
            stat: Stat {
                meta: self.meta.borrow().clone(),
                generation: self.generation,
                piece_bytes: self.piece_bytes,
                standing: self.standing(),
                source: self.source(stale),
                crc32: self.crc32,
                pieces_local: self.stored_count.get(),
            },
            pin: self.pin.clone(),
        }
    }

    fn source(&self, stale: bool) -> Source {
        let afar = self.afar.get().filter(|afar| afar.source == Source::Stale || !self.is_whole());
        match (self.standing(), afar) {
            (Standing::Dirty, None) => Source::Pending,
            _ if stale => Source::Stale,
            (_, Some(afar)) => afar.source,
            (_, None) if self.is_whole() => Source::Local,
            (_, None) => Source::Backend,
        }
    }
}
