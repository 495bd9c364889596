//! When to try again: a bounded number of times, with growing pauses, only what may heal.

use std::time::Duration;

use crate::client::error::ClientError;

/// Failures in a row after which a request or a transfer gives up.
pub const FAILURES_MAX: u32 = 8;
const DELAY_FIRST: Duration = Duration::from_millis(100);
const DELAY_MAX: Duration = Duration::from_secs(5);
/// A peer may ask for a longer pause than we would make, up to this.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);

/// Counts failures in a row.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// No failure so far.
    pub fn new() -> Backoff {
        Backoff::default()
    }

    /// How long to wait after this failure; `None` when it is final or one too many.
    pub fn next(&mut self, error: &ClientError) -> Option<Duration> {
        self.failures += 1;
        if !error.is_retryable() || self.failures >= FAILURES_MAX {
            return None;
        }
        let own = DELAY_FIRST.saturating_mul(1 << (self.failures - 1)).min(DELAY_MAX);
        let asked = error.retry_after_ms().map(|ms| Duration::from_millis(ms.into()).min(RETRY_AFTER_MAX));
        Some(own.max(asked.unwrap_or_default()))
    }

    /// Something went well: the row is over.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfstore_proto::error::{ErrorCode, ErrorReply};

    #[test]
    fn gives_up_after_enough_failures_and_at_once_on_final_ones() {
        let refused = |code| ClientError::Refused(ErrorReply::new(code, "no"));
        let mut backoff = Backoff::new();
        let delays: Vec<_> = std::iter::from_fn(|| backoff.next(&refused(ErrorCode::BackendTimeout))).collect();
        assert_eq!(delays.len() + 1, FAILURES_MAX as usize);
        assert!(delays.is_sorted() && delays[0] == DELAY_FIRST);
        assert!(Backoff::new().next(&refused(ErrorCode::NotFound)).is_none());
    }

    #[test]
    fn waits_as_long_as_the_peer_asks_within_reason() {
        let busy = |ms| ClientError::Refused(ErrorReply::new(ErrorCode::Busy, "no").with_retry_after_ms(ms));
        assert_eq!(Backoff::new().next(&busy(700)), Some(Duration::from_millis(700)));
        assert_eq!(Backoff::new().next(&busy(u32::MAX)), Some(RETRY_AFTER_MAX));
    }
}
