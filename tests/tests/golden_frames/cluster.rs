//! The messages that versions 2 and 3 added, as they are pinned: those between peers and those of people.

use dfstore_proto::ids::ObjectName;
use dfstore_proto::message::{
    BackendConfig, ConfigOk, Duty, Evict, Fetch, GetConfig, Hello, Holder, HolderInfo, KnownVersion, ListEntry, Locate,
    Message, NodeFailure, NodeInfo, NodeRole, Nodes, NodesOk, Pending, PendingPage, PieceRuns, Prefetch, Publish,
    PublishOk, Published, Queue, QueueEntry, QueuePage, QueueState, Recall, Recalled, Reserve, Reserved, Role, Route,
    Scope, Scrub, ScrubOk, Standing, Steer, SteerOrder, Target, Token, Track, Tracked, VersionRecord, VersionState,
    Where, WhereOk, Worked,
};
use dfstore_proto::object::{ObjectMeta, PieceRun, Source};
use dfstore_proto::preface::Versions;

use super::{GENERATION, LENGTH, hello, hello_ack, meta, target, task, version};

fn runs<const COUNT: usize>(runs: [(u32, u32); COUNT]) -> PieceRuns {
    PieceRuns::new(runs.map(|(first, count)| PieceRun { first, count }))
}

fn greetings() -> Vec<(&'static str, u64, Message)> {
    let both = Versions { min: 1, max: 2 };
    let of_a_peer =
        Hello { role: Role::Peer, route: Route::Task(task()), agent: "dfstore-peer/0.2.0".into(), ..hello() };
    vec![
        ("hello_2", 0, Hello { versions: both, ..hello() }.into()),
        ("hello_peer_2", 0, Hello { versions: both, ..of_a_peer }.into()),
        ("hello_ack_2", 0, dfstore_proto::message::HelloAck { version: 2, ..hello_ack() }.into()),
    ]
}

fn record(kind: Published) -> VersionRecord {
    VersionRecord {
        generation: GENERATION,
        kind,
        meta: meta(),
        crc32: Some(0xCBF4_3926),
        piece_bytes: 4 << 20,
        replicas: 2,
    }
}

fn reading() -> Vec<(&'static str, u64, Message)> {
    let known = KnownVersion { generation: GENERATION, etag: "\"e\"".into(), length: 9 };
    let recalled = Recalled {
        version: Some(record(Published::Clean)),
        whole: true,
        holders: vec!["seed-2".into(), "peer-7".into()],
    };
    let track = Track {
        task: task(),
        generation: GENERATION,
        node: "peer-1".into(),
        have: runs([(0, 2), (5, 1)]),
        fetching: runs([(2, 2)]),
        uploads: 1,
        window: PieceRun { first: 2, count: 4 },
    };
    let tracked = Tracked {
        parents: vec![Holder { node: "peer-7".into(), have: runs([(0, 6)]), uploads: 2 }],
        counts: vec![2, 2, 1, 1],
        suggested: vec![4],
        again_ms: 300,
    };
    let fetch = Fetch { task: task(), generation: GENERATION, number: 2, local_only: true };
    vec![
        ("locate", 1, Locate { target: target(), no_cache: false, known: Some(known) }.into()),
        ("locate_unknown", 1, Locate { target: target(), no_cache: true, known: None }.into()),
        ("located", 1, Message::Located(version(VersionState::Clean, Source::Seed, Some(0xCBF4_3926)))),
        ("recall", 3, Recall { target: target() }.into()),
        ("recalled", 3, recalled.into()),
        ("recalled_nothing", 3, Recalled::default().into()),
        ("track", 5, track.into()),
        ("tracked", 5, tracked.into()),
        ("fetch", 7, fetch.into()),
    ]
}

fn writing() -> Vec<(&'static str, u64, Message)> {
    let publish = Publish {
        target: Target::new(ObjectName::new("models", "new.bin")),
        version: VersionRecord {
            generation: GENERATION,
            kind: Published::Dirty,
            meta: ObjectMeta { length: 9, etag: "\"e\"".into(), last_modified_ms: 1, ..ObjectMeta::default() },
            crc32: Some(0xCBF4_3926),
            piece_bytes: 4 << 20,
            replicas: 2,
        },
        duty: Duty::Decide,
        node: "peer-1".into(),
        whole: true,
        holders: Vec::new(),
        wait_replicas: 2,
    };
    let with = |kind, duty| Publish {
        version: VersionRecord { kind, ..publish.version.clone() },
        duty,
        holders: vec!["seed-2".into()],
        wait_replicas: 0,
        ..publish.clone()
    };
    let deletion = Publish {
        version: VersionRecord {
            generation: 0,
            kind: Published::Deleted,
            meta: ObjectMeta::default(),
            crc32: None,
            piece_bytes: 4 << 20,
            replicas: 0,
        },
        whole: false,
        wait_replicas: 0,
        ..publish.clone()
    };
    let publish_ok = PublishOk {
        standing: Standing::Current,
        generation: GENERATION,
        state: VersionState::Dirty,
        meta: ObjectMeta::default(),
        replicas: 2,
        replicas_wanted: 2,
    };
    let superseded = PublishOk {
        standing: Standing::Superseded,
        generation: GENERATION + 1,
        state: VersionState::Clean,
        meta: meta(),
        ..publish_ok.clone()
    };
    vec![
        ("reserve", 9, Reserve { target: target() }.into()),
        ("reserved", 9, Reserved { generation: GENERATION }.into()),
        ("publish", 11, publish.clone().into()),
        ("publish_through", 11, with(Published::Through, Duty::Decide).into()),
        ("publish_witness", 11, with(Published::Ephemeral, Duty::Witness).into()),
        ("publish_replicate", 11, with(Published::Clean, Duty::Replicate).into()),
        ("publish_deleted", 11, deletion.into()),
        ("publish_ok", 11, publish_ok.into()),
        ("publish_superseded", 11, superseded.into()),
    ]
}

