//! What a node of a cluster adds to the process: its doors, its name, membership, and the way to a manager.
//!
//! Made once at the start, from the configuration; [`follow`] then runs on the first shard as long as the process does:
//! it asks the managers for the backend's configuration, and tells the gossip how this node stands.

use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;

use dfstore_proto::error::{ErrorCode, ErrorReply};
use dfstore_proto::limits::BOOTSTRAP_MAX;
use dfstore_proto::message::{BackendConfig, ConfigOk, GetConfig, Message, NodeRole, Token};

use crate::config::{BackendOptions, ClusterOptions, Config, Secret};
use crate::engine::Engine;
use crate::engine::call::ShardMessage;
use crate::limits::{MANAGER_RETRY_DELAY, MANAGER_RETRY_DELAY_MAX, NODE_STATE_PERIOD};
use crate::links::Links;
use crate::logging::Redactions;
use crate::membership::{Members, Node, NodeState};
use crate::native::ClusterFace;
use crate::probe::address::advertised;
use crate::rt::mailbox::{Sender, oneshot};
use crate::rt::net::bind_shared;
use crate::rt::time::{sleep, unix_us};
use crate::server::StartError;
use crate::sidecar::backend::BackendHandle;
use crate::sidecar::gossip::{GossipHandle, GossipSetup, GossipTuning};

/// The doors of a node of a cluster.
pub struct Doors {
    /// For other peers: one listener for each shard.
    pub peers: Vec<TcpListener>,
    /// For those who ask for the configuration.
    pub manager: Option<TcpListener>,
}

impl Doors {
    /// Binds them.
    pub fn bind(options: &ClusterOptions, shards: usize) -> Result<Doors, StartError> {
        let address = SocketAddr::new(options.peer.listen, *options.peer.ports.start());
        let peers = bind_shared(options.peer.listen, options.peer.ports.clone(), shards);
        let peers = peers.map_err(|source| StartError::Door { key: "peer.port", address, source })?;
        let manager = options.manager_listen.map(|address| {
            let bound = bind_shared(address.ip(), address.port()..=address.port(), 1);
            bound.map_err(|source| StartError::Door { key: "manager.listen", address, source })
        });
        Ok(Doors { peers, manager: manager.transpose()?.and_then(|mut listeners| listeners.pop()) })
    }

    /// Says where they are.
    pub fn announce(&self) {
        if let Some(address) = self.peers.first().and_then(|listener| listener.local_addr().ok()) {
            tracing::info!(%address, "peers on {address}");
        }
        if let Some(address) = self.manager.as_ref().and_then(|listener| listener.local_addr().ok()) {
            tracing::info!(%address, "manager on {address}");
        }
    }
}

/// This node as others are told of it. `store_id` is the identity of its data folder.
pub fn describe(config: &Config, options: &ClusterOptions, doors: &Doors, api: SocketAddr, store_id: [u8; 16]) -> Node {
    let contacts = options.contacts();
    let port = doors.peers.first().and_then(|listener| listener.local_addr().ok()).map_or(0, |address| address.port());
    let peer_ip = advertised(options.peer.advertise, options.peer.listen, &contacts);
    Node {
        id: store_id.iter().take(NODE_ID_BYTES).map(|byte| format!("{byte:02x}")).collect::<String>().into(),
        started_us: unix_us(),
        role: if options.is_seed { NodeRole::Seed } else { NodeRole::Peer },
        peer: SocketAddr::new(peer_ip, options.peer.advertise_port.unwrap_or(port)),
        api: SocketAddr::new(advertised(None, api.ip(), &contacts), api.port()),
        shards: u16::try_from(config.shards).expect("at most SHARDS_MAX"),
        capacity_bytes: config.store.capacity_bytes,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state: NodeState::default(),
    }
}

/// Bytes of the data folder's identity that name a node: enough to be unique, short enough to read.
const NODE_ID_BYTES: usize = 6;

/// The snapshot of a node that has met nobody yet.
pub fn only(me: &Node, options: &ClusterOptions) -> Arc<Members> {
    let (cluster, live) = (options.name.as_str().into(), vec![Arc::new(me.clone())]);
    Arc::new(Members { cluster, me: me.id.clone(), live, dead: Vec::new() })
}

/// What the gossip is told; each snapshot goes to every shard.
pub fn gossip_setup(options: &ClusterOptions, me: Node, shards: Vec<Sender<ShardMessage>>) -> GossipSetup {
    let listen = options.gossip.listen;
    let advertise: IpAddr = advertised(options.gossip.advertise, listen.ip(), &options.contacts());
    GossipSetup {
        credential: Secret::new(options.credential()),
        cluster: options.name.as_str().into(),
        listen,
        advertise,
        seeds: options.gossip.seeds.clone(),
        me,
        deliver: Box::new(move |members| {
            for shard in &shards {
                // A shard whose mailbox is full gets the next one: they come again within seconds.
                drop(shard.try_send(ShardMessage::Members(members.clone())));
            }
        }),
        tuning: GossipTuning::default(),
    }
}

