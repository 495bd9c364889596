//! Counts of what the backend client does: requests by operation and outcome, and bytes.
//!
//! Owns a few atomics; the metrics registry reads them when it is asked. Attempts are counted, not calls: a read that
//! is tried three times counts three.

use std::sync::atomic::{AtomicU64, Ordering};

use super::error::{BackendErrorKind, Operation};

/// Outcomes in the order they are counted; the first is success.
const OUTCOMES: [&str; 16] = [
    "ok",
    "not_found",
    "no_such_bucket",
    "no_such_upload",
    "access_denied",
    "clock_skew",
    "invalid_argument",
    "precondition_failed",
    "version_changed",
    "range_not_satisfiable",
    "bucket_exists",
    "slow_down",
    "unavailable",
    "timeout",
    "bad_answer",
    "internal",
];

/// The counters.
#[derive(Default)]
pub struct BackendStats {
    requests: [[AtomicU64; OUTCOMES.len()]; Operation::ALL.len()],
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

impl BackendStats {
    /// Requests so far, as (operation, outcome, count), without those that never happened.
    pub fn requests(&self) -> Vec<(&'static str, &'static str, u64)> {
        let mut found = Vec::new();
        for operation in Operation::ALL {
            for (outcome, count) in OUTCOMES.iter().zip(&self.requests[operation as usize]) {
                let count = count.load(Ordering::Relaxed);
                if count > 0 {
                    found.push((operation.name(), *outcome, count));
                }
            }
        }
        found
    }

    /// Bytes of object data received.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// Bytes of object data sent.
    pub fn bytes_written(&self) -> u64 {
        self.bytes_written.load(Ordering::Relaxed)
    }

    pub(super) fn count(&self, operation: Operation, failure: Option<BackendErrorKind>) {
        let name = failure.map_or("ok", BackendErrorKind::name);
        let outcome = OUTCOMES.iter().position(|outcome| *outcome == name).expect("every outcome has a column");
        self.requests[operation as usize][outcome].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_read(&self, bytes: usize) {
        self.bytes_read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn add_written(&self, bytes: u64) {
        self.bytes_written.fetch_add(bytes, Ordering::Relaxed);
    }
}
