//! What the process counts about itself, and the text that Prometheus reads.
//!
//! Owns one registry. Any thread may call any method: counts are atomics, and the hot paths (requests, bytes) take no
//! lock. Knows nothing of the components; they call it. Nothing here can fail. Labels come from closed sets, never
//! from what a client sends, so the number of series is bounded.

mod backend;
mod peers;
mod process;
mod requests;
mod series;
mod shard;
#[cfg(test)]
mod tests;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dfstore_proto::object::Source;
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::rt::arena::{Arena, Holder};
use crate::rt::time::unix_ms;

pub use backend::{BackendOperation, BackendOutcome};
pub use peers::{LinkGuard, PeerFailure};
pub use requests::{Face, Operation, RequestTimer, STATUS_ABORTED};
pub use shard::{CacheSize, ConnectionGuard, ShardMetrics, WorkHeld, WriteBackState};

use series::{DurationHistogram, Series};
use shard::signed;

/// Media type of what [`Metrics::encode`] gives.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Every counter of the process. Clones share them.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    requests: requests::RequestMetrics,
    backend: backend::BackendMetrics,
    peers: peers::PeerMetrics,
    shards: Vec<ShardMetrics>,
    process: process::ProcessMetrics,
    served_bytes: Series<Counter>,
    received_bytes: Series<Counter>,
    piece_reads: Series<Counter>,
    capacity_bytes: Gauge,
    store_used_bytes: Gauge,
    oldest_dirty_seconds: Gauge,
    dirty_limit_used_bytes: Gauge,
    writeback_attempts: Series<Counter>,
    writeback_conflicts: Counter,
    arena: OnceLock<Arena>,
    arena_bytes: Gauge,
    arena_held_bytes: Series<Gauge>,
    arena_hot_bytes: Gauge,
    catalog_commits: Counter,
    catalog_changes: Counter,
    catalog_commit_duration: DurationHistogram,
    store_poisoned: Gauge,
    cluster_nodes: Series<Gauge>,
    gossip_refused: Counter,
}

