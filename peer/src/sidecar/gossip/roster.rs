//! From who is seen to who counts as a member. Pure: time and sightings come in, snapshots go out.
//!
//! Rules. A node that is seen for the first time counts at once. One that is not seen any more counts for the time
//! `settle` longer. One that was lost [`LOSSES_FREE`] times within [`LOSSES_REMEMBERED`] has to prove itself before it
//! counts again. Of two lives of one node the later one counts; so it does of two nodes at one address for peers. Who
//! claims this node's name or address never counts: a node must not ask itself. What looks like a fault rather than a
//! restart, because both are seen for long, is logged once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::GossipTuning;
use crate::limits::{GOSSIP_GONE_KEPT, GOSSIP_GONE_MAX, GOSSIP_LOGGED_MAX};
use crate::membership::{DeadNode, Members, Node, NodeState};

/// Losses that need no proof: a crash and a restart are no flapping.
const LOSSES_FREE: u32 = 2;
/// A node that was not lost for this long starts anew.
const LOSSES_REMEMBERED: Duration = Duration::from_secs(120);
/// Most doublings of the time to prove oneself.
const DOUBLINGS_MAX: u32 = 4;
/// While somebody is gone, snapshots that say for how long come at least this often.
const GONE_PERIOD: Duration = Duration::from_secs(10);

/// One life of a node that gossip believes to be alive. Never this very life of this node.
pub(super) struct Sighting {
    pub(super) node: Node,
    pub(super) gossip: SocketAddr,
}

/// How a node that was seen stands.
#[derive(Clone, Copy, PartialEq)]
enum Standing {
    Live,
    /// It was not seen the last time.
    Missing {
        since: Instant,
    },
    Gone {
        since: Instant,
    },
    /// Seen again since `seen`, and not believed yet.
    Proving {
        since: Instant,
        seen: Instant,
    },
}

struct Known {
    node: Arc<Node>,
    gossip: SocketAddr,
    standing: Standing,
    losses: u32,
    lost: Option<Instant>,
}

/// A node that does not count because another one has its name or address.
type Rival = (Arc<str>, u64, SocketAddr);

/// What is known of the nodes of a cluster.
pub(super) struct Roster {
    cluster: Arc<str>,
    me: Arc<Node>,
    tuning: GossipTuning,
    known: BTreeMap<Arc<str>, Known>,
    rivals: BTreeMap<Rival, Instant>,
    logged: BTreeSet<Rival>,
    told: Option<(Instant, Arc<Members>)>,
}

impl Roster {
    pub(super) fn new(cluster: Arc<str>, me: Node, tuning: GossipTuning) -> Roster {
        let (known, rivals, logged) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        Roster { cluster, me: Arc::new(me), tuning, known, rivals, logged, told: None }
    }

    /// This node begins another life.
    pub(super) fn restart(&mut self, me: Node) {
        self.me = Arc::new(me);
    }

    /// Gossip addresses of all that count, `own` first.
    pub(super) fn addresses(&self, own: SocketAddr) -> Vec<SocketAddr> {
        let live = self.known.values().filter(|known| known.counts());
        std::iter::once(own).chain(live.map(|known| known.gossip)).collect()
    }

    /// Takes in who is seen now. Gives a snapshot when there is something new to tell.
    pub(super) fn update(&mut self, now: Instant, state: NodeState, sightings: Vec<Sighting>) -> Option<Arc<Members>> {
        if self.me.state != state {
            self.me = Arc::new(Node { state, ..Node::clone(&self.me) });
        }
        let mut seen = self.choose(now, sightings);
        for (id, known) in &mut self.known {
            known.advance(now, &self.tuning, seen.remove(id));
        }
        for (id, Sighting { node, gossip }) in seen {
            let (node, standing) = (Arc::new(node), Standing::Live);
            self.known.insert(id, Known { node, gossip, standing, losses: 0, lost: None });
        }
        self.forget(now);
        self.tell(now)
    }

