//! The native face: sessions of the command line and of other peers over the protocol of `dfstore-proto`.
//!
//! | file | what |
//! |---|---|
//! | `session` | one connection: frames in, frames out |
//! | `admission` | who may speak here, and as what |
//! | `link` | what the tasks of one connection share: session state, outgoing queue, credits |
//! | `watch` | silence, stalls, idleness, stopping: when a connection is ended, and how |
//! | `objects` | STAT, OPEN, LIST, DELETE, COPY, CREATE_BUCKET |
//! | `read` | READ: pieces to the client |
//! | `put` | PUT_BEGIN to PUT_DONE: pieces from the client |
//! | `fetch` | FETCH: pieces to other peers |
//! | `peers` | what else peers ask, and what people ask about the cluster |
//! | `overview` | what people ask about the whole cluster |
//! | `queue` | the write-back queue of all nodes, and orders about it |
//! | `answer` | the engine's words in the protocol's |
//!
//! A face owns no data: it speaks to [`Engine`] only, and piece bytes pass through it as arena slots that are received
//! and sent without a copy. Rules of the protocol are kept by `dfstore_proto::session`, which sees every frame in both
//! directions; this module adds sockets, tasks and clocks. Whatever a client sends ends at most its own connection.
//!
//! Memory of one connection is bounded: one small read buffer, one control frame, `REQUESTS_MAX` small requests,
//! [`NATIVE_QUEUE_FRAMES_MAX`](crate::limits::NATIVE_QUEUE_FRAMES_MAX) answers, and as many slots as credits were
//! granted to it or, for what it reads, as the limits named `NATIVE_..` allow.

mod admission;
mod answer;
mod fetch;
mod link;
mod objects;
mod overview;
mod peers;
mod put;
mod queue;
mod read;
mod session;
mod watch;

pub use admission::ClusterFace;
pub use session::serve;

use std::rc::Rc;
use std::sync::Arc;

use dfstore_proto::ids::TaskId;
use dfstore_proto::limits::{FRAME_HEADER_BYTES, HELLO_BYTES_MAX, PREFACE_BYTES};
use dfstore_proto::message::Route;
use dfstore_proto::session::{Event, Session};

use crate::engine::Engine;
use crate::metrics::Metrics;

/// Preface and HELLO are never longer: once this much was read, [`place`] has an answer.
pub const OPENING_BYTES_MAX: usize = PREFACE_BYTES + FRAME_HEADER_BYTES + HELLO_BYTES_MAX as usize;

/// What every session of a shard needs.
#[derive(Clone)]
pub struct Context {
    /// The shard's engine.
    pub engine: Engine,
    /// Counters.
    pub metrics: Metrics,
    /// Shards of the process.
    pub shards: usize,
    /// The name of this node, told to clients where it is not part of a cluster.
    pub node: Rc<str>,
    /// The cluster that this node is a part of.
    pub cluster: Option<Arc<ClusterFace>>,
}

impl Context {
    /// The name of this node.
    pub fn name(&self) -> &str {
        self.cluster.as_ref().map_or(&self.node, |cluster| cluster.node())
    }
}

/// Which shard a connection belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The one that accepted it. Also when the opening is not valid: any shard can say so.
    Here,
    /// The owner of this task.
    OwnerOf(TaskId),
    /// The one with this number, if there is one.
    Shard(usize),
}

impl Place {
    /// The shard's number, for a connection that is now on shard `here` of `shards`.
    pub fn shard(self, here: usize, shards: usize) -> usize {
        match self {
            Place::Here => here,
            Place::OwnerOf(task) => task.owner(shards),
            Place::Shard(number) if number < shards => number,
            Place::Shard(_) => here,
        }
    }
}

/// Where a connection that begins with `prefix` wants to live; `None` when more bytes are needed.
pub fn place(prefix: &[u8]) -> Option<Place> {
    let mut input = prefix;
    match Session::accepting().receive(&mut input) {
        Ok(Some(Event::Hello(hello))) => Some(match hello.route {
            Route::Any => Place::Here,
            Route::Task(task) => Place::OwnerOf(task),
            Route::Shard(number) => Place::Shard(number.into()),
        }),
        Ok(None) => None,
        Ok(Some(_)) | Err(_) => Some(Place::Here),
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use dfstore_proto::ids::ObjectName;
    use dfstore_proto::limits::{CREDITS_MAX, PIECE_BYTES_MAX};
    use dfstore_proto::message::{Hello, Role, Token};
    use dfstore_proto::preface::Versions;

    use super::*;

    fn opening(route: Route) -> BytesMut {
        let hello = Hello {
            versions: Versions::OURS,
            role: Role::Client,
            route,
            token: Token::new("t".repeat(1024)),
            agent: "a".repeat(255),
            piece_bytes_max: PIECE_BYTES_MAX,
            credits: CREDITS_MAX,
        };
        let mut out = BytesMut::new();
        Session::connecting(hello, &mut out).expect("within limits");
        out
    }

    #[test]
    fn the_place_is_known_with_the_last_byte_of_hello() {
        let task = TaskId::of(&ObjectName::new("bucket", "key"), "", "");
        let routes =
            [(Route::Any, Place::Here), (Route::Task(task), Place::OwnerOf(task)), (Route::Shard(3), Place::Shard(3))];
        for (route, wanted) in routes {
            let bytes = opening(route);
            assert!(bytes.len() <= OPENING_BYTES_MAX);
            for length in 0..bytes.len() {
                assert_eq!(place(&bytes[..length]), None, "{length} of {} bytes", bytes.len());
            }
            assert_eq!(place(&bytes), Some(wanted));
            let more = [&bytes[..], b"and the next frame"].concat();
            assert_eq!(place(&more), Some(wanted));
        }
    }

    #[test]
    fn what_is_not_an_opening_stays_here() {
        let mut damaged = opening(Route::Any);
        damaged[PREFACE_BYTES + 3] ^= 0x40;
        assert_eq!(place(&damaged), Some(Place::Here));
        assert_eq!(place(b"GET / HTTP/1.1"), Some(Place::Here));
    }

    #[test]
    fn a_shard_that_is_not_there_is_no_place_to_go() {
        assert_eq!(Place::Shard(4).shard(1, 4), 1);
        assert_eq!(Place::Shard(3).shard(1, 4), 3);
        let task = TaskId::of(&ObjectName::new("bucket", "key"), "", "");
        assert_eq!(Place::OwnerOf(task).shard(0, 4), task.owner(4));
    }
}
