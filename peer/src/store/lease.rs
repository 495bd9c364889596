//! Who may use the blocks of a piece: reservations of fresh blocks, and leases of kept ones.
//!
//! Both count the same thing, the holders of one piece's extents. A reservation that is dropped gives its blocks
//! back: nothing durable names them yet. A lease that is dropped does not: the catalog may still name the blocks, so
//! losing a lease by mistake costs space until the next start and never data. Only [`Lease::retire`] marks the
//! blocks for reuse, and the last holder to go, on whatever thread, gives them back.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::rt::arena::{Hot, Slot};
use crate::store::StoreError;
use crate::store::extents::ExtentList;
use crate::store::plain::WriteState;
use crate::store::space::Space;

/// The extents of one piece as long as somebody may read or write them.
pub(super) struct Held {
    space: Arc<Space>,
    extents: ExtentList,
    /// Whether the last holder gives the blocks back.
    release: AtomicBool,
    /// The write that readers wait for, if there is one.
    write: OnceLock<Arc<WriteState>>,
    /// Where the bytes may stay in memory.
    hot: OnceLock<Hot>,
}

impl Held {
    fn new(space: Arc<Space>, extents: ExtentList, releases: bool) -> Arc<Held> {
        Arc::new(Held {
            space,
            extents,
            release: AtomicBool::new(releases),
            write: OnceLock::new(),
            hot: OnceLock::new(),
        })
    }

    fn hot(&self) -> &Hot {
        self.hot.get_or_init(Hot::default)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(hot) = self.hot.get() {
            hot.clear();
        }
        if self.release.load(Ordering::Acquire) {
            self.space.release(&self.extents);
        }
    }
}

/// Fresh blocks for one piece that no durable record names. Dropping it gives them back.
pub struct Reservation(Arc<Held>);

impl Reservation {
    pub(super) fn new(space: Arc<Space>, extents: ExtentList) -> Reservation {
        Reservation(Held::new(space, extents, true))
    }

    /// The blocks.
    pub fn extents(&self) -> &ExtentList {
        &self.0.extents
    }

    /// Where the bytes of the piece may stay in memory.
    pub fn hot(&self) -> &Hot {
        self.0.hot()
    }

    /// From here on the blocks stay taken even if every lease is lost. To be called *before* the change that names
    /// them is given to the catalog: once given, it may become durable whatever the answer says.
    pub fn keep(self) -> Lease {
        self.0.release.store(false, Ordering::Release);
        Lease(self.0)
    }

    /// Another holder, for the time a write takes: a cancelled caller must not free blocks the kernel still writes.
    pub(super) fn hold(&self) -> Arc<Held> {
        self.0.clone()
    }
}

/// A counted right to read the extents of a piece; while it is held they are not reused. Clones share the count.
#[derive(Clone)]
pub struct Lease(Arc<Held>);

impl Lease {
    /// The lease of extents that are marked as used already (see [`recover`](super::recover)).
    pub(super) fn of_claimed(space: Arc<Space>, extents: ExtentList) -> Lease {
        Lease(Held::new(space, extents, false))
    }

    /// The blocks.
    pub fn extents(&self) -> &ExtentList {
        &self.0.extents
    }

    /// The bytes of the piece, if they are in memory, for a reader.
    pub fn read_hot(&self) -> Option<Slot> {
        self.0.hot.get()?.read()
    }

    /// The same for a use that says nothing about later ones.
    pub fn peek_hot(&self) -> Option<Slot> {
        self.0.hot.get()?.peek()
    }

    /// Where the bytes of the piece may stay in memory.
    pub fn hot(&self) -> &Hot {
        self.0.hot()
    }

    /// From now on readers wait for this write.
    pub(super) fn wait_for(&self, write: Arc<WriteState>) {
        let _ = self.0.write.set(write);
    }

    /// Waits for the write that readers have to wait for.
    pub async fn written(&self) -> Result<(), StoreError> {
        match self.0.write.get() {
            Some(write) if !write.ended().await => Err(StoreError::Poisoned),
            _ => Ok(()),
        }
    }

    /// Gives the blocks back as soon as the last lease of them is dropped (now, if this is the last). To be called
    /// only *after* the catalog durably forgot them: a crash must never find two pieces with the same blocks.
    pub fn retire(self) {
        self.0.release.store(true, Ordering::Release);
    }
}

impl Deref for Lease {
    type Target = ExtentList;
    fn deref(&self) -> &ExtentList {
        &self.0.extents
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Lease").field(&self.0.extents).finish()
    }
}

impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Reservation").field(&self.0.extents).finish()
    }
}
