//! The events of a run, in order of time, and what each does.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::Duration;

use dfstore_peer::swarm::{Failure, Pieces, Planner, Report, Source, Tracker};
use dfstore_proto::message::Tracked;

use super::network::{Later, Network};
use super::{Behaviour, Outcome, Reading, Setup};

/// The home's number in the network; peer `n` of the setup is `n + 1`.
const HOME: usize = 0;
/// After this time those who talk to a peer that is gone know it.
const BREAKS_AFTER: Duration = Duration::from_millis(200);
/// After this time the home hears from the membership that a peer is gone.
const GONE_AFTER: Duration = Duration::from_secs(3);
/// Time of the first byte of the backend.
const BACKEND_LATENCY: Duration = Duration::from_millis(20);
/// Pieces that the home sends at once; beyond that it is busy.
const HOME_UPLOADS_MAX: u32 = 64;

enum Event {
    Join(usize),
    Leave(usize),
    Gone(usize),
    Wake(usize),
    Network(Later),
    /// A FETCH is with its source.
    Asked(usize),
    /// A refusal is with the asker.
    Refused(usize, Failure),
    /// The backend gave a piece.
    Fetched(u32),
    Track(usize, Report),
    Tracked(usize, Tracked),
    Housekeeping,
}

struct Peer {
    name: Arc<str>,
    planner: Planner,
    is_here: bool,
    /// Flows to it, with what it ordered.
    orders: Vec<(u32, Source, usize)>,
    uploads: u32,
    wakes: Option<Duration>,
    /// Where its reader is, since when, and when it may go on.
    position: u32,
    reader_since: Duration,
    longest_wait: Duration,
    done: Option<Duration>,
}

pub struct World<'a> {
    setup: &'a Setup,
    now: Duration,
    events: BinaryHeap<Reverse<(Duration, u64, usize)>>,
    /// What the entries of `events` mean, by their last number.
    stored: Vec<Option<Event>>,
    free: Vec<usize>,
    count: u64,
    network: Network,
    peers: Vec<Peer>,
    tracker: Tracker,
    home_has: Pieces,
    home_uploads: u32,
    /// Flows that wait for the backend, by piece.
    waiting: Vec<Vec<usize>>,
    backend_free: Duration,
    unfinished: usize,
    tracks_this_second: (u64, u64),
    outcome: Outcome,
}

