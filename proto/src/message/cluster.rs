//! Messages between the peers of a cluster: where a version is, who fetches what from whom, generations, publications,
//! pending objects, and the configuration that a manager gives.
//!
//! The words: the *home* of a task is the seed that decides about it; it answers all of these but FETCH, which any
//! peer answers, and GET_CONFIG, which a manager answers.

use serde::{Deserialize, Serialize};

use super::connection::Token;
use super::object::{ListEntry, check_meta, check_piece_bytes};
use super::{Bounded, Target, VersionInfo, VersionState};
use crate::error::FieldError;
use crate::ids::TaskId;
use crate::limits::{
    ADDRESS_BYTES_MAX, ATTRIBUTE_BYTES_MAX, BOOTSTRAP_MAX, BUCKET_BYTES_MAX, COUNTS_MAX, ETAG_BYTES_MAX,
    KEY_BYTES_MAX, LIST_ENTRIES_MAX, NAME_BYTES_MAX, NODES_MAX, OBJECT_BYTES_MAX, PARENTS_MAX, RUNS_MAX,
    RUNS_SHOWN_MAX, SUGGESTED_MAX, TOKEN_BYTES_MAX,
};
use crate::object::{ObjectMeta, PieceRun};
use crate::wire::{self, at_most, filled, number_at_most};

/// Which pieces of a version, as runs in order, none touching the next.
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
        let mut next = 0_u64;
        for run in &self.0 {
            let first = u64::from(run.first);
            if run.count == 0 || first < next {
                return Err(FieldError::Invalid(field));
            }
            next = first + u64::from(run.count);
        }
        if next > u64::from(u32::MAX) { Err(FieldError::Invalid(field)) } else { Ok(()) }
    }
}

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
        self.version.as_ref().map_or(Ok(()), VersionRecord::check)
    }
}

fn check_holders(holders: &[String]) -> Result<(), FieldError> {
    number_at_most("holders", holders.len() as u64, PARENTS_MAX as u64)?;
    holders.iter().try_for_each(|node| filled("holders", node, NAME_BYTES_MAX))
}

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
        number_at_most("window", self.window.count.into(), COUNTS_MAX as u64)
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
}

impl Bounded for Tracked {
    fn check(&self) -> Result<(), FieldError> {
        number_at_most("parents", self.parents.len() as u64, PARENTS_MAX as u64)?;
        number_at_most("counts", self.counts.len() as u64, COUNTS_MAX as u64)?;
        number_at_most("suggested", self.suggested.len() as u64, SUGGESTED_MAX as u64)?;
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
        if self.number == u32::MAX { Err(FieldError::Invalid("number")) } else { Ok(()) }
    }
}

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
        if self.generation == 0 { Err(FieldError::Empty("generation")) } else { Ok(()) }
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
    /// Its number, as RESERVED said, or the sender's own when no seed could be asked.
    pub generation: u64,
    /// What it is.
    pub kind: Published,
    /// Its attributes.
    pub meta: ObjectMeta,
    /// CRC32 of the whole where known.
    pub crc32: Option<u32>,
    /// Size of its pieces.
    pub piece_bytes: u32,
    /// Seeds that should keep a copy.
    pub replicas: u16,
}

impl VersionRecord {
    fn check(&self) -> Result<(), FieldError> {
        check_meta(&self.meta)?;
        check_piece_bytes(self.piece_bytes)
    }
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

/// Asks a seed for the objects of a bucket of which the backend does not know the newest state. Answered with
/// PENDING_OK.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// Which bucket.
    pub bucket: String,
    /// Only keys that begin like this.
    pub prefix: String,
    /// Only keys after this, in byte order.
    pub marker: String,
}

impl Bounded for Pending {
    fn check(&self) -> Result<(), FieldError> {
        filled("bucket", &self.bucket, BUCKET_BYTES_MAX)?;
        at_most("prefix", &self.prefix, KEY_BYTES_MAX)?;
        at_most("marker", &self.marker, KEY_BYTES_MAX)
    }
}

/// Answers PENDING.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingOk {
    /// Objects that were written, in byte order of their keys.
    #[serde(deserialize_with = "wire::bounded::<_, _, LIST_ENTRIES_MAX>")]
    pub written: Vec<ListEntry>,
    /// Keys that were deleted, in byte order.
    #[serde(deserialize_with = "wire::bounded::<_, _, LIST_ENTRIES_MAX>")]
    pub deleted: Vec<String>,
    /// The `marker` to go on from; empty when this is all.
    pub next_marker: String,
}

