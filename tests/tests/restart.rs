//! What a peer still has after it was stopped and started, also with another number of shards.

use std::path::Path;

use anyhow::{Context, Result};
use dfstore_tests::cli::dfstore;
use dfstore_tests::data::{PIECE, Payload};
use dfstore_tests::data_folder::{BLOCK, Zeros};
use dfstore_tests::dirs;
use dfstore_tests::eventually;
use dfstore_tests::faulty_backend::{Fault, Rule, Seen};
use dfstore_tests::http::Connection;
use dfstore_tests::ports;
use dfstore_tests::samples::Samples;
use dfstore_tests::scene::{ASYNC, BUCKET, EPHEMERAL, PATIENCE, SYNC, Scene, expect, same};
use http::Method;
use rustix::process::Signal;

const TWO_PIECES: u64 = PIECE + 99;

fn small(number: u64) -> Payload {
    Payload::new(1000 + number, number * 311)
}

#[test]
fn a_restart_is_warm() -> Result<()> {
    let mut scene = Scene::start()?;
    let (read, written) = (Payload::new(1, 3 * PIECE + 5), Payload::new(2, TWO_PIECES));
    scene.place("read", read)?;
    scene.read("read", read)?;
    scene.until_local("read")?;
    scene.put("written", SYNC, written)?;
    for number in 0..50 {
        scene.put(&format!("small/{number}"), EPHEMERAL, small(number))?;
    }
    scene.peer.terminate()?;
    scene.backend.forget();
    scene.peer.restart()?;
    assert_eq!(scene.read("read", read)?, "local");
    assert_eq!(scene.read("written", written)?, "local");
    for number in 0..50 {
        assert_eq!(scene.read(&format!("small/{number}"), small(number))?, "local");
    }
    assert_eq!(scene.backend.requests(), 0, "not even a question");
    scene.rests()
}

#[test]
fn another_number_of_shards_keeps_everything() -> Result<()> {
    let mut scene = Scene::start_with(|spec| spec.shards = "1".to_owned())?;
    let (clean, dirty) = (Payload::new(3, TWO_PIECES), Payload::new(4, TWO_PIECES));
    for number in 0..12 {
        scene.put(&format!("clean/{number}"), SYNC, Payload { seed: number, ..clean })?;
        scene.put(&format!("small/{number}"), EPHEMERAL, small(number))?;
    }
    scene.put("gone", SYNC, clean)?;
    scene
        .backend
        .set_rules([Rule::on(Method::PUT, Fault::internal_error()), Rule::on(Method::DELETE, Fault::internal_error())]);
    scene.put("dirty", ASYNC, dirty)?;
    expect(&scene.peer.delete(BUCKET, "gone")?, 202);
    let bytes_before = cache_bytes(&scene)?;
    for shards in ["2", "1", "3"] {
        scene.peer.spec.shards = shards.to_owned();
        scene.peer.terminate()?;
        scene.peer.restart()?;
        scene.backend.forget();
        for number in 0..12 {
            let payload = Payload { seed: number, ..clean };
            assert_eq!(scene.read(&format!("clean/{number}"), payload)?, "local", "{shards} shards");
            assert_eq!(scene.read(&format!("small/{number}"), small(number))?, "local", "{shards} shards");
        }
        assert_eq!(scene.read("dirty", dirty)?, "pending");
        expect(&scene.get("gone")?, 404);
        // Before the bucket is told of something once more it is asked what it has: that is no read.
        let reads = |seen: &Seen| {
            matches!(seen.method, Method::GET | Method::HEAD)
                && !seen.path.ends_with("/dirty")
                && !seen.path.ends_with("/gone")
        };
        assert!(!scene.backend.seen().iter().any(reads));
        assert_eq!(cache_bytes(&scene)?, bytes_before, "nothing is lost, nothing is counted twice");
    }
    scene.backend.set_rules([]);
    // Otherwise the pauses between attempts have grown long by now; a start begins with one.
    scene.peer.restart()?;
    scene.until_written_back("dirty", dirty)?;
    let gone = || scene.backend.stored(BUCKET, "gone").is_none().then_some(());
    eventually("the bucket is told of the deletion", PATIENCE, gone)
}

#[test]
fn a_hundred_thousand_pieces_are_ready_at_once() -> Result<()> {
    let folder = dirs::temporary("zeros")?;
    // What it holds after a hundred thousand small reads.
    let zeros = Zeros { bucket: BUCKET, objects: 100, pieces: 1000, piece_bytes: BLOCK, dirty: false };
    zeros.fill(folder.path(), 1 << 30)?;
    let mut scene = start_in(folder.path())?;
    let log = scene.peer.process().log();
    let elapsed_ms = log.split("elapsed_ms=").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    let elapsed_ms: u64 = elapsed_ms.context("the log says how long the start took")?;
    // A second in a release build on a machine of its own; this one may have neither.
    assert!(elapsed_ms < 10_000, "{elapsed_ms} ms");
    eprintln!("ready after {elapsed_ms} ms");
    let pieces = |metrics: &Samples| metrics.sum("dfstore_cache_pieces", &[]) == 100_000.0;
    scene.peer.metrics_until("all pieces are known", PATIENCE, pieces)?;
    for object in [0, 57, 99] {
        let answer = scene.get(&Zeros::key(object))?;
        expect(&answer, 200);
        assert_eq!(answer.header("x-dfs-cache"), Some("local"));
        assert!(answer.body.len() as u64 == zeros.length() && answer.body.iter().all(|byte| *byte == 0));
    }
    assert_eq!(scene.backend.requests(), 0);
    scene.rests()
}