/// The face that other peers see. A node with a manager door also tells how to reach the backend.
pub fn face(options: &ClusterOptions, me: &Node, backend: &BackendHandle, gossip: &GossipHandle) -> Arc<ClusterFace> {
    let credential = Token::new(options.credential());
    if options.manager_listen.is_none() {
        return ClusterFace::new(me.id.clone(), credential, None);
    }
    let (backend, gossip) = (backend.clone(), gossip.clone());
    let source = move || match backend.options() {
        Some(options) => {
            let live = gossip.live_addresses().into_iter().take(BOOTSTRAP_MAX);
            let bootstrap = live.map(|address| address.to_string()).collect();
            Ok(ConfigOk { backend: BackendConfig::from(&*options), bootstrap })
        }
        None => {
            let why = "this manager does not know the backend itself yet";
            Err(ErrorReply::new(ErrorCode::BackendUnavailable, why))
        }
    };
    ClusterFace::new(me.id.clone(), credential, Some(Box::new(source)))
}

/// What [`follow`] works with.
#[derive(Clone)]
pub struct Following {
    /// The cluster's part of the configuration.
    pub options: ClusterOptions,
    /// Whom the managers' answers are for; `None` when the node's own file says how to reach the backend.
    pub backend: Option<BackendHandle>,
    /// Who is told of other nodes, and how this one stands.
    pub gossip: GossipHandle,
    /// Who takes secrets out of the log.
    pub redactions: Redactions,
}

/// Keeps asking the managers and telling the gossip; never ends.
pub async fn follow(engine: Engine, following: Following) {
    let Some(links) = engine.cluster().map(|cluster| cluster.links.clone()) else { return };
    let report = async {
        loop {
            following.gossip.report(engine.node_state());
            sleep(NODE_STATE_PERIOD).await;
        }
    };
    let (never, ()) = futures_util::join!(report, follow_managers(&links, &following));
    never
}

async fn follow_managers(links: &Links, following: &Following) {
    let options = &following.options;
    let mut retry_delay = MANAGER_RETRY_DELAY;
    while !options.managers.is_empty() {
        let told = ask_managers(links, &options.managers).await;
        let pause = match told.and_then(|told| following.apply(&told)) {
            Ok(()) => {
                retry_delay = MANAGER_RETRY_DELAY;
                options.refresh_interval
            }
            Err(reason) => {
                tracing::warn!(%reason, "no manager has told how to reach the backend; asking again in {retry_delay:?}");
                let pause = retry_delay;
                retry_delay = (retry_delay * 2).min(MANAGER_RETRY_DELAY_MAX).min(options.refresh_interval);
                pause
            }
        };
        sleep(pause).await;
    }
}

/// The first answer of a manager, or why the last one gave none.
async fn ask_managers(links: &Links, managers: &[String]) -> Result<ConfigOk, String> {
    let mut reason = String::new();
    for manager in managers {
        let addresses = match resolve(manager.clone()).await {
            Ok(addresses) => addresses,
            Err(unknown) => {
                reason = unknown;
                continue;
            }
        };
        for address in addresses {
            match links.ask_at(address, GetConfig {}.into()).await {
                Ok(Message::ConfigOk(told)) => return Ok(told),
                Ok(other) => reason = format!("{manager} answered with {}", other.frame_type().name()),
                Err(error) => reason = format!("{manager}: {error}"),
            }
        }
    }
    Err(reason)
}

/// Looks a name up on a thread of its own: it may take seconds, and a shard must not wait.
async fn resolve(name: String) -> Result<Vec<SocketAddr>, String> {
    let (sender, answer) = oneshot::channel();
    let looked_up = name.clone();
    let thread = std::thread::Builder::new().name("resolve".to_owned()).spawn(move || {
        let found = looked_up.to_socket_addrs().map(Iterator::collect::<Vec<_>>);
        drop(sender.send(found.map_err(|error| error.to_string())));
    });
    thread.map_err(|error| format!("{name} cannot be looked up: {error}"))?;
    let found = answer.await.map_err(|_| format!("{name} cannot be looked up"))?;
    found.map_err(|error| format!("{name} cannot be looked up: {error}"))
}

impl Following {
    fn apply(&self, told: &ConfigOk) -> Result<(), String> {
        self.gossip.bootstrap(told.bootstrap.iter().filter_map(|address| address.parse().ok()).collect());
        let Some(backend) = &self.backend else { return Ok(()) };
        let options = BackendOptions::try_from(&told.backend).map_err(|error| error.to_string())?;
        if backend.options().is_some_and(|current| *current == options) {
            return Ok(());
        }
        if let Some(keys) = &options.credentials {
            [&keys.access_key, &keys.secret_key].into_iter().chain(&keys.session_token).for_each(|secret| {
                self.redactions.add(secret);
            });
        }
        if backend.configure(options) {
            tracing::info!(endpoint = %told.backend.endpoint, "a manager told how to reach the backend");
        }
        Ok(())
    }
}
