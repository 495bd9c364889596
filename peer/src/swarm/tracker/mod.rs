//! The home's table of one version: who has what, who fetches what, and what to answer to a report.
//!
//! A report costs time in the order of the pieces that changed, the window and [`SWARM_CANDIDATES_MAX`], never of the
//! number of nodes: for each piece there are counters and a few recent holders, and candidates for parents are drawn.
//!
//! *Suggestions* divide the home's uplink. As many are open as the home carries out in a short time, so that each piece
//! is soon complete somewhere and passed on; each piece that nobody has or fetches is suggested once, the lowest first;
//! only then, and only to a node that gets nothing useful from others, the rarest is suggested again. One that is not
//! carried out in time no longer counts.
//!
//! Invariant: `held` and `wanted` are the sums over all nodes of what they have, and of what they fetch or were
//! suggested and have not.

mod nodes;
mod suggestions;

use std::sync::Arc;
use std::time::Duration;

use dfstore_proto::limits::{PARENTS_MAX, SUGGESTED_MAX};
use dfstore_proto::message::{Holder, Tracked};

use crate::limits::{
    SWARM_CANDIDATES_MAX, SWARM_NODE_SILENCE_MAX, SWARM_NODES_MAX, SWARM_RECENT_HOLDERS, SWARM_REPORT_MAX,
    SWARM_REPORT_MIN, SWARM_REPORT_SPREAD, SWARM_STAGNANT, SWARM_STAGNANT_COPIES_MAX, SWARM_TABLE_BYTES_MAX,
    SWARM_UPLOADS_GOOD, SWARM_WINDOW_PIECES,
};
use crate::swarm::random::Random;
use crate::swarm::{Pieces, Report};

use nodes::Nodes;
use suggestions::Suggestions;

/// The home's table of one version.
#[derive(Clone, Debug)]
pub struct Tracker {
    piece_count: u32,
    nodes: Nodes,
    /// For each piece, how many nodes have it.
    held: Vec<u32>,
    /// For each piece, how many nodes fetch it, or were suggested to, and do not have it.
    wanted: Vec<u32>,
    /// For each piece, the slots of those that got it last. A slot may be another node's by now: it is only a hint.
    recent: Vec<[u32; SWARM_RECENT_HOLDERS]>,
    /// For each piece, when a node got it or was suggested to get it, in milliseconds.
    grown_ms: Vec<u32>,
    suggestions: Suggestions,
    random: Random,
}

/// What a report and the table together say about the asker.
struct Asker<'a> {
    slot: Option<u32>,
    have: &'a Pieces,
    fetching: &'a [u32],
    window: std::ops::Range<u32>,
}

impl Tracker {
    /// A table without nodes. The home itself is not in it.
    pub fn new(piece_count: u32, seed: u64) -> Tracker {
        let pieces = piece_count as usize;
        // A node costs its bitmap; the counters of the pieces are there once.
        let nodes_max = (SWARM_TABLE_BYTES_MAX / (pieces / 8).max(1)).clamp(1, SWARM_NODES_MAX);
        Tracker {
            piece_count,
            nodes: Nodes::new(nodes_max),
            held: vec![0; pieces],
            wanted: vec![0; pieces],
            recent: vec![[u32::MAX; SWARM_RECENT_HOLDERS]; pieces],
            grown_ms: vec![0; pieces],
            suggestions: Suggestions::default(),
            random: Random::new(seed),
        }
    }

    /// A node reports: its entry is renewed, and it is told from whom to get what it lacks.
    pub fn track(&mut self, node: &str, report: &Report, now: Duration) -> Tracked {
        let have = Pieces::of_runs(self.piece_count, &report.have);
        let fetching: Vec<u32> = Pieces::of_runs(self.piece_count, &report.fetching)
            .iter()
            .filter(|piece| !have.contains(*piece))
            .take(dfstore_proto::limits::COUNTS_MAX)
            .collect();
        let window =
            report.window.first..report.window.first.saturating_add(report.window.count.min(SWARM_WINDOW_PIECES));
        let slot = self.nodes.slot_of(node);
        if let Some(slot) = slot {
            self.renew(slot, &have, &fetching, report.uploads, now);
        }
        let window = window.start..window.end.min(self.piece_count);
        let asker = Asker { slot, have: &have, fetching: &fetching, window };
        let parents = self.parents(&asker, now);
        let suggested = self.suggest(&asker, &parents, now);
        let counts = asker.window.clone().map(|piece| u8::try_from(self.copies(piece)).unwrap_or(u8::MAX)).collect();
        Tracked { parents, counts, suggested, again_ms: self.again_ms() }
    }