impl Metrics {
    /// The counters of a process with this many shards. `host` is the address clients know, for the one label of the
    /// original's metrics that names it.
    pub fn new(shards: usize, host: &str) -> Metrics {
        let mut registry = Registry::default();
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("dfstore_build", "Which program this is", build);
        let capacity_bytes = gauge(&mut registry, "dfstore_cache_capacity_bytes", "Most bytes of pieces on disk");
        let used = "Bytes of disk blocks that pieces take, those being written and those still read included";
        let store_used_bytes = gauge(&mut registry, "dfstore_store_used_bytes", used);
        let oldest = "Age of the oldest acknowledged version that the backend does not have";
        let oldest_dirty_seconds = gauge(&mut registry, "dfstore_dirty_oldest_age_seconds", oldest);
        let limited = "Bytes that count against storage.dirtyLimit: dirty and ephemeral objects, and uploads under way";
        let dirty_limit_used_bytes = gauge(&mut registry, "dfstore_dirty_limit_used_bytes", limited);
        let arena_bytes = gauge(&mut registry, "dfstore_arena_bytes", "Bytes of the piece arena");
        let hot =
            "Bytes of the piece arena that stay in memory in case they are read again; given up when they are needed";
        let arena_hot_bytes = gauge(&mut registry, "dfstore_arena_hot_bytes", hot);
        let poisoned = "1 after the disk failed a sync or a write: the store takes no more writes";
        let store_poisoned = gauge(&mut registry, "dfstore_store_poisoned", poisoned);
        let catalog_commits = counter(&mut registry, "dfstore_catalog_commits", "Catalog transactions made durable");
        let catalog_changes = counter(&mut registry, "dfstore_catalog_changes", "Changes in those transactions");
        let catalog_commit_duration = DurationHistogram::default();
        let help = "Time of a catalog transaction, its sync included";
        registry.register("dfstore_catalog_commit_duration_seconds", help, catalog_commit_duration.clone());
        let gossip_refused = counter(&mut registry, "dfstore_gossip_refused", "Datagrams of strangers, dropped");
        let served = "Object bytes sent to clients, by where they came from";
        let reads = "Pieces in the store that were read, for clients and for other peers, by where they lay";
        let received = "Object bytes received from clients, by face";
        let conflicts = "Pending writes that found the object changed by others in the backend, and did not replace it";
        let writeback_conflicts = counter(&mut registry, "dfstore_writeback_conflicts", conflicts);
        let attempts = "Attempts to write a dirty object to the backend, by outcome";
        let held = "Bytes of the piece arena in use, by holder";
        Metrics(Arc::new(Inner {
            requests: requests::RequestMetrics::new(&mut registry, host),
            backend: backend::BackendMetrics::new(&mut registry),
            peers: peers::PeerMetrics::new(&mut registry),
            shards: shard::register(&mut registry, shards),
            process: process::ProcessMetrics::new(&mut registry),
            served_bytes: Series::new(&mut registry, "dfstore_served_bytes", served, SOURCES),
            received_bytes: Series::new(&mut registry, "dfstore_received_bytes", received, Face::COUNT),
            piece_reads: Series::new(&mut registry, "dfstore_piece_reads", reads, 2),
            capacity_bytes,
            store_used_bytes,
            oldest_dirty_seconds,
            dirty_limit_used_bytes,
            writeback_attempts: Series::new(&mut registry, "dfstore_writeback_attempts", attempts, 2),
            writeback_conflicts,
            arena: OnceLock::new(),
            arena_bytes,
            arena_hot_bytes,
            arena_held_bytes: Series::new(&mut registry, "dfstore_arena_held_bytes", held, Holder::ALL.len()),
            catalog_commits,
            catalog_changes,
            catalog_commit_duration,
            store_poisoned,
            cluster_nodes: Series::new(&mut registry, "dfstore_cluster_nodes", "Live nodes of the cluster, by role", 2),
            gossip_refused,
            registry,
        }))
    }

    /// A request arrived. Call [`RequestTimer::finish`] when it is answered.
    pub fn request(&self, face: Face, operation: Operation) -> RequestTimer {
        RequestTimer::start(self.clone(), face, operation)
    }

    /// Object bytes went to a client.
    pub fn served(&self, source: Source, bytes: u64) {
        let labels = || vec![("source", source.name().into())];
        self.0.served_bytes.at(source as usize, labels).inc_by(bytes);
    }

    /// A piece in the store was read: from memory, or from disk.
    pub fn piece_read(&self, from_memory: bool) {
        let labels = || vec![("from", if from_memory { "memory" } else { "disk" }.into())];
        self.0.piece_reads.at(from_memory.into(), labels).inc();
    }

    /// Object bytes came from a client.
    pub fn received(&self, face: Face, bytes: u64) {
        self.0.received_bytes.at(face as usize, || vec![("face", face.name().into())]).inc_by(bytes);
    }

    /// The counters of a shard.
    pub fn shard(&self, shard: usize) -> ShardMetrics {
        self.0.shards[shard].clone()
    }

    /// Acknowledged bytes that the backend does not have, as the shards last said.
    pub fn dirty_bytes(&self) -> u64 {
        self.0.shards.iter().map(ShardMetrics::dirty_bytes).sum()
    }

    /// A backend request begins; it counts as in flight until [`backend_finished`](Self::backend_finished).
    pub fn backend_started(&self) {
        self.0.backend.in_flight.inc();
    }

    /// A backend request ended.
    pub fn backend_finished(&self, operation: BackendOperation, outcome: BackendOutcome, duration: Duration) {
        self.0.backend.in_flight.dec();
        self.0.backend.count(operation, outcome, duration);
    }

    /// A backend request is made again.
    pub fn backend_retried(&self) {
        self.0.backend.retries.inc();
    }

