//! A cluster of real `dfstore-peer` processes: its start, its nodes, and what its bucket was asked for.
//!
//! Owns the processes and, unless it is told where one is, the S3 server behind them. Seeds have the backend in their
//! files and act as managers; peers get it from them. A cluster is handed out once every node sees every other one.
//! Everything ends when it is dropped, nodes first; each wait has a bound, after which the error shows the log of a node.

mod backend;
mod config;
mod islands;
mod node;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::{Index, IndexMut};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use dfstore_proto::message::NodeRole;

use crate::bucket::{Bucket, S3Endpoint};
use crate::data::Payload;
use crate::eventually;
use crate::faulty_backend::FaultyBackend;

pub use backend::{Backend, BackendKind, Traffic};
pub use config::{NodeOptions, Place, Wiring};
pub use islands::Islands;
pub use node::{Node, Ports};

/// The bucket of every cluster that has a server of its own.
pub const BUCKET: &str = "cluster";
const CLUSTER_NAME: &str = "kit";
const CLUSTER_TOKEN: &str = "canary-cluster-token-77d0";
/// How long nodes get to find each other, or to notice that one is gone.
const MEMBERSHIP_TIMEOUT: Duration = Duration::from_secs(60);

/// What a cluster is made of.
pub struct ClusterBuilder {
    seeds: usize,
    peers: usize,
    backend: BackendKind,
    options: Vec<NodeOptions>,
    wiring: Wiring,
}

impl ClusterBuilder {
    /// This many seeds; one by default. They are the first nodes.
    pub fn seeds(mut self, seeds: usize) -> ClusterBuilder {
        self.seeds = seeds;
        self
    }

    /// This many peers besides the seeds; two by default.
    pub fn peers(mut self, peers: usize) -> ClusterBuilder {
        self.peers = peers;
        self
    }

    /// What stands behind it.
    pub fn backend(mut self, backend: BackendKind) -> ClusterBuilder {
        self.backend = backend;
        self
    }

    /// Nodes are made alike but for their number of shards: requests come to shards that do not own their task, and what is
    /// right for a peer's own number is wrong for another one's.
    fn complete_options(&mut self) {
        for index in self.options.len()..self.count() {
            let shards = [2, 1, 3][index % 3].to_string();
            self.options.push(NodeOptions { shards, ..NodeOptions::default() });
        }
    }

    /// Changes the options of every node. Call it after the numbers are set.
    pub fn all(mut self, mut change: impl FnMut(usize, &mut NodeOptions)) -> ClusterBuilder {
        self.complete_options();
        self.options.iter_mut().enumerate().for_each(|(index, options)| change(index, options));
        self
    }

    /// Changes the options of one node. Call it after the numbers are set.
    pub fn node(self, wanted: usize, change: impl Fn(&mut NodeOptions)) -> ClusterBuilder {
        self.all(|index, options| {
            if index == wanted {
                change(options);
            }
        })
    }

    /// How many nodes it will have.
    pub fn count(&self) -> usize {
        self.seeds + self.peers
    }

    /// Starts the first seed, then the others, then the peers, and waits until all see each other.
    pub fn start(mut self) -> Result<Cluster> {
        ensure!(self.seeds > 0, "a cluster needs a seed");
        self.complete_options();
        let backend = Backend::start(self.backend)?;
        let bucket = backend.bucket(BUCKET)?;
        let peers = self.options.split_off(self.seeds);
        let other_seeds = self.options.split_off(1);
        let mut cluster = Cluster { nodes: Vec::new(), wiring: self.wiring, bucket, backend };
        cluster.add(NodeRole::Seed, self.options)?;
        cluster.add(NodeRole::Seed, other_seeds)?;
        cluster.add(NodeRole::Peer, peers)?;
        cluster.until_complete()?;
        cluster.backend.forget();
        Ok(cluster)
    }
}

/// A running cluster. Fields are dropped in this order.
pub struct Cluster {
    nodes: Vec<Node>,
    wiring: Wiring,
    /// The bucket behind it, seen directly.
    pub bucket: Bucket,
    /// What stands behind it.
    pub backend: Backend,
}

