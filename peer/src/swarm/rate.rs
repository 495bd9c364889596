//! How often something happens: a count that fades.

use std::time::Duration;

/// After this time an event counts for a third of what it counted.
const FADES_IN: Duration = Duration::from_millis(250);

/// Events a second, of late.
#[derive(Clone, Debug, Default)]
pub struct Rate {
    faded: f64,
    at: Duration,
}

impl Rate {
    /// One event.
    pub fn add(&mut self, now: Duration) {
        self.faded = self.per_second(now) * FADES_IN.as_secs_f64() + 1.0;
        self.at = now;
    }

    /// How many a second, as of now.
    pub fn per_second(&self, now: Duration) -> f64 {
        let age = now.saturating_sub(self.at).as_secs_f64() / FADES_IN.as_secs_f64();
        self.faded * (-age).exp() / FADES_IN.as_secs_f64()
    }

    /// How many in a span of time, at this rate.
    pub fn within(&self, span: Duration, now: Duration) -> usize {
        let many = (self.per_second(now) * span.as_secs_f64()).min(f64::from(u16::MAX));
        // Not negative and at most 65535, so this only rounds down.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded in the line above")]
        let whole = many as usize;
        whole
    }
}
