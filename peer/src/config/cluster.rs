//! What makes a peer a node of a cluster: the sections `cluster`, `seedPeer`, `manager`, `peer`, `gossip` and `replicas`.
//!
//! Without `cluster` a peer is standalone, and whatever asks for a cluster elsewhere in the file is refused, so that
//! nobody believes in one that is not there. The original's files have no such section: with the token in the environment
//! they are those of a cluster as they are. The file of its manager says nothing but where the bucket is, so a node of a
//! cluster that knows the bucket and speaks of nobody else is the first one: manager and seed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;

use dfstore_proto::limits::{NAME_BYTES_MAX, TOKEN_BYTES_MAX};

use super::manager_keys::{self, Asked, ManagerKeys};
use super::object_storage::read_ports;
use super::options::{ClusterOptions, GossipOptions, PeerListen};
use super::report::Report;
use super::secret::Secret;
use super::section::{Field, Section};
use super::units;
use super::yaml::Value;
use crate::limits::{CLUSTER_TOKEN_CHARS_MIN, GOSSIP_SEEDS_MAX, REFRESH_INTERVAL_DEFAULT, REPAIR_AFTER_DEFAULT};

const PEER_PORTS_DEFAULT: RangeInclusive<u16> = 65002..=65002;
const GOSSIP_PORT_DEFAULT: u16 = 65006;
const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const MANAGER_PORT_DEFAULT: u16 = 65003;
const NAME_DEFAULT: &str = "dfstore";
const ADD_CLUSTER: &str = "add \"cluster: { token: SECRET }\" to this file, or set DFSTORE_CLUSTER_TOKEN, the same on every \
                           node (the original had no such secret)";

/// What the sections give.
pub(super) struct Sections {
    /// `None` for a standalone peer, and when something is wrong, which the report then says.
    pub(super) options: Option<ClusterOptions>,
    /// Whether the backend comes from managers.
    pub(super) asks_managers: bool,
    gives: Option<Asked>,
    seed: Option<Asked>,
    /// Nothing is said of a cluster but its token.
    is_first: bool,
}

/// Reads them; each may be absent. `program` is `scheduler.manager`, if the file has that.
pub(super) fn read(report: &mut Report, root: &mut Section<'_>, program: Option<Field<'_>>) -> Sections {
    let cluster = root.get(report, "cluster");
    let manual = root.get(report, "manager");
    let manager = manager_keys::read(report, manual, program);
    let seed_section = root.section(report, "seedPeer");
    let says_seed = seed_section.is_some();
    let seed_here = seed_section.and_then(|mut section| {
        let enabled = manager_keys::if_true(report, &mut section, "enable");
        section.done(report);
        enabled
    });
    let rest = [root.get(report, "peer"), root.get(report, "gossip"), root.get(report, "replicas")];
    let [peer, gossip, replicas] = &rest;
    let peer = read_peer(report, peer.as_ref());
    let gossip = read_gossip(report, gossip.as_ref());
    let repair_after = replicas.as_ref().and_then(|field| {
        let mut section = field.section(report)?;
        let value = section.value(report, "repairAfter", units::positive_duration);
        section.done(report);
        value
    });
    let ManagerKeys { listen, enabled, managers, refresh_interval, seed } = manager;
    let (manager_listen, gives) = listen.map(|(address, asked)| (Some(address), Some(asked))).unwrap_or_default();
    let seed = seed_here.or(seed);
    if cluster.is_none() {
        refuse_without_cluster(report, &[&enabled, &gives, &seed], &rest);
    }
    let is_silent = !says_seed && seed.is_none() && gives.is_none() && enabled.is_none() && gossip.seeds.is_empty();
    let identity = cluster.and_then(|field| read_identity(report, &field));
    // Whoever gave the cluster a name knows of its sections.
    let is_first = is_silent && identity.as_ref().is_some_and(|(name, _)| name.is_none());
    let options = identity.map(|(name, token)| ClusterOptions {
        name: name.unwrap_or_else(|| NAME_DEFAULT.to_owned()),
        token,
        is_seed: seed.is_some(),
        peer,
        gossip,
        manager_listen,
        managers,
        refresh_interval: refresh_interval.unwrap_or(REFRESH_INTERVAL_DEFAULT),
        repair_after: repair_after.unwrap_or(REPAIR_AFTER_DEFAULT),
    });
    Sections { options, asks_managers: enabled.is_some(), gives, seed, is_first }
}

/// Who gives the backend's configuration must have one, and who decides about objects must be able to get one.
pub(super) fn check_backend(report: &mut Report, sections: &mut Sections, has_backend: bool) {
    if has_backend {
        if let Some(options) = sections.options.as_mut().filter(|_| sections.is_first) {
            let listen = SocketAddr::new(ANY, MANAGER_PORT_DEFAULT);
            (options.is_seed, options.manager_listen) = (true, Some(listen));
            report.general_warning(format_args!(
                "a token of a cluster is given, and nothing is said of other nodes: this is the first node, a seed, and \
                 manager on {listen}. Others name it in manager.netAddrs; only one node may be started like this"
            ));
        }
        if let Some(options) = sections.options.as_ref().filter(|options| !options.managers.is_empty()) {
            let managers = options.managers.join(", ");
            report.general_warning(format_args!(
                "the backend in this file is used, and never replaced by one of the managers ({managers}): they only \
                 tell which nodes there are"
            ));
        }
        return;
    }
    if let Some(asked) = &sections.gives {
        let message = format!(
            "\"{}\" needs a backend in this file (objectStorage.name, endpoint, keys): it is what a manager gives to \
             peers",
            asked.path
        );
        report.problem(&asked.place, message);
    }
    if let Some(asked) = sections.seed.as_ref().filter(|_| !sections.asks_managers) {
        let message = format!(
            "\"{}\" needs a backend: name one in objectStorage, or a manager that has one (manager.enable, \
             manager.netAddrs)",
            asked.path
        );
        report.problem(&asked.place, message);
    }
}

