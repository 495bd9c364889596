//! The use cases: open, read, put, copy, delete, list, write back. The order of things is decided here: who is asked
//! first, when a client is acknowledged.
//!
//! Each shard has one [`Engine`]. It owns the tasks whose ID hashes to its shard ([`owner`]) and asks the engines of
//! other shards about theirs by message ([`call`]). Faces (HTTP, native) see [`Engine`], [`Reader`] and [`Upload`]
//! only; they never touch the store, the catalog or the backend.

pub mod call;
pub mod error;
mod reader;
pub mod request;
mod upload;

pub use error::ObjectError;
pub use reader::{Chunk, PieceStream, Reader};
pub use upload::Upload;

use std::rc::Rc;

use dfstore_proto::ids::{ObjectName, TaskId};

use crate::engine::request::{DeleteDone, ListPage, ListRequest, PutRequest, Stat, Target};
use crate::rt::arena::Arena;

/// The use cases of one shard. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct Engine(Rc<Inner>);

struct Inner {
    shard: usize,
    shards: usize,
    arena: Arena,
}

impl Engine {
    /// This shard's number.
    pub fn shard(&self) -> usize {
        self.0.shard
    }

    /// The shard that owns a task. A connection moves there before its first request is served.
    pub fn owner_of(&self, task: &TaskId) -> usize {
        task.owner(self.0.shards)
    }

    /// The arena that bodies are received into.
    pub fn arena(&self) -> &Arena {
        &self.0.arena
    }

    /// The current version's attributes. `no_cache` asks the backend whatever the freshness policy says.
    pub async fn stat(&self, target: &Target, no_cache: bool) -> Result<Stat, ObjectError> {
        let _ = (target, no_cache);
        Err(ObjectError::ShuttingDown)
    }

    /// Opens the current version for reading; it stays readable, whole, while the reader lives.
    pub async fn open(&self, target: &Target, no_cache: bool) -> Result<Reader, ObjectError> {
        let _ = (target, no_cache);
        Err(ObjectError::ShuttingDown)
    }

    /// Opens a version that was opened before (by another connection of the same client).
    pub async fn reopen(&self, task: TaskId, generation: u64) -> Result<Reader, ObjectError> {
        let _ = (task, generation);
        Err(ObjectError::ShuttingDown)
    }

    /// Begins a write. Waits while the dirty limit is reached, then fails with `Busy`.
    pub async fn put(&self, request: PutRequest) -> Result<Upload, ObjectError> {
        let _ = request;
        Err(ObjectError::ShuttingDown)
    }

    /// Feeds an upload that another connection began.
    pub async fn join_upload(&self, task: TaskId, upload: u64) -> Result<Upload, ObjectError> {
        let _ = (task, upload);
        Err(ObjectError::ShuttingDown)
    }

    /// Deletes an object, here and in the backend. A missing one counts as deleted.
    pub async fn delete(&self, target: &Target) -> Result<DeleteDone, ObjectError> {
        let _ = target;
        Err(ObjectError::ShuttingDown)
    }

    /// Copies within or across buckets.
    pub async fn copy(&self, source: &Target, target: &Target) -> Result<Stat, ObjectError> {
        let _ = (source, target);
        Err(ObjectError::ShuttingDown)
    }

    /// A page of a listing: the backend's, with what is written or deleted here laid over it.
    pub async fn list(&self, request: &ListRequest) -> Result<ListPage, ObjectError> {
        let _ = request;
        Err(ObjectError::ShuttingDown)
    }

    /// Creates a bucket in the backend.
    pub async fn create_bucket(&self, bucket: &str) -> Result<(), ObjectError> {
        let _ = bucket;
        Err(ObjectError::ShuttingDown)
    }

    /// Name (`s3` or `oss`), region and endpoint of the backend, for clients that ask.
    pub fn backend_info(&self) -> BackendInfo {
        BackendInfo { name: String::new(), region: String::new(), endpoint: String::new() }
    }
}

/// The backend, as clients may know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendInfo {
    /// `s3` or `oss`.
    pub name: String,
    /// Region, may be empty.
    pub region: String,
    /// Endpoint URL, may be empty.
    pub endpoint: String,
}

/// Checks a bucket and key from outside and makes them a target.
pub fn target_of(bucket: &str, key: &str) -> Result<Target, ObjectError> {
    use crate::limits::{BUCKET_BYTES_MAX, KEY_BYTES_MAX};
    if bucket.is_empty() || bucket.len() > BUCKET_BYTES_MAX || bucket.contains('/') {
        return Err(ObjectError::InvalidArgument(format!(
            "invalid bucket name: it has {} bytes; allowed are 1 to {BUCKET_BYTES_MAX}, without a slash",
            bucket.len()
        )));
    }
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(ObjectError::InvalidArgument(format!(
            "invalid object key: it has {} bytes; allowed are 1 to {KEY_BYTES_MAX}",
            key.len()
        )));
    }
    Ok(Target::of(ObjectName::new(bucket, key)))
}
