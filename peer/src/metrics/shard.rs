//! What one shard counts: its cache, its dirty data, its write-back queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::requests::Face;
use super::series::Series;

/// What a shard's share of the store holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheSize {
    /// Bytes of pieces on disk.
    pub bytes: u64,
    /// Pieces on disk.
    pub pieces: u64,
    /// Tasks known.
    pub tasks: u64,
}

/// What a shard still owes the backend now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteBackState {
    /// Dirty bytes.
    pub dirty_bytes: u64,
    /// Objects that wait for their turn or are being sent.
    pub queued: u64,
    /// Objects put aside because the backend refuses them for good.
    pub dead_letters: u64,
    /// When the oldest dirty version was written, in milliseconds since the Unix epoch.
    pub oldest_unix_ms: Option<u64>,
}

/// What work in progress holds of a shard now; nothing when it is at rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkHeld {
    /// Uploads that were begun and are neither committed nor given up.
    pub uploads: u64,
    /// Replaced versions that someone still reads.
    pub retired_versions: u64,
    /// Permits that are out.
    pub permits: u64,
}

/// The series of one metric that has a member per shard.
struct PerShard<'a> {
    registry: &'a mut Registry,
    count: usize,
}

impl PerShard<'_> {
    fn counters(&mut self, name: &str, help: &str) -> Vec<Counter> {
        let series = Series::<Counter>::new(self.registry, name, help, self.count);
        (0..self.count).map(|shard| series.at(shard, || vec![("shard", shard.to_string().into())]).clone()).collect()
    }

    fn gauges(&mut self, name: &str, help: &str) -> Vec<Gauge> {
        let series = Series::<Gauge>::new(self.registry, name, help, self.count);
        (0..self.count).map(|shard| series.at(shard, || vec![("shard", shard.to_string().into())]).clone()).collect()
    }
}

/// The counters of one shard. Clones share them.
#[derive(Clone)]
pub struct ShardMetrics(Arc<ShardCounters>);

struct ShardCounters {
    cache_bytes: Gauge,
    cache_pieces: Gauge,
    cache_tasks: Gauge,
    evicted_pieces: Counter,
    evicted_bytes: Counter,
    dirty_bytes: Gauge,
    queued: Gauge,
    dead_letters: Gauge,
    oldest_unix_ms: AtomicU64,
    fetches_joined: Counter,
    crc_failures: Counter,
    quarantined: Counter,
    parents_avoided: Counter,
    copies_made: Counter,
    replicas_short: Counter,
    strays_aborted: Counter,
    scrubbed_pieces: Counter,
    scrubbed_bytes: Counter,
    mailbox_messages: Gauge,
    uploads: Gauge,
    retired_versions: Gauge,
    permits: Gauge,
    pub(super) connections: [Gauge; Face::COUNT],
}

/// Registers the metrics of `count` shards.
pub(super) fn register(registry: &mut Registry, count: usize) -> Vec<ShardMetrics> {
    let connections = Series::<Gauge>::new(
        registry,
        "dfstore_connections",
        "Client connections open, by shard and face",
        count * Face::COUNT,
    );
    let mut each = PerShard { registry, count };
    let cache_bytes = each.gauges("dfstore_cache_bytes", "Bytes of pieces on disk");
    let cache_pieces = each.gauges("dfstore_cache_pieces", "Pieces on disk");
    let cache_tasks = each.gauges("dfstore_cache_tasks", "Objects known to the catalog");
    let evicted_pieces = each.counters("dfstore_evicted_pieces", "Pieces evicted to make room");
    let evicted_bytes = each.counters("dfstore_evicted_bytes", "Bytes evicted to make room");
    let dirty_bytes = each.gauges("dfstore_dirty_bytes", "Acknowledged bytes that the backend does not have yet");
    let queued = each.gauges("dfstore_writeback_queue", "Objects that wait for the backend or are being sent");
    let dead_letters = each.gauges("dfstore_writeback_dead_letters", "Objects that the backend refuses for good");
    let fetches_joined = each.counters("dfstore_fetches_joined", "Requests that joined a fetch already under way");
    let crc_failures = each.counters("dfstore_crc_failures", "Pieces whose checksum was wrong when read from disk");
    let quarantined = each.counters("dfstore_quarantined_pieces", "Pieces taken out of use for a wrong checksum");
    let parents_avoided = each.counters(
        "dfstore_parents_avoided",
        "Times that a peer was left alone for a while because it sent wrong bytes, nothing, or too slowly",
    );
    let copies_made = each.counters("dfstore_replicas_made", "Copies of objects that this seed has come to keep");
    let replicas_short =
        each.counters("dfstore_replicas_short", "Writes that asked for more replicas than there were seeds");
    let strays_aborted =
        each.counters("dfstore_stray_uploads_aborted", "Multipart uploads that served nobody and were aborted");
    let scrubbed_pieces = each.counters("dfstore_scrubbed_pieces", "Pieces that were read again to check them");
    let scrubbed_bytes = each.counters("dfstore_scrubbed_bytes", "Bytes that were read again to check them");
    let mailbox_messages = each.gauges("dfstore_mailbox_messages", "Messages that wait in the shard's mailbox");
    let uploads = each.gauges("dfstore_uploads_open", "Uploads neither committed nor given up");
    let retired_versions = each.gauges("dfstore_retired_versions", "Replaced versions that someone still reads");
    let permits = each.gauges("dfstore_permits_out", "Permits to copy or to ask the backend that are out");
    (0..count)
        .map(|shard| {
            let connections = [Face::Http, Face::Native].map(|face| {
                let labels = || vec![("shard", shard.to_string().into()), ("face", face.name().into())];
                connections.at(shard * Face::COUNT + face as usize, labels).clone()
            });
            ShardMetrics(Arc::new(ShardCounters {
                cache_bytes: cache_bytes[shard].clone(),
                cache_pieces: cache_pieces[shard].clone(),
                cache_tasks: cache_tasks[shard].clone(),
                evicted_pieces: evicted_pieces[shard].clone(),
                evicted_bytes: evicted_bytes[shard].clone(),
                dirty_bytes: dirty_bytes[shard].clone(),
                queued: queued[shard].clone(),
                dead_letters: dead_letters[shard].clone(),
                oldest_unix_ms: AtomicU64::new(u64::MAX),
                fetches_joined: fetches_joined[shard].clone(),
                crc_failures: crc_failures[shard].clone(),
                quarantined: quarantined[shard].clone(),
                parents_avoided: parents_avoided[shard].clone(),
                copies_made: copies_made[shard].clone(),
                replicas_short: replicas_short[shard].clone(),
                strays_aborted: strays_aborted[shard].clone(),
                scrubbed_pieces: scrubbed_pieces[shard].clone(),
                scrubbed_bytes: scrubbed_bytes[shard].clone(),
                mailbox_messages: mailbox_messages[shard].clone(),
                uploads: uploads[shard].clone(),
                retired_versions: retired_versions[shard].clone(),
                permits: permits[shard].clone(),
                connections,
            }))
        })
        .collect()
}

