//! Sending the bytes of one version to the backend: in one request, or as a multipart upload that is resumed after a
//! crash from the parts the backend has.
//!
//! Pieces are read by the background executor and stream through a channel of one: an upload holds one or two pieces
//! in memory whatever the object's size, and two uploads never wait for each other's memory. Each part carries the
//! CRC32 combined of those of its pieces, which were computed when the bytes entered this peer.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::pin::pin;
use std::rc::Rc;

use dfstore_proto::crc::whole_crc32;
use dfstore_proto::ids::{ObjectName, TaskId};
use dfstore_proto::object::ObjectMeta;
use futures_util::future::{Either, select};
use futures_util::{StreamExt, TryStreamExt};

use crate::catalog::{Change, PartRecord, UploadStarted};
use crate::engine::error::ObjectError;
use crate::engine::numbers;
use crate::engine::owner::Owner;
use crate::engine::version::StoredPiece;
use crate::engine::writeback::Entry;
use crate::engine::writeback::strays::Begun;
use crate::limits::{
    JOURNAL_PIECE_BYTES_MAX, MULTIPART_THRESHOLD_BYTES, PART_BYTES_MIN, PARTS_IN_FLIGHT_MAX, PARTS_MAX, PIECE_BYTES,
    WRITEBACK_MEMORY_LOOK,
};
use crate::rt::arena::{Arena, Holder, Slot, SlotMut};
use crate::rt::mailbox::{Sender, mailbox};
use crate::rt::shard::spawn_local;
use crate::rt::time::sleep;
use crate::sidecar::backend::{
    BackendError, BackendErrorKind, BodySource, PutRequest, Stored, Upload, UploadedPart, WriteCondition,
};

/// A version on its way to the backend.
pub struct Outgoing {
    /// Which object it is a version of.
    pub task: TaskId,
    /// Where to.
    pub name: ObjectName,
    /// Its attributes.
    pub meta: ObjectMeta,
    /// Its number.
    pub generation: u64,
    /// CRC32 of the whole.
    pub crc32: Option<u32>,
    /// All its pieces with their numbers, in order.
    pub pieces: Vec<(u32, StoredPiece)>,
    /// What must hold of the object there.
    pub condition: WriteCondition,
    /// Set when a piece is not what was written, and nobody else has it: trying again does not help.
    pub damaged: Rc<Cell<bool>>,
}

impl Outgoing {
    fn length(&self) -> u64 {
        self.pieces.iter().map(|(_, piece)| u64::from(piece.length)).sum()
    }

    fn request(&self) -> PutRequest {
        PutRequest {
            name: self.name.clone(),
            meta: self.meta.clone(),
            written_as: numbers::written_as(self.crc32, self.generation),
            crc32: self.crc32,
            condition: self.condition.clone(),
        }
    }
}

impl Owner {
    /// Sends a version; gives its attributes as the backend now has them.
    pub async fn send(self: &Rc<Self>, outgoing: &Outgoing) -> Result<ObjectMeta, ObjectError> {
        let stored = self.transmit(outgoing, None).await?;
        self.verify(outgoing, &stored).await
    }

    /// Gives the bytes of a version to the backend. Progress of a multipart upload is kept with the queue's entry, if
    /// there is one.
    pub async fn transmit(
        self: &Rc<Self>,
        outgoing: &Outgoing,
        entry: Option<&Rc<Entry>>,
    ) -> Result<Stored, ObjectError> {
        let stored = if outgoing.length() < MULTIPART_THRESHOLD_BYTES {
            let body = self.stream(outgoing, &outgoing.pieces);
            self.context.backend.put(outgoing.request(), body).await.map_err(ObjectError::from)
        } else {
            self.send_parts(outgoing, entry).await
        };
        if outgoing.damaged.get() {
            return Err(ObjectError::Internal(format!("{} is damaged on disk", outgoing.name)));
        }
        stored
    }

