//! Any conversation of two sessions, with any delay on the wire: what one may send, the other takes.

use bytes::BytesMut;
use dfstore_proto::error::{ErrorCode, ErrorReply};
use dfstore_proto::frame::{PieceHead, RequestId};
use dfstore_proto::ids::ObjectName;
use dfstore_proto::message::{
    CreateBucket, Delete, Done, Fetch, GetConfig, List, ListOk, Locate, Message, Open, PieceAck, PieceRuns, Prefetch,
    PutAbort, PutBegin, PutCommit, PutDone, PutJoin, PutLeave, PutReady, Queue, QueueOk, Read, ReadEnd, Recall,
    Recalled, Reserve, Reserved, Role, Scope, Stat, Target, Track, Tracked, VersionInfo, VersionState, Worked,
    WrittenTo,
};
use dfstore_proto::object::{ObjectMeta, PieceRun, Source, WriteMode};
use dfstore_proto::session::{Event, Session};

use super::Choices;

const PIECE: u32 = 4;
const GENERATION: u64 = 9;
const UPLOAD: u64 = 3;

/// Plays the conversation that `data` chooses and checks that it never breaks.
pub fn check(data: &[u8]) {
    let (client, server) = super::session::open_pair(Role::Peer);
    let mut play = Play { client, server, to_client: BytesMut::new(), to_server: BytesMut::new() };
    let mut choices = Choices(data);
    while !choices.is_empty() {
        play.step(&mut choices);
    }
    // The wire runs empty; now both ends must agree.
    while !(play.to_client.is_empty() && play.to_server.is_empty()) {
        deliver(&mut play.client, &mut play.to_client, usize::MAX, &mut play.to_server);
        deliver(&mut play.server, &mut play.to_server, usize::MAX, &mut play.to_client);
    }
    assert_eq!(play.client.requests_in_flight(), play.server.requests_in_flight(), "requests in flight differ");
    assert_eq!(play.client.credits_granted(), play.server.credits_to_send(), "credits down differ");
    assert_eq!(play.server.credits_granted(), play.client.credits_to_send(), "credits up differ");
}

struct Play {
    client: Session,
    server: Session,
    to_client: BytesMut,
    to_server: BytesMut,
}

impl Play {
    /// One choice of what happens next. What the rules refuse must leave nothing on the wire.
    fn step(&mut self, choices: &mut Choices<'_>) {
        let (action, choice) = (choices.next() % 12, choices.next());
        let request = RequestId(u64::from(choice % 8) * 2 + 1);
        let before = (self.to_client.len(), self.to_server.len());
        let sent = match action {
            0 | 1 => self.client.request(asking(choice), &mut self.to_server).is_ok(),
            2 | 3 => self.server.send(request, answer(choices.next()), &mut self.to_client).is_ok(),
            4 => self.client.send(request, follow_up(choices.next()), &mut self.to_server).is_ok(),
            5 => send_piece(&mut self.client, request, choices.next(), &mut self.to_server),
            6 => send_piece(&mut self.server, request, choices.next(), &mut self.to_client),
            7 if choice % 2 == 0 => self.client.grant(u32::from(choice), &mut self.to_server).is_ok(),
            7 => self.server.grant(u32::from(choice), &mut self.to_client).is_ok(),
            8 => self.client.cancel(request, &mut self.to_server).is_ok(),
            9 if choice > 240 => self.server.go_away(ErrorCode::ShuttingDown, "", &mut self.to_client).is_ok(),
            9 => self.client.ping(choice.into(), &mut self.to_server).is_ok(),
            10 => deliver(&mut self.server, &mut self.to_server, choice.into(), &mut self.to_client),
            _ => deliver(&mut self.client, &mut self.to_client, choice.into(), &mut self.to_server),
        };
        assert!(sent || before == (self.to_client.len(), self.to_server.len()), "a refused message was written");
    }
}

/// Up to `bytes` of the wire arrive.
fn deliver(session: &mut Session, wire: &mut BytesMut, bytes: usize, back: &mut BytesMut) -> bool {
    let arrived = wire.split_to(bytes.min(wire.len()));
    let mut input = &arrived[..];
    while !input.is_empty() {
        if !session.take_raw(&mut input).is_empty() {
            continue;
        }
        let event = session.receive(&mut input).expect("a session of ours takes what a session of ours sends");
        if let Some(Event::Ping(nonce)) = event {
            session.pong(nonce, back).expect("an open session answers");
        }
    }
    true
}

