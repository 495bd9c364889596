//! The use cases: open, read, put, copy, delete, list, write back. The order of things is decided here: who is asked
//! first, when a client is acknowledged.
//!
//! Each shard has one [`Engine`]. It owns the tasks whose ID hashes to its shard (`owner`) and asks the engines of
//! other shards about theirs by message ([`call`]). Faces (HTTP, native) see [`Engine`], [`Reader`] and [`Upload`]
//! only; they never touch the store, the catalog or the backend.
//!
//! | file | what |
//! |---|---|
//! | `request`, `error` | what faces ask and get |
//! | `call` | messages between shards |
//! | `version`, `owner`, `numbers` | state: tasks, versions, pieces; the table of one shard; how versions are numbered |
//! | `open`, `fetch`, `reader` | reading: which version, where a piece is, pieces in order |
//! | `put`, `upload` | writing |
//! | `cluster` | who is there, whose task something is |
//! | `locate`, `download` | reading where another peer decides: which version, pieces from other peers |
//! | `publish` | writing there: numbers, telling the home |
//! | `home`, `holders`, `graves`, `peers` | what this peer answers to others as the home of a task |
//! | `replicate` | copies on seeds, and repair |
//! | `delete`, `copy`, `list` | the rest of the object API |
//! | `space` | allocation, eviction, letting go |
//! | `writeback` | the queue to the backend |
//! | `start`, `context` | making an engine from what the catalog holds; what all shards share |

pub mod call;
mod cluster;
pub mod context;
mod copy;
mod delete;
mod download;
pub mod error;
mod fetch;
mod graves;
mod holders;
mod home;
mod list;
mod locate;
mod numbers;
mod open;
mod owner;
mod peers;
mod publish;
mod put;
mod reader;
mod replicate;
pub mod request;
mod rogues;
mod scrub;
mod space;
mod start;
mod task;
mod upload;
mod version;
mod writeback;

pub use cluster::Cluster;
pub use context::{Context, DirtyBudget, RepairPlan, ScrubPlan};
pub use error::ObjectError;
pub use list::PendingList;
pub use reader::{Chunk, PeerPiece, PieceStream, Reader};
pub use space::Evictions;
pub use start::{Inventory, LargerPieces, ShardInventory, TaskInventory};
pub use upload::Upload;

use std::rc::Rc;
use std::sync::Arc;

use dfstore_proto::ids::{ObjectName, TaskId};
use dfstore_proto::message::{Message, QueueEntry, ScrubOk};

use crate::config::options::BackendDescription;
use crate::engine::call::{Held, PieceAnswer, Reply, ShardMessage, SmallObject, TaskCall, Wanted, WrittenPiece};
use crate::engine::owner::Owner;
use crate::engine::request::{
    CommitRequest, DeleteDone, ListPage, ListRequest, Order, PutRequest, QueueRequest, Stat, Target,
};
use crate::limits::ADMISSION_TIMEOUT;
use crate::membership::{Members, Node, NodeState};
use crate::metrics::Metrics;
use crate::rt::arena::{Arena, Holder, Slot, SlotMut};
use crate::rt::mailbox::Sender;
use crate::rt::shard::{detached, spawn_local};
use crate::rt::time::timeout;
use crate::store::{PieceStore, Reservation, seal};

/// The use cases of one shard. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct Engine(Rc<Owner>);

impl Engine {
    /// This shard's number.
    pub fn shard(&self) -> usize {
        self.0.shard
    }

    /// The shard that owns a task. A connection moves there before its first request is served.
    pub fn owner_of(&self, task: &TaskId) -> usize {
        task.owner(self.0.context.shards.len())
    }

    /// The mailbox of a shard, to hand a connection over.
    pub fn mailbox(&self, shard: usize) -> &Sender<ShardMessage> {
        &self.0.context.shards[shard]
    }

