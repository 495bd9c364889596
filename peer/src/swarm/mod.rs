//! Who should fetch which piece of a version from whom: plain state and arithmetic.
//!
//! A peer that downloads a version keeps a [`Planner`]; the home of the task keeps a [`Tracker`]. The planner says what
//! to order from whom, when to give an order up, and when to report to the home; the tracker keeps who has what, and
//! answers a report with parents, with how rare the pieces are, and with pieces that this peer should get from the home
//! itself. That last part makes the home's uplink carry each byte about once: each piece goes to one peer first, and
//! that one passes it on (super-seeding).
//!
//! Neither knows a clock, a socket or a source of randomness: time comes as a `Duration` since some start, randomness
//! from a seed number. So thousands of them run in virtual time in tests. Both are bounded by the `SWARM_` lines of
//! `limits`, and take whatever an answer or a report says without believing more of it than they check.

pub mod pace;
pub mod pieces;
pub mod planner;
pub mod random;
pub mod rate;
pub mod tracker;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use dfstore_proto::message::PieceRuns;
use dfstore_proto::object::PieceRun;
use thiserror::Error;

pub use pace::Pace;
pub use pieces::Pieces;
pub use planner::Planner;
pub use tracker::Tracker;

/// Where a piece is fetched.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The home of the task, which gets it from the backend if it must.
    Home,
    /// A peer that has it, by node id.
    Parent(Arc<str>),
}

/// One piece to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The piece.
    pub piece: u32,
    /// From whom.
    pub from: Source,
}

/// Why a piece did not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum Failure {
    /// The source does not have it.
    #[error("the source does not have the piece")]
    Missing,
    /// What came is not what the checksum says.
    #[error("the bytes of the piece are wrong")]
    Wrong,
    /// The source cannot be reached, or the connection broke.
    #[error("the source cannot be reached")]
    Unreachable,
    /// The source has too much to do.
    #[error("the source is busy")]
    Busy,
}

impl Failure {
    /// Whether the same source may give the piece later.
    pub fn is_retryable(self) -> bool {
        matches!(self, Failure::Unreachable | Failure::Busy)
    }
}

/// What a peer tells the home: the part of TRACK that changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What it has.
    pub have: PieceRuns,
    /// What it is fetching.
    pub fetching: PieceRuns,
    /// Pieces it sends to others now.
    pub uploads: u32,
    /// The pieces it wants next.
    pub window: PieceRun,
}