impl Bounded for PendingOk {
    fn check(&self) -> Result<(), FieldError> {
        number_at_most("written", self.written.len() as u64, LIST_ENTRIES_MAX as u64)?;
        number_at_most("deleted", self.deleted.len() as u64, LIST_ENTRIES_MAX as u64)?;
        self.written.iter().try_for_each(ListEntry::check)?;
        self.deleted.iter().try_for_each(|key| filled("deleted", key, KEY_BYTES_MAX))?;
        at_most("next_marker", &self.next_marker, KEY_BYTES_MAX)
    }
}

/// Asks a manager for the backend's configuration. Answered with CONFIG.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetConfig {}

impl Bounded for GetConfig {
    fn check(&self) -> Result<(), FieldError> {
        Ok(())
    }
}

/// How to reach the backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendConfig {
    /// `s3` or `oss`.
    pub provider: String,
    /// Region; empty when not configured.
    pub region: String,
    /// URL; empty when not configured.
    pub endpoint: String,
    /// Access key ID; empty leaves it to the peer's own environment.
    pub access_key: Token,
    /// Secret access key.
    pub secret_key: Token,
    /// Session token of temporary credentials; empty for none.
    pub session_token: Token,
    /// Address buckets as a part of the path.
    pub path_style: bool,
}

impl BackendConfig {
    fn check(&self) -> Result<(), FieldError> {
        filled("provider", &self.provider, NAME_BYTES_MAX)?;
        at_most("region", &self.region, NAME_BYTES_MAX)?;
        at_most("endpoint", &self.endpoint, ATTRIBUTE_BYTES_MAX)?;
        at_most("access_key", self.access_key.reveal(), TOKEN_BYTES_MAX)?;
        at_most("secret_key", self.secret_key.reveal(), TOKEN_BYTES_MAX)?;
        // Session tokens of cloud providers are longer than other credentials.
        at_most("session_token", self.session_token.reveal(), 4 * TOKEN_BYTES_MAX)
    }
}

/// Answers GET_CONFIG.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigOk {
    /// How to reach the backend.
    pub backend: BackendConfig,
    /// Gossip addresses (`ip:port`) of nodes that are alive.
    #[serde(deserialize_with = "wire::bounded::<_, _, BOOTSTRAP_MAX>")]
    pub bootstrap: Vec<String>,
}

impl Bounded for ConfigOk {
    fn check(&self) -> Result<(), FieldError> {
        self.backend.check()?;
        number_at_most("bootstrap", self.bootstrap.len() as u64, BOOTSTRAP_MAX as u64)?;
        self.bootstrap.iter().try_for_each(|address| filled("bootstrap", address, ADDRESS_BYTES_MAX))
    }
}

/// Asks where an object is. Answered with WHERE_OK.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Where {
    /// Which object.
    pub target: Target,
    /// Only what the asked peer itself holds; it asks nobody else.
    pub local_only: bool,
}

impl Bounded for Where {
    fn check(&self) -> Result<(), FieldError> {
        self.target.check()
    }
}

/// What a node holds of a version, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderInfo {
    /// The node.
    pub node: String,
    /// How many pieces it holds.
    pub pieces: u32,
    /// Which: the first [`RUNS_SHOWN_MAX`] runs of them.
    #[serde(deserialize_with = "wire::bounded::<_, _, RUNS_SHOWN_MAX>")]
    pub runs: Vec<PieceRun>,
}

/// Answers WHERE.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhereOk {
    /// The current version.
    pub info: VersionInfo,
    /// The seeds that decide about it and keep it, in order; empty for a peer without a cluster.
    #[serde(deserialize_with = "wire::bounded::<_, _, PARENTS_MAX>")]
    pub homes: Vec<String>,
    /// Who holds pieces of it.
    #[serde(deserialize_with = "wire::bounded::<_, _, NODES_MAX>")]
    pub holders: Vec<HolderInfo>,
    /// Seeds that should keep a copy.
    pub replicas_wanted: u16,
}

impl Bounded for WhereOk {
    fn check(&self) -> Result<(), FieldError> {
        self.info.check()?;
        number_at_most("homes", self.homes.len() as u64, PARENTS_MAX as u64)?;
        number_at_most("holders", self.holders.len() as u64, NODES_MAX as u64)?;
        self.holders.iter().try_for_each(|holder| {
            number_at_most("runs", holder.runs.len() as u64, RUNS_SHOWN_MAX as u64)?;
            filled("node", &holder.node, NAME_BYTES_MAX)
        })
    }
}
