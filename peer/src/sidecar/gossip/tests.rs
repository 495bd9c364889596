//! Several nodes in one process, over real sockets: joining, leaving, coming back, strangers.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dfstore_proto::message::NodeRole;
use tokio::sync::oneshot;

use super::{GossipHandle, GossipSetup, GossipTuning, bind, run};
use crate::config::Secret;
use crate::membership::{Members, Node, NodeState};
use crate::metrics::Metrics;
use crate::rt::time::unix_us;

/// A busy machine that runs all tests at once needs this long at most.
const PATIENCE: Duration = Duration::from_secs(30);
const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// What a node was told last, for whoever waits for it.
#[derive(Default)]
struct Told {
    members: Mutex<Vec<Arc<Members>>>,
    changed: Condvar,
}

/// A node in a thread of its own. Dropping it kills it without a goodbye.
struct Peer {
    handle: GossipHandle,
    told: Arc<Told>,
    metrics: Metrics,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What a node is started with.
#[derive(Clone)]
struct Plan {
    id: &'static str,
    role: NodeRole,
    credential: &'static str,
    ip: IpAddr,
    /// The port for other peers, which nobody listens on: none of these nodes ever connects.
    peer_port: u16,
    seeds: Vec<String>,
    tuning: GossipTuning,
}

fn quick() -> GossipTuning {
    GossipTuning {
        interval: Duration::from_millis(50),
        heartbeat_distance: Duration::from_millis(250),
        settle: Duration::from_millis(100),
        figures_period: Duration::from_millis(50),
        contact_period: Duration::from_millis(100),
        ..GossipTuning::default()
    }
}

fn plan(id: &'static str, peer_port: u16) -> Plan {
    Plan {
        id,
        role: NodeRole::Peer,
        credential: "credential",
        ip: LOCAL,
        peer_port,
        seeds: Vec::new(),
        tuning: quick(),
    }
}

impl Plan {
    fn seeded(mut self, peer: &Peer) -> Plan {
        self.seeds.push(peer.handle.address().to_string());
        self
    }

    fn start(self) -> Peer {
        let told = Arc::<Told>::default();
        let teller = told.clone();
        let address = SocketAddr::new(self.ip, self.peer_port);
        let setup = GossipSetup {
            credential: Secret::new(self.credential),
            cluster: "demo".into(),
            listen: SocketAddr::new(self.ip, 0),
            advertise: self.ip,
            seeds: self.seeds,
            me: Node {
                id: self.id.into(),
                started_us: unix_us(),
                role: self.role,
                peer: address,
                api: address,
                shards: 2,
                capacity_bytes: 1 << 30,
                version: "test".into(),
                state: NodeState::default(),
            },
            deliver: Box::new(move |members| {
                teller.members.lock().expect("not poisoned").push(members);
                teller.changed.notify_all();
            }),
            tuning: self.tuning,
        };
        let metrics = Metrics::new(1, "test");
        let (bound, handle) = bind(&setup).expect("a port");
        let (stop, stopped) = oneshot::channel();
        let counted = metrics.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    () = run(setup, bound, counted) => {}
                    _ = stopped => {}
                }
            });
        });
        Peer { handle, told, metrics, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("gossip does not panic");
        }
    }
}

impl Peer {
    /// Waits for a snapshot that is as wanted.
    #[track_caller]
    fn sees(&self, what: &str, wanted: impl Fn(&Members) -> bool) -> Arc<Members> {
        let end = Instant::now() + PATIENCE;
        let mut members = self.told.members.lock().expect("not poisoned");
        loop {
            if let Some(last) = members.last().filter(|last| wanted(last)) {
                return last.clone();
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "never saw {what}, but {:#?}", members.last());
            members = self.told.changed.wait_timeout(members, left).expect("not poisoned").0;
        }
    }

    #[track_caller]
    fn sees_live(&self, ids: &[&str]) -> Arc<Members> {
        self.sees(&format!("{ids:?}"), |members| {
            members.live.iter().map(|node| node.id.as_ref()).eq(ids.iter().copied())
        })
    }

    /// Every id that ever counted as alive.
    fn ever_saw(&self, id: &str) -> bool {
        self.told.members.lock().expect("not poisoned").iter().any(|members| members.find(id).is_some())
    }

