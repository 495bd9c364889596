//! Promises about writing: when a client is acknowledged, who sees what, and what the bucket holds at rest.

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use dfstore_tests::data::{PIECE, Payload};
use dfstore_tests::eventually;
use dfstore_tests::faulty_backend::{Fault, Rule};
use dfstore_tests::http::{Connection, multipart};
use dfstore_tests::peer::{Peer, PeerSpec};
use dfstore_tests::samples::Samples;
use dfstore_tests::scene::{ASYNC, BUCKET, EPHEMERAL, PATIENCE, SYNC, Scene, expect, same};
use http::Method;

/// More than one piece, less than a multipart upload.
const TWO_PIECES: u64 = PIECE + 54_321;
/// Three parts of a multipart upload: 16, 16 and 8 MiB.
const THREE_PARTS: u64 = 40 << 20;

/// Every write to the bucket fails in a way that heals; everything else works.
fn no_writes() -> [Rule; 2] {
    [Rule::on(Method::PUT, Fault::internal_error()), Rule::on(Method::POST, Fault::internal_error())]
}

#[test]
fn an_asynchronous_write_needs_no_backend_and_arrives_when_there_is_one() -> Result<()> {
    let scene = Scene::start()?;
    scene.backend.set_down(true);
    let objects: Vec<_> = [0, 1, TWO_PIECES, 17 << 20].map(|length| Payload::new(length, length)).into();
    for payload in &objects {
        let key = format!("async/{}", payload.length);
        scene.put(&key, ASYNC, *payload)?;
        assert_eq!(scene.read(&key, *payload)?, "pending");
        let head = scene.ask("HEAD", &key, &[])?;
        assert_eq!(head.header("content-length"), Some(&*payload.length.to_string()));
    }
    scene.backend.set_down(false);
    for payload in &objects {
        let key = format!("async/{}", payload.length);
        scene.until_written_back(&key, *payload)?;
        scene.until_clean(&key)?;
        assert_eq!(scene.read(&key, *payload)?, "local");
    }
    let seen = scene.backend.seen();
    let reads = seen.iter().filter(|seen| seen.method == Method::GET && !seen.query.contains("uploads"));
    assert_eq!(reads.count(), 0, "what was written is not read back");
    Ok(())
}

#[test]
fn listings_show_writes_and_hide_deletions_that_the_backend_does_not_know() -> Result<()> {
    let scene = Scene::start()?;
    let payload = Payload::new(1, 1000);
    for key in ["b", "d/1", "d/3", "f", "g/1"] {
        scene.bucket.put(key, b"old")?;
    }
    scene.backend.set_rules([Rule::on(Method::PUT, Fault::internal_error()), Rule::on(Method::DELETE, Fault::Hang)]);
    for key in ["a", "d/2", "e/1", "z"] {
        scene.put(key, ASYNC, payload)?;
    }
    scene.put("b", ASYNC, payload)?;
    // Nobody waits for the answer, which would take as long as the peer has patience with the backend.
    let mut deletion = Connection::open(scene.peer.address())?;
    deletion.send_head("DELETE", &Scene::path("f"), &[], 0)?;
    let all = ["a", "b", "d/1", "d/2", "d/3", "e/1", "g/1", "z"];
    eventually("the deletion", PATIENCE, || scene.keys("").is_ok_and(|keys| keys == all).then_some(()))?;
    expect(&scene.get("f")?, 404);
    let entry = &scene.list("prefix=b")?["Metadatas"][0];
    assert_eq!(entry["ContentLength"], 1000, "the newer length");

    assert_eq!(scene.keys("prefix=d%2F")?, ["d/1", "d/2", "d/3"]);
    let grouped = scene.list("delimiter=%2F")?;
    assert_eq!(grouped["CommonPrefixes"], serde_json::json!(["d/", "e/", "g/"]));
    assert_eq!(scene.keys("delimiter=%2F")?, ["a", "b", "z"]);
    for limit in [1, 2, 3, 7] {
        assert_eq!(all_pages(&scene, limit)?, all, "in pages of {limit}");
    }
    Ok(())
}

