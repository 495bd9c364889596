//! The write-back queue of one shard: what the backend is still to be told.
//!
//! Entries are durable in the catalog before a client is acknowledged; this is their order in memory and the workers
//! that carry them out. An entry belongs to one version (or tombstone): when that is no longer current, the entry is
//! void. The task's `backend_lock` is held while the backend is told, so an older version never overwrites a newer one.
//!
//! What can heal (network, 5xx, SlowDown, clock skew) is tried again without end, with capped backoff and as often as
//! the [`pace`] allows. What cannot (no such bucket, access denied, a conflict) sets the entry aside as a dead letter: it
//! stays dirty, is counted and logged, and is tried again when a person says so or at the next start.
//!
//! What is done in which situation stands in [`table`]; [`attempt`] carries it out, with [`look`] and [`send`];
//! [`strays`] keeps the bucket free of uploads that serve nobody; [`steer`] shows the queue to people and takes their
//! orders.

mod attempt;
mod look;
mod pace;
mod queue;
mod send;
mod steer;
mod strays;
mod table;

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dfstore_proto::ids::TaskId;
use dfstore_proto::message::{Standing as Verdict, VersionState};
use dfstore_proto::object::ObjectMeta;
use futures_util::future::select;

pub use attempt::End;
pub use queue::{Entry, Queue};
pub use send::Outgoing;
pub use strays::Strays;

use crate::catalog::{Change, Durability, TaskState, WriteBackKind, WriteBackRecord};
use crate::engine::cluster::Place;
use crate::engine::error::ObjectError;
use crate::engine::owner::Owner;
use crate::engine::task::Task;
use crate::engine::version::Version;
use crate::limits::{OLD_READERS_WAIT, WRITEBACK_RETRY_DELAY, WRITEBACK_RETRY_DELAY_MAX};
use crate::membership::Node;
use crate::rt::shard::spawn_local;
use crate::rt::time::{milliseconds, sleep, unix_ms};

/// A fresh queue entry. `replaced_etag`: what the backend has, as far as is known.
pub fn new_record(kind: WriteBackKind, generation: u64, replaced_etag: String) -> WriteBackRecord {
    WriteBackRecord {
        kind,
        generation,
        sequence: generation,
        queued_at_ms: unix_ms(),
        attempts: 0,
        last_error: String::new(),
        dead: false,
        upload: None,
        replaced_etag,
    }
}

/// Carries out the queue of one shard, until the shard ends.
pub async fn run(owner: Rc<Owner>) {
    let outages_ended = || owner.context.outages_ended.load(Ordering::Relaxed);
    let mut heard_of = outages_ended();
    while !owner.is_ending.get() {
        let outages = outages_ended();
        if outages != heard_of {
            heard_of = outages;
            owner.queue.hurry();
        }
        while let Some(entry) = owner.queue.start_next(unix_ms()) {
            let (owner, ended) = (owner.clone(), owner.ending.listen());
            spawn_local(async move { drop(select(pin!(owner.attempt(entry)), ended).await) });
        }
        owner.queue.changed().await;
    }
}

/// Gives up what is being attempted: the shard ends. Tasks that wait for each other's locks must not outlive it, or the
/// threads that answer them would drop them, one inside the other.
pub async fn end(owner: &Owner) {
    owner.is_ending.set(true);
    owner.ending.notify(usize::MAX);
    // Those that were woken come first.
    sleep(Duration::from_millis(1)).await;
}

impl Owner {
    /// A fresh queue entry for what is to replace the current version of a task.
    pub fn new_entry(&self, task: &Task, kind: WriteBackKind, generation: u64) -> WriteBackRecord {
        let replaced =
            task.current().filter(|version| version.is_clean()).map(|version| version.meta.borrow().etag.clone());
        // What waits to be written has not replaced anything there yet.
        let waiting = || self.queue.entry(&task.target.task).map(|entry| entry.record.borrow().replaced_etag.clone());
        new_record(kind, generation, replaced.or_else(waiting).unwrap_or_default())
    }