impl ShardMetrics {
    /// The cache holds this now.
    pub fn set_cache(&self, size: CacheSize) {
        self.0.cache_bytes.set(signed(size.bytes));
        self.0.cache_pieces.set(signed(size.pieces));
        self.0.cache_tasks.set(signed(size.tasks));
    }

    /// Pieces were evicted.
    pub fn evicted(&self, pieces: u64, bytes: u64) {
        self.0.evicted_pieces.inc_by(pieces);
        self.0.evicted_bytes.inc_by(bytes);
    }

    /// The write-back queue stands so now.
    pub fn set_writeback(&self, state: WriteBackState) {
        self.0.dirty_bytes.set(signed(state.dirty_bytes));
        self.0.queued.set(signed(state.queued));
        self.0.dead_letters.set(signed(state.dead_letters));
        self.0.oldest_unix_ms.store(state.oldest_unix_ms.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Bytes that the backend does not have, as of [`set_writeback`](Self::set_writeback).
    pub fn dirty_bytes(&self) -> u64 {
        u64::try_from(self.0.dirty_bytes.get()).unwrap_or_default()
    }

    /// A request waits for a piece that another one is fetching.
    pub fn fetch_joined(&self) {
        self.0.fetches_joined.inc();
    }

    /// A piece read from disk had a wrong checksum.
    pub fn crc_failed(&self) {
        self.0.crc_failures.inc();
    }

    /// It was taken out of use.
    pub fn piece_quarantined(&self) {
        self.0.quarantined.inc();
    }

    /// Peers were left alone for what they did, so many times.
    pub fn parents_avoided(&self, times: u64) {
        self.0.parents_avoided.inc_by(times);
    }

    /// A write asked for more replicas than there are seeds.
    pub fn replicas_short(&self) {
        self.0.replicas_short.inc();
    }

    /// A copy of an object is whole and durable here.
    pub fn copy_made(&self) {
        self.0.copies_made.inc();
    }

    /// A piece was read again to check it.
    pub fn scrubbed(&self, bytes: u64) {
        self.0.scrubbed_pieces.inc();
        self.0.scrubbed_bytes.inc_by(bytes);
    }

    /// Multipart uploads that served nobody were aborted.
    pub fn strays_aborted(&self, uploads: u64) {
        self.0.strays_aborted.inc_by(uploads);
    }

    /// Messages in the shard's mailbox now.
    pub fn set_mailbox(&self, messages: usize) {
        self.0.mailbox_messages.set(i64::try_from(messages).unwrap_or(i64::MAX));
    }

    /// Work in progress holds this now.
    pub fn set_held(&self, held: WorkHeld) {
        self.0.uploads.set(signed(held.uploads));
        self.0.retired_versions.set(signed(held.retired_versions));
        self.0.permits.set(signed(held.permits));
    }

    /// A client connected; it counts as open until the guard is dropped.
    pub fn connection(&self, face: Face) -> ConnectionGuard {
        let gauge = self.0.connections[face as usize].clone();
        gauge.inc();
        ConnectionGuard(gauge)
    }

    /// When the oldest dirty version of this shard was written, or the largest number.
    pub(super) fn oldest_unix_ms(&self) -> u64 {
        self.0.oldest_unix_ms.load(Ordering::Relaxed)
    }
}

/// An open connection, for the gauge.
pub struct ConnectionGuard(Gauge);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

pub(super) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