    /// The arena that bodies are received into.
    pub fn arena(&self) -> &Arena {
        &self.0.context.arena
    }

    /// Counters.
    pub fn metrics(&self) -> &Metrics {
        &self.0.context.metrics
    }

    /// The current version's attributes. `no_cache` asks the backend whatever the freshness policy says.
    pub async fn stat(&self, target: &Target, no_cache: bool) -> Result<Stat, ObjectError> {
        self.open(target, no_cache).await.map(|reader| reader.stat().clone())
    }

    /// Opens the current version for reading; it stays readable, whole, while the reader lives.
    pub async fn open(&self, target: &Target, no_cache: bool) -> Result<Reader, ObjectError> {
        let opened = match self.remote(&target.task) {
            None => self.0.open(target, no_cache).await?,
            Some(shard) => {
                let target = target.clone();
                shard.ask(|reply| TaskCall::Open { target, no_cache, reply }).await?
            }
        };
        Ok(Reader::new(self.clone(), opened))
    }

    /// Opens a version that was opened before (by another connection of the same client).
    pub async fn reopen(&self, task: TaskId, generation: u64) -> Result<Reader, ObjectError> {
        let opened = match self.remote(&task) {
            None => self.0.reopen(&task, generation)?,
            Some(shard) => shard.ask(|reply| TaskCall::Reopen { task, generation, reply }).await?,
        };
        Ok(Reader::new(self.clone(), opened))
    }

    /// Begins a write.
    pub async fn put(&self, request: PutRequest) -> Result<Upload, ObjectError> {
        let task = request.target.task;
        let ticket = match self.remote(&task) {
            None => self.0.begin(request).await?,
            Some(shard) => shard.ask(|reply| TaskCall::Begin { request, reply }).await?,
        };
        Ok(Upload::new(self.clone(), task, ticket, true))
    }

    /// Writes an object of at most [`JOURNAL_PIECE_BYTES_MAX`](crate::limits::JOURNAL_PIECE_BYTES_MAX) bytes, at least one,
    /// in one go. Carried out to its end even if the caller stops waiting.
    pub async fn put_small(
        &self,
        request: PutRequest,
        slot: SlotMut,
        commit: CommitRequest,
    ) -> Result<request::PutDone, ObjectError> {
        let (slot, crc32) = seal(slot);
        let object = SmallObject { slot, crc32 };
        match self.remote(&request.target.task) {
            None => {
                let owner = self.0.clone();
                detached(async move { owner.put_small(request, object, commit).await }).await
            }
            Some(shard) => shard.ask(|reply| TaskCall::PutSmall { request, object, commit, reply }).await,
        }
    }

    /// Memory for `len` bytes to write. Waits for a while, then fails with `Busy`.
    pub async fn take_slot(&self, len: usize) -> Result<SlotMut, ObjectError> {
        timeout(ADMISSION_TIMEOUT, self.arena().take(len, Holder::Ingest))
            .await
            .map_err(|_| fetch::busy("all memory for uploads is in use"))
    }

    /// Feeds an upload that another connection began.
    pub async fn join_upload(&self, task: TaskId, upload: u64) -> Result<Upload, ObjectError> {
        let ticket = match self.remote(&task) {
            None => self.0.join(upload)?,
            Some(shard) => shard.ask(|reply| TaskCall::Join { upload, reply }).await?,
        };
        Ok(Upload::new(self.clone(), task, ticket, false))
    }

    /// Deletes an object, here and in the backend. A missing one counts as deleted.
    pub async fn delete(&self, target: &Target) -> Result<DeleteDone, ObjectError> {
        match self.remote(&target.task) {
            None => self.0.delete(target).await,
            Some(shard) => {
                let target = target.clone();
                shard.ask(|reply| TaskCall::Delete { target, reply }).await
            }
        }
    }

    /// Copies within or across buckets; gives what the target then is.
    pub async fn copy(&self, source: &Target, target: &Target) -> Result<Stat, ObjectError> {
        copy::copy(self, source, target).await
    }

