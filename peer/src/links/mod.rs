//! Connections to the other peers of the cluster: kept open, shared by all who ask, given up when the other side is
//! silent.
//!
//! | file | what |
//! |---|---|
//! | `open` | connecting and saying hello |
//! | `link` | one connection: requests in flight, frames on their way out, the end |
//! | `fetching` | one piece on its way into its slot |
//! | `traffic` | the tasks of a connection: frames in and out, the watch |
//! | `pause` | nodes that could not be reached a moment ago |
//! | `error` | what can go wrong |
//!
//! Each shard has its own [`Links`], and a connection for each shard of another node that it asks, so that questions
//! reach the owner of their task without a hop. A connection is opened when it is needed first; all who ask meanwhile
//! wait for the same attempt. It belongs to one life of one node: when the node is gone or was started anew, requests
//! in flight on it fail. The answer to each request is exactly one of: what was asked for, an error of the other side,
//! or the reason why there is none. Nothing is retried here that the other side may have seen.

mod error;
mod fetching;
mod link;
mod open;
#[cfg(test)]
mod other;
mod pause;
#[cfg(test)]
mod tests;
mod traffic;

pub use error::LinkError;
pub use fetching::FetchedPiece;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use dfstore_proto::ids::TaskId;
use dfstore_proto::message::{Fetch, Message, Route, Token};
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, Shared};

use crate::limits::{LINK_ATTEMPTS_MAX, LINKS_PER_SHARD_MAX};
use crate::links::link::{Link, Lost};
use crate::links::open::{Goal, Socket, open};
use crate::links::pause::Pauses;
use crate::membership::{Members, Node};
use crate::metrics::Metrics;
use crate::rt::arena::SlotMut;
use crate::rt::shard::spawn_local;

/// What links are made with.
#[derive(Clone)]
pub struct LinksSetup {
    /// This shard's number: questions that any shard of a node can answer are spread by it.
    pub shard: usize,
    /// What proves to others that this node belongs to the cluster.
    pub credential: Token,
    /// Counters.
    pub metrics: Metrics,
}

/// The connections of one shard to other peers. Clones share them.
#[derive(Clone)]
pub struct Links(Rc<Inner>);

struct Inner {
    setup: LinksSetup,
    table: RefCell<HashMap<Key, Entry>>,
    pauses: Pauses,
    closed: Cell<bool>,
}

/// One shard of one life of a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    id: Arc<str>,
    started_us: u64,
    shard: u16,
}

type Attempt = Shared<LocalBoxFuture<'static, Result<Rc<Link>, LinkError>>>;

enum Entry {
    Opening(Attempt),
    Open(Rc<Link>),
}

impl Links {
    /// No connections yet.
    pub fn new(setup: LinksSetup) -> Links {
        let (table, pauses, closed) = (RefCell::default(), Pauses::default(), Cell::new(false));
        Links(Rc::new(Inner { setup, table, pauses, closed }))
    }

    /// Asks a node: one question, one answer. With a `task` the shard that owns it there is asked. Dropping the future
    /// cancels the request.
    pub async fn ask(&self, node: &Node, task: Option<&TaskId>, message: Message) -> Result<Message, LinkError> {
        let shard = self.shard_of(node, task);
        for _ in 0..LINK_ATTEMPTS_MAX {
            let link = self.link(node, shard).await?;
            match link.ask(message.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(Lost::Failed(error)) => return Err(error),
                Err(Lost::NotTaken(())) => {}
            }
        }
        Err(self.0.counted(takes_nothing(&node.id)))
    }

    /// Asks whoever is at `address`, over a connection of its own.
    pub async fn ask_at(&self, address: SocketAddr, message: Message) -> Result<Message, LinkError> {
        let goal = Goal { address, id: None, route: Route::Any };
        let link = self.0.clone().connect(goal, None).await?;
        let only = Only(link);
        only.0.ask(message).await.map_err(|lost| match lost {
            Lost::Failed(error) => error,
            Lost::NotTaken(()) => self.0.counted(takes_nothing(&only.0.node)),
        })
    }

    /// Fetches one piece into `slot`, whose length says how long the piece is; an empty slot takes any that fits.
    /// `progress` is set to the bytes that have come so far. Dropping the future gives the slot back and cancels.
    pub async fn fetch(
        &self,
        node: &Node,
        fetch: Fetch,
        slot: SlotMut,
        progress: Option<Rc<Cell<u64>>>,
    ) -> Result<FetchedPiece, LinkError> {
        let shard = self.shard_of(node, Some(&fetch.task));
        let mut slot = slot;
        for _ in 0..LINK_ATTEMPTS_MAX {
            let link = self.link(node, shard).await?;
            match link.fetch(fetch.clone(), slot, progress.clone()).await {
                Ok(piece) => return Ok(piece),
                Err(Lost::NotTaken(back)) => slot = back,
                Err(Lost::Failed(error)) => {
                    // What ended the link was counted once, with the link.
                    let of_the_piece = matches!(error, LinkError::WrongBytes { .. } | LinkError::WrongLength { .. });
                    return Err(if of_the_piece { self.0.counted(error) } else { error });
                }
            }
        }
        Err(self.0.counted(takes_nothing(&node.id)))
    }

