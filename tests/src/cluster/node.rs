//! One node of a cluster: a peer process, what it listens on, and short ways to ask it for objects.
//!
//! Answers are checked where they are asked for, as in [`crate::scene`]: a status that is not the expected one is an
//! error with the node's text.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::ops::Range;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dfstore_proto::message::{NodeRole, Scope, Target};

use super::BUCKET;
use super::config::{NodeOptions, Wiring, cluster_lines, object_storage};
use crate::bucket::S3Endpoint;
use crate::data::Payload;
use crate::eventually;
use crate::http::Response;
use crate::native::{NativeClient, target};
use crate::peer::{Peer, PeerSpec};
use crate::peer_proxy::PeerProxy;
use crate::ports;
use crate::samples::Samples;
use crate::scene::{PATIENCE, right, right_range};

/// The lines that name listeners are written before a peer is ready, or very soon after.
const LOG_TIMEOUT: Duration = Duration::from_secs(10);

/// Ports of all listeners; 0 lets the system choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// Object API and native protocol.
    pub api: u16,
    /// Metrics.
    pub metrics: u16,
    /// Other peers.
    pub peer: u16,
    /// Manager, of a seed.
    pub manager: u16,
    /// Gossip.
    pub gossip: u16,
}

impl Ports {
    /// Ports that it finds free again when it is started once more.
    fn free() -> Result<Ports> {
        let ports = ports::free(5)?;
        Ok(Ports { api: ports[0], metrics: ports[1], peer: ports[2], manager: ports[3], gossip: ports[4] })
    }
}

/// Where a node listens besides its API and its metrics.
#[derive(Clone, Copy, Debug)]
struct Listeners {
    peer: SocketAddr,
    manager: Option<SocketAddr>,
    gossip: SocketAddr,
}

/// A node, running or not.
pub struct Node {
    peer: Peer,
    role: NodeRole,
    options: NodeOptions,
    wiring: Wiring,
    proxy: Option<PeerProxy>,
    listeners: Listeners,
    id: String,
    running: bool,
}

impl Node {
    /// Starts one and waits until it is ready, whether it has found others or not.
    pub fn start(role: NodeRole, options: NodeOptions, wiring: Wiring, backend: Option<&S3Endpoint>) -> Result<Node> {
        let proxy = options.behind_proxy.then(PeerProxy::start).transpose()?;
        let spec = Node::spec(role, &options, &wiring, backend, proxy.as_ref(), Ports::free()?);
        let mut peer = Peer::start_with(spec)?;
        let (listeners, id) = introduced(&mut peer, role)?;
        if let Some(proxy) = &proxy {
            proxy.set_target(listeners.peer);
        }
        Ok(Node { peer, role, options, wiring, proxy, listeners, id, running: true })
    }

    /// How such a node is started, for tests of nodes that must refuse to start.
    pub fn spec(
        role: NodeRole,
        options: &NodeOptions,
        wiring: &Wiring,
        backend: Option<&S3Endpoint>,
        proxy: Option<&PeerProxy>,
        ports: Ports,
    ) -> PeerSpec {
        PeerSpec {
            backend: backend.cloned(),
            provider: "s3".to_owned(),
            data_path: options.data_path.clone(),
            capacity: options.capacity.clone(),
            storage: "scrubRate: 1GiB".to_owned(),
            memory_budget: options.memory_budget.clone(),
            hot: options.hot,
            shards: options.shards.clone(),
            extra: cluster_lines(role, options, wiring, ports, proxy.map(|proxy| proxy.address().port())),
            object_storage: object_storage(options),
            environment: options.environment.clone(),
            listen: options.place.address,
            listen_port: ports.api,
            metrics_port: ports.metrics,
            namespace: options.place.namespace.clone(),
        }
    }

    /// Starts it again on the same data, after an end of any kind, with these ports.
    pub fn restart(&mut self, ports: Ports) -> Result<()> {
        if self.running {
            self.terminate()?;
        }
        let (backend, proxy) = (self.peer.spec.backend.clone(), self.proxy.as_ref());
        let data_path = self.peer.spec.data_path.clone();
        self.peer.spec = Node::spec(self.role, &self.options, &self.wiring, backend.as_ref(), proxy, ports);
        self.peer.spec.data_path = data_path;
        self.peer.restart()?;
        self.running = true;
        (self.listeners, self.id) = introduced(&mut self.peer, self.role)?;
        if let Some(proxy) = &self.proxy {
            proxy.set_target(self.listeners.peer);
        }
        Ok(())
    }