    /// One sighting a name and an address. Remembers who was passed over, and says so when that lasts.
    fn choose(&mut self, now: Instant, mut sightings: Vec<Sighting>) -> BTreeMap<Arc<str>, Sighting> {
        sightings.sort_by_key(|sighting| std::cmp::Reverse((sighting.node.started_us, sighting.gossip)));
        let mut chosen: BTreeMap<Arc<str>, Sighting> = BTreeMap::new();
        let mut peers = BTreeMap::from([(self.me.peer, self.me.id.clone())]);
        let mut rivals = BTreeMap::new();
        for sighting in sightings {
            let node = &sighting.node;
            let named = node.id == self.me.id || chosen.contains_key(&node.id);
            let holder = if named { Some(node.id.clone()) } else { peers.get(&node.peer).cloned() };
            if let Some(holder) = holder {
                let rival = (node.id.clone(), node.started_us, node.peer);
                let since = self.rivals.get(&rival).copied().unwrap_or(now);
                let lasts = now.saturating_duration_since(since) >= self.tuning.doubt_patience;
                if lasts && self.logged.len() < GOSSIP_LOGGED_MAX && self.logged.insert(rival.clone()) {
                    self.log_rival(&sighting, chosen.get(&holder));
                }
                rivals.insert(rival, since);
                continue;
            }
            peers.insert(node.peer, node.id.clone());
            chosen.insert(node.id.clone(), sighting);
        }
        self.rivals = rivals;
        chosen
    }

    fn log_rival(&self, rival: &Sighting, chosen: Option<&Sighting>) {
        let (id, peer, gossip) = (&rival.node.id, rival.node.peer, rival.gossip);
        let holder = chosen.map_or(self.me.as_ref(), |sighting| &sighting.node);
        let (holder_id, holder_peer) = (&holder.id, holder.peer);
        if *id == *holder_id {
            tracing::error!(
                %id, %peer, %gossip, %holder_peer,
                "two nodes, at {peer} and {holder_peer}, have the name {id}: the one at {peer} is not used. Was a data \
                 folder copied? Each node needs its own"
            );
        } else {
            tracing::error!(
                %id, %peer, %gossip, %holder_id,
                "two nodes, {id} and {holder_id}, say that peers reach them at {peer}: {id} is not used. Give each its \
                 own peer.advertise and peer.port"
            );
        }
    }

    fn forget(&mut self, now: Instant) {
        self.known.retain(|_, known| known.gone_for(now).is_none_or(|gone| gone < GOSSIP_GONE_KEPT));
        let mut gone: Vec<_> =
            self.known.iter().filter_map(|(id, known)| Some((known.gone_for(now)?, id.clone()))).collect();
        if gone.len() > GOSSIP_GONE_MAX {
            gone.sort();
            for (_, id) in gone.split_off(GOSSIP_GONE_MAX) {
                self.known.remove(&id);
            }
        }
    }

    /// A snapshot, unless the last one says the same, or nearly so and not long ago.
    fn tell(&mut self, now: Instant) -> Option<Arc<Members>> {
        let members = self.members(now);
        if let Some((at, told)) = &self.told {
            let age = now.saturating_duration_since(*at);
            let due = match difference(told, &members) {
                Difference::Members => true,
                Difference::Figures => age >= self.tuning.figures_period,
                Difference::None => !members.dead.is_empty() && age >= GONE_PERIOD,
            };
            if !due {
                return None;
            }
        }
        let members = Arc::new(members);
        self.told = Some((now, members.clone()));
        Some(members)
    }

    fn members(&self, now: Instant) -> Members {
        let live = self.known.values().filter(|known| known.counts()).map(|known| known.node.clone());
        let mut live: Vec<_> = live.chain([self.me.clone()]).collect();
        live.sort_by(|first, second| first.id.cmp(&second.id));
        let dead = self.known.values().filter_map(|known| {
            Some(DeadNode { id: known.node.id.clone(), role: known.node.role, gone: known.gone_for(now)? })
        });
        Members { cluster: self.cluster.clone(), me: self.me.id.clone(), live, dead: dead.collect() }
    }
}

impl Known {
    fn counts(&self) -> bool {
        matches!(self.standing, Standing::Live | Standing::Missing { .. })
    }

    fn gone_for(&self, now: Instant) -> Option<Duration> {
        match self.standing {
            Standing::Live | Standing::Missing { .. } => None,
            Standing::Gone { since } | Standing::Proving { since, .. } => Some(now.saturating_duration_since(since)),
        }
    }

    fn advance(&mut self, now: Instant, tuning: &GossipTuning, sighting: Option<Sighting>) {
        let seen = sighting.is_some();
        if let Some(Sighting { node, gossip }) = sighting {
            self.gossip = gossip;
            if *self.node != node {
                self.node = Arc::new(node);
            }
        }
        self.standing = match (self.standing, seen) {
            (Standing::Live | Standing::Missing { .. }, true) => Standing::Live,
            (Standing::Live, false) => Standing::Missing { since: now },
            (Standing::Missing { since }, false) if now.saturating_duration_since(since) >= tuning.settle => {
                self.lose(now);
                Standing::Gone { since }
            }
            (Standing::Gone { since }, true) if self.losses > LOSSES_FREE => Standing::Proving { since, seen: now },
            (Standing::Gone { .. }, true) => Standing::Live,
            (Standing::Proving { seen, .. }, true) if now.saturating_duration_since(seen) >= self.proving(tuning) => {
                Standing::Live
            }
            (Standing::Proving { since, .. }, false) => {
                self.lose(now);
                Standing::Gone { since }
            }
            (standing, _) => standing,
        };
    }

