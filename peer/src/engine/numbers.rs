//! The number of a version that was found in the backend, by when it came there; and the tag of one that is not there yet.
//!
//! Writes are numbered by the clock (microseconds). What is found in the backend must be above what it replaced there,
//! and below a write that came after it, though the home be told of that write only later: else an acknowledged write
//! would give way to what it was to replace. The backend tells the second; a microsecond of the one before is
//! taken, which one depends on the content, so that two contents of one second hardly get one number.

use std::hash::Hasher;

use dfstore_proto::object::ObjectMeta;

/// Numbers in a second.
const SECOND: u64 = 1_000_000;

/// The number for what was found, or `None` when the backend does not say when it came, or says what cannot be.
pub fn of_found(meta: &ObjectMeta, now_ms: u64) -> Option<u64> {
    let seconds = meta.last_modified_ms / 1000;
    if seconds == 0 || meta.last_modified_ms > now_ms {
        return None;
    }
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(meta.etag.as_bytes());
    hasher.write_u64(meta.length);
    Some((seconds - 1) * SECOND + u64::from(hasher.finalize()) % SECOND)
}

/// What a version is called in the metadata that the backend keeps with it.
pub fn written_as(crc32: Option<u32>, generation: u64) -> String {
    crc32.map_or_else(String::new, |crc32| format!("{crc32:08x}-{generation:x}"))
}

/// Whether what the backend has under this name is a version of ours with a higher number.
pub fn outranks(written_as: &str, generation: u64) -> bool {
    of_written(written_as).is_some_and(|number| number > generation)
}

/// Whether what the backend has under this name is a version of ours.
pub fn is_written_by_us(written_as: &str) -> bool {
    of_written(written_as).is_some()
}

/// The number of the version that the backend says it has; `None` when it is none of ours.
fn of_written(written_as: &str) -> Option<u64> {
    u64::from_str_radix(written_as.rsplit_once('-')?.1, 16).ok()
}

/// The entity tag of a version that the backend does not have, which gives it another one.
pub fn own_etag(crc32: u32, generation: u64) -> String {
    format!("\"{}\"", written_as(Some(crc32), generation))
}

/// Whether this is the entity tag of the version with this number before the backend had it.
pub fn is_own_etag(etag: &str, generation: u64) -> bool {
    etag.trim_matches('"').rsplit_once('-').is_some_and(|(_, number)| number == format!("{generation:x}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfstore_proto::ids::ObjectName;

    use crate::catalog::TaskState;
    use crate::engine::request::Target;
    use crate::engine::task::Task;
    use crate::engine::version::Version;

    const NOW_MS: u64 = 1_700_000_100_000;

    fn found_at(last_modified_ms: u64) -> ObjectMeta {
        ObjectMeta { length: 3, etag: "\"a\"".into(), last_modified_ms, ..ObjectMeta::default() }
    }

    fn task() -> std::rc::Rc<Task> {
        Task::new(Target::of(ObjectName::new("bucket", "key")))
    }

    fn make_current(task: &Task, generation: u64, state: TaskState) {
        let version = Version::new(task.target.task, generation, found_at(0), state, None);
        drop(task.replace(Some(version.into())));
    }

    #[test]
    fn a_tag_of_our_own_is_told_from_those_of_the_backend() {
        let generation = NOW_MS * 1000;
        assert!(is_own_etag(&own_etag(7, generation), generation));
        assert!(!is_own_etag(&own_etag(7, generation), generation + 1));
        for etag in ["", "\"\"", "\"d41d8cd98f00b204e9800998ecf8427e\"", "\"d41d8cd98f00b204e9800998ecf8427e-9\""] {
            assert!(!is_own_etag(etag, generation), "{etag}");
        }
    }

    #[test]
    fn what_the_backend_keeps_tells_the_number_again() {
        let generation = NOW_MS * 1000;
        assert_eq!(of_written(&written_as(Some(7), generation)), Some(generation));
        for other in ["", "-", "7", "00000007-", "00000007-xyz", "00000007-fffffffffffffffff"] {
            assert_eq!(of_written(other), None, "{other}");
        }
    }

    #[test]
    fn what_was_there_before_a_write_does_not_outrank_it_when_it_is_found_after_it() {
        let write = (NOW_MS - 20_000) * 1000;
        assert!(task().generation_for(&found_at(NOW_MS - 30_000), NOW_MS) < write);
        assert!(task().generation_for(&found_at(NOW_MS - 10_000), NOW_MS) > write);
    }

    #[test]
    fn a_number_that_was_promised_is_not_outranked_either() {
        let task = task();
        task.reserve(NOW_MS * 1000, NOW_MS);
        assert!(task.generation_for(&found_at(NOW_MS - 30_000), NOW_MS + 10_000) < task.reserved.get());
    }

    #[test]
    fn what_is_found_is_above_all_that_was_known_here() {
        let (task, found) = (task(), found_at(NOW_MS - 30_000));
        for state in [TaskState::Dirty, TaskState::Clean, TaskState::Deleted] {
            make_current(&task, NOW_MS * 1000, state);
            assert!(task.generation_for(&found, NOW_MS) > NOW_MS * 1000, "{state:?}");
        }
        drop(task.replace(None));
        assert!(task.generation_for(&found, NOW_MS) > NOW_MS * 1000, "though it is forgotten");
    }

    #[test]
    fn a_backend_whose_clock_cannot_be_is_numbered_by_ours() {
        for last_modified_ms in [0, NOW_MS + 60_000] {
            assert_eq!(of_found(&found_at(last_modified_ms), NOW_MS), None);
            assert!(task().generation_for(&found_at(last_modified_ms), NOW_MS) >= NOW_MS * 1000);
        }
        let other = ObjectMeta { length: 4, ..found_at(NOW_MS) };
        assert_ne!(of_found(&found_at(NOW_MS), NOW_MS), of_found(&other, NOW_MS));
    }
}
