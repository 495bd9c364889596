//! Writing an object: admission, pieces in any order, one commit.
//!
//! What is promised when [`Owner::commit`] returns: in the asynchronous mode the bytes are synced, or, if they are few,
//! in the catalog's journal, and the catalog's record of them is durable, with the entry in the write-back queue; in the
//! synchronous mode the backend has the object; an ephemeral object is as durable as an asynchronous one and has no queue
//! entry. Until then nobody sees anything of it, and a crash leaves nothing of it: nothing durable names its blocks.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use dfstore_proto::crc::whole_crc32;
use dfstore_proto::object::{ObjectMeta, WriteMode};

use crate::catalog::{Change, Durability, PieceKey, TaskState, WriteBackKind, WriteBackRecord};
use crate::engine::call::{Kept, SmallObject, Ticket, WrittenPiece};
use crate::engine::context::DirtyHold;
use crate::engine::error::ObjectError;
use crate::engine::fetch::busy;
use crate::engine::numbers;
use crate::engine::owner::Owner;
use crate::engine::request::{CommitRequest, PutDone, PutRequest, piece_count, piece_length};
use crate::engine::task::Task;
use crate::engine::version::{StoredPiece, Version};
use crate::engine::writeback::Outgoing;
use crate::limits::{ADMISSION_POLL, ADMISSION_TIMEOUT, OBJECT_BYTES_MAX, PIECE_BYTES, UPLOADS_PER_SHARD_MAX};
use crate::rt::time::{sleep, unix_ms};
use crate::sidecar::backend::WriteCondition;
use crate::store::{LaterWrite, StoreError};

/// An upload in progress.
pub struct UploadState {
    ticket: Ticket,
    request: PutRequest,
    /// As in the request, unless the commit says otherwise.
    mode: Cell<WriteMode>,
    /// Likewise.
    replicas: Cell<u16>,
    pieces: RefCell<BTreeMap<u32, WrittenPiece>>,
    dirty: DirtyHold,
    closed: Cell<bool>,
}

/// The contents of a version that is about to be made.
struct Written {
    length: u64,
    crc32: u32,
    pieces: Vec<StoredPiece>,
    /// Bytes of the only piece, if they are few: the catalog keeps them, and the piece need not be synced.
    kept: Option<Kept>,
}

impl Owner {
    /// Begins an upload.
    pub async fn begin(self: &Rc<Self>, request: PutRequest) -> Result<Ticket, ObjectError> {
        self.check_fits(&request, request.length.unwrap_or(0))?;
        self.check_takes_writes()?;
        if self.uploads.borrow().len() >= UPLOADS_PER_SHARD_MAX {
            return Err(busy("too many uploads are in progress"));
        }
        let upload = self.context.unique_id();
        let ticket = Ticket { upload, piece_bytes: PIECE_BYTES };
        let state = UploadState {
            ticket,
            mode: Cell::new(request.mode),
            replicas: Cell::new(request.replicas),
            request,
            pieces: RefCell::default(),
            dirty: self.context.dirty.hold(),
            closed: Cell::new(false),
        };
        self.uploads.borrow_mut().insert(upload, Rc::new(state));
        Ok(ticket)
    }

    /// After a failed sync or commit nothing is acknowledged: better said before the bytes come.
    fn check_takes_writes(&self) -> Result<(), ObjectError> {
        let failed = self.store.is_poisoned() || self.context.catalog.is_failed();
        if failed { Err(ObjectError::Poisoned) } else { Ok(()) }
    }

    /// An object that is larger than everything that may be dirty can never be acknowledged: waiting does not help.
    fn check_fits(&self, request: &PutRequest, length: u64) -> Result<(), ObjectError> {
        let limit_bytes = self.context.dirty.limit_bytes();
        if length <= OBJECT_BYTES_MAX.min(limit_bytes) {
            return Ok(());
        }
        Err(ObjectError::NoSpace(format!(
            "{} has {length} bytes, and storage.dirtyLimit is {limit_bytes} bytes: raise it, or storage.capacity",
            request.target.name
        )))
    }

    /// Lets another connection feed an upload.
    pub fn join(&self, upload: u64) -> Result<Ticket, ObjectError> {
        self.upload(upload).map(|state| state.ticket)
    }

    fn upload(&self, upload: u64) -> Result<Rc<UploadState>, ObjectError> {
        self.uploads.borrow().get(&upload).cloned().ok_or(ObjectError::UploadUnknown(upload))
    }

