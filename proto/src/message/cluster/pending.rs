//! What the backend does not know yet: PENDING asks a seed for the objects that a listing of the backend would show
//! wrongly.

use serde::{Deserialize, Serialize};

use crate::error::FieldError;
use crate::limits::{BUCKET_BYTES_MAX, CONTROL_BYTES_MAX, KEY_BYTES_MAX, LIST_ENTRIES_MAX};
use crate::message::Bounded;
use crate::message::object::{ListEntry, PAGE_BYTES};
use crate::wire::{self, at_most, filled, number_at_most};

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

/// Answers PENDING. Make it with a [`PendingPage`], which ends it where a frame would overflow.
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
        number_at_most("written", (self.written.len() + self.deleted.len()) as u64, LIST_ENTRIES_MAX as u64)?;
        self.written.iter().try_for_each(ListEntry::check)?;
        self.deleted.iter().try_for_each(|key| filled("deleted", key, KEY_BYTES_MAX))?;
        at_most("next_marker", &self.next_marker, KEY_BYTES_MAX)
    }
}

/// Fills one answer until the list or the frame is full. Objects come in byte order, written and deleted mixed.
#[derive(Debug)]
pub struct PendingPage {
    page: PendingOk,
    payload_bytes: usize,
    last: String,
}

impl Default for PendingPage {
    fn default() -> PendingPage {
        PendingPage::new()
    }
}

impl PendingPage {
    /// An empty page.
    pub fn new() -> PendingPage {
        PendingPage { page: PendingOk::default(), payload_bytes: PAGE_BYTES, last: String::new() }
    }

    /// Adds an object that was written; `false` when the page is full and must be finished with more to follow.
    pub fn push_written(&mut self, entry: ListEntry) -> bool {
        let fits = self.make_room(wire::section_bytes(&entry));
        if fits {
            self.last.clone_from(&entry.key);
            self.page.written.push(entry);
        }
        fits
    }

    /// Adds a key that was deleted; `false` when the page is full and must be finished with more to follow.
    pub fn push_deleted(&mut self, key: String) -> bool {
        let fits = self.make_room(wire::section_bytes(&key));
        if fits {
            self.last.clone_from(&key);
            self.page.deleted.push(key);
        }
        fits
    }

    fn make_room(&mut self, item_bytes: usize) -> bool {
        let items = self.page.written.len() + self.page.deleted.len();
        let fits = items < LIST_ENTRIES_MAX && self.payload_bytes + item_bytes <= CONTROL_BYTES_MAX as usize;
        if fits {
            self.payload_bytes += item_bytes;
        }
        fits
    }

    /// The page. `truncated`: more follows its last object.
    pub fn finish(mut self, truncated: bool) -> PendingOk {
        if truncated {
            self.page.next_marker = self.last;
        }
        self.page
    }
}
