//! Where histories are played: one peer, or a cluster of three nodes, in front of a backend that fails as told.
//!
//! Owns the processes. Histories play side by side, each in a bucket of its own; all share the restarts.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Result, ensure};

use crate::census::Census;
use crate::cluster::{Cluster, Node, Ports};
use crate::data::Payload;
use crate::eventually;
use crate::faulty_backend::FaultyBackend;
use crate::model::world::Rules;
use crate::peer::Peer;
use crate::samples::Samples;
use crate::scene::{ASYNC, PATIENCE, Scene};

/// Histories that play at the same time at most: buckets are made and configured for so many.
pub const PLACES: usize = 320;
/// Every so many-th bucket of a standalone peer is `immutable`.
const IMMUTABLE_ONE_IN: usize = 4;
// Places come round without a shift of the classes.
const _: () = assert!(PLACES.is_multiple_of(IMMUTABLE_ONE_IN));

/// How nodes end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// `kill -9`
    Kill,
    /// SIGTERM
    Terminate,
}

/// The processes that histories are played on.
pub enum Stage {
    /// A standalone peer.
    One(Box<Scene>),
    /// A standalone peer that serves old versions, unknown to the model: what the model must find.
    Stale(Box<Scene>),
    /// Two seeds and a peer.
    Three(Box<Cluster>),
}

/// The bucket of a place.
pub fn bucket(place: usize) -> String {
    format!("place-{place}")
}

/// Where the history of a seed is played for the first time, and again: places whose buckets are configured alike.
pub fn place_of(seed: u64, repeat: usize) -> usize {
    let first = seed % PLACES as u64;
    (usize::try_from(first).expect("a place") + repeat * IMMUTABLE_ONE_IN) % PLACES
}

impl Stage {
    /// A standalone peer.
    pub fn one() -> Result<Stage> {
        let immutable: Vec<String> = (0..PLACES)
            .filter(|place| is_immutable(*place))
            .map(|place| format!("{}: {{ freshness: immutable }}", bucket(place)))
            .collect();
        let scene = Scene::start_with(|spec| {
            spec.object_storage = format!("freshness: always\n  buckets: {{ {} }}", immutable.join(", "));
        })?;
        let stage = Stage::One(Box::new(scene));
        stage.make_buckets()?;
        Ok(stage)
    }

    /// A standalone peer that serves old versions, while the model believes that it does not.
    pub fn stale() -> Result<Stage> {
        let scene = Scene::start_with(|spec| spec.object_storage = "freshness: immutable".to_owned())?;
        let stage = Stage::Stale(Box::new(scene));
        stage.make_buckets()?;
        Ok(stage)
    }

    /// A cluster of two seeds and a peer.
    pub fn three() -> Result<Stage> {
        let builder = Cluster::builder().seeds(2).peers(1).all(|_, options| options.freshness = "always".to_owned());
        let stage = Stage::Three(Box::new(builder.start()?));
        stage.make_buckets()?;
        Ok(stage)
    }

    fn make_buckets(&self) -> Result<()> {
        (0..PLACES).try_for_each(|place| self.backend()?.make_bucket_folder(&bucket(place)))
    }

    /// The backend behind it.
    pub fn backend(&self) -> Result<&FaultyBackend> {
        match self {
            Stage::One(scene) | Stage::Stale(scene) => Ok(&scene.backend),
            Stage::Three(cluster) => cluster.faulty(),
        }
    }

    /// How objects of a place are cached.
    pub fn rules(&self, place: usize) -> Rules {
        match self {
            Stage::One(_) => Rules { immutable: is_immutable(place), cluster: false },
            Stage::Stale(_) => Rules { immutable: false, cluster: false },
            Stage::Three(_) => Rules { immutable: false, cluster: true },
        }
    }

    /// Its peers.
    pub fn peers(&self) -> Vec<&Peer> {
        match self {
            Stage::One(scene) | Stage::Stale(scene) => vec![&scene.peer],
            Stage::Three(cluster) => cluster.nodes().iter().map(|node| node.peer()).collect(),
        }
    }

    /// Where a node takes requests.
    pub fn address(&self, node: usize) -> SocketAddr {
        let peers = self.peers();
        peers[node % peers.len()].address()
    }