    async fn attempt(self: &Rc<Self>, entry: Rc<Entry>) {
        let _backend = entry.task.backend_lock.lock().await;
        let end = match entry.task.current().filter(|version| version.generation == entry.generation) {
            Some(version) => self.carry_out(&version, &entry).await,
            None => End::Void,
        };
        entry.step.set(None);
        match end {
            End::Void => self.queue.finish(&entry, None),
            End::Waiting => self.queue.put_off(&entry, unix_ms().saturating_add(entry.next_look_ms()), false),
            End::Done => {
                self.context.metrics.writeback_attempted(true);
                if self.queue.pace.succeeded() {
                    tracing::info!("the backend takes writes again: what was put off is tried now");
                    self.context.outages_ended.fetch_add(1, Ordering::Relaxed);
                }
                self.queue.finish(&entry, Some(Ok(())));
            }
            End::Failed(error) => self.put_off(&entry, &error).await,
            End::Refused(error) => self.give_up(&entry, error).await,
        }
    }

    /// Tells the backend, or the home, which tells the backend.
    async fn carry_out(self: &Rc<Self>, version: &Rc<Version>, entry: &Rc<Entry>) -> End {
        if let Place::Away { homes, .. } = self.place(&version.task) {
            let told = match self.tell_home(&entry.task, version, 0).await {
                Ok(told) => told,
                Err(error) if error.is_retryable() => return End::Failed(error),
                Err(error) => return End::Refused(error),
            };
            let Some(told) = told else {
                // It is alive, as far as is known, and may be doing this very thing.
                return if self.is_home_lost(entry, &homes) {
                    self.tell_backend(version, entry).await
                } else {
                    End::Waiting
                };
            };
            entry.home_answered();
            self.take_verdict(&entry.task, version, &told).await;
            let is_clean = told.state == VersionState::Clean && version.state.get() != TaskState::Dirty;
            if !is_clean && told.standing != Verdict::Superseded {
                return End::Waiting;
            }
            if version.state.get() == TaskState::Deleted
                && let Err(error) = self.drop_version(&entry.task, version).await
            {
                return End::Failed(error);
            }
            return End::Done;
        }
        self.tell_backend(version, entry).await
    }

    /// Whether this peer does without the home, which is alive and cannot be reached. Those who come before it in `homes`
    /// and have a copy do so first, so that not all of them ask the backend at once.
    fn is_home_lost(&self, entry: &Entry, homes: &[Arc<Node>]) -> bool {
        let copies = entry.task.current().map_or(1, |version| version.replicas.get().max(1));
        let before = homes.len().min(copies.into()).saturating_sub(1);
        entry.is_home_lost(unix_ms(), u32::try_from(before).unwrap_or(u32::MAX))
    }

    async fn tell_backend(self: &Rc<Self>, version: &Rc<Version>, entry: &Rc<Entry>) -> End {
        let is_put = entry.record.borrow().kind == WriteBackKind::Put;
        if is_put && self.has_readers_of_the_backend(&entry.task, entry) {
            return End::Waiting;
        }
        self.pursue(version, entry).await
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
        // Nobody waits for the disk: after a crash it counts as dirty, and is recognised in the backend, or sent once more.
        let rest = self.give_to_catalog(changes);
        spawn_local(rest);
        // Still current, no longer pending: every question under way is now out of date.
        self.publish(task, Some(version.clone()));
        version.dirty.take();
    }

    /// Forgets a tombstone that has done its work, or a write that was given up; what the backend has counts then.
    pub async fn drop_version(self: &Rc<Self>, task: &Rc<Task>, version: &Rc<Version>) -> Result<(), ObjectError> {
        let _commit = task.commit_lock.lock().await;
        if !task.is_current(version) {
            return Ok(());
        }
        let changes = vec![Change::RemoveTask { task: version.task }, Change::RemoveWriteBack { task: version.task }];
        self.context.catalog.commit(changes, Durability::Durable).await?;
        if let Some(before) = self.publish(task, None) {
            self.let_go(before);
        }
        if self.cluster.is_some() {
            self.graves.borrow_mut().note(version.task, version.generation);
        }
        Ok(())
    }

