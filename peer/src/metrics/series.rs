//! The two building blocks of every metric here: labelled series whose hot path takes no lock, and a histogram of
//! durations made of plain atomic counters.
//!
//! A label set costs a hash map and a lock to find; series of a known, small set are therefore found once and kept
//! in a table by number. The library's own histogram takes a mutex at each observation, which shards would share.

use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Metric, Registry};

/// Names and values of one series.
pub(super) type Labels = Vec<(&'static str, Cow<'static, str>)>;

/// A metric with labels. Members that are asked for by number are found without a lock after the first time.
pub(super) struct Series<M> {
    family: Family<Labels, M>,
    known: Box<[OnceLock<M>]>,
}

impl<M> Series<M>
where
    M: Clone + Default + Metric + EncodeMetric + TypedMetric + Send + Sync + 'static,
{
    /// Registers a metric with room for `count` numbered members.
    pub(super) fn new(registry: &mut Registry, name: &str, help: &str, count: usize) -> Series<M> {
        let family = Family::<Labels, M>::default();
        registry.register(name, help, family.clone());
        Series { family, known: (0..count).map(|_| OnceLock::new()).collect() }
    }

    /// The member with this number; `labels` is called the first time only and must depend on the number alone.
    pub(super) fn at(&self, number: usize, labels: impl FnOnce() -> Labels) -> &M {
        self.known[number].get_or_init(|| self.family.get_or_create_owned(&labels()))
    }

    /// A member that has no number. Slower; the caller bounds how many there can be.
    pub(super) fn with(&self, labels: &Labels) -> M {
        self.family.get_or_create_owned(labels)
    }
}

/// Upper bounds of the buckets, in microseconds: from a cache hit to a slow multipart upload.
const BOUNDS_US: [u64; 18] = [
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    120_000_000,
];

/// Durations, counted by size. Clones share the counts.
#[derive(Clone, Default)]
pub(super) struct DurationHistogram(Arc<DurationCounts>);

#[derive(Default)]
struct DurationCounts {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl DurationHistogram {
    /// Counts one duration.
    pub(super) fn observe(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        self.0.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.0.sum_us.fetch_add(us, Ordering::Relaxed);
    }
}

impl fmt::Debug for DurationHistogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DurationHistogram")
    }
}

impl TypedMetric for DurationHistogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for DurationHistogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let bounds = BOUNDS_US.iter().map(|us| seconds(*us)).chain([f64::INFINITY]);
        let counts = self.0.buckets.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let total = buckets.iter().map(|(_, count)| count).sum();
        encoder.encode_histogram::<NoLabelSet>(seconds(self.0.sum_us.load(Ordering::Relaxed)), total, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people; 2^53 microseconds are 285 years")]
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}
