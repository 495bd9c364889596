//! Numbers of deletions that are done: what is older than one of them does not come back.
//!
//! A peer that was away while an object it had written was deleted will tell of its write again; and one that has an old
//! copy must not serve it while the bucket cannot be asked. Bounded in number; held in memory only, so that a home that
//! was restarted meanwhile has forgotten (see docs/SEMANTICS.md).

use std::collections::{HashMap, VecDeque};

use dfstore_proto::ids::TaskId;

use crate::limits::GRAVES_MAX;

/// The numbers of one shard's tasks; the oldest entry gives way.
#[derive(Default)]
pub struct Graves {
    graves: HashMap<TaskId, Grave>,
    order: VecDeque<TaskId>,
}

/// The last deletion of a task.
#[derive(Default)]
struct Grave {
    generation: u64,
    /// Nothing is known to have come after it, here or in the bucket, nor to have been sent there.
    is_last: bool,
}

impl Graves {
    /// Notes that the deletion with this number is done.
    pub fn note(&mut self, task: TaskId, generation: u64) {
        let grave = self.graves.entry(task).or_insert_with(|| {
            self.order.push_back(task);
            Grave::default()
        });
        grave.generation = generation.max(grave.generation);
        if self.order.len() > GRAVES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.graves.remove(&oldest);
        }
    }

    /// As [`note`](Self::note), of a deletion after which the bucket does not have the object.
    pub fn close(&mut self, task: TaskId, generation: u64) {
        self.note(task, generation);
        if let Some(grave) = self.graves.get_mut(&task) {
            grave.is_last = true;
        }
    }

    /// There is a version of the task again, or the bucket may have one. Tells whether the deletion was the last before.
    pub fn reopen(&mut self, task: &TaskId) -> bool {
        self.graves.get_mut(task).is_some_and(|grave| std::mem::replace(&mut grave.is_last, false))
    }

    /// Whether the last that is known of a task is its deletion.
    pub fn is_closed(&self, task: &TaskId) -> bool {
        self.graves.get(task).is_some_and(|grave| grave.is_last)
    }

    /// The number of the last deletion of a task, if it is remembered.
    pub fn generation_of(&self, task: &TaskId) -> Option<u64> {
        self.graves.get(task).map(|grave| grave.generation)
    }

    /// The first number that is above the last deletion of a task.
    pub fn after(&self, task: &TaskId) -> u64 {
        self.generation_of(task).map_or(0, |generation| generation + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(number: u32) -> TaskId {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        TaskId::from_bytes(bytes)
    }

    #[test]
    fn a_grave_is_closed_until_there_is_a_version_again() {
        let mut graves = Graves::default();
        graves.note(task(0), 7);
        assert!(!graves.is_closed(&task(0)), "the bucket may have something");
        graves.close(task(0), 6);
        assert!(graves.is_closed(&task(0)) && graves.generation_of(&task(0)) == Some(7));
        graves.note(task(0), 8);
        assert!(graves.is_closed(&task(0)));
        assert!(graves.reopen(&task(0)) && !graves.reopen(&task(0)) && !graves.reopen(&task(1)));
        assert!(!graves.is_closed(&task(0)) && graves.generation_of(&task(0)) == Some(8));
    }

    #[test]
    fn the_highest_number_of_a_task_stays_and_the_oldest_tasks_go() {
        let mut graves = Graves::default();
        graves.note(task(0), 7);
        graves.note(task(0), 5);
        assert_eq!((graves.generation_of(&task(0)), graves.after(&task(0)), graves.after(&task(1))), (Some(7), 8, 0));
        for number in 1..=u32::try_from(GRAVES_MAX).expect("small") {
            graves.note(task(number), 1);
        }
        assert_eq!(graves.generation_of(&task(0)), None);
        assert_eq!(graves.graves.len(), GRAVES_MAX);
        assert_eq!(graves.order.len(), GRAVES_MAX);
    }
}