fn all_pages(scene: &Scene, limit: usize) -> Result<Vec<String>> {
    let (mut found, mut marker) = (Vec::new(), String::new());
    loop {
        let query = format!("limit={limit}&marker={}", marker.replace('/', "%2F"));
        let page = scene.list(&query)?;
        found.extend(scene.keys(&query)?);
        if page["IsTruncated"] != true {
            return Ok(found);
        }
        marker = page["NextMarker"].as_str().unwrap_or_default().to_owned();
        ensure!(!marker.is_empty() && found.len() < 100, "{page}");
    }
}

#[test]
fn a_synchronous_write_is_acknowledged_when_the_bucket_has_it_and_not_before() -> Result<()> {
    let scene = Scene::start()?;
    for (number, length) in [TWO_PIECES, 17 << 20].into_iter().enumerate() {
        let key = format!("sync/{number}");
        let (old, new) = (Payload::new(2, length), Payload::new(3, length));
        scene.put(&key, SYNC, old)?;
        assert!(scene.has(&key, old), "at once");
        assert_eq!(scene.read(&key, old)?, "local");
        for (fault, status) in [
            (Fault::internal_error(), 504),
            (Fault::slow_down(Some(3)), 503),
            (Fault::access_denied(), 403),
            (Fault::Cut, 504),
        ] {
            scene.backend.set_rules([Rule::on(Method::PUT, fault)]);
            let refused = scene.try_put(&key, SYNC, new)?;
            // A server that refuses before it has read the body cuts the connection, sometimes before its answer is read.
            assert!([status, 504].contains(&refused.status()), "{} {}", refused.status(), refused.text());
            scene.read(&key, old)?;
        }
        scene.backend.set_rules([]);
        assert!(scene.has(&key, old), "the version before is untouched");
        scene.put(&key, SYNC, new)?;
        assert!(scene.has(&key, new));
        assert_eq!(scene.read(&key, new)?, "local");
    }
    Ok(())
}

#[test]
fn an_ephemeral_object_never_reaches_the_bucket_and_survives_a_restart() -> Result<()> {
    let mut scene = Scene::start()?;
    let (payload, marker) = (Payload::new(4, TWO_PIECES), Payload::new(5, 10));
    scene.put("ephemeral", EPHEMERAL, payload)?;
    scene.peer.restart()?;
    assert_eq!(scene.read("ephemeral", payload)?, "local");
    assert_eq!(scene.keys("")?, ["ephemeral"]);
    for number in 0..4 {
        let key = format!("marker-{number}");
        scene.put(&key, ASYNC, marker)?;
        scene.until_clean(&key)?;
    }
    assert!(!scene.backend.seen().iter().any(|seen| seen.path.contains("ephemeral")), "not even asked about it");
    expect(&scene.peer.delete(BUCKET, "ephemeral")?, 200);
    expect(&scene.get("ephemeral")?, 404);
    Ok(())
}

#[test]
fn a_deleted_object_does_not_come_back_from_a_pending_upload() -> Result<()> {
    let scene = Scene::start()?;
    let payload = Payload::new(6, TWO_PIECES);
    scene.backend.set_rules(no_writes());
    scene.put("pending", ASYNC, payload)?;
    eventually("an attempt", PATIENCE, || (scene.backend.requests_of(&Method::PUT) > 0).then_some(()))?;
    expect(&scene.peer.delete(BUCKET, "pending")?, 200);
    expect(&scene.get("pending")?, 404);
    assert!(scene.keys("")?.is_empty());
    scene.backend.set_rules([]);
    scene.backend.forget();
    // Later writes pass through the same queues.
    for number in 0..4 {
        let key = format!("later-{number}");
        scene.put(&key, ASYNC, payload)?;
        scene.until_clean(&key)?;
    }
    assert!(!scene.backend.seen().iter().any(|seen| seen.path.contains("pending") && seen.method == Method::PUT));
    assert_eq!(scene.backend.stored(BUCKET, "pending"), None);
    expect(&scene.get("pending")?, 404);
    Ok(())
}

