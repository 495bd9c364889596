//! One attempt to bring an entry of the queue to its end: carries out what the decision table says, step by step.
//!
//! The caller holds the task's `backend_lock`. Between two steps everything may have changed (a newer version, a
//! deletion, another seed that decides): the situation is read anew each time.

use std::rc::Rc;

use dfstore_proto::object::ObjectMeta;

use crate::catalog::{TaskState, WriteBackKind};
use crate::engine::cluster::Place;
use crate::engine::error::ObjectError;
use crate::engine::owner::Owner;
use crate::engine::version::Version;
use crate::engine::writeback::table::{self, Backend, InProgress, Pieces, Situation, Standing, Step};
use crate::engine::writeback::{Entry, Outgoing};
use crate::limits::WRITEBACK_LOOKS_MAX;
use crate::sidecar::backend::{Head, Stored, WriteCondition};
use dfstore_proto::ids::ObjectName;
use dfstore_proto::limits::KEY_BYTES_MAX;

/// How an attempt ended.
pub enum End {
    /// The backend has been told all that it was to be told.
    Done,
    /// The entry is void.
    Void,
    /// It is another peer's turn, or a reader's: looked at again later, and nothing has failed.
    Waiting,
    /// It failed, and is tried again.
    Failed(ObjectError),
    /// It failed for good.
    Refused(ObjectError),
}

/// What an attempt has found out so far.
struct Attempt<'a> {
    owner: &'a Rc<Owner>,
    entry: &'a Rc<Entry>,
    /// What the backend has, or has answered last.
    backend: Backend,
    /// The object there, when it was looked at.
    found: Option<Head>,
    /// What it answered to the bytes.
    stored: Option<Stored>,
    /// The version's attributes as the backend has them.
    meta: Option<ObjectMeta>,
    /// Why the last step failed.
    error: Option<ObjectError>,
    looks: u32,
}

impl Owner {
    /// Carries an entry out as far as it goes.
    pub async fn pursue(self: &Rc<Self>, version: &Version, entry: &Rc<Entry>) -> End {
        let backend = if self.must_look(version, entry) { Backend::Unasked } else { Backend::Replaceable };
        let (found, stored, meta, error) = (None, None, None, None);
        Attempt { owner: self, entry, backend, found, stored, meta, error, looks: 0 }.run().await
    }

    /// Where the version of an entry stands.
    fn entry_standing(&self, entry: &Entry) -> (Standing, Option<Rc<Version>>) {
        let Some(current) = entry.task.current() else { return (Standing::Gone, None) };
        let is_its_own = current.generation == entry.generation && self.queue.holds(entry);
        let standing = match current.state.get() {
            TaskState::Dirty if is_its_own => Standing::Dirty,
            TaskState::Deleted if is_its_own => Standing::Tombstone,
            TaskState::Deleted => Standing::Cancelled,
            _ => Standing::Superseded,
        };
        (standing, Some(current))
    }

    /// Whether this peer tells the backend about an entry.
    pub fn decides(&self, entry: &Entry) -> bool {
        match self.place(&entry.task.target.task) {
            Place::Away { homes, .. } => self.is_home_lost(entry, &homes),
            Place::Alone | Place::Home { .. } => true,
        }
    }

    /// Whether all bytes of a version can be sent from here, and stay here if this peer is killed.
    fn is_complete(&self, version: &Version) -> bool {
        version.is_whole() && (self.cluster.is_none() || version.is_durable_here())
    }
}

