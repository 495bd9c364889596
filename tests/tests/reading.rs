//! Promises about reading: what it costs the backend, where bytes come from, how fresh they are.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dfstore_tests::data::{PIECE, Payload};
use dfstore_tests::eventually;
use dfstore_tests::faulty_backend::{Fault, Rule};
use dfstore_tests::http::Connection;
use dfstore_tests::scene::{ASYNC, BUCKET, EPHEMERAL, PATIENCE, SYNC, Scene, expect, right, right_range, same};
use http::Method;

/// Two pieces and a bit.
const THREE_PIECES: u64 = 2 * PIECE + 12_345;

#[test]
fn a_piece_is_fetched_once_however_many_ask_at_once() -> Result<()> {
    let scene = Scene::start()?;
    let payload = Payload::new(1, 10 * PIECE);
    scene.place("hot", payload)?;
    let expected = Arc::new(payload.bytes());
    thread::scope(|scope| {
        let clients: Vec<_> = (0..16).map(|_| scope.spawn(|| download(&scene, "hot", &expected))).collect();
        clients.into_iter().try_for_each(|client| client.join().expect("no panic"))
    })?;
    assert_eq!(scene.backend.bytes_sent(), payload.length);
    assert_eq!(scene.backend.requests_of(&Method::GET), 10, "one per piece");
    assert_eq!(scene.backend.requests_of(&Method::HEAD), 1);
    assert!(scene.peer.metrics()?.sum("dfstore_fetches_joined_total", &[]) > 0.0);
    scene.rests()
}

/// Reads an object as it arrives and compares it, without keeping it.
fn download(scene: &Scene, key: &str, expected: &[u8]) -> Result<()> {
    let mut connection = Connection::open(scene.peer.address())?;
    connection.send_head("GET", &Scene::path(key), &[], 0)?;
    let head = connection.read_head()?;
    ensure!(head.status == 200, "{head:?}");
    let (mut at, mut equal) = (0, true);
    let length = connection.read_body(&head, |bytes| {
        equal &= expected.get(at..at + bytes.len()) == Some(bytes);
        at += bytes.len();
    })?;
    ensure!(equal && length == expected.len() as u64, "wrong bytes in {length}");
    Ok(())
}

#[test]
fn a_range_fetches_only_the_pieces_it_needs() -> Result<()> {
    let scene = Scene::start()?;
    let payload = Payload::new(2, 10 * PIECE);
    scene.place("ranged", payload)?;
    scene.read_range("ranged", payload, 2 * PIECE - 10..2 * PIECE + 10)?;
    let mut ranges: Vec<_> = scene.backend.seen().into_iter().filter_map(|seen| seen.range).collect();
    ranges.sort();
    assert_eq!(ranges, ["bytes=2097152-4194303", "bytes=4194304-6291455"], "pieces 1 and 2");
    assert_eq!(scene.backend.bytes_sent(), 2 * PIECE);
    scene.read_range("ranged", payload, PIECE..PIECE + 1)?;
    scene.read_range("ranged", payload, 3 * PIECE - 1..3 * PIECE)?;
    assert_eq!(scene.backend.bytes_sent(), 2 * PIECE, "they are here now");
    let head = scene.ask("HEAD", "ranged", &[("Range", "bytes=0-9")])?;
    expect(&head, 200);
    assert_eq!(scene.backend.bytes_sent(), 2 * PIECE, "a HEAD fetches nothing");
    scene.rests()
}

#[test]
fn every_answer_says_where_it_came_from() -> Result<()> {
    let scene = Scene::start_with(|spec| spec.object_storage = "freshness: always".to_owned())?;
    let payload = Payload::new(3, THREE_PIECES);
    scene.place("remote", payload)?;
    assert_eq!(scene.read("remote", payload)?, "backend");
    scene.until_local("remote")?;
    assert_eq!(scene.read("remote", payload)?, "local");
    assert_eq!(scene.backend.bytes_sent(), payload.length, "fetched once");

    scene.backend.set_down(true);
    assert_eq!(scene.read("remote", payload)?, "stale");
    assert_eq!(scene.read_range("remote", payload, 5..500)?, "stale");
    assert_eq!(scene.ask("HEAD", "remote", &[])?.header("x-dfs-cache"), Some("stale"));
    scene.put("written", ASYNC, payload)?;
    assert_eq!(scene.read("written", payload)?, "pending");
    scene.put("kept", EPHEMERAL, payload)?;
    assert_eq!(scene.read("kept", payload)?, "local");
    let miss = scene.get("never-seen")?;
    expect(&miss, 504);
    assert!(miss.header("retry-after").is_some() && miss.text().starts_with("{\"errors\":"));

    scene.backend.set_down(false);
    let asked = scene.ask("GET", "remote", &[("Cache-Control", "no-cache")])?;
    assert_eq!(right(&asked, payload)?, "local", "confirmed, so no longer stale");
    expect(&scene.get("never-seen")?, 404);
    scene.rests()
}

