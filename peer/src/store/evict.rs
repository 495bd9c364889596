//! Which tasks to evict. Pure: no clock, no I/O.
//!
//! [`Evictor`] is SIEVE (Zhang et al., NSDI 2024) over tasks with a weight in bytes: a queue in order of arrival, one
//! bit per task that a read sets, and a hand that walks from old to new, clearing bits and picking the first task
//! whose bit is clear. A read costs one bit, and a scan of tasks that nobody asks for twice passes through without
//! displacing those that are read again. [`Watermarks`] says when to start and how much to free.

use std::collections::HashMap;

use dfstore_proto::ids::TaskId;

/// When eviction starts and where it stops, as shares of the capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// Eviction starts above this many percent of the capacity.
    pub high_percent: u64,
    /// Eviction frees down to this many percent of the capacity.
    pub low_percent: u64,
}

impl Default for Watermarks {
    fn default() -> Watermarks {
        Watermarks { high_percent: 95, low_percent: 90 }
    }
}

impl Watermarks {
    /// Bytes that a shard should free. The store has `used_bytes` of `capacity_bytes`, of which `own_bytes` belong to
    /// tasks of this shard: every shard frees its share of what is too much.
    pub fn excess_bytes(&self, capacity_bytes: u64, used_bytes: u64, own_bytes: u64) -> u64 {
        assert!(self.low_percent <= self.high_percent && self.high_percent <= 100);
        let of_capacity = |percent: u64| u128::from(capacity_bytes) * u128::from(percent) / 100;
        if u128::from(used_bytes) <= of_capacity(self.high_percent) {
            return 0;
        }
        let excess = u128::from(used_bytes) - of_capacity(self.low_percent);
        let share = (excess * u128::from(own_bytes)).div_ceil(u128::from(used_bytes));
        u64::try_from(share).unwrap_or(u64::MAX).min(own_bytes)
    }
}

/// No task: the end of the queue.
const NONE: u32 = u32::MAX;

/// The order in which the tasks of one shard are evicted.
#[derive(Default)]
pub struct Evictor {
    places: HashMap<TaskId, u32>,
    nodes: Vec<Node>,
    vacant: Vec<u32>,
    /// Ends of the queue, as indices into `nodes`.
    newest: Option<u32>,
    oldest: Option<u32>,
    /// Where the next search starts; the oldest when `None`.
    hand: Option<u32>,
    bytes: u64,
}

struct Node {
    task: TaskId,
    bytes: u64,
    visited: bool,
    newer: u32,
    older: u32,
}

impl Evictor {
    /// Bytes of all tasks.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of tasks.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are no tasks.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Adds a task as the newest, or sets the weight of one that is there.
    pub fn insert(&mut self, task: TaskId, bytes: u64) {
        self.set(task, |_| bytes);
    }

    /// Adds to the weight of a task, which becomes the newest if it is not there yet.
    pub fn grow(&mut self, task: TaskId, bytes: u64) {
        self.set(task, |before| before + bytes);
    }

    fn set(&mut self, task: TaskId, weight: impl Fn(u64) -> u64) {
        if let Some(place) = self.places.get(&task) {
            let node = &mut self.nodes[*place as usize];
            let bytes = weight(node.bytes);
            self.bytes = self.bytes - node.bytes + bytes;
            node.bytes = bytes;
            return;
        }
        let bytes = weight(0);
        let node = Node { task, bytes, visited: false, newer: NONE, older: self.newest.unwrap_or(NONE) };
        let place = match self.vacant.pop() {
            Some(place) => {
                self.nodes[place as usize] = node;
                place
            }
            None => {
                self.nodes.push(node);
                u32::try_from(self.nodes.len() - 1).expect("tasks of a shard are counted in u32")
            }
        };
        match self.newest.replace(place) {
            Some(before) => self.nodes[before as usize].newer = place,
            None => self.oldest = Some(place),
        }
        self.places.insert(task, place);
        self.bytes += bytes;
    }

    /// Notes that a task was read.
    pub fn touch(&mut self, task: &TaskId) {
        if let Some(place) = self.places.get(task) {
            self.nodes[*place as usize].visited = true;
        }
    }

    /// Forgets a task; true if it was there.
    pub fn remove(&mut self, task: &TaskId) -> bool {
        let Some(place) = self.places.remove(task) else { return false };
        let Node { bytes, newer, older, .. } = self.nodes[place as usize];
        if self.hand == Some(place) {
            self.hand = link(newer);
        }
        match link(newer) {
            Some(newer) => self.nodes[newer as usize].older = older,
            None => self.newest = link(older),
        }
        match link(older) {
            Some(older) => self.nodes[older as usize].newer = newer,
            None => self.oldest = link(newer),
        }
        self.vacant.push(place);
        self.bytes -= bytes;
        true
    }