impl Attempt<'_> {
    async fn run(mut self) -> End {
        loop {
            let (standing, version) = self.owner.entry_standing(self.entry);
            let is_newest = matches!(standing, Standing::Dirty | Standing::Tombstone);
            let Some(version) = version.filter(|_| is_newest) else { return End::Void };
            if !self.owner.decides(self.entry) {
                return End::Waiting;
            }
            let (step, why) = table::decide(&self.situation(standing, &version));
            tracing::trace!(object = %self.entry.task.target.name, generation = version.generation, ?step, why);
            self.entry.step.set(Some(step));
            if step.is_end() {
                return self.end(step, &version).await;
            }
            if let Err(error) = self.carry_out(step, &version).await {
                self.backend = self.answer_of(&error);
                self.error = Some(error);
            }
        }
    }

    fn situation(&self, standing: Standing, version: &Version) -> Situation {
        let pieces = if self.owner.is_complete(version) { Pieces::Whole } else { Pieces::Lacking };
        let has_upload = self.entry.record.borrow().upload.is_some();
        let in_progress = if has_upload { InProgress::Upload } else { InProgress::Nothing };
        Situation { standing, pieces, in_progress, backend: self.backend }
    }

    /// What an error means for the next step.
    fn answer_of(&self, error: &ObjectError) -> Backend {
        match error {
            ObjectError::Busy { .. } => Backend::Overloaded,
            ObjectError::PreconditionFailed if self.looks < WRITEBACK_LOOKS_MAX => Backend::Changed,
            ObjectError::PreconditionFailed => Backend::Failing,
            error if error.is_retryable() => Backend::Failing,
            _ => Backend::Refusing,
        }
    }

    async fn carry_out(&mut self, step: Step, version: &Rc<Version>) -> Result<(), ObjectError> {
        let owner = self.owner;
        match step {
            Step::Look => {
                self.looks += 1;
                let found = owner.look(version, self.entry).await?;
                (self.backend, self.found) = (found.backend, found.object);
                if self.backend == Backend::Same {
                    self.meta = self.found.as_ref().map(|there| there.meta.clone());
                }
            }
            Step::Collect => {
                owner.collect(version).await?;
            }
            Step::Send | Step::Resume => {
                let outgoing = self.outgoing(version);
                self.stored = Some(owner.transmit(&outgoing, Some(self.entry)).await?);
                self.backend = Backend::Taken;
            }
            Step::SendBeside => {
                let name = beside(&self.entry.task.target.name, version.generation)?;
                // Whatever has this name is this version, from an attempt before.
                let outgoing = Outgoing { name, condition: WriteCondition::Always, ..self.outgoing(version) };
                owner.transmit(&outgoing, None).await?;
                owner.context.metrics.writeback_conflict();
                tracing::warn!(
                    object = %self.entry.task.target.name, kept_as = %outgoing.name,
                    "others changed this object in the bucket while a write of it was pending: the write is kept beside it"
                );
                self.backend = Backend::TakenBeside;
            }
            Step::Verify => {
                let stored = self.stored.clone().unwrap_or(Stored { etag: String::new() });
                let seen = owner.verify(&self.outgoing(version), &stored).await;
                self.meta = Some(seen.map_err(gone_again)?);
                self.backend = Backend::Same;
            }
            Step::Delete => {
                owner.delete_at_backend(&self.entry.task.target.name).await?;
                self.backend = Backend::Taken;
            }
            step => unreachable!("{step:?} ends an attempt"),
        }
        Ok(())
    }

    fn outgoing(&self, version: &Version) -> Outgoing {
        Outgoing {
            task: version.task,
            name: self.entry.task.target.name.clone(),
            meta: version.meta.borrow().clone(),
            generation: version.generation,
            crc32: version.crc32,
            pieces: version.stored_pieces(),
            condition: self.owner.condition(self.entry, self.found.as_ref()),
            damaged: Rc::default(),
        }
    }

    async fn end(self, step: Step, version: &Rc<Version>) -> End {
        let Attempt { owner, entry, .. } = self;
        let name = &entry.task.target.name;
        match step {
            Step::Settle => {
                let meta = self.meta.or_else(|| self.found.map(|there| there.meta)).unwrap_or_default();
                owner.become_clean(&entry.task, version, meta).await;
                tracing::debug!(object = %name, generation = version.generation, "written back");
                End::Done
            }
            Step::GiveWay => {
                tracing::info!(object = %name, generation = version.generation, "the bucket's version counts");
                owner.give_way(&entry.task, version).await;
                if owner.cluster.is_some() {
                    // Nodes that still have it are told so, and do not bring it back.
                    owner.graves.borrow_mut().note(version.task, version.generation);
                }
                End::Done
            }
            Step::Forget => match owner.drop_version(&entry.task, version).await {
                Ok(()) => {
                    let is_gone = matches!(self.backend, Backend::Taken | Backend::Same | Backend::TakenBeside);
                    if is_gone && entry.task.current().is_none() {
                        owner.graves.borrow_mut().close(version.task, version.generation);
                    }
                    End::Done
                }
                Err(error) => End::Failed(error),
            },
            Step::SetAside if self.backend == Backend::Conflict => {
                owner.context.metrics.writeback_conflict();
                End::Refused(conflict(name, entry.record.borrow().kind, self.found.as_ref()))
            }
            Step::SetAside => End::Refused(self.why()),
            Step::TryLater | Step::SlowDown => End::Failed(self.why()),
            Step::Leave => End::Void,
            step => unreachable!("{step:?} ends no attempt"),
        }
    }

    fn why(self) -> ObjectError {
        self.error.unwrap_or_else(|| ObjectError::Internal("a step failed without a reason".to_owned()))
    }
}

