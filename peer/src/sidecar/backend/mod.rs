//! The third-party object storage behind the peers: what it can be asked ([`Backend`]) and how others ask it
//! ([`BackendHandle`]).
//!
//! One client ([`S3Backend`], on aws-sdk-s3) serves every provider; what differs between them is data in
//! [`provider`]. Nobody outside this folder knows that S3 exists. Requests have timeouts, bodies a minimum rate.
//! The invariant: a fetch gives exactly the bytes and the version that were asked for, or an error; a short, long or
//! misplaced body never leaves this folder. Writes carry their CRC32 to the providers that check it.

mod body;
mod client;
pub(in crate::sidecar) mod configured;
pub mod error;
mod failure;
pub mod handle;
pub mod provider;
mod s3;
pub mod tuning;

use std::ops::Range;

use dfstore_proto::ids::ObjectName;
use dfstore_proto::object::ObjectMeta;
use futures_util::future::BoxFuture;

use crate::rt::arena::{Slot, SlotMut};
use crate::rt::mailbox::Receiver;

pub use error::{BackendError, BackendErrorKind};
pub use handle::BackendHandle;
pub use s3::S3Backend;
pub use tuning::BackendTuning;

/// What a backend operation answers.
pub type Result<T> = std::result::Result<T, BackendError>;

/// Which bytes of an object to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GetRequest {
    /// The object.
    pub name: ObjectName,
    /// The bytes wanted; they fit into the slot.
    pub range: Range<u64>,
    /// Whether the object must have all of `range`. If not, it may end earlier (a first read, which finds out how
    /// long the object is), and even be empty if the range starts at 0.
    pub exact: bool,
    /// Fails with `VersionChanged` unless the object still has this entity tag.
    pub if_match: Option<String>,
}

/// A fetched range in its slot.
pub struct Fetched {
    /// The bytes, verified to be exactly the range asked for (or its part before the end of the object).
    pub slot: SlotMut,
    /// CRC32 (IEEE) of the bytes, computed as they arrived.
    pub crc32: u32,
    /// The object they are from; `length` is that of the whole object.
    pub meta: ObjectMeta,
}

/// An object as the backend has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Its attributes.
    pub meta: ObjectMeta,
    /// What its writer called this version; empty unless it was written by a [`PutRequest`].
    pub written_as: String,
}

/// A write of a whole object, or the start of a multipart upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutRequest {
    /// The object.
    pub name: ObjectName,
    /// Attributes to keep with it: the four `content_*` fields and `digest`; the others are ignored.
    pub meta: ObjectMeta,
    /// What the writer calls this version; kept with it, and given by [`Backend::head`]. May be empty.
    pub written_as: String,
    /// CRC32 (IEEE) of the whole object where known: sent to the providers that check it.
    pub crc32: Option<u32>,
    /// Fails with `PreconditionFailed` unless this holds. On a multipart upload it counts when completing.
    pub condition: WriteCondition,
}

/// What must hold of the object in the backend for a write to happen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum WriteCondition {
    /// Nothing.
    #[default]
    Always,
    /// It does not exist.
    IfAbsent,
    /// It has this entity tag. Heeded only by providers that know it.
    IfMatch(String),
}

/// The bytes of a write.
pub enum BodySource {
    /// All of it, in order.
    Slots(Vec<Slot>),
    /// As much as `length_bytes`, in order, as it becomes ready. Closing the channel early fails the write.
    Stream {
        /// Exact number of bytes that will come.
        length_bytes: u64,
        /// The bytes.
        slots: Receiver<Slot>,
    },
}

/// A write that the backend has acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Entity tag of the new version, with its quotes.
    pub etag: String,
}

/// A multipart upload in progress.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Upload {
    /// The object that will be made.
    pub name: ObjectName,
    /// The backend's name for the upload.
    pub upload_id: String,
}

/// A multipart upload that the backend lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedUpload {
    /// The upload.
    pub upload: Upload,
    /// When it was begun, in milliseconds since the Unix epoch; 0 where the backend does not say.
    pub begun_at_ms: u64,
}

/// A part that the backend has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadedPart {
    /// From 1 to [`PARTS_MAX`](crate::limits::PARTS_MAX).
    pub number: u32,
    /// Entity tag of the part.
    pub etag: String,
    /// Length in bytes.
    pub length_bytes: u64,
    /// CRC32 (IEEE) of its bytes, where known.
    pub crc32: Option<u32>,
}

