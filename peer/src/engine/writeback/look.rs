//! What the backend has before something is written there or deleted.
//!
//! It is asked only where that can matter: an attempt before, or another peer, may have got through without an answer;
//! who was away for long may come with a version that has been replaced since; or the bucket's policy is not to
//! overwrite what others wrote. What others wrote counts as a conflict when it came after our write was acknowledged and
//! is not what our write replaced.

use crate::catalog::{TaskState, WriteBackRecord};
use crate::config::options::ConflictPolicy;
use crate::engine::error::ObjectError;
use crate::engine::numbers;
use crate::engine::owner::Owner;
use crate::engine::task::Task;
use crate::engine::version::Version;
use crate::engine::writeback::Entry;
use crate::engine::writeback::table::Backend;
use crate::limits::WRITE_LATE;
use crate::rt::time::{milliseconds, unix_ms};
use crate::sidecar::backend::{BackendErrorKind, Head, WriteCondition};

/// What a look has found.
pub struct Found {
    /// What it means for the version.
    pub backend: Backend,
    /// The object there, if there is one and it could be seen.
    pub object: Option<Head>,
}

impl Owner {
    /// Whether the backend is to be asked before an entry is carried out.
    pub fn must_look(&self, version: &Version, entry: &Entry) -> bool {
        let policy = self.conflict_policy(entry);
        entry.may_be_sent() || is_late(version.generation) || policy != ConflictPolicy::Overwrite
    }

    fn conflict_policy(&self, entry: &Entry) -> ConflictPolicy {
        match entry.forced.get() {
            true => ConflictPolicy::Overwrite,
            false => self.context.conflict.for_bucket(&entry.task.target.name.bucket),
        }
    }

    /// Asks the backend.
    pub async fn look(&self, version: &Version, entry: &Entry) -> Result<Found, ObjectError> {
        let policy = self.conflict_policy(entry);
        let there = match self.context.backend.find(entry.task.target.name.clone()).await {
            Ok(there) => there,
            Err(error) if error.kind == BackendErrorKind::NotFound => {
                return Ok(Found { backend: Backend::Replaceable, object: None });
            }
            // Who may write may not be allowed to look.
            Err(error) if !error.is_retryable() && policy == ConflictPolicy::Overwrite => {
                return Ok(Found { backend: Backend::Replaceable, object: None });
            }
            Err(error) => return Err(error.into()),
        };
        let backend = judge(version, &entry.record.borrow(), &there, policy);
        Ok(Found { backend, object: Some(there) })
    }

