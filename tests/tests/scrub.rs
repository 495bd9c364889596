//! What lies on the disk is read again by and by: damage is found before anybody asks for it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use dfstore_tests::cluster::{BUCKET, Cluster, Node};
use dfstore_tests::data::{PIECE, Payload};
use dfstore_tests::eventually;
use dfstore_tests::faulty_backend::{Fault, Rule};
use dfstore_tests::peer::Peer;
use dfstore_tests::scene::{ASYNC, EPHEMERAL, PATIENCE, SYNC, Scene, expect};
use http::Method;
use serde_json::Value;

const TWO_PIECES: u64 = PIECE + 12_345;
/// Fast enough for a test, unless its speed is what is tested.
const FAST: &str = "1GiB";

fn start() -> Result<Scene> {
    // What is damaged on disk may still be right in memory.
    Scene::start_with(|spec| (spec.storage, spec.hot) = (format!("scrubRate: {FAST}"), false))
}

/// A scrub from beginning to end: what it says, and its exit code.
fn scrub(peer: &Peer) -> Result<(Value, Option<i32>)> {
    let output = peer.dfstore(&["scrub", "--now", "--json"])?;
    Ok((serde_json::from_str(&output.text())?, output.code))
}

fn counts(scrub: &Value) -> [u64; 4] {
    ["pieces", "damaged", "replaceable", "lost"].map(|name| scrub[name].as_u64().unwrap_or(u64::MAX))
}

#[test]
fn a_scrub_finds_damage_before_anybody_reads_it() -> Result<()> {
    let scene = start()?;
    let (clean, sound, dirty) = (Payload::new(1, TWO_PIECES), Payload::new(2, TWO_PIECES), Payload::new(3, TWO_PIECES));
    scene.put("clean", SYNC, clean)?;
    scene.put("sound", EPHEMERAL, sound)?;
    scene.backend.set_rules([Rule::on(Method::PUT, Fault::internal_error())]);
    scene.put("dirty", ASYNC, dirty)?;
    let first = scene.peer.dfstore(&["scrub"])?.success()?;
    assert!(first.text().starts_with("no check"), "{}", first.text());
    let (found, code) = scrub(&scene.peer)?;
    assert_eq!((counts(&found), code), ([6, 0, 0, 0], Some(0)), "{found}");
    assert_eq!((&found["bytes"], &found["bytes_of_all"]), (&(3 * TWO_PIECES).into(), &found["bytes_of_all"]));

    scene.peer.flip_on_disk(clean, PIECE + 100)?;
    scene.peer.flip_on_disk(dirty, 100)?;
    let (found, code) = scrub(&scene.peer)?;
    assert_eq!((counts(&found), code), ([6, 2, 1, 1], Some(1)), "{found}");
    assert_eq!(scene.peer.dfstore(&["scrub"])?.code, Some(1), "it is told again");
    assert_eq!(scene.peer.metrics()?.sum("dfstore_scrubbed_pieces_total", &[]), 12.0);

    // What the bucket has is fetched from there, and then there is no damage any more but to what only this peer had.
    scene.backend.forget();
    scene.read("clean", clean)?;
    assert_eq!(scene.backend.bytes_sent(), TWO_PIECES - PIECE, "the damaged piece only");
    scene.until_local("clean")?;
    scene.read("sound", sound)?;
    expect(&scene.get("dirty")?, 500);
    let (found, _) = scrub(&scene.peer)?;
    assert_eq!(counts(&found), [6, 1, 0, 1], "{found}");
    Ok(())
}

#[test]
fn a_scrub_goes_no_faster_than_told() -> Result<()> {
    let scene = Scene::start_with(|spec| {
        spec.shards = "1".to_owned();
        spec.storage = "scrubRate: 4MiB".to_owned();
    })?;
    scene.put("object", EPHEMERAL, Payload::new(4, 4 * PIECE))?;
    let began = Instant::now();
    let (found, _) = scrub(&scene.peer)?;
    assert_eq!(counts(&found), [4, 0, 0, 0]);
    ensure!(began.elapsed() >= Duration::from_secs(2), "8 MiB at 4 MiB/s took {:?}", began.elapsed());
    scene.rests()
}

