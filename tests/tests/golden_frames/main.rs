//! The bytes of every frame, as they were when their version was written, and the examples in `PROTOCOL.md`.
//!
//! The frames in `tests/golden/frames/` are the truth: this test encodes the same messages and compares. It also
//! keeps the seed corpus of the fuzz target `decoder` and the tables of the specification in step with the code.
//! `DFSTORE_BLESS=1 cargo test --workspace --test golden_frames` writes the files anew.

mod cluster;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::BytesMut;
use dfstore_proto::decoder::{Decoder, Frame};
use dfstore_proto::error::{ErrorCode, ErrorReply};
use dfstore_proto::frame::{FrameLimits, PieceHead, RequestId};
use dfstore_proto::ids::{ObjectName, TaskId};
use dfstore_proto::message::{
    Cancel, Copy, CreateBucket, Credit, Delete, Done, FrameType, GoAway, Hello, HelloAck, List, ListEntry, ListPage,
    Message, Open, PieceAck, Ping, PutAbort, PutBegin, PutCommit, PutDone, PutJoin, PutLeave, PutReady, Read, ReadEnd,
    Role, Route, Stat, Target, Token, VersionInfo, VersionState, WrittenTo,
};
use dfstore_proto::object::{ObjectMeta, Source, WriteMode};
use dfstore_proto::preface::{self, Versions};
use dfstore_proto::{crc, limits};

const GUIDE: &str = "The bytes on the wire have changed. Peers and clients that are out there speak the old ones. Fields \
    are only ever appended, as a new section (see proto/src/wire.rs): if that is what you did, raise VERSION_MAX in \
    proto/src/limits.rs and describe it in proto/PROTOCOL.md under `Versions`; for any other change raise VERSION_MIN \
    too. Then write the golden files anew with DFSTORE_BLESS=1 and correct the examples in proto/PROTOCOL.md.";

const GENERATION: u64 = 1_795_305_600_000_000;
/// Three pieces of 4 MiB, the last of nine bytes.
const LENGTH: u64 = (8 << 20) + 9;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the folder above tests/").to_path_buf()
}

fn target() -> Target {
    Target::new(ObjectName::new("models", "llm/weights.bin"))
}

fn task() -> TaskId {
    target().task()
}

fn meta() -> ObjectMeta {
    ObjectMeta {
        length: LENGTH,
        etag: "\"9b2cf535f27731c974343645a3985328\"".into(),
        last_modified_ms: 1_795_305_600_123,
        content_type: "application/octet-stream".into(),
        content_encoding: "gzip".into(),
        content_disposition: "attachment".into(),
        content_language: "en".into(),
        storage_class: "STANDARD".into(),
        digest: "crc32:cbf43926".into(),
    }
}

fn version(state: VersionState, source: Source, crc32: Option<u32>) -> VersionInfo {
    VersionInfo {
        task: task(),
        generation: GENERATION,
        meta: meta(),
        piece_bytes: 4 << 20,
        state,
        source,
        crc32,
        pieces_local: 3,
    }
}

fn hello() -> Hello {
    Hello {
        versions: Versions { min: 1, max: 1 },
        role: Role::Client,
        route: Route::Task(task()),
        token: Token::new("s3cret"),
        agent: "dfstore/0.1.0".into(),
        piece_bytes_max: 4 << 20,
        credits: 8,
    }
}

fn hello_ack() -> HelloAck {
    HelloAck {
        version: 1,
        node: "peer-1".into(),
        agent: "dfstore-peer/0.1.0".into(),
        shards: 4,
        shard: 2,
        piece_bytes: 4 << 20,
        piece_bytes_max: 4 << 20,
        requests_max: 256,
        credits: 4,
    }
}