#[test]
fn served_bytes_are_counted_once_by_their_source() -> Result<()> {
    let scene = Scene::start()?;
    let payload = Payload::new(4, THREE_PIECES);
    scene.place("counted", payload)?;
    scene.read("counted", payload)?;
    scene.until_local("counted")?;
    scene.read("counted", payload)?;
    scene.read_range("counted", payload, 10..110)?;
    let metrics = scene.peer.metrics()?;
    let served = |source: &str| metrics.sum("dfstore_served_bytes_total", &[("source", source)]);
    // A piece may be on disk already when the first reader comes to it.
    let length = payload.length as f64;
    assert_eq!(served("backend") + served("local"), 2.0 * length + 100.0);
    assert!(served("local") >= length + 100.0 && served("backend") >= PIECE as f64);
    assert_eq!(metrics.sum("dfstore_served_bytes_total", &[]), 2.0 * length + 100.0);
    assert_eq!(metrics.sum("dfstore_backend_received_bytes_total", &[]), length);
    scene.rests()
}

#[test]
fn an_object_is_checked_as_often_as_its_bucket_says() -> Result<()> {
    let buckets = "buckets: { scene: { freshness: always }, frozen: { freshness: immutable }, short: { freshness: { ttl: 300ms } } }";
    let scene = Scene::start_with(|spec| spec.object_storage = buckets.to_owned())?;
    let (old, new) = (Payload::new(5, 1000), Payload::new(6, 1000));
    let read = |bucket: &str, headers: &[(&str, &str)]| {
        let path = format!("/buckets/{bucket}/objects/k");
        let answer = scene.peer.request("GET", &path, headers, b"")?;
        expect(&answer, 200);
        Ok::<_, anyhow::Error>(if same(&answer.body, old) { "old" } else { "new" })
    };
    let buckets = [BUCKET, "frozen", "short", "usual"];
    for name in buckets {
        let bucket = scene.backend.endpoint().bucket(name);
        if name != BUCKET {
            bucket.create()?;
        }
        bucket.put("k", &old.bytes())?;
        assert_eq!(read(name, &[])?, "old");
        bucket.put("k", &new.bytes())?;
    }
    scene.backend.forget();
    assert_eq!(read("frozen", &[])?, "old");
    assert_eq!(read("usual", &[])?, "old", "checked less than 30 s ago");
    assert_eq!(scene.backend.requests(), 0, "neither asks the backend");
    assert_eq!(read(BUCKET, &[])?, "new", "always asks");
    eventually("300 ms pass", PATIENCE, || read("short", &[]).is_ok_and(|found| found == "new").then_some(()))?;

    scene.backend.forget();
    for _ in 0..3 {
        assert_eq!(read(BUCKET, &[])?, "new");
    }
    assert_eq!((scene.backend.requests_of(&Method::HEAD), scene.backend.requests()), (3, 3), "one HEAD each");
    scene.backend.forget();
    for bucket in ["usual", "frozen"] {
        assert_eq!(read(bucket, &[("Cache-Control", "no-cache")])?, "new");
    }
    assert_eq!(scene.backend.requests_of(&Method::HEAD), 2, "one HEAD each");
    scene.rests()
}

#[test]
fn an_answer_that_nobody_waited_for_is_not_taken_for_a_new_one() -> Result<()> {
    let scene = Scene::start_with(|spec| spec.object_storage = "freshness: { ttl: 1ms }".to_owned())?;
    let (old, new) = (Payload::new(16, 1000), Payload::new(17, 1000));
    scene.place("left", old)?;
    scene.read("left", old)?;
    scene.until_local("left")?;
    scene.backend.set_rules([Rule::on(Method::HEAD, Fault::Delay(Duration::from_millis(300))).times(1)]);
    scene.backend.forget();
    let answered = |scene: &Scene| {
        let heads = scene.peer.metrics()?.sum("dfstore_backend_requests_total", &[("operation", "head")]);
        Ok::<_, anyhow::Error>(heads)
    };
    let before = answered(&scene)?;
    let mut client = Connection::open(scene.peer.address())?;
    client.send_head("GET", &Scene::path("left"), &[], 0)?;
    eventually("the peer asks", PATIENCE, || (scene.backend.requests() > 0).then_some(()))?;
    drop(client);
    let arrived = || answered(&scene).is_ok_and(|heads| heads > before).then_some(());
    eventually("the backend answers", PATIENCE, arrived)?;
    scene.bucket.put("left", &new.bytes())?;
    scene.read("left", new)?;
    scene.rests()
}

