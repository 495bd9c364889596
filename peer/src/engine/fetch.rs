//! Finding one piece of an opened version: on disk, in memory, or elsewhere, once however many ask.
//!
//! Elsewhere is, at a peer that decides about the task: other peers that hold the piece, then the backend; at any other
//! peer whoever its [`download`](super::download) chooses. A fetched piece is verified (length, version, CRC as
//! received) before anyone sees it. It goes to all who wait and to the disk at the same time; if the disk does not take
//! it, it is forgotten: it was only a cache.

use std::cell::Cell;
use std::ops::Range;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dfstore_proto::error::ErrorCode;
use dfstore_proto::ids::TaskId;
use dfstore_proto::message::{Fetch, Message, NodeRole, Recall};
use dfstore_proto::object::Source;
use futures_util::future::{Either, select};

use crate::catalog::{Change, PieceSet};
use crate::engine::call::{Asker, PieceAnswer, Wanted};
use crate::engine::error::ObjectError;
use crate::engine::owner::Owner;
use crate::engine::request::piece_length;
use crate::engine::version::{PieceState, StoredPiece, Version, Waiter};
use crate::limits::{
    ADMISSION_POLL, ADMISSION_TIMEOUT, FETCH_ATTEMPTS_MAX, FETCH_RETRY_DELAY, HOLDER_BYTES_PER_SECOND_MIN,
    HOLDER_WATCH_PERIOD, HOLDERS_ASKED_MAX, SPARE_FETCH_SLOTS, SWARM_DIRECT_PIECES_MAX, SWARM_SILENCE_MAX,
};
use crate::links::LinkError;
use crate::membership::Node;
use crate::rt::arena::{Holder, Slot, SlotMut};
use crate::rt::mailbox::oneshot;
use crate::rt::shard::spawn_local;
use crate::rt::time::{since_start, sleep, timeout};
use crate::sidecar::backend::{BackendErrorKind, GetRequest};

/// A piece that came, verified: its bytes, their checksum, where they came from.
pub type Arrived = (Slot, u32, Source);

impl Owner {
    /// Where a piece is; has it fetched if it is nowhere.
    pub async fn piece(
        self: &Rc<Self>,
        task: &TaskId,
        generation: u64,
        wanted: Wanted,
    ) -> Result<PieceAnswer, ObjectError> {
        let version = self.opened_version(task, generation)?;
        let Wanted { number, .. } = wanted;
        let length = version.piece_length(number);
        if length == 0 {
            return Err(ObjectError::InvalidArgument(format!("the object has no piece {number}")));
        }
        let by_peer = wanted.asker == Asker::Peer;
        if by_peer {
            version.note_remote_reader();
        }
        let is_away = !by_peer && self.is_away(task);
        let answer = {
            let mut pieces = version.pieces.borrow_mut();
            match pieces.get_mut(&number) {
                Some(PieceState::Stored(piece)) => return Ok(on_disk(&version, piece)),
                Some(PieceState::Memory { .. }) if !wanted.urgent && self.is_memory_scarce(length) => {
                    return Ok(PieceAnswer::Later);
                }
                Some(PieceState::Memory { slot, crc32, source }) => {
                    return Ok(in_memory((slot.clone(), *crc32, *source)));
                }
                _ if wanted.local_only => {
                    return Err(ObjectError::NotFound(format!("piece {number} of task {task} on this peer")));
                }
                Some(PieceState::Fetching(waiters)) => {
                    self.metrics.fetch_joined();
                    let (reply, answer) = oneshot::channel();
                    waiters.push(Waiter { reply, urgent: wanted.urgent });
                    answer
                }
                None if !version.is_clean() && self.cluster.is_none() => {
                    return Err(ObjectError::Internal(format!(
                        "piece {number} of a version not in the backend is gone"
                    )));
                }
                None => {
                    let slot = self.context.arena.try_take(length as usize, Holder::Fetch);
                    if slot.is_none() && !wanted.urgent {
                        return Ok(PieceAnswer::Later);
                    }
                    let (reply, answer) = oneshot::channel();
                    pieces.insert(number, PieceState::Fetching(vec![Waiter { reply, urgent: wanted.urgent }]));
                    if !is_away {
                        self.spawn_fetch_as_home(&version, number, slot, wanted.asker);
                    }
                    answer
                }
            }
        };
        if is_away {
            self.demand(&version, wanted);
        }
        answer.await.unwrap_or(Err(ObjectError::ShuttingDown))
    }

