//! Bad days of the backend: the client gets a clear answer, and nothing that is not verified is kept.

use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Error, Result, ensure};
use dfstore_tests::data::{PIECE, Payload};
use dfstore_tests::eventually;
use dfstore_tests::faulty_backend::{Fault, Rule};
use dfstore_tests::http::Connection;
use dfstore_tests::native::NativeClient;
use dfstore_tests::scene::{ASYNC, BUCKET, EPHEMERAL, PATIENCE, SYNC, Scene, expect};
use http::Method;

const TWO_PIECES: u64 = PIECE + 12_345;

/// What goes wrong with the body of an object, and the status that a client gets.
fn faults() -> Vec<(&'static str, Fault, u16)> {
    vec![
        ("error", Fault::internal_error(), 504),
        ("slow-down", Fault::slow_down(Some(7)), 503),
        ("denied", Fault::access_denied(), 403),
        ("reset", Fault::Cut, 504),
        ("answer-lost", Fault::LoseAnswer, 504),
        ("empty", Fault::BodyBreaks(0), 504),
        ("broken", Fault::BodyBreaks(1_000_000), 504),
        ("short", Fault::BodyShort(1), 504),
        ("wrong-range", Fault::ContentRange(format!("bytes 1-2097152/{TWO_PIECES}")), 504),
        ("wrong-length", Fault::ContentRange("bytes 0-2097151/9999999".to_owned()), 503),
        ("no-range", Fault::RangeIgnored, 503),
        ("other-version", Fault::Etag("\"other\"".to_owned()), 503),
    ]
}

#[test]
fn a_read_that_the_backend_spoils_is_a_clear_error_and_leaves_nothing() -> Result<()> {
    let scene = Scene::start()?;
    let payload = Payload::new(1, TWO_PIECES);
    for (key, _, _) in faults() {
        scene.bucket.put(key, &payload.bytes())?;
    }
    let rule = |(key, fault, _): (&str, Fault, u16)| Rule::on(Method::GET, fault).at(format!("{BUCKET}/{key}"));
    scene.backend.set_rules(faults().into_iter().map(rule));
    thread::scope(|scope| {
        let reads: Vec<_> = faults().into_iter().map(|fault| (scope.spawn(|| scene.get(fault.0)), fault.2)).collect();
        for ((read, status), (key, ..)) in reads.into_iter().zip(faults()) {
            let answer = read.join().expect("no panic").with_context(|| key.to_owned())?;
            assert_eq!(answer.status(), status, "{key}: {}", answer.text());
            assert!(answer.text().starts_with("{\"errors\":\"") && answer.header("content-range").is_none());
            let retry = answer.header("retry-after").map(str::to_owned);
            assert_eq!(retry.is_some(), status != 403, "{key}");
            assert!(key != "slow-down" || retry.as_deref() == Some("7"), "what the backend asked for: {retry:?}");
        }
        Ok::<_, anyhow::Error>(())
    })?;
    assert_eq!(scene.peer.metrics()?.sum("dfstore_served_bytes_total", &[]), 0.0);
    scene.backend.set_rules([]);
    for (key, _, _) in faults() {
        assert_eq!(scene.read(key, payload)?, "backend", "{key}: nothing of it was kept");
    }
    scene.rests()
}

#[test]
fn a_read_that_fails_half_way_breaks_off_and_keeps_what_is_verified() -> Result<()> {
    let scene = Scene::start()?;
    let payload = Payload::new(2, TWO_PIECES);
    scene.place("half", payload)?;
    scene.backend.set_rules([Rule::on(Method::GET, Fault::internal_error()).after(1)]);
    let mut connection = Connection::open(scene.peer.address())?;
    connection.send_head("GET", &Scene::path("half"), &[], 0)?;
    let head = connection.read_head()?;
    assert_eq!(head.status, 200, "the first piece came");
    let mut body = Vec::new();
    assert!(connection.read_body(&head, |bytes| body.extend_from_slice(bytes)).is_err(), "cut, not completed");
    assert!(payload.first_difference(0, &body).is_none() && body.len() as u64 <= PIECE);
    scene.backend.set_rules([]);
    scene.backend.forget();
    scene.read("half", payload)?;
    assert_eq!(scene.backend.bytes_sent(), TWO_PIECES - PIECE, "only the missing piece");
    scene.rests()
}

