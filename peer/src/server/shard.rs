//! The loop of one shard: accepts connections, moves each to the shard that owns its task, answers the other shards.
//!
//! A connection's first bytes tell the protocol and the task. If another shard owns it, the socket goes there with the
//! bytes read, once. The shard ends when told to, after its connections have ended or their time is up.

use std::cell::Cell;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;

use event_listener::Event;
use futures_util::FutureExt;
use futures_util::future::{LocalBoxFuture, Shared};

use crate::config::HttpOptions;
use crate::engine::call::ShardMessage;
use crate::engine::{Cluster, Context, Engine, ShardInventory};
use crate::http::route::{Opening, opening};
use crate::http::{self, HttpFace};
use crate::limits::{CONNECTIONS_PER_SHARD_MAX, DRAIN_TIMEOUT, HEAD_TIMEOUT, HTTP_HEAD_BYTES_MAX};
use crate::links::{Links, LinksSetup};
use crate::membership::Members;
use crate::native::{self, ClusterFace};
use crate::rt::mailbox::{Receiver, Sender, oneshot};
use crate::rt::net::{Connection, Door, Listener};
use crate::rt::shard::spawn_local;
use crate::rt::time::timeout;
use crate::store::StoreSeed;
use crate::store::evict::Watermarks;

/// What one shard is made of. Sent to its thread.
pub struct ShardSetup {
    /// Its number.
    pub shard: usize,
    /// What all shards share.
    pub context: Context,
    /// The store.
    pub seed: StoreSeed,
    /// What the catalog holds of it.
    pub inventory: ShardInventory,
    /// When eviction starts and ends.
    pub watermarks: Watermarks,
    /// Its listeners, and what they are for.
    pub listeners: Vec<(Door, TcpListener)>,
    /// Its mailbox.
    pub mailbox: Receiver<ShardMessage>,
    /// The HTTP face.
    pub http: HttpOptions,
    /// The cluster that this node is a part of, and who is in it so far.
    pub cluster: Option<(Arc<ClusterFace>, Arc<Members>)>,
    /// What else runs on this shard.
    pub work: Option<Work>,
    /// Told when nothing is in flight any more.
    pub drained: Sender<usize>,
}

/// Something that runs on a shard as long as it does.
pub type Work = Box<dyn FnOnce(Engine) -> LocalBoxFuture<'static, ()> + Send>;

/// Completes when the shard stops accepting. Clones share it.
type Stop = Shared<LocalBoxFuture<'static, ()>>;

/// What the connections of one shard share.
struct Faces {
    engine: Engine,
    http: Rc<HttpFace>,
    native: native::Context,
    stop: Stop,
    open: Cell<usize>,
    closed: Event,
}

/// Runs a shard until it is told to end.
pub async fn run_shard(setup: ShardSetup) {
    let ShardSetup { shard, context, seed, inventory, watermarks, listeners, mailbox, http, cluster, work, drained } =
        setup;
    let doors: io::Result<Vec<Listener>> =
        listeners.into_iter().map(|(door, listener)| Listener::new(listener, door)).collect();
    let doors = match doors {
        Ok(doors) => doors,
        Err(error) => return tracing::error!(shard, %error, "cannot listen"),
    };
    let metrics = context.metrics.clone();
    let (cluster, members) = cluster.unzip();
    let links = cluster.as_ref().map(|cluster| {
        Links::new(LinksSetup { shard, credential: cluster.credential().clone(), metrics: metrics.clone() })
    });
    let part = links.clone().zip(members).map(|(links, members)| Cluster::new(links, members));
    let engine = Engine::start(shard, context.clone(), &seed, watermarks, inventory, part);
    if let Some(work) = work {
        spawn_local(work(engine.clone()));
    }
    let (stop_sender, stopped) = oneshot::channel::<()>();
    let stop: Stop = stopped.map(|_| ()).boxed_local().shared();
    let faces = Rc::new(Faces {
        engine: engine.clone(),
        http: Rc::new(HttpFace::new(engine.clone(), metrics.clone())),
        native: native::Context {
            engine: engine.clone(),
            metrics,
            shards: context.shards.len(),
            node: Rc::from(http.listen.to_string()),
            cluster,
        },
        stop,
        open: Cell::new(0),
        closed: Event::new(),
    });
    engine.start_work();
    for door in doors {
        let accepting = faces.clone();
        spawn_local(async move {
            let stop = accepting.stop.clone();
            door.accept_until(stop, |connection| accepting.clone().admit(connection)).await;
        });
    }
    answer_mailbox(shard, &mailbox, &faces, stop_sender, drained).await;
    engine.end_work().await;
    if let Some(links) = links {
        links.close();
    }
}

