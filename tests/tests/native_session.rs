//! What clients of the native protocol are promised: objects written and read over several connections at once, whole
//! versions, checksums that are looked at, requests that can be given up, an orderly goodbye.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use dfstore_proto::crc::WholeCrc;
use dfstore_proto::error::ErrorCode;
use dfstore_proto::frame::{PieceHead, RequestId};
use dfstore_proto::ids::ObjectName;
use dfstore_proto::message::{
    Copy, CreateBucket, Delete, Done, List, Message, Open, PutAbort, PutBegin, PutCommit, PutDone, PutJoin, PutLeave,
    PutReady, Read, ReadEnd, Route, Stat, Target, VersionInfo, WrittenTo,
};
use dfstore_proto::object::{ObjectMeta, Source, WriteMode};
use dfstore_proto::session::Event;
use dfstore_tests::bucket::Bucket;
use dfstore_tests::data::{PIECE, Payload};
use dfstore_tests::peer::Peer;
use dfstore_tests::wire::{Arrival, Wire};
use dfstore_tests::{eventually, seaweed};
use rustix::process::Signal;

const SOON: Duration = Duration::from_secs(20);

fn start() -> Result<(Peer, Bucket)> {
    let bucket = seaweed::bucket()?;
    Ok((Peer::start(&bucket)?, bucket))
}

fn target(bucket: &Bucket, key: &str) -> Target {
    Target::new(ObjectName::new(&bucket.name, key))
}

fn connect(peer: &Peer, target: &Target) -> Result<Wire> {
    Wire::open(peer.address(), Route::Task(target.task()), 8)
}

fn begin(target: &Target, mode: WriteMode) -> PutBegin {
    PutBegin {
        target: target.clone(),
        length: None,
        mode,
        max_replicas: 0,
        ack_peers: 0,
        meta: ObjectMeta { content_type: "text/x-test".to_owned(), ..ObjectMeta::default() },
    }
}

fn ready(wire: &mut Wire, request: RequestId) -> Result<PutReady> {
    match wire.answer(request)? {
        Message::PutReady(ready) => Ok(ready),
        other => bail!("no PUT_READY but {other:?}"),
    }
}

fn stat(wire: &mut Wire, target: &Target) -> Result<VersionInfo> {
    match wire.ask(Stat { target: target.clone(), fresh: false })? {
        Message::StatOk(info) => Ok(info),
        other => bail!("no STAT_OK but {other:?}"),
    }
}

fn open(wire: &mut Wire, target: &Target) -> Result<VersionInfo> {
    match wire.ask(Open { target: target.clone(), no_cache: false })? {
        Message::OpenOk(info) => Ok(info),
        other => bail!("no OPEN_OK but {other:?}"),
    }
}

fn read(target: &Target, info: &VersionInfo, pieces: std::ops::Range<u32>) -> Read {
    let piece_count = pieces.end - pieces.start;
    Read { target: target.clone(), generation: info.generation, first_piece: pieces.start, piece_count }
}

/// Nothing is known of this object.
fn assert_absent(wire: &mut Wire, target: &Target) -> Result<()> {
    let request = wire.request(Stat { target: target.clone(), fresh: true })?;
    assert_eq!(wire.refusal(request)?, ErrorCode::NotFound);
    Ok(())
}

/// Piece `number` of a payload, with its checksum.
fn piece(payload: &Payload, number: u32) -> (Vec<u8>, u32) {
    let start = u64::from(number) * PIECE;
    let bytes = payload.range(start..payload.length.min(start + PIECE));
    let crc32 = crc32fast::hash(&bytes);
    (bytes, crc32)
}

fn piece_count(payload: &Payload) -> u32 {
    u32::try_from(payload.length.div_ceil(PIECE)).expect("a small payload")
}

fn commit(ready: &PutReady, payload: &Payload) -> PutCommit {
    PutCommit { upload: ready.upload, length: payload.length, crc32: payload.crc32(), pieces: piece_count(payload) }
}

/// Writes an object over one connection.
fn put(wire: &mut Wire, target: &Target, payload: &Payload, mode: WriteMode) -> Result<PutDone> {
    let request = wire.request(begin(target, mode))?;
    let ready = ready(wire, request)?;
    for number in 0..piece_count(payload) {
        let (bytes, crc32) = piece(payload, number);
        wire.piece(request, &ready, number, (&bytes, crc32))?;
    }
    wire.follow(request, commit(&ready, payload))?;
    match wire.answer(request)? {
        Message::PutDone(done) => Ok(done),
        other => bail!("no PUT_DONE but {other:?}"),
    }
}

