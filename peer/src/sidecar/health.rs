//! What the process says about its own state at `/healthy` and `/readyz`.
//!
//! Owns a few atomics that any thread may set and the admin listener reads; nothing in here can fail. *Healthy* means
//! that the process answers at all, *ready* that it should be given work. An unreachable backend leaves a peer ready,
//! because it serves what it has and takes asynchronous writes; it is reported in the text.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

/// Where the process stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The stores are being opened.
    Starting = 0,
    /// Requests are served.
    Ready = 1,
    /// Requests in flight are being finished; no new ones are taken.
    Draining = 2,
}

/// The shared state. Cloning gives another handle to the same one.
#[derive(Clone, Default)]
pub struct Health(Arc<State>);

#[derive(Default)]
struct State {
    phase: AtomicU8,
    store_poisoned: AtomicBool,
    backend_unreachable: AtomicBool,
}

impl Health {
    /// A process that is starting.
    pub fn new() -> Health {
        Health::default()
    }

    /// Says where the process stands.
    pub fn set_phase(&self, phase: Phase) {
        self.0.phase.store(phase as u8, Ordering::Release);
    }

    /// Where the process stands.
    pub fn phase(&self) -> Phase {
        match self.0.phase.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Ready,
            _ => Phase::Draining,
        }
    }

    /// A failed sync or commit: the store takes no more writes until the process is started again.
    pub fn poison_store(&self) {
        self.0.store_poisoned.store(true, Ordering::Release);
    }

    /// Whether the store takes no more writes.
    pub fn store_poisoned(&self) -> bool {
        self.0.store_poisoned.load(Ordering::Acquire)
    }

    /// Whether the last request to the backend got any answer.
    pub fn set_backend_reachable(&self, reachable: bool) {
        self.0.backend_unreachable.store(!reachable, Ordering::Release);
    }

    /// Whether the last request to the backend got any answer; `true` before the first.
    pub fn backend_reachable(&self) -> bool {
        !self.0.backend_unreachable.load(Ordering::Acquire)
    }

    /// Whether the process should be given work.
    pub fn is_ready(&self) -> bool {
        self.phase() == Phase::Ready && !self.store_poisoned()
    }

    /// One line for people: the state and what is wrong.
    pub fn describe(&self) -> String {
        let mut text = match self.phase() {
            Phase::Starting => "starting".to_owned(),
            Phase::Ready => "ready".to_owned(),
            Phase::Draining => "draining".to_owned(),
        };
        if self.store_poisoned() {
            text.push_str(", store poisoned: the disk failed, no writes until restart");
        }
        if !self.backend_reachable() {
            text.push_str(", backend unreachable");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_ready_only_between_start_and_drain_with_a_sound_store() {
        let health = Health::new();
        assert!(!health.is_ready());
        health.set_phase(Phase::Ready);
        health.set_backend_reachable(false);
        assert!(health.is_ready(), "cached objects are served while the backend is away");
        assert!(health.describe().contains("backend unreachable"));
        health.poison_store();
        assert!(!health.is_ready());
    }
}