    fn lose(&mut self, now: Instant) {
        let remembered = self.lost.is_some_and(|at| now.saturating_duration_since(at) < LOSSES_REMEMBERED);
        self.losses = if remembered { self.losses.saturating_add(1) } else { 1 };
        self.lost = Some(now);
        if self.losses == LOSSES_FREE + 1 {
            let id = &self.node.id;
            tracing::warn!(%id, "node {id} comes and goes: it has to stay for a while before it is used again");
        }
    }

    fn proving(&self, tuning: &GossipTuning) -> Duration {
        let doublings = self.losses.saturating_sub(LOSSES_FREE + 1).min(DOUBLINGS_MAX);
        tuning.proving * 2_u32.pow(doublings)
    }
}

#[derive(Debug, PartialEq)]
enum Difference {
    /// Others are alive or gone, or say something else of what stays the same while they live.
    Members,
    /// Only figures changed.
    Figures,
    /// Only time went by.
    None,
}

fn difference(before: &Members, after: &Members) -> Difference {
    let fixed = |node: &Arc<Node>| Node { state: NodeState::default(), ..Node::clone(node) };
    let same_live = before.live.iter().map(fixed).eq(after.live.iter().map(fixed));
    let same_dead = before.dead.iter().map(|node| &node.id).eq(after.dead.iter().map(|node| &node.id));
    if !same_live || !same_dead {
        return Difference::Members;
    }
    if before.live == after.live { Difference::None } else { Difference::Figures }
}

#[cfg(test)]
mod tests {
    use dfstore_proto::message::NodeRole;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn node(id: &str, started_us: u64, port: u16) -> Node {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Node {
            id: id.into(),
            started_us,
            role: NodeRole::Peer,
            peer: address,
            api: address,
            shards: 1,
            capacity_bytes: 1,
            version: "1".into(),
            state: NodeState::default(),
        }
    }

    /// A roster in its own time, of a node "me" at port 1.
    struct Scene {
        roster: Roster,
        now: Instant,
    }

    impl Scene {
        fn new() -> Scene {
            let roster = Roster::new("demo".into(), node("me", 10, 1), GossipTuning::default());
            Scene { roster, now: Instant::now() }
        }

        fn sees(&mut self, nodes: &[Node]) -> Option<Arc<Members>> {
            let gossip = SocketAddr::from(([127, 0, 0, 1], 9));
            let sightings = nodes.iter().map(|node| Sighting { node: node.clone(), gossip }).collect();
            self.roster.update(self.now, NodeState::default(), sightings)
        }

        /// The same for a while, in steps of a quarter of a second; gives who counts at the end.
        fn sees_for(&mut self, time: Duration, nodes: &[Node]) -> Vec<(String, u64)> {
            let end = self.now + time;
            while self.now < end {
                self.now += SECOND / 4;
                self.sees(nodes);
            }
            let (_, members) = self.roster.told.clone().expect("the first update tells");
            members.live.iter().map(|node| (node.id.to_string(), node.started_us)).collect()
        }
    }

    fn names(live: &[(String, u64)]) -> Vec<&str> {
        live.iter().map(|(id, _)| id.as_str()).collect()
    }

    #[test]
    fn the_first_snapshot_is_this_node_alone_and_the_same_is_not_told_again() {
        let mut scene = Scene::new();
        let members = scene.sees(&[]).expect("the first");
        assert_eq!((members.live.len(), members.me.as_ref(), members.dead.len()), (1, "me", 0));
        assert_eq!(scene.sees(&[]), None);
        let members = scene.sees(&[node("z", 1, 2), node("a", 1, 3)]).expect("news");
        assert_eq!(members.live.iter().map(|node| node.id.as_ref()).collect::<Vec<_>>(), ["a", "me", "z"]);
    }

    #[test]
    fn figures_wait_and_members_do_not() {
        let mut scene = Scene::new();
        let busy = |load| Node { state: NodeState { load, ..NodeState::default() }, ..node("a", 1, 2) };
        scene.sees(&[busy(1)]).expect("the first");
        assert_eq!(scene.sees(&[busy(2)]), None, "too soon");
        scene.now += SECOND;
        assert_eq!(scene.sees(&[busy(3)]).expect("due").find("a").map(|node| node.state.load), Some(3));
        assert!(scene.sees(&[busy(3), node("b", 1, 3)]).is_some(), "another node is told at once");
    }

