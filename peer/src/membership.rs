//! Who is in the cluster: plain data about its nodes, as the gossip in the sidecar last saw them.
//!
//! A snapshot is immutable and counted; the sidecar makes a new one when something changes and every shard gets it as a
//! message. Nothing here knows how it came about, and nothing here can fail. Invariants: `live` is sorted by id, holds
//! each id once, and holds this node; dead nodes are those that were seen alive and have not come back yet.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dfstore_proto::message::{NodeInfo, NodeRole};

/// One node of the cluster that is alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name: the identity of its data folder, the same after a restart.
    pub id: Arc<str>,
    /// Start of its process, in microseconds since the Unix epoch: tells two lives of one node apart.
    pub started_us: u64,
    /// What it does.
    pub role: NodeRole,
    /// Where other peers reach it.
    pub peer: SocketAddr,
    /// Where clients reach it.
    pub api: SocketAddr,
    /// Its shards: a task belongs to shard `task mod shards` there.
    pub shards: u16,
    /// Bytes that it may keep.
    pub capacity_bytes: u64,
    /// Program version.
    pub version: String,
    /// What it last said about itself.
    pub state: NodeState,
}

/// What changes about a node while it runs. Told every few seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeState {
    /// Bytes that it keeps.
    pub used_bytes: u64,
    /// Bytes that the backend does not have yet.
    pub dirty_bytes: u64,
    /// Requests that it works on.
    pub load: u32,
}

/// A node that was alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadNode {
    /// Its name.
    pub id: Arc<str>,
    /// What it did.
    pub role: NodeRole,
    /// How long it has been gone, when the snapshot was made.
    pub gone: Duration,
}

/// The nodes of a cluster at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// Name of the cluster.
    pub cluster: Arc<str>,
    /// This node.
    pub me: Arc<str>,
    /// All that are alive, by id, this one included.
    pub live: Vec<Arc<Node>>,
    /// Those that were, by id.
    pub dead: Vec<DeadNode>,
}

impl Members {
    /// The live node with this id.
    pub fn find(&self, id: &str) -> Option<&Arc<Node>> {
        self.live.binary_search_by(|node| node.id.as_ref().cmp(id)).ok().map(|at| &self.live[at])
    }

    /// The live seeds, by id.
    pub fn seeds(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.live.iter().filter(|node| node.role == NodeRole::Seed)
    }

    /// Whether this node is a seed.
    pub fn is_seed(&self) -> bool {
        self.find(&self.me).is_some_and(|node| node.role == NodeRole::Seed)
    }

    /// Whether the live seeds are the same in both, each in the same life.
    pub fn has_same_seeds(&self, other: &Members) -> bool {
        let name = |node: &Arc<Node>| (node.id.clone(), node.started_us);
        self.seeds().map(name).eq(other.seeds().map(name))
    }
}

impl Node {
    /// What people are told of it.
    pub fn info(&self) -> NodeInfo {
        NodeInfo {
            id: self.id.to_string(),
            role: self.role,
            peer: self.peer.to_string(),
            api: self.api.to_string(),
            version: self.version.clone(),
            started_us: self.started_us,
            shards: self.shards,
            capacity_bytes: self.capacity_bytes,
            used_bytes: self.state.used_bytes,
            dirty_bytes: self.state.dirty_bytes,
            load: self.state.load,
            live: true,
        }
    }
}
