//! Links in virtual time: each node has an uplink, which its flows share chunk by chunk in turn, and a downlink, where
//! chunks stand in line. A flow has a few chunks under way at most, so a slow receiver does not hold up a fast sender.

use std::collections::VecDeque;
use std::time::Duration;

use super::Link;

/// Chunks of one flow that are sent and not received.
const FLOW_CHUNKS_MAX: u32 = 4;

/// The transfer of one piece.
pub struct Flow {
    /// Who sends.
    pub source: usize,
    /// Who receives.
    pub target: usize,
    /// What.
    pub piece: u32,
    /// Whether it still goes on.
    pub is_live: bool,
    unsent: u32,
    under_way: u32,
    /// Chunks that are there.
    pub received: u32,
}

struct Ends {
    link: Link,
    /// Flows that have something to send.
    turn: VecDeque<usize>,
    is_sending: bool,
    /// When the downlink has received all that is under way.
    down_free: Duration,
    sent: u64,
}

/// All links and flows.
pub struct Network {
    nodes: Vec<Ends>,
    flows: Vec<Flow>,
    chunk_bytes: u64,
    latency: Duration,
}

/// What the network wants to be told later.
pub enum Later {
    /// An uplink has sent a chunk of a flow: [`Network::sent`].
    Sent(usize),
    /// A chunk of a flow is there: [`Network::received`].
    Received(usize),
}

impl Network {
    pub fn new(links: impl Iterator<Item = Link>, chunk_bytes: u64, latency: Duration) -> Network {
        let ends = |link| Ends { link, turn: VecDeque::new(), is_sending: false, down_free: Duration::ZERO, sent: 0 };
        Network { nodes: links.map(ends).collect(), flows: Vec::new(), chunk_bytes, latency }
    }

    /// A flow that sends nothing until it is started.
    pub fn open(&mut self, source: usize, target: usize, piece: u32) -> usize {
        let flow = Flow { source, target, piece, is_live: true, unsent: 0, under_way: 0, received: 0 };
        self.flows.push(flow);
        self.flows.len() - 1
    }

    pub fn flow(&self, flow: usize) -> &Flow {
        &self.flows[flow]
    }

    pub fn end(&mut self, flow: usize) {
        self.flows[flow].is_live = false;
    }

    pub fn bytes_sent(&self, node: usize) -> u64 {
        self.nodes[node].sent
    }

    /// Lets a flow send so many chunks.
    pub fn start(&mut self, flow: usize, chunks: u32, now: Duration) -> Option<(Duration, Later)> {
        self.flows[flow].unsent = chunks;
        let source = self.flows[flow].source;
        self.nodes[source].turn.push_back(flow);
        self.send(source, now)
    }

    fn send(&mut self, node: usize, now: Duration) -> Option<(Duration, Later)> {
        let ends = &mut self.nodes[node];
        if ends.is_sending {
            return None;
        }
        let flow = loop {
            let flow = ends.turn.pop_front()?;
            if self.flows[flow].is_live {
                break flow;
            }
        };
        ends.is_sending = true;
        Some((now + takes(self.chunk_bytes, ends.link.up), Later::Sent(flow)))
    }

    /// A chunk left its uplink: when it is there, and when the next one leaves.
    pub fn sent(&mut self, flow: usize, now: Duration) -> [Option<(Duration, Later)>; 2] {
        let moved = &mut self.flows[flow];
        moved.unsent -= 1;
        moved.under_way += 1;
        let (source, target) = (moved.source, moved.target);
        if moved.unsent > 0 && moved.under_way < FLOW_CHUNKS_MAX {
            self.nodes[source].turn.push_back(flow);
        }
        self.nodes[source].is_sending = false;
        self.nodes[source].sent += self.chunk_bytes;
        let down = &mut self.nodes[target];
        down.down_free = down.down_free.max(now + self.latency) + takes(self.chunk_bytes, down.link.down);
        [Some((down.down_free, Later::Received(flow))), self.send(source, now)]
    }

    /// A chunk is there. The flow may go on if it had to wait for this.
    pub fn received(&mut self, flow: usize, now: Duration) -> Option<(Duration, Later)> {
        let moved = &mut self.flows[flow];
        moved.received += 1;
        let had_to_wait = moved.under_way == FLOW_CHUNKS_MAX && moved.unsent > 0;
        moved.under_way -= 1;
        if !had_to_wait || !moved.is_live {
            return None;
        }
        let source = moved.source;
        self.nodes[source].turn.push_back(flow);
        self.send(source, now)
    }
}

fn takes(bytes: u64, bytes_per_second: u64) -> Duration {
    Duration::from_nanos(bytes * 1_000_000_000 / bytes_per_second)
}