    /// Object bytes came from the backend.
    pub fn backend_received(&self, bytes: u64) {
        self.0.backend.received_bytes.inc_by(bytes);
    }

    /// Object bytes went to the backend.
    pub fn backend_sent(&self, bytes: u64) {
        self.0.backend.sent_bytes.inc_by(bytes);
    }

    /// An attempt to write an object back ended.
    pub fn writeback_attempted(&self, succeeded: bool) {
        let outcome = if succeeded { "ok" } else { "error" };
        self.0.writeback_attempts.at(usize::from(succeeded), || vec![("outcome", outcome.into())]).inc();
    }

    /// A pending write did not replace what others wrote meanwhile.
    pub fn writeback_conflict(&self) {
        self.0.writeback_conflicts.inc();
    }

    /// A catalog transaction was made durable.
    pub fn catalog_committed(&self, changes: usize, duration: Duration) {
        self.0.catalog_commits.inc();
        self.0.catalog_changes.inc_by(u64::try_from(changes).unwrap_or(u64::MAX));
        self.0.catalog_commit_duration.observe(duration);
    }

    /// A sync failed: the store takes no more writes.
    pub fn set_poisoned(&self) {
        self.0.store_poisoned.set(1);
    }

    /// How many nodes of the cluster are alive, and how many of them are seeds.
    pub fn set_cluster_nodes(&self, live: usize, seeds: usize) {
        for (index, role, count) in [(0, "peer", live.saturating_sub(seeds)), (1, "seed", seeds)] {
            self.0.cluster_nodes.at(index, || vec![("role", role.into())]).set(signed(count as u64));
        }
    }

    /// A datagram that no node of this cluster sent was dropped.
    pub fn gossip_refused(&self) {
        self.0.gossip_refused.inc();
    }

    /// The quota of the store.
    pub fn set_capacity(&self, bytes: u64) {
        self.0.capacity_bytes.set(signed(bytes));
    }

    /// Bytes of disk blocks that are taken now.
    pub fn set_store_used(&self, bytes: u64) {
        self.0.store_used_bytes.set(signed(bytes));
    }

    /// So many bytes count against the dirty limit now.
    pub fn set_dirty_limit_used(&self, bytes: u64) {
        self.0.dirty_limit_used_bytes.set(signed(bytes));
    }

    /// Reports the use of this arena from now on. The first one counts.
    pub fn watch_arena(&self, arena: Arena) {
        let _ = self.0.arena.set(arena);
    }

    /// Everything as OpenMetrics text, see [`CONTENT_TYPE`].
    pub fn encode(&self) -> String {
        self.refresh();
        let mut text = String::with_capacity(32 << 10);
        text::encode(&mut text, &self.0.registry).expect("writing to a string cannot fail");
        text
    }

    /// Reads what is known only at the time of asking.
    fn refresh(&self) {
        let inner = &self.0;
        let oldest = inner.shards.iter().map(ShardMetrics::oldest_unix_ms).min().unwrap_or(u64::MAX);
        inner.oldest_dirty_seconds.set(signed(unix_ms().saturating_sub(oldest) / 1000));
        if let Some(arena) = inner.arena.get() {
            inner.arena_bytes.set(signed(arena.bytes() as u64));
            inner.arena_hot_bytes.set(signed(arena.idle_hot_bytes() as u64));
            for holder in Holder::ALL {
                let labels = || vec![("holder", holder.name().into())];
                let held = arena.held_bytes(holder) as u64;
                inner.arena_held_bytes.at(holder as usize, labels).set(signed(held));
            }
        }
        inner.process.refresh();
    }
}

/// How many sources there are.
const SOURCES: usize = Source::Stale as usize + 1;

fn gauge(registry: &mut Registry, name: &str, help: &str) -> Gauge {
    let gauge = Gauge::default();
    registry.register(name, help, gauge.clone());
    gauge
}

fn counter(registry: &mut Registry, name: &str, help: &str) -> Counter {
    let counter = Counter::default();
    registry.register(name, help, counter.clone());
    counter
}
