//! The plan of one download: which pieces to order now, and from whom.
//!
//! In this order: pieces that a reader waits for; pieces that the home suggested, from the home; then the rarest of the
//! window that some parent has. A piece that a reader waits for is fetched from the home without being suggested only when
//! nobody can give it for a while ([`SWARM_URGENT_PATIENCE`]; much later when others have it, because a thousand
//! readers start at the same piece). When nothing else is left to order, what is stuck is asked for once more elsewhere.
//!
//! The caller carries orders out and tells what becomes of each: [`Planner::progress`], then [`Planner::done`] or
//! [`Planner::failed`], or it gives it up when [`Planner::overdue`] says so. It calls `overdue`, [`Planner::plan`] and
//! [`Planner::report`], in this order, after each event, and at [`Planner::next_wake`].
//!
//! Invariants: a piece that is there is not ordered; a piece has at most two orders, of different sources; orders never
//! exceed [`SWARM_ORDERS_MAX`] or what the caller has slots for.

mod demand;
mod orders;
mod parents;
mod reports;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use dfstore_proto::message::Tracked;
use dfstore_proto::object::PieceRun;

use crate::limits::{
    SWARM_DIRECT_PIECES_MAX, SWARM_HOME_PAUSE, SWARM_IN_FLIGHT_TIME, SWARM_ORDERS_MAX, SWARM_ORDERS_MIN,
    SWARM_RARE_COUNT_MAX, SWARM_SUGGESTION_KEPT, SWARM_TICK, SWARM_URGENT_HELD_PATIENCE, SWARM_URGENT_PATIENCE,
    SWARM_URGENT_UNSURE_PATIENCE,
};
use crate::swarm::random::mix;
use crate::swarm::rate::Rate;
use crate::swarm::{Failure, Order, Pieces, Report, Source};

use demand::{Demand, Urgent};
use orders::Orders;
use parents::Parents;
use reports::Reports;

/// The plan of one download of one version.
#[derive(Clone, Debug)]
pub struct Planner {
    have: Pieces,
    demand: Demand,
    parents: Parents,
    orders: Orders,
    /// What the home suggested to get from it, and when.
    suggested: Vec<(u32, Duration)>,
    /// How many have, or fetch, each piece from `counts_first` on, as the home last said.
    counts: Vec<u8>,
    counts_first: u32,
    reports: Reports,
    /// Pieces that arrive.
    arrivals: Rate,
    /// After a failure of the home.
    home_paused_until: Duration,
    /// Failures of the home since it last gave a piece.
    home_failures: u32,
    /// Whether the last plan left room for orders unused while pieces are wanted.
    is_hungry: bool,
    seed: u64,
}

impl Planner {
    /// A download of which nothing is there. The seed makes the choices of different peers different.
    pub fn new(piece_count: u32, seed: u64) -> Planner {
        Planner {
            have: Pieces::new(piece_count),
            demand: Demand::default(),
            parents: Parents::new(seed),
            orders: Orders::default(),
            suggested: Vec::new(),
            counts: Vec::new(),
            counts_first: 0,
            reports: Reports::default(),
            arrivals: Rate::default(),
            home_paused_until: Duration::ZERO,
            home_failures: 0,
            is_hungry: false,
            seed,
        }
    }

    /// A piece is there, however it came.
    pub fn have(&mut self, piece: u32) {
        self.have.insert(piece);
    }

    /// A piece is there no longer.
    pub fn lost(&mut self, piece: u32) {
        if self.have.remove(piece) {
            self.reports.lost();
        }
    }

    /// What is there.
    pub fn pieces(&self) -> &Pieces {
        &self.have
    }

    /// A reader is at the first piece of `range`, waits for it if it is not there, and will read to the end of `range`.
    /// To be called again when the reader comes to its next piece. `false` when there are too many readers.
    pub fn want(&mut self, reader: u64, range: Range<u32>, now: Duration) -> bool {
        self.demand.want(reader, range.start..range.end.min(self.have.piece_count()), now)
    }

    /// A reader is gone: nothing is ordered for it any more.
    pub fn leave(&mut self, reader: u64) {
        self.demand.leave(reader);
    }

    /// Takes in the home's answer to a report.
    pub fn tracked(&mut self, tracked: &Tracked, now: Duration) {
        let window = self.reports.answered(tracked.again_ms);
        for holder in &tracked.parents {
            self.parents.name(holder, self.have.piece_count(), now);
        }
        (self.counts_first, self.counts) = (window.start, tracked.counts.clone());
        for piece in &tracked.suggested {
            self.suggest(*piece, now);
        }
    }