    /// A page of a listing: the backend's, with what is written or deleted here laid over it.
    pub async fn list(&self, request: &ListRequest) -> Result<ListPage, ObjectError> {
        list::list(self, request).await
    }

    /// Creates a bucket in the backend.
    pub async fn create_bucket(&self, bucket: &str) -> Result<(), ObjectError> {
        Ok(self.0.context.backend.create_bucket(bucket.to_owned()).await?)
    }

    /// Name (`s3` or `oss`), region and endpoint of the backend that is used now, for clients that ask.
    pub fn backend_info(&self) -> BackendDescription {
        self.0.context.backend.description()
    }

    /// Whether this process should be given work, and one line for people about its state.
    pub fn readiness(&self) -> (bool, String) {
        let health = &self.0.context.health;
        (health.is_ready(), health.describe())
    }

    /// Answers a request of another peer about a task.
    pub async fn answer_peer(&self, task: TaskId, message: Message) -> Result<Message, ObjectError> {
        match self.remote(&task) {
            None => self.0.answer_peer(message).await,
            Some(shard) => shard.ask(|reply| TaskCall::Peer { message, reply }).await,
        }
    }

    /// What is pending of a bucket and decided about by this peer.
    pub async fn pending_as_home(&self, bucket: &str, prefix: &str, marker: &str) -> Result<PendingList, ObjectError> {
        list::pending_here(self, bucket, prefix, marker, true).await
    }

    /// A page of the write-back queue of this peer, by name, and whether there is more.
    pub async fn queued(&self, request: QueueRequest) -> Result<(Vec<QueueEntry>, bool), ObjectError> {
        let mut found = Vec::new();
        for shard in 0..self.0.context.shards.len() {
            if shard == self.shard() {
                found.extend(self.0.queued(&request));
            } else {
                let request = request.clone();
                found.extend(self.shard_at(shard).ask(|reply| TaskCall::Queued { request, reply }).await?);
            }
        }
        found.sort_unstable_by(|left, right| (&left.bucket, &left.key).cmp(&(&right.bucket, &right.key)));
        let has_more = found.len() > request.limit;
        found.truncate(request.limit);
        Ok((found, has_more))
    }

    /// How the scrub of this peer stands; with `begin`, one begins unless one runs.
    pub async fn scrub(&self, begin: bool) -> Result<ScrubOk, ObjectError> {
        let mut states = Vec::new();
        for shard in 0..self.0.context.shards.len() {
            states.push(match shard == self.shard() {
                true => self.0.scrubber.state(begin),
                false => self.shard_at(shard).ask(|reply| TaskCall::Scrub { begin, reply }).await?,
            });
        }
        Ok(scrub::together(states))
    }

    /// Does what a person wants of an entry of the write-back queue.
    pub async fn steer(&self, target: &Target, order: Order) -> Result<(), ObjectError> {
        match self.remote(&target.task) {
            None => self.0.steer(target, order).await,
            Some(shard) => {
                let target = target.clone();
                shard.ask(|reply| TaskCall::Steer { target, order, reply }).await
            }
        }
    }

    /// What this peer itself holds of an object.
    pub async fn held(&self, target: &Target) -> Result<Option<Held>, ObjectError> {
        match self.remote(&target.task) {
            None => Ok(self.0.held(target)),
            Some(shard) => {
                let target = target.clone();
                shard.ask(|reply| TaskCall::Where { target, reply }).await
            }
        }
    }

    /// Brings all of an object to this peer; gives the bytes that came.
    pub async fn prefetch(&self, target: &Target) -> Result<u64, ObjectError> {
        match self.remote(&target.task) {
            None => self.0.prefetch(target).await,
            Some(shard) => {
                let target = target.clone();
                shard.ask(|reply| TaskCall::Prefetch { target, reply }).await
            }
        }
    }

