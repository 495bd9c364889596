//! When to report to the home: at once when there is nothing to do, soon when there is something rare to tell, else
//! as often as the home wants.

use std::ops::Range;
use std::time::Duration;

use crate::limits::{SWARM_REPORT_IDLE, SWARM_REPORT_MAX, SWARM_REPORT_MIN, SWARM_REPORT_PERIOD, SWARM_REPORT_TIMEOUT};

/// Reports of one download.
#[derive(Clone, Debug, Default)]
pub struct Reports {
    /// When the last one was sent, and whether its answer is still to come.
    sent: Option<Duration>,
    is_awaited: bool,
    is_answered: bool,
    /// The window it was about.
    window: Range<u32>,
    /// How many pieces were there then.
    told: u32,
    /// Pieces came, or were lost, that the home does not know of.
    has_news: bool,
    /// Among them some that hardly anybody else has.
    has_rare_news: bool,
    /// How long the home wants to be left alone.
    again: Duration,
    count: usize,
}

impl Reports {
    pub fn arrived(&mut self, is_rare: bool) {
        self.has_news = true;
        self.has_rare_news |= is_rare;
    }

    pub fn lost(&mut self) {
        self.has_news = true;
        self.has_rare_news = true;
    }

    /// A number that grows with each report.
    pub fn turn(&self) -> usize {
        self.count
    }

    /// Whether the home ever answered.
    pub fn is_answered(&self) -> bool {
        self.is_answered
    }

    pub fn again(&self) -> Duration {
        self.again
    }

    /// When the next one is due. With few pieces each one is much; later only a growth by half is worth a report of
    /// its own, so that one download makes few of these.
    pub fn due(&self, have: u32, is_hungry: bool, is_met: bool) -> Duration {
        let Some(sent) = self.sent else { return Duration::ZERO };
        if self.is_awaited {
            return sent + SWARM_REPORT_TIMEOUT;
        }
        let again = self.again.max(SWARM_REPORT_MIN);
        let has_grown = self.has_news && have > self.told + self.told / 2;
        let pause = if self.has_rare_news || has_grown {
            SWARM_REPORT_MIN
        } else if self.has_news || is_hungry {
            again
        } else if is_met {
            SWARM_REPORT_IDLE
        } else {
            again.max(SWARM_REPORT_PERIOD)
        };
        sent + pause
    }

    pub fn sent(&mut self, window: Range<u32>, have: u32, now: Duration) {
        (self.sent, self.is_awaited, self.window, self.told) = (Some(now), true, window, have);
        (self.has_news, self.has_rare_news) = (false, false);
        self.count = self.count.wrapping_add(1);
    }

    /// The answer came; the window it is about.
    pub fn answered(&mut self, again_ms: u32) -> Range<u32> {
        (self.is_awaited, self.is_answered) = (false, true);
        self.again = Duration::from_millis(again_ms.into()).min(SWARM_REPORT_MAX);
        self.window.clone()
    }

    /// There will be no answer: what was told may have been in vain.
    pub fn lost_on_the_way(&mut self, now: Duration) {
        (self.sent, self.is_awaited, self.has_news) = (Some(now), false, true);
        self.again = (self.again * 2).clamp(SWARM_REPORT_MIN, SWARM_REPORT_MAX);
    }
}