#[test]
fn faults_that_pass_at_once_are_not_seen_by_the_client() -> Result<()> {
    let scene = Scene::start()?;
    let payload = Payload::new(3, TWO_PIECES);
    for (number, fault) in
        [Fault::internal_error(), Fault::Cut, Fault::BodyBreaks(70_000), Fault::BodyShort(1)].into_iter().enumerate()
    {
        let key = format!("blip/{number}");
        scene.place(&key, payload)?;
        scene.backend.set_rules([Rule::on(Method::GET, fault).times(2)]);
        scene.read(&key, payload)?;
    }
    scene.backend.set_rules([Rule::always(Fault::Delay(Duration::from_millis(300)))]);
    scene.bucket.put("slow", &payload.bytes())?;
    scene.read("slow", payload)?;
    let short = Payload::new(6, 100_000);
    scene.backend.set_rules([Rule::on(Method::GET, Fault::BodyTrickles(1000, Duration::from_millis(3)))]);
    scene.place("trickling", short)?;
    scene.read("trickling", short)?;
    scene.rests()
}

#[test]
fn the_head_of_an_object_fails_as_clearly_as_its_body() -> Result<()> {
    let scene = Scene::start()?;
    let payload = Payload::new(4, 1000);
    scene.place("k", payload)?;
    for (fault, status) in [
        (Fault::internal_error(), 504),
        (Fault::Status { status: 503, code: "SlowDown", retry_after_s: Some(4) }, 503),
        (Fault::access_denied(), 403),
        (Fault::Cut, 504),
    ] {
        scene.backend.set_rules([Rule::on(Method::HEAD, fault.clone())]);
        for method in ["GET", "HEAD"] {
            let answer = scene.ask(method, "k", &[])?;
            assert_eq!(answer.status(), status, "{fault:?}");
        }
    }
    scene.backend.set_rules([Rule::on(Method::GET, Fault::internal_error())]);
    let list = scene.peer.request("GET", &format!("/buckets/{BUCKET}/metadatas"), &[], b"")?;
    expect(&list, 504);
    scene.backend.set_rules([]);
    assert_eq!(scene.read("k", payload)?, "backend");
    scene.rests()
}

#[test]
fn an_object_that_hangs_holds_up_no_other() -> Result<()> {
    let scene = Scene::start()?;
    let payload = Payload::new(5, TWO_PIECES);
    scene.place("warm", payload)?;
    scene.read("warm", payload)?;
    scene.bucket.put("cold", &payload.bytes())?;
    for number in 0..2 {
        scene.bucket.put(&format!("hung/{number}"), &payload.range(0..1000))?;
    }
    scene.backend.set_rules([
        Rule::on(Method::GET, Fault::Hang).at(format!("{BUCKET}/hung")),
        Rule::on(Method::PUT, Fault::Hang).at(format!("{BUCKET}/hung")),
    ]);
    scene.backend.forget();
    let mut waiting = Vec::new();
    for number in 0..2 {
        let mut connection = Connection::open(scene.peer.address())?;
        connection.send_head("GET", &Scene::path(&format!("hung/{number}")), &[], 0)?;
        waiting.push(connection);
    }
    scene.put("hung/write", ASYNC, payload)?;
    eventually("all of them hang", PATIENCE, || {
        let hung = |method: &Method| scene.backend.requests_of(method);
        (hung(&Method::GET) >= 2 && hung(&Method::PUT) >= 1).then_some(())
    })?;
    scene.read("warm", payload)?;
    scene.read("cold", payload)?;
    scene.put("quick", SYNC, payload)?;
    scene.put("quick", ASYNC, payload)?;
    scene.until_clean("quick")?;
    drop(waiting);
    scene.backend.set_rules([]);
    // What hangs is given up only after its time limit.
    Ok(())
}

#[test]
fn a_write_back_survives_every_fault_that_heals() -> Result<()> {
    let scene = Scene::start()?;
    let faults = [Fault::internal_error(), Fault::slow_down(None), Fault::Cut, Fault::LoseAnswer];
    let objects: Vec<_> = (0..4).map(|number| Payload::new(10 + number, TWO_PIECES + number)).collect();
    let rules = faults
        .into_iter()
        .zip(0..)
        .map(|(fault, number)| Rule::on(Method::PUT, fault).at(format!("{BUCKET}/healing/{number}")).times(1));
    scene.backend.set_rules(rules);
    for (number, payload) in objects.iter().enumerate() {
        scene.put(&format!("healing/{number}"), ASYNC, *payload)?;
    }
    for (number, payload) in objects.iter().enumerate() {
        let key = format!("healing/{number}");
        scene.until_written_back(&key, *payload)?;
        scene.until_clean(&key)?;
        scene.read(&key, *payload)?;
    }
    assert_eq!(scene.peer.metrics()?.sum("dfstore_writeback_attempts_total", &[("outcome", "error")]), 4.0);
    scene.rests()
}