/// Receives the pieces of a READ until its end, and checks each.
fn receive(wire: &mut Wire, request: RequestId, payload: &Payload) -> Result<(u32, ReadEnd)> {
    let mut pieces = 0;
    loop {
        match wire.next_arrival()?.context("closed within a READ")? {
            Arrival::Piece { request: of, head, bytes } if of == request => {
                ensure!(crc32fast::hash(&bytes) == head.crc32, "piece {} does not match its checksum", head.number);
                assert_eq!(head.offset, u64::from(head.number) * PIECE);
                assert_eq!(payload.first_difference(head.offset, &bytes), None, "piece {}", head.number);
                pieces += 1;
                wire.grant(1)?;
            }
            Arrival::Event(Event::Message { request: of, message: Message::ReadEnd(end), .. }) if of == request => {
                return Ok((pieces, end));
            }
            other => bail!("unexpected: {other:?}"),
        }
    }
}

#[test]
fn an_object_goes_up_and_comes_back_over_four_connections() -> Result<()> {
    let (peer, bucket) = start()?;
    let target = target(&bucket, "dir/four ways ü");
    let payload = Payload::new(41, 10 * PIECE + 4097);
    let mut wires: Vec<Wire> = (0..4).map(|_| connect(&peer, &target)).collect::<Result<_>>()?;
    let owner = target.task().owner(usize::from(wires[0].ack.shards));
    assert!(wires.iter().all(|wire| usize::from(wire.ack.shard) == owner), "connections follow their task");

    let first = wires[0].request(begin(&target, WriteMode::AsyncWriteBack))?;
    let begun = ready(&mut wires[0], first)?;
    let mut requests = vec![first];
    for wire in &mut wires[1..] {
        let join = wire.request(PutJoin { task: begun.task, upload: begun.upload })?;
        assert_eq!(ready(wire, join)?, begun);
        requests.push(join);
    }
    for number in (0..piece_count(&payload)).rev() {
        let at = number as usize % 4;
        let (bytes, crc32) = piece(&payload, number);
        wires[at].piece(requests[at], &begun, number, (&bytes, crc32))?;
    }
    for at in 1..4 {
        wires[at].follow(requests[at], PutLeave {})?;
        assert_eq!(wires[at].answer(requests[at])?, Message::Done(Done {}));
    }
    wires[0].follow(first, commit(&begun, &payload))?;
    let Message::PutDone(done) = wires[0].answer(first)? else { bail!("no PUT_DONE") };
    assert_eq!(done.written_to, WrittenTo::Local);

    let info = open(&mut wires[2], &target)?;
    assert_eq!(
        (info.generation, info.meta.length, info.crc32),
        (done.generation, payload.length, Some(payload.crc32()))
    );
    assert_eq!((info.meta.content_type.as_str(), info.pieces_local), ("text/x-test", 11));
    let parts = [0..3, 3..6, 6..9, 9..11];
    let asked: Vec<_> =
        wires.iter_mut().zip(&parts).map(|(wire, part)| wire.request(read(&target, &info, part.clone()))).collect();
    for ((wire, request), part) in wires.iter_mut().zip(asked).zip(parts) {
        let (pieces, end) = receive(wire, request?, &payload)?;
        assert_eq!(pieces, part.end - part.start);
        assert_eq!(end.sources.iter().map(|line| line.pieces).sum::<u32>(), pieces);
        assert!(end.sources.iter().all(|line| matches!(line.source, Source::Local | Source::Pending)), "{end:?}");
    }
    Ok(())
}

#[test]
fn a_piece_with_a_wrong_checksum_is_refused_and_nothing_is_stored() -> Result<()> {
    let (peer, bucket) = start()?;
    let target = target(&bucket, "damaged");
    let payload = Payload::new(42, 3 * PIECE);
    let mut wire = connect(&peer, &target)?;
    let request = wire.request(begin(&target, WriteMode::AsyncWriteBack))?;
    let begun = ready(&mut wire, request)?;
    let (first, first_crc32) = piece(&payload, 0);
    wire.piece(request, &begun, 0, (&first, first_crc32))?;
    let (mut second, second_crc32) = piece(&payload, 1);
    second[1_000_000] ^= 1;
    wire.piece(request, &begun, 1, (&second, second_crc32))?;
    assert_eq!(wire.refusal(request)?, ErrorCode::ChecksumMismatch);
    assert_absent(&mut wire, &target)?;

    // The checksum of the whole is looked at as well.
    let request = wire.request(begin(&target, WriteMode::AsyncWriteBack))?;
    let begun = ready(&mut wire, request)?;
    for number in 0..3 {
        let (bytes, crc32) = piece(&payload, number);
        wire.piece(request, &begun, number, (&bytes, crc32))?;
    }
    let asked = PutCommit { crc32: payload.crc32() ^ 1, ..commit(&begun, &payload) };
    wire.follow(request, asked)?;
    assert_eq!(wire.refusal(request)?, ErrorCode::ChecksumMismatch);
    assert_absent(&mut wire, &target)?;

    // The connection is still good.
    put(&mut wire, &target, &payload, WriteMode::AsyncWriteBack)?;
    assert_eq!(stat(&mut wire, &target)?.crc32, Some(payload.crc32()));
    Ok(())
}

