//! Which version is current: LOCATE asks the home, RECALL asks any seed for what it knows by itself.

use serde::{Deserialize, Serialize};

use super::check_holders;
use super::publish::{VersionRecord, check_generation};
use crate::error::FieldError;
use crate::limits::{ETAG_BYTES_MAX, OBJECT_BYTES_MAX, PARENTS_MAX};
use crate::message::{Bounded, Target};
use crate::wire::{self, at_most, number_at_most};

/// A version that the sender holds pieces of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownVersion {
    /// Its number.
    pub generation: u64,
    /// Its entity tag.
    pub etag: String,
    /// Its length in bytes.
    pub length: u64,
}

/// Asks the home which version is current. Answered with LOCATED. The home keeps that version readable for a while,
/// though it may be replaced; each TRACK about it prolongs this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locate {
    /// Which object.
    pub target: Target,
    /// Ask the backend whether a clean version is still the newest, whatever the freshness policy says.
    pub no_cache: bool,
    /// What the sender holds. A home that finds the same content in the backend gives it the same number.
    pub known: Option<KnownVersion>,
}

impl Bounded for Locate {
    fn check(&self) -> Result<(), FieldError> {
        self.target.check()?;
        let Some(known) = &self.known else { return Ok(()) };
        check_generation(known.generation)?;
        at_most("etag", &known.etag, ETAG_BYTES_MAX)?;
        number_at_most("length", known.length, OBJECT_BYTES_MAX)
    }
}

/// Asks a seed what it knows about a task by itself. It asks nobody else. Answered with RECALLED.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recall {
    /// Which object.
    pub target: Target,
}

impl Bounded for Recall {
    fn check(&self) -> Result<(), FieldError> {
        self.target.check()
    }
}

/// Answers RECALL.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recalled {
    /// The newest version, or deletion, that it knows of.
    pub version: Option<VersionRecord>,
    /// Whether it holds all of it, durably.
    pub whole: bool,
    /// Who else holds all of it, durably, as far as it knows.
    #[serde(deserialize_with = "wire::bounded::<_, _, PARENTS_MAX>")]
    pub holders: Vec<String>,
}

impl Bounded for Recalled {
    fn check(&self) -> Result<(), FieldError> {
        check_holders(&self.holders)?;
        let Some(version) = &self.version else { return Ok(()) };
        check_generation(version.generation)?;
        version.check()
    }
}
