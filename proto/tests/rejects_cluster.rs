//! Bounds of the messages that version 2 added: what is refused when read and when written, and that the largest that
//! is allowed fits a frame.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use bytes::BytesMut;
use dfstore_proto::decoder::{Decoder, Frame};
use dfstore_proto::error::{DecodeError, EncodeError, FieldError};
use dfstore_proto::frame::{FrameLimits, RequestId};
use dfstore_proto::ids::{ObjectName, TaskId};
use dfstore_proto::limits::{
    ADDRESS_BYTES_MAX, ATTRIBUTE_BYTES_MAX, BOOTSTRAP_MAX, BUCKET_BYTES_MAX, CONTROL_BYTES_MAX, COUNTS_MAX,
    ETAG_BYTES_MAX, KEY_BYTES_MAX, LIST_ENTRIES_MAX, NAME_BYTES_MAX, NODES_MAX, OBJECT_BYTES_MAX, PARENTS_MAX,
    QUERY_BYTES_MAX, RUNS_MAX, RUNS_SHOWN_MAX, SESSION_TOKEN_BYTES_MAX, SUGGESTED_MAX, TOKEN_BYTES_MAX,
};
use dfstore_proto::message::{
    BackendConfig, ConfigOk, Duty, Fetch, FrameType, Holder, HolderInfo, KnownVersion, ListEntry, Locate, Message,
    NodeFailure, NodeInfo, NodeRole, NodesOk, PendingOk, PendingPage, PieceRuns, Publish, PublishOk, Published,
    Recalled, Reserved, Standing, Target, Token, Track, Tracked, VersionInfo, VersionRecord, VersionState, WhereOk,
    Worked,
};
use dfstore_proto::object::{ObjectMeta, PieceRun, Source};
use dfstore_proto::wire;

fn run(first: u32, count: u32) -> PieceRun {
    PieceRun { first, count }
}

/// A full list of runs with the longest numbers.
fn full_runs() -> PieceRuns {
    let base = u32::MAX - 2 * u32::try_from(RUNS_MAX).unwrap();
    PieceRuns::new((0..u32::try_from(RUNS_MAX).unwrap()).map(|index| run(base + 2 * index, 1)))
}

fn name() -> String {
    "n".repeat(NAME_BYTES_MAX)
}

fn names() -> Vec<String> {
    vec![name(); PARENTS_MAX]
}

fn target() -> Target {
    Target {
        object: ObjectName::new("b".repeat(BUCKET_BYTES_MAX), "k".repeat(KEY_BYTES_MAX)),
        query: "q".repeat(QUERY_BYTES_MAX),
        filter: "f".repeat(QUERY_BYTES_MAX),
    }
}

fn meta() -> ObjectMeta {
    let text = || "t".repeat(ATTRIBUTE_BYTES_MAX);
    ObjectMeta {
        length: OBJECT_BYTES_MAX,
        etag: "e".repeat(ETAG_BYTES_MAX),
        last_modified_ms: u64::MAX,
        content_type: text(),
        content_encoding: text(),
        content_disposition: text(),
        content_language: text(),
        storage_class: text(),
        digest: text(),
    }
}

fn record() -> VersionRecord {
    VersionRecord {
        generation: u64::MAX,
        kind: Published::Deleted,
        meta: meta(),
        crc32: Some(u32::MAX),
        piece_bytes: 4 << 20,
        replicas: u16::MAX,
    }
}

fn info() -> VersionInfo {
    VersionInfo {
        task: TaskId::from_bytes([7; 32]),
        generation: u64::MAX,
        meta: meta(),
        piece_bytes: 4 << 20,
        state: VersionState::Dirty,
        source: Source::Stale,
        crc32: Some(u32::MAX),
        pieces_local: u32::MAX,
    }
}

fn publish() -> Publish {
    Publish {
        target: target(),
        version: record(),
        duty: Duty::Replicate,
        node: name(),
        whole: true,
        holders: names(),
        wait_replicas: u16::MAX,
    }
}

fn track() -> Track {
    Track {
        task: TaskId::from_bytes([7; 32]),
        generation: u64::MAX,
        node: name(),
        have: full_runs(),
        fetching: full_runs(),
        uploads: u32::MAX,
        window: run(u32::MAX - 256, 256),
    }
}

fn tracked() -> Tracked {
    Tracked {
        parents: vec![Holder { node: name(), have: full_runs(), uploads: u32::MAX }; PARENTS_MAX],
        counts: vec![u8::MAX; COUNTS_MAX],
        suggested: vec![u32::MAX - 1; SUGGESTED_MAX],
        again_ms: u32::MAX,
    }
}