#[test]
fn an_upload_that_is_not_whole_is_not_an_object() -> Result<()> {
    let (peer, bucket) = start()?;
    let target = target(&bucket, "holes");
    let payload = Payload::new(43, 3 * PIECE - 5);
    let mut wire = connect(&peer, &target)?;
    // A piece is missing.
    let request = wire.request(begin(&target, WriteMode::Ephemeral))?;
    let begun = ready(&mut wire, request)?;
    for number in [0, 2] {
        let (bytes, crc32) = piece(&payload, number);
        wire.piece(request, &begun, number, (&bytes, crc32))?;
    }
    wire.follow(request, commit(&begun, &payload))?;
    assert!(!wire.refusal(request)?.is_retryable());
    assert_absent(&mut wire, &target)?;
    // Length and number of pieces contradict each other.
    let request = wire.request(begin(&target, WriteMode::Ephemeral))?;
    let begun = ready(&mut wire, request)?;
    wire.follow(request, PutCommit { pieces: 2, ..commit(&begun, &payload) })?;
    assert_eq!(wire.refusal(request)?, ErrorCode::InvalidArgument);
    // Given up.
    let request = wire.request(begin(&target, WriteMode::Ephemeral))?;
    let begun = ready(&mut wire, request)?;
    let (bytes, crc32) = piece(&payload, 0);
    wire.piece(request, &begun, 0, (&bytes, crc32))?;
    wire.follow(request, PutAbort {})?;
    assert_eq!(wire.answer(request)?, Message::Done(Done {}));
    assert_absent(&mut wire, &target)?;
    // Joined after its end.
    let join = wire.request(PutJoin { task: begun.task, upload: begun.upload })?;
    assert_eq!(wire.refusal(join)?, ErrorCode::UploadUnknown);
    Ok(())
}

#[test]
fn closing_the_connection_gives_its_uploads_up() -> Result<()> {
    let (peer, bucket) = start()?;
    let target = target(&bucket, "left alone");
    let payload = Payload::new(44, 2 * PIECE);
    let mut founder = connect(&peer, &target)?;
    let mut helper = connect(&peer, &target)?;
    let request = founder.request(begin(&target, WriteMode::AsyncWriteBack))?;
    let begun = ready(&mut founder, request)?;
    let join = helper.request(PutJoin { task: begun.task, upload: begun.upload })?;
    ready(&mut helper, join)?;
    let (bytes, crc32) = piece(&payload, 0);
    founder.piece(request, &begun, 0, (&bytes, crc32))?;
    // The line breaks within the second piece.
    let PutReady { task, generation, .. } = begun;
    let length = u32::try_from(PIECE)?;
    let head = PieceHead { task, generation, offset: PIECE, number: 1, length, crc32 };
    founder.raw(&head.frame(request))?;
    founder.raw(&bytes[..bytes.len() / 2])?;
    drop(founder);
    peer.metrics_until("the connection is closed", SOON, |samples| {
        samples.sum("dfstore_connections", &[("face", "native")]) == 1.0
    })?;
    helper.piece(join, &begun, 1, (&bytes, crc32))?;
    assert_eq!(helper.refusal(join)?, ErrorCode::UploadUnknown);
    assert_absent(&mut helper, &target)?;
    peer.metrics_until("its memory is given back", SOON, |samples| {
        samples.sum("dfstore_arena_held_bytes", &[("holder", "ingest")]) == 0.0
    })
}