    /// Picks tasks to free at least `bytes_needed`, skipping those that `is_evictable` refuses (leased, dirty).
    /// They stay in the queue until [`remove`](Self::remove): the caller may fail to evict one. May pick less than
    /// needed when there is no more.
    pub fn victims(&mut self, bytes_needed: u64, is_evictable: impl Fn(&TaskId) -> bool) -> Vec<TaskId> {
        let mut victims = Vec::new();
        let mut freed_bytes = 0;
        let mut chosen = std::collections::HashSet::new();
        // Two rounds clear every bit and see every task once more.
        for _ in 0..2 * self.len() {
            if freed_bytes >= bytes_needed || chosen.len() == self.len() {
                break;
            }
            let Some(place) = self.hand.or(self.oldest) else { break };
            let node = &mut self.nodes[place as usize];
            self.hand = link(node.newer);
            let visited = std::mem::replace(&mut node.visited, false);
            if !visited && is_evictable(&node.task) && chosen.insert(place) {
                freed_bytes += node.bytes;
                victims.push(node.task);
            }
        }
        victims
    }
}

fn link(place: u32) -> Option<u32> {
    (place != NONE).then_some(place)
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
    fn a_task_weighs_what_all_its_pieces_weigh() {
        let mut evictor = Evictor::default();
        evictor.grow(task(1), 10);
        evictor.insert(task(2), 1);
        evictor.grow(task(1), 5);
        assert_eq!(evictor.bytes(), 16);
        assert_eq!(evictor.victims(12, |_| true), [task(1)]);
        evictor.remove(&task(1));
        assert_eq!(evictor.bytes(), 1);
    }

    /// Runs a trace of reads through a cache of `capacity` tasks of one byte; returns the hits.
    fn hits(capacity: u64, trace: &[u32]) -> usize {
        let mut evictor = Evictor::default();
        let mut hits = 0;
        for number in trace {
            let task = task(*number);
            if evictor.places.contains_key(&task) {
                evictor.touch(&task);
                hits += 1;
                continue;
            }
            while evictor.bytes() >= capacity {
                for victim in evictor.victims(1, |_| true) {
                    assert!(evictor.remove(&victim));
                }
            }
            evictor.insert(task, 1);
        }
        hits
    }

    #[test]
    fn a_scan_does_not_displace_what_is_read_again() {
        // 50 tasks are known to be hot; then, for every one of their reads, come three of a scan that is never
        // repeated. Between two reads of a hot task lie 200 others, twice the capacity: LRU would miss every one.
        let mut trace: Vec<u32> = (0..100).map(|read| read % 50).collect();
        for read in 0..5000u32 {
            trace.push(read % 50);
            trace.extend([0, 1, 2].map(|step| 1000 + read * 3 + step));
        }
        let (hits, hot_reads) = (hits(100, &trace), 5050);
        assert!(hits * 100 > hot_reads * 95, "{hits} of {hot_reads} reads of the hot set hit");
    }

    #[test]
    fn refuses_to_pick_what_is_not_evictable_and_ends() {
        let mut evictor = Evictor::default();
        (0..10).for_each(|number| evictor.insert(task(number), 7));
        evictor.touch(&task(2));
        assert!(evictor.victims(u64::MAX, |_| false).is_empty());
        let victims = evictor.victims(u64::MAX, |candidate| *candidate != task(3));
        assert_eq!(victims.len(), 9);
        assert!(!victims.contains(&task(3)));
        assert_eq!(evictor.bytes(), 70, "victims stay until they are removed");
    }

    #[test]
    fn weights_follow_inserts_and_removals() {
        let mut evictor = Evictor::default();
        evictor.insert(task(1), 5);
        evictor.insert(task(2), 5);
        evictor.insert(task(1), 9);
        assert_eq!((evictor.len(), evictor.bytes()), (2, 14));
        assert!(evictor.remove(&task(1)) && !evictor.remove(&task(1)));
        assert!(evictor.remove(&task(2)) && evictor.is_empty() && evictor.bytes() == 0);
        evictor.insert(task(3), 1);
        assert_eq!(evictor.victims(1, |_| true), [task(3)]);
    }

    #[test]
    fn every_shard_frees_its_share_of_what_is_too_much() {
        let marks = Watermarks::default();
        assert_eq!(marks.excess_bytes(1000, 950, 500), 0);
        assert_eq!(marks.excess_bytes(1000, 1000, 500), 50);
        assert_eq!(marks.excess_bytes(1000, 1000, 0), 0);
        assert_eq!(marks.excess_bytes(0, 10, 10), 10);
        assert_eq!(marks.excess_bytes(u64::MAX, u64::MAX, u64::MAX), u64::MAX - u64::MAX / 100 * 90 - 13);
    }
}
