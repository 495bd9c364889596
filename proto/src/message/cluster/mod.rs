//! Messages between the peers of a cluster: where a version is, who fetches what from whom, generations, publications,
//! pending objects, and the configuration that a manager gives.
//!
//! The words: the *home* of a task is the seed that decides about it; it answers all of these but RECALL and PENDING,
//! which every seed answers, FETCH, which any peer answers, and GET_CONFIG, which a manager answers. A session takes
//! them only from the role `Peer`.

mod config;
mod locate;
mod pending;
mod publish;
mod track;

use serde::{Deserialize, Serialize};

pub use config::{BackendConfig, ConfigOk, GetConfig};
pub use locate::{KnownVersion, Locate, Recall, Recalled};
pub use pending::{Pending, PendingOk, PendingPage};
pub use publish::{Duty, Publish, PublishOk, Published, Reserve, Reserved, Standing, VersionRecord};
pub use track::{Fetch, Holder, Track, Tracked};

use crate::error::FieldError;
use crate::limits::{NAME_BYTES_MAX, PARENTS_MAX, RUNS_MAX};
use crate::object::PieceRun;
use crate::wire::{self, filled, number_at_most};

/// Which pieces of a version, as runs in order that do not overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PieceRuns(#[serde(deserialize_with = "wire::bounded::<_, _, RUNS_MAX>")] Vec<PieceRun>);

impl PieceRuns {
    /// Runs in order; what does not fit into a message is left out at the end. Empty runs are dropped.
    pub fn new(runs: impl IntoIterator<Item = PieceRun>) -> PieceRuns {
        PieceRuns(runs.into_iter().filter(|run| run.count > 0).take(RUNS_MAX).collect())
    }

    /// The runs.
    pub fn runs(&self) -> &[PieceRun] {
        &self.0
    }

    /// How many pieces these are.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|run| u64::from(run.count)).sum()
    }

    fn check(&self, field: &'static str) -> Result<(), FieldError> {
        number_at_most(field, self.0.len() as u64, RUNS_MAX as u64)?;
        check_runs(field, &self.0)
    }
}

/// Runs are not empty, in order, and end within the numbers that a piece can have.
pub(super) fn check_runs(field: &'static str, runs: &[PieceRun]) -> Result<(), FieldError> {
    let mut next = 0;
    for run in runs {
        if run.count == 0 || run.first < next {
            return Err(FieldError::Invalid(field));
        }
        next = run.first.checked_add(run.count).ok_or(FieldError::Invalid(field))?;
    }
    Ok(())
}

/// Names of nodes that hold all of a version.
fn check_holders(holders: &[String]) -> Result<(), FieldError> {
    number_at_most("holders", holders.len() as u64, PARENTS_MAX as u64)?;
    holders.iter().try_for_each(|node| filled("holders", node, NAME_BYTES_MAX))
}
