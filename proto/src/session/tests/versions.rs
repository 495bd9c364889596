//! Hello and the versions: who meets whom, which connections carry what later versions added, and the requests of a cluster
//! from question to answer.

use super::*;
use crate::message::{
    Done, Fetch, GetConfig, KnownVersion, Locate, Nodes, NodesOk, PieceRuns, Queue, QueueOk, Reserve, Reserved, Scrub,
    ScrubOk, Steer, SteerOrder, Track, Tracked, VersionInfo, VersionState,
};
use crate::object::{PieceRun, Source};

const OLD: Versions = Versions { min: 1, max: 1 };

/// Both ends after hello, or why there was none: the client speaks `versions` and has this role.
fn meet(versions: Versions, role: Role) -> Result<Pair, SessionError> {
    let mut wire = BytesMut::new();
    let mut client = Session::connecting(Hello { versions, role, ..hello(4) }, &mut wire).unwrap();
    let mut server = Session::accepting();
    feed(&mut server, &wire)?;
    wire.clear();
    server.accept(ack(4, 8), &mut wire).unwrap();
    feed(&mut client, &wire)?;
    Ok(Pair { client, server })
}

fn peers() -> Pair {
    meet(Versions::OURS, Role::Peer).unwrap()
}

fn locate() -> Locate {
    let known = KnownVersion { generation: 7, etag: "\"e\"".into(), length: 16 };
    Locate { target: target(), no_cache: false, known: Some(known) }
}

fn fetch(number: u32) -> Fetch {
    Fetch { task: target().task(), generation: 7, number, local_only: true }
}

fn track() -> Track {
    let have = PieceRuns::new([PieceRun { first: 0, count: 2 }]);
    let window = PieceRun { first: 2, count: 4 };
    let (task, generation, node) = (target().task(), 7, "n".to_string());
    Track { task, generation, node, have, fetching: PieceRuns::default(), uploads: 0, window }
}

fn version() -> VersionInfo {
    VersionInfo {
        task: target().task(),
        generation: 7,
        meta: ObjectMeta::default(),
        piece_bytes: PIECE,
        state: VersionState::Clean,
        source: Source::Backend,
        crc32: None,
        pieces_local: 0,
    }
}

