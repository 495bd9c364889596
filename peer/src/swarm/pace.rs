//! How many pieces to ask one source for at once: as many as keep it busy, and no more.
//!
//! A source whose link is full gives two pieces at once in twice the time of one: nothing is gained, and each of them can
//! be passed on only later. One that is far away, or gives every connection a share of its own, gives more the more it is
//! asked for. Which it is shows in the time of a piece against the shortest one seen: what is over it was spent in line.

use std::time::Duration;

use crate::limits::{HOME_AHEAD_PIECES, PACE_LINE_MAX, PACE_LINE_MIN};

/// How many at once. Begins with one.
#[derive(Clone, Debug)]
pub struct Pace {
    at_once: f64,
    shortest: Option<Duration>,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { at_once: 1.0, shortest: None }
    }
}

impl Pace {
    /// How many at once, at least one.
    pub fn at_once(&self) -> usize {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to a small maximum")]
        let whole = self.at_once as usize;
        whole
    }

    /// A piece came, in this time.
    pub fn took(&mut self, time: Duration) {
        // What was shortest once need not be possible any more; of a piece that came alone it is known.
        let ages = if self.at_once() == 1 { 4 } else { u32::MAX };
        let shortest = self.shortest.map_or(time, |shortest| time.min(shortest + shortest / ages));
        self.shortest = Some(shortest);
        let in_line = self.at_once * (1.0 - shortest.as_secs_f64() / time.as_secs_f64().max(1e-6));
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        let most = HOME_AHEAD_PIECES as f64;
        if in_line < PACE_LINE_MIN {
            self.at_once = (self.at_once + 1.0).min(most);
        } else if in_line > PACE_LINE_MAX {
            self.at_once = (self.at_once - 0.5).max(1.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pace after a hundred pieces, each of which takes what `time` says with so many at once.
    fn after(time: impl Fn(usize) -> Duration) -> usize {
        let mut pace = Pace::default();
        for _ in 0..100 {
            pace.took(time(pace.at_once()));
        }
        pace.at_once()
    }

    #[test]
    fn a_full_link_is_asked_for_two_at_once() {
        let each = Duration::from_millis(168);
        assert_eq!(after(|at_once| each * u32::try_from(at_once).expect("few")), 2);
    }

    #[test]
    fn connections_with_a_share_of_their_own_are_all_used() {
        assert_eq!(after(|_| Duration::from_millis(900)), HOME_AHEAD_PIECES);
    }

    #[test]
    fn a_source_far_away_is_asked_for_as_many_as_are_on_the_way() {
        // The answer begins after four times what a piece takes on the link.
        let (way, each) = (Duration::from_millis(160), Duration::from_millis(40));
        let at_once = after(|at_once| way.max(each * u32::try_from(at_once).expect("few")) + each);
        assert!((4..=7).contains(&at_once), "{at_once}");
    }

    #[test]
    fn a_source_that_became_slower_is_still_asked() {
        let mut pace = Pace::default();
        pace.took(Duration::from_millis(1));
        for _ in 0..1000 {
            pace.took(Duration::from_secs(1));
        }
        assert!(pace.at_once() >= 2, "one at a time leaves the way there empty in between");
    }
}
