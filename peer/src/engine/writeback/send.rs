//! Sending the bytes of one version to the backend: in one request, or as a multipart upload that is resumed after a
//! crash from the parts the backend has.
//!
//! Pieces are read by the background executor and stream through a channel of one: an upload holds one or two pieces
//! in memory whatever the object's size, and two uploads never wait for each other's memory. Each part carries the
//! CRC32 combined of those of its pieces, which were computed when the bytes entered this peer.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use dfstore_proto::crc::whole_crc32;
use dfstore_proto::ids::ObjectName;
use dfstore_proto::object::ObjectMeta;
use futures_util::{StreamExt, TryStreamExt};

use crate::background::BackgroundError;
use crate::catalog::{Change, PartRecord, UploadStarted};
use crate::engine::error::ObjectError;
use crate::engine::numbers;
use crate::engine::owner::Owner;
use crate::engine::version::StoredPiece;
use crate::engine::writeback::Entry;
use crate::limits::{MULTIPART_THRESHOLD_BYTES, PART_BYTES_MIN, PARTS_IN_FLIGHT_MAX, PARTS_MAX, PIECE_BYTES};
use crate::rt::arena::{Holder, Slot};
use crate::rt::mailbox::{Sender, mailbox};
use crate::rt::shard::spawn_local;
use crate::rt::time::unix_ms;
use crate::sidecar::backend::{BackendErrorKind, BodySource, PutRequest, Stored, Upload, UploadedPart};

/// A version on its way to the backend.
pub struct Outgoing {
    /// Where to.
    pub name: ObjectName,
    /// Its attributes.
    pub meta: ObjectMeta,
    /// Its number.
    pub generation: u64,
    /// CRC32 of the whole.
    pub crc32: Option<u32>,
    /// All its pieces, in order.
    pub pieces: Vec<StoredPiece>,
    /// Set when one of them is not what was written: trying again does not help.
    pub damaged: Rc<Cell<bool>>,
}

impl Outgoing {
    fn length(&self) -> u64 {
        self.pieces.iter().map(|piece| u64::from(piece.length)).sum()
    }

    fn request(&self) -> PutRequest {
        PutRequest {
            name: self.name.clone(),
            meta: self.meta.clone(),
            written_as: numbers::written_as(self.crc32, self.generation),
            crc32: self.crc32,
            only_if_absent: false,
        }
    }
}

