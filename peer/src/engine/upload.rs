//! Writing one version from a connection: pieces in any order, several at once, then one commit.
//!
//! The shard that holds the connection allocates and writes; the task's owner admits pieces, notes where they lie, and
//! commits. Bytes are summed once, here.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use dfstore_proto::ids::TaskId;

use crate::engine::Engine;
use crate::engine::call::{Kept, Ticket, WrittenPiece};
use crate::engine::error::ObjectError;
use crate::engine::request::{CommitRequest, PutDone};
use crate::limits::JOURNAL_PIECE_BYTES_MAX;
use crate::rt::arena::SlotMut;
use crate::store::seal;

/// An upload being fed. Several pieces may be written at once through clones. Dropping the last clone of an uncommitted
/// upload that [`Engine::put`] gave aborts it; of one that [`Engine::join_upload`] gave it does not.
#[derive(Clone)]
pub struct Upload(Rc<Inner>);

struct Inner {
    engine: Engine,
    task: TaskId,
    ticket: Ticket,
    aborts: Cell<bool>,
}

impl Upload {
    pub(super) fn new(engine: Engine, task: TaskId, ticket: Ticket, aborts: bool) -> Upload {
        Upload(Rc::new(Inner { engine, task, ticket, aborts: Cell::new(aborts) }))
    }

    /// The number by which other connections join.
    pub fn id(&self) -> u64 {
        self.0.ticket.upload
    }

    /// Bytes of each piece but the last.
    pub fn piece_bytes(&self) -> u32 {
        self.0.ticket.piece_bytes
    }

    /// Memory for `len` bytes of a piece. Waits for a while, then fails with `Busy`.
    pub async fn take_slot(&self, len: usize) -> Result<SlotMut, ObjectError> {
        self.0.engine.take_slot(len).await
    }

    /// Writes piece `number`. Where the sender gave a checksum, the bytes must match it. Returns the checksum.
    pub async fn write_piece(&self, number: u32, slot: SlotMut, crc32: Option<u32>) -> Result<u32, ObjectError> {
        let Inner { engine, task, ticket, .. } = &*self.0;
        let length = u32::try_from(slot.len()).expect("a slot is at most a piece");
        let (slot, found) = seal(slot);
        if let Some(expected) = crc32.filter(|expected| *expected != found) {
            return Err(ObjectError::ChecksumMismatch(format!(
                "piece {number} arrived with CRC32 {found:08x} instead of {expected:08x}"
            )));
        }
        engine.admit(*task, ticket.upload, number, length).await?;
        let is_small = slot.len() <= JOURNAL_PIECE_BYTES_MAX;
        let kept = is_small.then(|| Kept::Written(Bytes::copy_from_slice(&slot)));
        let reservation = engine.write_new(slot.clone()).await?;
        engine.arena().keep_hot(reservation.hot(), slot);
        let piece = WrittenPiece { number, length, crc32: found, reservation, kept };
        engine.written(*task, ticket.upload, piece).await?;
        Ok(found)
    }

    /// Makes the pieces written so far the current version. Returns when the mode's promise holds. The upload is then
    /// over, whatever came of it.
    pub async fn commit(&self, request: CommitRequest) -> Result<PutDone, ObjectError> {
        self.0.aborts.set(false);
        self.0.engine.commit(self.0.task, self.0.ticket.upload, request).await
    }

    /// Forgets the upload and frees its space.
    pub fn abort(&self) {
        self.0.aborts.set(false);
        self.0.engine.abort(self.0.task, self.0.ticket.upload);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.aborts.get() {
            self.engine.abort(self.task, self.ticket.upload);
        }
    }
}
