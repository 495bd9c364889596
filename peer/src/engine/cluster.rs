//! The cluster as one shard sees it: who is there, whose task something is, and how to ask them.
//!
//! Owns the shard's latest snapshot of the members and its links. A standalone peer has none of this and is alone with
//! every task. What is decided from it is pure ([`placement`]); what others are asked fails with a
//! [`LinkError`], which says whether the other side could be reached at all.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use dfstore_proto::ids::TaskId;
use dfstore_proto::message::Message;

use crate::engine::owner::Owner;
use crate::links::{LinkError, Links};
use crate::membership::{Members, Node};
use crate::placement;

/// This shard's part in the cluster.
pub struct Cluster {
    /// Connections to other peers.
    pub links: Links,
    members: RefCell<Arc<Members>>,
    epoch: Cell<u64>,
}

/// Who decides about a task.
#[derive(Clone, Debug)]
pub enum Place {
    /// This peer, because there is no seed.
    Alone,
    /// This peer, as the first seed in order.
    Home {
        /// The other seeds, in order.
        others: Vec<Arc<Node>>,
    },
    /// Another peer.
    Away {
        /// The seeds in order, up to this peer if it is one: when none of them can be reached, this peer decides.
        homes: Vec<Arc<Node>>,
        /// How many live seeds there are.
        seeds: usize,
    },
}

impl Cluster {
    /// A cluster of which nothing but `members` is known.
    pub fn new(links: Links, members: Arc<Members>) -> Cluster {
        Cluster { links, members: RefCell::new(members), epoch: Cell::new(1) }
    }

    /// Takes a newer snapshot. True when the seeds are not those of before.
    pub fn set_members(&self, members: Arc<Members>) -> bool {
        self.links.members(&members);
        let before = self.members.replace(members.clone());
        let changed = !before.has_same_seeds(&members);
        if changed {
            self.epoch.set(self.epoch.get() + 1);
        }
        changed
    }

    /// The latest snapshot.
    pub fn members(&self) -> Arc<Members> {
        self.members.borrow().clone()
    }

    /// Counts changes of the set of seeds. Never 0.
    pub fn epoch(&self) -> u64 {
        self.epoch.get()
    }

    /// This node's name.
    pub fn me(&self) -> Arc<str> {
        self.members.borrow().me.clone()
    }

    /// Who decides about a task.
    pub fn place(&self, task: &TaskId) -> Place {
        let members = self.members();
        let homes = placement::homes(&members, task);
        let seeds = homes.len();
        match homes.iter().position(|node| node.id == members.me) {
            _ if seeds == 0 => Place::Alone,
            Some(0) => Place::Home { others: homes.into_iter().skip(1).collect() },
            Some(at) => Place::Away { homes: homes.into_iter().take(at).collect(), seeds },
            None => Place::Away { homes, seeds },
        }
    }

    /// Asks a node something about a task.
    pub async fn ask(&self, node: &Node, task: &TaskId, message: impl Into<Message>) -> Result<Message, LinkError> {
        self.links.ask(node, Some(task), message.into()).await
    }

    /// All live nodes but this one.
    pub fn others(&self) -> Vec<Arc<Node>> {
        let members = self.members();
        members.live.iter().filter(|node| node.id != members.me).cloned().collect()
    }
}

impl Owner {
    /// Who decides about a task.
    pub fn place(&self, task: &TaskId) -> Place {
        self.cluster.as_ref().map_or(Place::Alone, |cluster| cluster.place(task))
    }

    /// Whether another peer decides about a task.
    pub fn is_away(&self, task: &TaskId) -> bool {
        matches!(self.place(task), Place::Away { .. })
    }

    /// Seeds that keep a copy of an object of which `wanted` are asked for, as long as this many are alive.
    pub fn replicas_possible(&self, wanted: u16) -> u16 {
        let seeds = self.cluster.as_ref().map_or(0, |cluster| cluster.members().seeds().count());
        wanted.min(u16::try_from(seeds).unwrap_or(u16::MAX))
    }

    /// Takes a newer snapshot of the cluster.
    pub fn set_members(&self, members: Arc<Members>) {
        let Some(cluster) = &self.cluster else { return };
        if cluster.set_members(members) {
            // Whoever was told of something dirty may be gone, and this peer may decide about more now.
            self.queue.hurry();
        }
    }
}
