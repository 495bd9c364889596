//! What the faces ask of the engine, and what they get back.

pub use crate::sidecar::backend::{ListEntry, ListPage, ListRequest};

use dfstore_proto::ids::{ObjectName, TaskId};
use dfstore_proto::message::{self, SteerOrder, VersionInfo, VersionState};
use dfstore_proto::object::{ObjectMeta, Source, WriteMode};

use crate::limits::PIECE_BYTES;

/// An object as a request names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Bucket and key.
    pub name: ObjectName,
    /// The task this is, computed once.
    pub task: TaskId,
}

impl Target {
    /// The target for an object without query parameters (which is what both faces address).
    pub fn of(name: ObjectName) -> Target {
        let task = TaskId::of(&name, "", "");
        Target { name, task }
    }

    /// As other peers are told of it.
    pub fn to_message(&self) -> message::Target {
        message::Target::new(self.name.clone())
    }
}

/// How a version stands towards the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The backend has it.
    Clean,
    /// The backend does not have it yet.
    Dirty,
    /// The backend never gets it.
    Ephemeral,
}

/// One version of an object, as found when it was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Attributes for the client.
    pub meta: ObjectMeta,
    /// The version.
    pub generation: u64,
    /// Bytes of each piece but the last.
    pub piece_bytes: u32,
    /// Towards the backend.
    pub standing: Standing,
    /// What `X-Dfs-Cache` says before any byte is read: `Local` when all pieces are here, `Pending` when dirty,
    /// `Stale` when the backend could not be asked, else `Backend`.
    pub source: Source,
    /// CRC32 of the whole object where known.
    pub crc32: Option<u32>,
    /// Pieces of this version that are on this peer's disk.
    pub pieces_local: u32,
}

impl Stat {
    /// Number of pieces of this version.
    pub fn piece_count(&self) -> u32 {
        piece_count(self.meta.length, self.piece_bytes)
    }

    /// As clients of the native protocol and other peers are told of it.
    pub fn to_info(&self, task: TaskId) -> VersionInfo {
        VersionInfo {
            task,
            generation: self.generation,
            meta: self.meta.clone(),
            piece_bytes: self.piece_bytes,
            state: self.standing.into(),
            source: self.source,
            crc32: self.crc32,
            pieces_local: self.pieces_local,
        }
    }
}

impl From<Standing> for VersionState {
    fn from(standing: Standing) -> VersionState {
        match standing {
            Standing::Clean => VersionState::Clean,
            Standing::Dirty => VersionState::Dirty,
            Standing::Ephemeral => VersionState::Ephemeral,
        }
    }
}

/// Number of pieces of an object of `length` bytes.
pub fn piece_count(length: u64, piece_bytes: u32) -> u32 {
    u32::try_from(length.div_ceil(u64::from(piece_bytes))).expect("objects are at most OBJECT_BYTES_MAX")
}

/// Whether the pieces of such a version fit this peer's buffers.
pub fn takes_pieces(length: u64, piece_bytes: u32) -> bool {
    length.min(piece_bytes.into()) <= PIECE_BYTES.into()
}

/// Bytes of piece `number` of an object of `length` bytes.
pub fn piece_length(length: u64, piece_bytes: u32, number: u32) -> u32 {
    let start = u64::from(number) * u64::from(piece_bytes);
    u32::try_from(length.saturating_sub(start).min(u64::from(piece_bytes))).expect("at most a piece")
}

/// A write that begins.
#[derive(Debug, Clone)]
pub struct PutRequest {
    /// Where to.
    pub target: Target,
    /// How it reaches the backend.
    pub mode: WriteMode,
    /// Seeds that should keep a replica, as asked for. One peer alone keeps none; the answer says so.
    pub replicas: u16,
    /// Durable copies on peers, the first one counted, before the answer.
    pub ack_peers: u16,
    /// Length if known beforehand: space is checked early.
    pub length: Option<u64>,
    /// Headers to keep with the object; `length`, `etag` and `last_modified_ms` are ignored.
    pub meta: ObjectMeta,
}

/// How an upload ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommitRequest {
    /// Bytes of the object: all its pieces are there.
    pub length: u64,
    /// Checksum of the whole where the client knows one.
    pub crc32: Option<u32>,
    /// How it reaches the backend, where that became known after the upload began.
    pub mode: Option<WriteMode>,
    /// Seeds that should keep a replica, likewise.
    pub replicas: Option<u16>,
}

/// A write that is acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutDone {
    /// The version that was made.
    pub generation: u64,
    /// Its attributes.
    pub meta: ObjectMeta,
    /// Clean after WriteBack, dirty after AsyncWriteBack.
    pub standing: Standing,
    /// Peers that hold all of it, durably, as far as is known.
    pub copies: u16,
    /// Seeds that keep a copy, or make one now, and how many were asked for.
    pub replicas: (u16, u16),
}

/// What a DELETE did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteDone {
    /// Gone here and in the backend.
    Deleted,
    /// Gone for every client of this peer, durably; the backend could not be reached and is told later.
    Pending,
}

/// Which entries of the write-back queue to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueRequest {
    /// Which bucket; empty for all.
    pub bucket: String,
    /// Only keys that begin like this.
    pub prefix: String,
    /// Only those after this one.
    pub after: Option<ObjectName>,
    /// Most entries.
    pub limit: usize,
    /// Only dead letters.
    pub dead_only: bool,
}

/// What a person wants of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// What becomes of it.
    pub order: SteerOrder,
    /// See [`Steer`](dfstore_proto::message::Steer).
    pub force: bool,
    /// Another peer passes the order on: it is not sent further.
    pub by_peer: bool,
}