    /// Begins to bring a piece here that nobody waits for yet, if there is memory to spare.
    pub fn fetch_ahead(self: &Rc<Self>, version: &Rc<Version>, number: u32) -> bool {
        let length = version.piece_length(number);
        if length == 0 || self.is_memory_scarce(length) {
            return false;
        }
        let Some(slot) = self.context.arena.try_take(length as usize, Holder::Fetch) else { return false };
        version.pieces.borrow_mut().insert(number, PieceState::Fetching(Vec::new()));
        self.spawn_fetch_as_home(version, number, Some(slot), Asker::Peer);
        true
    }

    fn spawn_fetch_as_home(self: &Rc<Self>, version: &Rc<Version>, number: u32, slot: Option<SlotMut>, asker: Asker) {
        let (owner, version) = (self.clone(), version.clone());
        spawn_local(async move {
            let came = owner.fetch_as_home(&version, number, slot, asker).await;
            owner.deliver(&version, number, came).await;
        });
    }

    /// Answers all who wait for a piece, and stores it.
    pub async fn deliver(self: &Rc<Self>, version: &Rc<Version>, number: u32, came: Result<Arrived, ObjectError>) {
        let waiters = match version.pieces.borrow_mut().remove(&number) {
            Some(PieceState::Fetching(waiters)) => waiters,
            _ => Vec::new(),
        };
        match came {
            Ok((slot, crc32, source)) => {
                version.pieces.borrow_mut().insert(number, PieceState::Memory { slot: slot.clone(), crc32, source });
                let (urgent, ahead): (Vec<Waiter>, Vec<Waiter>) = waiters.into_iter().partition(|waiter| waiter.urgent);
                answer_all(urgent, || Ok(in_memory((slot.clone(), crc32, source))));
                let is_scarce = self.is_memory_scarce(version.piece_length(number));
                answer_all(ahead, || match is_scarce {
                    true => Ok(PieceAnswer::Later),
                    false => Ok(in_memory((slot.clone(), crc32, source))),
                });
                self.keep(version, number, slot, crc32).await;
            }
            Err(error) => {
                answer_all(waiters, || Err(error.clone()));
                version.stored.notify(usize::MAX);
            }
        }
    }

    /// Whether what is read ahead must not stay in memory. Pieces come in any order: if those of later use held all of it,
    /// the one that a client waits for could not come.
    fn is_memory_scarce(&self, length: u32) -> bool {
        !self.context.arena.has_room(length as usize, Holder::Fetch, SPARE_FETCH_SLOTS)
    }