    /// Ends a node and starts it again; returns when it and the others serve as before.
    pub fn restart(&mut self, node: usize, ending: Ending) -> Result<()> {
        match self {
            Stage::One(scene) | Stage::Stale(scene) => {
                end(&mut scene.peer, ending)?;
                scene.peer.restart()
            }
            Stage::Three(cluster) => {
                let node = node % cluster.nodes().len();
                match ending {
                    Ending::Kill => cluster[node].kill9()?,
                    Ending::Terminate => drop(cluster[node].terminate()?),
                }
                cluster[node].restart_in_place()?;
                until_joined(cluster)
            }
        }
    }

    /// Starts every node again, so that each looks at all it owes the bucket at once.
    pub fn restart_all(&mut self, ending: Ending) -> Result<()> {
        match self {
            Stage::One(_) | Stage::Stale(_) => self.restart(0, ending),
            Stage::Three(cluster) => {
                for node in cluster.nodes_mut() {
                    match ending {
                        Ending::Kill => node.kill9()?,
                        Ending::Terminate => drop(node.terminate()?),
                    }
                }
                for node in cluster.nodes_mut() {
                    let ports: Ports = node.ports();
                    node.restart(ports)?;
                }
                until_joined(cluster)
            }
        }
    }

    /// What each node has open. To be called when all have just started.
    pub fn census(&self) -> Result<Vec<Census>> {
        match self {
            Stage::One(scene) | Stage::Stale(scene) => Ok(vec![Census::take(&scene.peer)?]),
            Stage::Three(cluster) => cluster.nodes().iter().map(|node| Census::take(node.peer())).collect(),
        }
    }

    /// Waits until each node has given back what it took since, and owes the bucket nothing.
    pub fn check_census(&self, taken: &[Census]) -> Result<()> {
        let own = match self {
            Stage::One(scene) | Stage::Stale(scene) => vec![scene.backend.address()],
            Stage::Three(cluster) => cluster.own_addresses()?,
        };
        for (peer, census) in self.peers().into_iter().zip(taken) {
            let owes = ["dfstore_writeback_queue", "dfstore_writeback_dead_letters"];
            let owes = |samples: &Samples| owes.iter().map(|name| samples.sum(name, &[])).sum::<f64>();
            peer.metrics_until("nothing waits for the bucket", PATIENCE, |samples| owes(samples) == 0.0)?;
            census.check(peer, &own).map_err(|error| error.context(peer.log_tail()))?;
        }
        Ok(())
    }
}

/// Whether a standalone peer never asks again for what it has cached of this place's bucket.
pub fn is_immutable(place: usize) -> bool {
    place % IMMUTABLE_ONE_IN == 3
}

fn end(peer: &mut Peer, ending: Ending) -> Result<()> {
    match ending {
        Ending::Kill => peer.kill9(),
        Ending::Terminate => {
            let status = peer.terminate()?;
            ensure!(status.success(), "SIGTERM: {status}; {}", peer.log_tail());
            Ok(())
        }
    }
}

/// Waits until all nodes see each other's life of now, and what is written at each is seen at all: links to a life
/// before break when it is found out, and are made anew by the first who needs them, after a pause.
fn until_joined(cluster: &Cluster) -> Result<()> {
    eventually("all nodes see the same lives", PATIENCE, || {
        let seen: Vec<_> = cluster.nodes().iter().map(lives).collect::<Result<_>>().ok()?;
        let all = seen.iter().all(|lives| *lives == seen[0] && lives.len() == cluster.nodes().len());
        all.then_some(())
    })?;
    for (number, writer) in (0..).zip(cluster.nodes()) {
        eventually("a write is seen at all nodes", PATIENCE, || {
            let (key, payload) = (format!("joined-{number}"), Payload::new(number, 10));
            writer.put(&key, ASYNC, payload).ok()?;
            cluster.nodes().iter().all(|reader| reader.read(&key, payload).is_ok()).then_some(())
        })?;
    }
    Ok(())
}

/// The nodes that a node sees alive, and when each was started: its own start it knows best.
fn lives(node: &Node) -> Result<BTreeMap<String, u64>> {
    let (_, nodes) = node.native()?.nodes()?;
    Ok(nodes.into_iter().filter(|node| node.live).map(|node| (node.id, node.started_us)).collect())
}