    /// The condition under which something is written over what was found.
    pub fn condition(&self, entry: &Entry, found: Option<&Head>) -> WriteCondition {
        match (self.conflict_policy(entry), found) {
            (ConflictPolicy::Overwrite, _) => WriteCondition::Always,
            (_, Some(there)) if !there.meta.etag.is_empty() => WriteCondition::IfMatch(there.meta.etag.clone()),
            (_, Some(_)) => WriteCondition::Always,
            (_, None) => WriteCondition::IfAbsent,
        }
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
}

/// What the object in the backend means for a version that is to replace it. Pure.
fn judge(version: &Version, record: &WriteBackRecord, there: &Head, policy: ConflictPolicy) -> Backend {
    let written_as = numbers::written_as(version.crc32, version.generation);
    let is_put = version.state.get() == TaskState::Dirty;
    let is_same = is_put && !written_as.is_empty() && there.written_as == written_as;
    if is_same && there.meta.length == version.meta.borrow().length {
        return Backend::Same;
    }
    if numbers::outranks(&there.written_as, version.generation) {
        return Backend::Newer;
    }
    match policy {
        _ if !is_by_others_since(record, there) => Backend::Replaceable,
        ConflictPolicy::Overwrite => Backend::Replaceable,
        ConflictPolicy::Fail => Backend::Conflict,
        ConflictPolicy::KeepBoth => Backend::ConflictToKeep,
    }
}

/// Whether somebody else has written the object since our write was acknowledged. The backend tells the second.
fn is_by_others_since(record: &WriteBackRecord, there: &Head) -> bool {
    let is_ours = numbers::is_written_by_us(&there.written_as);
    let is_known = !there.meta.etag.is_empty() && there.meta.etag == record.replaced_etag;
    !is_ours && !is_known && there.meta.last_modified_ms / 1000 >= record.queued_at_ms / 1000
}

/// Whether a number was given long ago: its version may have been replaced by one that is forgotten here.
fn is_late(generation: u64) -> bool {
    let late_ms = milliseconds(WRITE_LATE);
    generation / 1000 < unix_ms().saturating_sub(late_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::WriteBackKind;
    use crate::engine::writeback::new_record;
    use dfstore_proto::ids::{ObjectName, TaskId};
    use dfstore_proto::object::ObjectMeta;

    const GENERATION: u64 = 1_700_000_000_000_000;
    const QUEUED_MS: u64 = GENERATION / 1000;

    fn version(state: TaskState) -> Version {
        let task = TaskId::of(&ObjectName::new("b", "k"), "", "");
        let meta = ObjectMeta { length: 9, ..ObjectMeta::default() };
        Version::new(task, GENERATION, meta, state, Some(7))
    }

    fn record() -> WriteBackRecord {
        let record = new_record(WriteBackKind::Put, GENERATION, "\"before\"".to_owned());
        WriteBackRecord { queued_at_ms: QUEUED_MS, ..record }
    }

    fn there(etag: &str, last_modified_ms: u64, written_as: String) -> Head {
        let meta = ObjectMeta { length: 9, etag: etag.to_owned(), last_modified_ms, ..ObjectMeta::default() };
        Head { meta, written_as }
    }

    #[test]
    fn what_others_wrote_since_is_a_conflict_unless_it_may_be_overwritten() {
        let foreign = there("\"new\"", QUEUED_MS + 5000, String::new());
        for (policy, expected) in [
            (ConflictPolicy::Overwrite, Backend::Replaceable),
            (ConflictPolicy::Fail, Backend::Conflict),
            (ConflictPolicy::KeepBoth, Backend::ConflictToKeep),
        ] {
            assert_eq!(judge(&version(TaskState::Dirty), &record(), &foreign, policy), expected);
            assert_eq!(judge(&version(TaskState::Deleted), &record(), &foreign, policy), expected, "for a deletion");
        }
    }

    #[test]
    fn what_was_there_before_our_write_is_none() {
        let policy = ConflictPolicy::Fail;
        let older = there("\"other\"", QUEUED_MS - 2000, String::new());
        let replaced = there("\"before\"", QUEUED_MS, String::new());
        let ours = there("\"o\"", QUEUED_MS + 5000, numbers::written_as(Some(1), GENERATION - 1));
        for there in [older, replaced, ours] {
            assert_eq!(judge(&version(TaskState::Dirty), &record(), &there, policy), Backend::Replaceable, "{there:?}");
        }
        let same_second = there("\"other\"", QUEUED_MS / 1000 * 1000, String::new());
        assert_eq!(judge(&version(TaskState::Dirty), &record(), &same_second, policy), Backend::Conflict);
    }

    #[test]
    fn our_own_versions_are_recognised() {
        let same = there("\"s\"", QUEUED_MS + 1000, numbers::written_as(Some(7), GENERATION));
        let newer = there("\"n\"", QUEUED_MS + 1000, numbers::written_as(Some(8), GENERATION + 1));
        for policy in [ConflictPolicy::Overwrite, ConflictPolicy::Fail, ConflictPolicy::KeepBoth] {
            assert_eq!(judge(&version(TaskState::Dirty), &record(), &same, policy), Backend::Same);
            assert_eq!(judge(&version(TaskState::Dirty), &record(), &newer, policy), Backend::Newer);
            assert_eq!(judge(&version(TaskState::Deleted), &record(), &newer, policy), Backend::Newer);
        }
        let other_length = Head { meta: ObjectMeta { length: 8, ..same.meta.clone() }, ..same };
        let found = judge(&version(TaskState::Dirty), &record(), &other_length, ConflictPolicy::Overwrite);
        assert_eq!(found, Backend::Replaceable, "a broken copy of ours");
    }
}
