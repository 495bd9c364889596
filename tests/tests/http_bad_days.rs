//! What clients of the object API are told while the backend is down or refuses, and what still works.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use dfstore_tests::bucket::Bucket;
use dfstore_tests::data::Payload;
use dfstore_tests::eventually;
use dfstore_tests::faulty_backend::{Fault, FaultyBackend, Rule};
use dfstore_tests::http::Response;
use dfstore_tests::peer::{Peer, PeerSpec};

/// Two pieces and a bit.
const LENGTH: u64 = (8 << 20) + 777;
/// A client waits no longer than this for a clear answer.
const ANSWER_MAX: Duration = Duration::from_secs(60);

fn start() -> Result<(FaultyBackend, Bucket, Peer)> {
    let backend = FaultyBackend::start()?;
    let bucket = backend.bucket("days")?;
    let mut spec = PeerSpec::new(&backend.endpoint());
    // Every read asks the backend first, so that its state shows at once.
    spec.object_storage = "freshness: always".to_owned();
    let peer = Peer::start_with(spec)?;
    Ok((backend, bucket, peer))
}

/// Asserts the status, that an error is in the original's shape, and that it names a time to try again where waiting
/// helps.
#[track_caller]
fn expect(response: &Response, status: u16) {
    assert_eq!(response.status(), status, "{:?} {}", response.head.headers, response.text());
    if status >= 400 && !response.body.is_empty() {
        let body: serde_json::Value = serde_json::from_slice(&response.body).expect("JSON");
        assert!(body["errors"].as_str().is_some_and(|text| !text.is_empty()), "{body}");
    }
    assert_eq!(matches!(status, 503 | 504), response.header("retry-after").is_some(), "{:?}", response.head.headers);
}

#[test]
fn a_peer_without_its_backend_says_so_and_serves_what_it_has() -> Result<()> {
    let (backend, bucket, peer) = start()?;
    let payload = Payload::new(1, LENGTH);
    bucket.put("cached", &payload.bytes())?;
    ensure!(peer.get("days", "cached")?.body == payload.bytes());
    backend.set_down(true);

    let begun = Instant::now();
    expect(&peer.get("days", "absent")?, 504);
    expect(&peer.request("HEAD", "/buckets/days/objects/absent", &[], b"")?, 504);
    expect(&peer.request("GET", "/buckets/days/metadatas", &[], b"")?, 504);
    expect(&peer.put("days", "sync", 1, b"sync")?, 504);
    ensure!(begun.elapsed() < ANSWER_MAX, "four answers took {:?}", begun.elapsed());

    let cached = peer.get("days", "cached")?;
    expect(&cached, 200);
    ensure!(cached.header("x-dfs-cache") == Some("stale") && cached.body == payload.bytes());
    let head = peer.request("HEAD", "/buckets/days/objects/cached", &[], b"")?;
    ensure!(head.status() == 200 && head.header("x-dfs-cache") == Some("stale"));

    expect(&peer.put("days", "async", 0, b"async")?, 200);
    let pending = peer.get("days", "async")?;
    expect(&pending, 200);
    ensure!(pending.header("x-dfs-cache") == Some("pending") && pending.body == b"async");
    expect(&peer.put("days", "ephemeral", 2, b"ephemeral")?, 200);
    ensure!(peer.get("days", "ephemeral")?.body == b"ephemeral");

    backend.set_down(false);
    eventually("the write-back", ANSWER_MAX, || backend.stored("days", "async"))?;
    ensure!(peer.get("days", "sync")?.status() == 404, "what was refused was not stored");
    Ok(())
}

#[test]
fn what_the_backend_says_becomes_a_clear_status() -> Result<()> {
    let (backend, bucket, peer) = start()?;
    bucket.put("k", b"content")?;
    for (fault, status) in [
        (Fault::access_denied(), 403),
        (Fault::internal_error(), 504),
        (Fault::slow_down(Some(1)), 503),
        (Fault::Status { status: 404, code: "NoSuchBucket", retry_after_s: None }, 404),
    ] {
        backend.set_rules([Rule::always(fault.clone())]);
        for (method, path) in [("GET", "/buckets/days/objects/k"), ("GET", "/buckets/days/metadatas")] {
            let begun = Instant::now();
            let answer = peer.request(method, path, &[], b"")?;
            assert_eq!(answer.status(), status, "{fault:?} {path}: {}", answer.text());
            ensure!(begun.elapsed() < ANSWER_MAX, "{fault:?} took {:?}", begun.elapsed());
        }
        let put = peer.put("days", "k", 1, b"other")?;
        assert_eq!(put.status(), status, "{fault:?} {}", put.text());
    }
    backend.set_rules([]);
    ensure!(peer.get("days", "k")?.body == b"content", "no refused write took effect");
    Ok(())
}
