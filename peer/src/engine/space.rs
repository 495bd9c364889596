//! Disk space: allocation with eviction, and letting versions go.
//!
//! Invariant: blocks are reused only after the catalog durably no longer names them and nobody reads them. The store's
//! leases count the readers; the order of the commit before [`retire`](crate::store::Lease::retire) is kept here.

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use dfstore_proto::ids::TaskId;

use crate::catalog::{Change, Durability};
use crate::engine::call::TaskCall;
use crate::engine::error::ObjectError;
use crate::engine::owner::Owner;
use crate::engine::task::Task;
use crate::engine::version::Version;
use crate::engine::{Engine, Remote};
use crate::limits::{EVICT_ROUNDS_MAX, EVICTION_POLL, EVICTION_WAIT_MAX, RETIRED_POLL};
use crate::rt::arena::Slot;
use crate::rt::shard::{begun, spawn_local};
use crate::rt::time::sleep;
use crate::store::Reservation;

/// Evictions of all shards, for those who find nothing to evict because somebody else is about it.
#[derive(Debug, Default)]
pub struct Evictions {
    under_way: AtomicU64,
    /// Whatever became of them.
    ended: AtomicU64,
}

impl Evictions {
    /// How many have ended so far.
    fn ended(&self) -> u64 {
        self.ended.load(Ordering::Acquire)
    }

    /// Whether one has ended since then, or is under way.
    fn go_on(&self, ended_before: u64) -> bool {
        self.under_way.load(Ordering::Acquire) > 0 || self.ended() != ended_before
    }
}

/// An eviction that is under way; over when dropped.
struct Evicting<'a>(&'a Evictions);

