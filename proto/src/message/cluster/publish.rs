//! New versions and deletions: RESERVE gives a version its number, PUBLISH tells seeds of it.

use serde::{Deserialize, Serialize};

use super::check_holders;
use crate::error::FieldError;
use crate::limits::{NAME_BYTES_MAX, PARENTS_MAX};
use crate::message::object::{check_meta, check_pieces};
use crate::message::{Bounded, Target, VersionState};
use crate::object::ObjectMeta;
use crate::wire::{self, filled};

/// Asks the home for the generation of a version that is being written. Answered with RESERVED.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserve {
    /// Which object.
    pub target: Target,
}

impl Bounded for Reserve {
    fn check(&self) -> Result<(), FieldError> {
        self.target.check()
    }
}

/// Answers RESERVE. Nobody sees anything of it until PUBLISH.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reserved {
    /// Above every generation that this home has given for the task.
    pub generation: u64,
}

impl Bounded for Reserved {
    fn check(&self) -> Result<(), FieldError> {
        check_generation(self.generation)
    }
}

/// What is published about an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Published {
    /// A version that the backend does not have yet.
    Dirty,
    /// A version that the backend never gets.
    Ephemeral,
    /// A version that the backend must have before anybody sees it.
    Through,
    /// A version that the backend has: seeds are to keep copies.
    Clean,
    /// The object is deleted.
    Deleted,
}

/// One version, or deletion, as peers tell each other of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRecord {
    /// Its number, as RESERVED said, or the sender's own when no seed could be asked. 0 only in PUBLISH of a deletion,
    /// whose number the home chooses.
    pub generation: u64,
    /// What it is.
    pub kind: Published,
    /// Its attributes.
    pub meta: ObjectMeta,
    /// CRC32 of the whole where known.
    pub crc32: Option<u32>,
    /// Size of its pieces; of a deletion any that is allowed.
    pub piece_bytes: u32,
    /// Seeds that should keep a copy.
    pub replicas: u16,
}

impl VersionRecord {
    pub(super) fn check(&self) -> Result<(), FieldError> {
        if self.kind != Published::Deleted {
            check_generation(self.generation)?;
        }
        check_meta(&self.meta)?;
        check_pieces(self.meta.length, self.piece_bytes)
    }
}

/// A number that a version may have: 0 stands for none.
pub(super) fn check_generation(generation: u64) -> Result<(), FieldError> {
    if generation == 0 { Err(FieldError::Empty("generation")) } else { Ok(()) }
}

/// What the receiver of PUBLISH is asked to do besides knowing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Duty {
    /// It is the home: it orders versions, has replicas made, and tells the backend.
    Decide,
    /// It is the next in order: it remembers, durably, in case the home is lost.
    Witness,
    /// It keeps a copy, durably; the home asks this.
    Replicate,
}

/// Tells a seed about a version that the sender holds durably. Telling it again changes nothing and gives the state
/// it has reached. Answered with PUBLISH_OK.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// Which object.
    pub target: Target,
    /// The version. Of a deletion with generation 0 the home chooses the number.
    pub version: VersionRecord,
    /// What is asked.
    pub duty: Duty,
    /// Who sends this.
    pub node: String,
    /// Whether the sender holds all of it, durably.
    pub whole: bool,
    /// Who else holds all of it, durably, as far as the sender knows.
    #[serde(deserialize_with = "wire::bounded::<_, _, PARENTS_MAX>")]
    pub holders: Vec<String>,
    /// Answer when so many nodes hold all of it, durably, or after a while with what there is. 0: at once.
    pub wait_replicas: u16,
}

impl Bounded for Publish {
    fn check(&self) -> Result<(), FieldError> {
        self.target.check()?;
        self.version.check()?;
        filled("node", &self.node, NAME_BYTES_MAX)?;
        check_holders(&self.holders)
    }
}

/// What became of a published version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Standing {
    /// It is the newest.
    Current,
    /// A newer one is known: the sender drops its own.
    Superseded,
}

/// Answers PUBLISH.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishOk {
    /// What became of it.
    pub standing: Standing,
    /// The newest generation.
    pub generation: u64,
    /// How it stands to the backend; of a deletion, `Clean` once the backend knows of it.
    pub state: VersionState,
    /// Its attributes as the backend has them, once it is clean.
    pub meta: ObjectMeta,
    /// Nodes that hold all of it, durably.
    pub replicas: u16,
    /// Seeds that are to hold it.
    pub replicas_wanted: u16,
}

impl Bounded for PublishOk {
    fn check(&self) -> Result<(), FieldError> {
        check_meta(&self.meta)
    }
}
