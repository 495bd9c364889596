//! Messages of people who look after a cluster: where an object is, which nodes there are, and fetching or dropping
//! cached objects ahead of need.
//!
//! Any peer answers them, for the whole cluster or for itself alone. Clients and peers may send them.

use serde::{Deserialize, Serialize};

use super::cluster::check_runs;
use super::{Bounded, Target, VersionInfo};
use crate::error::{FieldError, cut};
use crate::limits::{ADDRESS_BYTES_MAX, NAME_BYTES_MAX, NODES_MAX, PARENTS_MAX, RUNS_SHOWN_MAX};
use crate::object::PieceRun;
use crate::wire::{self, at_most, filled, number_at_most};

/// Asks where an object is. Answered with WHERE_OK.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Where {
    /// Which object.
    pub target: Target,
    /// Only what the asked peer itself holds; it asks nobody else.
    pub local_only: bool,
}

impl Bounded for Where {
    fn check(&self) -> Result<(), FieldError> {
        self.target.check()
    }
}

/// What a node holds of a version, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderInfo {
    /// The node.
    pub node: String,
    /// How many pieces it holds.
    pub pieces: u32,
    /// Which: the first [`RUNS_SHOWN_MAX`] runs of them.
    #[serde(deserialize_with = "wire::bounded::<_, _, RUNS_SHOWN_MAX>")]
    pub runs: Vec<PieceRun>,
}

impl HolderInfo {
    fn check(&self) -> Result<(), FieldError> {
        filled("node", &self.node, NAME_BYTES_MAX)?;
        number_at_most("runs", self.runs.len() as u64, RUNS_SHOWN_MAX as u64)?;
        check_runs("runs", &self.runs)
    }
}

/// Answers WHERE.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhereOk {
    /// The current version.
    pub info: VersionInfo,
    /// The seeds that decide about it and keep it, in order; empty for a peer without a cluster.
    #[serde(deserialize_with = "wire::bounded::<_, _, PARENTS_MAX>")]
    pub homes: Vec<String>,
    /// Who holds pieces of it.
    #[serde(deserialize_with = "wire::bounded::<_, _, NODES_MAX>")]
    pub holders: Vec<HolderInfo>,
    /// Seeds that should keep a copy.
    pub replicas_wanted: u16,
}

impl Bounded for WhereOk {
    fn check(&self) -> Result<(), FieldError> {
        self.info.check()?;
        number_at_most("homes", self.homes.len() as u64, PARENTS_MAX as u64)?;
        number_at_most("holders", self.holders.len() as u64, NODES_MAX as u64)?;
        self.homes.iter().try_for_each(|node| filled("homes", node, NAME_BYTES_MAX))?;
        self.holders.iter().try_for_each(HolderInfo::check)
    }
}

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
    /// A failure of this node, its reason cut to what may travel.
    pub fn new(node: impl Into<String>, message: impl Into<String>) -> NodeFailure {
        NodeFailure { node: node.into(), message: cut(message.into(), NAME_BYTES_MAX) }
    }

    fn check(&self) -> Result<(), FieldError> {
        filled("node", &self.node, NAME_BYTES_MAX)?;
        at_most("message", &self.message, NAME_BYTES_MAX)
    }
}