fn node() -> NodeInfo {
    NodeInfo {
        id: name(),
        role: NodeRole::Seed,
        peer: "a".repeat(ADDRESS_BYTES_MAX),
        api: "a".repeat(ADDRESS_BYTES_MAX),
        version: name(),
        started_us: u64::MAX,
        shards: u16::MAX,
        capacity_bytes: u64::MAX,
        used_bytes: u64::MAX,
        dirty_bytes: u64::MAX,
        load: u32::MAX,
        live: true,
    }
}

fn where_ok() -> WhereOk {
    let runs = (0..u32::try_from(RUNS_SHOWN_MAX).unwrap()).map(|index| run(u32::MAX - 64 + 2 * index, 1)).collect();
    let holder = HolderInfo { node: name(), pieces: u32::MAX, runs };
    WhereOk { info: info(), homes: names(), holders: vec![holder; NODES_MAX], replicas_wanted: u16::MAX }
}

fn config() -> ConfigOk {
    let backend = BackendConfig {
        provider: name(),
        region: name(),
        endpoint: "u".repeat(ATTRIBUTE_BYTES_MAX),
        access_key: Token::new("s".repeat(TOKEN_BYTES_MAX)),
        secret_key: Token::new("s".repeat(TOKEN_BYTES_MAX)),
        session_token: Token::new("s".repeat(SESSION_TOKEN_BYTES_MAX)),
        path_style: true,
    };
    ConfigOk { backend, bootstrap: vec!["a".repeat(ADDRESS_BYTES_MAX); BOOTSTRAP_MAX] }
}

fn largest() -> Vec<Message> {
    let locate = Locate {
        target: target(),
        no_cache: true,
        known: Some(KnownVersion { generation: u64::MAX, etag: "e".repeat(ETAG_BYTES_MAX), length: OBJECT_BYTES_MAX }),
    };
    let publish_ok = PublishOk {
        standing: Standing::Superseded,
        generation: u64::MAX,
        state: VersionState::Dirty,
        meta: meta(),
        replicas: u16::MAX,
        replicas_wanted: u16::MAX,
    };
    let nodes = NodesOk { cluster: name(), me: name(), nodes: vec![node(); NODES_MAX], truncated: true };
    let failures = vec![NodeFailure::new(name(), "m".repeat(NAME_BYTES_MAX + 9)); NODES_MAX];
    vec![
        locate.into(),
        Message::Located(info()),
        Recalled { version: Some(record()), whole: true, holders: names() }.into(),
        track().into(),
        tracked().into(),
        publish().into(),
        publish_ok.into(),
        config().into(),
        where_ok().into(),
        nodes.into(),
        Worked { nodes: u32::MAX, bytes: u64::MAX, failures }.into(),
    ]
}

fn decode(bytes: &[u8]) -> Result<Option<Frame>, DecodeError> {
    let limits = FrameLimits { control_bytes_max: CONTROL_BYTES_MAX, piece_bytes_max: 0 };
    Decoder::new(limits).push(&mut &bytes[..])
}