    /// Lets one more piece in, as soon as the dirty limit allows it.
    pub async fn admit(&self, upload: u64, number: u32, length: u32) -> Result<(), ObjectError> {
        let state = self.upload(upload)?;
        let fits = u64::from(number) * u64::from(PIECE_BYTES) + u64::from(length) <= OBJECT_BYTES_MAX;
        if length == 0 || length > PIECE_BYTES || !fits {
            return Err(ObjectError::InvalidArgument(format!(
                "piece {number} of {length} bytes is not one of an object"
            )));
        }
        self.check_fits(&state.request, state.dirty.bytes() + u64::from(length))?;
        let waits = ADMISSION_TIMEOUT.as_millis() / ADMISSION_POLL.as_millis();
        for _ in 0..waits {
            if state.closed.get() {
                return Err(ObjectError::UploadUnknown(upload));
            }
            if state.dirty.try_grow(u64::from(length)) {
                return Ok(());
            }
            sleep(ADMISSION_POLL).await;
        }
        Err(busy("the limit of bytes that wait for the backend (storage.dirtyLimit) is reached"))
    }

    /// Notes a piece that is on disk (not yet synced).
    pub fn written(&self, upload: u64, piece: WrittenPiece) -> Result<(), ObjectError> {
        let state = self.upload(upload)?;
        state.pieces.borrow_mut().insert(piece.number, piece);
        Ok(())
    }

    /// Forgets an upload. Its space is free when the writes under way have ended.
    pub fn abort(&self, upload: u64) {
        if let Some(state) = self.uploads.borrow_mut().remove(&upload) {
            state.closed.set(true);
        }
    }

    /// Writes a small object in one go. Where the bytes go into the journal with the commit, they are written to their
    /// blocks after it.
    pub async fn put_small(
        self: &Rc<Self>,
        request: PutRequest,
        object: SmallObject,
        commit: CommitRequest,
    ) -> Result<PutDone, ObjectError> {
        let is_through = commit.mode.unwrap_or(request.mode) == WriteMode::WriteBack;
        let upload = self.begin(request).await?.upload;
        let SmallObject { slot, crc32 } = object;
        let length = u32::try_from(slot.len()).expect("it is small");
        let placed = async {
            self.admit(upload, 0, length).await?;
            let (reservation, kept) = if is_through {
                (self.write_new(slot, None).await?, None)
            } else {
                (self.take_space(slot.len(), None).await?, Some(Kept::Unwritten(slot)))
            };
            self.written(upload, WrittenPiece { number: 0, length, crc32, reservation, kept })
        };
        placed.await.inspect_err(|_| self.abort(upload))?;
        self.commit(upload, commit).await
    }

    /// Makes the upload the current version, with the promise of its mode.
    pub async fn commit(self: &Rc<Self>, upload: u64, request: CommitRequest) -> Result<PutDone, ObjectError> {
        let state = self.upload(upload)?;
        self.abort(upload);
        state.mode.set(request.mode.unwrap_or(state.request.mode));
        state.replicas.set(request.replicas.unwrap_or(state.request.replicas));
        let written = state.take_written(request.length, request.crc32)?;
        if written.kept.is_none() {
            let synced = self.store.sync(written.pieces.iter().map(|piece| piece.lease.extents())).await;
            synced.inspect_err(|_| written.give_back())?;
        }
        self.make_version(&state, &written).await
    }

    async fn make_version(self: &Rc<Self>, state: &Rc<UploadState>, written: &Written) -> Result<PutDone, ObjectError> {
        let request = &state.request;
        let task = self.task(&request.target);
        let meta = ObjectMeta {
            length: written.length,
            digest: format!("crc32:{:08x}", written.crc32),
            ..request.meta.clone()
        };
        match state.mode.get() {
            WriteMode::AsyncWriteBack => self.install_new(&task, meta, TaskState::Dirty, state, written).await,
            WriteMode::Ephemeral => self.install_new(&task, meta, TaskState::Ephemeral, state, written).await,
            WriteMode::WriteBack => self.install_through(&task, meta, state, written).await,
        }
    }

    /// A version that the backend does not have: numbered by the home, durable here, then known to all.
    async fn install_new(
        self: &Rc<Self>,
        task: &Rc<Task>,
        meta: ObjectMeta,
        state: TaskState,
        upload: &UploadState,
        written: &Written,
    ) -> Result<PutDone, ObjectError> {
        let generation = self.reserve(task).await.inspect_err(|_| written.give_back())?;
        let mut done = self.install(task, meta, state, upload, written, generation).await?;
        if let Some(version) = task.current().filter(|version| version.generation == generation) {
            done.copies = self.announce(task, &version, upload.request.ack_peers).await?;
        }
        Ok(done)
    }

