//! What a peer does with clients of the native protocol that are broken, hostile, silent or many: their connection
//! ends, with a word why where that is possible; memory stays where it was; everyone else is served.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::BytesMut;
use dfstore_peer::limits::PIECE_BYTES;
use dfstore_proto::error::{ErrorCode, ErrorReply};
use dfstore_proto::frame::{FrameHeader, PieceHead, RequestId};
use dfstore_proto::ids::ObjectName;
use dfstore_proto::limits::{CONTROL_BYTES_MAX, CREDITS_MAX, PREFACE_BYTES};
use dfstore_proto::message::{
    Credit, Done, FrameType, GoAway, Message, Open, PutBegin, PutCommit, Read as ReadPieces, Role, Route, Stat, Target,
};
use dfstore_proto::object::{ObjectMeta, WriteMode};
use dfstore_proto::preface::{self, Versions};
use dfstore_proto::session::Event;
use dfstore_tests::data::{PIECE, Payload};
use dfstore_tests::peer::Peer;
use dfstore_tests::wire::{Arrival, Wire, hello};
use dfstore_tests::{eventually, seaweed};

const SOON: Duration = Duration::from_secs(20);
/// What memory may grow by while hostile clients come and go: sockets, tasks, allocator slack.
const SLACK_BYTES: u64 = 24 << 20;

fn start() -> Result<(Peer, Target)> {
    let bucket = seaweed::bucket()?;
    let peer = Peer::start(&bucket)?;
    let target = Target::new(ObjectName::new(&bucket.name, "no such object"));
    Ok((peer, target))
}

/// A fresh client is served.
fn assert_alive(address: SocketAddr, target: &Target) -> Result<()> {
    let mut wire = Wire::open(address, Route::Task(target.task()), 1)?;
    match wire.ask(stat(target))? {
        Message::Error(reply) if reply.code == ErrorCode::NotFound => Ok(()),
        other => bail!("no NotFound but {other:?}"),
    }
}

fn stat(target: &Target) -> Stat {
    Stat { target: target.clone(), fresh: false }
}

fn frame(message: impl Into<Message>, request: u64) -> Vec<u8> {
    let mut out = BytesMut::new();
    message.into().encode(RequestId(request), &mut out).expect("within limits");
    out.to_vec()
}

/// A frame header with a checksum that is right whatever it says.
fn header(frame_type: u8, flags: u8, payload_bytes: u32, body: &[u8]) -> Vec<u8> {
    let plain = FrameHeader {
        payload_bytes,
        frame_type: FrameType::Stat,
        flags,
        request: RequestId(1),
        body_crc32: crc32fast::hash(body),
    };
    let mut bytes = plain.encode();
    bytes[4] = frame_type;
    let checksum = crc32fast::hash(&bytes[..20]);
    bytes[20..24].copy_from_slice(&checksum.to_le_bytes());
    [&bytes[..], body].concat()
}

fn opening() -> Vec<u8> {
    [&preface::encode(Versions::OURS)[..], &frame(hello(Route::Any, 4), 0)].concat()
}

/// Sends `bytes` to a fresh connection and reads all that comes until it is closed.
fn exchange(address: SocketAddr, bytes: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SOON))?;
    // The peer may close before all is sent.
    let _ = stream.write_all(bytes);
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => Err(error).context("it stays open"),
        _ => Ok(all),
    }
}

/// The ERROR that ends what the peer sent, if it ends with one.
fn last_error(mut bytes: &[u8]) -> Option<ErrorReply> {
    let limits =
        dfstore_proto::frame::FrameLimits { control_bytes_max: CONTROL_BYTES_MAX, piece_bytes_max: PIECE_BYTES };
    let mut decoder = dfstore_proto::decoder::Decoder::new(limits);
    let mut last = None;
    while let Ok(Some(frame)) = decoder.push(&mut bytes) {
        let dfstore_proto::decoder::Frame::Message { message, .. } = frame else { return None };
        last = Some(message);
    }
    match last {
        Some(Message::Error(reply)) => Some(reply),
        _ => None,
    }
}