fn target() -> Target {
    Target::new(ObjectName::new("b", "k"))
}

fn send_piece(session: &mut Session, request: RequestId, number: u8, wire: &mut BytesMut) -> bool {
    let number = u32::from(number % 4);
    let head = PieceHead {
        task: target().task(),
        generation: GENERATION,
        offset: u64::from(number * PIECE),
        number,
        length: PIECE,
        crc32: 0,
    };
    let Ok(frame) = session.send_piece(request, &head) else { return false };
    wire.extend_from_slice(&frame);
    wire.extend_from_slice(&[0; PIECE as usize]);
    true
}

/// The upper half of the choices are the messages that version 2 added, so that older seeds stay what they were.
fn asking(choice: u8) -> Message {
    if choice >= 0x80 {
        return asking_of_a_cluster(choice);
    }
    match choice % 9 {
        0 => Stat { target: target(), fresh: false }.into(),
        1 => list().into(),
        2 => Delete { target: target() }.into(),
        3 => Open { target: target(), no_cache: true }.into(),
        4 => CreateBucket { bucket: "b".into() }.into(),
        5 | 6 => Read { target: target(), generation: GENERATION, first_piece: 0, piece_count: 2 }.into(),
        7 => PutJoin { task: target().task(), upload: UPLOAD }.into(),
        _ => put_begin().into(),
    }
}

fn list() -> List {
    List { bucket: "b".into(), prefix: String::new(), marker: String::new(), delimiter: String::new(), limit: 0 }
}

fn put_begin() -> PutBegin {
    let meta = ObjectMeta::default();
    PutBegin { target: target(), length: None, mode: WriteMode::default(), max_replicas: 0, ack_peers: 0, meta }
}

fn follow_up(choice: u8) -> Message {
    match choice % 3 {
        0 => PutCommit { upload: UPLOAD, length: 0, crc32: 0, pieces: 0 }.into(),
        1 => PutAbort {}.into(),
        _ => PutLeave {}.into(),
    }
}

fn asking_of_a_cluster(choice: u8) -> Message {
    let task = target().task();
    match choice % 8 {
        0 => Locate { target: target(), no_cache: false, known: None }.into(),
        1 => Recall { target: target() }.into(),
        2 => track().into(),
        3 | 4 => Fetch { task, generation: GENERATION, number: u32::from(choice % 4), local_only: true }.into(),
        5 => Reserve { target: target() }.into(),
        6 => GetConfig {}.into(),
        _ if choice % 16 == 15 => Queue::default().into(),
        _ => Prefetch { target: target(), scope: Scope::Cluster }.into(),
    }
}

fn track() -> Track {
    Track {
        task: target().task(),
        generation: GENERATION,
        node: "n".into(),
        have: PieceRuns::new([PieceRun { first: 0, count: 2 }]),
        fetching: PieceRuns::default(),
        uploads: 1,
        window: PieceRun { first: 2, count: 2 },
    }
}

fn answer_of_a_cluster(choice: u8, version: VersionInfo) -> Message {
    match choice % 7 {
        0 => Message::Located(version),
        1 => Recalled::default().into(),
        2 => Tracked::default().into(),
        3 => Reserved { generation: GENERATION }.into(),
        4 if choice % 2 == 1 => QueueOk::default().into(),
        4 => Worked::default().into(),
        5 => ReadEnd::default().into(),
        _ => ErrorReply::new(ErrorCode::NotFound, "").into(),
    }
}

fn answer(choice: u8) -> Message {
    let version = VersionInfo {
        task: target().task(),
        generation: GENERATION,
        meta: ObjectMeta::default(),
        piece_bytes: PIECE,
        state: VersionState::Clean,
        source: Source::Local,
        crc32: None,
        pieces_local: 0,
    };
    if choice >= 0x80 {
        return answer_of_a_cluster(choice, version);
    }
    match choice % 9 {
        0 => ErrorReply::new(ErrorCode::Internal, "").into(),
        1 => Done {}.into(),
        2 => Message::StatOk(version),
        3 => ListOk::default().into(),
        4 => Message::OpenOk(version),
        5 => ReadEnd::default().into(),
        6 => ready().into(),
        7 => PieceAck { number: 0 }.into(),
        _ => PutDone { generation: GENERATION, etag: String::new(), written_to: WrittenTo::Local, replicas: 1 }.into(),
    }
}

fn ready() -> PutReady {
    PutReady { upload: UPLOAD, task: target().task(), generation: GENERATION, piece_bytes: PIECE, window_pieces: 1 }
}