/// An outage has made the pauses long, in both shards; the end of it is seen by one object.
#[test]
fn what_an_outage_has_put_off_is_written_back_at_once_when_it_ends() -> Result<()> {
    const SHORTEST_PAUSE_MS: u64 = 3000;
    let scene = Scene::start()?;
    scene.backend.set_down(true);
    let object = |number: u64| (format!("put-off/{number}"), Payload::new(80 + number, 1000));
    for (key, payload) in (0..12).map(object) {
        scene.put(&key, ASYNC, payload)?;
    }
    let now_ms = || SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0));
    let put_off = || {
        let entries = NativeClient::connect_any(scene.peer.address()).ok()?.queue().ok()?;
        let are_long = entries.iter().all(|entry| entry.due_at_ms > now_ms() + SHORTEST_PAUSE_MS);
        (entries.len() == 12 && are_long).then_some(entries)
    };
    let entries = eventually("all pauses are long", PATIENCE, put_off)?;
    scene.backend.set_down(false);
    let (first, others) = entries.split_first().context("twelve")?;
    scene.peer.dfstore(&["writeback", "retry", &format!("dfs://{BUCKET}/{}", first.key)])?.success()?;
    for (key, payload) in (0..12).map(object) {
        scene.until_written_back(&key, payload)?;
    }
    let due = others.iter().map(|entry| entry.due_at_ms).min().context("eleven")?;
    ensure!(now_ms() < due, "each has waited for its own time");
    Ok(())
}

/// The answer to what made the object is lost: that the bucket has it is seen by a look, and it is not sent again.
#[test]
fn a_write_whose_answer_is_lost_is_recognised_and_not_sent_again() -> Result<()> {
    let scene = Scene::start()?;
    // The larger one is sent in two parts.
    let (short, long) = (Payload::new(20, TWO_PIECES), Payload::new(21, (16 << 20) + 5));
    let lost = |method, key: &str| Rule::on(method, Fault::LoseAnswer).at(format!("{BUCKET}/{key}")).times(1);
    scene.backend.set_rules([lost(Method::PUT, "short"), lost(Method::POST, "long").with_query("uploadId")]);
    for (key, payload) in [("short", short), ("long", long)] {
        scene.put(key, ASYNC, payload)?;
        scene.until_written_back(key, payload)?;
    }
    scene.peer.dfstore(&["writeback", "wait"])?.success()?;
    for (key, payload) in [("short", short), ("long", long)] {
        ensure!(scene.has(key, payload), "{key} is not there");
        scene.read(key, payload)?;
    }
    let sent = |method, key, query| scene.backend.requests_for(&method, key, query);
    assert_eq!(sent(Method::PUT, "short", ""), 1, "{:?}", scene.backend.seen());
    assert_eq!((sent(Method::POST, "long", "uploads"), sent(Method::POST, "long", "uploadId")), (1, 1));
    assert_eq!(sent(Method::PUT, "long", "partNumber"), 2, "{:?}", scene.backend.seen());
    let attempts = |outcome| Ok::<_, Error>(scene.peer.metrics()?.sum("dfstore_writeback_attempts_total", &[outcome]));
    assert_eq!((attempts(("outcome", "error"))?, attempts(("outcome", "ok"))?), (2.0, 2.0));
    scene.backend.until_no_uploads()
}

#[test]
fn a_refused_deletion_of_what_the_bucket_never_gets_says_that_it_is_gone() -> Result<()> {
    let scene = Scene::start()?;
    let there = Payload::new(52, 1000);
    scene.put("guarded", SYNC, there)?;
    scene.backend.set_rules([Rule::on(Method::DELETE, Fault::access_denied())]);
    scene.put("guarded", EPHEMERAL, Payload::new(53, 2000))?;
    let refused = scene.peer.delete(BUCKET, "guarded")?;
    expect(&refused, 403);
    ensure!(refused.text().contains("had not reached the bucket is deleted"), "{}", refused.text());
    scene.read("guarded", there).map(drop)
}

