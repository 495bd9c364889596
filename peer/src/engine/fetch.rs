//! Finding one piece of an opened version: on disk, in memory, or from the backend, once however many ask.
//!
//! A fetched piece is verified (length, version, CRC as received) before anyone sees it. It goes to all who wait and to
//! the disk at the same time; if the disk does not take it, it is forgotten: it was only a cache.

use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use dfstore_proto::ids::TaskId;
use dfstore_proto::object::Source;

use crate::catalog::{Change, PieceSet, TaskState};
use crate::engine::call::{PieceAnswer, Reply};
use crate::engine::error::ObjectError;
use crate::engine::owner::Owner;
use crate::engine::request::piece_length;
use crate::engine::version::{PieceState, StoredPiece, Version};
use crate::limits::{ADMISSION_TIMEOUT, FETCH_ATTEMPTS_MAX, FETCH_RETRY_DELAY};
use crate::rt::arena::{Holder, Slot, SlotMut};
use crate::rt::mailbox::oneshot;
use crate::rt::shard::spawn_local;
use crate::rt::time::{sleep, timeout};
use crate::sidecar::backend::{BackendErrorKind, GetRequest};

impl Owner {
    /// Where piece `number` is; fetches it if it is nowhere. Not `urgent`: only if there is memory at once.
    pub async fn piece(
        self: &Rc<Self>,
        task: &TaskId,
        generation: u64,
        number: u32,
        urgent: bool,
    ) -> Result<PieceAnswer, ObjectError> {
        let version = self.opened_version(task, generation)?;
        let length = piece_length(version.meta.borrow().length, version.piece_bytes, number);
        if length == 0 {
            return Err(ObjectError::InvalidArgument(format!("the object has no piece {number}")));
        }
        let answer = {
            let mut pieces = version.pieces.borrow_mut();
            match pieces.get_mut(&number) {
                Some(PieceState::Stored(piece)) => return Ok(on_disk(&version, piece)),
                Some(PieceState::Memory { slot, crc32 }) => return Ok(in_memory(slot.clone(), *crc32)),
                Some(PieceState::Fetching(waiters)) => {
                    self.metrics.fetch_joined();
                    let (reply, answer) = oneshot::channel();
                    waiters.push(reply);
                    answer
                }
                None if version.state.get() != TaskState::Clean => {
                    return Err(ObjectError::Internal(format!(
                        "piece {number} of a version not in the backend is gone"
                    )));
                }
                None => {
                    let length = length as usize;
                    let slot = self.context.arena.try_take(length, Holder::Fetch);
                    if slot.is_none() && !urgent {
                        return Ok(PieceAnswer::Later);
                    }
                    let (reply, answer) = oneshot::channel();
                    pieces.insert(number, PieceState::Fetching(vec![reply]));
                    let (owner, version) = (self.clone(), version.clone());
                    spawn_local(async move { owner.fetch(version, number, slot).await });
                    answer
                }
            }
        };
        answer.await.unwrap_or(Err(ObjectError::ShuttingDown))
    }

    /// Whether a piece is on disk or in memory, so that [`piece`](Self::piece) asks nobody for it.
    pub fn piece_is_local(&self, task: &TaskId, generation: u64, number: u32) -> Result<bool, ObjectError> {
        let version = self.opened_version(task, generation)?;
        let pieces = version.pieces.borrow();
        Ok(matches!(pieces.get(&number), Some(PieceState::Stored(_) | PieceState::Memory { .. })))
    }

    /// Gets one piece from the backend, answers all who wait, and stores it.
    async fn fetch(self: Rc<Self>, version: Rc<Version>, number: u32, slot: Option<SlotMut>) {
        let fetched = self.fetch_verified(&version, number, slot).await;
        let waiters = match version.pieces.borrow_mut().remove(&number) {
            Some(PieceState::Fetching(waiters)) => waiters,
            _ => Vec::new(),
        };
        match fetched {
            Ok((slot, crc32)) => {
                version.pieces.borrow_mut().insert(number, PieceState::Memory { slot: slot.clone(), crc32 });
                answer_all(waiters, || Ok(in_memory(slot.clone(), crc32)));
                self.keep(&version, number, slot, crc32).await;
            }
            Err(error) => answer_all(waiters, || Err(error.clone())),
        }
    }

