//! The configuration as `--check` prints it: every value that is in force, defaults included, secrets left out.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::units::show_size;
use super::{BackendOptions, ClusterOptions, Config, ConflictPolicy, Freshness, LogFormat};

impl fmt::Display for Freshness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Freshness::Immutable => f.write_str("immutable"),
            Freshness::Always => f.write_str("always"),
            Freshness::Ttl(ttl) => write!(f, "{{ ttl: {}ms }}", ttl.as_millis()),
        }
    }
}

impl fmt::Display for ConflictPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConflictPolicy::Overwrite => "overwrite",
            ConflictPolicy::Fail => "fail",
            ConflictPolicy::KeepBoth => "keep-both",
        })
    }
}

/// As YAML that could be a configuration file again, but for the keys.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Config { shards, http, store, memory, log, .. } = self;
        show_object_storage(self, f)?;
        if let Some(cluster) = &self.cluster {
            show_cluster(cluster, f)?;
        }
        writeln!(f, "storage:")?;
        writeln!(f, "  dataPath: {}", store.data_path.display())?;
        writeln!(f, "  capacity: {}", show_size(store.capacity_bytes))?;
        writeln!(f, "  dirtyLimit: {}", show_size(store.dirty_limit_bytes))?;
        writeln!(f, "  diskGCThresholdPercent: {}", store.high_watermark_percent)?;
        match store.scrub_period {
            Some(period) => writeln!(f, "  scrubPeriod: {}s", period.as_secs())?,
            None => writeln!(f, "  scrubPeriod: never")?,
        }
        writeln!(f, "  scrubRate: {}", show_size(store.scrub_bytes_per_second))?;
        writeln!(f, "memory:")?;
        writeln!(f, "  budget: {} # arena {}", show_size(memory.budget_bytes), show_size(memory.arena_bytes as u64))?;
        writeln!(f, "  hot: {}", memory.keeps_hot)?;
        match self.metrics.listen {
            Some(listen) => writeln!(f, "metrics:\n  listen: {listen}")?,
            None => writeln!(f, "# metrics: at /metrics of {}", http.listen)?,
        }
        let format = if log.format == LogFormat::Json { "json" } else { "text" };
        writeln!(f, "log:\n  format: {format}\n  level: {}", log.level)?;
        writeln!(f, "shards: {shards}")
    }
}

fn show_object_storage(config: &Config, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let http = &config.http;
    writeln!(f, "objectStorage:\n  enable: true")?;
    match &config.backend {
        Some(backend) => show_backend(backend, f)?,
        None => writeln!(f, "  # name, region, endpoint and keys: from the manager")?,
    }
    writeln!(f, "  filter: {}", http.filter.join("&"))?;
    writeln!(f, "  maxReplicas: {}", http.replicas_default)?;
    writeln!(f, "  tcpListen:\n    listen: \"{}\"", http.listen)?;
    writeln!(f, "    port: {}", show_ports(&http.ports))?;
    writeln!(f, "  freshness: {}", config.freshness.default)?;
    writeln!(f, "  conflict: {}", config.conflict.default)?;
    let named: BTreeSet<&String> = config.freshness.buckets.keys().chain(config.conflict.buckets.keys()).collect();
    if !named.is_empty() {
        writeln!(f, "  buckets:")?;
    }
    for bucket in named {
        let fresh = config.freshness.buckets.get(bucket).map(|rule| format!("freshness: {rule}"));
        let conflict = config.conflict.buckets.get(bucket).map(|rule| format!("conflict: {rule}"));
        let rules: Vec<String> = fresh.into_iter().chain(conflict).collect();
        writeln!(f, "    {bucket:?}: {{ {} }}", rules.join(", "))?;
    }
    Ok(())
}

fn show_backend(backend: &BackendOptions, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "  name: {}", backend.provider.name())?;
    match &backend.region {
        Some(region) => writeln!(f, "  region: {region}")?,
        None => writeln!(f, "  # region: from the environment, a profile or the instance")?,
    }
    match &backend.endpoint {
        Some(endpoint) => writeln!(f, "  endpoint: {endpoint}")?,
        None => writeln!(f, "  # endpoint: that of the region")?,
    }
    match &backend.credentials {
        Some(keys) => {
            writeln!(f, "  accessKey: {}\n  secretKey: {}", keys.access_key, keys.secret_key)?;
            if let Some(token) = &keys.session_token {
                writeln!(f, "  sessionToken: {token}")?;
            }
        }
        None => writeln!(f, "  # keys: from the environment, a profile or the instance")?,
    }
    writeln!(f, "  s3ForcePathStyle: {}", backend.path_style)
}

fn show_ports(ports: &RangeInclusive<u16>) -> String {
    let (start, end) = (ports.start(), ports.end());
    if start == end { start.to_string() } else { format!("{{ start: {start}, end: {end} }}") }
}

fn show_cluster(cluster: &ClusterOptions, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let ClusterOptions { name, token, peer, gossip, .. } = cluster;
    writeln!(f, "cluster:\n  name: {name:?}\n  token: {token}")?;
    writeln!(f, "seedPeer:\n  enable: {}", cluster.is_seed)?;
    writeln!(f, "manager:\n  enable: {}", !cluster.managers.is_empty())?;
    if !cluster.managers.is_empty() {
        writeln!(f, "  netAddrs:")?;
    }
    for address in &cluster.managers {
        writeln!(f, "    - {{ type: tcp, addr: \"{address}\" }}")?;
    }
    writeln!(f, "  refreshInterval: {}ms", cluster.refresh_interval.as_millis())?;
    if let Some(listen) = cluster.manager_listen {
        writeln!(f, "  listen: \"{listen}\"")?;
    }
    writeln!(f, "peer:\n  listen: \"{}\"\n  port: {}", peer.listen, show_ports(&peer.ports))?;
    show_advertise(peer.advertise, f)?;
    if let Some(port) = peer.advertise_port {
        writeln!(f, "  advertisePort: {port}")?;
    }
    writeln!(f, "gossip:\n  listen: \"{}\"", gossip.listen)?;
    show_advertise(gossip.advertise, f)?;
    if !gossip.seeds.is_empty() {
        let seeds: Vec<String> = gossip.seeds.iter().map(|seed| format!("\"{seed}\"")).collect();
        writeln!(f, "  seeds: [{}]", seeds.join(", "))?;
    }
    writeln!(f, "replicas:\n  repairAfter: {}ms", cluster.repair_after.as_millis())
}

fn show_advertise(address: Option<IpAddr>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match address {
        Some(address) => writeln!(f, "  advertise: \"{address}\""),
        None => writeln!(f, "  # advertise: the address of this machine towards the others"),
    }
}
