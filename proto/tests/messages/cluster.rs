//! Messages that versions 2 and 3 added.

use dfstore_proto::limits::{
    ADDRESS_BYTES_MAX, ATTRIBUTE_BYTES_MAX, BUCKET_BYTES_MAX, COUNTS_MAX, ERROR_MESSAGE_BYTES_MAX, ETAG_BYTES_MAX,
    KEY_BYTES_MAX, LIST_ENTRIES_MAX, NAME_BYTES_MAX, OBJECT_BYTES_MAX, PARENTS_MAX, PIECE_BYTES_MAX, RUNS_MAX,
    RUNS_SHOWN_MAX, SESSION_TOKEN_BYTES_MAX, SUGGESTED_MAX, TOKEN_BYTES_MAX,
};
use dfstore_proto::message::{
    BackendConfig, ConfigOk, Duty, Evict, Fetch, GetConfig, Holder, HolderInfo, KnownVersion, Locate, Message,
    NodeFailure, NodeInfo, NodeRole, Nodes, NodesOk, Pending, PendingOk, PieceRuns, Prefetch, Publish, PublishOk,
    Published, Queue, QueueEntry, QueueOk, QueueState, Recall, Recalled, Reserve, Reserved, Scope, Scrub, ScrubOk,
    Standing, Steer, SteerOrder, Token, Track, Tracked, VersionRecord, Where, WhereOk, Worked,
};
use dfstore_proto::object::PieceRun;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::{BoxedStrategy, Just, Strategy, any, prop_oneof};

use super::{filled, list_entry, meta, state, target, task, text, version};

fn name() -> BoxedStrategy<String> {
    filled(NAME_BYTES_MAX)
}

fn generation() -> std::ops::RangeInclusive<u64> {
    1..=u64::MAX
}

/// Up to `most` runs in order: gaps and lengths, so that the last one ends within the numbers of pieces.
fn runs(most: usize) -> impl Strategy<Value = Vec<PieceRun>> {
    let step = u32::MAX / u32::try_from(2 * RUNS_MAX).expect("small");
    let few = vec((0..=step, 1..=step), 0..6.min(most));
    let full = vec((1..=step, 1..=step), most);
    prop_oneof![8 => few.boxed(), 1 => full.boxed()].prop_map(|steps| {
        let mut next = 0;
        let run = |(gap, count)| {
            let first = next + gap;
            next = first + count;
            PieceRun { first, count }
        };
        steps.into_iter().map(run).collect()
    })
}

fn pieces() -> impl Strategy<Value = PieceRuns> {
    runs(RUNS_MAX).prop_map(PieceRuns::new)
}

fn holders() -> impl Strategy<Value = Vec<String>> {
    vec(name(), 0..=PARENTS_MAX)
}

fn record() -> impl Strategy<Value = VersionRecord> {
    let kind = prop_oneof![
        Just(Published::Dirty),
        Just(Published::Ephemeral),
        Just(Published::Through),
        Just(Published::Clean),
        Just(Published::Deleted),
    ];
    let numbers = (generation(), any::<Option<u32>>(), 4096..=PIECE_BYTES_MAX, any::<u16>());
    (kind, meta(), numbers).prop_map(|(kind, meta, (generation, crc32, piece_bytes, replicas))| VersionRecord {
        generation,
        kind,
        meta,
        crc32,
        piece_bytes,
        replicas,
    })
}

fn locating() -> BoxedStrategy<Message> {
    let known = (generation(), text(ETAG_BYTES_MAX), 0..=OBJECT_BYTES_MAX);
    let known = known.prop_map(|(generation, etag, length)| KnownVersion { generation, etag, length });
    let locate = (target(), any::<bool>(), option::of(known));
    let recalled = (option::of(record()), any::<bool>(), holders());
    prop_oneof![
        locate.prop_map(|(target, no_cache, known)| Locate { target, no_cache, known }.into()),
        version().prop_map(Message::Located),
        target().prop_map(|target| Recall { target }.into()),
        recalled.prop_map(|(version, whole, holders)| Recalled { version, whole, holders }.into()),
    ]
    .boxed()
}