#[test]
fn a_check_counts_only_if_it_began_after_the_request() -> Result<()> {
    let scene = Scene::start_with(|spec| spec.object_storage = "freshness: always".to_owned())?;
    let (old, new) = (Payload::new(18, 1000), Payload::new(19, 1000));
    scene.place("watched", old)?;
    scene.read("watched", old)?;
    // The backend has looked before it changes, and answers after that.
    scene.backend.set_rules([Rule::on(Method::HEAD, Fault::AnswerLate(Duration::from_millis(500))).times(1)]);
    thread::scope(|scope| {
        let earlier = scope.spawn(|| scene.read("watched", old));
        eventually("the backend has looked", PATIENCE, || (scene.backend.held() > 0).then_some(()))?;
        scene.bucket.put("watched", &new.bytes())?;
        scene.read("watched", new)?;
        earlier.join().expect("no panic").map(drop)
    })
}

#[test]
fn an_object_that_was_deleted_elsewhere_is_gone_at_the_next_check() -> Result<()> {
    let scene = Scene::start()?;
    let payload = Payload::new(7, 5000);
    scene.place("brief", payload)?;
    scene.read("brief", payload)?;
    scene.bucket.delete("brief")?;
    scene.read("brief", payload)?;
    expect(&scene.ask("GET", "brief", &[("Cache-Control", "no-cache")])?, 404);
    expect(&scene.get("brief")?, 404);
    scene.place("brief", payload)?;
    assert_eq!(scene.read("brief", payload)?, "backend", "absence is not remembered");
    scene.rests()
}

#[test]
fn a_range_is_of_one_version_even_if_pieces_of_the_old_one_are_here() -> Result<()> {
    let scene = Scene::start()?;
    let (old, new) = (Payload::new(8, THREE_PIECES), Payload::new(9, THREE_PIECES));
    scene.place("replaced", old)?;
    let before = scene.ask("GET", "replaced", &[("Range", "bytes=0-99")])?;
    right_range(&before, old, 0..100)?;
    scene.place("replaced", new)?;
    // The old version counts as fresh, but its second piece can no longer be had.
    let after = scene.ask("GET", "replaced", &[("Range", "bytes=2097152-2097158")])?;
    right_range(&after, new, PIECE..PIECE + 7)?;
    assert_ne!(before.header("etag"), after.header("etag"));
    scene.read("replaced", new)?;
    let seen = scene.backend.seen();
    assert!(seen.iter().filter(|seen| seen.range.is_some()).all(|seen| seen.if_match.is_some()));
    scene.rests()
}

#[test]
fn a_range_over_an_old_piece_and_a_missing_one_breaks_off_instead_of_mixing() -> Result<()> {
    let scene = Scene::start()?;
    let (old, new) = (Payload::new(14, THREE_PIECES), Payload::new(15, THREE_PIECES));
    scene.place("half", old)?;
    scene.read_range("half", old, 0..100)?;
    scene.place("half", new)?;
    let mut connection = Connection::open(scene.peer.address())?;
    connection.send_head("GET", &Scene::path("half"), &[("Range", "bytes=2097148-2097158")], 0)?;
    let mut body = Vec::new();
    let head = connection.read_head();
    let cut = head.and_then(|head| connection.read_body(&head, |bytes| body.extend_from_slice(bytes)));
    assert!(
        cut.is_err() && body.len() <= 4 && old.first_difference(PIECE - 4, &body).is_none(),
        "{} bytes",
        body.len()
    );
    scene.read_range("half", new, PIECE - 4..PIECE + 7)?;
    scene.rests()
}

