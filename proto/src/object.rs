//! What is said about an object: its attributes, how it is written, where its bytes came from.

use serde::{Deserialize, Serialize};

/// Attributes of one version of an object, as clients see them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectMeta {
    /// Length in bytes.
    pub length: u64,
    /// Entity tag with its quotes, as the backend gives it. For a version that the backend has not yet, one that
    /// this system made up; it differs between versions.
    pub etag: String,
    /// Last modification, in milliseconds since the Unix epoch.
    pub last_modified_ms: u64,
    /// `Content-Type`, empty when unknown.
    pub content_type: String,
    /// `Content-Encoding`, empty when unknown. Passed through, never decoded.
    pub content_encoding: String,
    /// `Content-Disposition`, empty when unknown.
    pub content_disposition: String,
    /// `Content-Language`, empty when unknown.
    pub content_language: String,
    /// Storage class of the backend, empty when unknown.
    pub storage_class: String,
    /// Digest kept in the user metadata `digest` of the backend (`md5:<hex>` or `crc32:<hex>`), empty when unknown.
    pub digest: String,
}

/// Consecutive pieces of a version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PieceRun {
    /// Number of the first one.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// How a write reaches the backend. The numbers are those of the HTTP form field `mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum WriteMode {
    /// Acknowledged when durable on this peer; the backend gets it in the background.
    #[default]
    AsyncWriteBack = 0,
    /// Acknowledged when the backend has it.
    WriteBack = 1,
    /// Kept by peers only; the backend never gets it.
    Ephemeral = 2,
}

impl WriteMode {
    /// The mode with this number.
    pub fn from_number(number: u64) -> Option<WriteMode> {
        match number {
            0 => Some(WriteMode::AsyncWriteBack),
            1 => Some(WriteMode::WriteBack),
            2 => Some(WriteMode::Ephemeral),
            _ => None,
        }
    }
}

/// Where the bytes of an answer came from: the value of the header `X-Dfs-Cache`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Source {
    /// Disk or memory of this peer.
    Local,
    /// Another peer.
    Peer,
    /// A seed peer.
    Seed,
    /// The backend.
    Backend,
    /// This peer, and the backend does not have this version yet.
    Pending,
    /// This peer, past the version's freshness, because the backend could not be asked.
    Stale,
}

impl Source {
    /// The value of the header `X-Dfs-Cache`.
    pub fn name(self) -> &'static str {
        match self {
            Source::Local => "local",
            Source::Peer => "peer",
            Source::Seed => "seed",
            Source::Backend => "backend",
            Source::Pending => "pending",
            Source::Stale => "stale",
        }
    }
}
