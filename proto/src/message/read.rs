//! Messages that read an object: open names a version, read asks for its pieces.

use serde::{Deserialize, Serialize};

use super::{Bounded, Target};
use crate::error::FieldError;
use crate::ids::TaskId;
use crate::limits::SOURCES_MAX;
use crate::object::Source;
use crate::wire::{self, number_at_most};

/// Asks for the version that reads should name. Nothing is held open by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// Which object.
    pub target: Target,
    /// Ask the backend whether a clean version is still the newest, whatever the freshness policy says.
    pub no_cache: bool,
}

impl Bounded for Open {
    fn check(&self) -> Result<(), FieldError> {
        self.target.check()
    }
}

/// Asks for consecutive pieces of one version. They may come in any order, each once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// Which object. The peer may need its name to fetch what it does not hold.
    pub target: Target,
    /// Which version, as OPEN_OK said.
    pub generation: u64,
    /// Number of the first piece.
    pub first_piece: u32,
    /// How many pieces. Not zero.
    pub piece_count: u32,
}

impl Read {
    /// Whether the piece with this number is asked for.
    pub fn covers(&self, number: u32) -> bool {
        number.checked_sub(self.first_piece).is_some_and(|index| index < self.piece_count)
    }

    /// The task of the object.
    pub fn task(&self) -> TaskId {
        self.target.task()
    }
}

impl Bounded for Read {
    fn check(&self) -> Result<(), FieldError> {
        self.target.check()?;
        if self.piece_count == 0 {
            return Err(FieldError::Empty("piece_count"));
        }
        self.first_piece.checked_add(self.piece_count).map(|_| ()).ok_or(FieldError::Invalid("piece_count"))
    }
}

/// What one source gave to a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceCount {
    /// Where from.
    pub source: Source,
    /// How many pieces.
    pub pieces: u32,
    /// How many bytes.
    pub bytes: u64,
}

/// Ends a read after its last piece: where the bytes came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadEnd {
    /// One line for each source that gave something.
    #[serde(deserialize_with = "wire::bounded::<_, _, SOURCES_MAX>")]
    pub sources: Vec<SourceCount>,
}

impl ReadEnd {
    /// Counts one piece.
    pub fn count(&mut self, source: Source, length_bytes: u32) {
        if let Some(line) = self.sources.iter_mut().find(|line| line.source == source) {
            line.pieces += 1;
            line.bytes += u64::from(length_bytes);
        } else {
            self.sources.push(SourceCount { source, pieces: 1, bytes: length_bytes.into() });
        }
    }
}

impl Bounded for ReadEnd {
    fn check(&self) -> Result<(), FieldError> {
        number_at_most("sources", self.sources.len() as u64, SOURCES_MAX as u64)
    }
}
