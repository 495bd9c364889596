//! Messages about whole objects: stat, list, delete, copy, and creating a bucket.

use serde::{Deserialize, Serialize};

use super::Bounded;
use crate::error::FieldError;
use crate::ids::{ObjectName, TaskId};
use crate::limits::{
    ATTRIBUTE_BYTES_MAX, BUCKET_BYTES_MAX, CONTROL_BYTES_MAX, DELIMITER_BYTES_MAX, ETAG_BYTES_MAX, KEY_BYTES_MAX,
    LIST_ENTRIES_MAX, OBJECT_BYTES_MAX, PIECE_BYTES_MAX, QUERY_BYTES_MAX,
};
use crate::object::{ObjectMeta, Source, WriteMode};
use crate::wire::{self, at_most, filled, number_at_most};

/// An object, and what of its URL counts for its identity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Bucket and key.
    pub object: ObjectName,
    /// Query of the object's URL without the question mark; empty for most objects.
    pub query: String,
    /// Names of query parameters that take no part in the identity, separated by `&`.
    pub filter: String,
}

impl Target {
    /// An object without a query.
    pub fn new(object: ObjectName) -> Target {
        Target { object, query: String::new(), filter: String::new() }
    }

    /// The task of this object.
    pub fn task(&self) -> TaskId {
        TaskId::of(&self.object, &self.query, &self.filter)
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        filled("bucket", &self.object.bucket, BUCKET_BYTES_MAX)?;
        filled("key", &self.object.key, KEY_BYTES_MAX)?;
        at_most("query", &self.query, QUERY_BYTES_MAX)?;
        at_most("filter", &self.filter, QUERY_BYTES_MAX)
    }
}

pub(super) fn check_meta(meta: &ObjectMeta) -> Result<(), FieldError> {
    number_at_most("length", meta.length, OBJECT_BYTES_MAX)?;
    at_most("etag", &meta.etag, ETAG_BYTES_MAX)?;
    at_most("content_type", &meta.content_type, ATTRIBUTE_BYTES_MAX)?;
    at_most("content_encoding", &meta.content_encoding, ATTRIBUTE_BYTES_MAX)?;
    at_most("content_disposition", &meta.content_disposition, ATTRIBUTE_BYTES_MAX)?;
    at_most("content_language", &meta.content_language, ATTRIBUTE_BYTES_MAX)?;
    at_most("storage_class", &meta.storage_class, ATTRIBUTE_BYTES_MAX)?;
    at_most("digest", &meta.digest, ATTRIBUTE_BYTES_MAX)
}

pub(super) fn check_piece_bytes(piece_bytes: u32) -> Result<(), FieldError> {
    if piece_bytes == 0 {
        return Err(FieldError::Empty("piece_bytes"));
    }
    number_at_most("piece_bytes", piece_bytes.into(), PIECE_BYTES_MAX.into())
}

/// An object of this length can be cut into pieces of this size, and their numbers fit.
pub(super) fn check_pieces(length: u64, piece_bytes: u32) -> Result<(), FieldError> {
    check_piece_bytes(piece_bytes)?;
    if length.div_ceil(u64::from(piece_bytes)) > u64::from(u32::MAX) {
        return Err(FieldError::Invalid("piece_bytes"));
    }
    Ok(())
}

/// Asks what is known about an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stat {
    /// Which object.
    pub target: Target,
    /// Ask the backend whether a clean version is still the newest, whatever the freshness policy says.
    pub fresh: bool,
}

impl Bounded for Stat {
    fn check(&self) -> Result<(), FieldError> {
        self.target.check()
    }
}

/// How a version stands to the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum VersionState {
    /// The backend has it.
    Clean,
    /// The backend does not have it yet.
    Dirty,
    /// The backend will never have it.
    Ephemeral,
}

/// One version of an object as this peer knows it: the answer to STAT, OPEN and COPY.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionInfo {
    /// The task of the object.
    pub task: TaskId,
    /// The version.
    pub generation: u64,
    /// Its attributes.
    pub meta: ObjectMeta,
    /// Size of its pieces; the last one may be shorter.
    pub piece_bytes: u32,
    /// How it stands to the backend.
    pub state: VersionState,
    /// Where the answer came from.
    pub source: Source,
    /// CRC32 of the whole object, where it is known.
    pub crc32: Option<u32>,
    /// Pieces that this peer holds.
    pub pieces_local: u32,
}

impl VersionInfo {
    /// Pieces of this version.
    pub fn pieces(&self) -> u32 {
        u32::try_from(self.meta.length.div_ceil(u64::from(self.piece_bytes))).unwrap_or(u32::MAX)
    }
}

impl Bounded for VersionInfo {
    fn check(&self) -> Result<(), FieldError> {
        check_meta(&self.meta)?;
        check_pieces(self.meta.length, self.piece_bytes)
    }
}

/// Asks for one page of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct List {
    /// Which bucket.
    pub bucket: String,
    /// Only keys that begin like this.
    pub prefix: String,
    /// Only what comes after this, in byte order: the `next_marker` of the page before, or empty.
    pub marker: String,
    /// Keys that share the part up to the first of these after the prefix become one common prefix; empty for none.
    pub delimiter: String,
    /// Most entries and common prefixes together; 0 leaves it to the peer.
    pub limit: u32,
}