#[test]
fn what_is_no_opening_is_refused_with_a_reason() -> Result<()> {
    let (peer, target) = start()?;
    let mut wrong_tail = opening();
    wrong_tail[PREFACE_BYTES - 1] ^= 1;
    let mut damaged_header = opening();
    damaged_header[PREFACE_BYTES + 20] ^= 1;
    let mut damaged_body = opening();
    *damaged_body.last_mut().context("not empty")? ^= 1;
    let versions = Versions { min: 200, max: 250 };
    let of_a_peer = dfstore_proto::message::Hello { role: Role::Peer, ..hello(Route::Any, 4) };
    let with = |bytes: Vec<u8>| [&preface::encode(Versions::OURS)[..], &bytes].concat();
    let cases: Vec<(&str, Vec<u8>, ErrorCode)> = vec![
        ("damaged preface", wrong_tail, ErrorCode::ProtocolError),
        ("versions of the future", preface::encode(versions).to_vec(), ErrorCode::Unsupported),
        ("damaged header", damaged_header, ErrorCode::ProtocolError),
        ("damaged body", damaged_body, ErrorCode::ProtocolError),
        ("a HELLO of 4 GiB", with(header(0x01, 0, u32::MAX, b"")), ErrorCode::ProtocolError),
        ("a HELLO of 64 KiB", with(header(0x01, 0, CONTROL_BYTES_MAX, b"")), ErrorCode::ProtocolError),
        ("a piece before HELLO", with(header(0x2F, 0, 4096, b"")), ErrorCode::ProtocolError),
        ("a request before HELLO", with(frame(stat(&target), 1)), ErrorCode::ProtocolError),
        ("noise", with(vec![0xA5; 4096]), ErrorCode::ProtocolError),
        ("a HELLO that cannot be read", with(header(0x01, 0, 3, b"abc")), ErrorCode::ProtocolError),
        ("a peer of a cluster", with(frame(of_a_peer, 0)), ErrorCode::Unsupported),
    ];
    for (name, bytes, code) in cases {
        let answer = exchange(peer.address(), &bytes).with_context(|| name.to_owned())?;
        let reply = last_error(&answer).with_context(|| format!("{name}: no ERROR"))?;
        assert_eq!(reply.code, code, "{name}: {reply}");
    }
    assert_alive(peer.address(), &target)
}

#[test]
fn wrong_frames_end_their_session_with_a_reason() -> Result<()> {
    let (peer, target) = start()?;
    let head = PieceHead { task: target.task(), generation: 1, offset: 0, number: 0, length: 5, crc32: 0 };
    let piece = |request| [&head.frame(RequestId(request))[..], b"bytes"].concat();
    let mut wrong_sum = frame(stat(&target), 1);
    wrong_sum[16] ^= 1;
    let commit = PutCommit { upload: 1, length: 0, crc32: 0, pieces: 0 };
    let going = GoAway { code: ErrorCode::Busy, message: String::new(), last_request: 0 };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("a STAT of 4 GiB", header(0x10, 0, u32::MAX, b"")),
        ("a piece of 4 GiB", header(0x2F, 0, u32::MAX, b"")),
        ("a piece longer than announced", header(0x2F, 0, PIECE_BYTES + 64 + 1, b"")),
        ("a control frame one byte too long", header(0x10, 0, CONTROL_BYTES_MAX + 1, b"")),
        ("an empty piece", header(0x2F, 0, 64, &[0; 64])),
        ("a type of a cluster", header(0x40, 0, 0, b"")),
        ("a type that never is", header(0xF0, 0, 0, b"")),
        ("flags that must be understood", header(0x10, 0x80, 0, b"")),
        ("a damaged header", wrong_sum),
        ("a payload that cannot be read", header(0x10, 0, 9, &[0xFF; 9])),
        ("an empty payload", header(0x30, 0, 0, b"")),
        ("a piece of no request", piece(1)),
        ("an even request", frame(stat(&target), 2)),
        ("a request twice", [frame(stat(&target), 1), frame(stat(&target), 1)].concat()),
        ("a commit of nothing", frame(commit, 1)),
        ("an answer from the client", frame(Done {}, 1)),
        ("HELLO twice", frame(hello(Route::Any, 1), 0)),
        ("a request without a number", frame(stat(&target), 0)),
        ("too many credits", frame(Credit { pieces: CREDITS_MAX }, 0).repeat(2)),
        ("GO_AWAY as a request", frame(going, 3)),
    ];
    for (name, bytes) in cases {
        let answer = exchange(peer.address(), &[opening(), bytes].concat()).with_context(|| name.to_owned())?;
        let reply = last_error(&answer).with_context(|| format!("{name}: no ERROR"))?;
        assert_eq!(reply.code, ErrorCode::ProtocolError, "{name}: {reply}");
    }
    assert_alive(peer.address(), &target)
}

