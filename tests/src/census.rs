//! Leak census: what a process holds when it is at rest must be what it held when it had just started.
//!
//! Counted from outside: open descriptors by kind (`/proc/PID/fd`, sockets by where they lead), and the gauges of work in
//! progress. Allowed are the piece files, each opened once, connections to the backend that are kept for the next
//! request, and links of the cluster. A client's connection, a buffer, a lease, a permit, an upload or a message that
//! stays is an error that names it. Waits for a while: a shard reports once a second.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};

use crate::eventually;
use crate::peer::Peer;
use crate::scene::PATIENCE;

/// Connections to the backend that a peer may keep.
const BACKEND_CONNECTIONS_MAX: usize = 64;
/// Gauges that are zero at rest.
const ZERO_AT_REST: [&str; 9] = [
    "dfstore_requests_in_flight",
    "dfstore_backend_requests_in_flight",
    "dfstore_arena_held_bytes",
    "dfstore_mailbox_messages",
    "dfstore_uploads_open",
    "dfstore_retired_versions",
    "dfstore_permits_out",
    "dfstore_peer_uploads",
    "dfstore_store_poisoned",
];

/// What was open at the start. Holds for later lives of the process as well.
#[derive(Clone, Debug)]
pub struct Census {
    /// Number of descriptors by kind; no piece files, no connections.
    fixed: BTreeMap<String, usize>,
}

/// Descriptors of a process.
#[derive(Debug, Default)]
struct Open {
    fixed: BTreeMap<String, usize>,
    piece_files: BTreeMap<String, usize>,
    connections: Vec<(SocketAddr, SocketAddr)>,
}

impl Census {
    /// Notes what a peer has open. To be called when it has started and nobody has asked for an object.
    pub fn take(peer: &Peer) -> Result<Census> {
        // A listing asks every shard: then all of them have begun. What the bucket says does not matter.
        peer.request("GET", "/buckets/census/metadatas", &[], b"")?;
        let mut fixed = open(peer.pid())?.fixed;
        // One that is about to be connected, or has just been closed.
        fixed.remove(LOOSE_SOCKET);
        Ok(Census { fixed })
    }

    /// Waits until nothing but what may stay is left. `own` are addresses of the backend and of the cluster.
    pub fn check(&self, peer: &Peer, own: &[SocketAddr]) -> Result<()> {
        let mut last = None;
        let rests = eventually("all that was taken is given back", PATIENCE, || {
            self.look(peer, own).map_err(|error| last = Some(error)).ok()
        });
        match (rests, last) {
            (Err(late), Some(error)) => Err(error.context(late)),
            (rests, _) => rests,
        }
    }

    /// Whether that is so now; an error names what is not given back.
    pub fn look(&self, peer: &Peer, own: &[SocketAddr]) -> Result<()> {
        let samples = peer.metrics()?;
        for name in ZERO_AT_REST {
            ensure!(samples.has(name) || name == "dfstore_requests_in_flight", "no {name}");
            ensure!(samples.sum(name, &[]) == 0.0, "{name} is {}", samples.sum(name, &[]));
        }
        // Links of other peers count as native connections; without a cluster there are none.
        let face: &[(&str, &str)] = if own.len() > 1 { &[("face", "http")] } else { &[] };
        let clients = samples.sum("dfstore_connections", face);
        ensure!(clients == 0.0, "{clients} connections of clients are open");
        let (used, cached) = (samples.sum("dfstore_store_used_bytes", &[]), samples.sum("dfstore_cache_bytes", &[]));
        ensure!(used == cached, "{used} bytes of blocks are in use for {cached} bytes of pieces");
        let now = open(peer.pid())?;
        let kinds = now.fixed.keys().chain(self.fixed.keys());
        let other = kinds.filter(|kind| now.fixed.get(*kind) != self.fixed.get(*kind));
        let other: BTreeMap<_, _> = other.map(|kind| (kind, (self.fixed.get(kind), now.fixed.get(kind)))).collect();
        ensure!(other.is_empty(), "descriptors at the start and now: {other:?}");
        let files = peer.piece_files()?.len();
        ensure!(now.piece_files.len() <= files, "{} piece files of {files} are open", now.piece_files.len());
        let most = now.piece_files.values().max().copied().unwrap_or_default();
        ensure!(most <= PIECE_FILE_DESCRIPTORS, "piece files are open too often: {:?}", now.piece_files);
        let strangers: Vec<_> = now.connections.iter().filter(|(here, there)| is_strange(*here, *there, own)).collect();
        ensure!(strangers.is_empty(), "connections stay open: {strangers:?}");
        let kept = now.connections.iter().filter(|(_, there)| own.first() == Some(there)).count();
        ensure!(kept <= BACKEND_CONNECTIONS_MAX, "{kept} connections to the backend");
        Ok(())
    }
}