    /// Gets one piece as the peer that decides about the task: from other peers that hold it, else from the backend.
    async fn fetch_as_home(
        &self,
        version: &Version,
        number: u32,
        slot: Option<SlotMut>,
        asker: Asker,
    ) -> Result<Arrived, ObjectError> {
        let length = version.piece_length(number) as usize;
        let mut slot = match slot {
            Some(slot) => Some(slot),
            None => Some(self.take_fetch_slot(length).await?),
        };
        let holders = self.holders_of(version, number);
        let mut lost = None;
        // When those who have it are busy sending other pieces, they are waited for if the backend does not have it, or if
        // nobody else waits.
        let is_patient = asker == Asker::Copy || !version.is_clean();
        let mut rounds_left = if is_patient { ADMISSION_TIMEOUT.as_millis() / ADMISSION_POLL.as_millis() } else { 1 };
        while rounds_left > 0 {
            rounds_left -= 1;
            let mut is_busy = false;
            for holder in &holders {
                let buffer = match slot.take() {
                    Some(slot) => slot,
                    None => self.take_fetch_slot(length).await?,
                };
                match self.fetch_from(holder, version, number, buffer).await {
                    Ok(arrived) => return Ok(arrived),
                    Err(error) => {
                        is_busy |= matches!(error, ObjectError::Busy { .. });
                        lost = Some(error);
                    }
                }
            }
            if !is_busy || rounds_left == 0 {
                break;
            }
            sleep(ADMISSION_POLL).await;
        }
        if version.is_clean() {
            return match asker {
                Asker::Peer => self.fetch_from_backend_in_turn(version, number, slot).await,
                Asker::Reader | Asker::Copy => self.fetch_from_backend(version, number, slot).await,
            };
        }
        let error = lost.unwrap_or_else(|| ObjectError::PeerUnavailable("nobody who is alive holds it".into()));
        tracing::warn!(%error, task = %version.task, number, "a piece that the backend does not have cannot be had");
        Err(ObjectError::PeerUnavailable(format!("piece {number} of task {}: {error}", version.task)))
    }

    /// Live nodes that are known to hold a piece; at most as many as are worth asking. Those that are left alone for now
    /// come last, and only for what the backend does not have.
    fn holders_of(&self, version: &Version, number: u32) -> Vec<Arc<Node>> {
        let Some(cluster) = &self.cluster else { return Vec::new() };
        let members = cluster.members();
        let known = version.holders.borrow().having(number);
        let live = known.iter().filter(|node| **node != members.me).filter_map(|node| members.find(node).cloned());
        let is_avoided = |node: &Arc<Node>| self.rogues.borrow().is_avoided(&node.id, since_start());
        let (avoided, mut holders): (Vec<_>, Vec<_>) = live.partition(is_avoided);
        if !version.is_clean() {
            holders.extend(avoided);
        }
        holders.truncate(HOLDERS_ASKED_MAX);
        holders
    }

    /// Gets a piece from a peer that has it.
    async fn fetch_from(
        &self,
        node: &Node,
        version: &Version,
        number: u32,
        slot: SlotMut,
    ) -> Result<Arrived, ObjectError> {
        let Some(cluster) = &self.cluster else { return Err(ObjectError::Internal("there is no cluster".into())) };
        let fetch = Fetch { task: version.task, generation: version.generation, number, local_only: true };
        let slot = sized(slot, version.piece_length(number));
        let bytes = Rc::new(Cell::new(0));
        let fetch = pin!(cluster.links.fetch(node, fetch, slot, Some(bytes.clone())));
        let reason = match select(fetch, pin!(too_slow(&bytes))).await {
            Either::Left((Ok(piece), _)) => return Ok(arrived(piece.slot, piece.head.crc32, source_of(node))),
            Either::Left((Err(LinkError::Refused(reply)), _)) => {
                if matches!(reply.code, ErrorCode::NotFound | ErrorCode::VersionChanged) {
                    // It had all of it once. Others may still have it.
                    version.holders.borrow_mut().forget(&node.id);
                }
                if reply.code == ErrorCode::Busy {
                    return Err(busy("a peer that holds the piece sends others"));
                }
                reply.to_string()
            }
            Either::Left((Err(error), _)) => {
                self.avoid(node);
                error.to_string()
            }
            Either::Right(_) => {
                self.avoid(node);
                format!("peer {} is too slow", node.id)
            }
        };
        tracing::debug!(reason, node = %node.id, number, "a piece did not come from a peer");
        Err(ObjectError::PeerUnavailable(reason))
    }

    /// Leaves a peer alone for a while.
    fn avoid(&self, node: &Node) {
        self.rogues.borrow_mut().note(&node.id, since_start());
        self.metrics.parents_avoided(1);
    }

