//! Strategies for every message that may be sent, up to the bounds of its fields.

mod cluster;

use dfstore_proto::error::{ErrorCode, ErrorReply};
use dfstore_proto::ids::{ObjectName, TaskId};
use dfstore_proto::limits::{
    ATTRIBUTE_BYTES_MAX, BUCKET_BYTES_MAX, CREDITS_MAX, ETAG_BYTES_MAX, KEY_BYTES_MAX, NAME_BYTES_MAX,
    OBJECT_BYTES_MAX, PIECE_BYTES_MAX, QUERY_BYTES_MAX, REQUESTS_MAX, SHARDS_MAX, TOKEN_BYTES_MAX,
};
use dfstore_proto::message::{
    Cancel, Copy, CreateBucket, Credit, Delete, Done, GoAway, Hello, HelloAck, List, ListEntry, ListOk, Message, Open,
    PieceAck, Ping, PutAbort, PutBegin, PutCommit, PutDone, PutJoin, PutLeave, PutReady, Read, ReadEnd, Role, Route,
    SourceCount, Stat, Target, Token, VersionInfo, VersionState, WrittenTo,
};
use dfstore_proto::object::{ObjectMeta, Source, WriteMode};
use dfstore_proto::preface::Versions;
use proptest::prelude::{BoxedStrategy, Just, Strategy, any, prop_oneof};

/// Any message.
pub fn message() -> BoxedStrategy<Message> {
    prop_oneof![
        about_connection(),
        about_objects(),
        about_reads(),
        about_writes(),
        cluster::between_peers(),
        cluster::of_people(),
        cluster::of_queue(),
    ]
    .boxed()
}

/// Short texts of any characters, and the longest that is allowed.
pub(crate) fn text(bytes_max: usize) -> BoxedStrategy<String> {
    let short = proptest::collection::vec(any::<char>(), 0..8).prop_map(|chars| chars.into_iter().collect());
    prop_oneof![8 => short, 1 => Just("k".repeat(bytes_max)), 1 => Just("../%2F\0\\//".to_string())].boxed()
}

pub(crate) fn filled(bytes_max: usize) -> BoxedStrategy<String> {
    text(bytes_max).prop_map(|text| if text.is_empty() { "x".into() } else { text }).boxed()
}

pub fn task() -> impl Strategy<Value = TaskId> {
    any::<[u8; 32]>().prop_map(TaskId::from_bytes)
}

pub(crate) fn target() -> impl Strategy<Value = Target> {
    let object = (filled(BUCKET_BYTES_MAX), filled(KEY_BYTES_MAX)).prop_map(|(b, k)| ObjectName::new(b, k));
    (object, text(QUERY_BYTES_MAX), text(QUERY_BYTES_MAX)).prop_map(|(object, query, filter)| Target {
        object,
        query,
        filter,
    })
}

pub(crate) fn mode() -> impl Strategy<Value = WriteMode> {
    prop_oneof![Just(WriteMode::AsyncWriteBack), Just(WriteMode::WriteBack), Just(WriteMode::Ephemeral)]
}

pub(crate) fn state() -> impl Strategy<Value = VersionState> {
    prop_oneof![Just(VersionState::Clean), Just(VersionState::Dirty), Just(VersionState::Ephemeral)]
}

pub(crate) fn source() -> impl Strategy<Value = Source> {
    prop_oneof![
        Just(Source::Local),
        Just(Source::Peer),
        Just(Source::Seed),
        Just(Source::Backend),
        Just(Source::Pending),
        Just(Source::Stale)
    ]
}

pub(crate) fn meta() -> impl Strategy<Value = ObjectMeta> {
    let texts = proptest::collection::vec(text(ATTRIBUTE_BYTES_MAX), 6);
    (0..=OBJECT_BYTES_MAX, text(ETAG_BYTES_MAX), any::<u64>(), texts).prop_map(|(length, etag, at, mut texts)| {
        let mut text = || texts.pop().unwrap();
        ObjectMeta {
            length,
            etag,
            last_modified_ms: at,
            content_type: text(),
            content_encoding: text(),
            content_disposition: text(),
            content_language: text(),
            storage_class: text(),
            digest: text(),
        }
    })
}

