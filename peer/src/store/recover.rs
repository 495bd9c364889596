//! What becomes of each piece that the catalog names, at start. A decision table, and the loop that applies it.
//!
//! | the version the piece belongs to | its extents | decision | why |
//! |---|---|---|---|
//! | none: no task, another generation, or a tombstone | any | drop | left by an upload that never ended, or by a removal that a crash cut short |
//! | clean | claimed | keep | |
//! | clean | outside or overlapping | drop | it is a cache: another source has the bytes |
//! | held here only (dirty, ephemeral) | claimed | keep | |
//! | held here only | outside or overlapping | quarantine | nobody else has the bytes: say so, never serve them, never forget silently |
//!
//! Pieces that are held here only claim first, so that an overlap costs a clean piece.

use crate::store::extents::ExtentList;
use crate::store::lease::Lease;
use crate::store::space::{ClaimError, StoreSeed};

/// The version that a piece record belongs to, as far as recovery cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Belongs {
    /// To no version that exists.
    Nothing,
    /// To a version that another source has too.
    Clean,
    /// To a version that only this peer has (dirty or ephemeral).
    OnlyHere,
}

/// What becomes of a piece record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    /// It is there.
    Keep,
    /// Remove the record.
    Drop,
    /// Its bytes are lost: the version must be reported as damaged, not served.
    Quarantine,
}

/// The table above.
pub fn decide(belongs: Belongs, claim: Result<(), ClaimError>) -> Decision {
    match (belongs, claim) {
        (Belongs::Nothing, _) => Decision::Drop,
        (Belongs::Clean | Belongs::OnlyHere, Ok(())) => Decision::Keep,
        (Belongs::Clean, Err(ClaimError::Outside | ClaimError::Overlap)) => Decision::Drop,
        (Belongs::OnlyHere, Err(ClaimError::Outside | ClaimError::Overlap)) => Decision::Quarantine,
    }
}

/// A piece record to decide about; `piece` is whatever names it.
pub struct Found<P> {
    /// The piece.
    pub piece: P,
    /// The version it belongs to.
    pub belongs: Belongs,
    /// Where the record says that its bytes are.
    pub extents: ExtentList,
}

/// The outcome for all records.
pub struct Recovered<P> {
    /// Pieces that are there, with their leases.
    pub kept: Vec<(P, Lease)>,
    /// Records to remove.
    pub dropped: Vec<P>,
    /// Pieces that are lost although nobody else has them.
    pub quarantined: Vec<P>,
}

/// Claims the extents of all records in `seed` and decides about each.
pub fn recover<P>(seed: &StoreSeed, found: impl IntoIterator<Item = Found<P>>) -> Recovered<P> {
    let mut recovered = Recovered { kept: Vec::new(), dropped: Vec::new(), quarantined: Vec::new() };
    let mut clean = Vec::new();
    for record in found {
        match record.belongs {
            Belongs::Clean => clean.push(record),
            Belongs::OnlyHere => recovered.apply(seed, record),
            Belongs::Nothing => recovered.dropped.push(record.piece),
        }
    }
    for record in clean {
        recovered.apply(seed, record);
    }
    recovered
}

impl<P> Recovered<P> {
    fn apply(&mut self, seed: &StoreSeed, record: Found<P>) {
        let claimed = seed.claim(&record.extents);
        let verdict = decide(record.belongs, claimed.as_ref().map(|_| ()).map_err(|error| *error));
        match (verdict, claimed) {
            (Decision::Keep, Ok(lease)) => self.kept.push((record.piece, lease)),
            (Decision::Quarantine, _) => self.quarantined.push(record.piece),
            _ => self.dropped.push(record.piece),
        }
    }
}
