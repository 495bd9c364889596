//! A cluster whose nodes can be cut off from each other, one way or both, while clients and the bucket reach all.
//!
//! Where there are network namespaces each node has one, and packets are dropped: gossip as well as the peer port.
//! Elsewhere each node is behind a proxy that stops forwarding: then only connections that others make to the peer
//! port are cut, and gossip goes on. Tests must hold in both cases; which one it is is said on standard error.

use anyhow::Result;

use super::{BackendKind, Cluster, ClusterBuilder, Place};
use crate::netns::{self, Namespace, Network, Shape};
use crate::peer_proxy::Way;

/// Such a cluster. Fields are dropped in this order: processes before their namespaces.
pub struct Islands {
    /// The cluster.
    pub cluster: Cluster,
    /// One for each node, in their order; none where proxies are used.
    namespaces: Vec<Namespace>,
    _network: Option<Network>,
}

impl Islands {
    /// Starts it with a backend that fails as told.
    pub fn start(builder: ClusterBuilder) -> Result<Islands> {
        match netns::missing() {
            None => Islands::in_namespaces(builder),
            Some(why) => {
                eprintln!("NOTE: nodes are cut off by proxies, which gossip passes by: {why}");
                let cluster = builder.all(|_, options| options.behind_proxy = true).start()?;
                Ok(Islands { cluster, namespaces: Vec::new(), _network: None })
            }
        }
    }

    fn in_namespaces(builder: ClusterBuilder) -> Result<Islands> {
        let mut network = Network::start()?;
        let add = |_| network.add(Shape::default());
        let namespaces = (0..builder.count()).map(add).collect::<Result<Vec<_>>>()?;
        let builder = builder.backend(BackendKind::FaultyOn(network.host().into())).all(|index, options| {
            options.place = Place::within(&namespaces[index]);
        });
        let cluster = builder.start()?;
        Ok(Islands { cluster, namespaces, _network: Some(network) })
    }

    /// Whether gossip is cut as well.
    pub fn cuts_gossip(&self) -> bool {
        !self.namespaces.is_empty()
    }

    /// From now on nothing of other nodes arrives at this one ([`Way::ToPeer`]), or nothing of this one at others
    /// ([`Way::FromPeer`]).
    pub fn isolate(&self, index: usize, way: Way) -> Result<()> {
        if self.namespaces.is_empty() {
            self.cluster[index].proxy()?.stop(way);
            return Ok(());
        }
        let alone = &self.namespaces[index];
        let others = self.namespaces.iter().enumerate().filter(|(other, _)| *other != index);
        others.map(|(_, namespace)| namespace).try_for_each(|other| match way {
            Way::ToPeer => alone.drop_packets_from(other.address()),
            Way::FromPeer => other.drop_packets_from(alone.address()),
        })
    }

    /// Everything arrives everywhere again.
    pub fn heal(&self) -> Result<()> {
        for node in self.cluster.nodes().iter().filter(|_| self.namespaces.is_empty()) {
            for way in [Way::ToPeer, Way::FromPeer] {
                node.proxy()?.resume(way);
            }
        }
        self.namespaces.iter().try_for_each(Namespace::heal)
    }
}
