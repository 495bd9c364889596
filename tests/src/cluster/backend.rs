//! What can stand behind a cluster, and what it was asked for.
//!
//! Traffic is counted at the bucket, never by the peers: by the server itself where it is ours, else by a relay in
//! front of it.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};

use crate::bucket::{Bucket, S3Endpoint};
use crate::faulty_backend::FaultyBackend;
use crate::meter::Meter;
use crate::seaweed::Seaweed;

/// Which server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendKind {
    /// One inside this program that fails as told, with a bucket of its own.
    Faulty,
    /// The same on this address, for nodes that do not share our loopback.
    FaultyOn(IpAddr),
    /// SeaweedFS, with a bucket of its own.
    Seaweed,
    /// One that is there, through a relay on loopback that counts; its bucket of the same name is made.
    Metered(S3Endpoint),
    /// One that is there, not counted; its bucket of the same name is made.
    Elsewhere(S3Endpoint),
}

/// A server that runs.
pub enum Backend {
    /// See [`BackendKind::Faulty`].
    Faulty(FaultyBackend),
    /// A server behind a relay, and the server where it is ours.
    Metered {
        /// The relay.
        meter: Meter,
        /// Keys, and the address of the relay.
        endpoint: S3Endpoint,
        /// The server, where it is ours.
        server: Option<Box<Seaweed>>,
    },
    /// See [`BackendKind::Elsewhere`].
    Elsewhere(S3Endpoint),
}

/// What went over the wire between cluster and bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes out of the bucket; with the heads of answers where a relay counts.
    pub sent: u64,
    /// Bytes into the bucket; with the heads of requests where a relay counts.
    pub received: u64,
}

impl Backend {
    pub(super) fn start(kind: BackendKind) -> Result<Backend> {
        match kind {
            BackendKind::Faulty => Ok(Backend::Faulty(FaultyBackend::start()?)),
            BackendKind::FaultyOn(listen) => Ok(Backend::Faulty(FaultyBackend::start_on(listen)?)),
            BackendKind::Seaweed => {
                let server = Seaweed::start()?;
                let endpoint = server.endpoint().clone();
                Backend::metered(endpoint, Some(Box::new(server)))
            }
            BackendKind::Metered(endpoint) => Backend::metered(endpoint, None),
            BackendKind::Elsewhere(endpoint) => Ok(Backend::Elsewhere(endpoint)),
        }
    }

    fn metered(endpoint: S3Endpoint, server: Option<Box<Seaweed>>) -> Result<Backend> {
        let address = endpoint.url.strip_prefix("http://").unwrap_or(&endpoint.url);
        let address: SocketAddr = address.parse().with_context(|| format!("not an address: {}", endpoint.url))?;
        let meter = Meter::start(address)?;
        let url = format!("http://{}", meter.address());
        Ok(Backend::Metered { meter, endpoint: S3Endpoint { url, ..endpoint }, server })
    }

    /// Where nodes find it.
    pub fn endpoint(&self) -> S3Endpoint {
        match self {
            Backend::Faulty(backend) => backend.endpoint(),
            Backend::Metered { endpoint, .. } | Backend::Elsewhere(endpoint) => endpoint.clone(),
        }
    }

    /// What went over the wire since the start or [`forget`](Self::forget); nothing where nobody counts.
    pub fn traffic(&self) -> Traffic {
        match self {
            Backend::Faulty(backend) => Traffic { sent: backend.bytes_sent(), received: backend.bytes_received() },
            Backend::Metered { meter, .. } => Traffic { sent: meter.sent_bytes(), received: meter.received_bytes() },
            Backend::Elsewhere(_) => Traffic::default(),
        }
    }

    /// Starts counting anew.
    pub fn forget(&self) {
        match self {
            Backend::Faulty(backend) => backend.forget(),
            Backend::Metered { meter, .. } => meter.forget(),
            Backend::Elsewhere(_) => {}
        }
    }

    /// A new bucket of this name.
    pub(super) fn bucket(&self, name: &str) -> Result<Bucket> {
        let bucket = self.endpoint().bucket(name);
        bucket.create()?;
        Ok(bucket)
    }
}