#[test]
fn a_conversation_cut_anywhere_leaves_nothing_behind() -> Result<()> {
    let (peer, target) = start()?;
    let begin = PutBegin {
        target: target.clone(),
        length: None,
        mode: WriteMode::Ephemeral,
        max_replicas: 0,
        ack_peers: 0,
        meta: ObjectMeta::default(),
    };
    let open = Open { target: target.clone(), no_cache: false };
    let all = [opening(), frame(stat(&target), 1), frame(begin, 3), frame(open, 5)].concat();
    for length in (0..all.len()).step_by(7) {
        let mut stream = TcpStream::connect(peer.address())?;
        stream.write_all(&all[..length])?;
        if length % 2 == 0 {
            stream.shutdown(Shutdown::Write)?;
        }
    }
    peer.metrics_until("all connections are closed", SOON, |samples| {
        samples.sum("dfstore_connections", &[("face", "native")]) == 0.0
            && samples.sum("dfstore_requests_in_flight", &[("face", "native")]) == 0.0
            && samples.sum("dfstore_arena_held_bytes", &[]) == 0.0
    })?;
    assert_alive(peer.address(), &target)
}

/// Frames whose checksums are right and whose contents, order and number are not: 300 conversations, each told by its
/// seed.
#[test]
fn nonsense_with_right_checksums_ends_only_its_connection() -> Result<()> {
    let (mut peer, target) = start()?;
    assert_alive(peer.address(), &target)?;
    for seed in 0..300 {
        let conversation = nonsense(seed, &target);
        let mut stream = TcpStream::connect(peer.address())?;
        stream.set_read_timeout(Some(SOON))?;
        let _ = stream.write_all(&conversation);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => bail!("seed {seed}: {error}"),
            _ => {}
        }
    }
    ensure!(peer.process().ended()?.is_none(), "the peer has ended");
    let log = peer.process().log();
    ensure!(!log.contains("panicked"), "{log}");
    peer.metrics_until("nothing is left", SOON, |samples| {
        samples.sum("dfstore_connections", &[("face", "native")]) == 0.0
            && samples.sum("dfstore_requests_in_flight", &[("face", "native")]) == 0.0
            && samples.sum("dfstore_arena_held_bytes", &[]) == 0.0
    })?;
    assert_alive(peer.address(), &target)
}

