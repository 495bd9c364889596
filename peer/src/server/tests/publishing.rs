//! What a node makes of what other peers tell it about a version.

use std::time::Duration;

use dfstore_proto::ids::ObjectName;
use dfstore_proto::message::{
    Duty, Message, Open, Publish, PublishOk, Published, Recall, Recalled, Standing, Target, VersionRecord, VersionState,
};
use dfstore_proto::object::ObjectMeta;

use super::{Served, bucket_of, links};
use crate::limits::PIECE_BYTES;
use crate::links::Links;
use crate::membership::Node;
use crate::rt::shard::block_on;
use crate::rt::time::{timeout, unix_ms};

/// Nothing takes longer than this, or the test fails.
const PATIENCE: Duration = Duration::from_secs(20);

fn target() -> Target {
    Target::new(ObjectName::new("bucket", "key"))
}

fn record(generation: u64, kind: Published, etag: &str) -> VersionRecord {
    let length = if kind == Published::Deleted { 0 } else { 3 };
    let meta = ObjectMeta { length, etag: etag.into(), ..ObjectMeta::default() };
    VersionRecord { generation, kind, meta, crc32: None, piece_bytes: PIECE_BYTES, replicas: 0 }
}

async fn ask(links: &Links, node: &Node, message: impl Into<Message>) -> Message {
    let answer = timeout(PATIENCE, links.ask(node, Some(&target().task()), message.into())).await;
    answer.expect("it is answered").expect("it is not refused")
}

fn told(version: VersionRecord) -> Publish {
    let (duty, holders) = (Duty::Witness, Vec::new());
    Publish { target: target(), version, duty, node: "w".into(), whole: true, holders, wait_replicas: 0 }
}

async fn tell(links: &Links, node: &Node, version: VersionRecord) -> PublishOk {
    match ask(links, node, told(version)).await {
        Message::PublishOk(told) => told,
        other => panic!("{other:?}"),
    }
}

async fn recall(links: &Links, node: &Node) -> Recalled {
    match ask(links, node, Recall { target: target() }).await {
        Message::Recalled(known) => known,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_dirty_version_becomes_clean_when_another_peer_knows_that_it_is() {
    let served = Served::start();
    block_on(async {
        let (links, node) = (links("secret"), served.node(served.peer));
        let dirty = tell(&links, &node, record(7, Published::Dirty, "\"00000001-7\"")).await;
        assert_eq!((dirty.standing, dirty.state), (Standing::Current, VersionState::Dirty));
        let clean = tell(&links, &node, record(7, Published::Clean, "\"bucket\"")).await;
        assert_eq!((clean.standing, clean.state), (Standing::Current, VersionState::Clean));
        // Told late by who did not hear of it: it does not become dirty again.
        let late = tell(&links, &node, record(7, Published::Dirty, "\"00000001-7\"")).await;
        assert_eq!((late.state, late.meta.etag.as_str()), (VersionState::Clean, "\"bucket\""));
    })
    .expect("a runtime");
}

#[test]
fn a_version_in_larger_pieces_than_there_are_buffers_for_is_refused() {
    let served = Served::start();
    block_on(async {
        let (links, node) = (links("secret"), served.node(served.peer));
        let meta = ObjectMeta { length: 3 * u64::from(PIECE_BYTES), etag: "\"etag\"".into(), ..ObjectMeta::default() };
        let version = VersionRecord { meta, piece_bytes: 2 * PIECE_BYTES, ..record(7, Published::Clean, "") };
        let answer = timeout(PATIENCE, links.ask(&node, Some(&target().task()), told(version).into())).await;
        let refused = answer.expect("it is answered").expect_err("it is refused");
        assert!(refused.to_string().contains("pieces of 4194304 bytes are not taken"), "{refused}");
        assert_eq!(recall(&links, &node).await.version, None);
        // One piece is the same in any size.
        let small = VersionRecord { piece_bytes: 2 * PIECE_BYTES, ..record(8, Published::Clean, "\"etag\"") };
        assert_eq!(tell(&links, &node, small).await.standing, Standing::Current);
    })
    .expect("a runtime");
}

#[test]
fn a_version_that_was_only_read_here_is_kept_as_dirty_when_that_is_asked() {
    let served = Served::start();
    block_on(async {
        let (links, node) = (links("secret"), served.node(served.peer));
        tell(&links, &node, record(7, Published::Clean, "\"00000001-7\"")).await;
        let told = tell(&links, &node, record(7, Published::Dirty, "\"00000001-7\"")).await;
        assert_eq!((told.standing, told.state), (Standing::Current, VersionState::Dirty));
        assert_eq!(recall(&links, &node).await.version.map(|version| version.kind), Some(Published::Dirty));
    })
    .expect("a runtime");
}

#[test]
fn a_deletion_that_the_backend_does_not_know_is_not_told_as_one_that_is_done() {
    let served = Served::start();
    block_on(async {
        let (links, node) = (links("secret"), served.node(served.peer));
        tell(&links, &node, record(7, Published::Deleted, "")).await;
        let known = recall(&links, &node).await;
        assert_eq!(known.version.map(|version| (version.generation, version.kind)), Some((7, Published::Deleted)));
        assert!(!known.whole, "there is more of it than its number");
    })
    .expect("a runtime");
}

#[test]
fn a_write_that_is_told_late_is_newer_than_what_the_bucket_had_before() {
    let served = Served::before(bucket_of(b"old".to_vec()));
    block_on(async {
        let (links, node) = (links("secret"), served.node(served.peer));
        let written = (unix_ms() - 1000) * 1000;
        let found = ask(&links, &node, Open { target: target(), no_cache: false }).await;
        let Message::OpenOk(found) = found else { panic!("{found:?}") };
        assert!(found.generation < written);
        let told = tell(&links, &node, record(written, Published::Dirty, "\"00000001-7\"")).await;
        assert_eq!(told.standing, Standing::Current);
    })
    .expect("a runtime");
}
