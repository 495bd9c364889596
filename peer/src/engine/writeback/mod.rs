//! The write-back queue of one shard: what the backend is still to be told.
//!
//! Entries are durable in the catalog before a client is acknowledged; this is their order in memory and the workers
//! that carry them out. An entry belongs to one version (or tombstone): when that is no longer current, the entry is
//! void. The task's `backend_lock` is held while the backend is told, so an older version never overwrites a newer one.
//!
//! What can heal (network, 5xx, SlowDown, clock skew) is tried again without end, with capped backoff. What cannot
//! (no such bucket, access denied) sets the entry aside as a dead letter: it stays dirty, is counted and logged, and
//! a restart tries it once more.

mod queue;
mod send;

use std::rc::Rc;
use std::time::Duration;

use dfstore_proto::message::{Standing as Verdict, VersionState};
use dfstore_proto::object::ObjectMeta;

pub use queue::{Entry, Queue};
pub use send::Outgoing;

use crate::catalog::{Change, Durability, TaskState, WriteBackKind, WriteBackRecord};
use crate::engine::error::ObjectError;
use crate::engine::numbers;
use crate::engine::owner::Owner;
use crate::engine::task::Task;
use crate::engine::version::Version;
use crate::limits::{
    OLD_READERS_WAIT, WRITE_LATE, WRITEBACK_OBJECTS_MAX, WRITEBACK_RETRY_DELAY, WRITEBACK_RETRY_DELAY_MAX,
};
use crate::rt::shard::spawn_local;
use crate::rt::time::{milliseconds, unix_ms};

/// A fresh queue entry.
pub fn new_record(kind: WriteBackKind, generation: u64, now_ms: u64) -> WriteBackRecord {
    WriteBackRecord {
        kind,
        generation,
        sequence: generation,
        queued_at_ms: now_ms,
        attempts: 0,
        last_error: String::new(),
        dead: false,
        upload: None,
    }
}

/// What the backend has before a version is sent to it.
enum Before {
    /// This version.
    Same(ObjectMeta),
    /// A newer one of ours.
    Newer,
    /// Nothing, an older one, or one of somebody else.
    Other,
}

/// How far an attempt has come.
enum Progress {
    Done,
    /// It is another peer's turn, or a reader's: looked at again later, and nothing has failed.
    Waiting,
}

/// Carries out the queue of one shard; never ends.
pub async fn run(owner: Rc<Owner>) {
    loop {
        while owner.queue.running() < WRITEBACK_OBJECTS_MAX {
            let Some(entry) = owner.queue.start_next(unix_ms()) else { break };
            let owner = owner.clone();
            spawn_local(async move { owner.attempt(entry).await });
        }
        owner.queue.changed().await;
    }
}

