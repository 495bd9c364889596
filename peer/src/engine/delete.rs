//! Deleting an object: first a durable tombstone, then the backend.
//!
//! From the tombstone on, no client of this peer sees the object and no pending upload can bring it back: the tombstone
//! has replaced the version that was to be uploaded, and an upload under way is waited for before the backend is told.
//!
//! A tombstone cannot be taken back, for all nodes give up what it replaces. So where something is still to be uploaded
//! the backend is asked to delete what it has before that as well: one that refuses must not cost what only we have.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use dfstore_proto::object::ObjectMeta;
use futures_util::future::{Either, select};

use crate::catalog::{TaskState, WriteBackKind};
use crate::config::options::ConflictPolicy;
use crate::engine::error::ObjectError;
use crate::engine::owner::Owner;
use crate::engine::request::{DeleteDone, Standing, Target};
use crate::engine::task::Task;
use crate::engine::version::Version;
use crate::engine::writeback::Entry;
use crate::limits::DELETE_WAIT;
use crate::rt::mailbox::oneshot;
use crate::rt::shard::spawn_local;
use crate::rt::time::{since_start, sleep, timeout, unix_ms};

/// What a client is told when the backend refuses a deletion before anything was given up.
const PENDING_STAYS: &str =
    "nothing is changed; 'dfstore writeback drop --force' gives up what has not reached the bucket";
/// What a client is told when the backend refuses a deletion whose tombstone had replaced what it lacked.
const PENDING_IS_GONE: &str = "what was written and had not reached the bucket is deleted, what the bucket has stays";

impl Owner {
    /// Deletes an object: where another peer decides about it, there.
    pub async fn delete(self: &Rc<Self>, target: &Target) -> Result<DeleteDone, ObjectError> {
        let task = self.task(target);
        match self.delete_at_home(&task).await? {
            Some(done) => Ok(done),
            None => self.delete_as_home(target).await,
        }
    }

    /// Deletes an object here, durably, and then in the backend. Waits for the backend for a while.
    pub async fn delete_as_home(self: &Rc<Self>, target: &Target) -> Result<DeleteDone, ObjectError> {
        let task = self.task(target);
        let deadline = since_start() + DELETE_WAIT;
        let mut asked_about = None;
        let (entry, tombstone, was_pending) = loop {
            self.settle_if_home(&task).await?;
            let protected = self.protected(&task);
            if let Some(generation) = protected
                && protected != asked_about
                && since_start() < deadline
            {
                self.ask_before_giving_up(&task, generation, deadline).await?;
                asked_about = protected;
                // Who decides about it may have changed meanwhile.
                continue;
            }
            let _commit = task.commit_lock.lock().await;
            if self.protected(&task) != protected && since_start() < deadline {
                continue;
            }
            let before = self.deletion_under_way(&task);
            if let Some((entry, tombstone)) = before.clone().filter(|(entry, _)| !entry.is_aside()) {
                self.queue.revive(&entry);
                break (Some(entry), tombstone, false);
            }
            let now_ms = unix_ms();
            let was_pending = task.current().is_some_and(|before| before.standing() != Standing::Clean);
            let generation = self.next_number(&task, now_ms);
            let tombstone = Version::new(target.task, generation, ObjectMeta::default(), TaskState::Deleted, None);
            let record = self.new_entry(&task, WriteBackKind::Delete, generation);
            self.record_replacement(&task, &tombstone, Some(&record)).await?;
            let tombstone = Rc::new(tombstone);
            self.publish_new(&task, tombstone.clone(), Some(record));
            let entry = self.queue.entry(&target.task);
            // What a client was told stays, whatever becomes of this request.
            if let Some(entry) = entry.as_ref().filter(|_| before.is_some_and(|(before, _)| before.acknowledged.get()))
            {
                entry.acknowledged.set(true);
            }
            break (entry, tombstone, was_pending);
        };
        let told = self.queue.outcome(&task);
        let done = match timeout(deadline.saturating_sub(since_start()), told).await {
            Ok(Ok(Err(error))) if was_pending => return Err(error.with_note(PENDING_IS_GONE)),
            Ok(Ok(outcome)) => outcome.map(|()| DeleteDone::Deleted)?,
            // Told later, or replaced by a newer write, which then is what the client wanted last.
            Ok(Err(_)) | Err(_) => {
                if let Some(entry) = entry {
                    entry.acknowledged.set(true);
                }
                DeleteDone::Pending
            }
        };
        // Not of one that was refused: if this peer is lost, the witness would carry it out all the same.
        self.tell_witness(&task, &tombstone).await;
        Ok(done)
    }