    /// The cluster is this now: connections to nodes that are gone, or were started anew, end.
    pub fn members(&self, members: &Members) {
        let lives = |key: &Key| members.find(&key.id).is_some_and(|node| node.started_us == key.started_us);
        let gone: Vec<Entry> = {
            let mut table = self.0.table.borrow_mut();
            let keys: Vec<Key> = table.keys().filter(|key| !lives(key)).cloned().collect();
            keys.iter().filter_map(|key| table.remove(key)).collect()
        };
        for entry in gone {
            if let Entry::Open(link) = entry {
                link.end(link.unreachable("it has left the cluster"));
            }
        }
        self.0.pauses.keep(|address| members.live.iter().any(|node| node.peer == *address));
    }

    /// Ends all connections: requests in flight and later ones fail.
    pub fn close(&self) {
        self.0.closed.set(true);
        let table = std::mem::take(&mut *self.0.table.borrow_mut());
        for entry in table.into_values() {
            if let Entry::Open(link) = entry {
                link.end(LinkError::ShuttingDown);
            }
        }
    }

    fn shard_of(&self, node: &Node, task: Option<&TaskId>) -> u16 {
        let shards = usize::from(node.shards.max(1));
        let shard = task.map_or(self.0.setup.shard % shards, |task| task.owner(shards));
        u16::try_from(shard).expect("below the number of shards")
    }

    /// The link to a shard of a node, opened if need be.
    async fn link(&self, node: &Node, shard: u16) -> Result<Rc<Link>, LinkError> {
        let key = Key { id: node.id.clone(), started_us: node.started_us, shard };
        let attempt = {
            let mut table = self.0.table.borrow_mut();
            match table.get(&key) {
                Some(Entry::Open(link)) if link.takes_requests() => return Ok(link.clone()),
                Some(Entry::Opening(attempt)) => attempt.clone(),
                _ if table.len() >= LINKS_PER_SHARD_MAX => {
                    let reason = format!("{LINKS_PER_SHARD_MAX} connections to other peers are open").into();
                    return Err(LinkError::Unreachable { node: node.id.clone(), reason });
                }
                _ => {
                    let goal = Goal { address: node.peer, id: Some(node.id.clone()), route: Route::Shard(shard) };
                    let attempt = self.0.clone().connect(goal, Some(key.clone())).boxed_local().shared();
                    table.insert(key, Entry::Opening(attempt.clone()));
                    // It goes on when the first who asked has gone: others may wait for it.
                    let driven = attempt.clone();
                    spawn_local(async move { drop(driven.await) });
                    attempt
                }
            }
        };
        attempt.await
    }
}

/// A link for one request.
struct Only(Rc<Link>);

impl Drop for Only {
    fn drop(&mut self) {
        self.0.end(self.0.unreachable("the connection was closed"));
    }
}

fn takes_nothing(node: &Arc<str>) -> LinkError {
    LinkError::Unreachable { node: node.clone(), reason: "it takes no requests".into() }
}

impl Inner {
    /// Opens a connection, puts it into the table under `key`, and keeps it going.
    async fn connect(self: Rc<Self>, goal: Goal, key: Option<Key>) -> Result<Rc<Link>, LinkError> {
        let opened = match self.pauses.check(goal.address) {
            Err(error) => Err(error),
            Ok(()) if self.closed.get() => Err(LinkError::ShuttingDown),
            Ok(()) => self.open(&goal).await,
        };
        let opened = match opened {
            // It took a while; the process may have begun to end.
            Ok(_) if self.closed.get() => Err(LinkError::ShuttingDown),
            opened => opened,
        };
        let mut table = self.table.borrow_mut();
        // The node may have left meanwhile; then the link serves those who wait for it, and ends when it is idle.
        let expected = key.filter(|key| matches!(table.get(key), Some(Entry::Opening(_))));
        match opened {
            Ok((link, socket)) => {
                if let Some(key) = &expected {
                    table.insert(key.clone(), Entry::Open(link.clone()));
                }
                spawn_local(self.clone().run(link.clone(), socket, expected));
                Ok(link)
            }
            Err(error) => {
                if let Some(key) = &expected {
                    table.remove(key);
                }
                Err(error)
            }
        }
    }

    async fn open(&self, goal: &Goal) -> Result<(Rc<Link>, Socket), LinkError> {
        let opened = open(goal, &self.setup.credential).await;
        match &opened {
            Ok(_) => self.pauses.clear(goal.address),
            Err(error) => {
                self.pauses.note(goal.address, error);
                self.count(error);
            }
        }
        opened
    }

    async fn run(self: Rc<Self>, link: Rc<Link>, socket: Socket, key: Option<Key>) {
        let _open = self.setup.metrics.peer_link();
        let silent = |error: &LinkError| self.pauses.note(link.address, error);
        traffic::run(&link, socket, &self.setup.metrics, silent).await;
        if let Some(error) = link.loss() {
            self.count(&error);
        }
        if let Some(key) = key {
            let mut table = self.table.borrow_mut();
            if matches!(table.get(&key), Some(Entry::Open(kept)) if Rc::ptr_eq(kept, &link)) {
                table.remove(&key);
            }
        }
    }

    fn counted(&self, error: LinkError) -> LinkError {
        self.count(&error);
        error
    }

    fn count(&self, error: &LinkError) {
        if let Some(kind) = error.kind() {
            self.setup.metrics.peer_failed(kind);
        }
    }
}
