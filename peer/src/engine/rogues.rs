//! Peers that a home leaves alone for a while, because what they sent was wrong, nothing, or too slow. Bounded.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::limits::{ROGUE_AVOIDED, ROGUES_MAX};

/// Who is left alone, and since when.
#[derive(Default)]
pub struct Rogues(HashMap<Arc<str>, Duration>);

impl Rogues {
    /// This node is of no use now.
    pub fn note(&mut self, node: &Arc<str>, now: Duration) {
        if self.0.len() >= ROGUES_MAX {
            self.0.retain(|_, since| now < *since + ROGUE_AVOIDED);
        }
        if self.0.len() < ROGUES_MAX {
            self.0.insert(node.clone(), now);
        }
    }

    /// Whether a node is not to be asked.
    pub fn is_avoided(&self, node: &str, now: Duration) -> bool {
        self.0.get(node).is_some_and(|since| now < *since + ROGUE_AVOIDED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rogue_is_left_alone_for_a_while() {
        let mut rogues = Rogues::default();
        let at = Duration::from_secs;
        rogues.note(&"a".into(), at(10));
        assert!(rogues.is_avoided("a", at(11)) && !rogues.is_avoided("b", at(11)));
        assert!(!rogues.is_avoided("a", at(10) + ROGUE_AVOIDED));
        for number in 0..2 * ROGUES_MAX {
            rogues.note(&number.to_string().into(), at(10));
        }
        assert_eq!(rogues.0.len(), ROGUES_MAX);
        rogues.note(&"late".into(), at(11) + ROGUE_AVOIDED);
        assert!(rogues.is_avoided("late", at(11) + ROGUE_AVOIDED), "what is over makes room");
    }
}
