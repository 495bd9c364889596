//! What readers want: where each is, how far it goes, and since when it waits.

use std::ops::Range;
use std::time::Duration;

use crate::limits::{SWARM_READERS_MAX, SWARM_WINDOW_PIECES};

use crate::swarm::Pieces;

/// The readers of one download.
#[derive(Clone, Debug, Default)]
pub struct Demand {
    readers: Vec<Reader>,
}

#[derive(Clone, Debug)]
struct Reader {
    id: u64,
    /// Its next piece, and the end of what it asks for.
    range: Range<u32>,
    /// When it came to its next piece.
    since: Duration,
}

/// A piece that a reader waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Urgent {
    pub piece: u32,
    pub since: Duration,
}

impl Demand {
    /// A reader is at the start of `range` and goes to its end. `false` when there are too many readers.
    pub fn want(&mut self, id: u64, range: Range<u32>, now: Duration) -> bool {
        if let Some(reader) = self.readers.iter_mut().find(|reader| reader.id == id) {
            if reader.range.start != range.start {
                reader.since = now;
            }
            reader.range = range;
        } else if self.readers.len() < SWARM_READERS_MAX {
            self.readers.push(Reader { id, range, since: now });
        } else {
            return false;
        }
        true
    }

    pub fn leave(&mut self, id: u64) {
        self.readers.retain(|reader| reader.id != id);
    }

    /// What readers wait for, those that wait longest first.
    pub fn urgent(&self, have: &Pieces) -> Vec<Urgent> {
        let waiting =
            self.readers.iter().filter(|reader| !reader.range.is_empty() && !have.contains(reader.range.start));
        let mut urgent: Vec<Urgent> =
            waiting.map(|reader| Urgent { piece: reader.range.start, since: reader.since }).collect();
        urgent.sort_by_key(|urgent| (urgent.since, urgent.piece));
        let mut seen = std::collections::BTreeSet::new();
        urgent.retain(|urgent| seen.insert(urgent.piece));
        urgent
    }

    /// The pieces that are planned now: the window of each reader, as far as it asks, without what is there.
    pub fn missing(&self, have: &Pieces) -> Vec<u32> {
        let mut missing = Vec::new();
        for reader in &self.readers {
            missing.extend(window(&reader.range).filter(|piece| !have.contains(*piece)));
        }
        if self.readers.len() > 1 {
            missing.sort_unstable();
            missing.dedup();
        }
        missing
    }

    /// Whether any reader still lacks a piece of what it asks for.
    pub fn is_met(&self, have: &Pieces) -> bool {
        self.readers.iter().all(|reader| {
            let missing = if reader.range.is_empty() { None } else { have.next_missing(reader.range.start) };
            missing.is_none_or(|piece| piece >= reader.range.end)
        })
    }

    /// The window to ask the home about: that of one reader which lacks something, another one each time.
    pub fn reported(&self, have: &Pieces, turn: usize) -> Range<u32> {
        let count = self.readers.len();
        let mut ranges = (0..count).map(|step| window(&self.readers[(turn + step) % count].range));
        ranges
            .find_map(|range| Some(range.clone().find(|piece| !have.contains(*piece))?..range.end))
            .unwrap_or_default()
    }
}

fn window(range: &Range<u32>) -> Range<u32> {
    range.start..range.end.min(range.start.saturating_add(SWARM_WINDOW_PIECES))
}