    /// Looks at what was stored; gives its attributes as the backend has them: what every later answer is compared with.
    pub async fn verify(&self, outgoing: &Outgoing, stored: &Stored) -> Result<ObjectMeta, ObjectError> {
        let mut meta = self.context.backend.head(outgoing.name.clone()).await?;
        if meta.length != outgoing.length() {
            return Err(ObjectError::BackendUnavailable(format!(
                "{} has {} bytes there instead of {}",
                outgoing.name,
                meta.length,
                outgoing.length()
            )));
        }
        if meta.etag != stored.etag && !stored.etag.is_empty() {
            tracing::warn!(object = %outgoing.name, "the backend's object was replaced while it was written back");
            // Our bytes under the other one's tag would pass every check: under our own the next one finds out.
            meta.etag.clone_from(&stored.etag);
        }
        Ok(meta)
    }

    async fn send_parts(
        self: &Rc<Self>,
        outgoing: &Outgoing,
        entry: Option<&Rc<Entry>>,
    ) -> Result<Stored, ObjectError> {
        let part_bytes = part_bytes(outgoing.length());
        let (begun, there) = self.find_or_create_upload(outgoing, part_bytes, entry).await?;
        let upload = begun.upload();
        let per_part = usize::try_from(part_bytes / u64::from(PIECE_BYTES)).expect("a part is at most 5 GiB");
        let parts = outgoing.pieces.chunks(per_part).zip(1..).map(|(pieces, number)| {
            let (upload, known) = (upload.clone(), there.get(&number).cloned());
            async move {
                let crc32 = part_crc32(pieces);
                let length_bytes: u64 = pieces.iter().map(|(_, piece)| u64::from(piece.length)).sum();
                match known {
                    Some(part) if part.crc32 == Some(crc32) && part.length_bytes == length_bytes => Ok(part),
                    _ => {
                        let body = self.stream(outgoing, pieces);
                        self.send_part(upload, number, crc32, body, entry).await
                    }
                }
            }
        });
        let sent = futures_util::stream::iter(parts).buffered(PARTS_IN_FLIGHT_MAX).try_collect::<Vec<_>>().await;
        let completed = match sent {
            // While the parts were sent another peer may have come to decide, or a newer version to be here.
            Ok(_) if entry.is_some_and(|entry| !self.may_send(entry)) => {
                return Err(ObjectError::VersionChanged(outgoing.name.to_string()));
            }
            Ok(parts) => self.context.backend.complete_upload(upload, outgoing.request(), parts).await,
            Err(error) => Err(error),
        };
        match completed {
            Ok(stored) => {
                self.upload_completed(begun).await;
                Ok(stored)
            }
            // Some servers do not say that an upload is not there (any more), but refuse access to it.
            Err(error)
                if error.kind == BackendErrorKind::NoSuchUpload || begun.is_resumed() && !error.is_retryable() =>
            {
                self.lose_upload(entry).await;
                Err(ObjectError::BackendUnavailable(format!("{error}; the upload begins anew")))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The upload of an entry is of no use any more.
    async fn lose_upload(&self, entry: Option<&Rc<Entry>>) {
        let Some(entry) = entry else { return };
        entry.record.borrow_mut().upload = None;
        entry.parts.borrow_mut().clear();
        let (task, record) = (entry.task.target.task, entry.record.borrow().clone());
        self.save(entry, vec![Change::RemoveParts { task }, Change::PutWriteBack { task, record }]).await;
    }

    /// Whether the version of an entry is still to be sent, and by this peer.
    fn may_send(&self, entry: &Entry) -> bool {
        self.decides(entry) && self.queue.holds(entry)
    }

    async fn send_part(
        self: &Rc<Self>,
        upload: Upload,
        number: u32,
        crc32: u32,
        body: BodySource,
        entry: Option<&Rc<Entry>>,
    ) -> Result<UploadedPart, BackendError> {
        let part = self.context.backend.put_part(upload, number, crc32, body).await?;
        if let Some(entry) = entry {
            let record = PartRecord { etag: part.etag.clone(), crc32 };
            entry.parts.borrow_mut().insert(number, record.clone());
            self.save(entry, vec![Change::PutPart { task: entry.task.target.task, number, record }]).await;
        }
        Ok(UploadedPart { crc32: Some(crc32), ..part })
    }

    /// The upload that an earlier attempt started, with the parts of it that the backend has, or a new one.
    async fn find_or_create_upload(
        self: &Rc<Self>,
        outgoing: &Outgoing,
        part_bytes: u64,
        entry: Option<&Rc<Entry>>,
    ) -> Result<(Begun, BTreeMap<u32, UploadedPart>), ObjectError> {
        let started = entry.and_then(|entry| entry.record.borrow().upload.clone());
        if let Some(started) = started.filter(|started| started.part_bytes == part_bytes) {
            let upload = Upload { name: outgoing.name.clone(), upload_id: started.upload_id };
            match self.context.backend.list_parts(upload.clone()).await {
                Ok(parts) => {
                    let sent = entry.map(|entry| entry.parts.borrow().clone()).unwrap_or_default();
                    return Ok((self.upload_resumed(outgoing.task, upload), resumable(parts, &sent)));
                }
                Err(error) if error.kind == BackendErrorKind::NoSuchUpload => {}
                Err(error) => return Err(error.into()),
            }
        }
        let begun = self.begin_upload(outgoing.task, outgoing.request()).await?;
        if let Some(entry) = entry {
            let started = UploadStarted { upload_id: begun.upload().upload_id, part_bytes };
            entry.record.borrow_mut().upload = Some(started);
            entry.parts.borrow_mut().clear();
            let record = entry.record.borrow().clone();
            let task = entry.task.target.task;
            self.save(entry, vec![Change::RemoveParts { task }, Change::PutWriteBack { task, record }]).await;
        }
        Ok((begun, BTreeMap::new()))
    }

    /// The bytes of `pieces`, read as they are needed. A piece that cannot be read ends the stream early, which fails
    /// the request.
    fn stream(self: &Rc<Self>, outgoing: &Outgoing, pieces: &[(u32, StoredPiece)]) -> BodySource {
        let (sender, slots) = mailbox(1);
        let length_bytes = pieces.iter().map(|(_, piece)| u64::from(piece.length)).sum();
        let (owner, pieces, damaged) = (self.clone(), pieces.to_vec(), outgoing.damaged.clone());
        let (task, generation) = (outgoing.task, outgoing.generation);
        spawn_local(async move {
            let Some(number) = owner.feed(pieces, sender).await else { return };
            // Where others hold it, it comes from there before the next attempt.
            if owner.quarantine(&task, generation, number).await.is_err() {
                damaged.set(true);
            }
        });
        BodySource::Stream { length_bytes, slots }
    }

    /// Gives the number of a piece that is not what was written. What else fails ends the stream early, and may heal; that
    /// the receiver has gone is no failure of ours.
    async fn feed(&self, pieces: Vec<(u32, StoredPiece)>, sender: Sender<Slot>) -> Option<u32> {
        for (number, piece) in pieces {
            let mut slot = slot_for(&self.context.arena, piece.length as usize, &sender).await?;
            // A large one that is hot would keep memory of those who serve as long as the backend takes.
            let hot = piece.lease.peek_hot().filter(|hot| hot.len() <= JOURNAL_PIECE_BYTES_MAX);
            let read = match hot {
                Some(hot) => {
                    slot.append(&hot);
                    Ok(slot.freeze())
                }
                None => {
                    let background = &self.context.background;
                    background.read_piece(piece.lease, piece.length as usize, piece.crc32, slot).await
                }
            };
            let read = read.inspect_err(|error| {
                tracing::error!(%error, number, "a piece that the backend does not have yet cannot be read");
            });
            let slot = match read {
                Ok(slot) => slot,
                Err(error) => return error.is_damage().then_some(number),
            };
            if sender.send(slot).await.is_err() {
                break;
            }
        }
        None
    }
}

/// Memory for a piece on its way to the backend; `None` when nobody takes it any more. Who waited on would keep the piece
/// before from being let go, and all who did so at the same time might wait for each other.
async fn slot_for(arena: &Arena, length: usize, sender: &Sender<Slot>) -> Option<SlotMut> {
    let mut taken = pin!(arena.take(length, Holder::WriteBack));
    while !sender.is_closed() {
        match select(taken.as_mut(), pin!(sleep(WRITEBACK_MEMORY_LOOK))).await {
            Either::Left((slot, _)) => return Some(slot),
            Either::Right(_) => {}
        }
    }
    None
}

/// Size of the parts of an object: the smallest whole number of pieces that stays within the number of parts.
fn part_bytes(length: u64) -> u64 {
    length.div_ceil(PARTS_MAX).next_multiple_of(u64::from(PIECE_BYTES)).max(PART_BYTES_MIN)
}

fn part_crc32(pieces: &[(u32, StoredPiece)]) -> u32 {
    let length = pieces.iter().map(|(_, piece)| u64::from(piece.length)).sum();
    whole_crc32(length, PIECE_BYTES, pieces.iter().map(|(_, piece)| piece.crc32))
}

/// The parts that the backend lists and that we know to have sent: same number, and same entity tag unless the backend
/// lists none (completing the upload names the tags again). Their checksums are those we sent.
fn resumable(listed: Vec<UploadedPart>, sent: &BTreeMap<u32, PartRecord>) -> BTreeMap<u32, UploadedPart> {
    let known = listed.into_iter().filter_map(|part| {
        let record = sent.get(&part.number).filter(|record| part.etag.is_empty() || record.etag == part.etag)?;
        Some((part.number, UploadedPart { crc32: Some(record.crc32), etag: record.etag.clone(), ..part }))
    });
    known.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::rt::arena::ARENA_BYTES_MIN;
    use crate::rt::shard::block_on;
    use crate::rt::time::timeout;

    #[test]
    fn parts_stay_within_the_limits_of_s3() {
        for length in [16 << 20, 5 << 30, 100 << 30, 5 << 40] {
            let bytes = part_bytes(length);
            assert!(length.div_ceil(bytes) <= PARTS_MAX, "{length}");
            assert!((PART_BYTES_MIN..=5 << 30).contains(&bytes) && bytes.is_multiple_of(u64::from(PIECE_BYTES)));
        }
    }

    #[test]
    fn who_waits_for_memory_for_a_request_that_is_over_ends() {
        let waited = block_on(async {
            let arena = Arena::new(ARENA_BYTES_MIN).expect("memory");
            let (sender, receiver) = mailbox(1);
            let piece = PIECE_BYTES as usize;
            // Of another request, which goes on.
            let all = std::iter::from_fn(|| arena.try_take(piece, Holder::WriteBack)).collect::<Vec<_>>();
            assert!(!all.is_empty(), "there is memory for a piece");
            let mut waiting = pin!(slot_for(&arena, piece, &sender));
            assert!(futures_util::poll!(waiting.as_mut()).is_pending());
            drop(receiver);
            timeout(Duration::from_secs(60), waiting).await.map(|slot| slot.is_some())
        });
        assert_eq!(waited.expect("a runtime"), Ok(false));
    }

    #[test]
    fn only_parts_that_we_sent_are_resumed() {
        let part = |number, etag: &str| UploadedPart { number, etag: etag.into(), length_bytes: 1, crc32: None };
        let sent = BTreeMap::from([
            (1, PartRecord { etag: "a".into(), crc32: 7 }),
            (2, PartRecord { etag: "b".into(), crc32: 8 }),
        ]);
        let found = resumable(vec![part(1, "a"), part(2, "other"), part(3, "c")], &sent);
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), [1]);
        assert_eq!(found[&1].crc32, Some(7));
        assert_eq!(resumable(vec![part(2, "")], &sent)[&2].etag, "b", "some servers list no tags");
    }
}
