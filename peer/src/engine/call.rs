//! What one shard asks of another: the closed list of messages between shards.
//!
//! Data does not cross shards, leases do: an answer to [`TaskCall::Piece`] is a lease of blocks on disk, which the asker
//! reads itself, or a counted slot that is in memory anyway.

use std::sync::Arc;

use bytes::Bytes;
use dfstore_proto::ids::TaskId;
use dfstore_proto::message::{self, Message};
use dfstore_proto::object::{PieceRun, Source};

use crate::engine::error::ObjectError;
use crate::engine::request::{
    CommitRequest, DeleteDone, ListEntry, Order, PutDone, PutRequest, QueueRequest, Stat, Target,
};
use crate::membership::Members;
use crate::rt::arena::Slot;
use crate::rt::mailbox::oneshot;
use crate::rt::net::Handed;
use crate::store::{Lease, Reservation};

/// A message in a shard's mailbox.
#[expect(clippy::large_enum_variant, reason = "calls are the common case, and a mailbox of them is small")]
pub enum ShardMessage {
    /// A connection whose task this shard owns, with the bytes already read from it.
    Connection(Handed),
    /// A request about a task of this shard.
    Call(TaskCall),
    /// Who is in the cluster now.
    Members(Arc<Members>),
    /// Stop accepting, and say so when the requests in flight have ended.
    Drain,
    /// End at once.
    End,
}

/// Where the answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, ObjectError>>;

/// Keeps an opened version reachable, though a newer one may have replaced it.
#[derive(Clone, Debug, Default)]
pub struct Pin(Arc<()>);

impl Pin {
    /// How many hold it.
    pub fn holders(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// Whether someone besides the holder of `self` still reads.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

/// A version that was opened for reading.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Of which task.
    pub task: TaskId,
    /// What it is.
    pub stat: Stat,
    /// Keeps it reachable.
    pub pin: Pin,
}

/// Where a piece is.
pub enum PieceAnswer {
    /// On disk: the asker reads it.
    Disk {
        /// The blocks and the right to read them.
        lease: Lease,
        /// Its checksum.
        crc32: u32,
        /// What to say about where it came from.
        source: Source,
    },
    /// In memory, verified.
    Memory {
        /// The bytes.
        slot: Slot,
        /// Their checksum.
        crc32: u32,
        /// Where they came from.
        source: Source,
    },
    /// Not here, and memory is too short to read ahead: ask again when it is the next one that is needed.
    Later,
}

/// A piece that a reader asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its number.
    pub number: u32,
    /// The piece after the last one that the reader will ask for: what may be fetched ahead.
    pub end: u32,
    /// Whether the reader waits for it now; if not, it is answered only if there is memory at once.
    pub urgent: bool,
    /// Only if it is here: nobody else is asked for it.
    pub local_only: bool,
    /// For whom.
    pub asker: Asker,
    /// Tells readers apart whose pieces are fetched ahead.
    pub reader: u64,
}

/// For whom a piece is brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// A reader of this peer.
    Reader,
    /// Another peer, for whom this peer is the home: it is not sent on to one.
    Peer,
    /// Nobody waits for it: a copy is made. Those who have it are waited for while they are busy, before the backend is
    /// asked.
    Copy,
}

/// An upload that may be fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Its number, unique in this process.
    pub upload: u64,
    /// Bytes of each piece but the last.
    pub piece_bytes: u32,
}

/// A piece that an upload has written.
pub struct WrittenPiece {
    /// Which one.
    pub number: u32,
    /// Its length in bytes.
    pub length: u32,
    /// Its checksum.
    pub crc32: u32,
    /// Where it lies; dropped, the space is free again.
    pub reservation: Reservation,
    /// Its bytes, if they are few.
    pub kept: Option<Kept>,
}

/// Bytes of a small piece, which the catalog can keep until the file is synced.
#[derive(Clone)]
pub enum Kept {
    /// They are in the file too.
    Written(Bytes),
    /// Nobody has begun to write them. Sealed.
    Unwritten(Slot),
}