#[test]
fn a_scrub_begins_by_itself() -> Result<()> {
    let scene = Scene::start_with(|spec| spec.storage = format!("scrubRate: {FAST}, scrubPeriod: 100ms"))?;
    scene.put("object", EPHEMERAL, Payload::new(5, TWO_PIECES))?;
    scene.peer.metrics_until("it is read again and again", PATIENCE, |metrics| {
        metrics.sum("dfstore_scrubbed_pieces_total", &[]) > 6.0
    })
}

#[test]
fn a_damaged_piece_that_the_bucket_lacks_is_mended_from_a_replica() -> Result<()> {
    mended_from_a_replica(0)
}

#[test]
fn so_it_is_at_the_peer_that_wrote_the_object() -> Result<()> {
    mended_from_a_replica(2)
}

/// Node 2 writes, and is no seed.
fn mended_from_a_replica(index: usize) -> Result<()> {
    let cluster = Cluster::builder().seeds(2).peers(1).start()?;
    let payload = Payload::new(6, TWO_PIECES);
    cluster.faulty()?.set_rules([Rule::on(Method::PUT, Fault::access_denied())]);
    cluster.nodes()[2].put_with_ack("object", ASYNC, payload, "peers:3")?;
    // No write-back reads it from now on, and finds the damage first.
    let dead = |node: &Node| node.peer().metrics().ok()?.sum("dfstore_writeback_dead_letters", &[]).into();
    let is_dead = || (cluster.nodes()[..2].iter().filter_map(dead).sum::<f64>() > 0.0).then_some(());
    eventually("the write is a dead letter", PATIENCE, is_dead)?;
    let damaged = &cluster.nodes()[index];
    damaged.peer().flip_on_disk(payload, 100)?;
    let (found, code) = scrub(damaged.peer())?;
    assert_eq!((&counts(&found)[1..], code), (&[1, 1, 0][..], Some(0)), "{found}");
    let mended = || {
        let (found, _) = scrub(damaged.peer()).ok()?;
        (counts(&found) == [2, 0, 0, 0]).then_some(())
    };
    eventually("the piece is there again", PATIENCE, mended)?;
    cluster.faulty()?.set_rules([]);
    damaged.peer().dfstore(&["writeback", "retry", &format!("dfs://{BUCKET}/object")])?.success()?;
    let backend = cluster.faulty()?;
    let arrived = || backend.stored(BUCKET, "object").filter(|bytes| dfstore_tests::scene::same(bytes, payload));
    eventually("the bucket has it", PATIENCE, arrived).map(drop)
}

/// The write-back meets the damage first, and gets the piece from a replica as well.
#[test]
fn a_damaged_piece_does_not_keep_an_object_from_the_bucket_while_a_replica_has_it() -> Result<()> {
    let cluster = Cluster::builder().seeds(2).peers(1).start()?;
    let payload = Payload::new(7, TWO_PIECES);
    cluster.faulty()?.set_rules([Rule::on(Method::PUT, Fault::internal_error())]);
    cluster.nodes()[2].put_with_ack("object", ASYNC, payload, "peers:3")?;
    for seed in &cluster.nodes()[..2] {
        seed.peer().flip_on_disk(payload, if seed.id() == cluster.nodes()[0].id() { 100 } else { PIECE + 100 })?;
    }
    cluster.faulty()?.set_rules([]);
    let backend = cluster.faulty()?;
    let arrived = || backend.stored(BUCKET, "object").filter(|bytes| dfstore_tests::scene::same(bytes, payload));
    eventually("the bucket has it", PATIENCE, arrived).map(drop)
}