/// The store opens a piece file once, the background executor once more.
const PIECE_FILE_DESCRIPTORS: usize = 2;

fn is_strange(here: SocketAddr, there: SocketAddr, own: &[SocketAddr]) -> bool {
    !own.contains(&there) && !own.get(1..).unwrap_or_default().contains(&here)
}

/// A socket that leads nowhere.
const LOOSE_SOCKET: &str = "socket without a place";

/// What a socket is for.
#[derive(Clone, Copy)]
enum Socket {
    Listens,
    Connection(SocketAddr, SocketAddr),
    /// No TCP.
    Other,
}

fn open(pid: u32) -> Result<Open> {
    let folder = format!("/proc/{pid}/fd");
    let entries = fs::read_dir(&folder).with_context(|| format!("reading {folder}"))?;
    // What was closed meanwhile does not count.
    let targets: Vec<_> = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).collect();
    // After the descriptors: each socket among them is in a table, unless it has been closed since.
    let sockets = sockets(pid)?;
    let mut open = Open::default();
    for target in targets {
        let target = target.to_string_lossy().into_owned();
        let inode = target.strip_prefix("socket:[").and_then(|rest| rest.trim_end_matches(']').parse::<u64>().ok());
        let kind = match inode.map(|inode| sockets.get(&inode)) {
            None if target.contains("/pieces-") => {
                *open.piece_files.entry(target).or_default() += 1;
                continue;
            }
            Some(Some(Socket::Connection(here, there))) => {
                open.connections.push((*here, *there));
                continue;
            }
            // Each life of the process has a log of its own.
            None if target.ends_with(".log") => "log".to_owned(),
            None => without_number(&target),
            Some(Some(Socket::Listens)) => "socket that listens".to_owned(),
            Some(Some(Socket::Other)) => "socket of another kind".to_owned(),
            Some(None) => LOOSE_SOCKET.to_owned(),
        };
        *open.fixed.entry(kind).or_default() += 1;
    }
    Ok(open)
}

/// `pipe:[4711]` and the like are one kind each.
fn without_number(target: &str) -> String {
    target.split(":[").next().unwrap_or_default().to_owned()
}

/// The sockets that the process can see, by inode; of IPv4 only, as the kit uses it.
fn sockets(pid: u32) -> Result<HashMap<u64, Socket>> {
    let mut found = HashMap::new();
    let table = |name: &str| {
        let path = format!("/proc/{pid}/net/{name}");
        fs::read_to_string(&path).with_context(|| format!("reading {path}"))
    };
    for line in table("tcp")?.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, remote, state, ..] = fields[..] else { bail!("a line of the sockets: {line}") };
        let inode = fields.get(9).and_then(|inode| inode.parse().ok()).context("an inode")?;
        // 0A is LISTEN.
        let socket = if state == "0A" { Socket::Listens } else { Socket::Connection(end(local)?, end(remote)?) };
        found.insert(inode, socket);
    }
    for (name, column) in [("udp", 9), ("unix", 6)] {
        for line in table(name)?.lines().skip(1) {
            let inode = line.split_whitespace().nth(column).and_then(|inode| inode.parse().ok());
            found.extend(inode.map(|inode| (inode, Socket::Other)));
        }
    }
    Ok(found)
}

/// `0100007F:1F90` is 127.0.0.1:8080: the address as the machine keeps a number.
fn end(text: &str) -> Result<SocketAddr> {
    let (address, port) = text.split_once(':').context("an address and a port")?;
    let address = u32::from_str_radix(address, 16)?;
    Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(address.to_ne_bytes())), u16::from_str_radix(port, 16)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn sees_its_own_connection_and_that_it_is_gone() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let client = TcpStream::connect(address).expect("connected");
        let leads_there = || {
            let now = open(std::process::id()).expect("this process can be read");
            now.connections.iter().any(|(_, there)| *there == address)
        };
        assert!(leads_there());
        drop(client);
        assert!(!leads_there());
    }
}