#[test]
fn a_cancelled_read_ends_and_the_connection_goes_on() -> Result<()> {
    let (peer, bucket) = start()?;
    let target = target(&bucket, "long");
    let payload = Payload::new(45, 12 * PIECE);
    let mut wire = Wire::open(peer.address(), Route::Task(target.task()), 2)?;
    put(&mut wire, &target, &payload, WriteMode::Ephemeral)?;
    let info = open(&mut wire, &target)?;
    let request = wire.request(read(&target, &info, 0..12))?;
    for number in 0..2 {
        match wire.next_arrival()? {
            Some(Arrival::Piece { head, .. }) => assert_eq!(head.number, number),
            other => bail!("no piece but {other:?}"),
        }
    }
    // No credit is left: the READ waits, other requests do not.
    assert_eq!(stat(&mut wire, &target)?.generation, info.generation);
    wire.cancel(request)?;
    assert_eq!(wire.refusal(request)?, ErrorCode::Cancelled);
    wire.grant(2)?;
    let request = wire.request(read(&target, &info, 11..12))?;
    assert_eq!(receive(&mut wire, request, &payload)?.0, 1);
    // An upload can be cancelled as well.
    let request = wire.request(begin(&target, WriteMode::Ephemeral))?;
    ready(&mut wire, request)?;
    wire.cancel(request)?;
    assert_eq!(wire.refusal(request)?, ErrorCode::Cancelled);
    assert_eq!(stat(&mut wire, &target)?.generation, info.generation);
    Ok(())
}

#[test]
fn an_opened_version_stays_readable_while_newer_ones_come() -> Result<()> {
    let (peer, bucket) = start()?;
    let target = target(&bucket, "versions");
    let (old, new) = (Payload::new(46, 3 * PIECE), Payload::new(47, 3 * PIECE));
    let mut opener = connect(&peer, &target)?;
    let mut reader = connect(&peer, &target)?;
    put(&mut reader, &target, &old, WriteMode::Ephemeral)?;
    let info = open(&mut opener, &target)?;
    let done = put(&mut reader, &target, &new, WriteMode::Ephemeral)?;
    ensure!(done.generation > info.generation, "generations grow");
    for wire in [&mut opener, &mut reader] {
        let request = wire.request(read(&target, &info, 0..3))?;
        assert_eq!(receive(wire, request, &old)?.0, 3);
    }
    let newer = open(&mut reader, &target)?;
    let request = reader.request(read(&target, &newer, 0..3))?;
    assert_eq!(receive(&mut reader, request, &new)?.0, 3);
    // When nobody holds the old version any more, it goes.
    drop(opener);
    eventually("the old version is gone", SOON, || {
        let request = reader.request(read(&target, &info, 0..1)).ok()?;
        match reader.next_arrival().ok()?? {
            Arrival::Event(Event::Message { request: of, message: Message::Error(reply), .. }) if of == request => {
                Some(reply.code == ErrorCode::VersionChanged)
            }
            Arrival::Piece { .. } => {
                reader.grant(1).ok()?;
                reader.answer(request).ok().and(None)
            }
            _ => Some(false),
        }
    })
    .and_then(|changed| {
        ensure!(changed, "another answer than VersionChanged");
        Ok(())
    })
}

#[test]
fn questions_about_objects_and_buckets_are_answered() -> Result<()> {
    let (peer, bucket) = start()?;
    let (one, two) = (target(&bucket, "a/one"), target(&bucket, "a/two"));
    let payload = Payload::new(48, 100_000);
    let mut wire = connect(&peer, &one)?;
    let done = put(&mut wire, &one, &payload, WriteMode::WriteBack)?;
    assert_eq!(done.written_to, WrittenTo::Backend);
    assert_eq!(bucket.get("a/one")?.as_deref(), Some(payload.bytes().as_slice()));
    // An object of another shard is reached over the same connection.
    put(&mut wire, &two, &Payload::new(49, 0), WriteMode::AsyncWriteBack)?;
    assert_eq!(stat(&mut wire, &two)?.meta.length, 0);

    let list = List {
        bucket: bucket.name.clone(),
        prefix: "a/".to_owned(),
        marker: String::new(),
        delimiter: String::new(),
        limit: 1,
    };
    let Message::ListOk(page) = wire.ask(list.clone())? else { bail!("no LIST_OK") };
    let keys = |page: &dfstore_proto::message::ListOk| page.entries.iter().map(|e| e.key.clone()).collect::<Vec<_>>();
    assert_eq!((keys(&page), page.truncated), (vec!["a/one".to_owned()], true));
    let Message::ListOk(page) = wire.ask(List { marker: page.next_marker, ..list })? else { bail!("no LIST_OK") };
    assert_eq!((keys(&page), page.truncated), (vec!["a/two".to_owned()], false));

    let copied = target(&bucket, "b/copy");
    let Message::CopyOk(info) = wire.ask(Copy { source: one.clone(), target: copied.clone(), mode: None })? else {
        bail!("no COPY_OK")
    };
    assert_eq!((info.task, info.meta.length), (copied.task(), payload.length));
    let request = wire.request(Copy { source: target(&bucket, "none"), target: copied.clone(), mode: None })?;
    assert_eq!(wire.refusal(request)?, ErrorCode::NotFound);
    for _ in 0..2 {
        assert_eq!(wire.ask(Delete { target: copied.clone() })?, Message::Done(Done {}));
        assert_absent(&mut wire, &copied)?;
    }
    let name = format!("{}-more", bucket.name);
    assert_eq!(wire.ask(CreateBucket { bucket: name })?, Message::Done(Done {}));

    let info = open(&mut wire, &one)?;
    let request = wire.request(read(&one, &info, 0..2))?;
    assert_eq!(wire.refusal(request)?, ErrorCode::RangeNotSatisfiable);
    let request = wire.request(PutBegin { ack_peers: 2, ..begin(&one, WriteMode::Ephemeral) })?;
    assert_eq!(wire.refusal(request)?, ErrorCode::InvalidArgument);
    let mut queried = one.clone();
    queried.query = "versionId=3".to_owned();
    let request = wire.request(Stat { target: queried, fresh: false })?;
    assert_eq!(wire.refusal(request)?, ErrorCode::Unsupported);
    Ok(())
}

