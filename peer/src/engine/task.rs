//! What the owner shard knows of an object: its current version, and the numbers of versions that were.
//!
//! A [`Task`] orders what happens to an object: `commit_lock` is held while the current version is replaced,
//! `backend_lock` while the backend's copy is written, so that an older version never overwrites a newer one. When both
//! are needed, `backend_lock` is taken first.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use dfstore_proto::message::KnownVersion;
use dfstore_proto::object::ObjectMeta;
use futures_util::future::{LocalBoxFuture, Shared};
use futures_util::lock::Mutex;

use crate::engine::error::ObjectError;
use crate::engine::holders::Holders;
use crate::engine::numbers;
use crate::engine::request::Target;
use crate::engine::version::Version;
use crate::limits::RESERVATION_HOLD;
use crate::rt::time::milliseconds;

/// One object, as its owner shard sees it.
pub struct Task {
    /// Which object.
    pub target: Target,
    /// The newest version, or a tombstone, or nothing known.
    pub current: RefCell<Option<Rc<Version>>>,
    /// Held while the current version is replaced in catalog and memory.
    pub commit_lock: Mutex<()>,
    /// Held while the backend's copy of this object is written, copied over or deleted.
    pub backend_lock: Mutex<()>,
    /// The question to the backend or the home that is under way, and whether it asks the backend for sure; all who
    /// ask meanwhile share it.
    pub check: RefCell<Option<(bool, Check)>>,
    /// Counts replacements of `current`: an answer of the backend that is older than the last one says nothing.
    pub epoch: Cell<u64>,
    /// The backend could not be asked at this time (Unix ms); it is left alone for a while.
    pub check_failed_at_ms: Cell<u64>,
    /// The highest generation of a version that was current here and is not.
    pub known: Cell<u64>,
    /// The highest generation that was promised to a writer.
    pub reserved: Cell<u64>,
    /// When it was promised (Unix ms).
    pub reserved_at_ms: Cell<u64>,
    /// At the home: the set of seeds (its epoch) whose members were asked what they know of this task, and until when
    /// (Unix ms) that is enough: for good if all of them said it.
    pub settled: Cell<(u64, u64)>,
    /// At the home: what a peer says it holds, whose number is given again if the backend still has the same.
    pub claimed: RefCell<Option<KnownVersion>>,
    /// At the home: who holds the version with that number, after it was evicted here.
    pub evicted: RefCell<Option<(u64, Holders)>>,
}

/// A shared question to the backend; true when its answer counted, false when it crossed a local change.
pub type Check = Shared<LocalBoxFuture<'static, Result<bool, ObjectError>>>;

impl Task {
    /// A task of which nothing is known yet.
    pub fn new(target: Target) -> Rc<Task> {
        Rc::new(Task {
            target,
            current: RefCell::new(None),
            commit_lock: Mutex::new(()),
            backend_lock: Mutex::new(()),
            check: RefCell::new(None),
            epoch: Cell::new(0),
            check_failed_at_ms: Cell::new(0),
            known: Cell::new(0),
            reserved: Cell::new(0),
            reserved_at_ms: Cell::new(0),
            settled: Cell::default(),
            claimed: RefCell::new(None),
            evicted: RefCell::new(None),
        })
    }

    /// The newest version or tombstone.
    pub fn current(&self) -> Option<Rc<Version>> {
        self.current.borrow().clone()
    }

    /// Keeps what others need to know of a version that is evicted here: its number, and who else holds it.
    pub fn remember(&self, version: &Version) {
        let meta = version.meta.borrow();
        let (generation, etag, length) = (version.generation, meta.etag.clone(), meta.length);
        self.claimed.replace(Some(KnownVersion { generation, etag, length }));
        self.evicted.replace(Some((generation, version.holders.take())));
    }

    /// Makes `version` the current one; gives the one before.
    pub fn replace(&self, version: Option<Rc<Version>>) -> Option<Rc<Version>> {
        self.epoch.set(self.epoch.get() + 1);
        let before = self.current.replace(version);
        let known = before.as_ref().map_or(0, |before| before.known_generation());
        self.known.set(known.max(self.known.get()));
        before
    }

    /// Whether `version` is the current one.
    pub fn is_current(&self, version: &Rc<Version>) -> bool {
        self.current.borrow().as_ref().is_some_and(|current| Rc::ptr_eq(current, version))
    }

    /// The generation for a new version: above every earlier one, also across restarts and evictions, as long as the
    /// clock of this machine does not run backwards by more than the task was forgotten.
    pub fn next_generation(&self, now_ms: u64) -> u64 {
        (self.last_generation().max(self.known.get()) + 1).max(now_ms.saturating_mul(1000))
    }

    /// The generation for what the backend has: that of a peer that holds the same content, if one said so and it is
    /// above every earlier one here, else one for the time at which it came there, if that is above every earlier one,
    /// else the next. What the backend had before does not outrank a write of which this peer is yet to be told.
    pub fn generation_for(&self, meta: &ObjectMeta, now_ms: u64) -> u64 {
        let claimed = self.claimed.take().filter(|claimed| {
            claimed.etag == meta.etag && claimed.length == meta.length && claimed.generation > self.last_generation()
        });
        if let Some(claimed) = claimed {
            return claimed.generation;
        }
        let taken = self.known.get().max(self.current().map_or(0, |version| version.known_generation()));
        let found = numbers::of_found(meta, now_ms).filter(|found| *found > taken && *found != self.reserved.get());
        found.unwrap_or_else(|| self.next_generation(now_ms))
    }

    /// Promises a number to a writer.
    pub fn reserve(&self, generation: u64, now_ms: u64) {
        self.reserved.set(generation.max(self.reserved.get()));
        self.reserved_at_ms.set(now_ms);
    }

    /// Whether a writer has a number and may still come with its version: what the backend has meanwhile must not get
    /// a higher one.
    pub fn awaits_writer(&self, now_ms: u64) -> bool {
        let hold_ms = milliseconds(RESERVATION_HOLD);
        let newest = self.current.borrow().as_ref().map_or(0, |version| version.generation);
        self.reserved.get() > newest && now_ms < self.reserved_at_ms.get().saturating_add(hold_ms)
    }

    fn last_generation(&self) -> u64 {
        self.current.borrow().as_ref().map_or(0, |version| version.generation).max(self.reserved.get())
    }
}