#[test]
fn a_deleted_object_does_not_come_back_from_an_upload_under_way() -> Result<()> {
    let scene = Scene::start()?;
    let slowly = Fault::Delay(Duration::from_millis(500));
    for (key, length, delayed) in [("whole", TWO_PIECES, Method::PUT), ("parts", THREE_PARTS, Method::POST)] {
        let payload = Payload::new(7, length);
        scene.backend.forget();
        scene.backend.set_rules([Rule::on(delayed.clone(), slowly.clone())]);
        scene.put(key, ASYNC, payload)?;
        eventually("it is under way", PATIENCE, || (scene.backend.requests_of(&delayed) > 0).then_some(()))?;
        expect(&scene.peer.delete(BUCKET, key)?, 200);
        expect(&scene.get(key)?, 404);
        assert_eq!(scene.backend.stored(BUCKET, key), None, "{key}: told after the upload had ended");
        assert!(scene.keys("")?.is_empty());
    }
    Ok(())
}

#[test]
fn a_deletion_is_acknowledged_without_a_backend_and_carried_out_later() -> Result<()> {
    let mut scene = Scene::start()?;
    let payload = Payload::new(8, TWO_PIECES);
    scene.put("doomed", SYNC, payload)?;
    scene.backend.set_down(true);
    expect(&scene.peer.delete(BUCKET, "doomed")?, 202);
    expect(&scene.get("doomed")?, 404);
    scene.peer.kill9()?;
    scene.peer.restart()?;
    expect(&scene.get("doomed")?, 404);
    assert!(scene.has("doomed", payload), "so far");
    scene.backend.set_down(false);
    let gone = || scene.backend.stored(BUCKET, "doomed").is_none().then_some(());
    eventually("the bucket is told", PATIENCE, gone)?;
    expect(&scene.get("doomed")?, 404);
    Ok(())
}

#[test]
fn the_newest_version_is_in_the_bucket_at_rest() -> Result<()> {
    let scene = Scene::start()?;
    let slowly = Fault::Delay(Duration::from_millis(400));
    for (key, length) in [("whole", TWO_PIECES), ("parts", 17 << 20)] {
        let versions: Vec<_> = (0..3).map(|number| Payload::new(10 + number, length + number)).collect();
        scene.backend.forget();
        scene.backend.set_rules([Rule::on(Method::PUT, slowly.clone()).times(2)]);
        for version in &versions {
            scene.put(key, ASYNC, *version)?;
            scene.read(key, *version)?;
            eventually("an upload", PATIENCE, || (scene.backend.requests_of(&Method::PUT) > 0).then_some(()))?;
        }
        scene.until_clean(key)?;
        assert!(scene.has(key, versions[2]), "{key}");
        assert_eq!(scene.read(key, versions[2])?, "local");
    }
    Ok(())
}

#[test]
fn of_writes_at_once_to_one_key_one_wins_everywhere() -> Result<()> {
    let scene = Scene::start()?;
    let payloads: Vec<_> = (0..12).map(|number| Payload::new(20 + number, 100_000 + number)).collect();
    thread::scope(|scope| {
        let scene = &scene;
        let writers = payloads.iter().zip([ASYNC, SYNC, ASYNC].into_iter().cycle());
        let writers: Vec<_> =
            writers.map(|(payload, mode)| scope.spawn(move || scene.put("contested", mode, *payload))).collect();
        writers.into_iter().try_for_each(|writer| writer.join().expect("no panic"))
    })?;
    scene.until_clean("contested")?;
    let here = scene.get("contested")?.body;
    let winner = payloads.iter().find(|payload| same(&here, **payload));
    let winner = *winner.expect("the bytes of one of them");
    assert!(scene.has("contested", winner));
    let asked = scene.ask("GET", "contested", &[("Cache-Control", "no-cache")])?;
    assert!(same(&asked.body, winner));
    Ok(())
}