/// An opening and up to eight frames in any order, one in two of them damaged inside and summed up again.
fn nonsense(seed: u64, target: &Target) -> Vec<u8> {
    let noise = Payload::new(seed, 4096).bytes();
    let mut dice = noise.iter().map(|byte| u32::from(*byte)).cycle();
    let mut roll = |sides: u32| dice.next().map_or(0, |byte| byte % sides);
    let mut all = opening();
    for _ in 0..=roll(8) {
        let request = 1 + 2 * u64::from(roll(4));
        let head = PieceHead {
            task: target.task(),
            generation: 1 + u64::from(roll(8)),
            offset: 0,
            number: 0,
            length: 4096,
            crc32: crc32fast::hash(&noise),
        };
        let begin = PutBegin {
            target: target.clone(),
            length: None,
            mode: WriteMode::Ephemeral,
            max_replicas: 0,
            ack_peers: 0,
            meta: ObjectMeta::default(),
        };
        let commit = PutCommit { upload: u64::from(roll(8)), length: 4096, crc32: head.crc32, pieces: 1 };
        let read = ReadPieces { target: target.clone(), generation: 1, first_piece: 0, piece_count: 1 + roll(3) };
        let mut next = match roll(10) {
            0 => frame(stat(target), request),
            1 | 2 => frame(begin, request),
            3 => frame(commit, request),
            4 => frame(read, request),
            5 => frame(dfstore_proto::message::Cancel {}, request),
            6 => frame(dfstore_proto::message::PutJoin { task: target.task(), upload: 1 }, request),
            7 => frame(Credit { pieces: 1 + roll(100) }, 0),
            8 => frame(dfstore_proto::message::PutLeave {}, request),
            _ => [&head.frame(RequestId(request))[..], &noise].concat(),
        };
        if roll(2) == 0 && next.len() > 24 {
            let at = 24 + roll(256) as usize % (next.len() - 24);
            next[at] ^= 1 << roll(8);
            let end = if next[4] == FrameType::Piece.number() { 24 + 64 } else { next.len() };
            let body = crc32fast::hash(&next[24..end]);
            next[16..20].copy_from_slice(&body.to_le_bytes());
            let header = crc32fast::hash(&next[..20]);
            next[20..24].copy_from_slice(&header.to_le_bytes());
        }
        all.extend_from_slice(&next);
    }
    all
}

#[test]
fn huge_lengths_take_no_memory() -> Result<()> {
    let (mut peer, target) = start()?;
    assert_alive(peer.address(), &target)?;
    let before = peer.process().rss_bytes()?;
    let address = peer.address();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            thread::spawn(move || -> Result<()> {
                for number in 0..100 {
                    let frame_type = if number % 2 == 0 { 0x10 } else { 0x2F };
                    exchange(address, &[opening(), header(frame_type, 0, u32::MAX, b"")].concat())?;
                }
                Ok(())
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no panic")?;
    }
    // As much as may be said, all of it at once, and never more than the first byte of it sent.
    let waiting: Vec<TcpStream> = (0..200)
        .map(|_| -> Result<TcpStream> {
            let mut stream = TcpStream::connect(address)?;
            stream.write_all(&[opening(), header(0x10, 0, CONTROL_BYTES_MAX, b"x")].concat())?;
            Ok(stream)
        })
        .collect::<Result<_>>()?;
    assert_alive(address, &target)?;
    let after = peer.process().rss_bytes()?;
    drop(waiting);
    ensure!(after < before + SLACK_BYTES, "memory grew from {before} to {after}");
    Ok(())
}

#[test]
fn silence_within_a_frame_ends_the_connection() -> Result<()> {
    let (peer, target) = start()?;
    let opening = opening();
    let cases = [
        ("nothing at all", Vec::new()),
        ("half a preface", opening[..4].to_vec()),
        ("half a HELLO", opening[..opening.len() - 3].to_vec()),
        ("half a header", [&opening[..], &frame(stat(&target), 1)[..10]].concat()),
        ("half a payload", [&opening[..], &frame(stat(&target), 1)[..40]].concat()),
    ];
    let mut streams = Vec::new();
    for (name, bytes) in cases {
        let mut stream = TcpStream::connect(peer.address())?;
        stream.write_all(&bytes)?;
        stream.set_read_timeout(Some(SOON))?;
        streams.push((name, stream));
    }
    let begun = Instant::now();
    for (name, mut stream) in streams {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).with_context(|| format!("{name}: still open"))?;
        if name.contains("header") || name.contains("payload") {
            let reply = last_error(&answer).with_context(|| format!("{name}: no ERROR"))?;
            assert_eq!(reply.code, ErrorCode::Timeout, "{name}");
        }
    }
    ensure!(begun.elapsed() > Duration::from_secs(5), "an honest client on a slow line has some time");
    assert_alive(peer.address(), &target)
}