    /// A report got no answer.
    pub fn untracked(&mut self, now: Duration) {
        self.reports.lost_on_the_way(now);
    }

    fn suggest(&mut self, piece: u32, now: Duration) {
        let known = self.suggested.iter().any(|(other, _)| *other == piece);
        if piece < self.have.piece_count() && !known && self.suggested.len() < SWARM_ORDERS_MAX {
            self.suggested.push((piece, now));
        }
    }

    /// What to order now. The orders count as in flight from here on.
    pub fn plan(&mut self, now: Duration, slots_free: usize) -> Vec<Order> {
        let mut planned = Vec::new();
        let urgent = self.demand.urgent(&self.have);
        let missing = self.demand.missing(&self.have);
        let wants = |piece: u32| missing.contains(&piece);
        self.suggested.retain(|(piece, at)| now < *at + SWARM_SUGGESTION_KEPT && wants(*piece));
        let few = if self.goes_direct() { SWARM_DIRECT_PIECES_MAX as usize } else { SWARM_ORDERS_MIN };
        let orders_max = self.arrivals.within(SWARM_IN_FLIGHT_TIME, now) + few;
        let left = orders_max.min(SWARM_ORDERS_MAX).saturating_sub(self.orders.len());
        // One more than the link needs for what somebody waits for.
        let most = (left + usize::from(!urgent.is_empty())).min(slots_free).min(SWARM_ORDERS_MAX - self.orders.len());
        let room = left.min(slots_free);
        for waits in urgent {
            if planned.len() < most {
                planned.extend(self.order_urgent(waits, now));
            }
        }
        while planned.len() < room && now >= self.home_paused_until {
            let Some(at) = self.suggested.iter().position(|(piece, _)| !self.orders.has(*piece)) else {
                break;
            };
            let (piece, _) = self.suggested.swap_remove(at);
            planned.push(self.order(piece, Source::Home, now));
        }
        if planned.len() < room {
            self.order_rarest(&missing, room, now, &mut planned);
        }
        self.is_hungry = planned.len() < room && !missing.is_empty();
        if self.is_hungry {
            self.order_stuck_again(&missing, room, now, &mut planned);
        }
        planned
    }

    fn order(&mut self, piece: u32, from: Source, now: Duration) -> Order {
        self.orders.add(piece, from.clone(), now);
        if let Source::Parent(node) = &from {
            self.parents.ordered(node);
        }
        Order { piece, from }
    }

    fn best_parent(&self, piece: u32, not: Option<&str>, now: Duration) -> Option<Arc<str>> {
        self.parents.best(piece, not, self.orders.rate_good(), now)
    }

    fn order_urgent(&mut self, waits: Urgent, now: Duration) -> Option<Order> {
        let Urgent { piece, since } = waits;
        if let (count, Some(first)) = self.orders.of(piece) {
            let is_stuck = count == 1 && now >= first.ordered.max(since) + self.orders.stuck_after();
            return if is_stuck { self.order_elsewhere(piece, now) } else { None };
        }
        if let Some(node) = self.best_parent(piece, None, now) {
            return Some(self.order(piece, Source::Parent(node), now));
        }
        let suggested = self.suggested.iter().position(|(suggested, _)| *suggested == piece);
        if now < self.home_paused_until || (suggested.is_none() && now < self.home_directly_at(waits, now)) {
            return None;
        }
        if let Some(at) = suggested {
            self.suggested.swap_remove(at);
        }
        Some(self.order(piece, Source::Home, now))
    }

    /// When the home is to be asked for what a reader waits for, though it did not suggest it.
    fn home_directly_at(&self, waits: Urgent, now: Duration) -> Duration {
        if self.goes_direct() {
            return waits.since;
        }
        let answers = self.reports.again() * 2;
        let patience = match self.count(waits.piece) {
            _ if !self.reports.is_answered() => SWARM_URGENT_UNSURE_PATIENCE,
            Some(0) => SWARM_URGENT_PATIENCE,
            // What the home said before the reader came here.
            None => SWARM_URGENT_PATIENCE.max(answers),
            // Where there are more that have it, the home will name them.
            Some(count) if self.parents.all_failed(waits.piece, now).is_some_and(|failed| failed >= count.into()) => {
                SWARM_URGENT_UNSURE_PATIENCE.max(answers)
            }
            Some(_) => SWARM_URGENT_HELD_PATIENCE,
        };
        if patience <= SWARM_URGENT_PATIENCE {
            return waits.since + patience;
        }
        // Not everybody at once: one that gets it from the home gives it to the others.
        waits.since + patience.mul_f64(1.0 + f64::from(u16::try_from(self.seed % 1000).unwrap_or_default()) / 1000.0)
    }

