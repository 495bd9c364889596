//! Membership: who is in the cluster, by gossip over UDP.
//!
//! It owns the socket and one `chitchat` instance, which spreads what each node says about itself ([`record`]) and finds
//! out who is alive. Around it: [`transport`] signs every datagram, so that strangers are not heard, [`contacts`] is
//! where gossip starts from, and [`roster`] makes [`Members`] of what is seen: it settles what flaps and what claims to
//! be somebody else. Others hold a [`GossipHandle`]; they get snapshots through the callback of [`GossipSetup`], on the
//! sidecar's thread, the first one (only this node) right at the start.
//!
//! Nothing in here fails after the start: what cannot be sent or understood is dropped, as UDP may drop anything.

mod contacts;
mod record;
mod roster;
#[cfg(test)]
mod tests;
mod transport;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chitchat::{ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, spawn_chitchat};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::SidecarError;
use crate::config::Secret;
use crate::limits::{GOSSIP_CONTACTS_MAX, GOSSIP_GONE_KEPT, GOSSIP_RESTART_PAUSE};
use crate::membership::{Members, Node, NodeState};
use crate::metrics::Metrics;
use crate::rt::time::unix_us;
use contacts::Contacts;
use roster::{Roster, Sighting};
use transport::SignedTransport;

/// What the gossip of a node needs to know.
pub struct GossipSetup {
    /// What all nodes of the cluster present to each other (`ClusterOptions::credential`).
    pub credential: Secret,
    /// Name of the cluster.
    pub cluster: Arc<str>,
    /// Address to bind. Port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Address that others are told; the port is the one that was bound.
    pub advertise: IpAddr,
    /// Where to begin, `host:port`. A name stands for all its addresses and is looked up again and again.
    pub seeds: Vec<String>,
    /// This node.
    pub me: Node,
    /// Gets each snapshot, on the sidecar's thread, which it must not block.
    pub deliver: Box<dyn Fn(Arc<Members>) + Send>,
    /// Times.
    pub tuning: GossipTuning,
}

/// Times of gossip. With the defaults a node that was killed is dead to the others after 3.5 to 5 s, and one that is
/// merely silent for 3 s is not.
#[derive(Clone, Debug, PartialEq)]
pub struct GossipTuning {
    /// Between two rounds, each with up to three other nodes. Also how often snapshots are looked at.
    pub interval: Duration,
    /// What a heartbeat's distance is taken to be while none is known, and the weight that keeps later estimates near
    /// it: in a small cluster heartbeats come in bursts, and a detector that believed them would call a busy node dead.
    pub heartbeat_distance: Duration,
    /// A node is dead when its last heartbeat is this many distances ago.
    pub silence_distances: f64,
    /// A node that is not seen counts as alive for this much longer.
    pub settle: Duration,
    /// A node that was lost again and again has to be there for this long to count as alive; doubled with each further
    /// loss, up to sixteen times.
    pub proving: Duration,
    /// Two nodes that claim one name are a fault, not a restart, when both are there for this long.
    pub doubt_patience: Duration,
    /// Snapshots that change nothing but figures come at most this often.
    pub figures_period: Duration,
    /// How often nodes to begin with are spoken to.
    pub contact_period: Duration,
}

impl Default for GossipTuning {
    fn default() -> Self {
        GossipTuning {
            interval: Duration::from_millis(250),
            heartbeat_distance: Duration::from_millis(500),
            silence_distances: 8.0,
            settle: Duration::from_millis(500),
            proving: Duration::from_secs(2),
            doubt_patience: Duration::from_secs(15),
            figures_period: Duration::from_secs(1),
            contact_period: Duration::from_secs(1),
        }
    }
}

/// Speaks to the gossip from any thread. Clones reach the same one.
#[derive(Clone)]
pub struct GossipHandle {
    address: SocketAddr,
    state: Arc<watch::Sender<NodeState>>,
    bootstrap: Arc<watch::Sender<Vec<SocketAddr>>>,
    live: watch::Receiver<Vec<SocketAddr>>,
}

impl GossipHandle {
    /// Says what this node is up to; the others hear of it within seconds.
    pub fn report(&self, state: NodeState) {
        self.state.send_replace(state);
    }

    /// Gossip addresses to begin with besides those of the setup, such as a manager tells. They replace those of the
    /// call before.
    pub fn bootstrap(&self, mut addresses: Vec<SocketAddr>) {
        addresses.truncate(GOSSIP_CONTACTS_MAX);
        self.bootstrap.send_replace(addresses);
    }

    /// The gossip address that others are told.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gossip addresses of the nodes that are alive, this one first: what a manager tells newcomers.
    pub fn live_addresses(&self) -> Vec<SocketAddr> {
        self.live.borrow().clone()
    }
}

/// The socket, and the other ends of a [`GossipHandle`].
pub(in crate::sidecar) struct Bound {
    socket: UdpSocket,
    address: SocketAddr,
    state: watch::Receiver<NodeState>,
    bootstrap: watch::Receiver<Vec<SocketAddr>>,
    live: watch::Sender<Vec<SocketAddr>>,
}