#[test]
fn many_sessions_are_served_side_by_side() -> Result<()> {
    let (mut peer, target) = start()?;
    assert_alive(peer.address(), &target)?;
    let before = peer.process().rss_bytes()?;
    let mut sessions = Vec::new();
    for number in 0..400_u16 {
        let route = if number % 3 == 0 { Route::Any } else { Route::Shard(number % 2) };
        let mut wire = Wire::open(peer.address(), route, 4)?;
        wire.ping(u64::from(number))?;
        sessions.push(wire);
    }
    for (number, wire) in sessions.iter_mut().enumerate() {
        assert_eq!(wire.next_arrival()?, Some(Arrival::Event(Event::Pong(number as u64))));
    }
    let asked: Vec<_> = sessions.iter_mut().map(|wire| wire.request(stat(&target))).collect::<Result<_>>()?;
    for (wire, request) in sessions.iter_mut().zip(asked) {
        assert_eq!(wire.refusal(request)?, ErrorCode::NotFound);
    }
    let after = peer.process().rss_bytes()?;
    ensure!(after < before + SLACK_BYTES, "memory grew from {before} to {after}");
    drop(sessions);
    peer.metrics_until("all connections are closed", SOON, |samples| {
        samples.sum("dfstore_connections", &[("face", "native")]) == 0.0
    })
}

#[test]
fn a_client_that_does_not_read_holds_little_and_harms_nobody() -> Result<()> {
    let bucket = seaweed::bucket()?;
    let mut peer = Peer::start(&bucket)?;
    let payload = Payload::new(5, 96 << 20);
    let put = peer.put(&bucket.name, "object", 2, &payload.bytes())?;
    ensure!(put.status() == 200, "{}", put.text());
    let before = peer.process().rss_bytes()?;
    let target = Target::new(ObjectName::new(&bucket.name, "object"));
    let mut idle = Vec::new();
    for _ in 0..3 {
        let mut wire = Wire::open(peer.address(), Route::Task(target.task()), CREDITS_MAX)?;
        let Message::OpenOk(info) = wire.ask(Open { target: target.clone(), no_cache: false })? else {
            bail!("no OPEN_OK")
        };
        for _ in 0..8 {
            wire.request(ReadPieces {
                target: target.clone(),
                generation: info.generation,
                first_piece: 0,
                piece_count: info.pieces(),
            })?;
        }
        idle.push(wire);
    }
    let read = eventually("others are served", SOON, || peer.get(&bucket.name, "object").ok())?;
    ensure!(read.status() == 200 && read.body.len() as u64 == payload.length, "{} {}", read.status(), read.body.len());
    assert_eq!(payload.first_difference(0, &read.body), None);
    let held = peer.metrics()?.sum("dfstore_arena_held_bytes", &[("holder", "serve")]);
    ensure!(held <= 3.0 * 2.0 * PIECE as f64, "{held} bytes are held for clients that do not read");
    let after = peer.process().rss_bytes()?;
    // The budget of tests is 128 MiB; sockets hold memory of the kernel, not of the process.
    ensure!(after < before + (128 << 20), "memory grew from {before} to {after}");
    drop(idle);
    peer.metrics_until("all slots are given back", SOON, |samples| {
        samples.sum("dfstore_arena_held_bytes", &[("holder", "serve")]) == 0.0
    })
}
