//! What the home suggested to whom and is not done yet; how many more it may suggest.
//!
//! The number that is open follows from how many are carried out in a second: a home with a slow uplink has few open,
//! each of which is soon complete, a fast one has many.

use std::time::Duration;

use crate::limits::{
    SWARM_NODE_SILENCE_MAX, SWARM_STAGNANT, SWARM_SUGGESTED_LATE, SWARM_SUGGESTED_MIN, SWARM_SUGGESTED_MIN_SLOW,
    SWARM_SUGGESTED_OPEN_MAX, SWARM_SUGGESTED_SLOW, SWARM_SUGGESTED_TIME, SWARM_SUGGESTION_KEPT,
};
use crate::swarm::Pieces;
use crate::swarm::rate::Rate;

/// Suggestions that are open.
#[derive(Clone, Debug, Default)]
pub struct Suggestions {
    open: Vec<Open>,
    /// Suggestions that were carried out.
    done: Rate,
    /// How long that took, of late; `None` before the first.
    takes: Option<Duration>,
}

#[derive(Clone, Debug)]
struct Open {
    slot: u32,
    piece: u32,
    at: Duration,
    /// The node said that it fetches the piece.
    is_started: bool,
}

impl Suggestions {
    /// A node reports what it has and fetches; its suggestions that stay open.
    pub fn renew(&mut self, slot: u32, have: &Pieces, fetching: &[u32], now: Duration) -> Vec<u32> {
        let mut stay = Vec::new();
        for mut open in std::mem::take(&mut self.open) {
            if open.slot != slot {
                self.open.push(open);
                continue;
            }
            let age = now.saturating_sub(open.at);
            if have.contains(open.piece) {
                self.done.add(now);
                let age = age.min(SWARM_NODE_SILENCE_MAX);
                self.takes = Some(self.takes.map_or(age, |takes| (takes * 7 + age) / 8));
                continue;
            }
            let is_fetching = fetching.contains(&open.piece);
            if is_fetching || (!open.is_started && age < SWARM_SUGGESTION_KEPT) {
                open.is_started |= is_fetching;
                stay.push(open.piece);
                self.open.push(open);
            }
        }
        stay
    }

    /// How many more may be suggested to this node, of `nodes`. One that `had_enough` gets only what keeps the uplink
    /// from falling idle: the first copies are to be spread, so that the uplinks that pass them on are shared.
    pub fn room(&self, slot: u32, nodes: usize, had_enough: bool, now: Duration) -> usize {
        // Before the first is carried out, how long they take is known from how long the oldest has taken so far.
        let so_far = || self.open.iter().map(|open| now.saturating_sub(open.at)).max();
        let least = match self.takes.or_else(so_far) {
            Some(takes) if takes > SWARM_SUGGESTED_SLOW => SWARM_SUGGESTED_MIN_SLOW,
            _ => SWARM_SUGGESTED_MIN,
        };
        let most = least + self.done.within(SWARM_SUGGESTED_TIME, now);
        let live = self.open.iter().filter(|open| !self.is_late(open, now)).count();
        // Late ones still take of the uplink: they make room, but not without end.
        let room =
            most.saturating_sub(live).min((4 * most).min(SWARM_SUGGESTED_OPEN_MAX).saturating_sub(self.open.len()));
        let room = if had_enough { room.saturating_sub(most - most.div_ceil(3)) } else { room };
        let mine = self.open.iter().filter(|open| open.slot == slot).count();
        let share = most.div_ceil(nodes.max(1)).saturating_sub(mine);
        // Others may come right after the first who asks, and nothing can be passed on yet: each of them is to have
        // something of its own soon. Who is alone asks again soon.
        let share = if self.takes.is_none() { share.min(1) } else { share };
        room.min(share)
    }

    /// A piece was suggested.
    pub fn add(&mut self, slot: u32, piece: u32, now: Duration) {
        self.open.push(Open { slot, piece, at: now, is_started: false });
    }

    /// Suggestions of this piece that take too long.
    pub fn late(&self, piece: u32, now: Duration) -> u32 {
        let late = self.open.iter().filter(|open| open.piece == piece && self.is_late(open, now)).count();
        u32::try_from(late).unwrap_or(u32::MAX)
    }

    fn is_late(&self, open: &Open, now: Duration) -> bool {
        now.saturating_sub(open.at) > self.takes.map_or(SWARM_SUGGESTED_LATE, |takes| takes * 2 + SWARM_STAGNANT)
    }

    /// Takes out those that were never carried out: slot and piece of each.
    pub fn expire(&mut self, now: Duration) -> Vec<(u32, u32)> {
        let is_over = |open: &Open| {
            let kept = if open.is_started { SWARM_NODE_SILENCE_MAX } else { SWARM_SUGGESTION_KEPT * 2 };
            now.saturating_sub(open.at) > kept
        };
        let over = self.open.iter().filter(|open| is_over(open)).map(|open| (open.slot, open.piece)).collect();
        self.open.retain(|open| !is_over(open));
        over
    }

    /// A node is gone.
    pub fn forget(&mut self, slot: u32) {
        self.open.retain(|open| open.slot != slot);
    }
}
