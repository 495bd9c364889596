//! What concerns the process as a whole: shards, memory, metrics listener, logging.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use tracing_subscriber::filter::Targets;

use super::memory::{BUDGET_BYTES_DEFAULT, BUDGET_BYTES_MAX, BUDGET_BYTES_MIN, MemoryPlan};
use super::options::{LogFormat, LogOptions, MetricsOptions};
use super::report::Report;
use super::section::Section;
use super::units;
use crate::limits::SHARDS_MAX;

/// What these keys give.
pub(super) struct Process {
    pub(super) shards: usize,
    pub(super) memory: MemoryPlan,
    pub(super) metrics: MetricsOptions,
    pub(super) log: LogOptions,
}

/// Reads them; each may be absent.
pub(super) fn read(report: &mut Report, root: &mut Section<'_>) -> Process {
    let shards = root.value(report, "shards", shards).unwrap_or_else(shards_auto);
    let mut memory = root.section_or_empty(report, "memory");
    let bounds = BUDGET_BYTES_MIN..=BUDGET_BYTES_MAX;
    let budget = memory.value(report, "budget", |text| units::size_within(text, &bounds));
    let hot = memory.value(report, "hot", units::boolean);
    memory.done(report);
    let mut metrics = root.section_or_empty(report, "metrics");
    let listen = metrics.value(report, "listen", units::address);
    metrics.done(report);
    Process {
        shards,
        memory: MemoryPlan {
            keeps_hot: hot.unwrap_or(true),
            ..MemoryPlan::new(budget.unwrap_or(BUDGET_BYTES_DEFAULT))
        },
        metrics: MetricsOptions { listen },
        log: read_log(report, root),
    }
}

/// An address that the process listens on over TCP, and the key that names it.
pub(super) struct Listens {
    pub(super) key: &'static str,
    pub(super) ip: IpAddr,
    pub(super) ports: RangeInclusive<u16>,
}

impl Listens {
    /// The one of a key with an address of its own.
    pub(super) fn on(key: &'static str, address: SocketAddr) -> Listens {
        Listens { key, ip: address.ip(), ports: address.port()..=address.port() }
    }

    /// The port that both want, if there is no other for either. A range gives way.
    fn collides(&self, other: &Listens) -> Option<u16> {
        let port = *self.ports.start();
        let same = port != 0 && self.ports == other.ports && *self.ports.end() == port;
        let overlaps = self.ip == other.ip || self.ip.is_unspecified() || other.ip.is_unspecified();
        (same && overlaps).then_some(port)
    }
}

/// No two listeners may want the same address.
pub(super) fn check_ports(report: &mut Report, root: &Section<'_>, listeners: &[Listens]) {
    for (index, first) in listeners.iter().enumerate() {
        for second in &listeners[index + 1..] {
            if let Some(port) = first.collides(second) {
                let message = format!("\"{}\" and \"{}\" both want port {port}", first.key, second.key);
                report.problem(root.place(), message);
            }
        }
    }
}

fn shards(text: &str) -> Result<usize, String> {
    if text.eq_ignore_ascii_case("auto") {
        return Ok(shards_auto());
    }
    units::number(text, &(1..=SHARDS_MAX)).map_err(|allowed| format!("{allowed}, or auto"))
}

/// One per core that this process may use.
fn shards_auto() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().min(SHARDS_MAX))
}

fn read_log(report: &mut Report, root: &mut Section<'_>) -> LogOptions {
    let mut log = root.section_or_empty(report, "log");
    let format = log.value(report, "format", |text| match text.to_ascii_lowercase().as_str() {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("expected text or json".to_owned()),
    });
    let level = log.value(report, "level", level).unwrap_or_else(|| "info".to_owned());
    log.done(report);
    LogOptions { format: format.unwrap_or_default(), level }
}

/// One of the levels, or a list of `module=level`.
fn level(text: &str) -> Result<String, String> {
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    let known = |level: &str| levels.contains(&level.to_ascii_lowercase().as_str());
    let each_known = text.split(',').all(|directive| known(directive.rsplit('=').next().unwrap_or_default().trim()));
    if each_known && Targets::from_str(text).is_ok() {
        return Ok(text.to_owned());
    }
    Err("expected error, warn, info, debug, trace, or a list such as info,dfstore_peer::engine=debug".to_owned())
}
