//! What a proxy does at the moment, and what it has done: shared by all of its connections.
//!
//! Tests change it from their thread, pumps look at it before they forward something. Nothing in here can fail.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::{Fault, Rule, Way, WireRule};

/// What holds for everything that is forwarded.
#[derive(Clone, Debug, Default)]
pub(super) struct Conditions {
    pub(super) target: Option<SocketAddr>,
    pub(super) delay: Duration,
    pub(super) bytes_per_second: Option<u64>,
    pub(super) cuts: u64,
    to_peer_stopped: bool,
    from_peer_stopped: bool,
}

impl Conditions {
    /// Whether nothing is forwarded this way.
    pub(super) fn stopped(&mut self, way: Way) -> &mut bool {
        match way {
            Way::ToPeer => &mut self.to_peer_stopped,
            Way::FromPeer => &mut self.from_peer_stopped,
        }
    }

    fn is_stopped(&self, way: Way) -> bool {
        match way {
            Way::ToPeer => self.to_peer_stopped,
            Way::FromPeer => self.from_peer_stopped,
        }
    }
}

/// Conditions, rules and counts.
#[derive(Default)]
pub(super) struct State {
    conditions: watch::Sender<Conditions>,
    rules: Mutex<Vec<Rule>>,
    /// When the link is free again, in each direction.
    free_at: [Mutex<Option<Instant>>; 2],
    connections: AtomicU64,
    pieces: AtomicU64,
    spoiled: AtomicU64,
    /// And whether it is over once it has bitten.
    wire_rule: Mutex<Option<(WireRule, bool)>>,
    /// Most frames of one connection, in each direction.
    frames: [AtomicU64; 2],
}

impl State {
    pub(super) fn change(&self, change: impl FnOnce(&mut Conditions)) {
        self.conditions.send_modify(change);
    }

    pub(super) fn watch(&self) -> watch::Receiver<Conditions> {
        self.conditions.subscribe()
    }

    pub(super) fn set_rules(&self, rules: Vec<Rule>) {
        *lock(&self.rules) = rules;
    }

    pub(super) fn count_connection(&self) {
        self.connections.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn connections(&self) -> u64 {
        self.connections.load(Ordering::SeqCst)
    }

    pub(super) fn pieces(&self) -> u64 {
        self.pieces.load(Ordering::SeqCst)
    }

    pub(super) fn spoiled(&self) -> u64 {
        self.spoiled.load(Ordering::SeqCst)
    }

    /// Counts a piece; gives what goes wrong with it.
    pub(super) fn fault_of_next_piece(&self) -> Option<Fault> {
        self.pieces.fetch_add(1, Ordering::SeqCst);
        let mut rules = lock(&self.rules);
        let rule = rules.iter_mut().find(|rule| rule.times > 0)?;
        if rule.skip > 0 {
            rule.skip -= 1;
            return None;
        }
        rule.times -= 1;
        self.spoiled.fetch_add(1, Ordering::SeqCst);
        Some(rule.fault)
    }

    pub(super) fn set_wire_rule(&self, rule: Option<(WireRule, bool)>) {
        *lock(&self.wire_rule) = rule;
    }

    /// Whether the rule of a connection still holds at the frame that it names; it is counted then.
    pub(super) fn bites(&self) -> bool {
        let mut rule = lock(&self.wire_rule);
        let Some((_, is_single)) = *rule else { return false };
        if is_single {
            *rule = None;
        }
        self.spoiled.fetch_add(1, Ordering::SeqCst);
        true
    }

    /// What goes wrong with a connection that begins now.
    pub(super) fn next_wire_rule(&self) -> Option<WireRule> {
        lock(&self.wire_rule).map(|(rule, _)| rule)
    }

    pub(super) fn note_frames(&self, way: Way, frames: u64) {
        self.frames[usize::from(way == Way::FromPeer)].fetch_max(frames, Ordering::SeqCst);
    }

    pub(super) fn frames(&self, way: Way) -> u64 {
        self.frames[usize::from(way == Way::FromPeer)].load(Ordering::SeqCst)
    }

    /// Waits for the delay of a frame.
    pub(super) async fn frame_delay(&self) {
        let delay = self.conditions.borrow().delay;
        if !delay.is_zero() {
            sleep(delay).await;
        }
    }

    /// Waits until this many bytes may be forwarded this way.
    pub(super) async fn until_free(&self, way: Way, bytes: usize) {
        let mut watched = self.watch();
        // Closed only when the proxy is gone.
        let _ = watched.wait_for(|conditions| !conditions.is_stopped(way)).await;
        let Some(rate) = watched.borrow().bytes_per_second else { return };
        let takes = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        let until = {
            let mut free_at = lock(&self.free_at[usize::from(way == Way::FromPeer)]);
            let until = free_at.map_or_else(Instant::now, |at| at.max(Instant::now())) + takes;
            *free_at = Some(until);
            until
        };
        sleep_until(until).await;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
