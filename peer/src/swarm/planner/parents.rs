//! The peers a download may fetch from: what they have, how they do, and which of them to leave alone.

use std::sync::Arc;
use std::time::Duration;

use dfstore_proto::message::Holder;

use crate::limits::{
    SWARM_AVOID_MISSING, SWARM_AVOID_SILENT, SWARM_AVOID_WRONG, SWARM_BUSY_PAUSE, SWARM_PARENT_ORDERS_MAX,
    SWARM_PARENT_ORDERS_START, SWARM_PARENTS_KEPT, SWARM_PARENTS_ORDERS,
};
use crate::swarm::Pieces;
use crate::swarm::random::mix;

/// One peer to fetch from.
#[derive(Clone, Debug)]
pub struct Parent {
    node: Arc<str>,
    have: Pieces,
    /// Pieces it sends to anybody, as the home last said.
    uploads: u32,
    /// When the home last named it.
    named: Duration,
    /// When a byte last came from it.
    gave: Option<Duration>,
    in_flight: u32,
    /// Pieces that may be in flight from it.
    orders_max: u32,
    /// Orders that went well since `orders_max` last changed.
    streak: u32,
    /// Bytes a second of one order, of late.
    rate: Option<f64>,
    busy_until: Duration,
    avoided_until: Duration,
    /// How often it was silent, slow or wrong.
    strikes: u32,
}

/// The peers that the home named of late, and those that are avoided.
#[derive(Clone, Debug)]
pub struct Parents {
    all: Vec<Parent>,
    seed: u64,
    /// Times that a parent was given up because of what it did.
    avoided: u64,
}

impl Parents {
    /// None yet. The seed decides between equals.
    pub fn new(seed: u64) -> Parents {
        Parents { all: Vec::new(), seed, avoided: 0 }
    }

    /// Takes in what the home says about one peer.
    pub fn name(&mut self, holder: &Holder, piece_count: u32, now: Duration) {
        let have = Pieces::of_runs(piece_count, &holder.have);
        if let Some(parent) = self.find(&holder.node) {
            (parent.have, parent.uploads, parent.named) = (have, holder.uploads, now);
            return;
        }
        if self.all.len() >= SWARM_PARENTS_KEPT && !self.forget_one(now) {
            return;
        }
        self.all.push(Parent {
            node: holder.node.as_str().into(),
            have,
            uploads: holder.uploads,
            named: now,
            gave: None,
            in_flight: 0,
            orders_max: SWARM_PARENT_ORDERS_START,
            streak: 0,
            rate: None,
            busy_until: Duration::ZERO,
            avoided_until: Duration::ZERO,
            strikes: 0,
        });
    }

    /// Makes room: the one that was named longest ago goes. One that is avoided stays while there is another, so that
    /// it is not taken for a new one.
    fn forget_one(&mut self, now: Duration) -> bool {
        let idle = (0..self.all.len()).filter(|at| self.all[*at].in_flight == 0);
        let oldest = idle.min_by_key(|at| (self.all[*at].avoided_until > now, self.all[*at].named));
        oldest.map(|at| self.all.swap_remove(at)).is_some()
    }

    fn find(&mut self, node: &str) -> Option<&mut Parent> {
        self.all.iter_mut().find(|parent| parent.node.as_ref() == node)
    }

    /// The best one to ask for a piece now, not this one: first those that are not known to be slower than
    /// `rate_good`, then those with the fewest orders of ours and uploads. Between equals the seed chooses, so that not
    /// everybody asks the same.
    pub fn best(&self, piece: u32, not: Option<&str>, rate_good: f64, now: Duration) -> Option<Arc<str>> {
        let share = self.share(now);
        let able = self.all.iter().enumerate().filter(|(_, parent)| {
            parent.have.contains(piece)
                && parent.is_able(share, now)
                && not.is_none_or(|not| parent.node.as_ref() != not)
        });
        let best = able.min_by_key(|(at, parent)| {
            let load = parent.uploads.saturating_add(parent.in_flight * 2);
            let is_slow = parent.rate.is_some_and(|rate| rate < rate_good);
            (is_slow, load, mix(self.seed ^ (u64::from(piece) << 32) ^ *at as u64))
        });
        best.map(|(_, parent)| parent.node.clone())
    }

    /// Whether there is anybody to ask for anything.
    pub fn any_is_able(&self, now: Duration) -> bool {
        let share = self.share(now);
        self.all.iter().any(|parent| parent.is_able(share, now))
    }

