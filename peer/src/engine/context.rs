//! What all shards share: the resources below the engine, and the counted limits of the process.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::background::BackgroundHandle;
use crate::catalog::CatalogHandle;
use crate::config::options::{ClusterOptions, ConflictPolicy, Freshness, PerBucket, StoreOptions};
use crate::engine::call::ShardMessage;
use crate::engine::space::Evictions;
use crate::limits::REPAIR_BYTES_PER_SECOND;
use crate::metrics::Metrics;
use crate::rt::arena::Arena;
use crate::rt::mailbox::Sender;
use crate::sidecar::backend::BackendHandle;
use crate::sidecar::health::Health;

/// Handles that every shard's engine holds. All of them may be cloned and sent.
#[derive(Clone)]
pub struct Context {
    /// Piece buffers.
    pub arena: Arena,
    /// The embedded database.
    pub catalog: CatalogHandle,
    /// The bucket behind us.
    pub backend: BackendHandle,
    /// Bulk reads that no client waits for.
    pub background: BackgroundHandle,
    /// Counters.
    pub metrics: Metrics,
    /// What the process says about its own state.
    pub health: Health,
    /// How long a clean version counts as fresh.
    pub freshness: PerBucket<Freshness>,
    /// What becomes of a pending write when others change the object in the backend.
    pub conflict: PerBucket<ConflictPolicy>,
    /// When and how fast pieces on disk are read again.
    pub scrub: ScrubPlan,
    /// Bytes that may not be evicted.
    pub dirty: DirtyBudget,
    /// The mailbox of each shard.
    pub shards: Vec<Sender<ShardMessage>>,
    /// When and how fast copies that were lost are made anew.
    pub repair: RepairPlan,
    /// Copies on seeds, for a write that does not say how many.
    pub replicas_default: u16,
    /// Pieces that are being sent to other peers now.
    pub uploads: Arc<AtomicU32>,
    /// Evictions of all shards.
    pub evictions: Arc<Evictions>,
    /// Outages of the backend whose end a write-back has seen: each shard tries at once what it has put off.
    pub outages_ended: Arc<AtomicU64>,
    /// Numbers for uploads and readers.
    pub next_id: Arc<AtomicU64>,
}

/// When and how fast pieces on disk are read again, by each shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubPlan {
    /// How often; `None` for never by itself.
    pub period: Option<Duration>,
    rate: Rate,
}

impl ScrubPlan {
    /// The share of one of `shards` shards.
    pub fn of(options: &StoreOptions, shards: usize) -> ScrubPlan {
        ScrubPlan { period: options.scrub_period, rate: Rate::share(options.scrub_bytes_per_second, shards) }
    }

    /// How long reading so many bytes is to take.
    pub fn time_for(&self, bytes: u64) -> Duration {
        self.rate.time_for(bytes)
    }
}

/// When and how fast copies that were lost are made anew, by each shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepairPlan {
    /// A seed may be gone this long before.
    pub after: Duration,
    rate: Rate,
}

impl RepairPlan {
    /// The share of one of `shards` shards. Without a cluster there is nothing to repair.
    pub fn of(options: Option<&ClusterOptions>, shards: usize) -> RepairPlan {
        let after = options.map_or(Duration::MAX, |cluster| cluster.repair_after);
        RepairPlan { after, rate: Rate::share(REPAIR_BYTES_PER_SECOND, shards) }
    }

    /// How long copying so many bytes is to take.
    pub fn time_for(&self, bytes: u64) -> Duration {
        self.rate.time_for(bytes)
    }
}

/// Bytes per second, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rate(u64);

impl Rate {
    fn share(bytes_per_second: u64, shards: usize) -> Rate {
        Rate((bytes_per_second / shards.max(1) as u64).max(1))
    }

    fn time_for(self, bytes: u64) -> Duration {
        let micros = u128::from(bytes) * 1_000_000 / u128::from(self.0);
        Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }
}

impl Context {
    /// A number that no other upload or reader of this process has.
    pub fn unique_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }
}

/// Bytes that may not be evicted: dirty and ephemeral versions and uploads in progress. Counted over all shards.
#[derive(Clone)]
pub struct DirtyBudget(Arc<Dirty>);

struct Dirty {
    bytes: AtomicU64,
    limit_bytes: u64,
}

impl DirtyBudget {
    /// A budget of `limit_bytes`.
    pub fn new(limit_bytes: u64) -> DirtyBudget {
        DirtyBudget(Arc::new(Dirty { bytes: AtomicU64::new(0), limit_bytes }))
    }

    /// An empty hold on this budget.
    pub fn hold(&self) -> DirtyHold {
        DirtyHold { budget: self.clone(), bytes: Cell::new(0) }
    }

    /// Bytes taken now.
    pub fn bytes(&self) -> u64 {
        self.0.bytes.load(Ordering::Acquire)
    }

    /// Most bytes.
    pub fn limit_bytes(&self) -> u64 {
        self.0.limit_bytes
    }
}

/// The part of the budget that one upload or version takes. Given back when dropped.
pub struct DirtyHold {
    budget: DirtyBudget,
    bytes: Cell<u64>,
}

impl DirtyHold {
    /// Takes `bytes` more if they fit.
    pub fn try_grow(&self, bytes: u64) -> bool {
        let dirty = &self.budget.0;
        let before = dirty.bytes.fetch_add(bytes, Ordering::AcqRel);
        let fits = before.saturating_add(bytes) <= dirty.limit_bytes;
        if fits {
            self.bytes.set(self.bytes.get() + bytes);
        } else {
            dirty.bytes.fetch_sub(bytes, Ordering::AcqRel);
        }
        fits
    }

    /// What it takes now.
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// Takes `bytes` more whether they fit or not: what an earlier run left on disk counts.
    pub fn grow(&self, bytes: u64) {
        self.budget.0.bytes.fetch_add(bytes, Ordering::AcqRel);
        self.bytes.set(self.bytes.get() + bytes);
    }
}

impl Drop for DirtyHold {
    fn drop(&mut self) {
        self.budget.0.bytes.fetch_sub(self.bytes.get(), Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_share_the_rate_of_repair_and_small_objects_take_their_time_too() {
        let one = RepairPlan::of(None, 1);
        assert_eq!(one.time_for(REPAIR_BYTES_PER_SECOND), Duration::from_secs(1));
        let of_four = RepairPlan::of(None, 4);
        assert_eq!(of_four.time_for(REPAIR_BYTES_PER_SECOND), Duration::from_secs(4));
        assert_eq!(of_four.time_for(64 << 10), Duration::from_micros(976));
        assert!(one.time_for(u64::MAX) > one.time_for(1 << 50));
    }
}