pub(crate) fn version() -> impl Strategy<Value = VersionInfo> {
    let numbers = (any::<u64>(), 4096..=PIECE_BYTES_MAX, any::<Option<u32>>(), any::<u32>());
    (task(), meta(), state(), source(), numbers).prop_map(|(task, meta, state, source, numbers)| VersionInfo {
        task,
        generation: numbers.0,
        meta,
        piece_bytes: numbers.1,
        state,
        source,
        crc32: numbers.2,
        pieces_local: numbers.3,
    })
}

fn hello() -> impl Strategy<Value = Message> {
    let role = prop_oneof![Just(Role::Client), Just(Role::Peer)];
    let route = prop_oneof![Just(Route::Any), task().prop_map(Route::Task), any::<u16>().prop_map(Route::Shard)];
    let texts = (text(TOKEN_BYTES_MAX), text(NAME_BYTES_MAX));
    let intake = (1..=PIECE_BYTES_MAX, 0..=CREDITS_MAX);
    (role, route, texts, intake, 1..=u8::MAX).prop_map(|(role, route, (token, agent), intake, max)| {
        Message::from(Hello {
            versions: Versions { min: 1, max },
            role,
            route,
            token: Token::new(token),
            agent,
            piece_bytes_max: intake.0,
            credits: intake.1,
        })
    })
}

fn hello_ack() -> impl Strategy<Value = Message> {
    let names = (text(NAME_BYTES_MAX), text(NAME_BYTES_MAX));
    let numbers = (1..=PIECE_BYTES_MAX, 1..=PIECE_BYTES_MAX, 1..=REQUESTS_MAX, 0..=CREDITS_MAX);
    (any::<u8>(), names, 1..=SHARDS_MAX, any::<u16>(), numbers).prop_map(|(version, names, shards, shard, n)| {
        Message::from(HelloAck {
            version,
            node: names.0,
            agent: names.1,
            shards,
            shard: shard % shards,
            piece_bytes: n.0,
            piece_bytes_max: n.1,
            requests_max: n.2,
            credits: n.3,
        })
    })
}

fn about_connection() -> BoxedStrategy<Message> {
    let error = (any::<u16>(), text(1024), any::<Option<u32>>(), text(4096)).prop_map(|(code, text, wait, detail)| {
        let mut error = ErrorReply::new(ErrorCode::from_number(code), text).with_detail(detail);
        error.retry_after_ms = wait;
        Message::from(error)
    });
    let go_away = (any::<u16>(), text(1024), any::<u64>()).prop_map(|(code, message, last_request)| {
        Message::from(GoAway { code: ErrorCode::from_number(code), message, last_request })
    });
    prop_oneof![
        hello(),
        hello_ack(),
        error,
        go_away,
        any::<u64>().prop_map(|nonce| Message::Ping(Ping { nonce })),
        any::<u64>().prop_map(|nonce| Message::Pong(Ping { nonce })),
        (1..=CREDITS_MAX).prop_map(|pieces| Credit { pieces }.into()),
        Just(Done {}.into()),
        Just(Cancel {}.into()),
    ]
    .boxed()
}

pub(crate) fn list_entry() -> impl Strategy<Value = ListEntry> {
    let entry = (filled(KEY_BYTES_MAX), 0..=OBJECT_BYTES_MAX, text(ETAG_BYTES_MAX), any::<u64>(), text(20), state());
    entry.prop_map(|(key, length, etag, last_modified_ms, storage_class, state)| ListEntry {
        key,
        length,
        etag,
        last_modified_ms,
        storage_class,
        state,
    })
}