    /// Pieces that may be in flight from each parent because of the others: where there are several, two pieces from one
    /// of them only make each other late, and what is late is passed on late.
    fn share(&self, now: Duration) -> u32 {
        let parents = self.all.iter().filter(|parent| parent.avoided_until <= now && !parent.have.is_empty()).count();
        match u32::try_from(parents).unwrap_or(u32::MAX) {
            0 | 1 => SWARM_PARENT_ORDERS_MAX,
            several => (SWARM_PARENTS_ORDERS / several).max(1),
        }
    }

    /// How many parents that have it are avoided; `None` when one of them is not.
    pub fn all_failed(&self, piece: u32, now: Duration) -> Option<usize> {
        let holders = || self.all.iter().filter(|parent| parent.have.contains(piece));
        holders().all(|parent| parent.avoided_until > now).then(|| holders().count())
    }

    /// When the next pause of a busy parent ends.
    pub fn next_pause_end(&self, now: Duration) -> Option<Duration> {
        self.all.iter().map(|parent| parent.busy_until).filter(|end| *end > now).min()
    }

    /// A byte came from it.
    pub fn gives(&mut self, node: &str, now: Duration) {
        if let Some(parent) = self.find(node) {
            parent.gave = Some(now);
        }
    }

    /// When a byte last came from it, of any order.
    pub fn gave(&self, node: &str) -> Option<Duration> {
        self.all.iter().find(|parent| parent.node.as_ref() == node)?.gave
    }

    /// It got an order.
    pub fn ordered(&mut self, node: &str) {
        if let Some(parent) = self.find(node) {
            parent.in_flight += 1;
        }
    }

    /// An order of it ended, in whatever way.
    pub fn ended(&mut self, node: &str) {
        if let Some(parent) = self.find(node) {
            parent.in_flight = parent.in_flight.saturating_sub(1);
        }
    }

    /// An order went well. While the rate of each order holds, the parent gets more of them; when it breaks, fewer.
    pub fn went_well(&mut self, node: &str, rate: f64) {
        let Some(parent) = self.find(node) else { return };
        let before = parent.rate.unwrap_or(rate);
        parent.rate = Some(before * 0.7 + rate * 0.3);
        parent.strikes = parent.strikes.saturating_sub(1);
        if rate < before * 0.5 {
            (parent.orders_max, parent.streak) = ((parent.orders_max - 1).max(1), 0);
        } else {
            parent.streak += 1;
            if parent.streak >= parent.orders_max {
                (parent.orders_max, parent.streak) = ((parent.orders_max + 1).min(SWARM_PARENT_ORDERS_MAX), 0);
            }
        }
    }

    /// It lacks a piece that it should have. Once is nothing, more often it is not what the home takes it for.
    pub fn lacks(&mut self, node: &str, piece: u32, now: Duration) {
        let Some(parent) = self.find(node) else { return };
        parent.have.remove(piece);
        self.avoid(node, SWARM_AVOID_MISSING, now);
    }

    /// It said that it has too much to do.
    pub fn is_busy(&mut self, node: &str, now: Duration) {
        if let Some(parent) = self.find(node) {
            (parent.orders_max, parent.streak) = ((parent.orders_max - 1).max(1), 0);
            parent.busy_until = now + SWARM_BUSY_PAUSE;
        }
    }

    /// It was silent or slow, or cannot be reached.
    pub fn failed(&mut self, node: &str, now: Duration) {
        self.avoid(node, SWARM_AVOID_SILENT, now);
    }

    /// It sent wrong bytes.
    pub fn lied(&mut self, node: &str, now: Duration) {
        self.avoid(node, SWARM_AVOID_WRONG, now);
    }

    /// Each further time it is avoided for twice as long.
    fn avoid(&mut self, node: &str, at_first: Duration, now: Duration) {
        let Some(parent) = self.find(node) else { return };
        // Several orders of one parent end together: that is one failure.
        if parent.avoided_until > now {
            return;
        }
        parent.avoided_until = now + (at_first * 2_u32.pow(parent.strikes.min(8))).min(SWARM_AVOID_WRONG);
        (parent.orders_max, parent.streak) = (1, 0);
        parent.strikes += 1;
        self.avoided += 1;
    }

    /// Times that a parent was given up because of what it did.
    pub fn avoided(&self) -> u64 {
        self.avoided
    }
}

impl Parent {
    fn is_able(&self, share: u32, now: Duration) -> bool {
        self.in_flight < self.orders_max.min(share) && self.busy_until <= now && self.avoided_until <= now
    }
}