impl World<'_> {
    pub fn new(setup: &Setup) -> World<'_> {
        let links = [setup.home].into_iter().chain(setup.peers.iter().map(|peer| peer.link));
        let count = setup.peers.len();
        let peer = |number: usize| Peer {
            name: format!("peer-{number:05}").into(),
            planner: Planner::new(setup.pieces, setup.seed.wrapping_mul(1_000_003) + number as u64),
            is_here: false,
            orders: Vec::new(),
            uploads: 0,
            wakes: None,
            position: 0,
            reader_since: Duration::ZERO,
            longest_wait: Duration::ZERO,
            done: None,
        };
        let outcome = Outcome {
            took: vec![None; count],
            longest_wait: vec![Duration::ZERO; count],
            sent: vec![0; count],
            sent_by_home: 0,
            backend_asked: vec![0; setup.pieces as usize],
            tracks: 0,
            tracks_per_second_max: 0,
            tracked_bytes: 0,
            avoided: 0,
            ended: Duration::ZERO,
        };
        World {
            setup,
            now: Duration::ZERO,
            events: BinaryHeap::new(),
            stored: Vec::new(),
            free: Vec::new(),
            count: 0,
            network: Network::new(links, setup.piece_bytes / u64::from(setup.chunks), setup.latency),
            peers: (0..count).map(peer).collect(),
            tracker: Tracker::new(setup.pieces, setup.seed),
            home_has: Pieces::new(setup.pieces),
            home_uploads: 0,
            waiting: vec![Vec::new(); setup.pieces as usize],
            backend_free: Duration::ZERO,
            unfinished: setup.peers.iter().filter(|peer| peer.leaves.is_none()).count(),
            tracks_this_second: (0, 0),
            outcome,
        }
    }

    pub fn run(mut self) -> Outcome {
        for (number, peer) in self.setup.peers.iter().enumerate() {
            self.at(peer.joins, Event::Join(number));
            if let Some(leaves) = peer.leaves {
                self.at(leaves, Event::Leave(number));
            }
        }
        self.at(Duration::from_secs(1), Event::Housekeeping);
        while self.unfinished > 0 {
            let Some(Reverse((now, _, stored))) = self.events.pop() else { break };
            if now > self.setup.limit {
                break;
            }
            self.now = now;
            self.free.push(stored);
            if let Some(event) = self.stored[stored].take() {
                self.happen(event);
            }
        }
        for (number, peer) in self.peers.iter().enumerate() {
            self.outcome.took[number] = peer.done.map(|done| done - self.setup.peers[number].joins);
            self.outcome.longest_wait[number] = peer.longest_wait;
            self.outcome.sent[number] = self.network.bytes_sent(number + 1);
            self.outcome.avoided += peer.planner.avoided();
        }
        self.outcome.sent_by_home = self.network.bytes_sent(HOME);
        self.outcome.ended = self.now;
        self.outcome
    }

    fn at(&mut self, time: Duration, event: Event) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.stored.push(None);
            self.stored.len() - 1
        });
        self.stored[place] = Some(event);
        self.count += 1;
        self.events.push(Reverse((time, self.count, place)));
    }

    fn later(&mut self, event: Event) {
        self.at(self.now + self.setup.latency, event);
    }

    fn network(&mut self, later: Option<(Duration, Later)>) {
        if let Some((time, later)) = later {
            self.at(time, Event::Network(later));
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Join(peer) => {
                self.peers[peer].is_here = true;
                self.read_on(peer);
                self.cycle(peer);
            }
            Event::Leave(peer) => self.leave(peer),
            Event::Gone(peer) => self.tracker.left(&self.peers[peer].name),
            Event::Wake(peer) => {
                if self.peers[peer].wakes == Some(self.now) {
                    self.peers[peer].wakes = None;
                    self.read_on(peer);
                    self.cycle(peer);
                }
            }
            Event::Network(Later::Sent(flow)) => {
                let next = self.network.sent(flow, self.now);
                next.into_iter().for_each(|later| self.network(later));
            }
            Event::Network(Later::Received(flow)) => self.received(flow),
            Event::Asked(flow) => self.asked(flow),
            Event::Refused(flow, failure) => self.refused(flow, failure),
            Event::Fetched(piece) => {
                self.home_has.insert(piece);
                for flow in std::mem::take(&mut self.waiting[piece as usize]) {
                    self.start(flow);
                }
            }
            Event::Track(peer, report) => self.track(peer, &report),
            Event::Tracked(peer, tracked) => {
                self.peers[peer].planner.tracked(&tracked, self.now);
                self.cycle(peer);
            }
            Event::Housekeeping => {
                self.tracker.forget_silent(self.now);
                self.at(self.now + Duration::from_secs(1), Event::Housekeeping);
            }
        }
    }

    /// The client takes what is there, as fast as it reads.
    fn read_on(&mut self, number: usize) {
        let peer = &mut self.peers[number];
        let pieces = self.setup.pieces;
        let joined = self.setup.peers[number].joins;
        let before = peer.position;
        loop {
            let reads_at = match self.setup.peers[number].reading {
                Reading::Eager => self.now,
                Reading::Paced(each) => joined + each * peer.position,
            };
            if peer.position >= pieces || reads_at > self.now || !peer.planner.pieces().contains(peer.position) {
                break;
            }
            peer.longest_wait = peer.longest_wait.max(self.now - peer.reader_since.max(reads_at));
            (peer.position, peer.reader_since) = (peer.position + 1, self.now);
        }
        if peer.position != before || before == 0 {
            peer.planner.want(0, peer.position..pieces, self.now);
        }
        if peer.planner.pieces().is_whole() && peer.done.is_none() {
            peer.done = Some(self.now);
            self.unfinished -= usize::from(self.setup.peers[number].leaves.is_none());
        }
    }

    /// What a peer does after each event.
    fn cycle(&mut self, number: usize) {
        if !self.peers[number].is_here {
            return;
        }
        let now = self.now;
        for (piece, from) in self.peers[number].planner.overdue(now) {
            self.drop_order(number, piece, &from);
        }
        let slots_free = self.setup.slots.saturating_sub(self.peers[number].orders.len());
        for order in self.peers[number].planner.plan(now, slots_free) {
            let source = match &order.from {
                Source::Home => HOME,
                Source::Parent(node) => node["peer-".len()..].parse::<usize>().expect("a name of a peer") + 1,
            };
            let flow = self.network.open(source, number + 1, order.piece);
            self.peers[number].orders.push((order.piece, order.from, flow));
            self.later(Event::Asked(flow));
        }
        let peer = &mut self.peers[number];
        if let Some(report) = peer.planner.report(now, peer.uploads) {
            self.later(Event::Track(number, report));
        }
        self.set_wake(number);
    }

    fn set_wake(&mut self, number: usize) {
        let peer = &mut self.peers[number];
        let mut next = peer.planner.next_wake(self.now);
        if let Reading::Paced(each) = self.setup.peers[number].reading {
            let reads_at = self.setup.peers[number].joins + each * peer.position;
            next = next.into_iter().chain(Some(reads_at).filter(|time| *time > self.now)).min();
        }
        let Some(next) = next.map(|next| next.max(self.now + Duration::from_millis(1))) else { return };
        if peer.wakes.is_none_or(|wakes| wakes <= self.now || next < wakes) {
            peer.wakes = Some(next);
            self.at(next, Event::Wake(number));
        }
    }

    /// Ends an order, whose flow need not have ended.
    fn drop_order(&mut self, number: usize, piece: u32, from: &Source) {
        let orders = &mut self.peers[number].orders;
        let at = orders.iter().position(|(other, source, _)| *other == piece && source == from).expect("an order");
        let (_, _, flow) = orders.swap_remove(at);
        self.end_flow(flow);
    }

    fn end_flow(&mut self, flow: usize) {
        if !self.network.flow(flow).is_live {
            return;
        }
        self.network.end(flow);
        let uploads = match self.network.flow(flow).source {
            HOME => &mut self.home_uploads,
            source => &mut self.peers[source - 1].uploads,
        };
        *uploads = uploads.saturating_sub(1);
    }

    fn asked(&mut self, flow: usize) {
        let (source, piece) = (self.network.flow(flow).source, self.network.flow(flow).piece);
        if !self.network.flow(flow).is_live {
            return;
        }
        if source == HOME {
            self.home_uploads += 1;
            if self.home_uploads > HOME_UPLOADS_MAX {
                self.later(Event::Refused(flow, Failure::Busy));
            } else if self.home_has.contains(piece) {
                self.start(flow);
            } else {
                self.fetch(piece);
                self.waiting[piece as usize].push(flow);
            }
            return;
        }
        let peer = &mut self.peers[source - 1];
        peer.uploads += 1;
        let behaviour = self.setup.peers[source - 1].behaviour;
        if !peer.is_here {
            self.at(self.now + BREAKS_AFTER, Event::Refused(flow, Failure::Unreachable));
        } else if peer.uploads > self.setup.uploads {
            self.later(Event::Refused(flow, Failure::Busy));
        } else if behaviour == Behaviour::Forgetful || !peer.planner.pieces().contains(piece) {
            self.later(Event::Refused(flow, Failure::Missing));
        } else if behaviour != Behaviour::Silent {
            self.start(flow);
        }
    }

    fn fetch(&mut self, piece: u32) {
        if !self.waiting[piece as usize].is_empty() {
            return;
        }
        self.outcome.backend_asked[piece as usize] += 1;
        let takes = Duration::from_nanos(self.setup.piece_bytes * 1_000_000_000 / self.setup.backend);
        self.backend_free = self.backend_free.max(self.now) + takes;
        self.at(self.backend_free + BACKEND_LATENCY, Event::Fetched(piece));
    }

    fn start(&mut self, flow: usize) {
        if self.network.flow(flow).is_live {
            let later = self.network.start(flow, self.setup.chunks, self.now);
            self.network(later);
        }
    }

    /// The order of a flow that goes on, and its peer.
    fn order_of(&self, flow: usize) -> Option<(usize, Source)> {
        let number = self.network.flow(flow).target - 1;
        let order = self.peers[number].orders.iter().find(|(_, _, other)| *other == flow)?;
        Some((number, order.1.clone()))
    }

    fn received(&mut self, flow: usize) {
        let later = self.network.received(flow, self.now);
        self.network(later);
        if !self.network.flow(flow).is_live {
            return;
        }
        let Some((number, from)) = self.order_of(flow) else { return };
        let (piece, received) = (self.network.flow(flow).piece, self.network.flow(flow).received);
        let planner = &mut self.peers[number].planner;
        planner.progress(piece, &from, self.setup.piece_bytes / u64::from(self.setup.chunks), self.now);
        if received < self.setup.chunks {
            return;
        }
        let source = self.network.flow(flow).source;
        if source != HOME && self.setup.peers[source - 1].behaviour == Behaviour::Lying {
            planner.failed(piece, &from, Failure::Wrong, self.now);
        } else {
            planner.done(piece, &from, self.setup.piece_bytes, self.now);
        }
        self.drop_order(number, piece, &from);
        self.read_on(number);
        self.cycle(number);
    }

    fn refused(&mut self, flow: usize, failure: Failure) {
        if !self.network.flow(flow).is_live {
            return;
        }
        let Some((number, from)) = self.order_of(flow) else { return };
        let piece = self.network.flow(flow).piece;
        self.peers[number].planner.failed(piece, &from, failure, self.now);
        self.drop_order(number, piece, &from);
        self.cycle(number);
    }

    fn leave(&mut self, number: usize) {
        self.peers[number].is_here = false;
        self.at(self.now + GONE_AFTER, Event::Gone(number));
        for (_, _, flow) in std::mem::take(&mut self.peers[number].orders) {
            self.end_flow(flow);
        }
        let broken: Vec<usize> = self
            .peers
            .iter()
            .flat_map(|peer| &peer.orders)
            .map(|(_, _, flow)| *flow)
            .filter(|flow| self.network.flow(*flow).source == number + 1)
            .collect();
        for flow in broken {
            self.at(self.now + BREAKS_AFTER, Event::Refused(flow, Failure::Unreachable));
        }
    }

    fn track(&mut self, number: usize, report: &Report) {
        let second = self.now.as_secs();
        if self.tracks_this_second.0 != second {
            self.tracks_this_second = (second, 0);
        }
        self.tracks_this_second.1 += 1;
        self.outcome.tracks += 1;
        self.outcome.tracks_per_second_max = self.outcome.tracks_per_second_max.max(self.tracks_this_second.1);
        let tracked = self.tracker.track(&self.peers[number].name, report, self.now);
        let runs: usize = tracked.parents.iter().map(|parent| 12 + 3 * parent.have.runs().len()).sum();
        self.outcome.tracked_bytes += (runs + tracked.counts.len() + tracked.suggested.len() + 32) as u64;
        self.later(Event::Tracked(number, tracked));
    }
}
