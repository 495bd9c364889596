//! Who has which pieces: TRACK tells the home and asks it whom to fetch from, FETCH fetches.

use serde::{Deserialize, Serialize};

use super::PieceRuns;
use crate::error::FieldError;
use crate::ids::TaskId;
use crate::limits::{COUNTS_MAX, NAME_BYTES_MAX, PARENTS_MAX, SUGGESTED_MAX};
use crate::message::Bounded;
use crate::object::PieceRun;
use crate::wire::{self, filled, number_at_most};

/// Tells the home what the sender has of a version, and asks from whom to get the rest. Answered with TRACKED.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Track {
    /// The task.
    pub task: TaskId,
    /// The version.
    pub generation: u64,
    /// Who sends this.
    pub node: String,
    /// What it has.
    pub have: PieceRuns,
    /// What it is fetching.
    pub fetching: PieceRuns,
    /// Pieces it sends to others now.
    pub uploads: u32,
    /// The pieces it wants next: the first one, and how many.
    pub window: PieceRun,
}

impl Bounded for Track {
    fn check(&self) -> Result<(), FieldError> {
        filled("node", &self.node, NAME_BYTES_MAX)?;
        self.have.check("have")?;
        self.fetching.check("fetching")?;
        number_at_most("window", self.window.count.into(), COUNTS_MAX as u64)?;
        let end = self.window.first.checked_add(self.window.count);
        end.map(|_| ()).ok_or(FieldError::Invalid("window"))
    }
}

/// A peer that has pieces of a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its node id.
    pub node: String,
    /// What it has.
    pub have: PieceRuns,
    /// Pieces it sends to others now, as far as the home knows.
    pub uploads: u32,
}

impl Holder {
    fn check(&self) -> Result<(), FieldError> {
        filled("node", &self.node, NAME_BYTES_MAX)?;
        self.have.check("have")
    }
}

/// Answers TRACK.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracked {
    /// Peers to fetch from.
    #[serde(deserialize_with = "wire::bounded::<_, _, PARENTS_MAX>")]
    pub parents: Vec<Holder>,
    /// For each piece of the window, how many peers have it or are fetching it.
    #[serde(deserialize_with = "wire::bounded::<_, _, COUNTS_MAX>")]
    pub counts: Vec<u8>,
    /// Pieces of the window that the sender should fetch from the home itself: those that fewest have. They count as
    /// being fetched by the sender from now on.
    #[serde(deserialize_with = "wire::bounded::<_, _, SUGGESTED_MAX>")]
    pub suggested: Vec<u32>,
    /// The sender should ask again only after so many milliseconds, unless it has something rare to tell: so the home
    /// decides how many of these it gets, whatever the number of peers.
    pub again_ms: u32,
}

impl Bounded for Tracked {
    fn check(&self) -> Result<(), FieldError> {
        number_at_most("parents", self.parents.len() as u64, PARENTS_MAX as u64)?;
        number_at_most("counts", self.counts.len() as u64, COUNTS_MAX as u64)?;
        number_at_most("suggested", self.suggested.len() as u64, SUGGESTED_MAX as u64)?;
        self.suggested.iter().try_for_each(|&number| check_number("suggested", number))?;
        self.parents.iter().try_for_each(Holder::check)
    }
}

/// Asks for one piece. Answered like READ: a PIECE frame and READ_END.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// The task.
    pub task: TaskId,
    /// The version.
    pub generation: u64,
    /// The piece.
    pub number: u32,
    /// Only if the peer has it; it asks nobody else for it.
    pub local_only: bool,
}

impl Bounded for Fetch {
    fn check(&self) -> Result<(), FieldError> {
        check_number("number", self.number)
    }
}

/// The end of a run is a number too, so the highest one names no piece.
fn check_number(field: &'static str, number: u32) -> Result<(), FieldError> {
    if number == u32::MAX { Err(FieldError::Invalid(field)) } else { Ok(()) }
}