fn refuse_without_cluster(report: &mut Report, asked: &[&Option<Asked>], sections: &[Option<Field<'_>>]) {
    for asked in asked.iter().copied().flatten() {
        report.problem(&asked.place, format!("\"{}\" needs a cluster: {ADD_CLUSTER}", asked.path));
    }
    for field in sections.iter().flatten() {
        if !matches!(&field.node.value, Value::Map(entries) if entries.is_empty()) {
            report.problem(&field.node.place, format!("\"{}\" needs a cluster: {ADD_CLUSTER}", field.path));
        }
    }
}

fn read_identity(report: &mut Report, field: &Field<'_>) -> Option<(Option<String>, Secret)> {
    let mut section = field.section(report)?;
    let (name, token) = (section.get(report, "name"), section.get(report, "token"));
    let place = section.place().clone();
    section.done(report);
    if token.is_none() {
        let message = "\"cluster.token\" is required: a secret that all nodes of the cluster have in common, which \
                       keeps strangers out (openssl rand -hex 16), here or in DFSTORE_CLUSTER_TOKEN";
        report.problem(&place, message);
    }
    let name = name.map_or(Some(None), |field| field.value(report, cluster_name).map(Some));
    let token = token.and_then(|field| field.secret(report, cluster_token));
    Some((name?, token?))
}

fn cluster_name(text: &str) -> Result<String, String> {
    let valid = (1..=NAME_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
    if valid { Ok(text.to_owned()) } else { Err(format!("expected a name of 1 to {NAME_BYTES_MAX} bytes")) }
}

fn cluster_token(text: &str) -> Result<Secret, String> {
    let secret = units::secret(text)?;
    if (CLUSTER_TOKEN_CHARS_MIN..=TOKEN_BYTES_MAX).contains(&text.len()) {
        return Ok(secret);
    }
    let bounds = format!("{CLUSTER_TOKEN_CHARS_MIN} to {TOKEN_BYTES_MAX}");
    Err(format!("expected {bounds} characters that cannot be guessed (openssl rand -hex 16)"))
}

fn read_peer(report: &mut Report, field: Option<&Field<'_>>) -> PeerListen {
    let absent = PeerListen { listen: ANY, ports: PEER_PORTS_DEFAULT, advertise: None, advertise_port: None };
    let Some(mut section) = field.and_then(|field| field.section(report)) else { return absent };
    let listen = section.value(report, "listen", units::ip).unwrap_or(ANY);
    let ports = section.get(report, "port").and_then(|field| read_ports(report, &field));
    let advertise = section.value(report, "advertise", reachable_ip);
    let advertise_port = section.value(report, "advertisePort", reachable_port);
    section.done(report);
    PeerListen { listen, ports: ports.unwrap_or(PEER_PORTS_DEFAULT), advertise, advertise_port }
}

fn read_gossip(report: &mut Report, field: Option<&Field<'_>>) -> GossipOptions {
    let listen = SocketAddr::new(ANY, GOSSIP_PORT_DEFAULT);
    let absent = GossipOptions { listen, advertise: None, seeds: Vec::new() };
    let Some(mut section) = field.and_then(|field| field.section(report)) else { return absent };
    let listen = section.value(report, "listen", units::address).unwrap_or(listen);
    let advertise = section.value(report, "advertise", reachable_ip);
    let seeds = section.get(report, "seeds").map(|field| read_seeds(report, &field)).unwrap_or_default();
    section.done(report);
    GossipOptions { listen, advertise, seeds }
}

fn read_seeds(report: &mut Report, field: &Field<'_>) -> Vec<String> {
    let items = field.list(report).unwrap_or_default();
    if items.len() > GOSSIP_SEEDS_MAX {
        report.problem(&field.node.place, format!("\"{}\": more than {GOSSIP_SEEDS_MAX} seeds", field.path));
    }
    items.iter().filter_map(|item| item.value(report, units::host_port)).collect()
}

/// An address that others can connect to.
fn reachable_ip(text: &str) -> Result<IpAddr, String> {
    match units::ip(text) {
        Ok(ip) if !ip.is_unspecified() && !ip.is_multicast() => Ok(ip),
        _ => Err("expected the IP address under which other nodes reach this one".to_owned()),
    }
}

fn reachable_port(text: &str) -> Result<u16, String> {
    text.parse().ok().filter(|port| *port > 0).ok_or_else(|| "expected a port from 1 to 65535".to_owned())
}