fn about_connection() -> Vec<(&'static str, u64, Message)> {
    let busy = ErrorReply::new(ErrorCode::Busy, "too many uploads on peer-1: try again in 2 s")
        .with_detail("memory budget 1 GiB in use")
        .with_retry_after_ms(2000);
    let mut newer_code = ErrorReply::new(ErrorCode::Unknown(1999), "of a later version");
    newer_code.retry_after_ms = None;
    let go_away = GoAway { code: ErrorCode::ShuttingDown, message: "peer-1 is stopping".into(), last_request: 41 };
    vec![
        ("hello", 0, hello().into()),
        ("hello_peer", 0, Hello { role: Role::Peer, route: Route::Shard(3), ..hello() }.into()),
        ("hello_any", 0, Hello { route: Route::Any, token: Token::default(), credits: 0, ..hello() }.into()),
        ("hello_ack", 0, hello_ack().into()),
        ("error", 7, busy.into()),
        ("error_unknown", 7, newer_code.into()),
        ("done", 7, Done {}.into()),
        ("ping", 0, Message::Ping(Ping { nonce: 0x0102_0304_0506_0708 })),
        ("pong", 0, Message::Pong(Ping { nonce: 0x0102_0304_0506_0708 })),
        ("credit", 0, Credit { pieces: 4 }.into()),
        ("go_away", 0, go_away.into()),
        ("cancel", 7, Cancel {}.into()),
    ]
}

fn about_objects() -> Vec<(&'static str, u64, Message)> {
    let mut page = ListPage::new(2);
    let entry = ListEntry {
        key: "llm/config.json".into(),
        length: 1234,
        etag: "\"e\"".into(),
        last_modified_ms: 1_795_305_600_123,
        storage_class: "STANDARD".into(),
        state: VersionState::Clean,
    };
    assert!(page.push_entry(entry) && page.push_common_prefix("llm/shards/".into()));
    let queried = Target { query: "versionId=3&Signature=x".into(), filter: "Expires&Signature".into(), ..target() };
    let list = List {
        bucket: "models".into(),
        prefix: "llm/".into(),
        marker: "llm/a".into(),
        delimiter: "/".into(),
        limit: 2,
    };
    let copy = Copy {
        source: target(),
        target: Target::new(ObjectName::new("models", "llm/copy.bin")),
        mode: Some(WriteMode::WriteBack),
    };
    vec![
        ("stat", 1, Stat { target: queried, fresh: true }.into()),
        ("stat_ok", 1, Message::StatOk(version(VersionState::Dirty, Source::Pending, Some(0xCBF4_3926)))),
        ("list", 3, list.into()),
        ("list_ok", 3, page.finish(true).into()),
        ("delete", 5, Delete { target: target() }.into()),
        ("copy", 7, copy.into()),
        ("copy_ok", 7, Message::CopyOk(version(VersionState::Clean, Source::Backend, None))),
        ("create_bucket", 9, CreateBucket { bucket: "models".into() }.into()),
    ]
}

fn about_reads_and_writes() -> Vec<(&'static str, u64, Message)> {
    let read = Read { target: target(), generation: GENERATION, first_piece: 1, piece_count: 2 };
    let mut read_end = ReadEnd::default();
    read_end.count(Source::Local, 4 << 20);
    read_end.count(Source::Backend, 9);
    let put_begin = PutBegin {
        target: target(),
        length: Some(LENGTH),
        mode: WriteMode::Ephemeral,
        max_replicas: 3,
        ack_peers: 1,
        meta: meta(),
    };
    let put_ready =
        PutReady { upload: 77, task: task(), generation: GENERATION, piece_bytes: 4 << 20, window_pieces: 4 };
    let put_done =
        PutDone { generation: GENERATION, etag: "\"e\"".into(), written_to: WrittenTo::Backend, replicas: 2 };
    vec![
        ("open", 11, Open { target: target(), no_cache: false }.into()),
        ("open_ok", 11, Message::OpenOk(version(VersionState::Ephemeral, Source::Local, Some(0)))),
        ("read", 13, read.into()),
        ("read_end", 13, read_end.into()),
        ("put_begin", 15, put_begin.into()),
        ("put_ready", 15, put_ready.into()),
        ("put_join", 17, PutJoin { task: task(), upload: 77 }.into()),
        ("put_leave", 17, PutLeave {}.into()),
        ("piece_ack", 15, PieceAck { number: 2 }.into()),
        ("put_commit", 15, PutCommit { upload: 77, length: LENGTH, crc32: 0xCBF4_3926, pieces: 3 }.into()),
        ("put_done", 15, put_done.into()),
        ("put_abort", 15, PutAbort {}.into()),
    ]
}

