//! The configuration as `--check` prints it: every value that is in force, defaults included, secrets left out.

use std::fmt;

use super::units::show_size;
use super::{Config, Freshness, LogFormat};

impl fmt::Display for Freshness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Freshness::Immutable => f.write_str("immutable"),
            Freshness::Always => f.write_str("always"),
            Freshness::Ttl(ttl) => write!(f, "{{ ttl: {}ms }}", ttl.as_millis()),
        }
    }
}

/// As YAML that could be a configuration file again, but for the keys.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Config { shards, http, store, memory, log, .. } = self;
        show_object_storage(self, f)?;
        writeln!(f, "storage:")?;
        writeln!(f, "  dataPath: {}", store.data_path.display())?;
        writeln!(f, "  capacity: {}", show_size(store.capacity_bytes))?;
        writeln!(f, "  dirtyLimit: {}", show_size(store.dirty_limit_bytes))?;
        writeln!(f, "  diskGCThresholdPercent: {}", store.high_watermark_percent)?;
        writeln!(f, "memory:")?;
        writeln!(f, "  budget: {} # arena {}", show_size(memory.budget_bytes), show_size(memory.arena_bytes as u64))?;
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
    let (http, backend) = (&config.http, &config.backend);
    writeln!(f, "objectStorage:\n  enable: true\n  name: {}", backend.provider.name())?;
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
    writeln!(f, "  s3ForcePathStyle: {}", backend.path_style)?;
    writeln!(f, "  filter: {}", http.filter.join("&"))?;
    writeln!(f, "  maxReplicas: {}", http.replicas_default)?;
    writeln!(f, "  tcpListen:\n    listen: \"{}\"", http.listen)?;
    if http.ports.start() == http.ports.end() {
        writeln!(f, "    port: {}", http.ports.start())?;
    } else {
        writeln!(f, "    port: {{ start: {}, end: {} }}", http.ports.start(), http.ports.end())?;
    }
    writeln!(f, "  freshness: {}", config.freshness.default)?;
    if !config.freshness.buckets.is_empty() {
        writeln!(f, "  buckets:")?;
    }
    for (bucket, rule) in &config.freshness.buckets {
        writeln!(f, "    {bucket:?}: {{ freshness: {rule} }}")?;
    }
    Ok(())
}
