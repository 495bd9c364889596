//! The queue as people see it, and their orders: try this now, give that up.

use std::rc::Rc;

use dfstore_proto::ids::ObjectName;
use dfstore_proto::message::{self, Message, SteerOrder};

use crate::catalog::WriteBackKind;
use crate::engine::error::ObjectError;
use crate::engine::fetch::busy;
use crate::engine::owner::Owner;
use crate::engine::request::{Order, QueueRequest, Target};
use crate::engine::task::Task;
use crate::engine::writeback::Entry;
use crate::engine::writeback::table::Step;
use crate::limits::STEER_WAIT;
use crate::rt::time::{timeout, unix_ms};

impl Owner {
    /// Entries of this shard, by name; at most one more than asked for, which says that there are more.
    pub fn queued(&self, request: &QueueRequest) -> Vec<message::QueueEntry> {
        let first = match &request.after {
            Some(after) => after.clone(),
            None => ObjectName::new(request.bucket.clone(), request.prefix.clone()),
        };
        let is_wanted = |name: &ObjectName| {
            (request.bucket.is_empty() || name.bucket == request.bucket)
                && name.key.starts_with(&request.prefix)
                && request.after.as_ref().is_none_or(|after| name > after)
        };
        let pending = self.pending.borrow();
        pending
            .range(first..)
            .take_while(|(name, _)| request.bucket.is_empty() || name.bucket == request.bucket)
            .filter(|(name, _)| is_wanted(name))
            .filter_map(|(_, task)| self.queue.entry(&task.target.task))
            .filter(|entry| entry.is_aside() || !request.dead_only)
            .take(request.limit + 1)
            .map(|entry| self.show(&entry))
            .collect()
    }

    fn show(&self, entry: &Entry) -> message::QueueEntry {
        let record = entry.record.borrow();
        let version = entry.task.current().filter(|version| version.generation == entry.generation);
        let length = version.map_or(0, |version| version.meta.borrow().length);
        let state = state_of(entry, unix_ms());
        let is_delayed = state == message::QueueState::Delayed;
        message::QueueEntry {
            bucket: entry.task.target.name.bucket.clone(),
            key: entry.task.target.name.key.clone(),
            deletes: record.kind == WriteBackKind::Delete,
            generation: entry.generation,
            length,
            state,
            queued_at_ms: record.queued_at_ms,
            due_at_ms: if is_delayed { entry.due_ms() } else { 0 },
            attempts: record.attempts,
            last_error: record.last_error.clone(),
            bytes_sent: bytes_sent(entry, length),
        }
    }

    /// Does what a person wants of the entry of an object: here, and where another peer decides about it, there first.
    pub async fn steer(self: &Rc<Self>, target: &Target, order: Order) -> Result<(), ObjectError> {
        let task = self.task(target);
        let is_done_at_home = self.is_away(&target.task) && !order.by_peer && self.steer_at_home(&task, order).await?;
        match order.order {
            // The home tries it; it need not wait here as well.
            SteerOrder::Retry if is_done_at_home && self.queue.entry(&target.task).is_none() => Ok(()),
            SteerOrder::Retry => self.retry(&task, order.force).await,
            SteerOrder::Drop if is_done_at_home => {
                // The home has given it up.
                if let Some(version) = task.current().filter(|version| !version.is_clean()) {
                    self.give_way(&task, &version).await;
                }
                Ok(())
            }
            SteerOrder::Drop => self.give_write_up(&task, order.force).await,
        }
    }

    /// Passes an order on. `false`: nothing of the object waits there.
    async fn steer_at_home(&self, task: &Task, order: Order) -> Result<bool, ObjectError> {
        let Order { order, force, .. } = order;
        let make = || message::Steer { target: task.target.to_message(), order, force };
        match self.ask_homes(task, make).await {
            Ok(Some(Message::Done(_))) => Ok(true),
            Ok(None) if order == SteerOrder::Retry && self.queue.entry(&task.target.task).is_some() => Ok(false),
            Ok(None) => {
                Err(ObjectError::PeerUnavailable("no seed that decides about the object can be reached".to_owned()))
            }
            Ok(Some(other)) => Err(ObjectError::unexpected(&other)),
            // The home may not know of it yet, or not any more.
            Err(ObjectError::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn retry(&self, task: &Task, force: bool) -> Result<(), ObjectError> {
        let entry = self.queue.entry(&task.target.task).ok_or_else(|| nothing_waits(&task.target))?;
        entry.forced.set(force || entry.forced.get());
        self.queue.revive(&entry);
        let record = entry.record.borrow().clone();
        self.save_entry(&entry, record).await;
        Ok(())
    }

    /// Forgets a write, or a deletion, that the backend has not been told of: what the backend has counts again.
    async fn give_write_up(self: &Rc<Self>, task: &Rc<Task>, force: bool) -> Result<(), ObjectError> {
        let waits = || self.queue.entry(&task.target.task).ok_or_else(|| nothing_waits(&task.target));
        let check = |entry: &Entry| match force || entry.is_aside() {
            true => Ok(()),
            false => Err(ObjectError::Conflict(format!(
                "{} is no dead letter and is still on its way to the bucket: --force gives it up all the same",
                task.target.name
            ))),
        };
        check(&*waits()?)?;
        let Ok(_backend) = timeout(STEER_WAIT, task.backend_lock.lock()).await else {
            return Err(busy(&format!("{} is being sent to the bucket just now", task.target.name)));
        };
        // It may have been carried out, or replaced, meanwhile.
        let entry = waits()?;
        check(&entry)?;
        if let Some(version) = task.current().filter(|version| version.generation == entry.generation) {
            self.drop_version(task, &version).await?;
            tracing::warn!(object = %task.target.name, generation = entry.generation, "a write was given up by a person's order");
        }
        self.queue.remove(task);
        Ok(())
    }
}

fn state_of(entry: &Entry, now_ms: u64) -> message::QueueState {
    use message::QueueState;
    match entry.step.get() {
        _ if entry.is_aside() => QueueState::Dead,
        Some(Step::Verify | Step::Settle) => QueueState::Verifying,
        Some(_) => QueueState::Sending,
        None if entry.waits_for_home() => QueueState::Elsewhere,
        None if entry.due_ms() > now_ms => QueueState::Delayed,
        None => QueueState::Waiting,
    }
}

/// Bytes of the parts that the backend has acknowledged.
fn bytes_sent(entry: &Entry, length: u64) -> u64 {
    let record = entry.record.borrow();
    let part_bytes = record.upload.as_ref().map_or(0, |upload| upload.part_bytes);
    let parts = entry.parts.borrow();
    let start = |number: u32| u64::from(number.saturating_sub(1)).saturating_mul(part_bytes);
    parts.keys().map(|number| length.saturating_sub(start(*number)).min(part_bytes)).sum()
}

fn nothing_waits(target: &Target) -> ObjectError {
    ObjectError::NotFound(format!("a pending write of {}", target.name))
}
