//! Deleting an object: first a durable tombstone, then the backend.
//!
//! From the tombstone on, no client of this peer sees the object and no pending upload can bring it back: the tombstone
//! has replaced the version that was to be uploaded, and an upload under way is waited for before the backend is told.
//!
//! A tombstone cannot be taken back, for all nodes give up what it replaces. So where something is still to be uploaded
//! the backend is asked before: one that refuses deletions must not cost what only we have.

use std::rc::Rc;

use crate::catalog::{TaskState, WriteBackKind};
use crate::config::options::ConflictPolicy;
use crate::engine::error::ObjectError;
use crate::engine::owner::Owner;
use crate::engine::request::{DeleteDone, Standing, Target};
use crate::engine::version::Version;
use crate::limits::DELETE_WAIT;
use crate::rt::time::{since_start, timeout, unix_ms};
use dfstore_proto::object::ObjectMeta;

/// What a client is told when the backend refuses a deletion before anything was given up.
const PENDING_STAYS: &str = "nothing is changed; 'dfstore writeback drop' gives up what has not reached the bucket";
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
        self.settle_if_home(&task).await?;
        let deadline = since_start() + DELETE_WAIT;
        if task.current().is_some_and(|before| before.standing() == Standing::Dirty) {
            self.delete_ahead(target).await?;
        }
        let (told, tombstone, was_pending) = {
            let _commit = task.commit_lock.lock().await;
            let now_ms = unix_ms();
            let was_pending = task.current().is_some_and(|before| before.standing() != Standing::Clean);
            let generation = self.next_number(&task, now_ms);
            let tombstone = Version::new(target.task, generation, ObjectMeta::default(), TaskState::Deleted, None);
            let record = self.new_entry(&task, WriteBackKind::Delete, generation);
            self.record_replacement(&task, &tombstone, Some(&record)).await?;
            let tombstone = Rc::new(tombstone);
            self.publish_new(&task, tombstone.clone(), Some(record));
            (self.queue.outcome(&task), tombstone, was_pending)
        };
        let done = match timeout(deadline.saturating_sub(since_start()), told).await {
            Ok(Ok(Err(error))) if was_pending => return Err(error.with_note(PENDING_IS_GONE)),
            Ok(Ok(outcome)) => outcome.map(|()| DeleteDone::Deleted)?,
            // Told later, or replaced by a newer write, which then is what the client wanted last.
            Ok(Err(_)) | Err(_) => DeleteDone::Pending,
        };
        // Not of one that was refused: if this peer is lost, the witness would carry it out all the same.
        self.tell_witness(&task, &tombstone).await;
        Ok(done)
    }

    /// Deletes what the backend has of an object of which a newer version is pending here. An error is one that will not
    /// heal; a backend that cannot be asked is none. Where others' changes in the bucket are not to be overwritten it is
    /// not asked: that takes the look that precedes the deletion itself.
    async fn delete_ahead(&self, target: &Target) -> Result<(), ObjectError> {
        if self.context.conflict.for_bucket(&target.name.bucket) != ConflictPolicy::Overwrite {
            return Ok(());
        }
        match timeout(DELETE_WAIT, self.delete_at_backend(&target.name)).await {
            Ok(Err(error)) if !error.is_retryable() => Err(error.with_note(PENDING_STAYS)),
            _ => Ok(()),
        }
    }
}