    /// Starts it again on the same data and the same ports.
    pub fn restart_in_place(&mut self) -> Result<()> {
        self.restart(self.ports())
    }

    /// Another backend in its file, from the next start on.
    pub fn set_backend(&mut self, backend: &S3Endpoint) {
        self.peer.spec.backend = Some(backend.clone());
    }

    /// What it has logged since it was started last.
    pub fn log(&self) -> String {
        self.peer.log()
    }

    /// Its ports of now, or of its last life.
    pub fn ports(&self) -> Ports {
        Ports {
            api: self.peer.address().port(),
            metrics: self.peer.metrics_address().port(),
            peer: self.listeners.peer.port(),
            manager: self.listeners.manager.map_or(0, |address| address.port()),
            gossip: self.listeners.gossip.port(),
        }
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.running = false;
        self.peer.terminate()
    }

    /// `kill -9`, and waits for the end.
    pub fn kill9(&mut self) -> Result<()> {
        self.running = false;
        self.peer.kill9()
    }

    /// Removes all it has, also its name. It must have ended.
    pub fn wipe(&mut self) -> Result<()> {
        ensure!(!self.running, "{} is running", self.id);
        fs::remove_dir_all(self.peer.data_path()).with_context(|| format!("removing the data of {}", self.id))
    }

    /// Whether it was started and not ended by us.
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// What it is.
    pub fn role(&self) -> NodeRole {
        self.role
    }

    /// Its name in the cluster.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The process under it.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Options for the next start.
    pub fn options_mut(&mut self) -> &mut NodeOptions {
        &mut self.options
    }

    /// The proxy in front of its peer port; an error when it has none.
    pub fn proxy(&self) -> Result<&PeerProxy> {
        self.proxy.as_ref().with_context(|| format!("{} has no proxy: set behind_proxy", self.id))
    }

    /// Where others of the cluster reach it, its proxy left out.
    pub fn peer_address(&self) -> SocketAddr {
        self.listeners.peer
    }

    /// Where it is a manager.
    pub fn manager(&self) -> Option<SocketAddr> {
        self.listeners.manager
    }

    /// Where it gossips.
    pub fn gossip(&self) -> Option<SocketAddr> {
        Some(self.listeners.gossip)
    }

    /// A connection of the native protocol.
    pub fn native(&self) -> Result<NativeClient> {
        NativeClient::connect_any(self.peer.address())
    }

    /// An object of the cluster's bucket, as the native protocol names it.
    pub fn target(key: &str) -> Target {
        target(BUCKET, key)
    }

    /// The path of an object in the object API; the key goes in as it is.
    pub fn path(key: &str) -> String {
        Peer::object_path(BUCKET, key)
    }

    /// The names of the nodes that it sees alive, its own included.
    pub fn sees(&self) -> Result<BTreeSet<String>> {
        let (_, nodes) = self.native()?.nodes()?;
        Ok(nodes.into_iter().filter(|node| node.live).map(|node| node.id).collect())
    }

    /// A request about an object.
    pub fn ask(&self, method: &str, key: &str, headers: &[(&str, &str)]) -> Result<Response> {
        self.peer.request(method, &Node::path(key), headers, b"").map_err(|error| self.explain(error))
    }

    /// GET that must give this payload, whole; gives `X-Dfs-Cache`.
    pub fn read(&self, key: &str, payload: Payload) -> Result<String> {
        right(&self.ask("GET", key, &[])?, payload).with_context(|| format!("GET {key} from {}", self.id))
    }

    /// GET of a range that must give those bytes of this payload; gives `X-Dfs-Cache`.
    pub fn read_range(&self, key: &str, payload: Payload, range: Range<u64>) -> Result<String> {
        let header = format!("bytes={}-{}", range.start, range.end - 1);
        right_range(&self.ask("GET", key, &[("Range", &header)])?, payload, range)
            .with_context(|| format!("GET {key} {header} from {}", self.id))
    }

    /// PUT of a payload in a mode with these headers, without a look at the answer.
    pub fn try_put(&self, key: &str, mode: u8, payload: Payload, headers: &[(&str, &str)]) -> Result<Response> {
        self.peer.request("PUT", &format!("{}?mode={mode}", Node::path(key)), headers, &payload.bytes())
    }

    /// PUT that must be acknowledged.
    pub fn put(&self, key: &str, mode: u8, payload: Payload) -> Result<Response> {
        let answer = self.try_put(key, mode, payload, &[])?;
        ensure!(answer.status() == 200, "PUT {key} to {}: {} {}", self.id, answer.status(), answer.text());
        Ok(answer)
    }