    /// Whether there are so few pieces that planning costs more than it brings.
    fn goes_direct(&self) -> bool {
        self.have.piece_count() <= SWARM_DIRECT_PIECES_MAX
    }

    /// How many have, or fetch, a piece, as the home said. `None` for a piece that it said nothing about.
    fn count(&self, piece: u32) -> Option<u8> {
        self.counts.get(piece.checked_sub(self.counts_first)? as usize).copied()
    }

    fn order_rarest(&mut self, missing: &[u32], room: usize, now: Duration, planned: &mut Vec<Order>) {
        let is_able = |planner: &Planner| match planner.goes_direct() {
            true => now >= planner.home_paused_until,
            false => planner.parents.any_is_able(now),
        };
        if !is_able(self) {
            return;
        }
        let idle = missing.iter().copied().filter(|piece| !self.orders.has(*piece));
        // What a reader needs next comes before what is rare. Of pieces that are equally rare each peer prefers others, so
        // that they have something to give to each other.
        let rarity = |piece: u32| {
            let is_late = !self.demand.is_soon(piece);
            (is_late, self.count(piece).unwrap_or(1), mix(self.seed ^ u64::from(piece)), piece)
        };
        let mut by_rarity: Vec<(bool, u8, u64, u32)> = idle.map(rarity).collect();
        by_rarity.sort_unstable();
        for (.., piece) in by_rarity {
            let from = if self.goes_direct() {
                Some(Source::Home)
            } else {
                self.best_parent(piece, None, now).map(Source::Parent)
            };
            if let Some(from) = from {
                planned.push(self.order(piece, from, now));
                if planned.len() >= room || !is_able(self) {
                    return;
                }
            }
        }
    }

    /// Nothing new can be ordered: what is stuck is ordered again from somebody else.
    fn order_stuck_again(&mut self, missing: &[u32], room: usize, now: Duration, planned: &mut Vec<Order>) {
        let stuck_after = self.orders.stuck_after();
        for piece in missing {
            if planned.len() >= room {
                return;
            }
            let (count, first) = self.orders.of(*piece);
            if count == 1 && first.is_some_and(|first| now >= first.ordered + stuck_after) {
                planned.extend(self.order_elsewhere(*piece, now));
            }
        }
    }

    /// Orders a piece that is already ordered from a second source: another parent, else the home.
    fn order_elsewhere(&mut self, piece: u32, now: Duration) -> Option<Order> {
        let first = self.orders.of(piece).1?.from.clone();
        let not = if let Source::Parent(node) = &first { Some(node.as_ref()) } else { None };
        if let Some(node) = self.best_parent(piece, not, now) {
            return Some(self.order(piece, Source::Parent(node), now));
        }
        let home_is_able = first != Source::Home && now >= self.home_paused_until;
        home_is_able.then(|| self.order(piece, Source::Home, now))
    }

    /// So many more bytes of an order came.
    pub fn progress(&mut self, piece: u32, from: &Source, bytes: u64, now: Duration) {
        self.orders.progress(piece, from, bytes, now);
        if let Source::Parent(node) = from {
            self.parents.gives(node, now);
        }
    }

    /// A piece came whole, was verified, and can be given to others.
    pub fn done(&mut self, piece: u32, from: &Source, bytes: u64, now: Duration) {
        if self.have.insert(piece) {
            self.arrivals.add(now);
            // What comes from the home is what nobody else has.
            let is_rare = *from == Source::Home || self.count(piece).is_some_and(|count| count <= SWARM_RARE_COUNT_MAX);
            self.reports.arrived(is_rare);
        }
        let Some(order) = self.orders.remove(piece, from) else { return };
        let rate = self.orders.learn(bytes, now.saturating_sub(order.ordered));
        match from {
            Source::Home => self.home_failures = 0,
            Source::Parent(node) => {
                self.parents.ended(node);
                self.parents.gives(node, now);
                self.parents.went_well(node, rate);
            }
        }
    }