#[test]
fn nothing_but_hello_opens_a_connection() {
    let mut wire = BytesMut::new();
    wire.extend_from_slice(&preface::encode(Versions::OURS));
    Message::Ping(crate::message::Ping { nonce: 1 }).encode(RequestId::CONNECTION, &mut wire).unwrap();
    assert_eq!(feed(&mut Session::accepting(), &wire), Err(Violation::NotNow(FrameType::Ping).into()));
    let error = feed(&mut Session::accepting(), b"GET / HTTP/1.1\r\n").unwrap_err();
    assert_eq!(error, crate::error::DecodeError::BadPreface.into());
    let mut client = Session::connecting(hello(0), &mut wire).unwrap();
    assert_eq!(client.request(read(0, 1), &mut wire), Err(SendError::NotOpen));
    let error = feed(&mut client, b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap_err();
    assert_eq!(error, crate::error::DecodeError::SpeaksHttp.into());
}

#[test]
fn versions_without_overlap_are_refused_as_unsupported() {
    let later = Versions { min: VERSION_MAX + 1, max: VERSION_MAX + 2 };
    let error = feed(&mut Session::accepting(), &preface::encode(later)).unwrap_err();
    assert_eq!(error, Violation::NoCommonVersion(later).into());
    assert_eq!(error.reply().code, ErrorCode::Unsupported);
    let mut wire = BytesMut::new();
    wire.extend_from_slice(&preface::encode(Versions { min: 1, max: 9 }));
    Message::from(hello(0)).encode(RequestId::CONNECTION, &mut wire).unwrap();
    assert_eq!(feed(&mut Session::accepting(), &wire), Err(Violation::VersionsDiffer.into()));
}

#[test]
fn both_ends_know_the_highest_common_version_and_the_role() {
    for (versions, expected) in [(Versions::OURS, VERSION_MAX), (OLD, 1), (Versions { min: 1, max: 9 }, VERSION_MAX)] {
        let pair = meet(versions, Role::Client).unwrap();
        assert_eq!((pair.client.version(), pair.server.version()), (Some(expected), Some(expected)));
        assert_eq!((pair.client.role(), pair.server.role()), (Role::Client, Role::Client));
    }
    assert_eq!((peers().client.role(), peers().server.role()), (Role::Peer, Role::Peer));
    assert_eq!(Session::accepting().version(), None);
}

#[test]
fn a_version_that_was_not_offered_is_refused() {
    let mut wire = BytesMut::new();
    let mut client = Session::connecting(Hello { versions: OLD, ..hello(4) }, &mut wire).unwrap();
    wire.clear();
    Message::from(HelloAck { version: 2, ..ack(4, 8) }).encode(RequestId::CONNECTION, &mut wire).unwrap();
    let chosen = Versions { min: 2, max: 2 };
    assert_eq!(feed(&mut client, &wire), Err(Violation::NoCommonVersion(chosen).into()));
}

#[test]
fn peers_of_version_1_are_refused_as_unsupported_on_both_sides() {
    let too_old: SessionError = Violation::PeerTooOld { version: 1 }.into();
    assert_eq!(meet(OLD, Role::Peer).err(), Some(too_old));
    assert_eq!(too_old.reply().code, ErrorCode::Unsupported);
    let mut wire = BytesMut::new();
    let mut client = Session::connecting(Hello { role: Role::Peer, ..hello(4) }, &mut wire).unwrap();
    wire.clear();
    Message::from(HelloAck { version: 1, ..ack(4, 8) }).encode(RequestId::CONNECTION, &mut wire).unwrap();
    assert_eq!(feed(&mut client, &wire), Err(too_old));
}

#[test]
fn messages_of_version_2_are_refused_on_a_connection_of_version_1() {
    let frames: [Message; 3] = [locate().into(), fetch(0).into(), Nodes::default().into()];
    for message in frames {
        let frame_type = message.frame_type();
        let refused = Violation::NotInVersion { frame_type, needs: 2, version: 1 };
        let mut pair = meet(OLD, Role::Client).unwrap();
        let mut wire = BytesMut::new();
        assert_eq!(pair.client.request(message.clone(), &mut wire), Err(SendError::NotNow(refused)));
        assert!(wire.is_empty());
        message.encode(RequestId(1), &mut wire).unwrap();
        assert_eq!(feed(&mut pair.server, &wire), Err(refused.into()));
    }
    let mut pair = meet(OLD, Role::Client).unwrap();
    let request = pair.request(Stat { target: target(), fresh: false });
    let mut wire = BytesMut::new();
    Message::from(NodesOk::default()).encode(request, &mut wire).unwrap();
    let frame_type = FrameType::NodesOk;
    let refused = Violation::NotInVersion { frame_type, needs: 2, version: 1 };
    assert_eq!(feed(&mut pair.client, &wire), Err(refused.into()), "as an answer");
}

#[test]
fn messages_of_version_3_are_refused_on_a_connection_of_version_2() {
    let older = Versions { min: 1, max: 2 };
    let steer = Steer { target: target(), order: SteerOrder::Retry, force: false };
    for message in [Message::from(Queue::default()), steer.into(), Scrub::default().into()] {
        let refused = Violation::NotInVersion { frame_type: message.frame_type(), needs: 3, version: 2 };
        for role in [Role::Client, Role::Peer] {
            let mut pair = meet(older, role).unwrap();
            let mut wire = BytesMut::new();
            assert_eq!(pair.client.request(message.clone(), &mut wire), Err(SendError::NotNow(refused)));
            message.encode(RequestId(1), &mut wire).unwrap();
            assert_eq!(feed(&mut pair.server, &wire), Err(refused.into()));
        }
    }
}

#[test]
fn the_queue_is_shown_and_steered() {
    let mut pair = meet(Versions::OURS, Role::Client).unwrap();
    let shown = pair.request(Queue::default());
    let steered = pair.request(Steer { target: target(), order: SteerOrder::Drop, force: true });
    let scrubbed = pair.request(Scrub { begin: true });
    assert!(pair.answer(scrubbed, ScrubOk::default()));
    assert!(pair.answer(steered, Done {}));
    assert!(pair.answer(shown, QueueOk::default()));
}

#[test]
fn clients_say_nothing_that_is_for_peers() {
    for message in [Message::from(locate()), fetch(0).into(), track().into(), GetConfig {}.into()] {
        let refused = Violation::NotOfThisRole(message.frame_type());
        let mut pair = meet(Versions::OURS, Role::Client).unwrap();
        let mut wire = BytesMut::new();
        assert_eq!(pair.client.request(message.clone(), &mut wire), Err(SendError::NotNow(refused)));
        message.encode(RequestId(1), &mut wire).unwrap();
        assert_eq!(feed(&mut pair.server, &wire), Err(refused.into()));
    }
    for &kind in FrameType::ALL {
        let is_new = crate::message::CLUSTER_TYPES.contains(&kind.number());
        let is_newest = crate::message::QUEUE_TYPES.contains(&kind.number());
        let expected = if is_newest {
            3
        } else if is_new {
            2
        } else {
            1
        };
        assert_eq!(kind.version(), expected, "{}", kind.name());
        assert!(is_new || !kind.is_between_peers());
    }
    let mut pair = meet(Versions::OURS, Role::Client).unwrap();
    let request = pair.request(Nodes::default());
    assert!(pair.answer(request, NodesOk::default()), "people may ask for the nodes");
}

#[test]
fn questions_of_a_cluster_have_one_answer_each() {
    let mut pair = peers();
    let located = pair.request(locate());
    let tracked = pair.request(track());
    let reserved = pair.request(Reserve { target: target() });
    let wrong = pair.server.send(located, Reserved { generation: 8 }, &mut BytesMut::new());
    assert_eq!(wrong, Err(SendError::NotNow(Violation::NotNow(FrameType::Reserved))));
    assert!(pair.answer(reserved, Reserved { generation: 8 }));
    assert!(pair.answer(tracked, Tracked::default()));
    let wrong = pair.server.send(located, Message::OpenOk(version()), &mut BytesMut::new());
    assert_eq!(wrong, Err(SendError::NotNow(Violation::NotNow(FrameType::OpenOk))), "the same body, another answer");
    assert!(pair.answer(located, Message::Located(version())));
    let read = pair.request(read(0, 1));
    assert!(
        pair.answer(read, ErrorReply::new(ErrorCode::VersionChanged, "gone")),
        "peers may say all that clients may"
    );
}

#[test]
fn fetch_is_answered_with_its_piece_and_nothing_else() {
    let mut pair = peers();
    let request = pair.request(fetch(3));
    let refused = Err(SendError::NotNow(Violation::PieceNotAsked));
    for number in [2, 4] {
        assert_eq!(Pair::piece(&mut pair.server, &mut pair.client, request, number), refused);
    }
    let early = pair.server.send(request, ReadEnd::default(), &mut BytesMut::new());
    assert_eq!(early, Err(SendError::NotNow(Violation::NotNow(FrameType::ReadEnd))));
    assert_eq!(Pair::piece(&mut pair.server, &mut pair.client, request, 3), Ok(false));
    assert_eq!(Pair::piece(&mut pair.server, &mut pair.client, request, 3), refused, "once");
    assert!(pair.answer(request, ReadEnd::default()));
    let absent = pair.request(fetch(0));
    assert!(pair.answer(absent, ErrorReply::new(ErrorCode::NotFound, "not here")));
    assert_eq!(pair.server.credits_to_send(), 3);
}