fn tracking() -> BoxedStrategy<Message> {
    let window = (0..u32::MAX / 2, 0..=u32::try_from(COUNTS_MAX).expect("small"));
    let window = window.prop_map(|(first, count)| PieceRun { first, count });
    let track = ((task(), any::<u64>(), name()), pieces(), pieces(), any::<u32>(), window);
    let track = track.prop_map(|((task, generation, node), have, fetching, uploads, window)| {
        Message::from(Track { task, generation, node, have, fetching, uploads, window })
    });
    let holder = (name(), pieces(), any::<u32>());
    let holder = holder.prop_map(|(node, have, uploads)| Holder { node, have, uploads });
    let suggested = vec(0..u32::MAX, 0..=SUGGESTED_MAX);
    let tracked = (vec(holder, 0..=PARENTS_MAX), vec(any::<u8>(), 0..=COUNTS_MAX), suggested, any::<u32>());
    let fetch = (task(), any::<u64>(), 0..u32::MAX, any::<bool>());
    prop_oneof![
        track,
        tracked.prop_map(|(parents, counts, suggested, again_ms)| {
            Tracked { parents, counts, suggested, again_ms }.into()
        }),
        fetch.prop_map(|(task, generation, number, local_only)| Fetch { task, generation, number, local_only }.into()),
    ]
    .boxed()
}

fn publishing() -> BoxedStrategy<Message> {
    let duty = prop_oneof![Just(Duty::Decide), Just(Duty::Witness), Just(Duty::Replicate)];
    let publish = (target(), record(), duty, name(), (any::<bool>(), holders(), any::<u16>()));
    let publish = publish.prop_map(|(target, version, duty, node, (whole, holders, wait_replicas))| {
        Message::from(Publish { target, version, duty, node, whole, holders, wait_replicas })
    });
    let standing = prop_oneof![Just(Standing::Current), Just(Standing::Superseded)];
    let publish_ok = (standing, any::<u64>(), state(), meta(), any::<(u16, u16)>());
    let publish_ok = publish_ok.prop_map(|(standing, generation, state, meta, (replicas, replicas_wanted))| {
        Message::from(PublishOk { standing, generation, state, meta, replicas, replicas_wanted })
    });
    prop_oneof![
        target().prop_map(|target| Reserve { target }.into()),
        generation().prop_map(|generation| Reserved { generation }.into()),
        publish,
        publish_ok,
    ]
    .boxed()
}

fn pending() -> BoxedStrategy<Message> {
    let asked = (filled(BUCKET_BYTES_MAX), text(KEY_BYTES_MAX), text(KEY_BYTES_MAX));
    let answer = (vec(list_entry(), 0..20), vec(filled(KEY_BYTES_MAX), 0..20), text(KEY_BYTES_MAX));
    prop_oneof![
        asked.prop_map(|(bucket, prefix, marker)| Pending { bucket, prefix, marker }.into()),
        answer.prop_map(|(written, deleted, next_marker)| PendingOk { written, deleted, next_marker }.into()),
    ]
    .boxed()
}

fn config() -> BoxedStrategy<Message> {
    let keys = (text(TOKEN_BYTES_MAX), text(TOKEN_BYTES_MAX), text(SESSION_TOKEN_BYTES_MAX));
    let backend = (name(), text(NAME_BYTES_MAX), text(ATTRIBUTE_BYTES_MAX), keys, any::<bool>());
    let backend = backend.prop_map(|(provider, region, endpoint, keys, path_style)| BackendConfig {
        provider,
        region,
        endpoint,
        access_key: Token::new(keys.0),
        secret_key: Token::new(keys.1),
        session_token: Token::new(keys.2),
        path_style,
    });
    let answer = (backend, vec(filled(ADDRESS_BYTES_MAX), 0..8));
    prop_oneof![
        Just(GetConfig {}.into()),
        answer.prop_map(|(backend, bootstrap)| ConfigOk { backend, bootstrap }.into()),
    ]
    .boxed()
}

/// What only peers say to each other.
pub fn between_peers() -> BoxedStrategy<Message> {
    prop_oneof![locating(), tracking(), publishing(), pending(), config()].boxed()
}

fn whereabouts() -> BoxedStrategy<Message> {
    let holder = (name(), any::<u32>(), runs(RUNS_SHOWN_MAX));
    let holder = holder.prop_map(|(node, pieces, runs)| HolderInfo { node, pieces, runs });
    let answer = (version(), holders(), vec(holder, 0..5), any::<u16>());
    prop_oneof![
        (target(), any::<bool>()).prop_map(|(target, local_only)| Where { target, local_only }.into()),
        answer.prop_map(|(info, homes, holders, replicas_wanted)| {
            WhereOk { info, homes, holders, replicas_wanted }.into()
        }),
    ]
    .boxed()
}

