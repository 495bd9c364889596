//! Which seeds a task belongs to: rendezvous hashing over the live seeds. Pure.
//!
//! Each seed gets a score for each task; the seeds in the order of their scores are the task's homes. When a seed
//! comes or goes, only the tasks that it has, or had, at its place move. Every node that sees the same seeds computes
//! the same order.

use std::sync::Arc;

use dfstore_proto::ids::TaskId;

use crate::membership::{Members, Node};

/// The live seeds in the order of the task: the first decides about it, the first `replicas` keep copies.
pub fn homes(members: &Members, task: &TaskId) -> Vec<Arc<Node>> {
    let mut scored: Vec<(u64, &Arc<Node>)> = members.seeds().map(|node| (score(task, &node.id), node)).collect();
    // Equal scores do not happen in practice; the id makes the order total all the same.
    scored.sort_by(|(left, a), (right, b)| right.cmp(left).then_with(|| a.id.cmp(&b.id)));
    scored.into_iter().map(|(_, node)| node.clone()).collect()
}

/// FNV-1a over id and task, finished with the mixer of splitmix64, without which the last bytes hardly count.
fn score(task: &TaskId, node: &str) -> u64 {
    let bytes = node.bytes().chain(task.as_bytes().iter().copied());
    let hash = bytes
        .fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3));
    let mixed = (hash ^ (hash >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use dfstore_proto::message::NodeRole;

    use super::*;
    use crate::membership::NodeState;

    fn node(id: &str, role: NodeRole) -> Arc<Node> {
        let address = "127.0.0.1:1".parse().expect("an address");
        Arc::new(Node {
            id: id.into(),
            started_us: 1,
            role,
            peer: address,
            api: address,
            shards: 1,
            capacity_bytes: 0,
            version: String::new(),
            state: NodeState::default(),
        })
    }

    /// Seeds of these names, and a peer that is none.
    fn members(names: &[String]) -> Members {
        let mut live: Vec<Arc<Node>> = names.iter().map(|name| node(name, NodeRole::Seed)).collect();
        live.push(node("no-seed", NodeRole::Peer));
        let dead = crate::membership::DeadNode { id: "dead".into(), role: NodeRole::Seed, gone: Duration::ZERO };
        Members { cluster: "test".into(), me: "no-seed".into(), live, dead: vec![dead] }
    }

    fn eight() -> Vec<String> {
        (0..8).map(|number| format!("node-{number}")).collect()
    }

    /// Tasks have ids that are hashes: here those of a counter.
    fn tasks(count: u64) -> impl Iterator<Item = TaskId> {
        (0..count).map(|number| {
            let mut bytes = [0; 32];
            bytes.iter_mut().zip(number.to_be_bytes()).for_each(|(byte, of_number)| *byte = of_number);
            TaskId::from_bytes(bytes)
        })
    }

    fn ids(homes: &[Arc<Node>]) -> Vec<String> {
        homes.iter().map(|node| node.id.to_string()).collect()
    }

    #[test]
    fn each_seed_has_its_share_at_each_place() {
        const TASKS: u64 = 100_000;
        let members = members(&eight());
        let mut shares: HashMap<(usize, String), u64> = HashMap::new();
        for task in tasks(TASKS) {
            for (place, id) in ids(&homes(&members, &task)).into_iter().enumerate() {
                *shares.entry((place, id)).or_default() += 1;
            }
        }
        assert_eq!(shares.len(), 8 * 8, "only live seeds, at each place");
        for ((place, id), count) in shares {
            // The spread of an even draw is 0.9 %; four times that.
            assert!(count.abs_diff(TASKS / 8) < TASKS / 8 * 4 / 100, "{id} has {count} of {TASKS} at place {place}");
        }
    }

    #[test]
    fn when_a_seed_leaves_only_its_own_tasks_move_and_all_others_keep_their_order() {
        let (before, mut names) = (members(&eight()), eight());
        let gone = names.remove(3);
        let after = members(&names);
        let mut moved: HashMap<String, u32> = HashMap::new();
        for task in tasks(8_000) {
            let (old, new) = (ids(&homes(&before, &task)), ids(&homes(&after, &task)));
            let without: Vec<String> = old.iter().filter(|id| **id != gone).cloned().collect();
            assert_eq!(new, without);
            if old[0] == gone {
                *moved.entry(new[0].clone()).or_default() += 1;
            }
        }
        // A thousand tasks move, to all seven others: not to one neighbour.
        assert_eq!(moved.len(), 7);
        assert!(moved.values().all(|count| (80..220).contains(count)), "{moved:?}");
    }

    #[test]
    fn the_order_does_not_depend_on_the_order_of_the_nodes() {
        let (mut backward, forward) = (eight(), members(&eight()));
        backward.reverse();
        let backward = members(&backward);
        for task in tasks(1_000) {
            assert_eq!(ids(&homes(&forward, &task)), ids(&homes(&backward, &task)));
        }
    }

    #[test]
    fn without_seeds_nobody_is_home() {
        let task = tasks(1).next().expect("one");
        assert!(homes(&members(&[]), &task).is_empty());
    }
}
