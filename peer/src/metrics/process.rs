//! What the kernel knows about this process: memory, descriptors, start time.

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{gauge, signed};
use crate::rt::time::unix_ms;

/// Gauges under the names that Prometheus client libraries share.
pub(super) struct ProcessMetrics {
    resident_bytes: Gauge,
    open_files: Gauge,
}

impl ProcessMetrics {
    pub(super) fn new(registry: &mut Registry) -> ProcessMetrics {
        let start = gauge(registry, "process_start_time_seconds", "Start of the process since the Unix epoch");
        start.set(signed(unix_ms() / 1000));
        ProcessMetrics {
            resident_bytes: gauge(registry, "process_resident_memory_bytes", "Resident memory"),
            open_files: gauge(registry, "process_open_fds", "Open file descriptors"),
        }
    }

    pub(super) fn refresh(&self) {
        if let Some(bytes) = resident_bytes() {
            self.resident_bytes.set(signed(bytes));
        }
        if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
            self.open_files.set(signed(entries.count() as u64));
        }
    }
}

fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}