fn messages() -> Vec<(&'static str, u64, Message)> {
    [about_connection(), about_objects(), about_reads_and_writes(), cluster::messages()].concat()
}

fn piece() -> (PieceHead, &'static [u8]) {
    let raw = b"123456789";
    let crc32 = crc32fast::hash(raw);
    let head = PieceHead { task: task(), generation: GENERATION, offset: 8 << 20, number: 2, length: 9, crc32 };
    (head, raw)
}

/// Every frame by name, plus the preface and a piece.
fn encoded() -> BTreeMap<&'static str, Vec<u8>> {
    let mut frames = BTreeMap::new();
    for (name, request, message) in messages() {
        let mut out = BytesMut::new();
        message.encode(RequestId(request), &mut out).expect("golden messages are within bounds");
        assert!(frames.insert(name, out.to_vec()).is_none(), "{name} twice");
    }
    let (head, raw) = piece();
    frames.insert("piece", [&head.frame(RequestId(13))[..], raw].concat());
    frames.insert("preface", preface::encode(Versions { min: 1, max: 1 }).to_vec());
    frames.insert("preface_2", preface::encode(Versions { min: 1, max: 2 }).to_vec());
    frames
}

fn to_hex(bytes: &[u8]) -> String {
    let rows = bytes.chunks(16).map(|row| row.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "));
    rows.map(|row| row + "\n").collect()
}

/// Bytes of a hex text. What follows a semicolon is a remark.
fn from_hex(text: &str) -> Vec<u8> {
    text.lines()
        .flat_map(|line| line.split(';').next().unwrap_or(line).split_whitespace())
        .map(|byte| u8::from_str_radix(byte, 16).expect("two hex digits"))
        .collect()
}

fn blessing() -> bool {
    std::env::var_os("DFSTORE_BLESS").is_some()
}

#[test]
fn every_frame_is_its_golden_bytes() {
    let folder = repository().join("tests/golden/frames");
    let frames = encoded();
    if blessing() {
        for (name, bytes) in &frames {
            std::fs::write(folder.join(name).with_extension("hex"), to_hex(bytes)).expect("golden folder is writable");
        }
    }
    for (name, bytes) in &frames {
        let path = folder.join(name).with_extension("hex");
        let golden = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(to_hex(bytes), to_hex(&from_hex(&golden)), "{name}\n{GUIDE}");
    }
    let files = std::fs::read_dir(&folder).expect("golden folder").count();
    assert_eq!(files, frames.len(), "a golden file without a frame: what was sent once must stay readable\n{GUIDE}");
}

#[test]
fn every_frame_type_has_a_golden_frame() {
    let mut missing: Vec<FrameType> = FrameType::ALL.to_vec();
    missing.retain(|&kind| kind != FrameType::Piece && !messages().iter().any(|(_, _, m)| m.frame_type() == kind));
    assert_eq!(missing, []);
}

#[test]
fn golden_bytes_decode_to_their_messages() {
    let frames = encoded();
    let limits = FrameLimits { control_bytes_max: limits::CONTROL_BYTES_MAX, piece_bytes_max: limits::PIECE_BYTES_MAX };
    for (name, number, expected) in messages() {
        let mut input = &frames[name][..];
        let frame = Decoder::new(limits).push(&mut input);
        assert_eq!(frame, Ok(Some(Frame::Message { request: RequestId(number), message: expected })), "{name}");
        assert!(input.is_empty(), "{name}");
    }
    let mut decoder = Decoder::new(limits);
    let mut input = &frames["piece"][..];
    let (head, raw) = piece();
    assert_eq!(decoder.push(&mut input), Ok(Some(Frame::Piece { request: RequestId(13), head })));
    assert_eq!(decoder.take_raw(&mut input), raw);
}

#[test]
fn fuzz_corpus_holds_every_golden_frame() {
    let folder = repository().join("proto/fuzz/corpus/decoder");
    for (name, bytes) in encoded() {
        let path = folder.join(name).with_extension("bin");
        if blessing() {
            std::fs::create_dir_all(&folder).expect("corpus folder is writable");
            std::fs::write(&path, &bytes).expect("corpus folder is writable");
        }
        let seed = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(seed, bytes, "{name}: write the corpus anew with DFSTORE_BLESS=1");
    }
}

fn specification() -> String {
    std::fs::read_to_string(repository().join("proto/PROTOCOL.md")).expect("proto/PROTOCOL.md is there")
}

#[test]
fn examples_of_the_specification_are_golden_bytes() {
    let text = specification();
    let frames = encoded();
    let mut examples = 0;
    for block in text.split("```hex ").skip(1) {
        let (name, rest) = block.split_once('\n').expect("a name after ```hex");
        let (hex, _) = rest.split_once("```").expect("the block ends");
        let golden = frames.get(name.trim()).unwrap_or_else(|| panic!("no golden frame `{name}`"));
        assert_eq!(to_hex(&from_hex(hex)), to_hex(golden), "proto/PROTOCOL.md, example `{name}`\n{GUIDE}");
        examples += 1;
    }
    assert!(examples >= 6, "only {examples} worked examples");
}

/// The cells of every table row of the specification.
fn table_rows() -> Vec<Vec<String>> {
    let rows = specification();
    let rows = rows.lines().filter(|line| line.starts_with("| "));
    rows.map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect()).collect()
}

