//! Traffic with the other peers of the cluster: links, bytes both ways, what went wrong.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::series::Series;
use super::{Metrics, counter, gauge};

/// What went wrong with another peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerFailure {
    /// It could not be connected to, or a connection broke.
    Unreachable = 0,
    /// It did not answer.
    Silent = 1,
    /// It refuses this node.
    Rejected = 2,
    /// A piece of it had the wrong length or checksum.
    WrongBytes = 3,
    /// It broke the protocol.
    Protocol = 4,
}

impl PeerFailure {
    const COUNT: usize = 5;

    /// The value of the label `kind`.
    pub fn name(self) -> &'static str {
        match self {
            PeerFailure::Unreachable => "unreachable",
            PeerFailure::Silent => "silent",
            PeerFailure::Rejected => "rejected",
            PeerFailure::WrongBytes => "wrong_bytes",
            PeerFailure::Protocol => "protocol",
        }
    }
}

/// Counters of the traffic between peers.
pub(super) struct PeerMetrics {
    links: Gauge,
    uploads: Gauge,
    fetched_bytes: Counter,
    sent_bytes: Counter,
    failures: Series<Counter>,
}

impl PeerMetrics {
    pub(super) fn new(registry: &mut Registry) -> PeerMetrics {
        PeerMetrics {
            links: gauge(registry, "dfstore_peer_links", "Connections to other peers that this one has opened"),
            uploads: gauge(registry, "dfstore_peer_uploads", "Pieces that are being sent to other peers"),
            fetched_bytes: counter(registry, "dfstore_peer_fetched_bytes", "Bytes of pieces received from other peers"),
            sent_bytes: counter(registry, "dfstore_peer_sent_bytes", "Bytes of pieces sent to other peers"),
            failures: Series::new(
                registry,
                "dfstore_peer_failures",
                "What went wrong with other peers, by kind",
                PeerFailure::COUNT,
            ),
        }
    }
}

impl Metrics {
    /// A link to another peer is open until the guard is dropped.
    pub fn peer_link(&self) -> LinkGuard {
        self.0.peers.links.inc();
        LinkGuard(self.clone())
    }

    /// So many pieces are being sent to other peers now.
    pub fn set_peer_uploads(&self, uploads: u32) {
        self.0.peers.uploads.set(uploads.into());
    }

    /// Bytes of pieces came from another peer.
    pub fn peer_fetched(&self, bytes: u64) {
        self.0.peers.fetched_bytes.inc_by(bytes);
    }

    /// Bytes of pieces went to another peer.
    pub fn peer_sent(&self, bytes: u64) {
        self.0.peers.sent_bytes.inc_by(bytes);
    }

    /// Something went wrong with another peer.
    pub fn peer_failed(&self, kind: PeerFailure) {
        self.0.peers.failures.at(kind as usize, || vec![("kind", kind.name().into())]).inc();
    }
}

/// An open link, for the gauge.
pub struct LinkGuard(Metrics);

impl Drop for LinkGuard {
    fn drop(&mut self) {
        self.0.0.peers.links.dec();
    }
}