/// Takes the port.
pub(in crate::sidecar) fn bind(setup: &GossipSetup) -> Result<(Bound, GossipHandle), SidecarError> {
    let bound = || {
        let socket = UdpSocket::bind(setup.listen)?;
        socket.set_nonblocking(true)?;
        let port = socket.local_addr()?.port();
        Ok((socket, SocketAddr::new(setup.advertise, port)))
    };
    let (socket, address) = bound().map_err(|source| SidecarError::Gossip { address: setup.listen, source })?;
    let (state_sender, state) = watch::channel(setup.me.state);
    let (bootstrap_sender, bootstrap) = watch::channel(Vec::new());
    let (live, live_receiver) = watch::channel(vec![address]);
    let handle = GossipHandle {
        address,
        state: Arc::new(state_sender),
        bootstrap: Arc::new(bootstrap_sender),
        live: live_receiver,
    };
    Ok((Bound { socket, address, state, bootstrap, live }, handle))
}

/// Gossips until it is dropped.
pub(in crate::sidecar) async fn run(mut setup: GossipSetup, mut bound: Bound, metrics: Metrics) {
    let mut roster = Roster::new(setup.cluster.clone(), setup.me.clone(), setup.tuning.clone());
    loop {
        if let Err(error) = live(&mut setup, &mut bound, &mut roster, &metrics).await {
            tracing::error!(%error, "gossip ended by itself and is started again");
        }
        tokio::time::sleep(GOSSIP_RESTART_PAUSE).await;
        // What the others know of the life before must not pass for this one's.
        setup.me.started_us = unix_us().max(setup.me.started_us + 1);
        roster.restart(setup.me.clone());
    }
}

/// One life: from a new `chitchat` instance to its end, which should not come.
async fn live(
    setup: &mut GossipSetup,
    bound: &mut Bound,
    roster: &mut Roster,
    metrics: &Metrics,
) -> anyhow::Result<()> {
    let transport = SignedTransport::new(bound.socket.try_clone()?, &setup.credential, metrics.clone());
    let me = &mut setup.me;
    me.state = *bound.state.borrow();
    let own = ChitchatId::new(me.id.clone(), me.started_us, bound.address);
    let config = config(&setup.cluster, &setup.tuning, own.clone(), setup.listen);
    let handle = spawn_chitchat(config, record::write(me), &transport).await?;
    let ended = handle.termination_watcher();
    let mut contacts = Contacts::new(&setup.seeds, bound.address, bound.bootstrap.clone());
    let contact = contacts.keep_up(&handle, setup.tuning.contact_period);
    tokio::pin!(ended, contact);
    let mut rounds = tokio::time::interval(setup.tuning.interval);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            result = &mut ended => return result,
            never = &mut contact => match never {},
            _ = rounds.tick() => {
                let state = *bound.state.borrow_and_update();
                let sightings = look(&handle, &own, state).await;
                let snapshot = roster.update(Instant::now(), state, sightings);
                if let Some(members) = snapshot {
                    bound.live.send_replace(roster.addresses(bound.address));
                    metrics.set_cluster_nodes(members.live.len(), members.seeds().count());
                    (setup.deliver)(members);
                }
            }
        }
    }
}

fn config(cluster: &str, tuning: &GossipTuning, me: ChitchatId, listen_addr: SocketAddr) -> ChitchatConfig {
    ChitchatConfig {
        chitchat_id: me,
        cluster_id: cluster.to_owned(),
        gossip_interval: tuning.interval,
        listen_addr,
        // See `contacts`: the crate's own seeds cannot change, and their names are looked up once a minute only.
        seed_nodes: Vec::new(),
        failure_detector_config: FailureDetectorConfig {
            phi_threshold: tuning.silence_distances,
            // The crate counts the assumed distance five times: measured ones hardly move it.
            sampling_window_size: 2,
            max_interval: tuning.heartbeat_distance * 10,
            initial_interval: tuning.heartbeat_distance,
            dead_node_grace_period: GOSSIP_GONE_KEPT,
        },
        // Nothing is ever deleted.
        marked_for_deletion_grace_period: GOSSIP_GONE_KEPT,
        catchup_callback: None,
        extra_liveness_predicate: None,
    }
}

/// Tells the others this node's state, and looks who is there.
async fn look(handle: &ChitchatHandle, own: &ChitchatId, state: NodeState) -> Vec<Sighting> {
    let chitchat = handle.chitchat();
    let mut chitchat = chitchat.lock().await;
    let (key, value) = record::write_state(&state);
    chitchat.self_node_state().set(key, value);
    let others = chitchat.live_nodes().filter(|id| *id != own);
    others
        .filter_map(|id| {
            Some(Sighting { node: record::read(id, chitchat.node_state(id)?)?, gossip: id.gossip_advertise_addr })
        })
        .collect()
}