impl Kept {
    /// The bytes.
    pub fn bytes(&self) -> Bytes {
        match self {
            Kept::Written(bytes) => bytes.clone(),
            Kept::Unwritten(slot) => slot.clone().into_bytes(),
        }
    }
}

/// All bytes of a small object, sealed.
pub struct SmallObject {
    /// The bytes.
    pub slot: Slot,
    /// Their checksum.
    pub crc32: u32,
}

/// An object that a listing must show (or hide) although the backend does not (or does) have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PendingEntry {
    /// Written here, newer than what the backend has.
    Present(ListEntry),
    /// Deleted here.
    Deleted(String),
}

impl PendingEntry {
    /// The object's key.
    pub fn key(&self) -> &str {
        match self {
            PendingEntry::Present(entry) => &entry.key,
            PendingEntry::Deleted(key) => key,
        }
    }
}

/// What a peer holds of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The version.
    pub stat: Stat,
    /// Its pieces on disk, as runs.
    pub runs: Vec<PieceRun>,
    /// Seeds that should keep a copy.
    pub replicas: u16,
}

/// A request about one task, answered by the shard that owns it.
pub enum TaskCall {
    /// Find the current version.
    Open { target: Target, no_cache: bool, reply: Reply<Opened> },
    /// Find a version opened before.
    Reopen { task: TaskId, generation: u64, reply: Reply<Opened> },
    /// Find one piece of an opened version.
    Piece { task: TaskId, generation: u64, wanted: Wanted, reply: Reply<PieceAnswer> },
    /// A piece that was asked for ahead is needed now.
    Hurry { task: TaskId, generation: u64, wanted: Wanted },
    /// A piece on disk failed its checksum.
    Corrupt { task: TaskId, generation: u64, number: u32, reply: Reply<()> },
    /// Begin an upload.
    Begin { request: PutRequest, reply: Reply<Ticket> },
    /// Feed an upload from another connection.
    Join { upload: u64, reply: Reply<Ticket> },
    /// May one more piece of an upload be written?
    Admit { upload: u64, number: u32, length: u32, reply: Reply<()> },
    /// One piece of an upload is on disk.
    Written { upload: u64, piece: WrittenPiece, reply: Reply<()> },
    /// All pieces are there: make it the current version.
    Commit { upload: u64, request: CommitRequest, reply: Reply<PutDone> },
    /// Write a small object in one go.
    PutSmall { request: PutRequest, object: SmallObject, commit: CommitRequest, reply: Reply<PutDone> },
    /// Forget an upload.
    Abort { upload: u64 },
    /// Delete the object.
    Delete { target: Target, reply: Reply<DeleteDone> },
    /// Let the backend copy another object over this one.
    CopyFrom { source: Target, target: Target, reply: Reply<()> },
    /// Let the home of the target copy, if that is another peer.
    CopyAtHome { source: Target, target: Target, reply: Reply<Option<()>> },
    /// Evict about this many bytes of clean versions; the answer is how many became free.
    Evict { bytes: u64, reply: Reply<u64> },
    /// Objects of a bucket that the backend does not have yet, or still has. `as_home`: only those that this peer
    /// decides about; else those that nobody else was told of.
    Pending { bucket: String, prefix: String, marker: String, as_home: bool, reply: Reply<Vec<PendingEntry>> },
    /// What another peer says or asks about a task.
    Peer { message: Message, reply: Reply<Message> },
    /// What this peer alone holds of an object.
    Where { target: Target, reply: Reply<Option<Held>> },
    /// Bring all of an object here; the answer is how many bytes came.
    Prefetch { target: Target, reply: Reply<u64> },
    /// How the scrub stands, or a new one.
    Scrub { begin: bool, reply: Reply<message::ScrubOk> },
    /// Entries of the write-back queue.
    Queued { request: QueueRequest, reply: Reply<Vec<message::QueueEntry>> },
    /// What a person wants of such an entry.
    Steer { target: Target, order: Order, reply: Reply<()> },
    /// Forget what is cached of an object; the answer is how many bytes became free.
    Drop { target: Target, reply: Reply<u64> },
}
