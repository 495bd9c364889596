//! Where bytes came from, by the counters of a peer: never an assumption.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use dfstore_tests::samples::Samples;

/// Values of the header `X-Dfs-Cache`, which are the labels of the peer's byte counter.
const SOURCES: [&str; 6] = ["local", "pending", "stale", "peer", "seed", "backend"];
pub(super) const SERVED: &str = "dfstore_served_bytes_total";
pub(super) const RECEIVED: &str = "dfstore_received_bytes_total";
pub(super) const SENT_TO_BACKEND: &str = "dfstore_backend_sent_bytes_total";
pub(super) const WRITE_BACK_TIMEOUT: Duration = Duration::from_secs(3600);

/// What a peer served between two scrapes, by source.
pub(super) struct Served(Vec<(&'static str, u64)>);

impl Served {
    /// What it served between these two.
    pub(super) fn between(before: &Samples, after: &Samples) -> Served {
        Served(SOURCES.map(|source| (source, increase(before, after, SERVED, &[("source", source)]))).into())
    }

    /// An error unless at least `length` bytes came, and only from these sources.
    pub(super) fn check(&self, step: &str, length: u64, expected: &[&str]) -> Result<()> {
        let wrong = self.0.iter().find(|(source, bytes)| *bytes > 0 && !expected.contains(source));
        if let Some((source, bytes)) = wrong {
            bail!("{step}: {bytes} bytes came from {source}, and all should have come from {expected:?}");
        }
        let total: u64 = self.0.iter().map(|(_, bytes)| bytes).sum();
        ensure!(total >= length, "{step}: the peer counts only {total} bytes served");
        Ok(())
    }

    /// For the table.
    pub(super) fn describe(&self) -> String {
        let parts: Vec<_> = self.0.iter().filter(|(_, bytes)| *bytes > 0).collect();
        match parts.as_slice() {
            [] => "nowhere, says the peer".to_owned(),
            [(source, _)] => explain(source),
            several => {
                let named: Vec<String> = several.iter().map(|(source, bytes)| format!("{source} {bytes}")).collect();
                named.join(", ")
            }
        }
    }

    /// The names of the sources alone.
    pub(super) fn sources(&self) -> String {
        let named: Vec<&str> = self.0.iter().filter(|(_, bytes)| *bytes > 0).map(|(source, _)| *source).collect();
        named.join(" and ")
    }
}

/// By how much a counter grew.
pub(super) fn increase(before: &Samples, after: &Samples, name: &str, labels: &[(&str, &str)]) -> u64 {
    let difference = after.sum(name, labels) - before.sum(name, labels);
    // Counters of bytes are whole and far below 2^53.
    format!("{:.0}", difference.max(0.0)).parse().unwrap_or_default()
}

fn explain(source: &str) -> String {
    match source {
        "local" => "local: the peer's disk".to_owned(),
        "pending" => "local: the peer's disk (pending: not in the bucket yet)".to_owned(),
        "backend" => "backend: the bucket".to_owned(),
        "peer" => "peer: the disk of another peer".to_owned(),
        "seed" => "seed: the disk of the seed peer".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_where_bytes_came_from() {
        let served = Served(vec![("local", 5), ("backend", 0)]);
        assert_eq!(served.describe(), "local: the peer's disk");
        assert!(served.check("a step", 5, &["local"]).is_ok());
        assert!(served.check("a step", 6, &["local"]).is_err() && served.check("a step", 5, &["peer"]).is_err());
        let served = Served(vec![("local", 5), ("backend", 3)]);
        assert_eq!(
            (served.describe().as_str(), served.sources().as_str()),
            ("local 5, backend 3", "local and backend")
        );
        assert!(Served(vec![]).describe().starts_with("nowhere"));
    }

    #[test]
    fn counts_what_a_step_added() {
        let scrape = |count: u32| Samples::parse(&format!("{SERVED}{{source=\"local\"}} {count}\n")).expect("parses");
        assert_eq!(increase(&scrape(10), &scrape(25), SERVED, &[("source", "local")]), 15);
    }
}
