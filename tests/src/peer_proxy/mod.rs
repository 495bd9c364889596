//! A proxy in front of the peer port of a peer that makes a rogue, a slow or a half-dead one of it.
//!
//! It knows frames, by the decoder of `dfstore-proto`. In what the peer sends it spoils the pieces that a [`Rule`]
//! names; in both directions it spoils the frame that a [`WireRule`] names, or ends the connection there; everything
//! else passes as it is. It may as well stand between a client and a peer's public port. Beside that it can be slow, and it can stop forwarding
//! in one direction or both, as a network does that loses packets one way. It starts before its peer, which is told
//! the proxy's port as its own (`peer.advertisePort`), and learns the peer's address afterwards. Gossip does not pass
//! through here.

mod conditions;
mod pump;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures_util::future::BoxFuture;
use tokio::net::TcpStream;

use crate::relay::{LOOPBACK, Link, Relay};
use conditions::State;

/// What goes wrong with a piece that the peer sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The raw byte at this index (within the piece) is another one; the checksum stays.
    FlipByte(u32),
    /// The connection is closed after this many raw bytes.
    CutAfter(u32),
    /// After the head and this many raw bytes nothing more comes on this connection, which stays.
    SilentAfter(u32),
    /// The head names the next generation, with right checksums.
    OtherGeneration,
}

/// Which pieces are spoiled, and how.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    skip: u64,
    times: u64,
    fault: Fault,
}

impl Rule {
    /// Every piece is spoiled like this.
    pub fn always(fault: Fault) -> Rule {
        Rule { skip: 0, times: u64::MAX, fault }
    }

    /// Only this many times.
    pub fn times(self, times: u64) -> Rule {
        Rule { times, ..self }
    }

    /// Not the first `skip` times.
    pub fn after(self, skip: u64) -> Rule {
        Rule { skip, ..self }
    }
}

/// What goes wrong with a frame, in either direction. The preface counts as the first frame towards the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireFault {
    /// The connection is reset, both ways, before this frame.
    Reset,
    /// The receiver of this frame gets an end instead, and nothing more; the other way goes on.
    HalfClose,
    /// Neither this frame nor anything after it comes; the connection stays.
    Stall,
    /// The byte at this place of the frame (counted round) is another one. In a stream that has no frames, such as HTTP,
    /// the byte at this place of the stream, once the first bytes have told that it has none.
    Flip(usize),
    /// This frame comes after the next one.
    Swap,
}

/// Which frame of a connection is spoiled, and how.
#[derive(Clone, Copy, Debug)]
pub struct WireRule {
    /// Its direction.
    pub way: Way,
    /// How many frames come before it this way.
    pub frame: u64,
    /// What goes wrong.
    pub fault: WireFault,
}

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From those who connect to the peer behind the proxy.
    ToPeer,
    /// From the peer behind the proxy to those who connected.
    FromPeer,
}

/// A running proxy.
pub struct PeerProxy {
    relay: Relay,
    state: Arc<State>,
}

impl PeerProxy {
    /// Starts one that closes every connection until it knows its peer.
    pub fn start() -> Result<PeerProxy> {
        let state = Arc::new(State::default());
        let relay = Relay::start("peer-proxy", LOOPBACK, |_| Ok(state.clone()))?;
        Ok(PeerProxy { relay, state })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.relay.address()
    }

    /// Where the peer behind it listens, from now on.
    pub fn set_target(&self, target: SocketAddr) {
        self.state.change(|conditions| conditions.target = Some(target));
    }

    /// These rules from now on, instead of those before. The first one that is not used up counts.
    pub fn set_rules(&self, rules: impl IntoIterator<Item = Rule>) {
        self.state.set_rules(rules.into_iter().collect());
    }

    /// From now on new connections are spoiled like this, each at the same frame; `None` for no more of it.
    pub fn set_wire_rule(&self, rule: Option<WireRule>) {
        self.state.set_wire_rule(rule.map(|rule| (rule, false)));
    }

    /// The next connection that comes as far is spoiled like this, and no other.
    pub fn set_wire_rule_once(&self, rule: WireRule) {
        self.state.set_wire_rule(Some((rule, true)));
    }

    /// The most frames that any connection has had this way so far, the preface counted as one.
    pub fn frames(&self, way: Way) -> u64 {
        self.state.frames(way)
    }

    /// Every frame, in both directions, comes this much later than the one before has been forwarded.
    pub fn set_delay(&self, delay: Duration) {
        self.state.change(|conditions| conditions.delay = delay);
    }

    /// All connections together get this many bytes per second in each direction; `None` for no bound.
    pub fn set_rate(&self, bytes_per_second: Option<u64>) {
        self.state.change(|conditions| conditions.bytes_per_second = bytes_per_second);
    }

    /// Nothing is forwarded this way, on connections that are there and new ones, until [`resume`](Self::resume).
    pub fn stop(&self, way: Way) {
        self.state.change(|conditions| *conditions.stopped(way) = true);
    }

    /// What was held back this way goes on.
    pub fn resume(&self, way: Way) {
        self.state.change(|conditions| *conditions.stopped(way) = false);
    }

    /// Closes every connection that is there.
    pub fn cut_all(&self) {
        self.state.change(|conditions| conditions.cuts += 1);
    }

    /// Connections that were accepted so far.
    pub fn connections(&self) -> u64 {
        self.state.connections()
    }

    /// Pieces that the peer has begun to send so far.
    pub fn pieces(&self) -> u64 {
        self.state.pieces()
    }

    /// How many of them, and of other frames, were spoiled.
    pub fn spoiled(&self) -> u64 {
        self.state.spoiled()
    }
}

impl Link for State {
    fn carry(self: Arc<Self>, client: TcpStream) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            self.count_connection();
            let mut watched = self.watch();
            let (cuts, target) = {
                let conditions = watched.borrow();
                (conditions.cuts, conditions.target)
            };
            let Some(target) = target else { return };
            let Ok(peer) = TcpStream::connect(target).await else { return };
            let _ = peer.set_nodelay(true);
            tokio::select! {
                // An error is an end in the middle, often on purpose.
                _ = pump::both_ways(client, peer, &self) => {}
                _ = watched.wait_for(|conditions| conditions.cuts > cuts) => {}
            }
        })
    }
}
