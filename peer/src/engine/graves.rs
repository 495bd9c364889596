//! Numbers of deletions that are done: what is older than one of them does not come back.
//!
//! A peer that was away while an object it had written was deleted will tell of its write again. Bounded in number; held
//! in memory only, so that a home that was restarted meanwhile has forgotten (see docs/SEMANTICS.md).

use std::collections::{HashMap, VecDeque};

use dfstore_proto::ids::TaskId;

use crate::limits::GRAVES_MAX;

/// The numbers of one shard's tasks; the oldest entry gives way.
#[derive(Default)]
pub struct Graves {
    generations: HashMap<TaskId, u64>,
    order: VecDeque<TaskId>,
}

impl Graves {
    /// Notes that the deletion with this number is done.
    pub fn note(&mut self, task: TaskId, generation: u64) {
        let entry = self.generations.entry(task).or_insert_with(|| {
            self.order.push_back(task);
            0
        });
        *entry = generation.max(*entry);
        if self.order.len() > GRAVES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.generations.remove(&oldest);
        }
    }

    /// The number of the last deletion of a task, if it is remembered.
    pub fn generation_of(&self, task: &TaskId) -> Option<u64> {
        self.generations.get(task).copied()
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
    fn the_highest_number_of_a_task_stays_and_the_oldest_tasks_go() {
        let mut graves = Graves::default();
        graves.note(task(0), 7);
        graves.note(task(0), 5);
        assert_eq!((graves.generation_of(&task(0)), graves.after(&task(0)), graves.after(&task(1))), (Some(7), 8, 0));
        for number in 1..=u32::try_from(GRAVES_MAX).expect("small") {
            graves.note(task(number), 1);
        }
        assert_eq!(graves.generation_of(&task(0)), None);
        assert_eq!(graves.generations.len(), GRAVES_MAX);
        assert_eq!(graves.order.len(), GRAVES_MAX);
    }
}