#[test]
fn a_deletion_that_was_acknowledged_is_not_undone_by_one_that_is_refused() -> Result<()> {
    let scene = Scene::start()?;
    scene.put("twice", SYNC, Payload::new(54, 1000))?;
    scene.backend.set_rules([Rule::on(Method::DELETE, Fault::internal_error())]);
    expect(&scene.peer.delete(BUCKET, "twice")?, 202);
    scene.backend.set_rules([Rule::on(Method::DELETE, Fault::access_denied())]);
    // The second time it has been set aside as a dead letter.
    for _ in 0..2 {
        expect(&scene.peer.delete(BUCKET, "twice")?, 202);
        expect(&scene.get("twice")?, 404);
    }
    scene.backend.set_rules([]);
    expect(&scene.peer.delete(BUCKET, "twice")?, 200);
    expect(&scene.get("twice")?, 404);
    ensure!(scene.backend.stored(BUCKET, "twice").is_none(), "the bucket still has it");
    scene.rests()
}

/// One deletion is under way for both, and none of them is told that it will be done.
#[test]
fn deletions_at_the_same_time_are_refused_together() -> Result<()> {
    let scene = Scene::start()?;
    let payload = Payload::new(55, 1000);
    scene.put("both", SYNC, payload)?;
    scene.backend.set_rules([Rule::on(Method::DELETE, Fault::internal_error())]);
    scene.backend.forget();
    thread::scope(|threads| {
        let mut deletions = Vec::new();
        for _ in 0..2 {
            let told = scene.backend.requests_of(&Method::DELETE);
            deletions.push(threads.spawn(|| scene.peer.delete(BUCKET, "both")));
            let again = || (scene.backend.requests_of(&Method::DELETE) > told).then_some(());
            eventually("the bucket is told", PATIENCE, again)?;
        }
        scene.backend.set_rules([Rule::on(Method::DELETE, Fault::access_denied())]);
        for deletion in deletions {
            expect(&deletion.join().expect("no panic")?, 403);
        }
        scene.read("both", payload).map(drop)
    })?;
    scene.rests()
}

/// A deletion that is done is what is known last, but for a write that the bucket may have taken since.
#[test]
fn what_was_written_after_a_deletion_is_not_missing_because_nobody_can_look() -> Result<()> {
    let scene = Scene::start()?;
    let (old, new) = (Payload::new(70, 1000), Payload::new(71, 2000));
    scene.put("source", SYNC, new)?;
    let keys = ["copied", "written", "lost", "deleted", "refused", "not-copied"];
    for key in keys {
        scene.put(key, SYNC, old)?;
        expect(&scene.peer.delete(BUCKET, key)?, 200);
    }
    let put = |fault, key: &str| Rule::on(Method::PUT, fault).at(format!("{BUCKET}/{key}"));
    let faults = [put(Fault::LoseAnswer, "lost"), put(Fault::access_denied(), "refused")];
    let blind = [Method::GET, Method::HEAD].map(|method| Rule::on(method, Fault::internal_error()));
    scene.backend.set_rules(faults.into_iter().chain(blind));
    expect(&scene.peer.copy(BUCKET, "source", "copied")?, 504);
    expect(&scene.peer.copy(BUCKET, "deleted", "not-copied")?, 404);
    for (key, status) in [("written", 504), ("lost", 504), ("refused", 403)] {
        expect(&scene.try_put(key, SYNC, new)?, status);
    }
    let is_written = |key: &str| ["copied", "written", "lost"].contains(&key);
    for key in keys {
        expect(&scene.get(key)?, if is_written(key) { 504 } else { 404 });
        ensure!(scene.has(key, new) == is_written(key), "{key}");
    }
    scene.backend.set_rules([]);
    for key in keys {
        if is_written(key) { scene.read(key, new).map(drop)? } else { expect(&scene.get(key)?, 404) }
    }
    scene.rests()
}

/// The upload and the deletion cross in either order.
#[test]
fn a_refused_deletion_leaves_what_is_on_its_way() -> Result<()> {
    let scene = Scene::start()?;
    for number in 0..4 {
        let (key, payload) = (format!("held-{number}"), Payload::new(60 + number, 3000));
        scene.backend.set_rules([Rule::on(Method::PUT, Fault::Hold), Rule::on(Method::DELETE, Fault::access_denied())]);
        scene.backend.forget();
        scene.put(&key, ASYNC, payload)?;
        let begun = || (scene.backend.requests_of(&Method::PUT) == 1).then_some(());
        eventually("its upload is under way", PATIENCE, begun)?;
        thread::scope(|scope| {
            let deletion = scope.spawn(|| scene.peer.delete(BUCKET, &key));
            scene.read(&key, payload)?;
            scene.backend.release();
            expect(&deletion.join().expect("no panic")?, 403);
            scene.read(&key, payload)?;
            scene.until_written_back(&key, payload)
        })?;
    }
    Ok(())
}