#[test]
fn what_an_earlier_version_kept_in_larger_pieces_is_fetched_again() -> Result<()> {
    let (folder, zeros) = (dirs::temporary("larger")?, Zeros { dirty: false, ..LARGER });
    zeros.fill(folder.path(), 1 << 30)?;
    let mut scene = start_in(folder.path())?;
    let (placed, written) = (Payload::new(61, zeros.length()), Payload::new(62, 3 * PIECE));
    // The records are removed before anything is written under the same name.
    scene.put(&Zeros::key(0), EPHEMERAL, written)?;
    scene.peer.kill9()?;
    scene.peer.restart()?;
    scene.read(&Zeros::key(0), written)?;
    scene.place(&Zeros::key(1), placed)?;
    assert_eq!(scene.read(&Zeros::key(1), placed)?, "backend");
    expect(&scene.get(&Zeros::key(2))?, 404);
    scene.rests()
}

#[test]
fn what_only_an_earlier_version_can_read_is_not_given_up() -> Result<()> {
    let (folder, zeros) = (dirs::temporary("larger")?, Zeros { dirty: true, ..LARGER });
    zeros.fill(folder.path(), 1 << 30)?;
    for _ in 0..2 {
        let refused = start_in(folder.path()).err().context("it starts")?;
        let text = format!("{refused:#}");
        assert!(text.contains("3 objects that are not in the bucket lie here in pieces of more than"), "{text}");
    }
    Ok(())
}

/// As versions before this one made them.
const LARGER: Zeros = Zeros { bucket: BUCKET, objects: 3, pieces: 2, piece_bytes: 4 << 20, dirty: true };

/// A peer whose cached objects are fresh without end.
fn start_in(folder: &Path) -> Result<Scene> {
    Scene::start_with(|spec| {
        spec.data_path = Some(folder.to_path_buf());
        spec.capacity = "1GiB".to_owned();
        spec.object_storage = "freshness: immutable".to_owned();
    })
}

/// Bytes of pieces, once the housekeeping of every shard has counted them.
fn cache_bytes(scene: &Scene) -> Result<f64> {
    let counted = || {
        let metrics = scene.peer.metrics().ok()?;
        let tasks = metrics.sum("dfstore_cache_tasks", &[]);
        (tasks >= 26.0).then(|| metrics.sum("dfstore_cache_bytes", &[]))
    };
    eventually("the shards have counted", PATIENCE, counted)
}

#[test]
fn a_peer_told_to_stop_finishes_what_is_in_flight() -> Result<()> {
    let mut scene = Scene::start()?;
    let (large, upload) = (Payload::new(5, 8 * PIECE), Payload::new(6, TWO_PIECES));
    scene.put("large", EPHEMERAL, large)?;
    let mut download = Connection::open(scene.peer.address())?;
    download.send_head("GET", &Scene::path("large"), &[], 0)?;
    let head = download.read_head()?;
    let mut writer = Connection::open(scene.peer.address())?;
    writer.send_head("PUT", &format!("{}?mode=2", Scene::path("upload")), &[], upload.length)?;
    writer.send(&upload.range(0..PIECE))?;
    let received = || {
        let metrics = scene.peer.metrics().ok()?;
        let both = metrics.sum("dfstore_requests_in_flight", &[("face", "http")]) >= 2.0;
        // Its connection has come to the shard that it belongs to.
        (both && metrics.sum("dfstore_uploads_open", &[]) == 1.0).then_some(())
    };
    eventually("both are in flight", PATIENCE, received)?;
    scene.peer.process().signal(Signal::TERM)?;
    let (address, mut refused) = (scene.peer.address(), false);
    while !refused && scene.peer.process().ended()?.is_none() {
        refused = Connection::open(address).and_then(|mut new| new.request("GET", "/healthy", &[], b"")).is_err();
    }
    writer.send(&upload.range(PIECE..upload.length))?;
    expect(&writer.response(false)?, 200);
    let mut body = Vec::new();
    download.read_body(&head, |bytes| body.extend_from_slice(bytes)).context("the download ends whole")?;
    assert!(same(&body, large));
    drop((download, writer));
    let status = scene.peer.process().wait(PATIENCE)?;
    assert_eq!(status.code(), Some(0));
    scene.peer.restart()?;
    assert_eq!(scene.read("upload", upload)?, "local");
    scene.rests()
}

#[test]
fn an_upload_of_a_file_outlives_a_kill_of_its_peer() -> Result<()> {
    // The command line finds the peer again at its address, so that must be one we know.
    let port = ports::free(1)?[0];
    let mut scene = Scene::start_with(|spec| spec.listen_port = port)?;
    let (payload, folder) = (Payload::new(7, 40 * PIECE + 3), dirs::temporary("source")?);
    let source = folder.path().join("file");
    std::fs::write(&source, payload.bytes())?;
    let (source, endpoint) = (source.display().to_string(), scene.peer.endpoint());
    let url = format!("dfs://{BUCKET}/file");
    let copying = std::thread::spawn(move || dfstore(&["-e", &endpoint, "cp", "-m", "ephemeral", &source, &url]));
    let began = || {
        let metrics = scene.peer.metrics().ok()?;
        (metrics.sum("dfstore_requests_in_flight", &[("face", "native")]) >= 1.0).then_some(())
    };
    eventually("the upload is in flight", PATIENCE, began)?;
    scene.peer.kill9()?;
    scene.peer.restart()?;
    copying.join().map_err(|_| anyhow::anyhow!("panicked"))??.success()?;
    assert_eq!(scene.read("file", payload)?, "local");
    scene.rests()
}