    /// DELETE that must be acknowledged.
    pub fn delete(&self, key: &str) -> Result<()> {
        let answer = self.ask("DELETE", key, &[])?;
        ensure!(answer.status() / 100 == 2, "DELETE {key} at {}: {} {}", self.id, answer.status(), answer.text());
        Ok(())
    }

    /// The keys that a listing shows, at most one page.
    pub fn keys(&self, query: &str) -> Result<Vec<String>> {
        let answer = self.peer.request("GET", &format!("/buckets/{BUCKET}/metadatas?{query}"), &[], b"")?;
        ensure!(answer.status() == 200, "list {query} at {}: {} {}", self.id, answer.status(), answer.text());
        let page: serde_json::Value = serde_json::from_slice(&answer.body)?;
        let entries = page["Metadatas"].as_array().context("entries")?;
        Ok(entries.iter().filter_map(|entry| entry["Key"].as_str()).map(str::to_owned).collect())
    }

    /// Waits until the answer to a HEAD satisfies this.
    pub fn until_head(&self, what: &str, key: &str, holds: impl Fn(&Response) -> bool) -> Result<Response> {
        let asked = || self.ask("HEAD", key, &[]).ok().filter(|answer| holds(answer));
        eventually(&format!("{}: {what}", self.id), PATIENCE, asked).map_err(|error| self.explain(error))
    }

    /// PUT with `X-Dfs-Ack`; gives what `X-Dfs-Replicas` says.
    pub fn put_with_ack(&self, key: &str, mode: u8, payload: Payload, ack: &str) -> Result<String> {
        let answer = self.try_put(key, mode, payload, &[("X-Dfs-Ack", ack)])?;
        ensure!(answer.status() == 200, "PUT {key} to {}: {} {}", self.id, answer.status(), answer.text());
        Ok(answer.header("x-dfs-replicas").context("no X-Dfs-Replicas")?.to_owned())
    }

    /// Copies an object within the bucket, without a look at the answer.
    pub fn try_copy(&self, source: &str, key: &str) -> Result<Response> {
        self.peer.copy(BUCKET, source, key)
    }

    /// Copies an object within the bucket.
    pub fn copy(&self, source: &str, key: &str) -> Result<()> {
        let answer = self.try_copy(source, key)?;
        ensure!(answer.status() == 200, "copy {source} to {key} at {}: {}", self.id, answer.text());
        Ok(())
    }

    /// Drops an object from this node alone.
    pub fn evict(&self, key: &str) -> Result<()> {
        let worked = self.native()?.evict(&Node::target(key), Scope::Node)?;
        ensure!(worked.failures.is_empty(), "{key} is not dropped at {}: {:?}", self.id, worked.failures);
        Ok(())
    }

    /// Who holds all pieces of an object, as the cluster knows it from this node.
    pub fn whole_holders(&self, key: &str) -> Result<BTreeSet<String>> {
        let found = self.native()?.locations(&Node::target(key))?;
        let whole = found.info.pieces();
        Ok(found.holders.into_iter().filter(|holder| holder.pieces == whole).map(|holder| holder.node).collect())
    }

    /// Waits until nothing of an object is owed to the backend any more.
    pub fn until_clean(&self, key: &str) -> Result<()> {
        let clean = |answer: &Response| answer.status() == 200 && answer.header("x-dfs-cache") != Some("pending");
        self.until_head(&format!("{key} is written back"), key, clean).map(drop)
    }

    /// Its metrics.
    pub fn metrics(&self) -> Result<Samples> {
        self.peer.metrics()
    }

    /// Adds the end of its log to an error.
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        error.context(format!("{}; the end of its log:\n    {}", self.id, self.peer.log_tail()))
    }
}

/// Where a peer that is ready listens, and its name.
fn introduced(peer: &mut Peer, role: NodeRole) -> Result<(Listeners, String)> {
    let listening = |words: &str| {
        eventually(&format!("a node logs \"{words} ADDRESS\""), LOG_TIMEOUT, || peer.listens(words))
            .with_context(|| format!("the end of its log:\n    {}", peer.log_tail()))
    };
    let manager = match role {
        NodeRole::Seed => Some(listening("manager on")?),
        NodeRole::Peer => None,
    };
    let listeners = Listeners { peer: listening("peers on")?, manager, gossip: listening("gossip on")? };
    let (id, _) = NativeClient::connect_any(peer.address())?.nodes()?;
    Ok((listeners, id))
}
