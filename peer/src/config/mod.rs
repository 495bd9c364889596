//! The configuration: read once, checked as a whole, handed out as one small option struct per component.
//!
//! Owns the file format and the rules. Called by `main` alone; components get their own struct from [`options`] and
//! never see the rest. Can fail on input only, and then names every problem with its place. Invariant: a [`Config`]
//! that exists is valid.
//!
//! A text becomes a tree ([`yaml`]), flags and environment variables replace values in it ([`overrides`]), one file
//! per section reads it ([`object_storage`], [`storage`], [`process`], [`cluster`], [`original`]), and [`report`] collects what is
//! wrong.

mod backend_config;
mod cluster;
#[cfg(test)]
mod cluster_tests;
mod manager_keys;
pub mod memory;
mod object_storage;
pub mod options;
mod original;
mod overrides;
mod process;
mod report;
pub mod secret;
mod section;
mod show;
mod storage;
#[cfg(test)]
mod tests;
pub(crate) mod units;
mod yaml;

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::limits::CONFIG_BYTES_MAX;

pub use backend_config::BackendConfigError;
pub use memory::MemoryPlan;
pub use options::{
    BackendDescription, BackendOptions, ClusterOptions, ConflictPolicy, Credentials, Freshness, GossipOptions,
    HttpOptions, LogFormat, LogOptions, MetricsOptions, PeerListen, PerBucket, Provider, StoreOptions,
};
pub use overrides::Overrides;
pub use report::{ConfigError, Problem};
pub use secret::Secret;

use process::Listens;
use report::Report;
use section::Section;

/// Everything a peer was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Shard threads.
    pub shards: usize,
    /// Object API.
    pub http: HttpOptions,
    /// Piece store and catalog.
    pub store: StoreOptions,
    /// Backend; `None` when managers are to tell it.
    pub backend: Option<BackendOptions>,
    /// The cluster; `None` for a standalone peer.
    pub cluster: Option<ClusterOptions>,
    /// When a cached version is checked.
    pub freshness: PerBucket<Freshness>,
    /// What becomes of a pending write when others change the object in the backend.
    pub conflict: PerBucket<ConflictPolicy>,
    /// Shares of the memory budget.
    pub memory: MemoryPlan,
    /// Metrics listener.
    pub metrics: MetricsOptions,
    /// Logging.
    pub log: LogOptions,
    /// Things the user should know that are no errors: keys without effect.
    pub warnings: Vec<String>,
}

impl Config {
    /// Reads and checks a file; `overrides` win over what it says.
    pub fn load(path: &Path, overrides: &Overrides) -> Result<Config, ConfigError> {
        let name = path.display().to_string();
        let (text, readable_by_all) = read_file(path).map_err(|message| Problem { place: name.clone(), message })?;
        let mut config = Config::parse(&name, &text, overrides)?;
        let keys = config.backend.as_ref().is_some_and(|backend| backend.credentials.is_some());
        if readable_by_all && (keys || config.cluster.is_some()) {
            config.warnings.push(format!("{name}: holds keys and everyone may read it: chmod 600 {name}"));
        }
        Ok(config)
    }

    /// Checks a text. `name` stands for the file in messages.
    pub fn parse(name: &str, text: &str, overrides: &Overrides) -> Result<Config, ConfigError> {
        let mut report = Report::new(name);
        let mut tree = match yaml::parse(text) {
            Ok(tree) => tree,
            Err(malformed) => {
                report.problem(&malformed.place, format!("not valid YAML: {}", malformed.message));
                return Err(report.finish().err().unwrap_or_else(|| unreachable!("a problem was just reported")));
            }
        };
        overrides.apply(&mut tree);
        let mut root = Section::root(&mut report, &tree);
        let scheduler_manager = original::read(&mut report, &mut root);
        let mut cluster = cluster::read(&mut report, &mut root, scheduler_manager);
        let object_storage = object_storage::read(&mut report, &mut root, cluster.asks_managers);
        let store = storage::read(&mut report, &mut root);
        let process = process::read(&mut report, &mut root);
        if let Some(object_storage) = &object_storage {
            cluster::check_backend(&mut report, &mut cluster, object_storage.backend.is_some());
            let listeners = listeners(&process, &object_storage.http, cluster.options.as_ref());
            process::check_ports(&mut report, &root, &listeners);
        }
        root.done(&mut report);
        let warnings = report.finish()?;
        let object_storage = object_storage.unwrap_or_else(|| unreachable!("the reader reports why it gives nothing"));
        Ok(Config {
            shards: process.shards,
            http: object_storage.http,
            store,
            backend: object_storage.backend,
            cluster: cluster.options,
            freshness: object_storage.freshness,
            conflict: object_storage.conflict,
            memory: process.memory,
            metrics: process.metrics,
            log: process.log,
            warnings,
        })
    }
}

/// Everything that is listened on over TCP. Gossip is UDP, where the same numbers are free.
fn listeners(process: &process::Process, http: &HttpOptions, cluster: Option<&ClusterOptions>) -> Vec<Listens> {
    let mut all = vec![Listens { key: "objectStorage.tcpListen.port", ip: http.listen, ports: http.ports.clone() }];
    all.extend(process.metrics.listen.map(|address| Listens::on("metrics.listen", address)));
    if let Some(cluster) = cluster {
        all.push(Listens { key: "peer.port", ip: cluster.peer.listen, ports: cluster.peer.ports.clone() });
        all.extend(cluster.manager_listen.map(|address| Listens::on("manager.listen", address)));
    }
    all
}

/// The text of the file, and whether everyone may read it.
fn read_file(path: &Path) -> Result<(String, bool), String> {
    let explain = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file: name the configuration with --config FILE".to_owned(),
        std::io::ErrorKind::PermissionDenied => "not readable by this user: check its owner and mode".to_owned(),
        std::io::ErrorKind::IsADirectory => "is a folder, expected a YAML file".to_owned(),
        _ => format!("cannot be read: {error}"),
    };
    let file = File::open(path).map_err(explain)?;
    let mode = file.metadata().map_err(explain)?.mode();
    let mut bytes = Vec::new();
    file.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(explain)?;
    if bytes.len() as u64 > CONFIG_BYTES_MAX {
        return Err(format!("is longer than {CONFIG_BYTES_MAX} bytes: not a configuration file"));
    }
    let text = String::from_utf8(bytes).map_err(|_| "is not UTF-8 text: not a configuration file".to_owned())?;
    Ok((text, mode & 0o004 != 0))
}
