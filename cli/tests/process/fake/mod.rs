//! A peer in this process: objects in memory, a thread for each connection, faults on demand.
//!
//! It answers only what the session state machine of `dfstore-proto` allows, so a client that breaks a rule fails its
//! test. Nothing here sleeps: where a test has to catch the client in the middle, the fake stops at a [`Gate`].

mod cluster;
mod connection;
mod gate;
mod state;

use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard};

use dfstore_proto::error::ErrorReply;
use dfstore_proto::message::{HolderInfo, NodeFailure, NodeInfo, PutBegin, Target};
use dfstore_proto::object::ObjectMeta;

pub use gate::Gate;

use connection::Connection;
use state::State;

/// Small, so that small objects have many pieces.
pub const PIECE_BYTES: u32 = 64 << 10;

type Name = (String, String);

/// One object.
#[derive(Clone)]
pub struct Object {
    pub data: Arc<Vec<u8>>,
    pub meta: ObjectMeta,
    pub generation: u64,
}

/// What goes wrong. Counts go down as they are used up.
#[derive(Default)]
pub struct Faults {
    /// These many pieces go out with one bit flipped.
    pub damaged_pieces: usize,
    /// These many connections break instead of sending a piece.
    pub broken_reads: usize,
    /// These many connections break when a piece comes in on a connection that began (`true`) or joined (`false`).
    pub broken_writes: Vec<bool>,
    /// The whole-object CRC32 in OPEN_OK is wrong.
    pub wrong_whole: bool,
    /// The next READ replaces its object by this one first.
    pub replace_on_read: Option<Vec<u8>>,
    /// The next requests of any kind are refused.
    pub refusals: VecDeque<ErrorReply>,
    /// The next requests but LIST are refused.
    pub refusals_after_list: VecDeque<ErrorReply>,
    /// The first piece, in or out, stops here.
    pub gate: Option<Gate>,
    /// These many connections are closed without a word, once a piece was lost by `broken_writes`.
    pub hangups: usize,
    /// Durable copies that PUT_DONE tells, instead of all that were asked for.
    pub copies: Option<u32>,
    /// Nodes that do not prefetch or evict the object with this key.
    pub failures: Vec<(&'static str, NodeFailure)>,
    /// No PREFETCH is answered before so many are there.
    pub together: usize,
}

/// A running fake peer. Its threads end with the process.
pub struct Fake {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Fake {
    pub fn start() -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                lock(&state).connections += 1;
                if lock(&state).hangs_up() {
                    continue;
                }
                std::thread::spawn(move || {
                    let watched = state.clone();
                    let serve = AssertUnwindSafe(|| Connection::new(stream, state).serve());
                    if std::panic::catch_unwind(serve).is_err() {
                        lock(&watched).violations += 1;
                    }
                });
            }
        });
        Fake { address, state }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// With these faults.
    pub fn with(self, faults: Faults) -> Fake {
        lock(&self.state).faults = faults;
        self
    }

    pub fn put(&self, bucket: &str, key: &str, data: &[u8]) {
        lock(&self.state).store(&(bucket.into(), key.into()), data.to_vec(), ObjectMeta::default());
    }

    pub fn get(&self, bucket: &str, key: &str) -> Option<Object> {
        lock(&self.state).objects.get(&(bucket.into(), key.into())).cloned()
    }

    pub fn keys(&self, bucket: &str) -> Vec<String> {
        let state = lock(&self.state);
        state.objects.keys().filter(|name| name.0 == bucket).map(|name| name.1.clone()).collect()
    }

    /// How often a message of this name came in.
    pub fn count(&self, name: &str) -> usize {
        lock(&self.state).log.iter().filter(|known| **known == name).count()
    }

    pub fn connections(&self) -> usize {
        lock(&self.state).connections
    }

    pub fn begins(&self) -> Vec<PutBegin> {
        lock(&self.state).begins.clone()
    }

    /// The peer belongs to a cluster of these nodes, and is the first of them.
    pub fn in_cluster(self, nodes: Vec<NodeInfo>) -> Fake {
        lock(&self.state).nodes = nodes;
        self
    }

    /// Each object is held by these nodes.
    pub fn held_by(self, holders: Vec<HolderInfo>) -> Fake {
        lock(&self.state).holders = holders;
        self
    }

    /// Keys that were prefetched or evicted on all nodes, in order of their names.
    pub fn worked_on(&self) -> Vec<String> {
        let mut keys = lock(&self.state).worked_on.clone();
        keys.sort();
        keys
    }

    /// Most PREFETCH requests that were in flight at once.
    pub fn together_most(&self) -> usize {
        lock(&self.state).together_most
    }

    pub fn uploads_open(&self) -> usize {
        lock(&self.state).uploads.len()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let violations = lock(&self.state).violations;
        assert!(std::thread::panicking() || violations == 0, "the client broke the protocol");
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn name(target: &Target) -> Name {
    (target.object.bucket.clone(), target.object.key.clone())
}