fn list_ok() -> impl Strategy<Value = Message> {
    let entries = proptest::collection::vec(list_entry(), 0..20);
    let prefixes = proptest::collection::vec(filled(KEY_BYTES_MAX), 0..20);
    (entries, prefixes, any::<bool>(), filled(KEY_BYTES_MAX)).prop_map(|(entries, common_prefixes, more, marker)| {
        Message::from(ListOk { entries, common_prefixes, truncated: more, next_marker: marker })
    })
}

fn about_objects() -> BoxedStrategy<Message> {
    let list = (filled(BUCKET_BYTES_MAX), text(KEY_BYTES_MAX), text(KEY_BYTES_MAX), text(64), any::<u32>());
    let list = list.prop_map(|(bucket, prefix, marker, delimiter, limit)| {
        Message::from(List { bucket, prefix, marker, delimiter, limit })
    });
    let copy = (target(), target(), proptest::option::of(mode()));
    prop_oneof![
        (target(), any::<bool>()).prop_map(|(target, fresh)| Stat { target, fresh }.into()),
        version().prop_map(Message::StatOk),
        version().prop_map(Message::CopyOk),
        list,
        list_ok(),
        target().prop_map(|target| Delete { target }.into()),
        copy.prop_map(|(source, target, mode)| Copy { source, target, mode }.into()),
        filled(BUCKET_BYTES_MAX).prop_map(|bucket| CreateBucket { bucket }.into()),
    ]
    .boxed()
}

fn about_reads() -> BoxedStrategy<Message> {
    let read = (target(), any::<u64>(), any::<u32>(), any::<u32>());
    let read = read.prop_map(|(target, generation, first_piece, count)| {
        let piece_count = count.min(u32::MAX - first_piece).max(1);
        Message::from(Read { target, generation, first_piece: first_piece.min(u32::MAX - 1), piece_count })
    });
    let line = (source(), any::<u32>(), any::<u64>());
    let line = line.prop_map(|(source, pieces, bytes)| SourceCount { source, pieces, bytes });
    prop_oneof![
        (target(), any::<bool>()).prop_map(|(target, no_cache)| Open { target, no_cache }.into()),
        version().prop_map(Message::OpenOk),
        read,
        proptest::collection::vec(line, 0..16).prop_map(|sources| ReadEnd { sources }.into()),
    ]
    .boxed()
}

fn about_writes() -> BoxedStrategy<Message> {
    let length = proptest::option::of(0..=OBJECT_BYTES_MAX);
    let begin = (target(), length, mode(), any::<u32>(), any::<u32>(), meta());
    let begin = begin.prop_map(|(target, length, mode, max_replicas, ack_peers, meta)| {
        Message::from(PutBegin { target, length, mode, max_replicas, ack_peers, meta })
    });
    let ready = (any::<u64>(), task(), any::<u64>(), 1..=PIECE_BYTES_MAX, 0..=CREDITS_MAX);
    let ready = ready.prop_map(|(upload, task, generation, piece_bytes, window_pieces)| {
        Message::from(PutReady { upload, task, generation, piece_bytes, window_pieces })
    });
    let commit = (any::<u64>(), 0..=OBJECT_BYTES_MAX, any::<u32>(), any::<u32>());
    let written_to = prop_oneof![Just(WrittenTo::Local), Just(WrittenTo::Backend)];
    let done = (any::<u64>(), text(ETAG_BYTES_MAX), written_to, any::<u32>());
    prop_oneof![
        begin,
        ready,
        (task(), any::<u64>()).prop_map(|(task, upload)| PutJoin { task, upload }.into()),
        commit.prop_map(|(upload, length, crc32, pieces)| PutCommit { upload, length, crc32, pieces }.into()),
        done.prop_map(|(generation, etag, written_to, replicas)| {
            PutDone { generation, etag, written_to, replicas }.into()
        }),
        any::<u32>().prop_map(|number| PieceAck { number }.into()),
        Just(PutAbort {}.into()),
        Just(PutLeave {}.into()),
    ]
    .boxed()
}