    /// A piece did not come.
    pub fn failed(&mut self, piece: u32, from: &Source, failure: Failure, now: Duration) {
        if self.orders.remove(piece, from).is_none() {
            return;
        }
        let Source::Parent(node) = from else {
            self.home_paused_until = now + SWARM_HOME_PAUSE * 2_u32.pow(self.home_failures.min(4));
            self.home_failures = self.home_failures.saturating_add(1);
            self.suggest(piece, self.home_paused_until);
            return;
        };
        self.parents.ended(node);
        match failure {
            Failure::Missing => self.parents.lacks(node, piece, now),
            Failure::Wrong => self.parents.lied(node, now),
            Failure::Unreachable => self.parents.failed(node, now),
            Failure::Busy => self.parents.is_busy(node, now),
        }
    }

    /// Orders to give up: of parents that are silent or slow, and of pieces that came from elsewhere. They are no longer
    /// in flight; nothing more is to be told about them.
    pub fn overdue(&mut self, now: Duration) -> Vec<(u32, Source)> {
        // Smaller patience than with an order that nobody overtakes; but who sends us another piece meanwhile is not silent.
        let overtaken = |order: &orders::InFlight, node: &Arc<str>| {
            self.have.contains(order.piece)
                && self.orders.was_overtaken(order, now)
                && self.parents.gave(node) < Some(order.ordered)
        };
        let late = |order: &orders::InFlight| match &order.from {
            Source::Home => false,
            Source::Parent(node) => self.orders.is_overdue(order, now) || overtaken(order, node),
        };
        let given_up: Vec<(u32, Source, bool)> = self
            .orders
            .iter()
            .filter_map(|order| {
                let is_late = late(order);
                let ends = is_late || self.have.contains(order.piece);
                ends.then(|| (order.piece, order.from.clone(), is_late))
            })
            .collect();
        for (piece, from, is_late) in &given_up {
            self.orders.remove(*piece, from);
            if let Source::Parent(node) = from {
                self.parents.ended(node);
                if *is_late {
                    self.parents.failed(node, now);
                }
            }
        }
        given_up.into_iter().map(|(piece, from, _)| (piece, from)).collect()
    }

    /// What to tell the home now, if it is time. `uploads` are pieces that this peer sends to others now.
    /// [`Planner::tracked`] or [`Planner::untracked`] is to follow.
    pub fn report(&mut self, now: Duration, uploads: u32) -> Option<Report> {
        let due = self.report_due()?;
        if now < due {
            return None;
        }
        let window = self.demand.reported(&self.have, self.reports.turn());
        let mut fetching = Pieces::new(self.have.piece_count());
        self.orders.iter().for_each(|order| fetching.add(PieceRun { first: order.piece, count: 1 }));
        let report = Report {
            have: self.have.runs(),
            fetching: fetching.runs(),
            uploads,
            window: PieceRun { first: window.start, count: window.end - window.start },
        };
        self.reports.sent(window, self.have.len(), now);
        Some(report)
    }

    fn report_due(&self) -> Option<Duration> {
        let is_met = self.demand.is_met(&self.have);
        if self.goes_direct() || (is_met && self.have.is_empty()) {
            return None;
        }
        Some(self.reports.due(self.have.len(), self.is_hungry, is_met))
    }

    /// When `overdue`, `report` and `plan` may have something to say though nothing happened. `None`: not before the
    /// next event.
    pub fn next_wake(&self, now: Duration) -> Option<Duration> {
        let urgent = self.demand.urgent(&self.have);
        let patience = urgent.iter().map(|waits| self.home_directly_at(*waits, now));
        let pause = self.is_hungry.then(|| self.parents.next_pause_end(now)).flatten();
        let tick = (!self.demand.is_met(&self.have)).then_some(now + SWARM_TICK);
        let later = patience.chain(pause).chain([self.home_paused_until]).filter(|time| *time > now);
        later.chain(self.report_due().map(|due| due.max(now))).chain(self.orders.next_check(now)).chain(tick).min()
    }

    /// Times that a parent was given up because of what it did, for the metrics.
    pub fn avoided(&self) -> u64 {
        self.parents.avoided()
    }

    /// How often the home failed since it last gave a piece. The caller decides when it is taken for lost.
    pub fn home_failures(&self) -> u32 {
        self.home_failures
    }

    /// Orders in flight.
    pub fn in_flight(&self) -> usize {
        self.orders.len()
    }
}