#[test]
fn of_writes_and_deletions_at_once_the_last_one_holds_everywhere() -> Result<()> {
    let scene = Scene::start()?;
    for round in 0..6 {
        let key = format!("raced-{round}");
        let payload = |number: u64| Payload::new(60 + number, 50_000 + number);
        thread::scope(|scope| {
            let (scene, key) = (&scene, &key);
            let racers = (0..9_u64).map(|number| {
                scope.spawn(move || match number % 3 {
                    0 => scene.put(key, ASYNC, payload(number)),
                    1 => scene.put(key, SYNC, payload(number)),
                    _ => scene.peer.delete(BUCKET, key).map(drop),
                })
            });
            racers.collect::<Vec<_>>().into_iter().try_for_each(|racer| racer.join().expect("no panic"))
        })?;
        let agree = || {
            let answer = scene.get(&key).ok()?;
            let stored = scene.backend.stored(BUCKET, &key);
            let same = if answer.status() == 404 { stored.is_none() } else { stored.as_ref() == Some(&answer.body) };
            (same && answer.header("x-dfs-cache") != Some("pending")).then_some(())
        };
        eventually("peer and bucket agree", PATIENCE, agree)?;
    }
    Ok(())
}

#[test]
fn an_object_replaced_by_others_right_after_its_write_back_is_seen() -> Result<()> {
    let scene = Scene::start()?;
    let (ours, theirs) = (Payload::new(51, TWO_PIECES), Payload::new(52, TWO_PIECES));
    for (key, mode) in [("async", ASYNC), ("sync", SYNC)] {
        scene.backend.forget();
        scene.backend.set_rules([Rule::on(Method::HEAD, Fault::Hold).times(1)]);
        thread::scope(|scope| {
            let written = scope.spawn(|| scene.put(key, mode, ours));
            let asked = || (scene.backend.requests_of(&Method::HEAD) > 0).then_some(());
            eventually("the peer asks what it has written", PATIENCE, asked)?;
            scene.bucket.put(key, &theirs.bytes())?;
            scene.backend.release();
            written.join().expect("no panic")
        })?;
        scene.until_clean(key)?;
        let fresh = scene.ask("GET", key, &[("Cache-Control", "no-cache")])?;
        assert!(same(&fresh.body, theirs), "{key}: {} {:?} {:?}", fresh.status(), fresh.head, scene.backend.seen());
    }
    Ok(())
}

#[test]
fn a_write_is_seen_only_when_it_is_complete() -> Result<()> {
    let scene = Scene::start_with(|spec| spec.environment = dirty_limit("4MiB"))?;
    let (old, new) = (Payload::new(40, 1000), Payload::new(41, TWO_PIECES));
    scene.put("partial", EPHEMERAL, old)?;
    for _ in 0..4 {
        let mut connection = Connection::open(scene.peer.address())?;
        connection.send_head("PUT", &Scene::path("partial"), &[], new.length)?;
        connection.send(&new.range(0..PIECE + 1000))?;
        scene.read("partial", old)?;
        drop(connection);
    }
    // What the broken uploads held is free again: four of them would not fit.
    let fits = || scene.try_put("partial", EPHEMERAL, new).is_ok_and(|answer| answer.status() == 200).then_some(());
    eventually("there is room", PATIENCE, fits)?;
    scene.read("partial", new)?;
    scene.rests()
}

fn dirty_limit(limit: &str) -> Vec<(String, String)> {
    vec![("DFSTORE_DIRTY_LIMIT".to_owned(), limit.to_owned())]
}

#[test]
fn writes_beyond_the_dirty_limit_wait_and_then_get_503_while_reads_go_on() -> Result<()> {
    let scene = Scene::start_with(|spec| spec.environment = dirty_limit("4MiB"))?;
    let (cached, piece) = (Payload::new(42, TWO_PIECES), Payload::new(43, PIECE));
    scene.put("cached", SYNC, cached)?;
    scene.backend.set_down(true);
    scene.put("first", ASYNC, piece)?;
    scene.put("second", ASYNC, piece)?;
    thread::scope(|scope| {
        let began = Instant::now();
        let refused = scope.spawn(|| scene.try_put("third", ASYNC, piece));
        while !refused.is_finished() {
            scene.read("cached", cached)?;
            assert_eq!(scene.read("second", piece)?, "pending");
        }
        let refused = refused.join().expect("no panic")?;
        ensure!(began.elapsed() >= Duration::from_secs(14), "it has waited {:?} only", began.elapsed());
        expect(&refused, 503);
        assert!(refused.header("retry-after").is_some() && refused.text().contains("storage.dirtyLimit"));
        Ok(())
    })
}

