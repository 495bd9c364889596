//! How hard the backend is pushed: how many write-backs run at once, and how many of them may be repetitions. Pure.
//!
//! A backend that asks for fewer requests (429, 503 SlowDown) gets half as many at once, down to one, and none before
//! the time it named; each full round of successes adds one again. Repetitions are paid from a budget that successes
//! fill: while everything fails, few attempts are made, and one entry that always fails takes little from the others.

use std::cell::Cell;

use crate::limits::{
    WRITEBACK_OBJECTS_MAX, WRITEBACK_OUTAGE_FAILURES, WRITEBACK_RETRIES_KEPT_MAX, WRITEBACK_RETRY_INTERVAL,
};
use crate::rt::time::milliseconds;

/// The pace of one shard.
#[derive(Debug)]
pub struct Pace {
    /// Write-backs that may run at once.
    at_once: Cell<usize>,
    /// Successes since `at_once` was changed.
    successes: Cell<usize>,
    /// Nothing is begun before this time (Unix ms).
    closed_until_ms: Cell<u64>,
    /// Repetitions that may be begun.
    retries: Cell<usize>,
    /// When the last one was granted for waiting (Unix ms).
    granted_at_ms: Cell<u64>,
    /// Failures since the last success.
    failures: Cell<u32>,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            at_once: Cell::new(WRITEBACK_OBJECTS_MAX),
            successes: Cell::new(0),
            closed_until_ms: Cell::new(0),
            retries: Cell::new(WRITEBACK_RETRIES_KEPT_MAX),
            granted_at_ms: Cell::new(0),
            failures: Cell::new(0),
        }
    }
}

impl Pace {
    /// Whether one more may begin beside `running` others.
    pub fn may_begin(&self, running: usize, now_ms: u64) -> bool {
        running < self.at_once.get() && self.is_open(now_ms)
    }

    /// Whether the time has come that the backend has named.
    pub fn is_open(&self, now_ms: u64) -> bool {
        now_ms >= self.closed_until_ms.get()
    }

    /// Takes the right to repeat something, if there is one. One comes with each success, and one with each
    /// [`WRITEBACK_RETRY_INTERVAL`].
    pub fn may_repeat(&self, now_ms: u64) -> bool {
        let interval_ms = milliseconds(WRITEBACK_RETRY_INTERVAL);
        if self.retries.get() == 0 && now_ms >= self.granted_at_ms.get().saturating_add(interval_ms) {
            self.granted_at_ms.set(now_ms);
            self.retries.set(1);
        }
        let left = self.retries.get().checked_sub(1);
        left.inspect(|left| self.retries.set(*left)).is_some()
    }

    /// Something could not reach the backend.
    pub fn failed(&self) {
        self.failures.set(self.failures.get().saturating_add(1));
    }

    /// Something has reached the backend. Tells whether that ends an outage.
    pub fn succeeded(&self) -> bool {
        let was_outage = self.failures.replace(0) >= WRITEBACK_OUTAGE_FAILURES;
        self.retries.set((self.retries.get() + 1).min(WRITEBACK_RETRIES_KEPT_MAX));
        self.successes.set(self.successes.get() + 1);
        if self.successes.get() >= self.at_once.get() && self.at_once.get() < WRITEBACK_OBJECTS_MAX {
            self.at_once.set(self.at_once.get() + 1);
            self.successes.set(0);
        }
        was_outage
    }

    /// The backend asks for fewer requests, and for none before `until_ms`.
    pub fn slow_down(&self, until_ms: u64, now_ms: u64) {
        // Those that ran at the same time say the same thing: only the first one of them counts.
        if now_ms >= self.closed_until_ms.get() {
            self.at_once.set((self.at_once.get() / 2).max(1));
            self.successes.set(0);
        }
        self.closed_until_ms.set(until_ms.max(self.closed_until_ms.get()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_that_asks_for_less_gets_less_and_later_more_again() {
        let pace = Pace::default();
        assert!(pace.may_begin(WRITEBACK_OBJECTS_MAX - 1, 0) && !pace.may_begin(WRITEBACK_OBJECTS_MAX, 0));
        pace.slow_down(2000, 1000);
        pace.slow_down(2500, 1001);
        assert_eq!(pace.at_once.get(), WRITEBACK_OBJECTS_MAX / 2, "one request for less, however many carried it");
        assert!(!pace.may_begin(0, 2499) && pace.may_begin(0, 2500), "and none before the time");
        for round in 0..10 {
            pace.slow_down(3000 + round, 3000 + round);
        }
        assert_eq!(pace.at_once.get(), 1, "never none at all");
        for _ in 0..1000 {
            pace.succeeded();
        }
        assert_eq!(pace.at_once.get(), WRITEBACK_OBJECTS_MAX);
    }

    #[test]
    fn repetitions_are_few_while_nothing_succeeds() {
        let pace = Pace::default();
        let interval_ms = milliseconds(WRITEBACK_RETRY_INTERVAL);
        let granted = (0..10_000).filter(|_| pace.may_repeat(5)).count();
        assert!(granted <= WRITEBACK_RETRIES_KEPT_MAX + 1, "{granted} at once");
        let later = (0..100).filter(|tick| pace.may_repeat(6 + tick * interval_ms / 10)).count();
        assert!((5..=12).contains(&later), "{later} in ten intervals");
        pace.succeeded();
        assert!(pace.may_repeat(6 + 9 * interval_ms) && !pace.may_repeat(6 + 9 * interval_ms));
    }

    #[test]
    fn a_success_after_failures_in_a_row_ends_an_outage() {
        let pace = Pace::default();
        for failures in 0..2 * WRITEBACK_OUTAGE_FAILURES {
            (0..failures).for_each(|_| pace.failed());
            assert_eq!(pace.succeeded(), failures >= WRITEBACK_OUTAGE_FAILURES);
        }
    }
}
