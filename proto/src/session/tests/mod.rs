//! Two sessions joined in memory: what one sends, the other receives, cut at every border.

mod versions;

use bytes::BytesMut;

use super::*;
use crate::crc::WholeCrc;
use crate::error::ErrorCode;
use crate::ids::{ObjectName, TaskId};
use crate::limits::VERSION_MAX;
use crate::message::{
    CreateBucket, Credit, Delete, Done, Open, PieceAck, PutAbort, PutBegin, PutCommit, PutDone, PutJoin, PutLeave,
    PutReady, Read, ReadEnd, Role, Route, Stat, Target, Token, WrittenTo,
};
use crate::object::{ObjectMeta, WriteMode};

const PIECE: u32 = 8;

fn hello(credits: u32) -> Hello {
    Hello {
        versions: Versions::OURS,
        role: Role::Client,
        route: Route::Any,
        token: Token::default(),
        agent: "test/1".into(),
        piece_bytes_max: PIECE,
        credits,
    }
}

fn ack(credits: u32, requests_max: u16) -> HelloAck {
    HelloAck {
        version: 0,
        node: "node".into(),
        agent: "peer/1".into(),
        shards: 2,
        shard: 1,
        piece_bytes: PIECE,
        piece_bytes_max: PIECE,
        requests_max,
        credits,
    }
}

fn target() -> Target {
    Target::new(ObjectName::new("b", "k"))
}

fn raw(number: u32) -> [u8; PIECE as usize] {
    [number.to_le_bytes()[0]; PIECE as usize]
}

fn piece(number: u32) -> PieceHead {
    PieceHead {
        task: target().task(),
        generation: 7,
        offset: u64::from(number) * u64::from(PIECE),
        number,
        length: PIECE,
        crc32: crc32fast::hash(&raw(number)),
    }
}

fn ready(upload: u64) -> PutReady {
    PutReady { upload, task: target().task(), generation: 7, piece_bytes: PIECE, window_pieces: 4 }
}

fn put_begin() -> PutBegin {
    PutBegin {
        target: target(),
        length: Some(16),
        mode: WriteMode::AsyncWriteBack,
        max_replicas: 0,
        ack_peers: 0,
        meta: ObjectMeta::default(),
    }
}

fn read(first_piece: u32, piece_count: u32) -> Read {
    Read { target: target(), generation: 7, first_piece, piece_count }
}

/// All events that `bytes` give, raw bytes of pieces taken and forgotten.
fn feed(session: &mut Session, bytes: &[u8]) -> Result<Vec<Event>, SessionError> {
    let mut input = bytes;
    let mut events = Vec::new();
    loop {
        session.take_raw(&mut input);
        match session.receive(&mut input)? {
            Some(event) => events.push(event),
            None if input.is_empty() || matches!(session.phase, Phase::HelloPending) => return Ok(events),
            None => {}
        }
    }
}

struct Pair {
    client: Session,
    server: Session,
}

impl Pair {
    fn with(client_credits: u32, server_credits: u32, requests_max: u16) -> Pair {
        let mut wire = BytesMut::new();
        let mut client = Session::connecting(hello(client_credits), &mut wire).unwrap();
        let mut server = Session::accepting();
        assert_eq!(feed(&mut server, &wire).unwrap(), [Event::Hello(hello(client_credits))]);
        wire.clear();
        server.accept(ack(server_credits, requests_max), &mut wire).unwrap();
        let accepted = HelloAck { version: VERSION_MAX, ..ack(server_credits, requests_max) };
        assert_eq!(feed(&mut client, &wire).unwrap(), [Event::Accepted(accepted)]);
        assert!(client.is_open() && server.is_open());
        Pair { client, server }
    }

    fn new() -> Pair {
        Pair::with(4, 4, 8)
    }

    /// The client makes a request and the server sees it.
    fn request(&mut self, message: impl Into<Message>) -> RequestId {
        let mut wire = BytesMut::new();
        let request = self.client.request(message, &mut wire).unwrap();
        assert!(matches!(&feed(&mut self.server, &wire).unwrap()[..], [Event::Request { .. }]));
        request
    }

