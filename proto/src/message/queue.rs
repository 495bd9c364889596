//! What waits to be told to the backend, for the people who look after peers; and the check of what lies on a peer's disk.
//! Added by version 3. About the queue a client is answered for all live nodes, another peer for the asked one.

use serde::{Deserialize, Serialize};

use super::object::PAGE_BYTES;
use super::{Bounded, Target};
use crate::error::{FieldError, cut};
use crate::limits::{BUCKET_BYTES_MAX, CONTROL_BYTES_MAX, ERROR_MESSAGE_BYTES_MAX, KEY_BYTES_MAX, LIST_ENTRIES_MAX};
use crate::wire::{self, at_most, filled, number_at_most};

/// Asks for a page of the write-back queue. Answered with QUEUE_OK.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    /// Which bucket; empty for all.
    pub bucket: String,
    /// Only keys that begin like this.
    pub prefix: String,
    /// Only what comes after this bucket and key, in byte order; empty for the first page.
    pub after_bucket: String,
    /// See `after_bucket`.
    pub after_key: String,
    /// Most entries; 0 for as many as fit.
    pub limit: u16,
    /// Only dead letters.
    pub dead_only: bool,
}

impl Bounded for Queue {
    fn check(&self) -> Result<(), FieldError> {
        at_most("bucket", &self.bucket, BUCKET_BYTES_MAX)?;
        at_most("prefix", &self.prefix, KEY_BYTES_MAX)?;
        at_most("after_bucket", &self.after_bucket, BUCKET_BYTES_MAX)?;
        at_most("after_key", &self.after_key, KEY_BYTES_MAX)?;
        number_at_most("limit", u64::from(self.limit), LIST_ENTRIES_MAX as u64)
    }
}

/// Where an entry of the queue stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum QueueState {
    /// Its turn has not come.
    Waiting,
    /// It is being sent.
    Sending,
    /// It is sent, and the backend is asked whether it has it.
    Verifying,
    /// An attempt has failed; the next one comes at its time.
    Delayed,
    /// Another node tells the backend; this one looks whether it has.
    Elsewhere,
    /// Set aside: it is not tried again by itself.
    Dead,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueEntry {
    /// Its bucket.
    pub bucket: String,
    /// Its key.
    pub key: String,
    /// The backend is to delete the object, not to get it.
    pub deletes: bool,
    /// The version.
    pub generation: u64,
    /// Its length in bytes; 0 for a deletion.
    pub length: u64,
    /// Where it stands.
    pub state: QueueState,
    /// When it was queued, in milliseconds since the Unix epoch.
    pub queued_at_ms: u64,
    /// When the next attempt comes, likewise; 0 unless it is delayed.
    pub due_at_ms: u64,
    /// Attempts that failed.
    pub attempts: u32,
    /// Why the last one failed; empty when none did.
    pub last_error: String,
    /// Bytes that the backend has of a multipart upload in progress.
    pub bytes_sent: u64,
}

impl QueueEntry {
    /// The same with a reason cut to what may travel.
    pub fn cut(mut self) -> QueueEntry {
        self.last_error = cut(self.last_error, ERROR_MESSAGE_BYTES_MAX);
        self
    }

    fn check(&self) -> Result<(), FieldError> {
        filled("bucket", &self.bucket, BUCKET_BYTES_MAX)?;
        filled("key", &self.key, KEY_BYTES_MAX)?;
        at_most("last_error", &self.last_error, ERROR_MESSAGE_BYTES_MAX)
    }
}

/// Answers QUEUE. Make it with a [`QueuePage`], which ends it where a frame would overflow.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueOk {
    /// Entries, by bucket and key in byte order.
    #[serde(deserialize_with = "wire::bounded::<_, _, LIST_ENTRIES_MAX>")]
    pub entries: Vec<QueueEntry>,
    /// Whether more follow: ask again after the last one.
    pub truncated: bool,
}

impl Bounded for QueueOk {
    fn check(&self) -> Result<(), FieldError> {
        number_at_most("entries", self.entries.len() as u64, LIST_ENTRIES_MAX as u64)?;
        self.entries.iter().try_for_each(QueueEntry::check)
    }
}

/// Fills one answer until the list or the frame is full.
#[derive(Debug)]
pub struct QueuePage {
    page: QueueOk,
    payload_bytes: usize,
}

impl Default for QueuePage {
    fn default() -> QueuePage {
        QueuePage { page: QueueOk::default(), payload_bytes: PAGE_BYTES }
    }
}

impl QueuePage {
    /// Adds an entry; `false` when the page is full and must be finished with more to follow.
    pub fn push(&mut self, entry: QueueEntry) -> bool {
        let entry = entry.cut();
        let bytes = self.payload_bytes + wire::section_bytes(&entry);
        let fits = self.page.entries.len() < LIST_ENTRIES_MAX && bytes <= CONTROL_BYTES_MAX as usize;
        if fits {
            self.payload_bytes = bytes;
            self.page.entries.push(entry);
        }
        fits
    }

    /// The page. `truncated`: more follows its last entry.
    pub fn finish(mut self, truncated: bool) -> QueueOk {
        self.page.truncated = truncated;
        self.page
    }
}

/// What is to become of an entry of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SteerOrder {
    /// It is tried now.
    Retry,
    /// It is given up: the backend is never told.
    Drop,
}

/// Steers an entry of the queue. Answered with DONE.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steer {
    /// Which object.
    pub target: Target,
    /// What becomes of it.
    pub order: SteerOrder,
    /// Retry: what others wrote into the backend meanwhile is replaced. Drop: also if it is no dead letter.
    pub force: bool,
}

impl Bounded for Steer {
    fn check(&self) -> Result<(), FieldError> {
        self.target.check()
    }
}

/// Asks how the check of the pieces on disk stands. Answered with SCRUB_OK.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scrub {
    /// Begin one now, unless one runs.
    pub begin: bool,
}

impl Bounded for Scrub {
    fn check(&self) -> Result<(), FieldError> {
        Ok(())
    }
}

/// Answers SCRUB: the check that runs, or the last one that ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubOk {
    /// Whether one runs now.
    pub runs: bool,
    /// When it began, in milliseconds since the Unix epoch; 0 when there was none since the start of the peer.
    pub began_at_ms: u64,
    /// When it ended, likewise; 0 while it runs.
    pub ended_at_ms: u64,
    /// Pieces that were read.
    pub pieces: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that there were to read when it began.
    pub bytes_of_all: u64,
    /// Pieces that were damaged.
    pub damaged: u64,
    /// Those of them that the backend or another node has: they are fetched again when they are needed.
    pub replaceable: u64,
    /// Those of them that nobody else has.
    pub lost: u64,
}

impl Bounded for ScrubOk {
    fn check(&self) -> Result<(), FieldError> {
        Ok(())
    }
}
