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