fn node() -> impl Strategy<Value = NodeInfo> {
    let texts = (name(), text(ADDRESS_BYTES_MAX), text(ADDRESS_BYTES_MAX), text(NAME_BYTES_MAX));
    let role = prop_oneof![Just(NodeRole::Peer), Just(NodeRole::Seed)];
    let numbers = (any::<u64>(), any::<u16>(), any::<(u64, u64, u64)>(), any::<u32>(), any::<bool>());
    (texts, role, numbers).prop_map(|(texts, role, numbers)| NodeInfo {
        id: texts.0,
        role,
        peer: texts.1,
        api: texts.2,
        version: texts.3,
        started_us: numbers.0,
        shards: numbers.1,
        capacity_bytes: numbers.2.0,
        used_bytes: numbers.2.1,
        dirty_bytes: numbers.2.2,
        load: numbers.3,
        live: numbers.4,
    })
}

fn queue_entry() -> impl Strategy<Value = QueueEntry> {
    let state = prop_oneof![
        Just(QueueState::Waiting),
        Just(QueueState::Sending),
        Just(QueueState::Verifying),
        Just(QueueState::Delayed),
        Just(QueueState::Elsewhere),
        Just(QueueState::Dead),
    ];
    let texts = (filled(BUCKET_BYTES_MAX), filled(KEY_BYTES_MAX), text(ERROR_MESSAGE_BYTES_MAX));
    (texts, any::<bool>(), state, any::<[u64; 5]>(), any::<u32>()).prop_map(
        |((bucket, key, last_error), deletes, state, numbers, attempts)| {
            let [generation, length, queued_at_ms, due_at_ms, bytes_sent] = numbers;
            QueueEntry {
                bucket,
                key,
                deletes,
                generation,
                length,
                state,
                queued_at_ms,
                due_at_ms,
                attempts,
                last_error,
                bytes_sent,
            }
        },
    )
}

/// What those who look after a peer ask.
pub fn of_queue() -> BoxedStrategy<Message> {
    let texts = (text(BUCKET_BYTES_MAX), text(KEY_BYTES_MAX), text(BUCKET_BYTES_MAX), text(KEY_BYTES_MAX));
    let limit = 0..=u16::try_from(LIST_ENTRIES_MAX).expect("small");
    let asked = (texts, limit, any::<bool>()).prop_map(|(texts, limit, dead_only)| Queue {
        bucket: texts.0,
        prefix: texts.1,
        after_bucket: texts.2,
        after_key: texts.3,
        limit,
        dead_only,
    });
    let order = prop_oneof![Just(SteerOrder::Retry), Just(SteerOrder::Drop)];
    let steer = (target(), order, any::<bool>());
    let scrubbed = (any::<bool>(), any::<[u64; 8]>()).prop_map(|(runs, numbers)| {
        let [began_at_ms, ended_at_ms, pieces, bytes, bytes_of_all, damaged, replaceable, lost] = numbers;
        ScrubOk { runs, began_at_ms, ended_at_ms, pieces, bytes, bytes_of_all, damaged, replaceable, lost }
    });
    prop_oneof![
        asked.prop_map(Message::from),
        (vec(queue_entry(), 0..8), any::<bool>())
            .prop_map(|(entries, truncated)| QueueOk { entries, truncated }.into()),
        steer.prop_map(|(target, order, force)| Steer { target, order, force }.into()),
        any::<bool>().prop_map(|begin| Scrub { begin }.into()),
        scrubbed.prop_map(Message::from),
    ]
    .boxed()
}

/// What those who look after a cluster ask.
pub fn of_people() -> BoxedStrategy<Message> {
    let nodes = (text(NAME_BYTES_MAX), text(NAME_BYTES_MAX), vec(node(), 0..5), any::<bool>());
    let nodes = nodes
        .prop_map(|(cluster, me, nodes, truncated)| Message::from(NodesOk { cluster, me, nodes, truncated }))
        .boxed();
    let scope = || prop_oneof![Just(Scope::Node), Just(Scope::Cluster)];
    let failure = (name(), text(2 * NAME_BYTES_MAX)).prop_map(|(node, message)| NodeFailure::new(node, message));
    let worked = (any::<u32>(), any::<u64>(), vec(failure, 0..5));
    prop_oneof![
        whereabouts(),
        text(NAME_BYTES_MAX).prop_map(|after| Nodes { after }.into()),
        nodes,
        (target(), scope()).prop_map(|(target, scope)| Prefetch { target, scope }.into()),
        (target(), scope()).prop_map(|(target, scope)| Evict { target, scope }.into()),
        worked.prop_map(|(nodes, bytes, failures)| Worked { nodes, bytes, failures }.into()),
    ]
    .boxed()
}
