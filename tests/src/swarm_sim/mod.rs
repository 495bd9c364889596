//! A swarm in virtual time: one home, a backend, and any number of peers that download one version, each with the real
//! planner, the home with the real tracker. Links, latencies and misbehaviour are simulated; nothing waits.
//!
//! The same setup and seed give the same run. Used by the suite `swarm_sim` and by the bench `swarm`.

mod network;
mod world;

use std::time::Duration;

use crate::data::PIECE;
use world::World;

/// Bytes a second of a node.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// To others.
    pub up: u64,
    /// From others.
    pub down: u64,
}

/// How a peer behaves towards those that fetch from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// As it should.
    Good,
    /// It takes orders and sends nothing.
    Silent,
    /// It sends wrong bytes.
    Lying,
    /// It reports what it has, but lost it.
    Forgetful,
}

/// How the client of a peer reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// As fast as pieces come, in order.
    Eager,
    /// One piece in each such time, in order.
    Paced(Duration),
}

/// One peer.
#[derive(Clone, Debug)]
pub struct PeerSetup {
    /// When it starts.
    pub joins: Duration,
    /// When it is gone without a word.
    pub leaves: Option<Duration>,
    /// Its link.
    pub link: Link,
    /// How it serves.
    pub behaviour: Behaviour,
    /// How it reads.
    pub reading: Reading,
}

/// A run.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Pieces of the object.
    pub pieces: u32,
    /// Bytes of each.
    pub piece_bytes: u64,
    /// Parts that a piece is moved in: the grain of the simulation.
    pub chunks: u32,
    /// The home's link.
    pub home: Link,
    /// Bytes a second that the backend sends to the home.
    pub backend: u64,
    /// One way of a message.
    pub latency: Duration,
    /// The peers.
    pub peers: Vec<PeerSetup>,
    /// Pieces that a peer fetches at once at most.
    pub slots: usize,
    /// Pieces that a peer sends at once; beyond that it is busy.
    pub uploads: u32,
    /// For all randomness.
    pub seed: u64,
    /// When the run is broken off.
    pub limit: Duration,
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// For each peer, how long it took to get everything, if it did.
    pub took: Vec<Option<Duration>>,
    /// For each peer, the longest time that its reader waited for a piece.
    pub longest_wait: Vec<Duration>,
    /// Bytes that each peer sent.
    pub sent: Vec<u64>,
    /// Bytes that the home sent.
    pub sent_by_home: u64,
    /// How often the backend was asked for each piece.
    pub backend_asked: Vec<u32>,
    /// TRACK messages, and their most in one second.
    pub tracks: u64,
    /// See `tracks`.
    pub tracks_per_second_max: u64,
    /// Bytes of the answers to them, about.
    pub tracked_bytes: u64,
    /// Times that a parent was given up.
    pub avoided: u64,
    /// When the last peer was done, or the run was broken off.
    pub ended: Duration,
}

impl PeerSetup {
    /// A good peer that is there from the start, with the same rate in both directions.
    pub fn good(rate: u64) -> PeerSetup {
        let link = Link { up: rate, down: rate };
        PeerSetup { joins: Duration::ZERO, leaves: None, link, behaviour: Behaviour::Good, reading: Reading::Eager }
    }
}

impl Setup {
    /// These peers, and an object of `pieces` pieces, with a home that has the same link as a peer.
    pub fn new(pieces: u32, rate: u64, peers: Vec<PeerSetup>) -> Setup {
        Setup {
            pieces,
            piece_bytes: PIECE,
            chunks: 8,
            home: Link { up: rate, down: rate },
            backend: 500_000_000,
            latency: Duration::from_micros(500),
            peers,
            slots: 32,
            uploads: 4,
            seed: 1,
            limit: Duration::from_secs(600),
        }
    }

    /// The shortest time in which all peers can have everything: the home must send each byte once, and all uplinks
    /// together each byte to each peer.
    pub fn bound(&self) -> Duration {
        let object = u128::from(self.piece_bytes) * u128::from(self.pieces);
        let uplinks: u64 = self.peers.iter().map(|peer| peer.link.up).sum();
        let nanoseconds = |bytes: u128, rate: u64| bytes * 1_000_000_000 / u128::from(rate);
        let once = nanoseconds(object, self.home.up);
        let all = nanoseconds(object * self.peers.len() as u128, self.home.up + uplinks);
        Duration::from_nanos(u64::try_from(once.max(all)).unwrap_or(u64::MAX))
    }

    /// Runs it.
    pub fn run(&self) -> Outcome {
        World::new(self).run()
    }
}

impl Outcome {
    /// The time of the slowest peer, if all got everything.
    pub fn slowest(&self) -> Option<Duration> {
        self.took.iter().copied().collect::<Option<Vec<Duration>>>()?.into_iter().max()
    }

    /// The time of the peer in the middle, of those that got everything.
    pub fn median(&self) -> Option<Duration> {
        let mut took: Vec<Duration> = self.took.iter().copied().flatten().collect();
        took.sort_unstable();
        took.get(took.len() / 2).copied()
    }
}