impl Owner {
    /// Gets the pieces of a version that are missing here, durably.
    async fn collect(self: &Rc<Self>, version: &Rc<Version>) -> Result<(), ObjectError> {
        if self.cluster.is_some() {
            // That others are busy says nothing about the backend.
            self.copy_here(version).await.map_err(|error| match error {
                ObjectError::Busy { reason, .. } => ObjectError::PeerUnavailable(reason),
                error => error,
            })?;
        }
        if self.is_complete(version) {
            return Ok(());
        }
        Err(ObjectError::Internal(
            "pieces of it are lost or damaged on this peer's disk, and nobody else has them".to_owned(),
        ))
    }

    /// Deletes an object in the backend; one that is not there is deleted.
    pub(in crate::engine) async fn delete_at_backend(&self, name: &ObjectName) -> Result<(), ObjectError> {
        let deleted = if leads_out_of_bucket(&name.key) {
            Err(ObjectError::InvalidArgument(format!("{name}: servers exist that would take this for their bucket")))
        } else {
            self.context.backend.delete(name.clone()).await.map_err(ObjectError::from)
        };
        match deleted {
            // An ephemeral object may have a key that the backend refuses; that it then has no such object is asked.
            Err(ObjectError::InvalidArgument(_)) if self.context.backend.head(name.clone()).await.is_err() => Ok(()),
            deleted => deleted,
        }
    }
}

/// What was just stored is not there: somebody deleted it, or the backend shows it later.
fn gone_again(error: ObjectError) -> ObjectError {
    match error {
        ObjectError::NotFound(name) => {
            ObjectError::BackendUnavailable(format!("{name} was stored, and is not there at a look"))
        }
        error => error,
    }
}

fn conflict(name: &ObjectName, kind: WriteBackKind, there: Option<&Head>) -> ObjectError {
    let ours = match kind {
        WriteBackKind::Put => "a write",
        WriteBackKind::Delete => "a deletion",
    };
    let etag = there.map(|there| there.meta.etag.clone()).unwrap_or_default();
    ObjectError::Conflict(format!(
        "others changed {name} in the bucket (entity tag {etag}) while {ours} of it was pending: \
         'dfstore writeback retry --force' replaces theirs, 'dfstore writeback drop' gives ours up"
    ))
}

/// The name under which a version is kept beside what others wrote.
fn beside(name: &ObjectName, generation: u64) -> Result<ObjectName, ObjectError> {
    let key = format!("{}.dfstore-conflict-{generation:x}", name.key);
    if key.len() > KEY_BYTES_MAX {
        return Err(ObjectError::InvalidArgument(format!(
            "{name}: the key is too long to be kept under one beside it"
        )));
    }
    Ok(ObjectName::new(name.bucket.clone(), key))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_a_server_could_take_for_its_bucket() {
        for key in ["/", "//", ".", "..", "a/..", "../a", "a/../../b/c", "./", "a/b/../../"] {
            assert!(leads_out_of_bucket(key), "{key}");
        }
        for key in ["a", "a/", "/a", "a/../b", "..a", "a/...", "a//b", "a/b/.."] {
            assert!(!leads_out_of_bucket(key), "{key}");
        }
    }

    #[test]
    fn a_version_is_kept_beside_under_a_name_of_its_own() {
        let name = ObjectName::new("b", "a/k");
        let kept = beside(&name, 0xABC).expect("short");
        assert_eq!((kept.bucket.as_str(), kept.key.as_str()), ("b", "a/k.dfstore-conflict-abc"));
        assert!(beside(&ObjectName::new("b", "k".repeat(KEY_BYTES_MAX - 5)), 1).is_err());
    }
}