impl<'a> Evicting<'a> {
    fn begin(evictions: &'a Evictions) -> Evicting<'a> {
        evictions.under_way.fetch_add(1, Ordering::AcqRel);
        Evicting(evictions)
    }
}

impl Drop for Evicting<'_> {
    fn drop(&mut self) {
        // In this order: nobody sees neither.
        self.0.ended.fetch_add(1, Ordering::AcqRel);
        self.0.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Engine {
    /// Bytes that pieces can take at this peer.
    pub fn capacity_bytes(&self) -> u64 {
        self.0.store.stats().capacity_bytes
    }
}

impl Owner {
    /// Space for `slot` with the bytes written to it (not yet synced), evicting clean versions if need be; `spare` is
    /// not evicted for it.
    pub async fn write_new(self: &Rc<Self>, slot: Slot, spare: Option<&TaskId>) -> Result<Reservation, ObjectError> {
        let reservation = self.take_space(slot.len(), spare).await?;
        self.store.write(&reservation, slot).await?;
        Ok(reservation)
    }

    /// Space for so many bytes, likewise.
    pub async fn take_space(
        self: &Rc<Self>,
        length: usize,
        spare: Option<&TaskId>,
    ) -> Result<Reservation, ObjectError> {
        let (mut rounds, began) = (0, Instant::now());
        loop {
            let evictions_before = self.context.evictions.ended();
            match self.store.allocate(length).await {
                Ok(reservation) => return Ok(reservation),
                Err(error) if error.is_space() && rounds < EVICT_ROUNDS_MAX => {
                    rounds += 1;
                    if self.evict_anywhere(length as u64, spare).await > 0 {
                        continue;
                    }
                    // What can go is going, for others who need space: there may be enough for both.
                    let others = self.context.evictions.go_on(evictions_before);
                    if others && began.elapsed() < EVICTION_WAIT_MAX {
                        rounds -= 1;
                        sleep(EVICTION_POLL).await;
                    } else {
                        tracing::warn!(%error, "no space, and nothing to evict");
                        return Err(error.into());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Evicts here, or on the other shards when nothing can go here. Gives the bytes that became free.
    async fn evict_anywhere(self: &Rc<Self>, bytes: u64, spare: Option<&TaskId>) -> u64 {
        let mut freed = self.evict(bytes, spare).await;
        for (shard, mailbox) in self.context.shards.iter().enumerate() {
            if freed == 0 && shard != self.shard {
                let remote = Remote::new(mailbox.clone());
                freed += remote.ask(|reply| TaskCall::Evict { bytes, reply }).await.unwrap_or(0);
            }
        }
        if freed == 0 {
            freed = self.evict_such(bytes, spare, Version::is_idle_clean).await;
        }
        freed
    }

    /// Evicts clean versions of this shard that nobody reads, here or at another peer, until about `bytes` are free. Gives
    /// the bytes that became free.
    pub async fn evict(self: &Rc<Self>, bytes: u64, spare: Option<&TaskId>) -> u64 {
        self.evict_such(bytes, spare, |version| version.is_clean() && !version.is_read()).await
    }

    async fn evict_such(self: &Rc<Self>, bytes: u64, spare: Option<&TaskId>, may_go: impl Fn(&Version) -> bool) -> u64 {
        let victims = self.eviction.borrow_mut().victims(bytes, |id| {
            let version = self.known(id).and_then(|task| task.current());
            Some(id) != spare && version.is_some_and(|version| version.stored_count.get() > 0 && may_go(&version))
        });
        let mut gone = Vec::new();
        for id in victims {
            let Some(task) = self.known(&id) else { continue };
            // A commit under way replaces the version anyway.
            let Some(commit) = task.commit_lock.try_lock() else { continue };
            let Some(version) = self.publish(&task, None) else { continue };
            if self.cluster.is_some() {
                task.remember(&version);
            }
            gone.push(version);
            drop(commit);
            if self.cluster.is_none() {
                self.forget_if_unknown(&task);
            }
        }
        self.free(gone).await
    }

    /// Forgets what is cached of a task, unless the backend does not have it or someone reads it. Gives the bytes that
    /// became free.
    pub async fn evict_task(self: &Rc<Self>, task: &Rc<Task>) -> u64 {
        let version = {
            let _commit = task.commit_lock.lock().await;
            let Some(version) = task.current().filter(|version| version.is_idle_clean()) else { return 0 };
            self.publish(task, None);
            task.remember(&version);
            version
        };
        self.free(vec![version]).await
    }

    /// Has the catalog forget versions that were evicted, and lets go of them. Gives the bytes that became free.
    async fn free(self: &Rc<Self>, gone: Vec<Rc<Version>>) -> u64 {
        let freed = gone.iter().map(|version| version.disk_bytes()).sum();
        let pieces = gone.iter().map(|version| u64::from(version.stored_count.get())).sum();
        let recorded = gone.iter().filter(|version| version.recorded.get());
        let changes: Vec<Change> = recorded.map(|version| Change::RemoveTask { task: version.task }).collect();
        let _evicting = (!gone.is_empty()).then(|| Evicting::begin(&self.context.evictions));
        if !changes.is_empty()
            && let Err(error) = self.context.catalog.commit(changes, Durability::Durable).await
        {
            tracing::error!(%error, "evicted space is not reused: the catalog did not take the removal");
            return 0;
        }
        self.metrics.evicted(pieces, freed);
        for version in gone {
            // Its space is needed now. A peer that still reads it opens it again.
            version.read_until_ms.set(0);
            self.let_go(version);
        }
        freed
    }

    /// Keeps the space in use under the watermark, so that writers seldom wait for eviction.
    pub async fn evict_to_watermark(self: &Rc<Self>) {
        let stats = self.store.stats();
        let own_bytes = self.eviction.borrow().bytes();
        let excess = self.watermarks.excess_bytes(stats.capacity_bytes, stats.used_bytes, own_bytes);
        if excess > 0 {
            self.evict(excess, None).await;
        }
    }

    /// Makes a clean version of which the catalog has no record current, or nothing, and retires the one before: what
    /// waits for the backend of it is void. For callers that hold `commit_lock`.
    pub fn supersede(self: &Rc<Self>, task: &Rc<Task>, version: Option<Rc<Version>>) {
        let before = self.publish(task, version.clone());
        self.queue.remove(task);
        if let Some(version) = version {
            self.restart_eviction(&version);
        }
        if let Some(before) = before {
            self.retire(task, before);
        }
    }

    /// A task whose content is new counts as new for eviction.
    pub fn restart_eviction(&self, version: &Version) {
        let mut eviction = self.eviction.borrow_mut();
        eviction.remove(&version.task);
        eviction.insert(version.task, version.disk_bytes());
    }

    /// A version that is no longer current, and that the catalog may still name: has it forgotten there, then lets go
    /// of its space.
    fn retire(self: &Rc<Self>, task: &Rc<Task>, version: Rc<Version>) {
        let mut changes = match task.current() {
            Some(newer) if newer.recorded.get() => version.forgetting(),
            // The newer version's record comes with its first piece.
            _ if version.recorded.get() => vec![Change::RemoveTask { task: version.task }],
            _ => Vec::new(),
        };
        if !version.is_clean() {
            changes.push(Change::RemoveWriteBack { task: version.task });
        }
        self.keep_reachable(&version);
        let owner = self.clone();
        let catalog = self.context.catalog.clone();
        // Given to the catalog before anyone else can take the lock: behind the changes of a newer version it would have
        // that one forgotten.
        let forgotten =
            begun(async move { changes.is_empty() || catalog.commit(changes, Durability::Durable).await.is_ok() });
        spawn_local(async move {
            if forgotten.await {
                owner.let_go(version);
            }
        });
    }

    /// The catalog no longer names this version: its space is free as soon as nobody reads it.
    pub fn let_go(self: &Rc<Self>, version: Rc<Version>) {
        for (_, piece) in version.stored_pieces() {
            piece.lease.retire();
        }
        if let Some(download) = version.download.borrow().as_ref() {
            download.let_go();
        }
        self.keep_reachable(&version);
    }

    /// Those who opened the version may still ask for its pieces; while it is in the table, its leases live.
    fn keep_reachable(self: &Rc<Self>, version: &Rc<Version>) {
        let key = (version.task, version.generation);
        if !version.is_read() || self.retired.borrow().contains_key(&key) {
            return;
        }
        self.retired.borrow_mut().insert(key, version.clone());
        let (owner, version) = (self.clone(), version.clone());
        spawn_local(async move {
            while version.is_read() {
                sleep(RETIRED_POLL).await;
            }
            owner.retired.borrow_mut().remove(&key);
        });
    }
}
