//! Deleting an object: first a durable tombstone, then the backend.
//!
//! From the tombstone on, no client of this peer sees the object and no pending upload can bring it back: the tombstone
//! has replaced the version that was to be uploaded, and an upload under way is waited for before the backend is told.

use std::rc::Rc;

use crate::catalog::{TaskState, WriteBackKind};
use crate::engine::error::ObjectError;
use crate::engine::owner::Owner;
use crate::engine::request::{DeleteDone, Standing, Target};
use crate::engine::version::Version;
use crate::limits::DELETE_WAIT;
use crate::rt::time::{timeout, unix_ms};
use dfstore_proto::object::ObjectMeta;

/// What a client is told when the backend refuses a deletion: the tombstone had replaced what it lacked.
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
        let done = match timeout(DELETE_WAIT, told).await {
            Ok(Ok(Err(error))) if was_pending => return Err(error.with_note(PENDING_IS_GONE)),
            Ok(Ok(outcome)) => outcome.map(|()| DeleteDone::Deleted)?,
            // Told later, or replaced by a newer write, which then is what the client wanted last.
            Ok(Err(_)) | Err(_) => DeleteDone::Pending,
        };
        // Not of one that was refused: if this peer is lost, the witness would carry it out all the same.
        self.tell_witness(&task, &tombstone).await;
        Ok(done)
    }
}
