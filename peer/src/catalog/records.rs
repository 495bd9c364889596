//! The records of the catalog, and the changes that can be made to them. Plain data.
//!
//! Their encoding is specified in `store/FORMAT.md`; a change of a field needs a new record version there, in
//! [`codec`](super::codec), and in the golden bytes.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use dfstore_proto::ids::{ObjectName, TaskId};
use dfstore_proto::object::ObjectMeta;

use crate::store::UnsyncedPiece;
use crate::store::extents::ExtentList;

/// Where the version of a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TaskState {
    /// The backend has it: it may be evicted.
    Clean,
    /// Acknowledged to a client, and the backend has it not yet.
    Dirty,
    /// Kept by peers only; the backend never gets it.
    Ephemeral,
    /// A tombstone: deleted here, and the backend may still have an older version.
    Deleted,
}

/// What is known about a task: its current version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// The object.
    pub name: ObjectName,
    /// Query of its URL after filtering, without the question mark.
    pub query: String,
    /// The version.
    pub generation: u64,
    /// Where the version stands.
    pub state: TaskState,
    /// Attributes of the version.
    pub meta: ObjectMeta,
    /// Size of its pieces.
    pub piece_bytes: u32,
    /// CRC32 of the whole object, when known.
    pub crc32: Option<u32>,
    /// When the version was last known to be the backend's, in milliseconds since the Unix epoch.
    pub validated_at_ms: u64,
    /// Seeds that should keep a copy; 0 when nobody asked for any.
    pub replicas: u16,
    /// The home of the task was told of this version.
    pub published: bool,
}

/// Names a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PieceKey {
    /// The task.
    pub task: TaskId,
    /// The version.
    pub generation: u64,
    /// Number of the piece in the version, from zero.
    pub number: u32,
}

/// A piece on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PieceRecord {
    /// Length in bytes.
    pub length: u32,
    /// CRC32 of its bytes.
    pub crc32: u32,
    /// Where its bytes are.
    pub extents: ExtentList,
}

/// What the backend is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WriteBackKind {
    /// It gets the version.
    Put,
    /// It deletes the object.
    Delete,
}

/// An entry of the write-back queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteBackRecord {
    /// What to do.
    pub kind: WriteBackKind,
    /// The version it is about.
    pub generation: u64,
    /// Place in the queue.
    pub sequence: u64,
    /// When it was queued, in milliseconds since the Unix epoch.
    pub queued_at_ms: u64,
    /// Attempts that failed.
    pub attempts: u32,
    /// Why the last attempt failed, empty when none did.
    pub last_error: String,
    /// Set aside: an attempt failed in a way that waiting does not heal.
    pub dead: bool,
    /// The multipart upload that was started for it.
    pub upload: Option<UploadStarted>,
    /// Entity tag of what the backend had when the version was written, as far as was known; else empty.
    pub replaced_etag: String,
}

/// A multipart upload in progress. Its finished parts are records of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadStarted {
    /// The backend's name for it.
    pub upload_id: String,
    /// Size of its parts but the last.
    pub part_bytes: u64,
}

/// A multipart upload that the backend may know, kept until it is completed or aborted: nothing of ours is left lying
/// there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadRecord {
    /// The object that it would make.
    pub name: ObjectName,
    /// The backend's name for it; empty while its answer is not here.
    pub upload_id: String,
    /// When the backend was asked for it, in milliseconds since the Unix epoch.
    pub asked_at_ms: u64,
}

/// A part that the backend has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRecord {
    /// Its entity tag.
    pub etag: String,
    /// CRC32 of its bytes.
    pub crc32: u32,
}

/// A set of pieces of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PieceSet {
    /// All that there are.
    All,
    /// Those with these numbers.
    Numbers(Vec<u32>),
}

/// A change to the catalog. Removing what is not there changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Sets the record of a task.
    PutTask {
        /// The task.
        task: TaskId,
        /// Its record.
        record: TaskRecord,
    },
    /// Removes a task with all pieces of all its versions.
    RemoveTask {
        /// The task.
        task: TaskId,
    },
    /// Sets the record of a piece.
    PutPiece {
        /// The piece.
        key: PieceKey,
        /// Its record.
        record: PieceRecord,
    },
    /// Keeps the bytes of a piece whose file was not synced, until it is. Its record is set by the same commit.
    KeepPiece {
        /// The piece.
        key: PieceKey,
        /// How it stands with its file.
        piece: UnsyncedPiece,
        /// Its bytes.
        bytes: Bytes,
    },
    /// Removes pieces of a version.
    RemovePieces {
        /// The task.
        task: TaskId,
        /// The version.
        generation: u64,
        /// Which of its pieces.
        pieces: PieceSet,
    },
    /// Sets a task's entry in the write-back queue. Its parts stay.
    PutWriteBack {
        /// The task.
        task: TaskId,
        /// Its entry.
        record: WriteBackRecord,
    },
    /// Removes a task's entry from the write-back queue, with its parts.
    RemoveWriteBack {
        /// The task.
        task: TaskId,
    },
    /// Sets a part of a task's multipart upload.
    PutPart {
        /// The task.
        task: TaskId,
        /// Number of the part, from one.
        number: u32,
        /// Its record.
        record: PartRecord,
    },
    /// Removes the parts of a task's multipart upload.
    RemoveParts {
        /// The task.
        task: TaskId,
    },
    /// Sets the record of a multipart upload.
    PutUpload {
        /// The task.
        task: TaskId,
        /// Tells the uploads of a task apart.
        number: u64,
        /// Its record.
        record: UploadRecord,
    },
    /// Removes the record of a multipart upload.
    RemoveUpload {
        /// The task.
        task: TaskId,
        /// Which of its uploads.
        number: u64,
    },
}

/// Everything the catalog holds, as read at start; each list is in the order of its keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Identity of the store; made when the catalog was.
    pub store_id: [u8; 16],
    /// Tasks.
    pub tasks: Vec<(TaskId, TaskRecord)>,
    /// Pieces of all versions.
    pub pieces: Vec<(PieceKey, PieceRecord)>,
    /// The write-back queue (not in its order: see [`WriteBackRecord::sequence`]).
    pub writebacks: Vec<(TaskId, WriteBackRecord)>,
    /// Parts of multipart uploads, with their numbers.
    pub parts: Vec<(TaskId, u32, PartRecord)>,
    /// Multipart uploads that the backend may know, with their numbers.
    pub uploads: Vec<(TaskId, u64, UploadRecord)>,
    /// Records that were damaged and have been removed.
    pub damaged: u64,
}