/// The payload as a frame with valid checksums.
fn frame(frame_type: FrameType, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 24];
    bytes[0..4].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    bytes[4] = frame_type.number();
    bytes[8] = 1;
    bytes[16..20].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
    let checksum = crc32fast::hash(&bytes[..20]);
    bytes[20..24].copy_from_slice(&checksum.to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

#[test]
fn the_largest_messages_fit_a_frame_and_come_back() {
    for message in largest() {
        let name = message.frame_type().name();
        let mut out = BytesMut::new();
        message.encode(RequestId(1), &mut out).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(decode(&out), Ok(Some(Frame::Message { request: RequestId(1), message })), "{name}");
    }
}

#[test]
fn messages_cut_anywhere_are_refused() {
    for message in largest() {
        let mut out = BytesMut::new();
        message.encode(RequestId(1), &mut out).unwrap();
        let payload = &out[24..];
        let step = (payload.len() / 200).max(1);
        for cut in (0..payload.len()).step_by(step) {
            let error = decode(&frame(message.frame_type(), &payload[..cut])).unwrap_err();
            assert_eq!(error, DecodeError::BadPayload(message.frame_type().number()), "cut at {cut}");
        }
    }
}

/// What both sides must refuse, and the field that is at fault.
fn refused() -> Vec<(Message, &'static str)> {
    let version = |change: fn(&mut VersionRecord)| {
        let mut publish = publish();
        change(&mut publish.version);
        Message::from(publish)
    };
    let known = KnownVersion { generation: 0, etag: String::new(), length: 0 };
    let short = Target::new(ObjectName::new("b", "k"));
    let fetch = Fetch { task: TaskId::from_bytes([7; 32]), generation: 1, number: u32::MAX, local_only: false };
    let unnamed = HolderInfo { node: String::new(), pieces: 0, runs: Vec::new() };
    let overlapping = HolderInfo { node: name(), pieces: 4, runs: vec![run(0, 3), run(2, 1)] };
    let nowhere = || Recalled { version: Some(VersionRecord { generation: 0, ..record() }), ..Recalled::default() };
    let written = ListEntry {
        key: "k".into(),
        length: 0,
        etag: String::new(),
        last_modified_ms: 0,
        storage_class: String::new(),
        state: VersionState::Dirty,
    };
    let too_many =
        PendingOk { written: vec![written], deleted: vec!["k".into(); LIST_ENTRIES_MAX], ..PendingOk::default() };
    vec![
        (Locate { target: short.clone(), no_cache: false, known: Some(known) }.into(), "generation"),
        (nowhere().into(), "generation"),
        (Recalled { holders: vec![String::new()], ..Recalled::default() }.into(), "holders"),
        (Recalled { holders: vec![name(); PARENTS_MAX + 1], ..Recalled::default() }.into(), "holders"),
        (Track { node: String::new(), ..track() }.into(), "node"),
        (Track { window: run(0, u32::try_from(COUNTS_MAX).unwrap() + 1), ..track() }.into(), "window"),
        (Track { window: run(u32::MAX, 1), ..track() }.into(), "window"),
        (Track { have: PieceRuns::new([run(5, 1), run(0, 1)]), ..track() }.into(), "have"),
        (Track { have: PieceRuns::new([run(5, 3), run(7, 1)]), ..track() }.into(), "have"),
        (Track { fetching: PieceRuns::new([run(u32::MAX, 1)]), ..track() }.into(), "fetching"),
        (Tracked { suggested: vec![u32::MAX], ..tracked() }.into(), "suggested"),
        (Tracked { counts: vec![0; COUNTS_MAX + 1], ..tracked() }.into(), "counts"),
        (fetch.into(), "number"),
        (Reserved { generation: 0 }.into(), "generation"),
        (version(|version| (version.generation, version.kind) = (0, Published::Clean)), "generation"),
        (version(|version| version.piece_bytes = 0), "piece_bytes"),
        (version(|version| version.piece_bytes = 1), "piece_bytes"),
        (version(|version| version.meta.length += 1), "length"),
        (Publish { node: String::new(), ..publish() }.into(), "node"),
        (Publish { holders: vec![name(); PARENTS_MAX + 1], ..publish() }.into(), "holders"),
        (too_many.into(), "written"),
        (PendingOk { deleted: vec![String::new()], ..PendingOk::default() }.into(), "deleted"),
        (ConfigOk { bootstrap: vec![String::new()], ..config() }.into(), "bootstrap"),
        (WhereOk { homes: vec![String::new()], ..where_ok() }.into(), "homes"),
        (WhereOk { holders: vec![unnamed], ..where_ok() }.into(), "node"),
        (WhereOk { holders: vec![overlapping], ..where_ok() }.into(), "runs"),
        (NodesOk { nodes: vec![NodeInfo { id: String::new(), ..node() }], ..NodesOk::default() }.into(), "id"),
        (Worked { failures: vec![NodeFailure::new("", "why")], ..Worked::default() }.into(), "node"),
    ]
}

#[test]
fn fields_out_of_bounds_are_refused_and_leave_nothing_written() {
    for (message, at_fault) in refused() {
        let mut out = BytesMut::new();
        let error = message.encode(RequestId(1), &mut out).expect_err(at_fault);
        let EncodeError::Field(
            FieldError::TooLong { field, .. } | FieldError::Empty(field) | FieldError::Invalid(field),
        ) = error
        else {
            panic!("{at_fault}: {error}")
        };
        assert_eq!((field, out.len()), (at_fault, 0), "{}", message.frame_type().name());
    }
}

/// A payload that this crate would not write, and what reading it must give.
fn assert_read_refused(frame_type: FrameType, section: &impl serde::Serialize, at_fault: &str) {
    let mut payload = BytesMut::new();
    assert!(wire::append_section(section, &mut payload, CONTROL_BYTES_MAX as usize));
    match decode(&frame(frame_type, &payload)) {
        Err(DecodeError::Field {
            error: FieldError::TooLong { field, .. } | FieldError::Empty(field) | FieldError::Invalid(field),
            ..
        }) => assert_eq!(field, at_fault),
        Err(DecodeError::BadPayload(number)) => assert_eq!((number, at_fault), (frame_type.number(), "payload")),
        other => panic!("{}: {other:?}", frame_type.name()),
    }
}

#[test]
fn fields_out_of_bounds_are_refused_when_they_come() {
    let task = TaskId::from_bytes([7; 32]);
    let none: Vec<PieceRun> = Vec::new();
    let tracks = |have: Vec<PieceRun>, window: PieceRun| (task, 1_u64, "n", have, none.clone(), 0_u32, window);
    assert_read_refused(FrameType::Track, &tracks(vec![run(3, 0)], run(0, 1)), "have");
    assert_read_refused(FrameType::Track, &tracks(vec![run(3, 1), run(3, 1)], run(0, 1)), "have");
    assert_read_refused(FrameType::Track, &tracks(vec![run(u32::MAX, u32::MAX)], run(0, 1)), "have");
    assert_read_refused(FrameType::Track, &tracks(Vec::new(), run(u32::MAX, 256)), "window");
    assert_read_refused(FrameType::Track, &tracks(vec![run(0, 1); RUNS_MAX + 1], run(0, 1)), "payload");
    assert_read_refused(FrameType::Fetch, &(task, 1_u64, u32::MAX, true), "number");
    assert_read_refused(FrameType::Reserved, &0_u64, "generation");
    assert_read_refused(FrameType::Nodes, &"n".repeat(NAME_BYTES_MAX + 1), "after");
    assert_read_refused(FrameType::Worked, &(1_u32, 1_u64, vec![("n", "m"); NODES_MAX + 1]), "payload");
    // A duty, a role, a kind and a scope that do not exist.
    let target = ("b", "k", "", "");
    assert_read_refused(FrameType::Prefetch, &(target, 2_u8), "payload");
    assert_read_refused(FrameType::Recalled, &(1_u8, 1_u64, 5_u8), "payload");
}

#[test]
fn counts_that_are_not_true_take_no_memory() {
    let huge = [0xFF, 0xFF, 0xFF, 0xFF, 0x0F];
    for kind in [FrameType::Tracked, FrameType::PendingOk] {
        let limits = FrameLimits { control_bytes_max: CONTROL_BYTES_MAX, piece_bytes_max: 0 };
        let mut decoder = Decoder::new(limits);
        let bytes = frame(kind, &huge);
        assert_eq!(decoder.push(&mut &bytes[..]), Err(DecodeError::BadPayload(kind.number())));
        assert_eq!(decoder.memory_bytes(), 0);
    }
}

#[test]
fn a_full_page_of_pending_objects_always_fits_a_frame() {
    let entry = |index: usize| ListEntry {
        key: format!("{index:01024}"),
        length: OBJECT_BYTES_MAX,
        etag: "e".repeat(ETAG_BYTES_MAX),
        last_modified_ms: u64::MAX,
        storage_class: "STANDARD".into(),
        state: VersionState::Dirty,
    };
    let mut page = PendingPage::new();
    let push = |page: &mut PendingPage, index: usize| match index % 2 {
        0 => page.push_written(entry(index)),
        _ => page.push_deleted(format!("{index:01024}")),
    };
    let taken = (0..LIST_ENTRIES_MAX).take_while(|&index| push(&mut page, index)).count();
    assert!((40..LIST_ENTRIES_MAX).contains(&taken), "{taken} objects");
    let page = page.finish(true);
    assert_eq!((page.written.len() + page.deleted.len(), &page.next_marker), (taken, &format!("{:01024}", taken - 1)));
    Message::from(page).encode(RequestId(1), &mut BytesMut::new()).unwrap();
    let mut short = PendingPage::new();
    let taken = (0..).take_while(|index| short.push_deleted(format!("{index}"))).count();
    assert_eq!(taken, LIST_ENTRIES_MAX);
    assert_eq!(short.finish(false).next_marker, "");
}

#[test]
fn secrets_are_not_shown() {
    let shown = format!("{:?}", Message::from(config()));
    assert!(!shown.contains("sss") && shown.contains("hidden"), "a secret in a log");
}

#[test]
fn a_deletion_may_leave_its_number_to_the_home() {
    let mut deletion = publish();
    deletion.version.generation = 0;
    assert_eq!(Message::from(deletion).encode(RequestId(1), &mut BytesMut::new()), Ok(()));
}