    fn refused(&self) -> u64 {
        let text = self.metrics.encode();
        let line = text.lines().find_map(|line| line.strip_prefix("dfstore_gossip_refused_total "));
        line.and_then(|figure| figure.parse().ok()).expect("a counter")
    }

    /// Waits until as many datagrams were refused.
    #[track_caller]
    fn refuses(&self, count: u64) {
        let end = Instant::now() + PATIENCE;
        let mut members = self.told.members.lock().expect("not poisoned");
        while self.refused() < count {
            assert!(Instant::now() < end, "only {} were refused", self.refused());
            members = self.told.changed.wait_timeout(members, Duration::from_millis(20)).expect("not poisoned").0;
        }
    }
}

#[test]
fn the_first_snapshot_is_the_node_alone() {
    let alone = Plan { role: NodeRole::Seed, ..plan("a", 1) }.start();
    let members = alone.sees_live(&["a"]);
    assert!(members.is_seed() && members.dead.is_empty());
    assert_eq!((members.cluster.as_ref(), members.me.as_ref()), ("demo", "a"));
    assert_eq!(alone.handle.live_addresses(), [alone.handle.address()]);
}

#[test]
fn nodes_find_each_other_through_one_and_learn_what_each_is() {
    let seed = Plan { role: NodeRole::Seed, ..plan("s", 1) }.start();
    let (first, second) = (plan("a", 2).seeded(&seed).start(), plan("b", 3).seeded(&seed).start());
    for peer in [&seed, &first, &second] {
        let members = peer.sees_live(&["a", "b", "s"]);
        assert_eq!(members.seeds().map(|node| node.id.as_ref()).collect::<Vec<_>>(), ["s"]);
        let node = members.find("b").expect("live");
        assert_eq!((node.peer, node.shards, node.capacity_bytes), (SocketAddr::new(LOCAL, 3), 2, 1 << 30));
        assert_eq!(node.version, "test");
    }
    let mut addresses = second.handle.live_addresses();
    let mut expected = [&second, &seed, &first].map(|peer| peer.handle.address());
    assert_eq!(addresses[0], expected[0], "its own comes first");
    addresses.sort();
    expected.sort();
    assert_eq!(addresses, expected);
    assert!(first.metrics.encode().contains("dfstore_cluster_nodes{role=\"peer\"} 2\n"), "{}", first.metrics.encode());
}

#[test]
fn a_change_of_state_arrives_everywhere() {
    let seed = plan("s", 1).start();
    let peer = plan("a", 2).seeded(&seed).start();
    let state = NodeState { used_bytes: 5, dirty_bytes: 4, load: 3 };
    peer.handle.report(state);
    for one in [&seed, &peer] {
        one.sees("the state", |members| members.find("a").is_some_and(|node| node.state == state));
    }
}

#[test]
fn a_killed_node_is_gone_and_comes_back_as_another_life() {
    let seed = plan("s", 1).start();
    let (first, second) = (plan("a", 2).seeded(&seed).start(), plan("b", 3).seeded(&seed).start());
    seed.sees_live(&["a", "b", "s"]);
    let before = second.sees_live(&["a", "b", "s"]);
    drop(first);
    for one in [&seed, &second] {
        let members = one.sees_live(&["b", "s"]);
        assert_eq!(members.dead.iter().map(|node| node.id.as_ref()).collect::<Vec<_>>(), ["a"]);
    }
    let _again = plan("a", 2).seeded(&seed).start();
    let after = second.sees_live(&["a", "b", "s"]);
    assert!(after.dead.is_empty());
    let started = |members: &Members| members.find("a").map(|node| node.started_us);
    assert!(started(&after) > started(&before));
}