#[test]
fn specification_lists_every_frame_type_and_error_code() {
    let rows = table_rows();
    for kind in FrameType::ALL {
        let number = format!("0x{:02X}", kind.number());
        let listed = rows.iter().filter(|row| row[0] == number && row[1] == kind.name()).count();
        assert_eq!(listed, 1, "{number} {} in a table of proto/PROTOCOL.md", kind.name());
    }
    for code in ErrorCode::ALL {
        let retryable = if code.is_retryable() { "yes" } else { "no" };
        let number = code.number().to_string();
        let listed = rows.iter().any(|row| row[0] == number && row[1] == code.name() && row[2] == retryable);
        assert!(listed, "{number} {} ({retryable}) in the table of errors in proto/PROTOCOL.md", code.name());
    }
}

#[test]
fn specification_states_the_limits_of_the_code() {
    let rows = table_rows();
    let stated = |name: &str| {
        let row = rows.iter().find(|row| row[0] == name).unwrap_or_else(|| panic!("{name} in proto/PROTOCOL.md"));
        row[1].replace(' ', "").parse::<u64>().unwrap_or_else(|_| panic!("{name}: a number, not {}", row[1]))
    };
    macro_rules! check {
        ($($name:ident)*) => { $(
            let actual = u64::try_from(limits::$name).expect("limits are not negative");
            assert_eq!(stated(stringify!($name)), actual, stringify!($name));
        )* };
    }
    check!(CONTROL_BYTES_MAX HELLO_BYTES_MAX PIECE_BYTES_MAX REQUESTS_MAX CREDITS_MAX OBJECT_BYTES_MAX KEY_BYTES_MAX
        BUCKET_BYTES_MAX QUERY_BYTES_MAX ATTRIBUTE_BYTES_MAX ETAG_BYTES_MAX TOKEN_BYTES_MAX NAME_BYTES_MAX
        ERROR_MESSAGE_BYTES_MAX ERROR_DETAIL_BYTES_MAX LIST_ENTRIES_MAX DELIMITER_BYTES_MAX SOURCES_MAX SHARDS_MAX
        SESSION_TOKEN_BYTES_MAX ADDRESS_BYTES_MAX RUNS_MAX RUNS_SHOWN_MAX PARENTS_MAX SUGGESTED_MAX COUNTS_MAX
        BOOTSTRAP_MAX NODES_MAX);
}

#[test]
fn the_piece_in_the_examples_has_the_well_known_checksum() {
    // CRC-32/ISO-HDLC of the nine digits, the check value of every catalogue of CRCs.
    assert_eq!(piece().0.crc32, 0xCBF4_3926);
    let pieces = b"123456789".chunks(4).map(crc32fast::hash);
    assert_eq!(crc::whole_crc32(9, 4, pieces), 0xCBF4_3926);
}
