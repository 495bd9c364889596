//! The orders of a download that are in flight, and how long orders take.

use std::collections::VecDeque;
use std::time::Duration;

use crate::limits::{SWARM_JUDGE_AFTER, SWARM_RATE_SPREAD, SWARM_RATES_KEPT, SWARM_SILENCE_MAX, SWARM_SLOW_FACTOR};
use crate::swarm::Source;

/// An order in flight.
#[derive(Clone, Debug)]
pub struct InFlight {
    /// The piece.
    pub piece: u32,
    /// From whom.
    pub from: Source,
    /// When it was ordered.
    pub ordered: Duration,
    /// When a byte last came.
    progressed: Duration,
    bytes: u64,
}

/// Orders in flight, and a memory of those that went well.
#[derive(Clone, Debug, Default)]
pub struct Orders {
    in_flight: Vec<InFlight>,
    /// Bytes a second, and time, of orders that went well of late.
    samples: VecDeque<(f64, Duration)>,
    rate_median: Option<f64>,
    time_median: Option<Duration>,
}

impl Orders {
    /// How many are in flight.
    pub fn len(&self) -> usize {
        self.in_flight.len()
    }

    /// An order goes out.
    pub fn add(&mut self, piece: u32, from: Source, now: Duration) {
        self.in_flight.push(InFlight { piece, from, ordered: now, progressed: now, bytes: 0 });
    }

    /// An order ends.
    pub fn remove(&mut self, piece: u32, from: &Source) -> Option<InFlight> {
        let at = self.in_flight.iter().position(|order| order.piece == piece && order.from == *from)?;
        Some(self.in_flight.swap_remove(at))
    }

    /// So many more bytes of an order came.
    pub fn progress(&mut self, piece: u32, from: &Source, bytes: u64, now: Duration) {
        if let Some(order) = self.in_flight.iter_mut().find(|order| order.piece == piece && order.from == *from) {
            (order.progressed, order.bytes) = (now, order.bytes.saturating_add(bytes));
        }
    }

    /// All in flight.
    pub fn iter(&self) -> impl Iterator<Item = &InFlight> {
        self.in_flight.iter()
    }

    /// How often a piece is ordered (twice when the first order is stuck), and the first order of it.
    pub fn of(&self, piece: u32) -> (usize, Option<&InFlight>) {
        let mut orders = self.in_flight.iter().filter(|order| order.piece == piece);
        let first = orders.next();
        (usize::from(first.is_some()) + orders.count(), first)
    }

    /// Whether a piece is ordered.
    pub fn has(&self, piece: u32) -> bool {
        self.in_flight.iter().any(|order| order.piece == piece)
    }

    /// Remembers how an order went.
    pub fn learn(&mut self, bytes: u64, took: Duration) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rate need not be exact")]
        let rate = bytes as f64 / took.as_secs_f64().max(1e-6);
        if self.samples.len() >= SWARM_RATES_KEPT {
            self.samples.pop_front();
        }
        self.samples.push_back((rate, took));
        let middle = self.samples.len() / 2;
        let mut rates: Vec<f64> = self.samples.iter().map(|(rate, _)| *rate).collect();
        let mut times: Vec<Duration> = self.samples.iter().map(|(_, time)| *time).collect();
        self.rate_median = Some(*rates.select_nth_unstable_by(middle, f64::total_cmp).1);
        self.time_median = Some(*times.select_nth_unstable(middle).1);
        rate
    }

    /// A parent that gives less than this for each order is used only when there is no other.
    pub fn rate_good(&self) -> f64 {
        self.rate_median.map_or(0.0, |median| median / f64::from(SWARM_RATE_SPREAD))
    }

    /// An order that is older than this is taken for stuck.
    pub fn stuck_after(&self) -> Duration {
        self.time_median.map_or(SWARM_SILENCE_MAX, |time| (time * 3).max(SWARM_JUDGE_AFTER))
    }

    /// Whether a parent gave nothing of an order that was taken for stuck for that, ordered again, and came from elsewhere.
    pub fn was_overtaken(&self, order: &InFlight, now: Duration) -> bool {
        order.bytes == 0 && now.saturating_sub(order.ordered) >= self.stuck_after()
    }

    /// Whether a parent is too slow with an order, or silent.
    pub fn is_overdue(&self, order: &InFlight, now: Duration) -> bool {
        if now.saturating_sub(order.progressed) >= SWARM_SILENCE_MAX {
            return true;
        }
        let age = now.saturating_sub(order.ordered);
        #[expect(clippy::cast_precision_loss, reason = "a rate need not be exact")]
        let rate = order.bytes as f64 / age.as_secs_f64().max(1e-6);
        // Without a byte it may stand in line: then only silence counts.
        order.bytes > 0
            && age >= SWARM_JUDGE_AFTER
            && self.rate_median.is_some_and(|median| rate * f64::from(SWARM_SLOW_FACTOR) < median)
    }

    /// When the next order has to be looked at because nothing came.
    pub fn next_check(&self, now: Duration) -> Option<Duration> {
        let silent = self.in_flight.iter().map(|order| order.progressed + SWARM_SILENCE_MAX);
        let stuck = self.in_flight.iter().map(|order| order.ordered + self.stuck_after());
        silent.chain(stuck).filter(|check| *check > now).min()
    }
}
