//! Section `storage`: where pieces are kept, how much of them, and how much of it may be dirty.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::options::StoreOptions;
use super::report::Report;
use super::section::Section;
use super::units::{self, show_size};
use crate::limits::{CAPACITY_BYTES_MIN, SCRUB_PERIOD_DEFAULT, SCRUB_RATE_DEFAULT};

const DATA_PATH_DEFAULT: &str = "/var/lib/dfstore";
const CAPACITY_BYTES_DEFAULT: u64 = 20 << 30;
/// Bounds of a quota; above the upper one a typing error is likelier than such a disk.
const CAPACITY_BYTES: RangeInclusive<u64> = CAPACITY_BYTES_MIN..=1 << 50;
const DIRTY_BYTES_MIN: u64 = 4 << 20;
/// What the collector's threshold may be. Its lower end leaves room for the default dirty limit.
const HIGH_WATERMARK_PERCENT: RangeInclusive<u8> = 60..=99;
const HIGH_WATERMARK_PERCENT_DEFAULT: u8 = 95;
/// Bounds of the scrub's speed, in bytes a second.
const SCRUB_RATE: RangeInclusive<u64> = 1 << 20..=1 << 40;
/// Between the watermarks: eviction runs in batches instead of at every write.
const WATERMARK_DISTANCE_PERCENT: u8 = 5;

/// Reads the section; it may be absent.
pub(super) fn read(report: &mut Report, root: &mut Section<'_>) -> StoreOptions {
    let mut section = root.section_or_empty(report, "storage");
    let data_path = section.value(report, "dataPath", data_path).unwrap_or_else(|| DATA_PATH_DEFAULT.into());
    let capacity_bytes = capacity(report, &mut section);
    let high = section.value(report, "diskGCThresholdPercent", |text| units::number(text, &HIGH_WATERMARK_PERCENT));
    let high_watermark_percent = high.unwrap_or(HIGH_WATERMARK_PERCENT_DEFAULT);
    let low_watermark_percent = high_watermark_percent - WATERMARK_DISTANCE_PERCENT;
    // Dirty data stays below the watermark, or it alone could stop eviction from making room.
    let dirty_percent_max = low_watermark_percent - WATERMARK_DISTANCE_PERCENT;
    let dirty_limit_bytes = dirty_limit(report, &mut section, capacity_bytes, dirty_percent_max);
    let scrub_period = section.value(report, "scrubPeriod", scrub_period).unwrap_or(Some(SCRUB_PERIOD_DEFAULT));
    let rate = section.value(report, "scrubRate", |text| units::size_within(text, &SCRUB_RATE));
    section.without_effect(report, "taskExpireTime", "pieces stay until room is needed");
    section.without_effect(report, "multiplex", "pieces on disk are always used again");
    section.without_effect(report, "strategy", "there is one kind of store");
    section.done(report);
    StoreOptions {
        data_path,
        capacity_bytes,
        dirty_limit_bytes,
        high_watermark_percent,
        low_watermark_percent,
        scrub_period,
        scrub_bytes_per_second: rate.unwrap_or(SCRUB_RATE_DEFAULT),
    }
}

/// `never` leaves it to orders.
fn scrub_period(text: &str) -> Result<Option<Duration>, String> {
    if text.eq_ignore_ascii_case("never") {
        return Ok(None);
    }
    units::positive_duration(text).map(Some).map_err(|expected| format!("{expected}, or never"))
}

fn data_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("expected an absolute path such as /var/lib/dfstore".to_owned()) }
}

/// `capacity`, or what the original called the threshold of its collector.
fn capacity(report: &mut Report, section: &mut Section<'_>) -> u64 {
    let size = |text: &str| units::size_within(text, &CAPACITY_BYTES);
    let capacity = section.get(report, "capacity");
    let threshold = section.get(report, "diskGCThreshold");
    if let (Some(_), Some(threshold)) = (&capacity, &threshold) {
        let message = "\"storage.diskGCThreshold\" has no effect beside \"storage.capacity\"";
        report.warning(&threshold.node.place, message);
    }
    // The original's default, 0, means that the threshold is not used.
    let threshold = threshold.filter(|field| field.value(report, units::size).is_some_and(|bytes| bytes > 0));
    capacity.or(threshold).and_then(|field| field.value(report, size)).unwrap_or(CAPACITY_BYTES_DEFAULT)
}

fn dirty_limit(report: &mut Report, section: &mut Section<'_>, capacity_bytes: u64, percent_max: u8) -> u64 {
    let Some(field) = section.get(report, "dirtyLimit") else { return capacity_bytes / 2 };
    let most = capacity_bytes / 100 * u64::from(percent_max);
    let limit = field.value(report, |text| match units::size(text)? {
        bytes if (DIRTY_BYTES_MIN..=most).contains(&bytes) => Ok(bytes),
        _ => Err(format!(
            "expected a size from {} to {percent_max} percent of the capacity, {}",
            show_size(DIRTY_BYTES_MIN),
            show_size(most)
        )),
    });
    limit.unwrap_or(capacity_bytes / 2)
}