#[test]
fn a_reader_overtaken_by_a_new_version_gets_no_byte_of_it() -> Result<()> {
    let scene = Scene::start()?;
    let (old, new) = (Payload::new(10, 6 * PIECE), Payload::new(11, 6 * PIECE));
    scene.place("changing", old)?;
    // The first piece comes at once; the others are looked up in the bucket after it has changed.
    let first = Rule::on(Method::GET, Fault::Delay(Duration::ZERO)).with_range("bytes=0-");
    scene.backend.set_rules([first, Rule::on(Method::GET, Fault::Hold)]);
    let mut connection = Connection::open(scene.peer.address())?;
    connection.send_head("GET", &Scene::path("changing"), &[], 0)?;
    let head = connection.read_head()?;
    assert_eq!(head.status, 200);
    let (mut body, mut changed) = (Vec::new(), None);
    let cut = connection.read_body(&head, |bytes| {
        body.extend_from_slice(bytes);
        // An answer that breaks off takes along what of it is still on its way: the first piece has come before.
        if body.len() as u64 >= PIECE && changed.is_none() {
            changed = Some(scene.bucket.put("changing", &new.bytes()));
            scene.backend.release();
        }
    });
    changed.context("the first piece has come")??;
    assert!(cut.is_err(), "the transfer breaks off: the rest of this version does not exist any more");
    assert!(body.len() as u64 >= PIECE && old.first_difference(0, &body).is_none(), "{} bytes", body.len());
    scene.backend.set_rules([]);
    scene.read("changing", new)?;
    scene.rests()
}

#[test]
fn a_version_being_read_stays_whole_when_it_is_replaced_here() -> Result<()> {
    let scene = Scene::start()?;
    let (old, new) = (Payload::new(12, 8 * PIECE), Payload::new(13, PIECE));
    scene.put("pinned", EPHEMERAL, old)?;
    let mut connection = Connection::open(scene.peer.address())?;
    connection.send_head("GET", &Scene::path("pinned"), &[], 0)?;
    let head = connection.read_head()?;
    scene.put("pinned", EPHEMERAL, new)?;
    scene.read("pinned", new)?;
    let mut body = Vec::new();
    connection.read_body(&head, |bytes| body.extend_from_slice(bytes)).context("the whole old version")?;
    assert!(same(&body, old));
    drop(connection);
    scene.rests()
}

#[test]
fn one_connection_reads_cold_objects_of_all_shards() -> Result<()> {
    let scene = Scene::start_with(|spec| spec.shards = "3".to_owned())?;
    let payload = |number: u64| Payload::new(100 + number, number * 7_001 + u64::from(number == 59) * PIECE);
    for number in 0..60 {
        scene.bucket.put(&format!("many/{number}"), &payload(number).bytes())?;
    }
    let mut connection = Connection::open(scene.peer.address())?;
    for _ in 0..2 {
        for number in 0..60 {
            let answer = connection.request("GET", &Scene::path(&format!("many/{number}")), &[], b"")?;
            right(&answer, payload(number)).with_context(|| format!("object {number}"))?;
        }
    }
    drop(connection);
    scene.rests()
}

/// Pieces in the store that were read from memory, and from disk.
fn piece_reads(scene: &Scene) -> Result<(f64, f64)> {
    let metrics = scene.peer.metrics()?;
    let count = |from| metrics.sum("dfstore_piece_reads_total", &[("from", from)]);
    Ok((count("memory"), count("disk")))
}

#[test]
fn what_is_used_again_comes_from_memory_and_gives_way_to_what_needs_the_room() -> Result<()> {
    let mut scene = Scene::start()?;
    let (hot, large) = (Payload::new(1, 2 * PIECE), Payload::new(2, 80 << 20));
    scene.put("hot", SYNC, hot)?;
    scene.read("hot", hot)?;
    assert_eq!(piece_reads(&scene)?, (2.0, 0.0), "it was just written");
    scene.put("large", SYNC, large)?;
    // Far more than the share of reads passes through, several at once, and finds room.
    for _ in 0..2 {
        thread::scope(|scope| -> Result<()> {
            let readers: Vec<_> = (0..3).map(|_| scope.spawn(|| scene.read("large", large))).collect();
            readers.into_iter().try_for_each(|reader| reader.join().expect("no panic").map(drop))
        })?;
        scene.read("hot", hot)?;
    }
    let metrics = scene.peer.metrics()?;
    let (kept, all) = (metrics.sum("dfstore_arena_hot_bytes", &[]), metrics.sum("dfstore_arena_bytes", &[]));
    assert!(kept > 0.0 && kept <= all * 3.0 / 8.0, "{kept} of {all}");
    scene.read("hot", hot)?;
    let before = piece_reads(&scene)?;
    let damaged = |scene: &Scene| Ok::<_, anyhow::Error>(scene.peer.metrics()?.sum("dfstore_crc_failures_total", &[]));
    scene.peer.flip_on_disk(hot, 100)?;
    scene.read("hot", hot)?;
    assert_eq!((piece_reads(&scene)?, damaged(&scene)?), ((before.0 + 2.0, before.1), 0.0), "the disk is not asked");
    scene.peer.restart()?;
    scene.read("hot", hot)?;
    assert_eq!(damaged(&scene)?, 1.0, "nothing is in memory after a start");
    scene.rests()
}