    /// The tombstone of a task and its entry in the queue, if the backend is still to be told of it.
    fn deletion_under_way(&self, task: &Task) -> Option<(Rc<Entry>, Rc<Version>)> {
        let tombstone = task.current().filter(|version| version.state.get() == TaskState::Deleted)?;
        let entry = self.queue.entry(&task.target.task)?;
        (entry.generation == tombstone.generation).then_some((entry, tombstone))
    }

    /// The version that a refused deletion must not cost: one that the backend is still to get, if it is this peer that
    /// decides, and may delete what others wrote without a look.
    fn protected(&self, task: &Task) -> Option<u64> {
        let policy = self.context.conflict.for_bucket(&task.target.name.bucket);
        let decides = !self.is_away(&task.target.task);
        let current = task.current().filter(|_| decides && policy == ConflictPolicy::Overwrite)?;
        (current.standing() == Standing::Dirty).then_some(current.generation)
    }

    /// Has the backend delete what it has of an object, as the deletion itself will once more. An error is a refusal; a
    /// backend that gives none until `deadline` cannot be asked.
    async fn ask_before_giving_up(
        self: &Rc<Self>,
        task: &Rc<Task>,
        generation: u64,
        deadline: Duration,
    ) -> Result<(), ObjectError> {
        while since_start() < deadline {
            if self.is_ending.get() {
                return Err(ObjectError::ShuttingDown);
            }
            let (reply, answer) = oneshot::channel();
            let (owner, task, ended) = (self.clone(), task.clone(), self.ending.listen());
            spawn_local(async move { drop(select(pin!(owner.delete_in_turn(&task, generation, reply)), ended).await) });
            let Ok(answer) = timeout(deadline.saturating_sub(since_start()), answer).await else { return Ok(()) };
            match answer.unwrap_or(Err(ObjectError::ShuttingDown)) {
                // What does not exist refuses nothing.
                Ok(()) | Err(ObjectError::NoSuchBucket(_)) => return Ok(()),
                Err(ObjectError::ShuttingDown) => return Err(ObjectError::ShuttingDown),
                Err(error) if !error.is_retryable() => return Err(error.with_note(PENDING_STAYS)),
                Err(error) => {
                    let pause = self.queue.heed(&error);
                    sleep(pause.min(deadline.saturating_sub(since_start()))).await;
                }
            }
        }
        Ok(())
    }

    /// Deletes an object in the backend when nothing else of it is under way there, if somebody still waits for that and
    /// this version is still to be protected. To its end, also when nobody waits any more: a request that is given up may
    /// arrive later than the next one.
    async fn delete_in_turn(&self, task: &Task, generation: u64, mut reply: oneshot::Sender<Result<(), ObjectError>>) {
        let places = async { (self.queue.turn().await, task.backend_lock.lock().await) };
        let Either::Left((_places, _)) = select(pin!(places), reply.cancellation()).await else { return };
        if reply.is_canceled() {
            return;
        }
        let is_same = self.protected(task) == Some(generation);
        let deleted = if is_same { self.delete_at_backend(&task.target.name).await } else { Ok(()) };
        // Whoever waited has gone.
        drop(reply.send(deleted));
    }
}