    /// The client follows up and the server sees it.
    fn follow(&mut self, request: RequestId, message: impl Into<Message>) {
        let mut wire = BytesMut::new();
        self.client.send(request, message, &mut wire).unwrap();
        assert!(matches!(&feed(&mut self.server, &wire).unwrap()[..], [Event::Message { ended: false, .. }]));
    }

    /// The server answers and the client sees it.
    fn answer(&mut self, request: RequestId, message: impl Into<Message>) -> bool {
        let mut wire = BytesMut::new();
        let ended = self.server.send(request, message, &mut wire).unwrap();
        let events = feed(&mut self.client, &wire).unwrap();
        assert!(matches!(&events[..], [Event::Message { ended: seen, .. }] if *seen == ended));
        ended
    }

    /// A piece goes from one side to the other; whether it is to be dropped there.
    fn piece(from: &mut Session, to: &mut Session, request: RequestId, number: u32) -> Result<bool, SendError> {
        let mut wire = from.send_piece(request, &piece(number))?.to_vec();
        wire.extend(raw(number));
        match &feed(to, &wire).unwrap()[..] {
            [Event::Piece { head, discard, .. }] if *head == piece(number) => Ok(*discard),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn reads_pieces_in_any_order_until_read_end() {
    let mut pair = Pair::new();
    let request = pair.request(read(3, 3));
    for number in [4, 3, 5] {
        assert_eq!(Pair::piece(&mut pair.server, &mut pair.client, request, number), Ok(false));
    }
    assert_eq!(pair.server.credits_to_send(), 1);
    assert_eq!(pair.client.credits_granted(), 1);
    assert!(pair.answer(request, ReadEnd::default()));
    assert_eq!((pair.client.requests_in_flight(), pair.server.requests_in_flight()), (0, 0));
}

#[test]
fn sends_no_piece_that_was_not_asked_for() {
    let mut pair = Pair::new();
    let request = pair.request(read(3, 1));
    let refused = Err(SendError::NotNow(Violation::PieceNotAsked));
    assert_eq!(Pair::piece(&mut pair.server, &mut pair.client, request, 2), refused);
    assert_eq!(Pair::piece(&mut pair.server, &mut pair.client, request, 4), refused);
    let other_version = PieceHead { generation: 8, ..piece(3) };
    assert_eq!(pair.server.send_piece(request, &other_version).err(), refused.err());
    assert_eq!(Pair::piece(&mut pair.server, &mut pair.client, request, 3), Ok(false));
    assert_eq!(Pair::piece(&mut pair.server, &mut pair.client, request, 3), refused, "one too many");
    assert_eq!(pair.server.credits_to_send(), 3, "a refused piece costs no credit");
}

#[test]
fn read_end_before_the_last_piece_is_refused() {
    let mut pair = Pair::new();
    let request = pair.request(read(0, 2));
    let early = pair.server.send(request, ReadEnd::default(), &mut BytesMut::new());
    assert_eq!(early, Err(SendError::NotNow(Violation::NotNow(FrameType::ReadEnd))));
    assert!(pair.answer(request, ErrorReply::new(ErrorCode::VersionChanged, "gone")), "an error always may end it");
}

#[test]
fn pieces_stop_without_credit_and_go_on_with_it() {
    let mut pair = Pair::with(1, 0, 8);
    let request = pair.request(read(0, 2));
    assert_eq!(Pair::piece(&mut pair.server, &mut pair.client, request, 0), Ok(false));
    assert_eq!(Pair::piece(&mut pair.server, &mut pair.client, request, 1), Err(SendError::NoCredit));
    let mut wire = BytesMut::new();
    pair.client.grant(2, &mut wire).unwrap();
    assert_eq!(feed(&mut pair.server, &wire).unwrap(), [Event::Credit(2)]);
    assert_eq!(Pair::piece(&mut pair.server, &mut pair.client, request, 1), Ok(false));
}

#[test]
fn a_piece_without_credit_closes_the_connection() {
    let mut pair = Pair::with(0, 0, 8);
    let request = pair.request(read(0, 2));
    let wire = piece(0).frame(request);
    assert_eq!(feed(&mut pair.client, &wire), Err(Violation::NoCredit.into()));
    assert_eq!(feed(&mut pair.client, &wire), Err(Violation::NoCredit.into()), "the failure stays");
}

#[test]
fn more_credits_than_the_limit_are_refused_on_both_sides() {
    let mut pair = Pair::new();
    let mut wire = BytesMut::new();
    let all = crate::limits::CREDITS_MAX;
    assert_eq!(pair.client.grant(all, &mut wire), Err(SendError::NotNow(Violation::TooManyCredits)));
    Message::from(Credit { pieces: all }).encode(RequestId::CONNECTION, &mut wire).unwrap();
    assert_eq!(feed(&mut pair.server, &wire), Err(Violation::TooManyCredits.into()));
}

#[test]
fn uploads_over_two_requests_and_commits_on_the_first() {
    let mut pair = Pair::new();
    let begun = pair.request(put_begin());
    assert!(!pair.answer(begun, ready(5)));
    let joined = pair.request(PutJoin { task: target().task(), upload: 5 });
    assert!(!pair.answer(joined, ready(5)));
    assert_eq!(Pair::piece(&mut pair.client, &mut pair.server, begun, 0), Ok(false));
    assert_eq!(Pair::piece(&mut pair.client, &mut pair.server, joined, 1), Ok(false));
    assert!(!pair.answer(joined, PieceAck { number: 1 }));
    pair.follow(joined, PutLeave {});
    assert!(pair.answer(joined, Done {}));
    let mut whole = WholeCrc::new();
    whole.append(piece(0).crc32, PIECE.into());
    whole.append(piece(1).crc32, PIECE.into());
    pair.follow(begun, PutCommit { upload: 5, length: 16, crc32: whole.value(), pieces: 2 });
    assert!(!pair.answer(begun, PieceAck { number: 0 }), "acknowledgements may still come");
    let done = PutDone { generation: 7, etag: "\"e\"".into(), written_to: WrittenTo::Local, replicas: 1 };
    assert!(pair.answer(begun, done));
}

#[test]
fn upload_steps_out_of_order_are_refused() {
    let mut pair = Pair::new();
    let begun = pair.request(put_begin());
    let commit = PutCommit { upload: 5, length: 0, crc32: 0, pieces: 0 };
    let mut wire = BytesMut::new();
    let not_now = |frame_type| Err(SendError::NotNow(Violation::NotNow(frame_type)));
    assert_eq!(pair.client.send(begun, commit, &mut wire), not_now(FrameType::PutCommit), "before PUT_READY");
    assert_eq!(pair.client.send_piece(begun, &piece(0)).err(), not_now(FrameType::Piece).err());
    pair.answer(begun, ready(5));
    let other = PutCommit { upload: 6, ..commit };
    assert_eq!(pair.client.send(begun, other, &mut wire), not_now(FrameType::PutCommit), "another upload");
    assert_eq!(pair.client.send(begun, PutLeave {}, &mut wire), not_now(FrameType::PutLeave), "nothing was joined");
    let ack = pair.server.send(begun, PieceAck { number: 0 }, &mut wire);
    assert_eq!(ack, not_now(FrameType::PieceAck), "no piece came");
    pair.follow(begun, PutAbort {});
    assert_eq!(pair.client.send_piece(begun, &piece(0)).err(), not_now(FrameType::Piece).err(), "after the abort");
    assert!(wire.is_empty(), "nothing that is refused is written");
    assert!(pair.answer(begun, Done {}));
}

#[test]
fn frames_about_a_request_that_has_just_ended_do_no_harm() {
    let mut pair = Pair::new();
    let request = pair.request(put_begin());
    pair.answer(request, ready(5));
    // The server gives up while a piece, the commit and a cancel are on their way.
    pair.server.send(request, ErrorReply::new(ErrorCode::NoSpace, "full"), &mut BytesMut::new()).unwrap();
    assert_eq!(Pair::piece(&mut pair.client, &mut pair.server, request, 0), Ok(true), "read it and drop it");
    let mut wire = BytesMut::new();
    let commit = PutCommit { upload: 5, length: 8, crc32: piece(0).crc32, pieces: 1 };
    pair.client.send(request, commit, &mut wire).unwrap();
    pair.client.cancel(request, &mut wire).unwrap();
    assert_eq!(feed(&mut pair.server, &wire).unwrap(), []);
}

#[test]
fn a_cancelled_request_stays_until_the_other_side_ends_it() {
    let mut pair = Pair::new();
    let request = pair.request(read(0, 4));
    let mut wire = BytesMut::new();
    pair.client.cancel(request, &mut wire).unwrap();
    pair.client.cancel(request, &mut wire).unwrap();
    assert_eq!(Pair::piece(&mut pair.server, &mut pair.client, request, 0), Ok(true), "was on its way");
    assert_eq!(feed(&mut pair.server, &wire).unwrap(), [Event::Cancelled(request)]);
    assert!(pair.server.is_cancelled(request));
    assert!(pair.answer(request, ErrorReply::new(ErrorCode::Cancelled, "as asked")));
    assert_eq!(pair.client.requests_in_flight(), 0);
}

#[test]
fn request_numbers_are_odd_and_grow() {
    let stat = Message::from(Stat { target: target(), fresh: false });
    for numbers in [&[2_u64][..], &[3, 1], &[5, 5]] {
        let mut pair = Pair::new();
        let mut wire = BytesMut::new();
        for &number in numbers {
            stat.encode(RequestId(number), &mut wire).unwrap();
        }
        let last = RequestId(*numbers.last().unwrap());
        assert_eq!(feed(&mut pair.server, &wire), Err(Violation::BadRequestId(last).into()), "{numbers:?}");
    }
    let mut pair = Pair::new();
    assert_eq!(pair.request(Delete { target: target() }), RequestId(1));
    assert_eq!(pair.request(CreateBucket { bucket: "b".into() }), RequestId(3));
}

#[test]
fn more_requests_than_announced_are_refused_on_both_sides() {
    let mut pair = Pair::with(0, 0, 2);
    pair.request(read(0, 1));
    pair.request(read(0, 1));
    let mut wire = BytesMut::new();
    let open = Open { target: target(), no_cache: false };
    assert_eq!(pair.client.request(open.clone(), &mut wire), Err(SendError::TooManyRequests));
    Message::from(open).encode(RequestId(5), &mut wire).unwrap();
    assert_eq!(feed(&mut pair.server, &wire), Err(Violation::TooManyRequests.into()));
}

#[test]
fn messages_for_nobody_or_from_the_wrong_side_are_refused() {
    let frame = |message: Message, number| {
        let mut wire = BytesMut::new();
        message.encode(RequestId(number), &mut wire).unwrap();
        wire
    };
    let refused = |wire: &[u8]| feed(&mut Pair::new().server, wire).unwrap_err();
    assert_eq!(refused(&frame(PutAbort {}.into(), 9)), Violation::UnknownRequest(RequestId(9)).into());
    assert_eq!(refused(&frame(Done {}.into(), 9)), Violation::UnknownRequest(RequestId(9)).into());
    assert_eq!(refused(&piece(0).frame(RequestId(9))), Violation::UnknownRequest(RequestId(9)).into());
    assert_eq!(refused(&frame(hello(0).into(), 0)), Violation::NotNow(FrameType::Hello).into(), "a second hello");
    let stat = Message::from(Stat { target: target(), fresh: true });
    assert_eq!(refused(&frame(stat, 0)), Violation::NotNow(FrameType::Stat).into(), "not about the connection");
    let mut pair = Pair::new();
    let error = feed(&mut pair.client, &frame(Done {}.into(), 1)).unwrap_err();
    assert_eq!(error, Violation::UnknownRequest(RequestId(1)).into());
}

#[test]
fn the_wrong_answer_is_refused() {
    let mut pair = Pair::new();
    let request = pair.request(Stat { target: target(), fresh: false });
    let mut wire = BytesMut::new();
    let sent = pair.server.send(request, Done {}, &mut wire);
    assert_eq!(sent, Err(SendError::NotNow(Violation::NotNow(FrameType::Done))));
    Message::from(Done {}).encode(request, &mut wire).unwrap();
    assert_eq!(feed(&mut pair.client, &wire), Err(Violation::NotNow(FrameType::Done).into()));
}

#[test]
fn go_away_finishes_what_was_taken_and_hands_back_the_rest() {
    let mut pair = Pair::new();
    let taken = pair.request(read(0, 1));
    let mut to_client = BytesMut::new();
    pair.server.go_away(ErrorCode::ShuttingDown, "stopping", &mut to_client).unwrap();
    // This one crosses the announcement on the wire.
    let mut to_server = BytesMut::new();
    let crossed = pair.client.request(put_begin(), &mut to_server).unwrap();
    assert_eq!(feed(&mut pair.server, &to_server).unwrap(), []);
    let events = feed(&mut pair.client, &to_client).unwrap();
    assert!(matches!(&events[..], [Event::GoAway { abandoned, .. }] if *abandoned == [crossed]));
    assert_eq!(pair.client.request(read(0, 1), &mut to_server), Err(SendError::GoingAway));
    assert_eq!(Pair::piece(&mut pair.server, &mut pair.client, taken, 0), Ok(false));
    assert!(pair.answer(taken, ReadEnd::default()));
    assert_eq!((pair.client.requests_in_flight(), pair.server.requests_in_flight()), (0, 0));
}

#[test]
fn ping_gives_pong_and_error_about_the_connection_closes_it() {
    let mut pair = Pair::new();
    let mut wire = BytesMut::new();
    pair.client.ping(42, &mut wire).unwrap();
    assert_eq!(feed(&mut pair.server, &wire).unwrap(), [Event::Ping(42)]);
    wire.clear();
    pair.server.pong(42, &mut wire).unwrap();
    let error = ErrorReply::new(ErrorCode::Timeout, "silent");
    pair.server.close(error.clone(), &mut wire).unwrap();
    assert_eq!(feed(&mut pair.client, &wire), Err(SessionError::Closed));
    let mut pair = Pair::new();
    let mut wire = BytesMut::new();
    pair.server.close(error.clone(), &mut wire).unwrap();
    let mut input = &wire[..];
    assert_eq!(pair.client.receive(&mut input), Ok(Some(Event::Closed(error))));
    assert_eq!(pair.client.ping(1, &mut wire), Err(SendError::NotOpen));
    assert_eq!(pair.server.pong(1, &mut wire), Err(SendError::NotOpen));
}

#[test]
fn a_session_is_moved_to_another_thread_whole() {
    fn sendable<T: Send>(_: &T) {}
    sendable(&Session::accepting());
    assert_eq!(TaskId::of(&target().object, "", ""), target().task());
}

#[test]
fn an_answer_from_the_asking_side_is_refused_even_for_a_request_that_has_ended() {
    let mut pair = Pair::new();
    let request = pair.request(Delete { target: target() });
    assert!(pair.answer(request, Done {}));
    let mut wire = BytesMut::new();
    Message::from(Done {}).encode(request, &mut wire).unwrap();
    assert_eq!(feed(&mut pair.server, &wire), Err(Violation::UnknownRequest(request).into()));
}

#[test]
fn a_cancelled_read_may_end_early_without_an_error() {
    let mut pair = Pair::new();
    let request = pair.request(read(0, 4));
    let mut wire = BytesMut::new();
    pair.client.cancel(request, &mut wire).unwrap();
    assert_eq!(feed(&mut pair.server, &wire).unwrap(), [Event::Cancelled(request)]);
    assert!(pair.answer(request, ReadEnd::default()));
}

#[test]
fn a_joined_connection_neither_commits_nor_aborts() {
    let mut pair = Pair::new();
    let joined = pair.request(PutJoin { task: target().task(), upload: 5 });
    pair.answer(joined, ready(5));
    let commit = PutCommit { upload: 5, length: 0, crc32: 0, pieces: 0 };
    for message in [Message::from(commit), PutAbort {}.into()] {
        let not_now = SendError::NotNow(Violation::NotNow(message.frame_type()));
        assert_eq!(pair.client.send(joined, message.clone(), &mut BytesMut::new()), Err(not_now));
        let mut wire = BytesMut::new();
        message.encode(joined, &mut wire).unwrap();
        let refused = feed(&mut pair.server, &wire).unwrap_err();
        assert_eq!(refused, Violation::NotNow(message.frame_type()).into());
        pair = Pair::new();
        assert_eq!(pair.request(PutJoin { task: target().task(), upload: 5 }), joined);
        pair.answer(joined, ready(5));
    }
}

/// A pair whose client takes pieces of 6 bytes and whose server takes pieces of 5.
fn pair_of_small_intakes() -> Pair {
    let mut wire = BytesMut::new();
    let mut client = Session::connecting(Hello { piece_bytes_max: 6, ..hello(4) }, &mut wire).unwrap();
    let mut server = Session::accepting();
    feed(&mut server, &wire).unwrap();
    wire.clear();
    server.accept(HelloAck { piece_bytes_max: 5, ..ack(4, 8) }, &mut wire).unwrap();
    feed(&mut client, &wire).unwrap();
    Pair { client, server }
}

#[test]
fn pieces_longer_than_the_other_side_takes_are_refused_on_both_sides() {
    use crate::error::DecodeError;
    let of = |length| PieceHead { length, ..piece(0) };
    let mut pair = pair_of_small_intakes();
    let reading = pair.request(read(0, 1));
    let writing = pair.request(put_begin());
    pair.answer(writing, ready(5));
    let too_long = |length, max| Err(SendError::PieceTooLong { length, max });
    assert_eq!(pair.server.send_piece(reading, &of(7)), too_long(7, 6));
    assert_eq!(pair.client.send_piece(writing, &of(6)), too_long(6, 5));
    assert_eq!((pair.server.piece_bytes_max_to_send(), pair.client.piece_bytes_max_to_send()), (6, 5));
    let sent = pair.server.send_piece(reading, &of(6)).unwrap();
    assert_eq!(feed(&mut pair.client, &sent).unwrap().len(), 1);
    let sent = pair.client.send_piece(writing, &of(5)).unwrap();
    assert_eq!(feed(&mut pair.server, &sent).unwrap().len(), 1);

    let mut pair = pair_of_small_intakes();
    let refused = feed(&mut pair.client, &of(7).frame(reading)).unwrap_err();
    assert_eq!(refused, DecodeError::TooLong { length: 71, max: 70 }.into());
    let refused = feed(&mut pair.server, &of(6).frame(writing)).unwrap_err();
    assert_eq!(refused, DecodeError::TooLong { length: 70, max: 69 }.into());
}

#[test]
fn the_longest_request_passes_after_hello_and_its_memory_is_given_back() {
    let mut pair = Pair::new();
    let longest = Target {
        object: ObjectName::new("b".repeat(255), "k".repeat(1024)),
        query: "q".repeat(4096),
        filter: "f".repeat(4096),
    };
    let mut wire = BytesMut::new();
    pair.client.request(Stat { target: longest, fresh: false }, &mut wire).unwrap();
    assert!(wire.len() > crate::limits::HELLO_BYTES_MAX as usize);
    let (first, rest) = wire.split_at(100);
    assert_eq!(feed(&mut pair.server, first).unwrap(), []);
    assert_eq!(feed(&mut pair.server, rest).unwrap().len(), 1);
    let kept = crate::limits::STAGING_KEPT_BYTES + crate::limits::PREFACE_BYTES;
    assert!(pair.server.memory_bytes() <= kept, "{} bytes kept by an idle connection", pair.server.memory_bytes());
}