#[test]
fn with_the_usual_times_a_killed_node_is_gone_after_some_seconds_and_a_living_one_is_not() {
    let usual = |id, port| Plan { tuning: GossipTuning::default(), ..plan(id, port) };
    let seed = usual("s", 1).start();
    let (first, second) = (usual("a", 2).seeded(&seed).start(), usual("b", 3).seeded(&seed).start());
    seed.sees_live(&["a", "b", "s"]);
    second.sees_live(&["a", "b", "s"]);
    drop(first);
    let killed = Instant::now();
    let members = seed.sees_live(&["b", "s"]);
    let took = killed.elapsed();
    println!("gone after {took:?}");
    assert!((Duration::from_secs(2)..Duration::from_secs(12)).contains(&took), "{took:?}");
    assert_eq!(members.dead.len(), 1);
    let told = second.told.members.lock().expect("not poisoned");
    let joined = told.iter().skip_while(|members| members.find("s").is_none());
    assert!(joined.into_iter().all(|members| members.find("s").is_some()), "a living node is never missed");
}

#[test]
fn a_node_that_is_back_before_it_is_missed_is_replaced_at_once() {
    let seed = plan("s", 1).start();
    let first = plan("a", 2).seeded(&seed).start();
    let before = seed.sees_live(&["a", "s"]);
    let started = |members: &Members| members.find("a").map(|node| node.started_us);
    let (life, address) = (started(&before), first.handle.address());
    drop(first);
    let again = plan("a", 2).seeded(&seed).start();
    seed.sees("the new life", |members| started(members) > life);
    let own = again.sees_live(&["a", "s"]);
    assert!(started(&own) > life, "its own life before is never itself");
    assert!(!again.handle.live_addresses().contains(&address));
}

#[test]
fn strangers_are_refused_counted_and_never_seen() {
    let seed = plan("s", 1).start();
    let stranger = Plan { credential: "another", ..plan("x", 2) }.seeded(&seed).start();
    seed.refuses(3);
    let member = plan("a", 3).seeded(&seed).start();
    seed.sees_live(&["a", "s"]);
    member.sees_live(&["a", "s"]);
    assert!(!seed.ever_saw("x") && !member.ever_saw("x") && !stranger.ever_saw("s"));
}

#[test]
fn noise_is_refused_and_harms_nobody() {
    let seed = plan("s", 1).start();
    let noise = UdpSocket::bind(SocketAddr::new(LOCAL, 0)).expect("a port");
    for length in [0, 1, 15, 16, 17, 1000, 60_000] {
        noise.send_to(&vec![0xA5; length], seed.handle.address()).expect("sent");
    }
    seed.refuses(7);
    plan("a", 2).seeded(&seed).start().sees_live(&["a", "s"]);
    assert_eq!(seed.refused(), 7, "members are not refused");
}

#[test]
fn of_two_nodes_with_one_name_the_later_started_is_used_and_neither_sees_the_other() {
    let seed = plan("s", 1).start();
    let older = plan("a", 2).seeded(&seed).start();
    seed.sees_live(&["a", "s"]);
    let newer = plan("a", 3).seeded(&seed).start();
    let port_of = |members: &Members| members.find("a").map(|node| node.peer.port());
    seed.sees("the newer one", |members| port_of(members) == Some(3));
    for (one, port) in [(&older, 2), (&newer, 3)] {
        one.sees("itself and the seed", |members| members.live.len() == 2 && port_of(members) == Some(port));
        let told = one.told.members.lock().expect("not poisoned");
        assert!(told.iter().all(|members| port_of(members) == Some(port)), "never the other");
    }
    drop(newer);
    seed.sees("the older one", |members| port_of(members) == Some(2));
}

#[test]
fn addresses_that_a_manager_tells_later_are_used() {
    let (first, second) = (plan("a", 1).start(), plan("b", 2).start());
    first.sees_live(&["a"]);
    second.sees_live(&["b"]);
    second.handle.bootstrap(vec![second.handle.address(), first.handle.address()]);
    first.sees_live(&["a", "b"]);
    second.sees_live(&["a", "b"]);
}

#[test]
fn a_cluster_works_over_ipv6() {
    let ip = IpAddr::V6(Ipv6Addr::LOCALHOST);
    if UdpSocket::bind((ip, 0)).is_err() {
        eprintln!("this machine has no IPv6: nothing to test");
        return;
    }
    let seed = Plan { ip, ..plan("s", 1) }.start();
    let peer = Plan { ip, ..plan("a", 2) }.seeded(&seed).start();
    let members = peer.sees_live(&["a", "s"]);
    assert_eq!(members.find("s").map(|node| node.peer), Some(SocketAddr::new(ip, 1)));
}
