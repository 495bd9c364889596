//! The state of one shard's tasks and the door for requests about them.
//!
//! Owns the task table, the uploads in progress, the index of what the backend does not know yet, and the eviction
//! order. Everything here is single-threaded; other shards come in through [`Owner::answer`].

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use dfstore_proto::ids::{ObjectName, TaskId};
use event_listener::Event;

use crate::catalog::TaskState;
use crate::engine::call::{PendingEntry, TaskCall};
use crate::engine::cluster::Cluster;
use crate::engine::context::Context;
use crate::engine::error::ObjectError;
use crate::engine::graves::Graves;
use crate::engine::put::UploadState;
use crate::engine::request::{ListEntry, Target};
use crate::engine::rogues::Rogues;
use crate::engine::scrub::Scrubber;
use crate::engine::task::Task;
use crate::engine::version::Version;
use crate::engine::writeback::{Queue, Strays};
use crate::limits::{PENDING_ENTRIES_MAX, TASKS_PER_SHARD_MAX};
use crate::metrics::ShardMetrics;
use crate::rt::permits::Permits;
use crate::rt::shard::spawn_local;
use crate::rt::time::unix_ms;
use crate::store::PieceStore;
use crate::store::evict::{Evictor, Watermarks};

/// The owner of one shard's tasks.
pub struct Owner {
    /// This shard's number.
    pub shard: usize,
    /// What all shards share.
    pub context: Context,
    /// This shard's counters.
    pub metrics: ShardMetrics,
    /// Piece files.
    pub store: PieceStore,
    /// Every task of which something is known.
    pub tasks: RefCell<HashMap<TaskId, Rc<Task>>>,
    /// Versions that were replaced or evicted while someone read them.
    pub retired: RefCell<HashMap<(TaskId, u64), Rc<Version>>>,
    /// Uploads in progress.
    pub uploads: RefCell<HashMap<u64, Rc<UploadState>>>,
    /// Objects that a listing must show or hide on top of what the backend says.
    pub pending: RefCell<BTreeMap<ObjectName, Rc<Task>>>,
    /// When eviction starts and ends.
    pub watermarks: Watermarks,
    /// Who is evicted next.
    pub eviction: RefCell<Evictor>,
    /// What waits to be written to the backend.
    pub queue: Queue,
    /// Multipart uploads that the backend may know.
    pub strays: Strays,
    /// Whether this shard ends.
    pub is_ending: Cell<bool>,
    /// Told when it does.
    pub ending: Event,
    /// Reads what is on disk again.
    pub scrubber: Scrubber,
    /// The other peers, if there are any.
    pub cluster: Option<Cluster>,
    /// Deletions that are done.
    pub graves: RefCell<Graves>,
    /// Peers that are left alone.
    pub rogues: RefCell<Rogues>,
    /// Bounds the copies that are made at once.
    pub copies: Permits,
    /// Where the last round of repair ended.
    pub repaired_up_to: Cell<TaskId>,
    /// Where the last round that told homes of ephemeral objects ended, unless it came to the end.
    pub retold_up_to: RefCell<Option<ObjectName>>,
}

impl Owner {
    /// The entry of a task, made if there is none.
    pub fn task(&self, target: &Target) -> Rc<Task> {
        let mut tasks = self.tasks.borrow_mut();
        tasks.entry(target.task).or_insert_with(|| Task::new(target.clone())).clone()
    }

    /// Drops entries that hold no piece when there are too many: they are only memories of questions.
    pub fn trim_tasks(&self) {
        let mut tasks = self.tasks.borrow_mut();
        if tasks.len() > TASKS_PER_SHARD_MAX {
            tasks.retain(|_, task| {
                let idle = Rc::strong_count(task) == 1;
                !(idle && task.current().is_none_or(|version| !version.recorded.get() && version.is_idle_clean()))
            });
        }
    }

    /// The entry of a task if there is one.
    pub fn known(&self, task: &TaskId) -> Option<Rc<Task>> {
        self.tasks.borrow().get(task).cloned()
    }

    /// Makes `version` current in memory (the catalog has it already) and keeps the index of pending objects true.
    /// Gives the version before, which the caller retires.
    pub fn publish(&self, task: &Rc<Task>, version: Option<Rc<Version>>) -> Option<Rc<Version>> {
        let pending = version.as_ref().is_some_and(|version| version.state.get() != TaskState::Clean);
        if pending {
            self.pending.borrow_mut().insert(task.target.name.clone(), task.clone());
        } else {
            self.pending.borrow_mut().remove(&task.target.name);
        }
        if version.is_none() {
            self.eviction.borrow_mut().remove(&task.target.task);
        } else {
            self.graves.borrow_mut().reopen(&task.target.task);
        }
        let before = task.replace(version);
        if let Some(before) = &before {
            // Who waits for copies of it need not any more.
            before.spread.notify(usize::MAX);
        }
        before
    }

    /// Drops the entry of a task of which nothing is known, unless someone else is busy with it. `task` is the caller's
    /// only handle.
    pub fn forget_if_unknown(&self, task: &Rc<Task>) {
        let mut tasks = self.tasks.borrow_mut();
        // One handle is the caller's, one the table's. A task that lives outside the table would be a second truth.
        // A number that was promised to a writer must not be forgotten before it comes back with it.
        if task.current.borrow().is_none() && Rc::strong_count(task) == 2 && !task.awaits_writer(unix_ms()) {
            tasks.remove(&task.target.task);
        }
    }