fn pending_and_config() -> Vec<(&'static str, u64, Message)> {
    let mut page = PendingPage::new();
    let written = ListEntry {
        key: "llm/new.bin".into(),
        length: 9,
        etag: "\"e\"".into(),
        last_modified_ms: 1_795_305_600_123,
        storage_class: String::new(),
        state: VersionState::Dirty,
    };
    assert!(page.push_written(written) && page.push_deleted("llm/old.bin".into()));
    let config = ConfigOk {
        backend: BackendConfig {
            provider: "s3".into(),
            region: "eu-central-1".into(),
            endpoint: String::new(),
            access_key: Token::new("AKIA"),
            secret_key: Token::new("s3cret"),
            session_token: Token::default(),
            path_style: true,
        },
        bootstrap: vec!["10.0.0.1:65002".into(), "[fd00::2]:65002".into()],
    };
    let pending = Pending { bucket: "models".into(), prefix: "llm/".into(), marker: "llm/a".into() };
    vec![
        ("pending", 13, pending.into()),
        ("pending_ok", 13, page.finish(true).into()),
        ("get_config", 1, GetConfig {}.into()),
        ("config_ok", 1, config.into()),
    ]
}

fn of_people() -> Vec<(&'static str, u64, Message)> {
    let whole = HolderInfo { node: "seed-2".into(), pieces: 3, runs: vec![PieceRun { first: 0, count: 3 }] };
    let part = HolderInfo { node: "peer-7".into(), pieces: 1, runs: vec![PieceRun { first: 2, count: 1 }] };
    let where_ok = WhereOk {
        info: version(VersionState::Dirty, Source::Pending, None),
        homes: vec!["seed-2".into(), "seed-1".into()],
        holders: vec![whole, part],
        replicas_wanted: 2,
    };
    let seed = NodeInfo {
        id: "seed-1".into(),
        role: NodeRole::Seed,
        peer: "10.0.0.1:65002".into(),
        api: "10.0.0.1:65004".into(),
        version: "0.2.0".into(),
        started_us: 1_795_305_600_000_000,
        shards: 4,
        capacity_bytes: 1 << 40,
        used_bytes: 1 << 30,
        dirty_bytes: 9,
        load: 3,
        live: true,
    };
    let lost = NodeInfo {
        id: "seed-2".into(),
        peer: String::new(),
        api: String::new(),
        version: String::new(),
        started_us: 0,
        shards: 0,
        capacity_bytes: 0,
        used_bytes: 0,
        dirty_bytes: 0,
        load: 0,
        live: false,
        ..seed.clone()
    };
    let nodes = NodesOk { cluster: "lab".into(), me: "seed-1".into(), nodes: vec![seed, lost], truncated: true };
    let failures = vec![NodeFailure::new("peer-7", "no space left")];
    vec![
        ("where", 1, Where { target: target(), local_only: false }.into()),
        ("where_ok", 1, where_ok.into()),
        ("nodes", 3, Nodes { after: "peer-9".into() }.into()),
        ("nodes_ok", 3, nodes.into()),
        ("prefetch", 5, Prefetch { target: target(), scope: Scope::Cluster }.into()),
        ("evict", 7, Evict { target: target(), scope: Scope::Node }.into()),
        ("worked", 5, Worked { nodes: 2, bytes: 16_777_234, failures }.into()),
    ]
}

fn of_the_queue() -> Vec<(&'static str, u64, Message)> {
    let dead = QueueEntry {
        bucket: "models".into(),
        key: "llm/a.bin".into(),
        deletes: false,
        generation: GENERATION,
        length: 40 << 20,
        state: QueueState::Dead,
        queued_at_ms: 1_795_305_600_000,
        due_at_ms: 0,
        attempts: 3,
        last_error: "access denied".into(),
        bytes_sent: 16 << 20,
    };
    let delayed = QueueEntry {
        key: "llm/b.bin".into(),
        deletes: true,
        length: 0,
        state: QueueState::Delayed,
        due_at_ms: 1_795_305_660_000,
        last_error: String::new(),
        bytes_sent: 0,
        ..dead.clone()
    };
    let mut page = QueuePage::default();
    assert!(page.push(dead) && page.push(delayed));
    let asked = Queue {
        bucket: "models".into(),
        prefix: "llm/".into(),
        after_bucket: "models".into(),
        after_key: "llm/0".into(),
        limit: 100,
        dead_only: true,
    };
    let scrubbed = ScrubOk {
        runs: false,
        began_at_ms: 1_795_305_600_000,
        ended_at_ms: 1_795_305_601_000,
        pieces: 3,
        bytes: LENGTH,
        bytes_of_all: LENGTH,
        damaged: 1,
        replaceable: 1,
        lost: 0,
    };
    vec![
        ("queue", 1, asked.into()),
        ("queue_ok", 1, page.finish(true).into()),
        ("steer", 3, Steer { target: target(), order: SteerOrder::Drop, force: true }.into()),
        ("scrub", 5, Scrub { begin: true }.into()),
        ("scrub_ok", 5, scrubbed.into()),
    ]
}

/// All of them by name, with their request.
pub fn messages() -> Vec<(&'static str, u64, Message)> {
    [greetings(), reading(), writing(), pending_and_config(), of_people(), of_the_queue()].concat()
}
