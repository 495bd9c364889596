//! One connection from its HELLO to its end: frames in, frames out.
//!
//! Two loops and the watch run side by side. The receiving loop reads, lets the session check every frame and hands
//! requests to tasks of their own; only the raw bytes of pieces are received here, straight into a slot. The sending
//! loop writes what the tasks queue, several frames with one operation. A broken rule, a broken socket or the watch end
//! the link, and with it everything the connection had begun.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::time::Instant;

use dfstore_proto::decoder::Need;
use dfstore_proto::frame::RequestId;
use dfstore_proto::limits::{FRAME_HEADER_BYTES, REQUESTS_MAX, VERSION_MAX};
use dfstore_proto::message::{Hello, HelloAck, Message, Role};
use dfstore_proto::session::{Event, SessionError};
use futures_util::future::{Either, join, select};

use crate::limits::{LINGER_BYTES_MAX, NATIVE_CREDITS, PIECE_BYTES};
use crate::metrics::Face;
use crate::native::admission::admit;
use crate::native::link::{Gone, Link};
use crate::native::watch::{Waiting, watch};
use crate::native::{Context, fetch, objects, peers, put, read};
use crate::rt::net::{Connection, Door};
use crate::rt::stream::{Incoming, Outgoing, Pulse, split};

/// What this program calls itself.
const AGENT: &str = concat!("dfstore-peer/", env!("CARGO_PKG_VERSION"));

/// Serves a connection that speaks the native protocol, to its end. What was read from it already is replayed first.
/// When `stop` completes, the client is told to go away and what is in flight is finished.
pub async fn serve(connection: Connection, context: Context, stop: impl Future<Output = ()>) {
    let (door, remote) = (connection.door().unwrap_or(Door::Api), connection.remote().ip());
    let shard = context.metrics.shard(context.engine.shard());
    let _open = (door == Door::Api).then(|| shard.connection(Face::Native));
    let (incoming, outgoing, pulse) = split(connection);
    let link = Link::new(context, door, remote);
    let traffic = pin!(join(receive(&link, incoming), send(&link, outgoing, &pulse)));
    if let Either::Right((_, traffic)) = select(traffic, pin!(watch(&link, &pulse, stop))).await {
        // The socket is cut: both loops find that out at once.
        traffic.await;
    }
}

/// Why no more frames are taken.
enum Over {
    /// The client closed, or the connection broke.
    Closed,
    /// The client broke a rule.
    Broken(SessionError),
    /// The link ended for another reason.
    Gone,
}

impl From<io::Error> for Over {
    fn from(error: io::Error) -> Over {
        tracing::debug!(%error, "native connection broke");
        Over::Closed
    }
}

impl From<SessionError> for Over {
    fn from(error: SessionError) -> Over {
        Over::Broken(error)
    }
}

impl From<Gone> for Over {
    fn from(_: Gone) -> Over {
        Over::Gone
    }
}

async fn receive(link: &Rc<Link>, mut incoming: Incoming) {
    let Err(over) = receive_frames(link, &mut incoming).await;
    link.waiting.set(Waiting::Nothing);
    match over {
        Over::Closed => return link.end(),
        Over::Broken(error) => link.close(error.reply()),
        Over::Gone => link.end(),
    }
    // A socket closed with bytes unread is reset, and the client might never see why it was closed.
    let _ = incoming.skip(LINGER_BYTES_MAX).await;
}

async fn receive_frames(link: &Rc<Link>, incoming: &mut Incoming) -> Result<std::convert::Infallible, Over> {
    loop {
        while let Some(event) = next_event(link, incoming)? {
            link.frame_since.set(None);
            handle(link, incoming, event).await?;
        }
        if link.has_ended() {
            return Err(Over::Gone);
        }
        link.waiting.set(between_frames(link));
        let more = incoming.fill().await?;
        link.waiting.set(Waiting::Nothing);
        if !more {
            return Err(Over::Closed);
        }
    }
}