impl Owner {
    /// Sends a version; gives its attributes as the backend now has them. Progress of a multipart upload is kept with
    /// the queue's entry, if there is one.
    pub async fn send(
        self: &Rc<Self>,
        outgoing: &Outgoing,
        entry: Option<&Rc<Entry>>,
    ) -> Result<ObjectMeta, ObjectError> {
        let stored = if outgoing.length() < MULTIPART_THRESHOLD_BYTES {
            let body = self.stream(outgoing, &outgoing.pieces);
            self.context.backend.put(outgoing.request(), body).await.map_err(ObjectError::from)
        } else {
            self.send_parts(outgoing, entry).await
        };
        if outgoing.damaged.get() {
            return Err(ObjectError::Internal(format!("{} is damaged on disk", outgoing.name)));
        }
        let stored = stored?;
        // What the backend says of it is what every later answer is compared with.
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
            meta.etag = stored.etag;
        }
        Ok(meta)
    }

    async fn send_parts(
        self: &Rc<Self>,
        outgoing: &Outgoing,
        entry: Option<&Rc<Entry>>,
    ) -> Result<Stored, ObjectError> {
        let part_bytes = part_bytes(outgoing.length());
        let (upload, there) = self.find_or_create_upload(outgoing, part_bytes, entry).await?;
        let per_part = usize::try_from(part_bytes / u64::from(PIECE_BYTES)).expect("a part is at most 5 GiB");
        let parts = outgoing.pieces.chunks(per_part).zip(1..).map(|(pieces, number)| {
            let (upload, known) = (upload.clone(), there.get(&number).cloned());
            async move {
                let crc32 = part_crc32(pieces);
                let length_bytes: u64 = pieces.iter().map(|piece| u64::from(piece.length)).sum();
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
        let result = match sent {
            // While the parts were sent another peer may have come to decide, or a newer version to be here.
            Ok(_) if entry.is_some_and(|entry| !self.may_send(entry)) => {
                Err(ObjectError::VersionChanged(outgoing.name.to_string()))
            }
            Ok(parts) => {
                let completed = self.context.backend.complete_upload(upload.clone(), outgoing.request(), parts).await;
                completed.map_err(ObjectError::from)
            }
            Err(error) => Err(error),
        };
        // Without an entry in the queue nobody will resume it.
        if result.is_err() && entry.is_none_or(|entry| !self.queue.holds(entry)) {
            let (backend, upload) = (self.context.backend.clone(), upload.clone());
            spawn_local(async move { drop(backend.abort_upload(upload).await) });
        }
        result
    }

    /// Whether the version of an entry is still to be sent, and by this peer.
    pub fn may_send(&self, entry: &Entry) -> bool {
        let decides = !self.is_away(&entry.task.target.task) || entry.is_home_lost(unix_ms());
        decides && self.queue.holds(entry)
    }

    async fn send_part(
        self: &Rc<Self>,
        upload: Upload,
        number: u32,
        crc32: u32,
        body: BodySource,
        entry: Option<&Rc<Entry>>,
    ) -> Result<UploadedPart, ObjectError> {
        let part = self.context.backend.put_part(upload, number, crc32, body).await?;
        if let Some(entry) = entry {
            let record = PartRecord { etag: part.etag.clone(), crc32 };
            entry.parts.borrow_mut().insert(number, record.clone());
            if self.queue.holds(entry) {
                let change = Change::PutPart { task: entry.task.target.task, number, record };
                self.commit_lazily(vec![change]).await;
            }
        }
        Ok(UploadedPart { crc32: Some(crc32), ..part })
    }

    /// The upload that an earlier attempt started, with the parts of it that the backend has, or a new one.
    async fn find_or_create_upload(
        self: &Rc<Self>,
        outgoing: &Outgoing,
        part_bytes: u64,
        entry: Option<&Rc<Entry>>,
    ) -> Result<(Upload, BTreeMap<u32, UploadedPart>), ObjectError> {
        let started = entry.and_then(|entry| entry.record.borrow().upload.clone());
        if let Some(started) = started.filter(|started| started.part_bytes == part_bytes) {
            let upload = Upload { name: outgoing.name.clone(), upload_id: started.upload_id };
            match self.context.backend.list_parts(upload.clone()).await {
                Ok(parts) => {
                    let sent = entry.map(|entry| entry.parts.borrow().clone()).unwrap_or_default();
                    return Ok((upload, resumable(parts, &sent)));
                }
                Err(error) if error.kind == BackendErrorKind::NoSuchUpload => {}
                Err(error) => return Err(error.into()),
            }
        }
        let upload = self.context.backend.create_upload(outgoing.request()).await?;
        if let Some(entry) = entry {
            let started = UploadStarted { upload_id: upload.upload_id.clone(), part_bytes };
            entry.record.borrow_mut().upload = Some(started);
            entry.parts.borrow_mut().clear();
            let record = entry.record.borrow().clone();
            if self.queue.holds(entry) {
                let task = entry.task.target.task;
                self.commit_lazily(vec![Change::RemoveParts { task }, Change::PutWriteBack { task, record }]).await;
            }
        }
        Ok((upload, BTreeMap::new()))
    }

    /// The bytes of `pieces`, read as they are needed. A piece that cannot be read ends the stream early, which fails
    /// the request.
    fn stream(self: &Rc<Self>, outgoing: &Outgoing, pieces: &[StoredPiece]) -> BodySource {
        let (sender, slots) = mailbox(1);
        let length_bytes = pieces.iter().map(|piece| u64::from(piece.length)).sum();
        let (owner, pieces, damaged) = (self.clone(), pieces.to_vec(), outgoing.damaged.clone());
        spawn_local(async move {
            if owner.feed(pieces, sender).await.is_err_and(|error| error.is_damage()) {
                damaged.set(true);
            }
        });
        BodySource::Stream { length_bytes, slots }
    }

    /// Fails when a piece cannot be read. That the receiver has gone is no failure of ours.
    async fn feed(&self, pieces: Vec<StoredPiece>, sender: Sender<Slot>) -> Result<(), BackgroundError> {
        for piece in pieces {
            let slot = self.context.arena.take(piece.length as usize, Holder::WriteBack).await;
            let read = self.context.background.read_piece(piece.lease, piece.length as usize, piece.crc32, slot).await;
            let slot = read.inspect_err(|error| {
                if error.is_damage() {
                    self.metrics.piece_quarantined();
                }
                tracing::error!(%error, "a piece that the backend does not have yet cannot be read");
            })?;
            if sender.send(slot).await.is_err() {
                break;
            }
        }
        Ok(())
    }
}

/// Size of the parts of an object: the smallest whole number of pieces that stays within the number of parts.
fn part_bytes(length: u64) -> u64 {
    length.div_ceil(PARTS_MAX).next_multiple_of(u64::from(PIECE_BYTES)).max(PART_BYTES_MIN)
}

fn part_crc32(pieces: &[StoredPiece]) -> u32 {
    let length = pieces.iter().map(|piece| u64::from(piece.length)).sum();
    whole_crc32(length, PIECE_BYTES, pieces.iter().map(|piece| piece.crc32))
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

    #[test]
    fn parts_stay_within_the_limits_of_s3() {
        for length in [16 << 20, 5 << 30, 100 << 30, 5 << 40] {
            let bytes = part_bytes(length);
            assert!(length.div_ceil(bytes) <= PARTS_MAX, "{length}");
            assert!((PART_BYTES_MIN..=5 << 30).contains(&bytes) && bytes.is_multiple_of(u64::from(PIECE_BYTES)));
        }
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
