//! What each component is told: one small struct per component, made once from the configuration file.
//!
//! Plain data. Every value here has been checked; a component needs no checks of its own and sees nothing that is
//! meant for another one.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::secret::Secret;

/// The object API over HTTP (and the native protocol, which shares its port).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpOptions {
    /// Address to bind.
    pub listen: IpAddr,
    /// Ports to try in order; the first free one is taken. `0..=0` lets the system choose.
    pub ports: RangeInclusive<u16>,
    /// Query parameter names removed from a URL before its task ID is computed, unless a request names its own.
    pub filter: Vec<String>,
    /// Replicas of an object when the request does not say (1 to 100).
    pub replicas_default: u16,
    /// What `GET /metadata` tells.
    pub backend: BackendDescription,
}

/// What clients may know about the backend: the answer to `GET /metadata`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendDescription {
    /// `s3` or `oss`.
    pub name: String,
    /// Region, as configured.
    pub region: String,
    /// Endpoint, as configured, without credentials.
    pub endpoint: String,
}

/// The piece store and the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// Folder of the piece files, the catalog and the lock.
    pub data_path: PathBuf,
    /// Most bytes of piece data on disk.
    pub capacity_bytes: u64,
    /// Most bytes that clients have been told are safe and the backend does not have yet.
    pub dirty_limit_bytes: u64,
    /// Eviction starts above this share of the capacity, in percent.
    pub high_watermark_percent: u8,
    /// Eviction stops below this share of the capacity, in percent.
    pub low_watermark_percent: u8,
}

/// Which kind of service the backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// AWS S3 and what speaks its protocol.
    S3,
    /// Alibaba Cloud OSS through its S3-compatible endpoint.
    Oss,
}

impl Provider {
    /// The value of `objectStorage.name`.
    pub fn name(self) -> &'static str {
        match self {
            Provider::S3 => "s3",
            Provider::Oss => "oss",
        }
    }
}

/// The backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendOptions {
    /// Kind of service.
    pub provider: Provider,
    /// Region; `None` leaves it to the SDK's default chain.
    pub region: Option<String>,
    /// URL with scheme; `None` is the provider's own for the region.
    pub endpoint: Option<String>,
    /// Keys; `None` leaves them to the SDK's default chain.
    pub credentials: Option<Credentials>,
    /// Address buckets as a part of the path (never so for OSS).
    pub path_style: bool,
}

/// Keys for the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Access key ID.
    pub access_key: Secret,
    /// Secret access key.
    pub secret_key: Secret,
    /// Session token of temporary credentials.
    pub session_token: Option<Secret>,
}

/// How long a clean version counts as fresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Never ask the backend again.
    Immutable,
    /// Ask the backend at most once per task and interval.
    Ttl(Duration),
    /// Ask the backend at every request.
    Always,
}

/// Freshness by bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreshnessPolicy {
    /// For buckets without an entry.
    pub default: Freshness,
    /// Entries by bucket name.
    pub buckets: BTreeMap<String, Freshness>,
}

impl FreshnessPolicy {
    /// The rule for this bucket.
    pub fn for_bucket(&self, bucket: &str) -> Freshness {
        self.buckets.get(bucket).copied().unwrap_or(self.default)
    }
}

/// The metrics and admin listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MetricsOptions {
    /// Address of a listener of its own; `/metrics` is on the object port in any case.
    pub listen: Option<SocketAddr>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Logging, to standard error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// Look of a line.
    pub format: LogFormat,
    /// Level, or directives of the form `info,dfstore_peer::engine=debug`.
    pub level: String,
}