impl Cluster {
    /// One seed and two peers in front of a backend that fails as told, unless changed.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder {
            seeds: 1,
            peers: 2,
            backend: BackendKind::Faulty,
            options: Vec::new(),
            wiring: Wiring::new(CLUSTER_NAME, CLUSTER_TOKEN),
        }
    }

    /// Its nodes: seeds first, then peers.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All nodes at once, to change several.
    pub fn nodes_mut(&mut self) -> &mut [Node] {
        &mut self.nodes
    }

    /// Its nodes that are no seeds.
    pub fn peers(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.role() == NodeRole::Peer)
    }

    /// How a further node would join it.
    pub fn wiring(&self) -> &Wiring {
        &self.wiring
    }

    /// The same, to change how nodes join from now on.
    pub fn wiring_mut(&mut self) -> &mut Wiring {
        &mut self.wiring
    }

    /// The backend as one that fails as told; an error when it is another.
    pub fn faulty(&self) -> Result<&FaultyBackend> {
        match &self.backend {
            Backend::Faulty(backend) => Ok(backend),
            _ => Err(anyhow!("this cluster has another backend")),
        }
    }

    /// Starts further nodes at the same time and waits until they are ready, but not until all see them.
    pub fn add(&mut self, role: NodeRole, options: Vec<NodeOptions>) -> Result<()> {
        let endpoint = match role {
            NodeRole::Seed => Some(self.backend.endpoint()),
            NodeRole::Peer => None,
        };
        let started = start_together(role, options, &self.wiring, endpoint.as_ref())?;
        for node in &started {
            self.wiring.managers.extend(node.manager().map(|address| address.to_string()));
            if role == NodeRole::Seed {
                self.wiring.gossip_seeds.extend(node.gossip().map(|address| address.to_string()));
            }
        }
        self.nodes.extend(started);
        Ok(())
    }

    /// Waits until every running node sees exactly the running ones alive.
    pub fn until_complete(&self) -> Result<()> {
        let running: Vec<&Node> = self.nodes.iter().filter(|node| node.is_running()).collect();
        let wanted: BTreeSet<&str> = running.iter().map(|node| node.id()).collect();
        ensure!(wanted.len() == running.len(), "two nodes have one name: {wanted:?}");
        for node in running {
            let mut seen = BTreeSet::new();
            let complete = eventually(&format!("{} sees {wanted:?}", node.id()), MEMBERSHIP_TIMEOUT, || {
                seen = node.sees().unwrap_or_default();
                seen.iter().map(String::as_str).eq(wanted.iter().copied()).then_some(())
            });
            complete.map_err(|error| node.explain(error.context(format!("it sees {seen:?}"))))?;
        }
        Ok(())
    }

    /// Does the same with several nodes at the same time; gives what came out, in their order.
    pub fn at_once<T: Send>(&self, nodes: &[usize], work: impl Fn(&Node) -> Result<T> + Sync) -> Result<Vec<T>> {
        let work = &work;
        thread::scope(|scope| {
            let start = |index: usize| scope.spawn(move || work(&self.nodes[index]));
            let threads: Vec<_> = nodes.iter().map(|index| start(*index)).collect();
            threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?).collect()
        })
    }

    /// Reads an object at all of these nodes at the same time; each must give this payload. Gives `X-Dfs-Cache`.
    pub fn read_at_once(&self, nodes: &[usize], key: &str, payload: Payload) -> Result<Vec<String>> {
        self.at_once(nodes, |node| node.read(key, payload))
    }

    /// Where connections may lead that nodes keep while nobody asks for anything: the backend first, then each other.
    pub fn own_addresses(&self) -> Result<Vec<SocketAddr>> {
        let nodes = self.nodes.iter().flat_map(|node| [Some(node.peer_address()), node.manager()]);
        Ok([self.faulty()?.address()].into_iter().chain(nodes.flatten()).collect())
    }

    /// The address of the manager of a seed.
    pub fn manager(&self, index: usize) -> Result<SocketAddr> {
        self.nodes[index].manager().with_context(|| format!("node {index} is no manager"))
    }
}

impl Index<usize> for Cluster {
    type Output = Node;

    fn index(&self, index: usize) -> &Node {
        &self.nodes[index]
    }
}

impl IndexMut<usize> for Cluster {
    fn index_mut(&mut self, index: usize) -> &mut Node {
        &mut self.nodes[index]
    }
}

fn start_together(
    role: NodeRole,
    options: Vec<NodeOptions>,
    wiring: &Wiring,
    endpoint: Option<&S3Endpoint>,
) -> Result<Vec<Node>> {
    thread::scope(|scope| {
        let start = |options| scope.spawn(move || Node::start(role, options, wiring.clone(), endpoint));
        let threads: Vec<_> = options.into_iter().map(start).collect();
        let ended =
            threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a starting thread panicked"))?);
        ended.collect()
    })
}