/// What to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListRequest {
    /// Bucket to list.
    pub bucket: String,
    /// Only keys that start with this.
    pub prefix: String,
    /// Only keys after this one.
    pub marker: String,
    /// Keys with this after the prefix are rolled up into common prefixes. Empty for none.
    pub delimiter: String,
    /// Most entries and common prefixes together; 1 to [`LIST_LIMIT_MAX`](crate::limits::LIST_LIMIT_MAX).
    pub limit: usize,
}

/// One object of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListEntry {
    /// Its key, byte for byte.
    pub key: String,
    /// Length, entity tag, last modification and storage class; the rest is unknown to listings.
    pub meta: ObjectMeta,
}

/// One page of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListPage {
    /// Objects, in key order.
    pub entries: Vec<ListEntry>,
    /// Rolled-up prefixes, in order.
    pub common_prefixes: Vec<String>,
    /// Whether there is more after this page.
    pub truncated: bool,
    /// The marker of the next page; empty when not truncated.
    pub next_marker: String,
}

/// The operations of a backend, on the sidecar's runtime. Every future may be dropped at any time: the request then
/// ends, though a write may have happened.
pub trait Backend: Send + Sync {
    /// Attributes of an object.
    fn head<'a>(&'a self, name: &'a ObjectName) -> BoxFuture<'a, Result<Head>>;
    /// Reads a range into `slot` (from its start); gives the CRC32 of the bytes and the attributes. On failure the
    /// contents of the slot mean nothing.
    fn get<'a>(&'a self, request: &'a GetRequest, slot: &'a mut SlotMut) -> BoxFuture<'a, Result<(u32, ObjectMeta)>>;
    /// Writes an object in one request.
    fn put<'a>(&'a self, request: &'a PutRequest, body: BodySource) -> BoxFuture<'a, Result<Stored>>;
    /// Starts a multipart upload.
    fn create_upload<'a>(&'a self, request: &'a PutRequest) -> BoxFuture<'a, Result<Upload>>;
    /// Writes one part; a part written again replaces the earlier one.
    fn put_part<'a>(
        &'a self,
        upload: &'a Upload,
        number: u32,
        crc32: u32,
        body: BodySource,
    ) -> BoxFuture<'a, Result<UploadedPart>>;
    /// Makes the object of all `parts`, which are in order. `request` is the one the upload was started with.
    fn complete_upload<'a>(
        &'a self,
        upload: &'a Upload,
        request: &'a PutRequest,
        parts: &'a [UploadedPart],
    ) -> BoxFuture<'a, Result<Stored>>;
    /// Drops an upload and its parts. An upload that is not there is dropped.
    fn abort_upload<'a>(&'a self, upload: &'a Upload) -> BoxFuture<'a, Result<()>>;
    /// The parts that the backend has, in order. `NoSuchUpload` when it does not know the upload.
    fn list_parts<'a>(&'a self, upload: &'a Upload) -> BoxFuture<'a, Result<Vec<UploadedPart>>>;
    /// Uploads in progress of keys that start with `prefix` (the first thousand).
    fn list_uploads<'a>(&'a self, bucket: &'a str, prefix: &'a str) -> BoxFuture<'a, Result<Vec<ListedUpload>>>;
    /// Copies an object within the backend.
    fn copy<'a>(&'a self, source: &'a ObjectName, target: &'a ObjectName) -> BoxFuture<'a, Result<Stored>>;
    /// Deletes an object. One that is not there is deleted.
    fn delete<'a>(&'a self, name: &'a ObjectName) -> BoxFuture<'a, Result<()>>;
    /// One page of a bucket.
    fn list<'a>(&'a self, request: &'a ListRequest) -> BoxFuture<'a, Result<ListPage>>;
    /// Makes a bucket. `BucketExists` when it is there, whoever owns it.
    fn create_bucket<'a>(&'a self, bucket: &'a str) -> BoxFuture<'a, Result<()>>;
    /// Asks whether a bucket is there and may be used.
    fn head_bucket<'a>(&'a self, bucket: &'a str) -> BoxFuture<'a, Result<()>>;
}
