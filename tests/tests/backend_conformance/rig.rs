//! A backend client without a peer around it.

use std::sync::OnceLock;
use std::time::Duration;

use dfstore_peer::config::{BackendOptions, Credentials, MetricsOptions, Provider, Secret};
use dfstore_peer::limits::PIECE_BYTES;
use dfstore_peer::metrics::Metrics;
use dfstore_peer::rt::arena::{Arena, Holder, Slot};
use dfstore_peer::sidecar::backend::{
    BackendHandle, BackendTuning, BodySource, Fetched, GetRequest, PutRequest, Result, Stored,
};
use dfstore_peer::sidecar::health::Health;
use dfstore_peer::sidecar::{Sidecar, SidecarOptions};
use dfstore_proto::ids::ObjectName;
use dfstore_proto::object::ObjectMeta;
use dfstore_tests::bucket::S3Endpoint;

/// A test that takes longer than this is stuck.
const STUCK: Duration = Duration::from_secs(60);

/// The client, and what is needed to look at it.
pub struct Rig {
    pub handle: BackendHandle,
    pub health: Health,
    pub metrics: Metrics,
    _sidecar: Sidecar,
}

impl Rig {
    pub fn new(provider: Provider, endpoint: &S3Endpoint, tuning: BackendTuning) -> Rig {
        Rig::with_token(provider, endpoint, tuning, None)
    }

    pub fn with_token(
        provider: Provider,
        endpoint: &S3Endpoint,
        tuning: BackendTuning,
        session_token: Option<Secret>,
    ) -> Rig {
        let backend = BackendOptions {
            provider,
            region: Some("us-east-1".to_owned()),
            endpoint: Some(endpoint.url.clone()),
            credentials: Some(Credentials {
                access_key: Secret::new(&endpoint.access_key),
                secret_key: Secret::new(&endpoint.secret_key),
                session_token,
            }),
            path_style: true,
        };
        let (health, metrics) = (Health::new(), Metrics::new(1, "test"));
        let options = SidecarOptions {
            backend: Some(backend),
            cluster: None,
            tuning,
            admin: MetricsOptions::default(),
            metrics: metrics.clone(),
            health: health.clone(),
        };
        let (sidecar, handle) = Sidecar::start(options).expect("the sidecar starts");
        Rig { handle, health, metrics, _sidecar: sidecar }
    }

    pub fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<Stored> {
        wait(self.handle.put(put_request(name, bytes), BodySource::Slots(slots(bytes))))
    }

    /// Reads what is expected to be there.
    pub fn read(&self, name: &ObjectName, range: std::ops::Range<u64>) -> Result<Fetched> {
        self.get(GetRequest { name: name.clone(), range, exact: true, if_match: None })
    }

    /// Reads without knowing how much is there.
    pub fn read_first(&self, name: &ObjectName, length: u64) -> Result<Fetched> {
        self.get(GetRequest { name: name.clone(), range: 0..length, exact: false, if_match: None })
    }

    pub fn get(&self, request: GetRequest) -> Result<Fetched> {
        let length = usize::try_from(request.range.end - request.range.start).expect("small");
        wait(async {
            let slot = arena().take(length, Holder::Fetch).await;
            self.handle.get(request, slot).await
        })
    }

    pub fn head(&self, name: &ObjectName) -> Result<ObjectMeta> {
        wait(self.handle.head(name.clone()))
    }
}

/// A write of these bytes with their checksum and no attributes.
pub fn put_request(name: &ObjectName, bytes: &[u8]) -> PutRequest {
    let crc32 = Some(crc32fast::hash(bytes));
    PutRequest {
        name: name.clone(),
        meta: ObjectMeta::default(),
        written_as: String::new(),
        crc32,
        condition: dfstore_peer::sidecar::backend::WriteCondition::Always,
    }
}

/// The bytes, cut into pieces.
pub fn slots(bytes: &[u8]) -> Vec<Slot> {
    bytes.chunks(PIECE_BYTES as usize).map(slot).collect()
}

pub fn slot(bytes: &[u8]) -> Slot {
    let mut slot = arena().try_take(bytes.len(), Holder::WriteBack).expect("the arena has room for all tests");
    assert_eq!(slot.append(bytes), bytes.len());
    slot.freeze()
}

/// One for the whole program; memory is taken on first use only.
pub fn arena() -> &'static Arena {
    static ARENA: OnceLock<Arena> = OnceLock::new();
    ARENA.get_or_init(|| Arena::new(1 << 30).expect("address space"))
}

pub fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(STUCK, future).await }).expect("stuck")
}