    /// Tries again later.
    async fn put_off(self: &Rc<Self>, entry: &Rc<Entry>, error: &ObjectError) {
        let (attempts, record) = entry.note_failure(error, false);
        let delay = backoff(&entry.task.target.task, attempts).max(self.queue.heed(error));
        self.queue.pace.failed();
        self.context.metrics.writeback_attempted(false);
        tracing::warn!(object = %entry.task.target.name, attempts, %error, "write-back failed; trying again in {delay:?}");
        self.save_entry(entry, record).await;
        self.queue.put_off(entry, unix_ms().saturating_add(milliseconds(delay)), true);
    }

    /// Waiting does not heal this.
    async fn give_up(self: &Rc<Self>, entry: &Rc<Entry>, error: ObjectError) {
        let (attempts, record) = entry.note_failure(&error, true);
        self.context.metrics.writeback_attempted(false);
        // A client that still waits for its DELETE is told that it failed, and the object is there again.
        let tombstone = entry.task.current().filter(|version| version.state.get() == TaskState::Deleted);
        if let Some(tombstone) = tombstone.filter(|_| entry.may_be_refused())
            && self.drop_version(&entry.task, &tombstone).await.is_ok()
        {
            tracing::warn!(object = %entry.task.target.name, %error, "the backend refuses a deletion: it is not done");
            self.queue.finish(entry, Some(Err(error)));
            return;
        }
        tracing::error!(object = %entry.task.target.name, attempts, %error, "write-back set aside as a dead letter");
        self.save_entry(entry, record).await;
        self.queue.set_aside(entry);
    }

    /// Keeps an entry's state for after a restart. Losing it costs a repeated attempt, so nobody waits for the disk.
    async fn save_entry(&self, entry: &Entry, record: WriteBackRecord) {
        self.save(entry, vec![Change::PutWriteBack { task: entry.task.target.task, record }]).await;
    }

    /// Keeps what belongs to an entry, unless something newer has taken its place: that must not come before this.
    async fn save(&self, entry: &Entry, changes: Vec<Change>) {
        let commit = entry.task.commit_lock.lock().await;
        if self.queue.holds(entry) {
            let rest = self.give_to_catalog(changes);
            drop(commit);
            rest.await;
        }
    }
}

/// The pause before the next attempt: doubled each time, capped, and between half of that and all of it, for each object and
/// attempt otherwise, so that what failed together does not come back together.
fn backoff(task: &TaskId, attempts: u32) -> Duration {
    let doubled = WRITEBACK_RETRY_DELAY.saturating_mul(1 << attempts.min(16));
    let capped = doubled.min(WRITEBACK_RETRY_DELAY_MAX);
    let mut hash = crc32fast::Hasher::new();
    hash.update(task.as_bytes());
    hash.update(&attempts.to_le_bytes());
    let part = f64::from(hash.finalize()) / f64::from(u32::MAX);
    capped.mul_f64(0.5 + 0.5 * part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_are_spread() {
        let tasks: Vec<TaskId> = (0..100).map(|number| TaskId::from_bytes([number; 32])).collect();
        for (attempts, longest_ms) in [(1, 1000), (3, 4000), (7, 60_000), (40, 60_000)] {
            let mut pauses: Vec<u64> = tasks.iter().map(|task| milliseconds(backoff(task, attempts))).collect();
            pauses.sort_unstable();
            let (first, last) = (pauses[0], pauses[99]);
            assert!(first >= longest_ms / 2 && last <= longest_ms, "{attempts}: {first} to {last}");
            assert!(last - first > longest_ms / 3, "{attempts}: {first} to {last}");
            pauses.dedup();
            assert!(pauses.len() > 60, "{attempts}: only {} different", pauses.len());
        }
        let again = |attempts| backoff(&tasks[7], attempts).as_millis() * 10 / backoff(&tasks[8], attempts).as_millis();
        assert!((20..30).any(|attempts| again(attempts) != again(20)), "the same two do not stay together");
    }
}
