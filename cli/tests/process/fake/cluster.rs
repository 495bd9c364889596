//! What the fake says as a peer of a cluster: its nodes, where an object is, and work on all of them.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use dfstore_proto::error::ErrorReply;
use dfstore_proto::limits::NODES_MAX;
use dfstore_proto::message::{NodeFailure, NodeRole, NodesOk, Scope, Target, WhereOk, Worked};

use super::state::State;

/// How long requests that must not be there are waited for.
const ALONE_PATIENCE: Duration = Duration::from_millis(300);
/// A client that never sends as many requests at once as the test waits for fails it after this time.
const TOGETHER_PATIENCE: Duration = Duration::from_secs(20);

impl State {
    /// The page of nodes after this one.
    pub fn page(&self, after: &str) -> NodesOk {
        let mut nodes: Vec<_> = self.nodes.iter().filter(|node| *node.id > *after).cloned().collect();
        nodes.sort_by(|one, other| one.id.cmp(&other.id));
        let truncated = nodes.len() > NODES_MAX;
        nodes.truncate(NODES_MAX);
        let me = self.nodes.first().map_or("fake", |node| &node.id).to_string();
        let cluster = if self.nodes.is_empty() { String::new() } else { "lab".to_string() };
        NodesOk { cluster, me, nodes, truncated }
    }

    /// Where an object is: the seeds are its homes.
    pub fn find(&self, target: &Target) -> Result<WhereOk, ErrorReply> {
        let seeds = self.nodes.iter().filter(|node| node.role == NodeRole::Seed);
        let homes: Vec<String> = seeds.map(|node| node.id.clone()).collect();
        let replicas_wanted = u16::try_from(homes.len()).expect("few nodes");
        Ok(WhereOk { info: self.info(target)?, homes, holders: self.holders.clone(), replicas_wanted })
    }

    /// Fetches or drops an object on all nodes that do not fail.
    pub fn work(&mut self, target: &Target, scope: Scope) -> Result<Worked, ErrorReply> {
        assert_eq!(scope, Scope::Cluster);
        let length = self.info(target)?.meta.length;
        let of_object = |(key, failure): &(&str, NodeFailure)| (target.object.key == *key).then(|| failure.clone());
        let failures: Vec<NodeFailure> = self.faults.failures.iter().filter_map(of_object).collect();
        self.worked_on.push(target.object.key.clone());
        let nodes = u32::try_from(self.nodes.len().max(1) - failures.len()).expect("few nodes");
        Ok(Worked { nodes, bytes: length * u64::from(nodes), failures })
    }
}

/// Waits until as many PREFETCH requests have been there at once as the test wants, and then a little for more.
pub fn wait_for_others(mut state: MutexGuard<'_, State>) -> MutexGuard<'_, State> {
    state.together += 1;
    state.together_most = state.together_most.max(state.together);
    let arrived = state.arrived.clone();
    arrived.notify_all();
    let wanted = state.faults.together;
    if state.together_most > wanted || wanted == 0 || state.worked_on.len() > wanted {
        return state;
    }
    let waited = arrived.wait_timeout_while(state, TOGETHER_PATIENCE, |state| state.together_most < wanted);
    let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
    assert!(!timeout.timed_out(), "no {wanted} requests at once");
    let waited = arrived.wait_timeout_while(state, ALONE_PATIENCE, |state| state.together_most == wanted);
    waited.unwrap_or_else(PoisonError::into_inner).0
}
