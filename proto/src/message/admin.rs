//! Messages of people who look after a cluster: its nodes, and fetching or dropping cached objects ahead of need.

use serde::{Deserialize, Serialize};

use super::{Bounded, Target};
use crate::error::FieldError;
use crate::limits::{ADDRESS_BYTES_MAX, NAME_BYTES_MAX, NODES_MAX};
use crate::wire::{self, at_most, filled, number_at_most};

/// Asks for the nodes of the cluster. Answered with NODES_OK.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nodes {
    /// Only nodes after this id, in byte order; empty for all.
    pub after: String,
}

impl Bounded for Nodes {
    fn check(&self) -> Result<(), FieldError> {
        at_most("after", &self.after, NAME_BYTES_MAX)
    }
}

/// What a node does for the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NodeRole {
    /// Caches, and takes writes.
    Peer,
    /// Decides about tasks and keeps replicas as well.
    Seed,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its name.
    pub id: String,
    /// What it does.
    pub role: NodeRole,
    /// Where other peers reach it.
    pub peer: String,
    /// Where clients reach it.
    pub api: String,
    /// Program version.
    pub version: String,
    /// Start of its process, in microseconds since the Unix epoch.
    pub started_us: u64,
    /// Shards.
    pub shards: u16,
    /// Bytes that it may keep.
    pub capacity_bytes: u64,
    /// Bytes that it keeps.
    pub used_bytes: u64,
    /// Bytes that the backend does not have yet.
    pub dirty_bytes: u64,
    /// Requests that it works on.
    pub load: u32,
    /// Whether it is alive; one that is not has only its name and role.
    pub live: bool,
}

impl NodeInfo {
    fn check(&self) -> Result<(), FieldError> {
        filled("id", &self.id, NAME_BYTES_MAX)?;
        at_most("peer", &self.peer, ADDRESS_BYTES_MAX)?;
        at_most("api", &self.api, ADDRESS_BYTES_MAX)?;
        at_most("version", &self.version, NAME_BYTES_MAX)
    }
}

/// Answers NODES.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodesOk {
    /// Name of the cluster; empty for a peer that is alone.
    pub cluster: String,
    /// The peer that answers.
    pub me: String,
    /// Nodes, by id.
    #[serde(deserialize_with = "wire::bounded::<_, _, NODES_MAX>")]
    pub nodes: Vec<NodeInfo>,
    /// Whether more follow: ask again after the last one.
    pub truncated: bool,
}

impl Bounded for NodesOk {
    fn check(&self) -> Result<(), FieldError> {
        at_most("cluster", &self.cluster, NAME_BYTES_MAX)?;
        at_most("me", &self.me, NAME_BYTES_MAX)?;
        number_at_most("nodes", self.nodes.len() as u64, NODES_MAX as u64)?;
        self.nodes.iter().try_for_each(NodeInfo::check)
    }
}

/// Which nodes a command is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Scope {
    /// The peer that is asked.
    Node,
    /// All nodes of its cluster.
    Cluster,
}

/// Fetches an object into the cache. Answered with WORKED.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefetch {
    /// Which object.
    pub target: Target,
    /// Where.
    pub scope: Scope,
}

impl Bounded for Prefetch {
    fn check(&self) -> Result<(), FieldError> {
        self.target.check()
    }
}

/// Drops an object from the cache, unless the backend does not have it. Answered with WORKED.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evict {
    /// Which object.
    pub target: Target,
    /// Where.
    pub scope: Scope,
}

impl Bounded for Evict {
    fn check(&self) -> Result<(), FieldError> {
        self.target.check()
    }
}

/// Answers PREFETCH and EVICT.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Worked {
    /// Nodes that did it.
    pub nodes: u32,
    /// Bytes that they fetched or dropped.
    pub bytes: u64,
    /// Nodes that did not, and why.
    #[serde(deserialize_with = "wire::bounded::<_, _, NODES_MAX>")]
    pub failures: Vec<NodeFailure>,
}

impl Bounded for Worked {
    fn check(&self) -> Result<(), FieldError> {
        number_at_most("failures", self.failures.len() as u64, NODES_MAX as u64)?;
        self.failures.iter().try_for_each(NodeFailure::check)
    }
}

/// A node that did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeFailure {
    /// Its name.
    pub node: String,
    /// Why.
    pub message: String,
}

impl NodeFailure {
    fn check(&self) -> Result<(), FieldError> {
        filled("node", &self.node, NAME_BYTES_MAX)?;
        at_most("message", &self.message, NAME_BYTES_MAX)
    }
}