    #[test]
    fn a_node_that_is_gone_is_remembered_with_its_time() {
        let mut scene = Scene::new();
        scene.sees(&[node("a", 1, 2)]);
        scene.now += SECOND / 4;
        assert_eq!(scene.sees(&[]), None, "it may only have been late");
        scene.now += SECOND / 2;
        let members = scene.sees(&[]).expect("gone");
        assert_eq!((members.live.len(), members.dead[0].gone), (1, SECOND / 2));
        scene.now += 11 * SECOND;
        assert!(scene.sees(&[]).expect("the time is told now and then").dead[0].gone > 11 * SECOND);
        let members = scene.sees(&[node("a", 2, 2)]).expect("back");
        assert_eq!((members.live.len(), members.dead.len()), (2, 0));
        scene.sees_for(SECOND, &[]);
        assert_eq!(scene.roster.known.len(), 1);
        scene.now += GOSSIP_GONE_KEPT;
        assert_eq!(scene.sees(&[]).expect("forgotten").dead.len(), 0);
    }

    #[test]
    fn of_two_lives_the_later_one_counts_and_a_restart_is_no_fault() {
        let mut scene = Scene::new();
        let (old, new) = (node("a", 1, 2), node("a", 5, 3));
        scene.sees(std::slice::from_ref(&old));
        assert_eq!(scene.sees_for(5 * SECOND, &[old.clone(), new.clone()]), [("a".into(), 5), ("me".into(), 10)]);
        assert!(scene.roster.logged.is_empty(), "as after any restart");
        scene.sees_for(15 * SECOND, &[old.clone(), new.clone()]);
        assert_eq!(scene.roster.logged.len(), 1, "both are really there");
        assert_eq!(scene.sees_for(SECOND, &[old])[0], ("a".into(), 1), "the other one is gone");
    }

    #[test]
    fn nobody_else_is_me_or_at_my_address() {
        let mut scene = Scene::new();
        let impostors = [node("me", 99, 7), node("me", 1, 1), node("renamed", 1, 1)];
        assert_eq!(names(&scene.sees_for(SECOND, &impostors)), ["me"]);
        assert!(scene.roster.logged.is_empty());
        scene.sees_for(15 * SECOND, &impostors);
        assert_eq!(scene.roster.logged.len(), 3);
        assert_eq!(scene.roster.known.len(), 0);
    }

    #[test]
    fn of_two_names_at_one_address_the_later_started_counts() {
        let mut scene = Scene::new();
        assert_eq!(names(&scene.sees_for(SECOND, &[node("a", 1, 2), node("b", 2, 2)])), ["b", "me"]);
    }

    #[test]
    fn a_flapping_node_has_to_stay() {
        let mut scene = Scene::new();
        let flapping = [node("a", 1, 2)];
        for _ in 0..LOSSES_FREE {
            assert_eq!(names(&scene.sees_for(SECOND, &flapping)), ["a", "me"]);
            assert_eq!(names(&scene.sees_for(SECOND, &[])), ["me"]);
        }
        assert_eq!(names(&scene.sees_for(SECOND, &flapping)), ["a", "me"]);
        scene.sees_for(SECOND, &[]);
        assert_eq!(names(&scene.sees_for(SECOND, &flapping)), ["me"], "not yet");
        scene.sees_for(SECOND, &[]);
        assert_eq!(names(&scene.sees_for(3 * SECOND, &flapping)), ["me"], "longer each time");
        assert_eq!(names(&scene.sees_for(2 * SECOND, &flapping)), ["a", "me"], "it stayed");
        scene.sees_for(LOSSES_REMEMBERED, &flapping);
        scene.sees_for(SECOND, &[]);
        assert_eq!(names(&scene.sees_for(SECOND / 4, &flapping)), ["a", "me"], "all is forgiven");
    }

    #[test]
    fn no_more_of_the_gone_are_remembered_than_fit() {
        let mut scene = Scene::new();
        let many: Vec<_> = (0..GOSSIP_GONE_MAX + 5)
            .map(|number| node(&format!("{number}"), 1, u16::try_from(number + 2).expect("small")))
            .collect();
        scene.sees_for(SECOND, &many);
        scene.sees_for(2 * SECOND, &[]);
        assert_eq!(scene.roster.known.len(), GOSSIP_GONE_MAX);
    }
}
