//! What a node of a cluster is told: options of a test, turned into lines of a configuration file. Pure.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use dfstore_proto::message::NodeRole;

use super::node::Ports;
use crate::netns::Namespace;

/// What a test may choose for each node.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    /// `storage.capacity`.
    pub capacity: String,
    /// `memory.budget`. Small by default: several nodes run at once.
    pub memory_budget: String,
    /// `memory.hot`.
    pub hot: bool,
    /// `shards`.
    pub shards: String,
    /// `objectStorage.freshness`, as YAML writes it; empty for the default.
    pub freshness: String,
    /// `objectStorage.maxReplicas`; `None` for the default.
    pub max_replicas: Option<u16>,
    /// `replicas.repairAfter`; empty for the default.
    pub repair_after: String,
    /// `manager.refreshInterval` of a peer.
    pub refresh_interval: String,
    /// Others reach its peer port through a [`crate::peer_proxy::PeerProxy`].
    pub behind_proxy: bool,
    /// Where it runs.
    pub place: Place,
    /// Data folder; `None` makes one that goes away with the node.
    pub data_path: Option<PathBuf>,
    /// Further lines of the configuration file, at the top level.
    pub extra: String,
    /// Environment variables.
    pub environment: Vec<(String, String)>,
}

impl Default for NodeOptions {
    fn default() -> NodeOptions {
        NodeOptions {
            capacity: "2GiB".to_owned(),
            memory_budget: "64MiB".to_owned(),
            hot: true,
            shards: "1".to_owned(),
            freshness: String::new(),
            max_replicas: None,
            repair_after: String::new(),
            refresh_interval: "10m".to_owned(),
            behind_proxy: false,
            place: Place::default(),
            data_path: None,
            extra: String::new(),
            environment: Vec::new(),
        }
    }
}

/// Where a node runs and listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Network namespace.
    pub namespace: Option<String>,
    /// Address of all its listeners.
    pub address: IpAddr,
}

impl Place {
    /// On the address of this namespace.
    pub fn within(namespace: &Namespace) -> Place {
        Place { namespace: Some(namespace.name().to_owned()), address: namespace.address().into() }
    }
}

impl Default for Place {
    /// This machine's loopback.
    fn default() -> Place {
        Place { namespace: None, address: Ipv4Addr::LOCALHOST.into() }
    }
}

/// What nodes have in common and know of each other.
#[derive(Clone, Debug)]
pub struct Wiring {
    /// `cluster.name`.
    pub name: String,
    /// `cluster.token`.
    pub token: String,
    /// Managers, for peers: addresses or names, with a port each.
    pub managers: Vec<String>,
    /// Where seeds gossip, for seeds: they have no manager to ask. Addresses or names, with a port each.
    pub gossip_seeds: Vec<String>,
}

impl Wiring {
    /// For a cluster of this name and token, of which nothing runs yet.
    pub fn new(name: &str, token: &str) -> Wiring {
        Wiring { name: name.to_owned(), token: token.to_owned(), managers: Vec::new(), gossip_seeds: Vec::new() }
    }

    /// What its nodes present to each other.
    pub fn credential(&self) -> String {
        dfstore_peer::config::options::credential_of(&self.name, &self.token)
    }
}

/// Lines of the section `objectStorage`, as [`crate::peer::PeerSpec::object_storage`] wants them.
pub(super) fn object_storage(options: &NodeOptions) -> String {
    let freshness = (!options.freshness.is_empty()).then(|| format!("freshness: {}", options.freshness));
    let replicas = options.max_replicas.map(|replicas| format!("maxReplicas: {replicas}"));
    freshness.into_iter().chain(replicas).collect::<Vec<_>>().join("\n  ")
}