fn next_event(link: &Link, incoming: &mut Incoming) -> Result<Option<Event>, SessionError> {
    let mut input = incoming.buffered();
    let before = input.len();
    let event = link.receive(&mut input);
    let consumed = before - input.len();
    incoming.consume(consumed);
    event
}

/// The moment a frame begins to be waited for is kept while parts of it come in: a trickle does not reset the clock.
fn between_frames(link: &Link) -> Waiting {
    if link.session().need() == Need::Bytes(FRAME_HEADER_BYTES) {
        link.frame_since.set(None);
        return Waiting::Frame;
    }
    let since = link.frame_since.get().unwrap_or_else(Instant::now);
    link.frame_since.set(Some(since));
    Waiting::Rest(since)
}

async fn handle(link: &Rc<Link>, incoming: &mut Incoming, event: Event) -> Result<(), Over> {
    match event {
        Event::Hello(hello) => accept(link, hello),
        Event::Request { request, message } => begin(link, request, message),
        Event::Message { request, message, .. } => put::follow(link, request, message),
        Event::Piece { request, head, discard } => put::piece(link, incoming, request, head, discard).await?,
        Event::Cancelled(request) => {
            put::cancel(link, request);
            link.credits_changed();
        }
        Event::Ping(nonce) => {
            link.room().await?;
            // Fails only when the session is over.
            let _ = link.push(|session, out| session.pong(nonce, out));
        }
        Event::Credit(_) => link.credits_changed(),
        Event::Closed(reply) => {
            tracing::debug!(%reply, "native client closed the session");
            return Err(Over::Gone);
        }
        Event::Pong(_) | Event::GoAway { .. } | Event::Accepted(_) => {}
    }
    Ok(())
}

fn accept(link: &Link, hello: Hello) {
    tracing::debug!(agent = %hello.agent, route = ?hello.route, "native session");
    let cluster = link.context.cluster.as_deref();
    if let Err(reply) = admit(&hello, link.door, cluster, link.remote) {
        return link.close(reply);
    }
    link.set_role(hello.role);
    let engine = &link.context.engine;
    let ack = HelloAck {
        // The session puts the common version here.
        version: VERSION_MAX,
        node: cluster.map_or_else(|| link.context.node.to_string(), |cluster| cluster.node().to_string()),
        agent: AGENT.to_owned(),
        shards: u16::try_from(link.context.shards).expect("at most SHARDS_MAX"),
        shard: u16::try_from(engine.shard()).expect("at most SHARDS_MAX"),
        piece_bytes: PIECE_BYTES,
        piece_bytes_max: PIECE_BYTES,
        requests_max: REQUESTS_MAX,
        credits: NATIVE_CREDITS,
    };
    if let Err(error) = link.push(|session, out| session.accept(ack, out)) {
        tracing::error!(%error, "HELLO cannot be answered");
        link.end();
    }
}

fn begin(link: &Rc<Link>, request: RequestId, message: Message) {
    match message {
        Message::Read(asked) => read::begin(link, request, asked),
        Message::PutBegin(asked) => put::begin(link, request, asked),
        Message::PutJoin(asked) => put::join(link, request, asked),
        Message::Fetch(asked) if link.role() == Role::Peer => fetch::begin(link, request, asked),
        other if peers::is_of_cluster(&other) => peers::begin(link, request, other),
        other => objects::begin(link, request, other),
    }
}

async fn send(link: &Link, mut outgoing: Outgoing, pulse: &Pulse) {
    while let Some(frames) = link.take_frames().await {
        let piece_bytes = frames.piece_bytes;
        if let Err(error) = outgoing.write_all(frames.parts).await {
            tracing::debug!(%error, "native connection broke");
            link.end();
            return pulse.cut();
        }
        link.written(piece_bytes);
    }
    let _ = outgoing.finish().await;
}