#[test]
fn small_objects_pass_by_the_hundred_over_one_connection() -> Result<()> {
    let (peer, bucket) = start()?;
    let mut wire = Wire::open(peer.address(), Route::Any, 64)?;
    let objects: Vec<_> = (0..100_u64)
        .map(|number| (target(&bucket, &format!("small/{number:03}")), Payload::new(number, 1 + number * 97)))
        .collect();
    for (target, payload) in &objects {
        put(&mut wire, target, payload, WriteMode::Ephemeral)?;
    }
    let mut asked = Vec::new();
    for (target, payload) in &objects {
        let info = open(&mut wire, target)?;
        asked.push((wire.request(read(target, &info, 0..1))?, payload));
    }
    let mut ends = 0;
    while ends < objects.len() {
        match wire.next_arrival()?.context("closed")? {
            Arrival::Piece { request, bytes, .. } => {
                let (_, payload) = asked.iter().find(|(of, _)| *of == request).context("asked for")?;
                assert_eq!(bytes, payload.bytes());
                wire.grant(1)?;
            }
            Arrival::Event(Event::Message { message: Message::ReadEnd(_), .. }) => ends += 1,
            other => bail!("unexpected: {other:?}"),
        }
    }
    Ok(())
}

#[test]
fn a_stopping_peer_finishes_what_is_in_flight_and_says_goodbye() -> Result<()> {
    let (mut peer, bucket) = start()?;
    let target = target(&bucket, "last one");
    let payload = Payload::new(50, 2 * PIECE);
    let mut wire = connect(&peer, &target)?;
    let mut idle = connect(&peer, &target)?;
    let request = wire.request(begin(&target, WriteMode::AsyncWriteBack))?;
    let begun = ready(&mut wire, request)?;
    peer.process().signal(Signal::TERM)?;
    let goodbye = |wire: &mut Wire| -> Result<()> {
        loop {
            match wire.next_arrival()?.context("closed without GO_AWAY")? {
                Arrival::Event(Event::GoAway { reason, .. }) => {
                    assert_eq!(reason.code, ErrorCode::ShuttingDown);
                    return Ok(());
                }
                Arrival::Event(_) => {}
                other => bail!("unexpected: {other:?}"),
            }
        }
    };
    goodbye(&mut idle)?;
    assert_eq!(idle.next_arrival()?, None, "nothing is in flight there");
    goodbye(&mut wire)?;
    for number in 0..2 {
        let (bytes, crc32) = piece(&payload, number);
        wire.piece(request, &begun, number, (&bytes, crc32))?;
    }
    wire.follow(request, commit(&begun, &payload))?;
    assert!(matches!(wire.answer(request)?, Message::PutDone(_)));
    drop(wire);
    let status = peer.process().wait(SOON)?;
    ensure!(status.success(), "{status}");
    peer.restart()?;
    let mut wire = connect(&peer, &target)?;
    let info = open(&mut wire, &target)?;
    let request = wire.request(read(&target, &info, 0..2))?;
    let mut whole = WholeCrc::new();
    for (number, _) in [(0, ()), (1, ())] {
        whole.append(piece(&payload, number).1, PIECE);
    }
    assert_eq!(info.crc32, Some(whole.value()));
    assert_eq!(receive(&mut wire, request, &payload)?.0, 2);
    Ok(())
}