/// The top-level lines that make a node of a peer. `advertised` is the port of its proxy.
pub(super) fn cluster_lines(
    role: NodeRole,
    options: &NodeOptions,
    wiring: &Wiring,
    ports: Ports,
    advertised: Option<u16>,
) -> String {
    let Wiring { name, token, managers, gossip_seeds } = wiring;
    let listen = options.place.address;
    let quoted = |port| format!("{:?}", SocketAddr::new(listen, port).to_string());
    let mut lines = format!("cluster: {{ name: {name:?}, token: {token:?} }}\n");
    // Writing to a text cannot fail.
    let _ = match role {
        NodeRole::Seed => {
            writeln!(lines, "seedPeer: {{ enable: true }}\nmanager: {{ listen: {} }}", quoted(ports.manager))
        }
        NodeRole::Peer => {
            let addresses: Vec<_> =
                managers.iter().map(|address| format!("{{ type: tcp, addr: {address:?} }}")).collect();
            let (addresses, refresh) = (addresses.join(", "), &options.refresh_interval);
            writeln!(lines, "manager: {{ enable: true, netAddrs: [{addresses}], refreshInterval: {refresh} }}")
        }
    };
    let advertised = advertised.map_or(String::new(), |port| format!(", advertisePort: {port}"));
    let _ = writeln!(lines, "peer: {{ listen: {listen}, port: {}{advertised} }}", ports.peer);
    let seeds: Vec<_> = gossip_seeds.iter().map(|address| format!("{address:?}")).collect();
    let seeds = if seeds.is_empty() { String::new() } else { format!(", seeds: [{}]", seeds.join(", ")) };
    let seeds = if role == NodeRole::Seed { seeds } else { String::new() };
    let _ = writeln!(lines, "gossip: {{ listen: {}{seeds} }}", quoted(ports.gossip));
    if !options.repair_after.is_empty() {
        let _ = writeln!(lines, "replicas: {{ repairAfter: {} }}", options.repair_after);
    }
    lines.push_str(&options.extra);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wiring() -> Wiring {
        let mut wiring = Wiring::new("kit", "t");
        wiring.managers = ["127.0.0.1:5", "[::1]:6"].map(str::to_owned).to_vec();
        wiring.gossip_seeds = vec!["seeds.example:7".to_owned()];
        wiring
    }

    #[test]
    fn seed_manages_and_knows_other_seeds() {
        let ports = Ports { peer: 1, manager: 2, gossip: 3, ..Ports::default() };
        let options = NodeOptions { repair_after: "2s".to_owned(), ..NodeOptions::default() };
        let lines = cluster_lines(NodeRole::Seed, &options, &wiring(), ports, Some(9));
        let expected = "cluster: { name: \"kit\", token: \"t\" }\nseedPeer: { enable: true }\n\
                        manager: { listen: \"127.0.0.1:2\" }\npeer: { listen: 127.0.0.1, port: 1, advertisePort: 9 }\n\
                        gossip: { listen: \"127.0.0.1:3\", seeds: [\"seeds.example:7\"] }\nreplicas: { repairAfter: 2s }\n";
        assert_eq!(lines, expected);
    }

    #[test]
    fn peer_asks_managers_and_listens_where_it_is() {
        let place = Place { namespace: Some("n".to_owned()), address: Ipv4Addr::new(10, 0, 0, 4).into() };
        let options = NodeOptions { place, extra: "log: { level: debug }".to_owned(), ..NodeOptions::default() };
        let lines = cluster_lines(NodeRole::Peer, &options, &wiring(), Ports::default(), None);
        let expected = "cluster: { name: \"kit\", token: \"t\" }\n\
                        manager: { enable: true, netAddrs: [{ type: tcp, addr: \"127.0.0.1:5\" }, \
                        { type: tcp, addr: \"[::1]:6\" }], refreshInterval: 10m }\n\
                        peer: { listen: 10.0.0.4, port: 0 }\ngossip: { listen: \"10.0.0.4:0\" }\nlog: { level: debug }";
        assert_eq!(lines, expected);
    }

    #[test]
    fn object_storage_lines_are_indented() {
        let options = NodeOptions { freshness: "always".to_owned(), max_replicas: Some(2), ..NodeOptions::default() };
        assert_eq!(object_storage(&options), "freshness: always\n  maxReplicas: 2");
        assert_eq!(object_storage(&NodeOptions::default()), "");
    }
}