#[test]
fn a_write_beyond_the_dirty_limit_is_let_in_when_there_is_room() -> Result<()> {
    let scene = Scene::start_with(|spec| spec.environment = dirty_limit("4MiB"))?;
    let piece = Payload::new(43, PIECE);
    scene.backend.set_rules([Rule::on(Method::PUT, Fault::Hold)]);
    scene.put("first", ASYNC, piece)?;
    scene.put("second", ASYNC, piece)?;
    thread::scope(|scope| {
        let third = scope.spawn(|| scene.try_put("third", ASYNC, piece));
        let is_under_way = |metrics: &Samples| metrics.sum("dfstore_requests_in_flight", &[]) > 0.0;
        scene.peer.metrics_until("the third one has come", PATIENCE, |metrics| {
            third.is_finished() || is_under_way(metrics)
        })?;
        // A write that is let in is over in less time than all these reads take.
        (0..20).try_for_each(|_| scene.read("second", piece).map(drop))?;
        ensure!(!third.is_finished(), "it does not wait: {:?}", third.join().expect("no panic"));
        scene.backend.release();
        expect(&third.join().expect("no panic")?, 200);
        scene.until_written_back("third", piece)
    })
}

#[test]
fn a_deletion_that_the_backend_refuses_is_an_error_and_the_object_stays() -> Result<()> {
    let scene = Scene::start()?;
    let payload = Payload::new(50, TWO_PIECES);
    scene.put("guarded", SYNC, payload)?;
    scene.backend.set_rules([Rule::on(Method::DELETE, Fault::access_denied())]);
    expect(&scene.peer.delete(BUCKET, "guarded")?, 403);
    scene.read("guarded", payload)?;
    assert_eq!(scene.keys("")?, ["guarded"]);
    assert!(scene.has("guarded", payload));
    Ok(())
}

#[test]
fn an_object_larger_than_the_dirty_limit_is_refused_for_good() -> Result<()> {
    let scene = Scene::start_with(|spec| spec.environment = dirty_limit("8MiB"))?;
    let payload = Payload::new(44, 8 * (1 << 20) + 1);
    for mode in [ASYNC, SYNC, EPHEMERAL] {
        let refused = scene.try_put("large", mode, payload)?;
        expect(&refused, 507);
        assert!(refused.text().contains("storage.dirtyLimit"), "{}", refused.text());
    }
    // A form does not say how long its file is.
    let (content_type, body) = multipart(&[("mode", "0")], &payload.bytes());
    let headers = [("Content-Type", content_type.as_str())];
    expect(&scene.peer.request("PUT", &Scene::path("large"), &headers, &body)?, 507);
    expect(&scene.get("large")?, 404);
    scene.put("largest", ASYNC, Payload::new(45, 8 << 20))?;
    let input = dfstore_tests::dirs::temporary("large")?;
    let file = input.path().join("file");
    std::fs::File::create(&file)?.write_all(&payload.bytes())?;
    let copied = scene.peer.dfstore(&["cp", &file.to_string_lossy(), &format!("dfs://{BUCKET}/large")])?;
    assert_eq!(copied.code, Some(1));
    assert!(copied.stderr.contains("storage.dirtyLimit"), "{}", copied.stderr);
    Ok(())
}

#[test]
fn what_the_backend_refuses_for_good_stays_dirty_and_visible() -> Result<()> {
    let mut scene = Scene::start()?;
    let payload = Payload::new(46, TWO_PIECES);
    scene.backend.set_rules([Rule::on(Method::PUT, Fault::access_denied())]);
    scene.put("denied", ASYNC, payload)?;
    let nowhere = Peer::object_path("no-such-bucket", "k") + "?mode=0";
    expect(&scene.peer.request("PUT", &nowhere, &[], b"homeless")?, 200);
    scene.peer.metrics_until("two dead letters", PATIENCE, |metrics| {
        metrics.sum("dfstore_writeback_dead_letters", &[]) == 2.0
            && metrics.sum("dfstore_dirty_bytes", &[]) == (TWO_PIECES + 8) as f64
    })?;
    assert_eq!(scene.read("denied", payload)?, "pending");
    assert_eq!(scene.peer.get("no-such-bucket", "k")?.body, b"homeless");
    let log = scene.peer.process().log();
    assert!(log.lines().any(|line| line.contains("dead letter") && line.contains("denied")), "{log}");

    scene.backend.set_rules([]);
    scene.backend.endpoint().bucket("no-such-bucket").create()?;
    scene.peer.restart()?;
    scene.until_written_back("denied", payload)?;
    let arrived = || (scene.backend.stored("no-such-bucket", "k")? == b"homeless").then_some(());
    eventually("the restart tries again", PATIENCE, arrived)
}