/// Serves the mailbox until the end is ordered.
async fn answer_mailbox(
    shard: usize,
    mailbox: &Receiver<ShardMessage>,
    faces: &Rc<Faces>,
    stop_sender: oneshot::Sender<()>,
    drained: Sender<usize>,
) {
    let mut stop_sender = Some(stop_sender);
    while let Some(message) = mailbox.recv().await {
        match message {
            ShardMessage::Call(call) => faces.engine.answer(call),
            ShardMessage::Connection(handed) => match handed.accept() {
                Ok(connection) => faces.clone().serve(connection),
                Err(error) => tracing::warn!(shard, %error, "a connection was lost between shards"),
            },
            ShardMessage::Members(members) => faces.engine.set_members(members),
            ShardMessage::Drain => {
                // Dropping the sender completes the future that everyone watches.
                stop_sender.take();
                let (faces, drained) = (faces.clone(), drained.clone());
                spawn_local(async move {
                    // When the time is up the main thread goes on without this report.
                    let _ = timeout(DRAIN_TIMEOUT, faces.idle()).await;
                    let _ = drained.send(shard).await;
                });
            }
            ShardMessage::End => return,
        }
    }
}

impl Faces {
    /// Takes a fresh connection, finds out whom it is for, and serves it or hands it over.
    fn admit(self: Rc<Self>, mut connection: Connection) {
        if self.open.get() >= CONNECTIONS_PER_SHARD_MAX {
            tracing::warn!(remote = %connection.remote(), "too many connections: refused");
            return;
        }
        let held = self.clone().hold();
        spawn_local(async move {
            let here = self.engine.shard();
            let door = connection.door();
            let first = connection.read_until(HTTP_HEAD_BYTES_MAX, |prefix| self.place(door, prefix));
            let placed = match timeout(HEAD_TIMEOUT, first).await {
                Ok(Ok(placed)) => placed,
                // Silent, gone or broken before it said what it wants.
                Ok(Err(_)) | Err(_) => return,
            };
            if connection.prefix().is_empty() {
                return;
            }
            let shard = placed.unwrap_or(here);
            if shard == here {
                self.clone().serve(connection);
            } else {
                let handed = connection.hand_over();
                // A shard that has ended takes no connections: the client sees it closed.
                let _ = self.engine.mailbox(shard).send(ShardMessage::Connection(handed)).await;
            }
            drop(held);
        });
    }

    /// The shard for a connection that begins with these bytes; `None` while that is open.
    fn place(&self, door: Option<Door>, prefix: &[u8]) -> Option<usize> {
        let here = self.engine.shard();
        if dfstore_proto::preface::looks_native(prefix)? || !speaks_http(door) {
            return native::place(prefix).map(|place| place.shard(here, self.native.shards));
        }
        opening(prefix).map(|opening| match opening {
            Opening::Object(target) => self.engine.owner_of(&target.task),
            Opening::Any => here,
        })
    }

    fn serve(self: Rc<Self>, connection: Connection) {
        let held = self.clone().hold();
        spawn_local(async move {
            let stop = self.stop.clone();
            let is_native = dfstore_proto::preface::looks_native(connection.prefix()) == Some(true);
            if is_native || !speaks_http(connection.door()) {
                native::serve(connection, self.native.clone(), stop).await;
            } else {
                http::serve(connection, self.http.clone(), stop).await;
            }
            drop(held);
        });
    }

    /// Counts a connection as open until the result is dropped.
    fn hold(self: Rc<Self>) -> impl Drop {
        self.open.set(self.open.get() + 1);
        Held(self)
    }

    /// Waits until no connection is open.
    async fn idle(self: Rc<Self>) {
        while self.open.get() > 0 {
            self.closed.listen().await;
        }
    }
}

/// Only clients do; whoever tries it at another door gets the native face's answer to what is no preface.
fn speaks_http(door: Option<Door>) -> bool {
    door == Some(Door::Api)
}

struct Held(Rc<Faces>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.closed.notify(usize::MAX);
    }
}