    async fn fetch_verified(
        &self,
        version: &Version,
        number: u32,
        slot: Option<SlotMut>,
    ) -> Result<(Slot, u32), ObjectError> {
        let Some(task) = self.known(&version.task) else {
            return Err(ObjectError::VersionChanged(format!("task {}", version.task)));
        };
        let meta = version.meta.borrow().clone();
        let range = piece_range(meta.length, version.piece_bytes, number);
        let length = usize::try_from(range.end - range.start).expect("at most a piece");
        let mut slot = slot;
        for attempt in 1.. {
            let buffer = match slot.take() {
                Some(slot) => slot,
                None => timeout(ADMISSION_TIMEOUT, self.context.arena.take(length, Holder::Fetch))
                    .await
                    .map_err(|_| busy("all memory for reads from the backend is in use"))?,
            };
            let request = GetRequest {
                name: task.target.name.clone(),
                range: range.clone(),
                exact: true,
                if_match: (!meta.etag.is_empty()).then(|| meta.etag.clone()),
            };
            match self.context.backend.get(request, buffer).await {
                // Some servers ignore If-Match: what came must be of the version that was opened.
                Ok(fetched) if fetched.meta.etag == meta.etag && fetched.meta.length == meta.length => {
                    let mut slot = fetched.slot;
                    slot.zero_block_tail();
                    return Ok((slot.freeze(), fetched.crc32));
                }
                Ok(_) => {
                    version.validated_at_ms.set(0);
                    return Err(ObjectError::VersionChanged(task.target.name.to_string()));
                }
                Err(error) if error.is_retryable() && attempt < FETCH_ATTEMPTS_MAX => {
                    tracing::debug!(%error, attempt, "reading from the backend again");
                    sleep(FETCH_RETRY_DELAY * attempt).await;
                }
                Err(error) => {
                    if matches!(error.kind, BackendErrorKind::VersionChanged | BackendErrorKind::NotFound) {
                        version.validated_at_ms.set(0);
                        return Err(ObjectError::VersionChanged(task.target.name.to_string()));
                    }
                    return Err(error.into());
                }
            }
        }
        unreachable!("the loop ends with its last attempt")
    }

    /// Puts a fetched piece on disk and into the catalog, if its version is still current.
    async fn keep(self: &Rc<Self>, version: &Rc<Version>, number: u32, slot: Slot, crc32: u32) {
        let length = u32::try_from(slot.len()).expect("at most a piece");
        let stored = self.write_new(slot, Some(&version.task)).await;
        let task = self.known(&version.task).filter(|task| task.is_current(version));
        version.pieces.borrow_mut().remove(&number);
        match (stored, task) {
            (Ok(reservation), Some(task)) => {
                let piece = StoredPiece { length, crc32, lease: reservation.keep() };
                self.eviction.borrow_mut().insert(version.task, piece.lease.length_bytes());
                let mut changes = Vec::with_capacity(2);
                if !version.recorded.get() {
                    changes.push(self.record_change(&task, version));
                }
                changes.push(version.piece_change(number, &piece));
                version.put_stored(number, piece);
                self.commit_lazily(changes).await;
                self.evict_to_watermark().await;
            }
            // Replaced while it was written: nothing names the blocks, they are free when the reservation drops.
            (Ok(_), None) => {}
            (Err(error), _) => tracing::warn!(%error, "a fetched piece was not kept"),
        }
    }

    /// A piece on disk failed its checksum: it is never served. A clean one is forgotten and fetched again; one that
    /// the backend does not have stays where it is for repair.
    pub async fn quarantine(self: &Rc<Self>, task: &TaskId, generation: u64, number: u32) -> Result<(), ObjectError> {
        let version = self.opened_version(task, generation)?;
        self.metrics.piece_quarantined();
        tracing::error!(%task, generation, number, "a piece on disk failed its checksum");
        if version.state.get() != TaskState::Clean {
            return Err(ObjectError::Internal(format!("piece {number} is damaged on disk and not in the backend yet")));
        }
        if version.take_stored(number).is_some() {
            // Its blocks stay taken until the next start: they may be bad.
            let change = Change::RemovePieces { task: *task, generation, pieces: PieceSet::Numbers(vec![number]) };
            self.commit_lazily(vec![change]).await;
        }
        Ok(())
    }
}

/// The bytes of the object that piece `number` holds.
fn piece_range(length: u64, piece_bytes: u32, number: u32) -> Range<u64> {
    let start = u64::from(number) * u64::from(piece_bytes);
    start..start + u64::from(piece_length(length, piece_bytes, number))
}

fn on_disk(version: &Version, piece: &StoredPiece) -> PieceAnswer {
    let source = if version.state.get() == TaskState::Dirty { Source::Pending } else { Source::Local };
    PieceAnswer::Disk { lease: piece.lease.clone(), crc32: piece.crc32, source }
}

fn in_memory(slot: Slot, crc32: u32) -> PieceAnswer {
    PieceAnswer::Memory { slot, crc32, source: Source::Backend }
}

fn answer_all(waiters: Vec<Reply<PieceAnswer>>, make: impl Fn() -> Result<PieceAnswer, ObjectError>) {
    for waiter in waiters {
        // A reader that has gone needs no answer.
        drop(waiter.send(make()));
    }
}

/// The error for a limit of this process that was reached.
pub fn busy(reason: &str) -> ObjectError {
    ObjectError::Busy { reason: reason.to_owned(), retry_after: Duration::from_secs(2) }
}
