//! The nodes of a tracker, in slots, so that tables can name them by number and any can be drawn.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::swarm::Pieces;
use crate::swarm::random::Random;

/// What one upload counts in [`Node::load`]; to be named to one asker, who may choose others, counts one.
pub const LOAD_UNIT: u32 = 4;

/// One node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its id.
    pub id: Arc<str>,
    /// What it has.
    pub have: Pieces,
    /// What it fetches, or was suggested to.
    pub wanted: Vec<u32>,
    /// Uploads, as it last said.
    pub uploads: u32,
    /// To how many askers it was named since.
    pub named: u32,
    /// When it last reported.
    pub heard: Duration,
    /// Pieces that were suggested to it; one that comes later starts with what the others have on average.
    suggested: u64,
}

impl Node {
    /// How much it has to do, as far as is known.
    pub fn load(&self) -> u32 {
        self.uploads.saturating_mul(LOAD_UNIT).saturating_add(self.named)
    }
}

/// All nodes of one version.
#[derive(Clone, Debug)]
pub struct Nodes {
    slots: Vec<Option<Node>>,
    /// Slots without a node.
    free: Vec<u32>,
    by_id: HashMap<Arc<str>, u32>,
    /// Slots of nodes that have anything, in no order, and where each slot is in there.
    useful: Vec<u32>,
    useful_at: Vec<Option<u32>>,
    nodes_max: usize,
    /// The sum over all nodes.
    suggested: u64,
}

impl Nodes {
    /// None yet.
    pub fn new(nodes_max: usize) -> Nodes {
        Nodes {
            slots: Vec::new(),
            free: Vec::new(),
            by_id: HashMap::new(),
            useful: Vec::new(),
            useful_at: Vec::new(),
            nodes_max,
            suggested: 0,
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// The slot of a node that is there.
    pub fn find(&self, id: &str) -> Option<u32> {
        self.by_id.get(id).copied()
    }

    /// The slot of a node, which gets one if there is room.
    pub fn slot_of(&mut self, id: &str) -> Option<u32> {
        if let Some(slot) = self.find(id) {
            return Some(slot);
        }
        if self.len() >= self.nodes_max {
            return None;
        }
        let id: Arc<str> = id.into();
        let node = Node {
            id: id.clone(),
            have: Pieces::new(0),
            wanted: Vec::new(),
            uploads: 0,
            named: 0,
            heard: Duration::ZERO,
            suggested: self.suggested / (self.len() as u64).max(1),
        };
        self.suggested += node.suggested;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.useful_at.push(None);
            u32::try_from(self.slots.len() - 1).expect("fewer than SWARM_NODES_MAX")
        });
        self.slots[slot as usize] = Some(node);
        self.by_id.insert(id, slot);
        Some(slot)
    }

    /// Whether there is a node in this slot.
    pub fn is_used(&self, slot: u32) -> bool {
        self.slots.get(slot as usize).is_some_and(Option::is_some)
    }

    /// The node of a slot, if there is one.
    pub fn get(&self, slot: u32) -> Option<&Node> {
        self.slots.get(slot as usize)?.as_ref()
    }

    /// The node in this slot.
    pub fn at(&self, slot: u32) -> &Node {
        self.slots[slot as usize].as_ref().expect("a slot in use")
    }

    /// The node in this slot.
    pub fn at_mut(&mut self, slot: u32) -> &mut Node {
        self.slots[slot as usize].as_mut().expect("a slot in use")
    }

    /// Slots in use.
    pub fn slots(&self) -> impl Iterator<Item = u32> + '_ {
        (0_u32..).zip(&self.slots).filter(|(_, node)| node.is_some()).map(|(slot, _)| slot)
    }

    /// All nodes.
    pub fn iter(&self) -> impl Iterator<Item = &Node> {
        self.slots.iter().flatten()
    }

    /// Any node that has something.
    pub fn draw(&self, random: &mut Random) -> Option<u32> {
        if self.useful.is_empty() { None } else { Some(self.useful[random.below(self.useful.len())]) }
    }

    /// What a node reported.
    pub fn put(&mut self, slot: u32, have: &Pieces, wanted: Vec<u32>, uploads: u32, now: Duration) {
        let node = self.at_mut(slot);
        node.have.clone_from(have);
        (node.wanted, node.uploads, node.named, node.heard) = (wanted, uploads, 0, now);
        self.index(slot, !have.is_empty());
    }

    /// A node is gone.
    pub fn remove(&mut self, slot: u32) {
        self.index(slot, false);
        if let Some(node) = self.slots[slot as usize].take() {
            self.by_id.remove(&node.id);
            self.suggested -= node.suggested;
            self.free.push(slot);
        }
    }

    /// A piece was suggested to a node.
    pub fn was_suggested(&mut self, slot: u32, piece: u32) {
        self.suggested += 1;
        let node = self.at_mut(slot);
        node.suggested += 1;
        node.wanted.push(piece);
    }

    /// Whether more pieces were suggested to this node than to others.
    pub fn had_enough(&self, slot: u32) -> bool {
        self.at(slot).suggested > self.suggested / self.len() as u64
    }

    /// Those that were last heard before this time.
    pub fn silent_since(&self, before: Duration) -> Vec<u32> {
        self.slots().filter(|slot| self.at(*slot).heard < before).collect()
    }

    fn index(&mut self, slot: u32, is_useful: bool) {
        match (self.useful_at[slot as usize], is_useful) {
            (None, true) => {
                self.useful_at[slot as usize] = u32::try_from(self.useful.len()).ok();
                self.useful.push(slot);
            }
            (Some(at), false) => {
                self.useful.swap_remove(at as usize);
                if let Some(moved) = self.useful.get(at as usize) {
                    self.useful_at[*moved as usize] = Some(at);
                }
                self.useful_at[slot as usize] = None;
            }
            _ => {}
        }
    }
}