impl Owner {
    async fn attempt(self: &Rc<Self>, entry: Rc<Entry>) {
        let _backend = entry.task.backend_lock.lock().await;
        let Some(version) = entry.task.current().filter(|version| version.generation == entry.generation) else {
            self.queue.finish(&entry, None);
            return;
        };
        let result = match self.carry_out(&version, &entry).await {
            Ok(Progress::Done) => Ok(()),
            Ok(Progress::Waiting) => {
                self.queue.put_off(&entry, unix_ms().saturating_add(entry.next_look_ms()));
                return;
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => {
                self.context.metrics.writeback_attempted(true);
                self.queue.finish(&entry, Some(Ok(())));
            }
            Err(error) if error.is_retryable() => self.put_off(&entry, &error).await,
            Err(error) => self.give_up(&version, &entry, error).await,
        }
    }

    /// Tells the backend, or the home, which tells the backend.
    async fn carry_out(self: &Rc<Self>, version: &Rc<Version>, entry: &Rc<Entry>) -> Result<Progress, ObjectError> {
        if self.is_away(&version.task) {
            let Some(told) = self.tell_home(&entry.task, version, 0).await? else {
                // It is alive, as far as is known, and may be doing this very thing.
                return if entry.is_home_lost(unix_ms()) {
                    self.tell_backend(version, entry).await
                } else {
                    Ok(Progress::Waiting)
                };
            };
            entry.home_answered();
            self.take_verdict(&entry.task, version, &told).await;
            let is_clean = told.state == VersionState::Clean && version.state.get() != TaskState::Dirty;
            let is_over = is_clean || told.standing == Verdict::Superseded;
            if is_over && version.state.get() == TaskState::Deleted {
                self.drop_tombstone(version, entry).await?;
            }
            return Ok(if is_over { Progress::Done } else { Progress::Waiting });
        }
        self.tell_backend(version, entry).await
    }

    async fn tell_backend(self: &Rc<Self>, version: &Rc<Version>, entry: &Rc<Entry>) -> Result<Progress, ObjectError> {
        let kind = entry.record.borrow().kind;
        match kind {
            WriteBackKind::Delete => self.tell_delete(version, entry).await.map(|()| Progress::Done),
            WriteBackKind::Put if self.has_readers_of_the_backend(&entry.task, entry) => Ok(Progress::Waiting),
            WriteBackKind::Put => self.tell_put(version, entry).await,
        }
    }

    /// Whether someone still reads the version that the backend has, and needs the backend for the rest of it. They are
    /// waited for, for a while.
    fn has_readers_of_the_backend(&self, task: &Task, entry: &Entry) -> bool {
        let waited_ms = u128::from(unix_ms().saturating_sub(entry.record.borrow().queued_at_ms));
        let retired = self.retired.borrow();
        let mut older = retired.iter().filter(|((id, _), _)| *id == task.target.task).map(|(_, version)| version);
        waited_ms < OLD_READERS_WAIT.as_millis()
            && older.any(|version| version.is_clean() && !version.is_whole() && version.is_read())
    }

    async fn tell_put(self: &Rc<Self>, version: &Rc<Version>, entry: &Rc<Entry>) -> Result<Progress, ObjectError> {
        let name = &entry.task.target.name;
        let meta = match self.look_before(version, entry).await? {
            Before::Same(meta) => meta,
            Before::Newer => {
                // Who wrote it knew of this version; here, and where this peer was told of it, that is forgotten.
                tracing::info!(object = %name, generation = version.generation, "the bucket has a newer version");
                self.give_way(&entry.task, version).await;
                return Ok(Progress::Done);
            }
            Before::Other => match self.send_version(version, entry).await {
                Err(_) if !self.may_send(entry) => return Ok(Progress::Waiting),
                sent => sent?,
            },
        };
        self.become_clean(&entry.task, version, meta).await;
        tracing::debug!(object = %name, generation = version.generation, "written back");
        Ok(Progress::Done)
    }

    async fn send_version(
        self: &Rc<Self>,
        version: &Rc<Version>,
        entry: &Rc<Entry>,
    ) -> Result<ObjectMeta, ObjectError> {
        if self.cluster.is_some() {
            self.copy_here(version).await?;
        }
        let outgoing = Outgoing {
            name: entry.task.target.name.clone(),
            meta: version.meta.borrow().clone(),
            generation: version.generation,
            crc32: version.crc32,
            pieces: version.stored_pieces().into_iter().map(|(_, piece)| piece).collect(),
            damaged: Rc::default(),
        };
        if !version.is_whole() {
            return Err(ObjectError::Internal(format!("{} is not whole on disk", outgoing.name)));
        }
        self.send(&outgoing, Some(entry)).await
    }

    /// What the backend has before a version is sent: an attempt before, or another peer, may have sent it and not seen
    /// the answer; and who was away for long may come with a version that has been replaced since. Only asked where one
    /// of these can be.
    async fn look_before(&self, version: &Version, entry: &Entry) -> Result<Before, ObjectError> {
        if !entry.may_be_sent() && !is_late(version.generation) {
            return Ok(Before::Other);
        }
        let there = match self.context.backend.find(entry.task.target.name.clone()).await {
            Ok(there) => there,
            Err(error) if error.is_retryable() => return Err(error.into()),
            // It is not there, or who may write may not look.
            Err(_) => return Ok(Before::Other),
        };
        let written_as = numbers::written_as(version.crc32, version.generation);
        let is_same = !written_as.is_empty() && there.written_as == written_as;
        Ok(match there.meta.length == version.meta.borrow().length && is_same {
            true => Before::Same(there.meta),
            false if numbers::outranks(&there.written_as, version.generation) => Before::Newer,
            false => Before::Other,
        })
    }

    /// Whether the bucket has a newer version of ours than this one, of which nothing newer is known here. `false` when
    /// the backend does not answer: the version is looked at again before it is sent.
    pub async fn is_overtaken(&self, task: &Task, generation: u64) -> bool {
        if task.current().is_some() || !is_late(generation) {
            return false;
        }
        let there = self.context.backend.find(task.target.name.clone()).await;
        there.is_ok_and(|there| numbers::outranks(&there.written_as, generation))
    }

    /// The backend has a version now that it did not have before.
    pub async fn become_clean(self: &Rc<Self>, task: &Rc<Task>, version: &Rc<Version>, meta: ObjectMeta) {
        let _commit = task.commit_lock.lock().await;
        self.become_clean_locked(task, version, meta).await;
    }

    /// As [`become_clean`](Self::become_clean), for a caller that holds `commit_lock`.
    pub async fn become_clean_locked(self: &Rc<Self>, task: &Rc<Task>, version: &Rc<Version>, meta: ObjectMeta) {
        if !task.is_current(version) {
            return;
        }
        version.meta.replace(meta);
        version.afar.set(None);
        version.state.set(TaskState::Clean);
        version.validated_at_ms.set(unix_ms());
        let changes = vec![self.record_change(task, version), Change::RemoveWriteBack { task: version.task }];
        if let Err(error) = self.context.catalog.commit(changes, Durability::Durable).await {
            // After a restart it counts as dirty and is sent once more: the same bytes.
            tracing::warn!(%error, object = %task.target.name, "the catalog did not take the end of a write-back");
        }
        // Still current, no longer pending: every question under way is now out of date.
        self.publish(task, Some(version.clone()));
        version.dirty.take();
    }

    async fn tell_delete(self: &Rc<Self>, version: &Rc<Version>, entry: &Rc<Entry>) -> Result<(), ObjectError> {
        let name = &entry.task.target.name;
        let deleted = if leads_out_of_bucket(&name.key) {
            Err(ObjectError::InvalidArgument(format!("{name}: servers exist that would take this for their bucket")))
        } else {
            self.context.backend.delete(name.clone()).await.map_err(ObjectError::from)
        };
        match deleted {
            // An ephemeral object may have a key that the backend refuses; that it then has no such object is asked.
            Err(ObjectError::InvalidArgument(_)) if self.context.backend.head(name.clone()).await.is_err() => {}
            deleted => deleted?,
        }
        self.drop_tombstone(version, entry).await
    }

    async fn drop_tombstone(self: &Rc<Self>, version: &Rc<Version>, entry: &Rc<Entry>) -> Result<(), ObjectError> {
        let _commit = entry.task.commit_lock.lock().await;
        if entry.task.is_current(version) {
            let task = version.task;
            let changes = vec![Change::RemoveTask { task }, Change::RemoveWriteBack { task }];
            self.context.catalog.commit(changes, Durability::Durable).await?;
            self.publish(&entry.task, None);
            if self.cluster.is_some() {
                self.graves.borrow_mut().note(task, version.generation);
            }
        }
        Ok(())
    }

    /// Tries again later.
    async fn put_off(self: &Rc<Self>, entry: &Rc<Entry>, error: &ObjectError) {
        let (attempts, record) = entry.note_failure(error, false);
        let delay = backoff(attempts);
        self.context.metrics.writeback_attempted(false);
        tracing::warn!(object = %entry.task.target.name, attempts, %error, "write-back failed; trying again in {delay:?}");
        self.save_entry(entry, record).await;
        self.queue.put_off(entry, unix_ms() + milliseconds(delay));
    }

    /// Waiting does not heal this.
    async fn give_up(self: &Rc<Self>, version: &Rc<Version>, entry: &Rc<Entry>, error: ObjectError) {
        let (attempts, record) = entry.note_failure(&error, true);
        self.context.metrics.writeback_attempted(false);
        tracing::error!(object = %entry.task.target.name, attempts, %error, "write-back set aside as a dead letter");
        // A client that still waits for its DELETE is told that it failed, and the object is there again.
        let told = version.state.get() == TaskState::Deleted && entry.is_awaited();
        if told && self.drop_tombstone(version, entry).await.is_ok() {
            self.queue.finish(entry, Some(Err(error)));
            return;
        }
        self.save_entry(entry, record).await;
        self.queue.set_aside(entry);
    }

    /// Keeps an entry's state for after a restart. Losing it costs a repeated attempt, so nobody waits for the disk.
    async fn save_entry(&self, entry: &Entry, record: WriteBackRecord) {
        if self.queue.holds(entry) {
            self.commit_lazily(vec![Change::PutWriteBack { task: entry.task.target.task, record }]).await;
        }
    }
}

/// Whether a number was given long ago: its version may have been replaced by one that is forgotten here.
fn is_late(generation: u64) -> bool {
    let late_ms = milliseconds(WRITE_LATE);
    generation / 1000 < unix_ms().saturating_sub(late_ms)
}

/// Whether a key, taken for a path, names its bucket or something outside of it. A server that cleans paths would
/// delete the bucket with all it holds (SeaweedFS does so for the key `/`).
fn leads_out_of_bucket(key: &str) -> bool {
    let mut depth = 0_usize;
    for segment in key.split('/') {
        match segment {
            "" | "." => {}
            ".." if depth == 0 => return true,
            ".." => depth -= 1,
            _ => depth += 1,
        }
    }
    depth == 0
}

/// The pause before the next attempt: doubled each time, capped, and spread by the attempt's own time so that many
/// entries do not come back together.
fn backoff(attempts: u32) -> Duration {
    let doubled = WRITEBACK_RETRY_DELAY.saturating_mul(1 << attempts.min(16));
    let capped = doubled.min(WRITEBACK_RETRY_DELAY_MAX);
    let spread = Duration::from_millis(unix_ms() % 251);
    capped.mul_f64(0.75) + spread
}

#[cfg(test)]
mod tests {
    use super::leads_out_of_bucket;

    #[test]
    fn keys_that_a_server_could_take_for_its_bucket() {
        for key in ["/", "//", ".", "..", "a/..", "../a", "a/../../b/c", "./", "a/b/../../"] {
            assert!(leads_out_of_bucket(key), "{key}");
        }
        for key in ["a", "a/", "/a", "a/../b", "..a", "a/...", "a//b", "a/b/.."] {
            assert!(!leads_out_of_bucket(key), "{key}");
        }
    }
}
