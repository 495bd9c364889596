//! Any bytes into a session of either side: no panic, the same events however they are cut, and every rule kept.

use bytes::BytesMut;
use dfstore_proto::decoder::Need;
use dfstore_proto::limits::{CONTROL_BYTES_MAX, PIECE_BYTES_MAX};
use dfstore_proto::message::{Hello, HelloAck, Role, Route, Token};
use dfstore_proto::preface::{self, Versions};
use dfstore_proto::session::{Event, Session, SessionError};

/// Requests in flight that the accepting side allows.
pub const REQUESTS_MAX: u16 = 4;

/// A hello of this role with this many credits.
pub fn hello(role: Role, credits: u32) -> Hello {
    Hello {
        versions: Versions::OURS,
        role,
        route: Route::Any,
        token: Token::default(),
        agent: String::new(),
        piece_bytes_max: PIECE_BYTES_MAX,
        credits,
    }
}

/// The answer to a hello, with this many credits.
pub fn hello_ack(credits: u32) -> HelloAck {
    HelloAck {
        version: 1,
        node: String::new(),
        agent: String::new(),
        shards: 1,
        shard: 0,
        piece_bytes: PIECE_BYTES_MAX,
        piece_bytes_max: PIECE_BYTES_MAX,
        requests_max: REQUESTS_MAX,
        credits,
    }
}

/// Checks any bytes as what comes first, and as what comes after hello.
pub fn check(data: &[u8]) {
    let frames = super::with_valid_checksums(data);
    let after_preface = [&preface::encode(Versions::OURS)[..], &frames].concat();
    for stream in [data, &frames, &after_preface] {
        check_cuts(stream, data, &Session::accepting);
        check_cuts(stream, data, &connecting);
    }
    for role in [Role::Client, Role::Peer] {
        check_cuts(&frames, data, &|| open_pair(role).0);
        check_cuts(&frames, data, &|| open_pair(role).1);
    }
}

fn connecting() -> Session {
    Session::connecting(hello(Role::Client, 2), &mut BytesMut::new()).expect("the hello is within bounds")
}

/// Both sides of a connection of this role after hello.
pub fn open_pair(role: Role) -> (Session, Session) {
    let mut wire = BytesMut::new();
    let mut client = Session::connecting(hello(role, 2), &mut wire).expect("the hello is within bounds");
    let mut server = Session::accepting();
    let event = server.receive(&mut &wire[..]).expect("a hello of ours");
    assert!(matches!(event, Some(Event::Hello(_))));
    wire.clear();
    server.accept(hello_ack(2), &mut wire).expect("the answer is within bounds");
    let event = client.receive(&mut &wire[..]).expect("an answer of ours");
    assert!(matches!(event, Some(Event::Accepted(_))));
    (client, server)
}

fn check_cuts(stream: &[u8], cuts: &[u8], make: &dyn Fn() -> Session) {
    let whole = receive(make(), stream, &mut || stream.len().max(1));
    let mut choices = super::Choices(cuts);
    let cut = receive(make(), stream, &mut || usize::from(choices.next() % 32) + 1);
    assert_eq!(whole, cut, "events depend on where the network cut them");
}

fn receive(
    mut session: Session,
    stream: &[u8],
    chunk_bytes: &mut dyn FnMut() -> usize,
) -> (Vec<Event>, Option<SessionError>) {
    let mut events = Vec::new();
    let mut left = stream;
    while !left.is_empty() {
        let (mut chunk, rest) = left.split_at(left.len().min(chunk_bytes()));
        left = rest;
        while !chunk.is_empty() {
            if matches!(session.need(), Need::Raw(_)) {
                session.take_raw(&mut chunk);
                continue;
            }
            let event = match session.receive(&mut chunk) {
                Ok(event) => event,
                Err(error) => {
                    assert_eq!(session.receive(&mut chunk), Err(error), "a failure stays");
                    return (events, Some(error));
                }
            };
            if matches!(event, Some(Event::Hello(_))) {
                session.accept(hello_ack(2), &mut BytesMut::new()).expect("a hello waits for it");
            }
            let is_between_peers = matches!(&event, Some(Event::Request { message, .. })
                if message.frame_type().is_between_peers());
            assert!(!is_between_peers || session.role() == Role::Peer, "a client speaks like a peer");
            events.extend(event);
            assert!(session.requests_in_flight() <= usize::from(REQUESTS_MAX), "too many requests in flight");
            assert!(session.memory_bytes() <= CONTROL_BYTES_MAX as usize + 8, "more memory than one control frame");
        }
    }
    (events, None)
}
