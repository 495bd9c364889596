//! The configuration: read once, checked as a whole, handed out as one small option struct per component.
//!
//! Owns the file format and the rules. Called by `main` alone; components get their own struct from [`options`] and
//! never see the rest. Can fail on input only, and then names every problem with its place. Invariant: a [`Config`]
//! that exists is valid.

pub mod memory;
pub mod options;
pub mod secret;

pub use memory::MemoryPlan;
pub use options::{
    BackendDescription, BackendOptions, Credentials, Freshness, FreshnessPolicy, HttpOptions, LogFormat, LogOptions,
    MetricsOptions, Provider, StoreOptions,
};
pub use secret::Secret;

/// Everything a peer was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Shard threads.
    pub shards: usize,
    /// Object API.
    pub http: HttpOptions,
    /// Piece store and catalog.
    pub store: StoreOptions,
    /// Backend.
    pub backend: BackendOptions,
    /// When a cached version is checked.
    pub freshness: FreshnessPolicy,
    /// Shares of the memory budget.
    pub memory: MemoryPlan,
    /// Metrics listener.
    pub metrics: MetricsOptions,
    /// Logging.
    pub log: LogOptions,
    /// Things the user should know that are no errors: keys without effect.
    pub warnings: Vec<String>,
}