impl Bounded for List {
    fn check(&self) -> Result<(), FieldError> {
        filled("bucket", &self.bucket, BUCKET_BYTES_MAX)?;
        at_most("prefix", &self.prefix, KEY_BYTES_MAX)?;
        at_most("marker", &self.marker, KEY_BYTES_MAX)?;
        at_most("delimiter", &self.delimiter, DELIMITER_BYTES_MAX)
    }
}

/// One object of a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListEntry {
    /// Its key, whole.
    pub key: String,
    /// Length in bytes.
    pub length: u64,
    /// Entity tag.
    pub etag: String,
    /// Last modification, in milliseconds since the Unix epoch.
    pub last_modified_ms: u64,
    /// Storage class of the backend, empty when unknown.
    pub storage_class: String,
    /// How its newest version stands to the backend.
    pub state: VersionState,
}

impl ListEntry {
    pub(super) fn check(&self) -> Result<(), FieldError> {
        filled("key", &self.key, KEY_BYTES_MAX)?;
        number_at_most("length", self.length, OBJECT_BYTES_MAX)?;
        at_most("etag", &self.etag, ETAG_BYTES_MAX)?;
        at_most("storage_class", &self.storage_class, ATTRIBUTE_BYTES_MAX)
    }
}

/// One page of a listing. Make it with a [`ListPage`], which ends it where a frame would overflow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListOk {
    /// Objects, in byte order of their keys.
    #[serde(deserialize_with = "wire::bounded::<_, _, LIST_ENTRIES_MAX>")]
    pub entries: Vec<ListEntry>,
    /// Common prefixes, in byte order.
    #[serde(deserialize_with = "wire::bounded::<_, _, LIST_ENTRIES_MAX>")]
    pub common_prefixes: Vec<String>,
    /// Whether more follows.
    pub truncated: bool,
    /// The `marker` of the next page: the last key or common prefix of this one. Empty when nothing follows.
    pub next_marker: String,
}

impl Bounded for ListOk {
    fn check(&self) -> Result<(), FieldError> {
        let items = self.entries.len() + self.common_prefixes.len();
        number_at_most("entries", items as u64, LIST_ENTRIES_MAX as u64)?;
        self.entries.iter().try_for_each(ListEntry::check)?;
        self.common_prefixes.iter().try_for_each(|prefix| filled("common_prefixes", prefix, KEY_BYTES_MAX))?;
        at_most("next_marker", &self.next_marker, KEY_BYTES_MAX)?;
        if self.truncated && self.next_marker.is_empty() {
            return Err(FieldError::Empty("next_marker"));
        }
        Ok(())
    }
}

/// Fills one page until the limit or the frame is full. Items come in byte order, keys and prefixes mixed.
#[derive(Debug)]
pub struct ListPage {
    page: ListOk,
    limit: usize,
    payload_bytes: usize,
    last: String,
}

/// Payload bytes of a page besides its items: three lengths, a flag, and a marker as long as a key may be.
pub(super) const PAGE_BYTES: usize = 32 + KEY_BYTES_MAX;

impl ListPage {
    /// An empty page for at most `limit` items; 0 means as many as a page may hold.
    pub fn new(limit: u32) -> ListPage {
        let limit = if limit == 0 { LIST_ENTRIES_MAX } else { (limit as usize).min(LIST_ENTRIES_MAX) };
        ListPage { page: ListOk::default(), limit, payload_bytes: PAGE_BYTES, last: String::new() }
    }

    /// Adds an object; `false` when the page is full and must be finished as truncated.
    pub fn push_entry(&mut self, entry: ListEntry) -> bool {
        let fits = self.make_room(wire::section_bytes(&entry));
        if fits {
            self.last.clone_from(&entry.key);
            self.page.entries.push(entry);
        }
        fits
    }

    /// Adds a common prefix; `false` when the page is full and must be finished as truncated.
    pub fn push_common_prefix(&mut self, prefix: String) -> bool {
        let fits = self.make_room(wire::section_bytes(&prefix));
        if fits {
            self.last.clone_from(&prefix);
            self.page.common_prefixes.push(prefix);
        }
        fits
    }

    fn make_room(&mut self, item_bytes: usize) -> bool {
        let items = self.page.entries.len() + self.page.common_prefixes.len();
        let fits = items < self.limit && self.payload_bytes + item_bytes <= CONTROL_BYTES_MAX as usize;
        if fits {
            self.payload_bytes += item_bytes;
        }
        fits
    }

    /// The page. `truncated`: more follows its last item. An empty page is never truncated.
    pub fn finish(mut self, truncated: bool) -> ListOk {
        if truncated && !self.last.is_empty() {
            self.page.truncated = true;
            self.page.next_marker = self.last;
        }
        self.page
    }
}

/// Deletes an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delete {
    /// Which object.
    pub target: Target,
}

impl Bounded for Delete {
    fn check(&self) -> Result<(), FieldError> {
        self.target.check()
    }
}

/// Copies an object to another name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copy {
    /// What to copy.
    pub source: Target,
    /// Where to.
    pub target: Target,
    /// How the copy reaches the backend; the peer's choice when absent.
    pub mode: Option<WriteMode>,
}

impl Bounded for Copy {
    fn check(&self) -> Result<(), FieldError> {
        self.source.check()?;
        self.target.check()
    }
}

/// Creates a bucket at the backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateBucket {
    /// Its name.
    pub bucket: String,
}

impl Bounded for CreateBucket {
    fn check(&self) -> Result<(), FieldError> {
        filled("bucket", &self.bucket, BUCKET_BYTES_MAX)
    }
}
