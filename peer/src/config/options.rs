//! What each component is told: one small struct per component, made once from the configuration file.
//!
//! Plain data. Every value here has been checked; a component needs no checks of its own and sees nothing that is
//! meant for another one.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use sha2::{Digest, Sha256};

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
    /// How often every piece is read again; `None` for never by itself.
    pub scrub_period: Option<Duration>,
    /// How fast, in bytes a second.
    pub scrub_bytes_per_second: u64,
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
    /// The provider of this name, in any case of letters.
    pub fn from_name(name: &str) -> Option<Provider> {
        [Provider::S3, Provider::Oss].into_iter().find(|provider| name.eq_ignore_ascii_case(provider.name()))
    }

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

impl BackendOptions {
    /// What clients may know.
    pub fn description(&self) -> BackendDescription {
        BackendDescription {
            name: self.provider.name().to_owned(),
            region: self.region.clone().unwrap_or_default(),
            endpoint: self.endpoint.clone().unwrap_or_default(),
        }
    }
}

/// What a peer that is no standalone one is told about its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterOptions {
    /// Name of the cluster.
    pub name: String,
    /// What its members share. Never leaves the process: see [`credential`](Self::credential).
    pub token: Secret,
    /// Whether this node decides about tasks and keeps replicas.
    pub is_seed: bool,
    /// The listener for other peers.
    pub peer: PeerListen,
    /// Membership.
    pub gossip: GossipOptions,
    /// Where the configuration of the backend is given to peers, if this node gives it.
    pub manager_listen: Option<SocketAddr>,
    /// Managers to ask, `host:port`, in order. Empty when none is to be asked.
    pub managers: Vec<String>,
    /// How often they are asked.
    pub refresh_interval: Duration,
    /// How long a seed may be gone before what it held is copied anew.
    pub repair_after: Duration,
}

/// The listener for other peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerListen {
    /// Address to bind.
    pub listen: IpAddr,
    /// Ports to try in order; the first free one is taken. `0..=0` lets the system choose.
    pub ports: RangeInclusive<u16>,
    /// Address that others are told; `None` leaves it to the machine (see `probe::address`).
    pub advertise: Option<IpAddr>,
    /// Port that others are told, where something forwards to this node; `None` is the one that is bound.
    pub advertise_port: Option<u16>,
}

/// Membership by gossip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GossipOptions {
    /// Address to bind, UDP. Port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Address that others are told; `None` leaves it to the machine (see `probe::address`).
    pub advertise: Option<IpAddr>,
    /// Nodes to begin with, `host:port`. Each name stands for all its addresses.
    pub seeds: Vec<String>,
}

/// Goes into the credential, so that the same secret used elsewhere gives another one.
const CREDENTIAL_LABEL: &str = "dfstore cluster credential 1";

impl ClusterOptions {
    /// What nodes of the cluster present to each other: a lowercase hexadecimal SHA-256 over a fixed label, the name and
    /// the token, each with its length in front.
    pub fn credential(&self) -> String {
        credential_of(&self.name, self.token.expose())
    }

    /// Nodes and managers that are known by address from the start: the way to one of them tells which address of this
    /// machine the others can reach.
    pub fn contacts(&self) -> Vec<String> {
        self.managers.iter().chain(&self.gossip.seeds).cloned().collect()
    }
}

/// The credential of a cluster with this name and token.
pub fn credential_of(name: &str, token: &str) -> String {
    let mut hash = Sha256::new();
    for part in [CREDENTIAL_LABEL, name, token] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
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

/// What becomes of a write that waits for the backend while others change the object there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConflictPolicy {
    /// It replaces what others wrote.
    #[default]
    Overwrite,
    /// It is set aside as a dead letter: a person decides.
    Fail,
    /// It goes to the backend under a key of its own beside the other one.
    KeepBoth,
}

/// A rule by bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PerBucket<R> {
    /// For buckets without an entry.
    pub default: R,
    /// Entries by bucket name.
    pub buckets: BTreeMap<String, R>,
}

impl<R: Copy> PerBucket<R> {
    /// The rule for this bucket.
    pub fn for_bucket(&self, bucket: &str) -> R {
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