    /// A node is gone.
    pub fn left(&mut self, node: &str) {
        if let Some(slot) = self.nodes.find(node) {
            self.forget(slot);
        }
    }

    /// A node has all pieces, durably: a replica.
    pub fn note_whole(&mut self, node: &str, now: Duration) {
        if let Some(slot) = self.nodes.slot_of(node) {
            let uploads = self.nodes.at(slot).uploads;
            self.renew(slot, &Pieces::whole(self.piece_count), &[], uploads, now);
        }
    }

    /// Forgets nodes that said nothing for long, and suggestions that were not carried out. To be called every second or
    /// so.
    pub fn forget_silent(&mut self, now: Duration) {
        for slot in self.nodes.silent_since(now.saturating_sub(SWARM_NODE_SILENCE_MAX)) {
            self.forget(slot);
        }
        for (slot, piece) in self.suggestions.expire(now) {
            self.unwant(slot, piece);
        }
    }

    /// All nodes in the table.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.nodes.iter().map(|node| &node.id)
    }

    /// Nodes that have all pieces.
    pub fn whole(&self) -> impl Iterator<Item = &Arc<str>> {
        self.nodes.iter().filter(|node| node.have.is_whole()).map(|node| &node.id)
    }

    /// Some nodes that have a piece: those that got it last.
    pub fn recent_holders(&self, piece: u32) -> Vec<Arc<str>> {
        let slots = self.recent.get(piece as usize).into_iter().flatten();
        let nodes = slots.filter_map(|slot| self.nodes.get(*slot)).filter(|node| node.have.contains(piece));
        nodes.map(|node| node.id.clone()).collect()
    }

    /// Nodes in the table.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Nodes that have a piece, and those that fetch it or were suggested to.
    fn copies(&self, piece: u32) -> u32 {
        self.held[piece as usize] + self.wanted[piece as usize]
    }

    /// The entry of a node becomes what it reported.
    fn renew(&mut self, slot: u32, have: &Pieces, fetching: &[u32], uploads: u32, now: Duration) {
        let before = self.take_entry(slot);
        for piece in have.beyond(&before, 0..self.piece_count) {
            let recent = &mut self.recent[piece as usize];
            recent.rotate_right(1);
            recent[0] = slot;
            self.grown_ms[piece as usize] = milliseconds(now);
        }
        have.iter().for_each(|piece| self.held[piece as usize] += 1);
        let open = self.suggestions.renew(slot, have, fetching, now);
        let mut wanted = fetching.to_vec();
        wanted.extend(open.into_iter().filter(|piece| !fetching.contains(piece)));
        wanted.iter().for_each(|piece| self.wanted[*piece as usize] += 1);
        self.nodes.put(slot, have, wanted, uploads, now);
    }

    /// Takes the pieces of an entry out of the counters; what it had.
    fn take_entry(&mut self, slot: u32) -> Pieces {
        let node = self.nodes.at_mut(slot);
        let wanted = std::mem::take(&mut node.wanted);
        let had = std::mem::replace(&mut node.have, Pieces::new(self.piece_count));
        wanted.iter().for_each(|piece| self.wanted[*piece as usize] -= 1);
        had.iter().for_each(|piece| self.held[piece as usize] -= 1);
        had
    }

    fn unwant(&mut self, slot: u32, piece: u32) {
        let node = self.nodes.at_mut(slot);
        if let Some(at) = node.wanted.iter().position(|wanted| *wanted == piece) {
            node.wanted.swap_remove(at);
            self.wanted[piece as usize] -= 1;
        }
    }

    fn forget(&mut self, slot: u32) {
        self.take_entry(slot);
        self.suggestions.forget(slot);
        self.nodes.remove(slot);
    }

    /// The time until the next report: longer where there are more nodes, though not in proportion, because what a peer
    /// knows of others grows old in it.
    fn again_ms(&self) -> u32 {
        let nodes = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        let again = SWARM_REPORT_SPREAD.saturating_mul(nodes.isqrt()).clamp(SWARM_REPORT_MIN, SWARM_REPORT_MAX);
        u32::try_from(again.as_millis()).unwrap_or(u32::MAX)
    }

    /// Nodes that have something which the asker lacks, those with the fewest uploads first. They are drawn, so that
    /// different askers get different ones.
    fn parents(&mut self, asker: &Asker<'_>, now: Duration) -> Vec<Holder> {
        let mut chosen: Vec<(u32, u32, u32)> = Vec::new();
        for slot in self.candidates(asker) {
            let node = self.nodes.at(slot);
            let useful = node.have.beyond(asker.have, asker.window.clone()).count();
            if useful > 0 && now < node.heard + SWARM_NODE_SILENCE_MAX {
                let useful = u32::try_from(useful).unwrap_or(u32::MAX);
                chosen.push((node.load(), u32::MAX - useful, slot));
            }
        }
        chosen.sort_unstable();
        let free = chosen.iter().filter(|(load, _, _)| *load < SWARM_UPLOADS_GOOD * nodes::LOAD_UNIT).count();
        chosen.truncate(free.clamp(1, PARENTS_MAX));
        let mut parents = Vec::with_capacity(chosen.len());
        for (_, _, slot) in chosen {
            let node = self.nodes.at_mut(slot);
            node.named += 1;
            parents.push(Holder { node: node.id.to_string(), have: node.have.runs(), uploads: node.uploads });
        }
        parents
    }

    /// Slots to look at: recent holders of what the asker lacks and few have, and others that have anything.
    fn candidates(&mut self, asker: &Asker<'_>) -> Vec<u32> {
        let mut slots: Vec<u32> = Vec::with_capacity(2 * SWARM_CANDIDATES_MAX);
        if self.nodes.len() <= SWARM_CANDIDATES_MAX {
            slots.extend(self.nodes.slots());
        } else {
            let lacks = asker.window.clone().filter(|piece| !asker.have.contains(*piece));
            let mut rare: Vec<(u32, u32)> = lacks
                .filter(|piece| self.held[*piece as usize] > 0)
                .map(|piece| (self.held[piece as usize], piece))
                .collect();
            rare.sort_unstable();
            rare.truncate(SWARM_CANDIDATES_MAX / SWARM_RECENT_HOLDERS);
            slots.extend(rare.iter().flat_map(|(_, piece)| self.recent[*piece as usize]));
            slots.extend((0..SWARM_CANDIDATES_MAX).filter_map(|_| self.nodes.draw(&mut self.random)));
        }
        slots.sort_unstable();
        slots.dedup();
        slots.retain(|slot| Some(*slot) != asker.slot && self.nodes.is_used(*slot));
        // Sorting by load keeps the order of equals: without this the lowest slots would get all the work.
        for at in (1..slots.len()).rev() {
            slots.swap(at, self.random.below(at + 1));
        }
        slots
    }

    /// Pieces that the asker should get from the home.
    fn suggest(&mut self, asker: &Asker<'_>, parents: &[Holder], now: Duration) -> Vec<u32> {
        let Some(slot) = asker.slot else { return Vec::new() };
        let had_enough = self.nodes.had_enough(slot);
        let room = self.suggestions.room(slot, self.nodes.len(), had_enough, now).min(SUGGESTED_MAX);
        if room == 0 {
            return Vec::new();
        }
        let wanted = &self.nodes.at(slot).wanted;
        let lacks = asker
            .window
            .clone()
            .filter(|piece| !asker.have.contains(*piece) && !asker.fetching.contains(piece) && !wanted.contains(piece));
        let mut rarest: Vec<(u32, u32)> = lacks.map(|piece| (self.live_copies(piece, now), piece)).collect();
        rarest.sort_unstable();
        // Second copies only for a node that nobody else has anything for.
        let is_starving = parents.is_empty() && asker.fetching.is_empty();
        rarest.retain(|(copies, _)| *copies == 0 || is_starving);
        rarest.truncate(room);
        let suggested: Vec<u32> = rarest.into_iter().map(|(_, piece)| piece).collect();
        for piece in &suggested {
            self.suggestions.add(slot, *piece, now);
            self.nodes.was_suggested(slot, *piece);
            self.grown_ms[*piece as usize] = milliseconds(now);
            self.wanted[*piece as usize] += 1;
        }
        suggested
    }

    /// Copies there are, or will be soon. A suggestion that takes too long does not count; nor do a few copies that do
    /// not become more, because then those that have them do not pass them on.
    fn live_copies(&self, piece: u32, now: Duration) -> u32 {
        let age_ms = milliseconds(now).saturating_sub(self.grown_ms[piece as usize]);
        let held = self.held[piece as usize];
        if (1..=SWARM_STAGNANT_COPIES_MAX).contains(&held) && u128::from(age_ms) > SWARM_STAGNANT.as_millis() {
            return 0;
        }
        self.copies(piece).saturating_sub(self.suggestions.late(piece, now))
    }
}

fn milliseconds(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}
