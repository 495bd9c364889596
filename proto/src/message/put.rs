//! Messages that write an object: begin, join from more connections, pieces and their acknowledgement, commit, abort.

use serde::{Deserialize, Serialize};

use super::object::{check_meta, check_piece_bytes};
use super::{Bounded, Target};
use crate::error::FieldError;
use crate::ids::TaskId;
use crate::limits::{CREDITS_MAX, ETAG_BYTES_MAX, OBJECT_BYTES_MAX};
use crate::object::{ObjectMeta, WriteMode};
use crate::wire::{at_most, number_at_most};

/// Begins an upload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutBegin {
    /// Which object.
    pub target: Target,
    /// Its length, where it is known before the end.
    pub length: Option<u64>,
    /// How it reaches the backend.
    pub mode: WriteMode,
    /// Copies that the cluster should keep; 0 leaves it to the peer.
    pub max_replicas: u32,
    /// Durable copies on peers before the answer, the one that takes the write counted. 0: only what the mode says.
    pub ack_peers: u32,
    /// Attributes to keep. `length`, `etag`, `last_modified_ms` and `storage_class` are not looked at.
    pub meta: ObjectMeta,
}

impl Bounded for PutBegin {
    fn check(&self) -> Result<(), FieldError> {
        self.target.check()?;
        number_at_most("length", self.length.unwrap_or(0), OBJECT_BYTES_MAX)?;
        check_meta(&self.meta)
    }
}

/// Pieces may come on this request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutReady {
    /// Names the upload on every connection to this peer.
    pub upload: u64,
    /// The task of the object.
    pub task: TaskId,
    /// What the pieces of this upload carry as their version. PUT_DONE tells which version the upload became.
    pub generation: u64,
    /// Size of its pieces; only the last one may be shorter.
    pub piece_bytes: u32,
    /// Pieces of this upload that the peer stores at once, over all connections: how many are worth sending ahead.
    pub window_pieces: u32,
}

impl Bounded for PutReady {
    fn check(&self) -> Result<(), FieldError> {
        check_piece_bytes(self.piece_bytes)?;
        number_at_most("window_pieces", self.window_pieces.into(), CREDITS_MAX.into())
    }
}

/// Joins an upload from another connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutJoin {
    /// The task of the object.
    pub task: TaskId,
    /// The upload, as PUT_READY said.
    pub upload: u64,
}

impl Bounded for PutJoin {
    fn check(&self) -> Result<(), FieldError> {
        Ok(())
    }
}

/// Ends this connection's part in an upload that another one commits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutLeave {}

impl Bounded for PutLeave {
    fn check(&self) -> Result<(), FieldError> {
        Ok(())
    }
}

/// A piece of the upload is verified and stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PieceAck {
    /// Its number.
    pub number: u32,
}

impl Bounded for PieceAck {
    fn check(&self) -> Result<(), FieldError> {
        Ok(())
    }
}

/// All pieces are sent: make them the object. Acknowledgements need not have arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutCommit {
    /// The upload, as PUT_READY said.
    pub upload: u64,
    /// Bytes of the object.
    pub length: u64,
    /// CRC32 of the whole object.
    pub crc32: u32,
    /// Pieces of the object.
    pub pieces: u32,
}

impl Bounded for PutCommit {
    fn check(&self) -> Result<(), FieldError> {
        number_at_most("length", self.length, OBJECT_BYTES_MAX)
    }
}

/// How far a written object has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WrittenTo {
    /// Durable on the disk of this peer.
    Local,
    /// In the backend.
    Backend,
}

/// The object is written and every later read sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutDone {
    /// Its version.
    pub generation: u64,
    /// Its entity tag.
    pub etag: String,
    /// How far it has come.
    pub written_to: WrittenTo,
    /// Durable copies on peers, this one included.
    pub replicas: u32,
}

impl Bounded for PutDone {
    fn check(&self) -> Result<(), FieldError> {
        at_most("etag", &self.etag, ETAG_BYTES_MAX)
    }
}

/// Throws the upload of this request away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutAbort {}

impl Bounded for PutAbort {
    fn check(&self) -> Result<(), FieldError> {
        Ok(())
    }
}