    /// Forgets what this peer caches of an object; gives the bytes that became free.
    pub async fn drop_cached(&self, target: &Target) -> Result<u64, ObjectError> {
        match self.remote(&target.task) {
            None => Ok(self.0.drop_cached(target).await),
            Some(shard) => {
                let target = target.clone();
                shard.ask(|reply| TaskCall::Drop { target, reply }).await
            }
        }
    }

    /// How this peer stands, for the others.
    pub fn node_state(&self) -> NodeState {
        let context = &self.0.context;
        NodeState {
            used_bytes: self.0.store.stats().used_bytes,
            dirty_bytes: context.metrics.dirty_bytes(),
            load: context.uploads.load(std::sync::atomic::Ordering::Relaxed),
        }
    }

    /// The cluster as this shard sees it.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.0.cluster.as_ref()
    }

    /// The seeds that keep an object, in order.
    pub fn homes(&self, task: &TaskId) -> Vec<Arc<Node>> {
        self.cluster().map_or_else(Vec::new, |cluster| crate::placement::homes(&cluster.members(), task))
    }

    /// Takes a newer snapshot of the cluster.
    pub fn set_members(&self, members: Arc<Members>) {
        self.0.set_members(members);
    }

    /// Gives up what this shard does by itself; it ends.
    pub async fn end_work(&self) {
        writeback::end(&self.0).await;
        self.0.store.settled().await;
    }

    /// Serves a request that another shard sent here.
    pub fn answer(&self, call: TaskCall) {
        self.0.answer(call);
    }

    /// Starts what this shard does by itself: housekeeping, repair, write-back, the scrub. None of it ends.
    pub fn start_work(&self) {
        let owner = self.0.clone();
        spawn_local(async move { start::housekeeping(&owner).await });
        let owner = self.0.clone();
        spawn_local(async move { owner.run_repair().await });
        let owner = self.0.clone();
        spawn_local(async move { owner.run_scrub().await });
        let engine = self.clone();
        spawn_local(async move { engine.run_writeback().await });
    }

    /// Writes dirty versions back, until the shard ends.
    pub async fn run_writeback(&self) {
        writeback::run(self.0.clone()).await;
    }

    /// Copies on seeds, for a write that does not say how many.
    pub fn replicas_default(&self) -> u16 {
        self.0.context.replicas_default
    }

    /// Checks how many peers a writer wants to hold its object before the answer: there must be so many.
    pub fn check_ack(&self, ack_peers: u32) -> Result<u16, ObjectError> {
        let Some(cluster) = self.cluster().filter(|_| ack_peers > 1) else {
            return match ack_peers {
                0 | 1 => Ok(u16::try_from(ack_peers).unwrap_or(1)),
                _ => Err(ObjectError::InvalidArgument(format!(
                    "copies on {ack_peers} peers cannot be promised: this peer is not part of a cluster"
                ))),
            };
        };
        let members = cluster.members();
        let holders = members.seeds().count() + usize::from(!members.is_seed());
        u16::try_from(ack_peers).ok().filter(|wanted| usize::from(*wanted) <= holders).ok_or_else(|| {
            ObjectError::InvalidArgument(format!(
                "copies on {ack_peers} peers cannot be promised: {holders} could hold one now (this peer and the seeds)"
            ))
        })
    }

    /// A number that no other reader of this process has.
    fn next_reader(&self) -> u64 {
        self.0.context.unique_id()
    }

    fn store(&self) -> &PieceStore {
        &self.0.store
    }

    async fn piece(&self, task: TaskId, generation: u64, wanted: Wanted) -> Result<PieceAnswer, ObjectError> {
        match self.remote(&task) {
            None => self.0.piece(&task, generation, wanted).await,
            Some(shard) => shard.ask(|reply| TaskCall::Piece { task, generation, wanted, reply }).await,
        }
    }

    /// A piece that was asked for ahead is needed now.
    fn hurry(&self, task: TaskId, generation: u64, wanted: Wanted) {
        match self.remote(&task) {
            None => self.0.hurry(&task, generation, wanted),
            Some(shard) => shard.tell(TaskCall::Hurry { task, generation, wanted }),
        }
    }

    async fn quarantine(&self, task: TaskId, generation: u64, number: u32) -> Result<(), ObjectError> {
        match self.remote(&task) {
            None => self.0.quarantine(&task, generation, number).await,
            Some(shard) => shard.ask(|reply| TaskCall::Corrupt { task, generation, number, reply }).await,
        }
    }

    async fn admit(&self, task: TaskId, upload: u64, number: u32, length: u32) -> Result<(), ObjectError> {
        match self.remote(&task) {
            None => self.0.admit(upload, number, length).await,
            Some(shard) => shard.ask(|reply| TaskCall::Admit { upload, number, length, reply }).await,
        }
    }

    async fn write_new(&self, slot: Slot) -> Result<Reservation, ObjectError> {
        self.0.write_new(slot, None).await
    }

    async fn written(&self, task: TaskId, upload: u64, piece: WrittenPiece) -> Result<(), ObjectError> {
        match self.remote(&task) {
            None => self.0.written(upload, piece),
            Some(shard) => shard.ask(|reply| TaskCall::Written { upload, piece, reply }).await,
        }
    }

    async fn commit(&self, task: TaskId, upload: u64, request: CommitRequest) -> Result<request::PutDone, ObjectError> {
        match self.remote(&task) {
            None => self.0.commit(upload, request).await,
            Some(shard) => shard.ask(|reply| TaskCall::Commit { upload, request, reply }).await,
        }
    }

    fn abort(&self, task: TaskId, upload: u64) {
        match self.remote(&task) {
            None => self.0.abort(upload),
            Some(shard) => shard.tell(TaskCall::Abort { upload }),
        }
    }

    /// The shard that owns a task, unless it is this one.
    fn remote(&self, task: &TaskId) -> Option<Remote> {
        let owner = self.owner_of(task);
        (owner != self.shard()).then(|| self.shard_at(owner))
    }

    fn shard_at(&self, shard: usize) -> Remote {
        Remote::new(self.0.context.shards[shard].clone())
    }
}