    /// A version that the backend gets first, from this peer or from the home.
    async fn install_through(
        self: &Rc<Self>,
        task: &Rc<Task>,
        meta: ObjectMeta,
        upload: &UploadState,
        written: &Written,
    ) -> Result<PutDone, ObjectError> {
        let told = if self.is_away(&task.target.task) {
            // A number that nothing else of this peer has, by which the home asks for the pieces.
            let generation = upload.ticket.upload.max(1);
            let staged =
                Version::new(task.target.task, generation, meta.clone(), TaskState::Clean, Some(written.crc32));
            staged.durable.set(true);
            written.store_into(&staged);
            let told = self.write_through_home(task, &Rc::new(staged), upload.replicas.get()).await;
            told.inspect_err(|_| written.give_back())?
        } else {
            None
        };
        if let Some(told) = told {
            let mut done = self.install(task, told.meta, TaskState::Clean, upload, written, told.generation).await?;
            done.copies = told.replicas.saturating_add(1);
            if let Some(version) = task.current().filter(|version| version.generation == done.generation) {
                done.copies = self.await_copies(task, &version, upload.request.ack_peers, done.copies).await?;
            }
            return Ok(done);
        }
        let _backend = task.backend_lock.lock().await;
        let outgoing = Outgoing {
            task: task.target.task,
            name: upload.request.target.name.clone(),
            meta,
            // Its own number comes later, and is above this one.
            generation: self.next_number(task, unix_ms()),
            crc32: Some(written.crc32),
            pieces: (0..).zip(written.pieces.iter().cloned()).collect(),
            condition: WriteCondition::Always,
            damaged: Rc::default(),
        };
        let sent = self.changing_bucket(task, self.send(&outgoing)).await;
        let meta = sent.inspect_err(|_| written.give_back())?;
        let generation = self.reserve(task).await.inspect_err(|_| written.give_back())?;
        let mut done = self.install(task, meta, TaskState::Clean, upload, written, generation).await?;
        if let Some(version) = task.current().filter(|version| version.generation == generation) {
            // An older version that waits there for the backend must not come after this one if this peer is lost.
            self.tell_witness(task, &version).await;
            self.spread(task, &version);
            done.copies = self.await_copies(task, &version, upload.request.ack_peers, 1).await?;
        }
        Ok(done)
    }

    /// Puts the new version into the catalog, durably, then makes it the current one; unless a newer one came first.
    async fn install(
        self: &Rc<Self>,
        task: &Rc<Task>,
        mut meta: ObjectMeta,
        state: TaskState,
        upload: &UploadState,
        written: &Written,
        generation: u64,
    ) -> Result<PutDone, ObjectError> {
        let _commit = task.commit_lock.lock().await;
        let now_ms = unix_ms();
        if state != TaskState::Clean {
            meta.etag = numbers::own_etag(written.crc32, generation);
            meta.last_modified_ms = now_ms;
        }
        let version = Version::new(task.target.task, generation, meta, state, Some(written.crc32));
        version.validated_at_ms.set(now_ms);
        version.replicas.set(upload.replicas.get());
        version.durable.set(true);
        if task.current().is_some_and(|current| current.generation >= generation) {
            written.give_back();
            return Ok(self.put_done(&version));
        }
        written.store_into(&version);
        let queued = (state == TaskState::Dirty).then(|| self.new_entry(task, WriteBackKind::Put, generation));
        let mut changes = self.replacement(task, &version, queued.as_ref());
        let later = self.keep_in_journal(written, &version, &mut changes).inspect_err(|_| written.give_back())?;
        let committed = self.context.catalog.commit(changes, Durability::Durable).await;
        // Refused for lack of room, before it began: nothing names these blocks.
        committed.inspect_err(|error| {
            if error.is_retryable() {
                written.give_back()
            }
        })?;
        if let Some(later) = later {
            later.begin();
        }
        if state != TaskState::Clean {
            // The upload's own hold ends with it: for a moment both count, never neither.
            let hold = self.context.dirty.hold();
            hold.grow(upload.dirty.bytes());
            version.dirty.replace(Some(hold));
        }
        let version = Rc::new(version);
        self.publish_new(task, version.clone(), queued);
        self.evict_to_watermark().await;
        Ok(self.put_done(&version))
    }

    /// Commits the record of a version that takes the place of the current one, with its pieces and its entry in the
    /// queue, durably. For callers that hold `commit_lock`.
    pub async fn record_replacement(
        &self,
        task: &Task,
        version: &Version,
        queued: Option<&WriteBackRecord>,
    ) -> Result<(), ObjectError> {
        Ok(self.context.catalog.commit(self.replacement(task, version, queued), Durability::Durable).await?)
    }

