//! Who else holds a version, as its home knows: those who keep all of it, and the table of those who download it.
//!
//! Keepers said that they hold the whole version durably; they are remembered as long as the version is. The table
//! ([`Tracker`]) is made with the first report of a download and forgets who falls silent.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use dfstore_proto::limits::PARENTS_MAX;
use dfstore_proto::message::{NodeRole, Track, Tracked};

use crate::limits::{HOLDERS_TIDY_PERIOD, KEEPERS_MAX};
use crate::membership::Members;
use crate::swarm::{Report, Tracker};

/// What the home of a task knows about the holders of one version.
#[derive(Default)]
pub struct Holders {
    keepers: BTreeSet<Arc<str>>,
    tracker: Option<Tracker>,
    tidied_at: Duration,
}

impl Holders {
    /// A node holds all of the version, durably.
    pub fn note_whole(&mut self, node: &str, now: Duration) {
        if self.keepers.len() < KEEPERS_MAX || self.keepers.contains(node) {
            self.keepers.insert(node.into());
        }
        if let Some(tracker) = &mut self.tracker {
            tracker.note_whole(node, now);
        }
    }

    /// A node has let its copy go.
    pub fn forget(&mut self, node: &str) {
        self.keepers.remove(node);
    }

    /// Whether a node said that it holds all of the version, durably.
    pub fn is_keeper(&self, node: &str) -> bool {
        self.keepers.contains(node)
    }

    /// Nodes that hold all of the version, durably; some of them if there are many.
    pub fn keepers(&self) -> Vec<String> {
        self.keepers.iter().take(PARENTS_MAX).map(|node| node.to_string()).collect()
    }

    /// Live keepers.
    pub fn live_keepers(&self, members: &Members) -> usize {
        self.keepers.iter().filter(|node| members.find(node).is_some()).count()
    }

    /// A peer that downloads the version says what it has and is told from whom to get the rest.
    pub fn track(&mut self, pieces: u32, asked: &Track, members: &Members, now: Duration) -> Tracked {
        let seed = u64::from_le_bytes(asked.task.as_bytes()[..8].try_into().expect("eight of 32 bytes"));
        let is_new = self.tracker.is_none();
        let tracker = self.tracker.get_or_insert_with(|| Tracker::new(pieces, seed));
        if is_new || now >= self.tidied_at + HOLDERS_TIDY_PERIOD {
            self.tidied_at = now;
            tracker.forget_silent(now);
            let gone: Vec<Arc<str>> = tracker.names().filter(|node| members.find(node).is_none()).cloned().collect();
            gone.iter().for_each(|node| tracker.left(node));
            for keeper in self.keepers.iter().filter(|node| members.find(node).is_some() && **node != members.me) {
                tracker.note_whole(keeper, now);
            }
        }
        let report = Report {
            have: asked.have.clone(),
            fetching: asked.fetching.clone(),
            uploads: asked.uploads,
            window: asked.window,
        };
        tracker.track(&asked.node, &report, now)
    }

    /// Whether a peer that is no seed holds all of the version.
    pub fn is_held_by_a_peer(&self, members: &Members) -> bool {
        let tracked = self.tracker.iter().flat_map(Tracker::whole);
        self.keepers
            .iter()
            .chain(tracked)
            .any(|node| members.find(node).is_some_and(|node| node.role == NodeRole::Peer))
    }

    /// Some nodes that have a piece, those that keep all first.
    pub fn having(&self, piece: u32) -> Vec<Arc<str>> {
        let mut found: Vec<Arc<str>> = self.keepers.iter().cloned().collect();
        let tracked = self.tracker.iter().flat_map(|tracker| tracker.recent_holders(piece));
        found.extend(tracked.filter(|node| !self.keepers.contains(node)));
        found
    }
}