/// Another shard, as one that can be asked.
pub(crate) struct Remote(Sender<ShardMessage>);

impl Remote {
    pub(crate) fn new(mailbox: Sender<ShardMessage>) -> Remote {
        Remote(mailbox)
    }

    /// Asks and waits for the answer.
    pub(crate) async fn ask<T>(self, make: impl FnOnce(Reply<T>) -> TaskCall) -> Result<T, ObjectError> {
        self.0.call(|reply| ShardMessage::Call(make(reply))).await?
    }

    /// Says something that needs no answer.
    fn tell(self, call: TaskCall) {
        crate::rt::shard::spawn_local(async move {
            // A shard that has ended has forgotten what this is about.
            let _ = self.0.send(ShardMessage::Call(call)).await;
        });
    }
}

/// Checks a bucket and key from outside and makes them a target.
pub fn target_of(bucket: &str, key: &str) -> Result<Target, ObjectError> {
    use crate::limits::{BUCKET_BYTES_MAX, KEY_BYTES_MAX};
    if bucket.is_empty() || bucket.len() > BUCKET_BYTES_MAX || bucket.contains('/') {
        return Err(ObjectError::InvalidArgument(format!(
            "invalid bucket name: it has {} bytes; allowed are 1 to {BUCKET_BYTES_MAX}, without a slash",
            bucket.len()
        )));
    }
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(ObjectError::InvalidArgument(format!(
            "invalid object key: it has {} bytes; allowed are 1 to {KEY_BYTES_MAX}",
            key.len()
        )));
    }
    Ok(Target::of(ObjectName::new(bucket, key)))
}