    /// Memory for a piece that comes from elsewhere.
    pub async fn take_fetch_slot(&self, length: usize) -> Result<SlotMut, ObjectError> {
        let taken = timeout(ADMISSION_TIMEOUT, self.context.arena.take(length, Holder::Fetch)).await;
        taken.map_err(|_| busy("all memory for reads from the backend and from peers is in use"))
    }

    /// Gets one piece from the backend for other peers: only so many at once as it takes to keep the way there busy, so
    /// that each is soon complete and on its way to others.
    async fn fetch_from_backend_in_turn(
        &self,
        version: &Version,
        number: u32,
        slot: Option<SlotMut>,
    ) -> Result<Arrived, ObjectError> {
        let _turn = version.paced.acquire(|| version.pace.borrow().at_once()).await;
        let began = since_start();
        let came = self.fetch_from_backend(version, number, slot).await?;
        version.pace.borrow_mut().took(since_start().saturating_sub(began));
        Ok(came)
    }

    /// Gets one piece from the backend.
    pub async fn fetch_from_backend(
        &self,
        version: &Version,
        number: u32,
        slot: Option<SlotMut>,
    ) -> Result<Arrived, ObjectError> {
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
                None => self.take_fetch_slot(length).await?,
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
                    return Ok(arrived(fetched.slot, fetched.crc32, Source::Backend));
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
                    if is_another_version(error.kind) {
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
        let stored = self.write_new(slot.clone(), Some(&version.task)).await;
        let task = self.known(&version.task);
        // The record of what replaces the version must come after this one.
        let commit = match &task {
            Some(task) => Some(task.commit_lock.lock().await),
            None => None,
        };
        version.pieces.borrow_mut().remove(&number);
        match (stored, task.as_ref().filter(|task| task.is_current(version))) {
            (Ok(reservation), Some(task)) => {
                let piece = StoredPiece { length, crc32, lease: reservation.keep() };
                self.context.arena.keep_hot(piece.lease.hot(), slot);
                self.eviction.borrow_mut().grow(version.task, piece.lease.length_bytes());
                if let Some(hold) = version.dirty.borrow().as_ref() {
                    hold.grow(u64::from(length));
                }
                let mut changes = Vec::with_capacity(2);
                if !version.recorded.get() {
                    changes.push(self.record_change(task, version));
                }
                changes.push(version.piece_change(number, &piece));
                version.put_stored(number, piece);
                if version.is_whole() && version.piece_count() <= SWARM_DIRECT_PIECES_MAX {
                    self.tell_whole(version);
                }
                let rest = self.give_to_catalog(changes);
                drop(commit);
                rest.await;
                self.evict_to_watermark().await;
            }
            // Replaced while it was written: nothing names the blocks, they are free when the reservation drops.
            (Ok(_), None) => self.lost_piece(version, number),
            (Err(error), _) => {
                tracing::warn!(%error, "a fetched piece was not kept");
                self.lost_piece(version, number);
            }
        }
    }

    /// A piece that was here is here no longer.
    fn lost_piece(&self, version: &Version, number: u32) {
        version.stored.notify(usize::MAX);
        if let Some(download) = version.download.borrow().as_ref() {
            download.lost(number);
        }
    }

    /// A piece on disk failed its checksum: it is never served. One that can be had from elsewhere is forgotten and
    /// fetched again; one that only this peer has stays where it is for repair.
    pub async fn quarantine(self: &Rc<Self>, task: &TaskId, generation: u64, number: u32) -> Result<(), ObjectError> {
        let version = self.opened_version(task, generation)?;
        self.metrics.crc_failed();
        tracing::error!(%task, generation, number, "a piece on disk failed its checksum");
        let no_other_known = !version.is_clean() && self.holders_of(&version, number).is_empty();
        if no_other_known && !self.home_has_all(&version).await {
            return Err(ObjectError::Internal(format!("piece {number} is damaged on disk and not in the backend yet")));
        }
        if version.take_stored(number).is_some() {
            self.metrics.piece_quarantined();
            if self.known(task).is_some_and(|task| task.is_current(&version)) {
                self.eviction.borrow_mut().insert(*task, version.disk_bytes());
            }
            self.lost_piece(&version, number);
            // Its blocks stay taken until the next start: they may be bad.
            let change = Change::RemovePieces { task: *task, generation, pieces: PieceSet::Numbers(vec![number]) };
            self.commit_lazily(vec![change]).await;
        }
        Ok(())
    }

    /// Whether another peer decides about a version that this one wrote, and has all of it.
    async fn home_has_all(&self, version: &Version) -> bool {
        let Some(task) = self.known(&version.task) else { return false };
        match self.ask_homes(&task, || Recall { target: task.target.to_message() }).await {
            Ok(Some(Message::Recalled(known))) => {
                known.whole && known.version.is_some_and(|record| record.generation == version.generation)
            }
            _ => false,
        }
    }
}

/// Completes when a piece whose bytes so far are counted in `bytes` comes too slowly to wait for it.
async fn too_slow(bytes: &Cell<u64>) {
    let (began, mut seen, mut seen_at) = (since_start(), 0, since_start());
    loop {
        sleep(HOLDER_WATCH_PERIOD).await;
        let now = since_start();
        if bytes.get() > seen {
            (seen, seen_at) = (bytes.get(), now);
        }
        let age = now.saturating_sub(began);
        let is_crawling = age > SWARM_SILENCE_MAX && seen < HOLDER_BYTES_PER_SECOND_MIN * age.as_secs();
        if is_crawling || now > seen_at + SWARM_SILENCE_MAX {
            return;
        }
    }
}

/// Whether a failed read of a range that the version has says that the backend has another one. Some servers look at the
/// range before they look at `If-Match`.
fn is_another_version(kind: BackendErrorKind) -> bool {
    use BackendErrorKind::{NotFound, RangeNotSatisfiable, VersionChanged};
    matches!(kind, VersionChanged | NotFound | RangeNotSatisfiable)
}

/// The bytes of the object that piece `number` holds.
fn piece_range(length: u64, piece_bytes: u32, number: u32) -> Range<u64> {
    let start = u64::from(number) * u64::from(piece_bytes);
    start..start + u64::from(piece_length(length, piece_bytes, number))
}

/// A slot that takes a piece of this length and no other.
pub fn sized(mut slot: SlotMut, length: u32) -> SlotMut {
    slot.set_len(length as usize);
    slot
}

/// A verified piece, ready to be given out and written.
pub fn arrived(mut slot: SlotMut, crc32: u32, source: Source) -> Arrived {
    slot.zero_block_tail();
    (slot.freeze(), crc32, source)
}

/// What is said of bytes that come from a node.
pub fn source_of(node: &Node) -> Source {
    match node.role {
        NodeRole::Seed => Source::Seed,
        NodeRole::Peer => Source::Peer,
    }
}

fn on_disk(version: &Version, piece: &StoredPiece) -> PieceAnswer {
    let is_pending = version.standing() == crate::engine::request::Standing::Dirty;
    let source = if is_pending { Source::Pending } else { Source::Local };
    PieceAnswer::Disk { lease: piece.lease.clone(), crc32: piece.crc32, source }
}

fn in_memory((slot, crc32, source): Arrived) -> PieceAnswer {
    PieceAnswer::Memory { slot, crc32, source }
}

fn answer_all(waiters: Vec<Waiter>, make: impl Fn() -> Result<PieceAnswer, ObjectError>) {
    for waiter in waiters {
        // A reader that has gone needs no answer.
        drop(waiter.reply.send(make()));
    }
}

/// The error for a limit of this process that was reached.
pub fn busy(reason: &str) -> ObjectError {
    ObjectError::Busy { reason: reason.to_owned(), retry_after: Duration::from_secs(2) }
}