    /// The version that a reader opened: the current one or one that was replaced since.
    pub fn opened_version(&self, task: &TaskId, generation: u64) -> Result<Rc<Version>, ObjectError> {
        let current = self.known(task).and_then(|task| task.current());
        if let Some(version) = current.filter(|version| version.generation == generation) {
            return Ok(version);
        }
        self.retired
            .borrow()
            .get(&(*task, generation))
            .cloned()
            .ok_or_else(|| ObjectError::VersionChanged(format!("task {task}")))
    }

    /// Objects of a bucket that a listing must show or hide. `as_home`: those that this peer decides about, for other
    /// peers; else those that it decides about or that nobody else was told of, for its own clients.
    pub fn pending_of(&self, bucket: &str, prefix: &str, marker: &str, as_home: bool) -> Vec<PendingEntry> {
        let pending = self.pending.borrow();
        let from = ObjectName::new(bucket, prefix.max(marker));
        pending
            .range(from..)
            .take_while(|(name, _)| name.bucket == bucket)
            .filter(|(name, _)| name.key.starts_with(prefix) && name.key.as_str() > marker)
            .filter_map(|(name, task)| {
                let version = task.current()?;
                if self.is_away(&task.target.task) && (as_home || version.published.get()) {
                    return None;
                }
                Some(match version.state.get() {
                    TaskState::Deleted => PendingEntry::Deleted(name.key.clone()),
                    _ => {
                        PendingEntry::Present(ListEntry { key: name.key.clone(), meta: version.meta.borrow().clone() })
                    }
                })
            })
            .take(PENDING_ENTRIES_MAX)
            .collect()
    }

    /// Serves a request from another shard. Runs beside others; a dropped answer is the asker's business.
    pub fn answer(self: &Rc<Self>, call: TaskCall) {
        let owner = self.clone();
        match call {
            TaskCall::Piece { task, generation, wanted, reply } => {
                spawn_local(async move { drop(reply.send(owner.piece(&task, generation, wanted).await)) })
            }
            TaskCall::Open { target, no_cache, reply } => {
                spawn_local(async move { drop(reply.send(owner.open(&target, no_cache).await)) })
            }
            TaskCall::Reopen { task, generation, reply } => drop(reply.send(owner.reopen(&task, generation))),
            TaskCall::Hurry { task, generation, wanted } => owner.hurry(&task, generation, wanted),
            TaskCall::Corrupt { task, generation, number, reply } => {
                spawn_local(async move { drop(reply.send(owner.quarantine(&task, generation, number).await)) })
            }
            TaskCall::Begin { request, reply } => {
                spawn_local(async move { drop(reply.send(owner.begin(request).await)) })
            }
            TaskCall::Join { upload, reply } => drop(reply.send(owner.join(upload))),
            TaskCall::Admit { upload, number, length, reply } => {
                spawn_local(async move { drop(reply.send(owner.admit(upload, number, length).await)) })
            }
            TaskCall::Written { upload, piece, reply } => drop(reply.send(owner.written(upload, piece))),
            TaskCall::Commit { upload, request, reply } => {
                spawn_local(async move { drop(reply.send(owner.commit(upload, request).await)) })
            }
            TaskCall::PutSmall { request, object, commit, reply } => {
                spawn_local(async move { drop(reply.send(owner.put_small(request, object, commit).await)) })
            }
            TaskCall::Abort { upload } => owner.abort(upload),
            TaskCall::Delete { target, reply } => {
                spawn_local(async move { drop(reply.send(owner.delete(&target).await)) })
            }
            TaskCall::CopyFrom { source, target, reply } => {
                spawn_local(async move { drop(reply.send(owner.copy_from(&source, &target).await)) })
            }
            TaskCall::Evict { bytes, reply } => {
                spawn_local(async move { drop(reply.send(Ok(owner.evict(bytes, None).await))) })
            }
            TaskCall::Pending { bucket, prefix, marker, as_home, reply } => {
                drop(reply.send(Ok(owner.pending_of(&bucket, &prefix, &marker, as_home))))
            }
            TaskCall::CopyAtHome { source, target, reply } => {
                spawn_local(async move { drop(reply.send(owner.copy_at_home(&source, &target).await)) })
            }
            TaskCall::Peer { message, reply } => {
                spawn_local(async move { drop(reply.send(owner.answer_peer(message).await)) })
            }
            TaskCall::Where { target, reply } => drop(reply.send(Ok(owner.held(&target)))),
            TaskCall::Prefetch { target, reply } => {
                spawn_local(async move { drop(reply.send(owner.prefetch(&target).await)) })
            }
            TaskCall::Scrub { begin, reply } => drop(reply.send(Ok(owner.scrubber.state(begin)))),
            TaskCall::Queued { request, reply } => drop(reply.send(Ok(owner.queued(&request)))),
            TaskCall::Steer { target, order, reply } => {
                spawn_local(async move { drop(reply.send(owner.steer(&target, order).await)) })
            }
            TaskCall::Drop { target, reply } => {
                spawn_local(async move { drop(reply.send(Ok(owner.drop_cached(&target).await))) })
            }
        }
    }
}