#[test]
fn a_copy_of_a_dirty_object_is_as_good_as_a_write() -> Result<()> {
    let scene = Scene::start()?;
    let payload = Payload::new(47, TWO_PIECES);
    scene.backend.set_rules(no_writes());
    scene.put("original", ASYNC, payload)?;
    scene.put("passing", EPHEMERAL, payload)?;
    expect(&scene.peer.copy(BUCKET, "original", "copy")?, 200);
    expect(&scene.peer.copy(BUCKET, "passing", "passing-copy")?, 200);
    assert_eq!(scene.read("copy", payload)?, "pending");
    assert_eq!(scene.keys("")?, ["copy", "original", "passing", "passing-copy"]);
    expect(&scene.peer.delete(BUCKET, "original")?, 200);
    scene.backend.set_rules([]);
    scene.until_written_back("copy", payload)?;
    scene.read("passing-copy", payload)?;
    assert_eq!(scene.backend.stored(BUCKET, "original"), None);
    assert_eq!(scene.backend.stored(BUCKET, "passing-copy"), None, "an ephemeral object has ephemeral copies");
    Ok(())
}

#[test]
fn an_upload_resumes_after_kill_9_with_the_parts_the_bucket_has() -> Result<()> {
    let mut scene = Scene::start()?;
    let payload = Payload::new(48, THREE_PARTS);
    scene.backend.set_rules([Rule::on(Method::PUT, Fault::internal_error()).with_query("partNumber=3")]);
    scene.put("resumed", ASYNC, payload)?;
    let parts = |scene: &Scene, number: u32| {
        let query = format!("partNumber={number}");
        scene.backend.seen().iter().filter(|seen| seen.query.contains(&query)).count()
    };
    eventually("two attempts at part 3", PATIENCE, || (parts(&scene, 3) >= 2).then_some(()))?;
    assert_eq!(
        (parts(&scene, 1), parts(&scene, 2)),
        (1, 1),
        "the second attempt sends the missing part only: {:?}",
        scene.backend.seen()
    );
    scene.peer.kill9()?;
    scene.backend.set_rules([]);
    scene.backend.forget();
    scene.peer.restart()?;
    scene.until_written_back("resumed", payload)?;
    assert_eq!((parts(&scene, 1), parts(&scene, 2), parts(&scene, 3)), (0, 0, 1));
    scene.until_clean("resumed")?;
    scene.read("resumed", payload)?;
    Ok(())
}

#[test]
fn a_write_that_was_replaced_while_its_peer_was_away_does_not_come_back() -> Result<()> {
    let mut scene = Scene::start()?;
    let (old, new) = (Payload::new(49, TWO_PIECES), Payload::new(50, 1000));
    scene.backend.set_rules(no_writes());
    scene.put("replaced", ASYNC, old)?;
    scene.peer.kill9()?;
    scene.backend.set_rules([]);
    let other = Peer::start_with(PeerSpec::new(&scene.bucket.endpoint))?;
    expect(&other.put(BUCKET, "replaced", SYNC, &new.bytes())?, 200);
    scene.backend.forget();
    scene.peer.restart()?;
    eventually("the newer version", PATIENCE, || scene.read("replaced", new).ok().map(drop))?;
    assert!(scene.has("replaced", new), "the bucket has the newer version");
    assert_eq!(scene.backend.requests_of(&Method::PUT), 0, "{:?}", scene.backend.seen());
    Ok(())
}