    fn replacement(&self, task: &Task, version: &Version, queued: Option<&WriteBackRecord>) -> Vec<Change> {
        let mut changes = task.current().map_or_else(Vec::new, |before| before.forgetting());
        changes.push(self.record_change(task, version));
        changes.extend(version.piece_changes());
        // A multipart upload of the version before is of no use any more; its record goes with its parts.
        changes.push(Change::RemoveWriteBack { task: version.task });
        changes.extend(queued.map(|record| Change::PutWriteBack { task: version.task, record: record.clone() }));
        changes
    }

    /// Has the catalog keep the bytes that were not synced. Gives the write that is to begin when it has them, if nobody
    /// has written them. Should that fail, the catalog stops: what it keeps must not be forgotten.
    fn keep_in_journal(
        &self,
        written: &Written,
        version: &Version,
        changes: &mut Vec<Change>,
    ) -> Result<Option<LaterWrite>, StoreError> {
        let (Some(kept), Some(stored)) = (&written.kept, written.pieces.first()) else { return Ok(None) };
        let (piece, later) = match kept {
            Kept::Written(_) => (self.store.unsynced(&stored.lease)?, None),
            Kept::Unwritten(slot) => {
                let later = self.store.write_later(&stored.lease, slot.clone())?;
                self.context.arena.keep_hot(stored.lease.hot(), slot.clone());
                (later.piece(), Some(later))
            }
        };
        let key = PieceKey { task: version.task, generation: version.generation, number: 0 };
        changes.push(Change::KeepPiece { key, piece, bytes: kept.bytes() });
        Ok(later)
    }

    fn put_done(&self, version: &Version) -> PutDone {
        let asked = version.replicas.get();
        let possible = self.replicas_possible(asked);
        if self.cluster.is_some() && possible < asked {
            self.metrics.replicas_short();
        }
        PutDone {
            generation: version.generation,
            meta: version.meta.borrow().clone(),
            standing: version.standing(),
            copies: 1,
            replicas: (possible, asked),
        }
    }

    /// Shows a version that is durable to everyone, lets the one before go, and queues it for the backend.
    pub fn publish_new(self: &Rc<Self>, task: &Rc<Task>, version: Rc<Version>, queued: Option<WriteBackRecord>) {
        if let Some(before) = self.publish(task, Some(version.clone())) {
            self.let_go(before);
        }
        self.restart_eviction(&version);
        self.queue.remove(task);
        if let Some(record) = queued {
            self.queue.push(task.clone(), record, BTreeMap::new());
        }
    }
}

impl Written {
    /// Makes the pieces those of a version.
    fn store_into(&self, version: &Version) {
        for (number, piece) in (0..).zip(&self.pieces) {
            version.put_stored(number, piece.clone());
        }
    }

    /// Frees the space of pieces that the catalog was never told of. After a failed commit nobody knows whether it was:
    /// then the space stays taken until the next start.
    fn give_back(&self) {
        self.pieces.iter().for_each(|piece| piece.lease.clone().retire());
    }
}

impl UploadState {
    /// The pieces, checked: all there, of the right lengths, and with the right checksum of the whole.
    fn take_written(&self, length: u64, crc32: Option<u32>) -> Result<Written, ObjectError> {
        let pieces = self.pieces.take();
        let wanted = piece_count(length.min(OBJECT_BYTES_MAX), PIECE_BYTES) as usize;
        let fits = pieces.len() == wanted
            && pieces.values().zip(0..).all(|(piece, number)| {
                piece.number == number && piece.length == piece_length(length, PIECE_BYTES, number)
            });
        if !fits {
            let bytes: u64 = pieces.values().map(|piece| u64::from(piece.length)).sum();
            return Err(ObjectError::InvalidArgument(format!(
                "{} is not whole: {length} bytes were announced, {} pieces with {bytes} bytes arrived",
                self.request.target.name,
                pieces.len()
            )));
        }
        let whole = whole_crc32(length, PIECE_BYTES, pieces.values().map(|piece| piece.crc32));
        if let Some(expected) = crc32.filter(|expected| *expected != whole) {
            return Err(ObjectError::ChecksumMismatch(format!(
                "{} arrived with CRC32 {whole:08x} instead of {expected:08x}",
                self.request.target.name
            )));
        }
        let only = pieces.get(&0).filter(|_| pieces.len() == 1);
        let kept = only.and_then(|piece| piece.kept.clone());
        let pieces = pieces
            .into_values()
            .map(|piece| StoredPiece { length: piece.length, crc32: piece.crc32, lease: piece.reservation.keep() })
            .collect();
        Ok(Written { length, crc32: whole, pieces, kept })
    }
}
