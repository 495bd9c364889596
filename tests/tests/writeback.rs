//! The write-back queue as people see and steer it, what the bucket is left with, and what becomes of a pending write
//! when others change the object.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};
use dfstore_tests::cli::Output;
use dfstore_tests::data::Payload;
use dfstore_tests::eventually;
use dfstore_tests::faulty_backend::{Fault, Rule};
use dfstore_tests::peer::{Peer, PeerSpec};
use dfstore_tests::s3s_server::uploads::InProgress;
use dfstore_tests::scene::{ASYNC, BUCKET, PATIENCE, SYNC, Scene, expect};
use http::Method;
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// A part of a multipart upload.
const PART: u64 = 16 * MIB;
/// Two parts, and a little more.
const PARTS: u64 = 33 * MIB;
/// Write-backs that a peer with one shard runs at once, unless the bucket asks for less.
const AT_ONCE: usize = 4;

fn url(key: &str) -> String {
    format!("dfs://{BUCKET}/{key}")
}

/// The queue, as `writeback ls --json` prints it.
fn queue(scene: &Scene, args: &[&str]) -> Result<Vec<Value>> {
    let output = scene.peer.dfstore(&[&["writeback", "ls", "--json"], args].concat())?.success()?;
    output.text().lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

fn states(scene: &Scene, args: &[&str]) -> Result<Vec<(String, String)>> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(queue(scene, args)?.iter().map(|entry| (text(&entry["key"]), text(&entry["state"]))).collect())
}

fn failed(output: &Output, words: &str) {
    assert_eq!(output.code, Some(1), "{}", output.stderr);
    assert!(output.stderr.contains(words), "{}", output.stderr);
}

fn until_dead(scene: &Scene, count: usize) -> Result<()> {
    let dead = || (queue(scene, &["--dead"]).ok()?.len() == count).then_some(());
    eventually(&format!("{count} dead letters"), PATIENCE, dead)
}

fn file_of(payload: Payload) -> Result<(tempfile::TempDir, String)> {
    let folder = dfstore_tests::dirs::temporary("file")?;
    let path = folder.path().join("file");
    std::fs::write(&path, payload.bytes())?;
    Ok((folder, path.to_string_lossy().into_owned()))
}

#[test]
fn what_waits_is_listed_with_its_reason_and_waited_for() -> Result<()> {
    let scene = Scene::start()?;
    scene.backend.set_down(true);
    let payload = Payload::new(1, 1000);
    for key in ["a", "b/1", "b/2"] {
        scene.put(key, ASYNC, payload)?;
    }
    let delayed = || {
        let found = queue(&scene, &[]).ok()?;
        (found.len() == 3 && found.iter().all(|entry| entry["attempts"].as_u64() >= Some(1))).then_some(found)
    };
    let found = eventually("all have failed once", PATIENCE, delayed)?;
    for entry in &found {
        ensure!(entry["last_error"].as_str().is_some_and(|error| error.contains("backend")), "{entry}");
        ensure!(entry["length"] == 1000 && entry["kind"] == "put" && entry["bytes_sent"] == 0, "{entry}");
        ensure!(entry["next_attempt_at"].is_string() || entry["state"] != "delayed", "{entry}");
    }
    let keys = |args: &[&str]| Ok::<_, anyhow::Error>(states(&scene, args)?.into_iter().map(|(key, _)| key).collect());
    let below: Vec<String> = keys(&[&url("b/")])?;
    assert_eq!(below, ["b/1", "b/2"]);
    let first: Vec<String> = keys(&["--limit", "1"])?;
    assert_eq!(first, ["a"]);
    assert_eq!(keys(&["dfs://other"])?, Vec::<String>::new());
    let people = scene.peer.dfstore(&["writeback", "ls"])?.success()?.text();
    assert!(people.starts_with("STATE") && people.contains(&url("b/2")) && people.contains("again in"), "{people}");

    let overdue = scene.peer.dfstore(&["writeback", "wait", "--timeout", "1"])?;
    failed(&overdue, "a and others wait for the backend: the backend");
    scene.backend.set_down(false);
    scene.peer.dfstore(&["writeback", "wait"])?.success()?;
    for key in ["a", "b/1", "b/2"] {
        ensure!(scene.has(key, payload), "{key} is not there");
    }
    assert!(queue(&scene, &[])?.is_empty());
    scene.rests()
}

/// The age of an entry lies between these two times.
fn is_so_old(entry: &Value, least: Duration, most: Duration) -> bool {
    let age = entry["age_ms"].as_u64().map(Duration::from_millis).unwrap_or(Duration::MAX);
    // The clocks of two programs, in whole milliseconds.
    let about = Duration::from_millis(2);
    age + about >= least && age <= most + about
}

#[test]
fn an_object_on_its_way_is_listed_with_its_age_and_how_much_is_sent() -> Result<()> {
    let scene = Scene::start()?;
    let payload = Payload::new(12, PARTS);
    // Two parts are taken, the last one is not.
    scene.backend.set_rules([Rule::on(Method::PUT, Fault::Hold).with_query("partNumber=3")]);
    let began = Instant::now();
    scene.put("large", ASYNC, payload)?;
    let acknowledged = Instant::now();
    let mut ages = Vec::new();
    eventually("two parts are there", PATIENCE, || {
        let least = acknowledged.elapsed();
        let entry = queue(&scene, &[]).ok()?.pop()?;
        let is_right = is_so_old(&entry, least, began.elapsed());
        ages.push((entry["age_ms"].clone(), is_right));
        let is_sent = entry["bytes_sent"] == 2 * PART && entry["state"] == "sending" && entry["attempts"] == 0;
        (is_sent && ages.len() > 1).then_some(())
    })
    .with_context(|| format!("{:?} {:?}", queue(&scene, &[]), scene.backend.seen()))?;
    ensure!(ages.iter().all(|(_, is_right)| *is_right) && ages[0].0 != ages[ages.len() - 1].0, "{ages:?}");
    let people = scene.peer.dfstore(&["writeback", "ls"])?.success()?.text();
    ensure!(people.contains("sending") && people.contains("32.00 MiB/33.00 MiB"), "{people}");
    scene.backend.release();
    scene.until_written_back("large", payload)?;
    scene.peer.dfstore(&["writeback", "wait"])?.success().map(drop)
}

#[test]
fn pages_of_the_queue_show_each_entry_once_and_in_order() -> Result<()> {
    let scene = Scene::start()?;
    scene.backend.set_down(true);
    let mut connection = dfstore_tests::http::Connection::open(scene.peer.address())?;
    for number in 0..1200 {
        let path = format!("{}?mode=0", Scene::path(&format!("k{number:04}")));
        expect(&connection.request("PUT", &path, &[], b"x")?, 200);
    }
    let keys: Vec<String> = states(&scene, &[])?.into_iter().map(|(key, _)| key).collect();
    let expected: Vec<String> = (0..1200).map(|number| format!("k{number:04}")).collect();
    assert_eq!(keys, expected);
    assert_eq!(states(&scene, &["--limit", "1100"])?.len(), 1100);
    Ok(())
}

#[test]
fn a_dead_letter_is_tried_again_when_a_person_says_so() -> Result<()> {
    let scene = Scene::start()?;
    let payload = Payload::new(2, 5 * MIB);
    scene.backend.set_rules([Rule::on(Method::PUT, Fault::access_denied())]);
    scene.put("denied", ASYNC, payload)?;
    until_dead(&scene, 1)?;
    failed(&scene.peer.dfstore(&["writeback", "wait"])?, "was set aside, the backend does not take it");
    scene.backend.set_rules([]);
    let retried = scene.peer.dfstore(&["writeback", "retry", &url("denied")])?.success()?;
    assert_eq!(retried.text(), format!("retry {}\n", url("denied")));
    scene.until_written_back("denied", payload)?;
    scene.peer.dfstore(&["writeback", "wait"])?.success()?;
    failed(&scene.peer.dfstore(&["writeback", "retry", &url("denied")])?, "a pending write of");
    Ok(())
}

#[test]
fn a_write_that_is_given_up_is_gone_and_the_bucket_counts_again() -> Result<()> {
    let mut scene = Scene::start()?;
    let (old, new) = (Payload::new(3, 5 * MIB), Payload::new(4, 6 * MIB));
    scene.put("kept", SYNC, old)?;
    scene.backend.set_rules([Rule::on(Method::PUT, Fault::access_denied())]);
    scene.put("kept", ASYNC, new)?;
    scene.put("only-here", ASYNC, new)?;
    until_dead(&scene, 2)?;
    let dirty = (12 * MIB) as f64;
    scene.peer.metrics_until("two are dirty", PATIENCE, |metrics| metrics.sum("dfstore_dirty_bytes", &[]) == dirty)?;
    // A prefix: all dead letters below it.
    scene.peer.dfstore(&["writeback", "drop", &format!("dfs://{BUCKET}/")])?.success()?;
    scene.read("kept", old)?;
    expect(&scene.get("only-here")?, 404);
    assert_eq!(scene.keys("")?, ["kept"]);
    scene.peer.metrics_until("nothing is dirty", PATIENCE, |metrics| metrics.sum("dfstore_dirty_bytes", &[]) == 0.0)?;
    scene.backend.set_rules([]);
    scene.peer.restart()?;
    scene.read("kept", old)?;
    expect(&scene.get("only-here")?, 404);
    assert!(queue(&scene, &[])?.is_empty() && scene.has("kept", old));
    Ok(())
}

#[test]
fn what_is_still_on_its_way_is_given_up_only_by_force() -> Result<()> {
    let scene = Scene::start()?;
    scene.backend.set_down(true);
    scene.put("waiting", ASYNC, Payload::new(5, 1000))?;
    failed(&scene.peer.dfstore(&["writeback", "drop", &url("waiting")])?, "--force");
    scene.read("waiting", Payload::new(5, 1000))?;
    scene.peer.dfstore(&["writeback", "drop", "--force", &url("waiting")])?.success()?;
    scene.backend.set_down(false);
    expect(&scene.get("waiting")?, 404);
    assert!(scene.backend.stored(BUCKET, "waiting").is_none());
    Ok(())
}

#[test]
fn a_copy_can_wait_for_the_bucket() -> Result<()> {
    let scene = Scene::start()?;
    let payload = Payload::new(6, 5 * MIB);
    let (_folder, file) = file_of(payload)?;
    scene.backend.set_rules([Rule::on(Method::PUT, Fault::internal_error()).times(2)]);
    scene.peer.dfstore(&["cp", "--wait", "backend", &file, &url("waited")])?.success()?;
    ensure!(scene.has("waited", payload), "it has not waited");
    scene.backend.set_rules([Rule::on(Method::PUT, Fault::access_denied())]);
    let refused = scene.peer.dfstore(&["cp", "--wait", "backend", &file, &url("refused")])?;
    failed(&refused, "was set aside, the backend does not take it");
    scene.read("refused", payload)?;
    Ok(())
}

/// One object that the bucket never takes holds up no other.
#[test]
fn a_poisoned_object_holds_up_no_other() -> Result<()> {
    let scene = Scene::start()?;
    scene.backend.set_rules([Rule::on(Method::PUT, Fault::internal_error()).at(format!("{BUCKET}/poison"))]);
    let payload = Payload::new(7, 1000);
    for number in 0..8 {
        scene.put(&format!("poison-{number}"), ASYNC, payload)?;
    }
    for number in 0..100 {
        scene.put(&format!("sound-{number}"), ASYNC, payload)?;
    }
    scene.peer.dfstore(&["writeback", "wait", &url("sound-")])?.success()?;
    assert_eq!(states(&scene, &[])?.len(), 8);
    Ok(())
}

#[test]
fn a_refused_deletion_leaves_what_never_reached_the_bucket() -> Result<()> {
    let mut scene = Scene::start()?;
    let (there, pending) = (Payload::new(50, 1000), Payload::new(51, 2000));
    scene.put("guarded", SYNC, there)?;
    let denied = || [Method::DELETE, Method::PUT].map(|method| Rule::on(method, Fault::access_denied()));
    scene.backend.set_rules(denied());
    scene.put("guarded", ASYNC, pending)?;
    // At once, and after answers that tell nothing.
    let unclear =
        [Fault::internal_error(), Fault::slow_down(Some(1))].map(|fault| Rule::on(Method::DELETE, fault).times(1));
    for unclear in [Vec::new(), unclear.into()] {
        scene.backend.set_rules(unclear.into_iter().chain(denied()));
        let refused = scene.peer.delete(BUCKET, "guarded")?;
        expect(&refused, 403);
        ensure!(refused.text().contains("nothing is changed"), "{}", refused.text());
        scene.read("guarded", pending)?;
        scene.peer.kill9()?;
        scene.peer.restart()?;
        scene.read("guarded", pending)?;
    }
    ensure!(scene.has("guarded", there), "the bucket has what it had");
    until_dead(&scene, 1)?;
    scene.backend.set_rules([]);
    scene.peer.dfstore(&["writeback", "retry", &url("guarded")])?.success()?;
    scene.until_written_back("guarded", pending)
}

#[test]
fn a_bucket_that_asks_for_less_gets_less() -> Result<()> {
    const NAMED: Duration = Duration::from_secs(1);
    let scene = Scene::start_with(|spec| spec.shards = "1".to_owned())?;
    let payload = Payload::new(8, 1000);
    let puts = || scene.backend.requests_of(&Method::PUT);
    let sending = || Ok::<_, Error>(states(&scene, &[])?.iter().filter(|(_, state)| state == "sending").count());
    let put_all = |name: &str| (0..6).try_for_each(|number| scene.put(&format!("{name}-{number}"), ASYNC, payload));
    // As it is otherwise: so many at once.
    scene.backend.set_rules([Rule::on(Method::PUT, Fault::Hold)]);
    put_all("before")?;
    eventually("as many as usual", PATIENCE, || (puts() == AT_ONCE).then_some(()))?;
    assert_eq!(sending()?, AT_ONCE);
    scene.backend.release();
    scene.peer.dfstore(&["writeback", "wait"])?.success()?;

    let slow_down = Rule::on(Method::PUT, Fault::slow_down(Some(1))).times(1);
    scene.backend.set_rules([slow_down, Rule::on(Method::PUT, Fault::Hold)]);
    scene.backend.forget();
    scene.put("refused", ASYNC, payload)?;
    let is_refused = || queue(&scene, &[]).is_ok_and(|found| found[0]["attempts"] == 1).then_some(());
    eventually("one is refused", PATIENCE, is_refused)?;
    put_all("after")?;
    eventually("half as many", PATIENCE, || (puts() == 1 + AT_ONCE / 2).then_some(()))?;
    // Whoever may begin begins at once: those that are not on their way now have to wait.
    assert_eq!(sending()?, AT_ONCE / 2);
    let seen = scene.backend.seen();
    // The peer counts in whole milliseconds.
    let silence = seen[1].at.duration_since(seen[0].at) + Duration::from_millis(2);
    ensure!(silence >= NAMED, "asked again after {silence:?}");
    scene.backend.release();
    scene.peer.dfstore(&["writeback", "wait"])?.success()?;
    ensure!((0..6).all(|number| scene.has(&format!("after-{number}"), payload)), "one is not there");
    scene.rests()
}

#[test]
fn an_upload_that_serves_nobody_is_aborted() -> Result<()> {
    let mut scene = Scene::start()?;
    let payload = Payload::new(9, PARTS);
    let parts_fail = || [Rule::on(Method::PUT, Fault::internal_error()).with_query("partNumber")];
    scene.backend.set_rules(parts_fail());
    scene.put("replaced", ASYNC, payload)?;
    scene.put("deleted", ASYNC, payload)?;
    scene.put("killed", ASYNC, payload)?;
    let begun = || (scene.backend.uploads().len() == 3).then_some(());
    eventually("three uploads are in progress", PATIENCE, begun)?;
    scene.put("replaced", ASYNC, Payload::new(10, 1000))?;
    expect(&scene.peer.delete(BUCKET, "deleted")?, 200);
    let one_left = || (scene.backend.uploads().len() == 1).then_some(());
    eventually("one upload is left", PATIENCE, one_left)?;

    scene.backend.set_down(true);
    scene.peer.kill9()?;
    scene.peer.restart()?;
    scene.peer.dfstore(&["writeback", "drop", "--force", &url("killed")])?.success()?;
    assert_eq!(scene.backend.uploads().len(), 1, "the bucket cannot be asked yet");
    scene.peer.kill9()?;
    scene.backend.set_rules([]);
    scene.backend.set_down(false);
    scene.peer.restart()?;
    scene.backend.until_no_uploads()?;
    assert!(scene.backend.stored(BUCKET, "killed").is_none());
    Ok(())
}

/// Uploads of another peer, which is gone: one of this key, begun long ago, and one of another key.
fn uploads_of_others(scene: &Scene, key: &str, other_key: &str) -> Result<Vec<InProgress>> {
    let mut other = Peer::start_with(PeerSpec::new(&scene.bucket.endpoint))?;
    scene.backend.set_rules([Rule::on(Method::PUT, Fault::internal_error()).with_query("partNumber")]);
    for key in [key, other_key] {
        let path = format!("{}?mode={ASYNC}", Scene::path(key));
        expect(&other.request("PUT", &path, &[], &Payload::new(13, PART).bytes())?, 200);
    }
    let uploads = || Some(scene.backend.uploads()).filter(|uploads| uploads.len() == 2);
    let uploads = eventually("two uploads of another peer", PATIENCE, uploads)?;
    other.kill9()?;
    let old = uploads.iter().find(|upload| upload.key == key).context("an upload of the key")?;
    scene.backend.age_upload(old, Duration::from_secs(3600))?;
    // As they are listed now.
    Ok(scene.backend.uploads())
}

#[test]
fn an_upload_whose_name_was_never_heard_is_found_and_aborted_and_no_other() -> Result<()> {
    let scene = Scene::start()?;
    let others = uploads_of_others(&scene, "unheard", "unheard-too")?;
    let payload = Payload::new(11, PARTS);
    scene.backend.set_rules([Rule::on(Method::POST, Fault::LoseAnswer).with_query("uploads").times(1)]);
    scene.put("unheard", ASYNC, payload)?;
    scene.until_written_back("unheard", payload)?;
    scene.peer.metrics_until("one upload is aborted", PATIENCE, |metrics| {
        metrics.sum("dfstore_stray_uploads_aborted_total", &[]) > 0.0
    })?;
    assert_eq!(scene.backend.uploads(), others, "those of others are left alone");
    assert_eq!(scene.peer.metrics()?.sum("dfstore_stray_uploads_aborted_total", &[]), 1.0);
    scene.rests()
}

/// What is written while others write there as well.
struct Contested {
    scene: Scene,
    ours: Payload,
    theirs: Payload,
}

/// A peer one of whose requests (this method, this in the query) is held back until others have written. `is_known`: it
/// replaces something.
fn contested(policy: &str, is_known: bool, ours: Payload, held: (Method, &str)) -> Result<Contested> {
    let configure = |spec: &mut PeerSpec| spec.object_storage = format!("freshness: always\n  conflict: {policy}");
    let scene = Scene::start_with(configure)?;
    let theirs = Payload::new(21, 3 * MIB);
    if is_known {
        scene.put("contested", SYNC, Payload::new(22, 1000))?;
    }
    let (method, query) = held;
    scene.backend.set_rules([Rule::on(method.clone(), Fault::Hold).with_query(query).times(1)]);
    scene.backend.forget();
    scene.put("contested", ASYNC, ours)?;
    let asked = || (scene.backend.requests_for(&method, "contested", query) > 0).then_some(());
    eventually("the peer has asked", PATIENCE, asked)?;
    scene.bucket.put("contested", &theirs.bytes())?;
    scene.backend.release();
    Ok(Contested { scene, ours, theirs })
}

/// Held back at the look, or, if the peer does not look, at its bytes.
fn contested_at_first(policy: &str) -> Result<Contested> {
    let first = if policy == "overwrite" { Method::PUT } else { Method::HEAD };
    contested(policy, true, Payload::new(20, 5 * MIB), (first, ""))
}

#[test]
fn a_pending_write_replaces_what_others_wrote_unless_told_otherwise() -> Result<()> {
    let Contested { scene, ours, .. } = contested_at_first("overwrite")?;
    scene.until_written_back("contested", ours)?;
    scene.until_clean("contested")?;
    scene.read("contested", ours)?;
    Ok(())
}

#[test]
fn a_conflict_can_be_left_to_a_person() -> Result<()> {
    let Contested { scene, ours, theirs } = contested_at_first("fail")?;
    until_dead(&scene, 1)?;
    assert!(scene.has("contested", theirs), "theirs stays");
    assert_eq!(scene.read("contested", ours)?, "pending");
    let found = queue(&scene, &[])?;
    ensure!(found[0]["last_error"].as_str().is_some_and(|error| error.contains("retry --force")), "{found:?}");
    scene.peer.dfstore(&["writeback", "retry", &url("contested")])?.success()?;
    until_dead(&scene, 1)?;
    assert!(scene.has("contested", theirs), "without force it is the same again");
    scene.peer.dfstore(&["writeback", "retry", "--force", &url("contested")])?.success()?;
    scene.until_written_back("contested", ours)?;
    Ok(())
}

/// Theirs is there, and ours beside it.
fn both_are_kept(scene: &Scene, ours: Payload, theirs: Payload) -> Result<()> {
    scene.peer.dfstore(&["writeback", "wait"])?.success()?;
    scene.read("contested", theirs)?;
    let keys = scene.keys("")?;
    let beside = keys.iter().find(|key| key.starts_with("contested.dfstore-conflict-"));
    scene.read(beside.with_context(|| format!("ours is gone: {keys:?}"))?, ours)?;
    assert_eq!(scene.peer.metrics()?.sum("dfstore_writeback_conflicts_total", &[]), 1.0);
    Ok(())
}

#[test]
fn a_conflict_can_keep_both() -> Result<()> {
    let Contested { scene, ours, theirs } = contested_at_first("keep-both")?;
    both_are_kept(&scene, ours, theirs)
}

/// Others write after the peer has looked, while its bytes are on their way: the write is refused by its condition.
fn contested_after_the_look(policy: &str, is_known: bool, ours: Payload) -> Result<()> {
    let (method, query) = if ours.length < PART { (Method::PUT, "") } else { (Method::POST, "uploadId") };
    let Contested { scene, theirs, .. } = contested(policy, is_known, ours, (method.clone(), query))?;
    if policy == "keep-both" {
        both_are_kept(&scene, ours, theirs)?;
    } else {
        until_dead(&scene, 1)?;
        assert_eq!(scene.read("contested", ours)?, "pending");
    }
    assert!(scene.has("contested", theirs), "theirs stays");
    let mut sent = scene.backend.seen();
    // What others write has no condition.
    sent.retain(|seen| seen.method != Method::GET && (seen.if_match.is_some() || seen.if_none_match.is_some()));
    ensure!(sent.len() == 1 && sent[0].is(&method, "contested", query), "sent once: {sent:?}");
    assert_eq!(sent[0].if_match.is_some(), is_known, "{sent:?}");
    // A person may still want it: until then its parts stay there.
    if policy == "fail" {
        scene.peer.dfstore(&["writeback", "drop", &url("contested")])?.success()?;
    }
    scene.backend.until_no_uploads()?;
    scene.read("contested", theirs).map(drop)
}

#[test]
fn what_others_write_after_the_look_is_a_conflict_as_well() -> Result<()> {
    let (short, long) = (Payload::new(23, 1000), Payload::new(24, PART));
    let cases = [
        ("fail", true, short),
        ("fail", false, short),
        ("fail", true, long),
        ("fail", false, long),
        ("keep-both", true, short),
    ];
    thread::scope(|scope| {
        let run = |case @ (policy, is_known, ours)| {
            let play = move || contested_after_the_look(policy, is_known, ours).with_context(|| format!("{case:?}"));
            scope.spawn(play)
        };
        cases.map(run).into_iter().try_for_each(|case| case.join().expect("no panic"))
    })
}

#[test]
fn a_write_over_what_it_knew_is_no_conflict() -> Result<()> {
    for policy in ["fail", "keep-both"] {
        let scene = Scene::start_with(|spec| spec.object_storage = format!("conflict: {policy}"))?;
        scene.place("known", Payload::new(30, 1000))?;
        scene.read("known", Payload::new(30, 1000))?;
        scene.put("known", ASYNC, Payload::new(31, 2000))?;
        scene.until_written_back("known", Payload::new(31, 2000))?;
        scene.put("known", ASYNC, Payload::new(32, 3000))?;
        scene.put("known", ASYNC, Payload::new(33, 4000))?;
        scene.until_written_back("known", Payload::new(33, 4000))?;
        scene.put("new", ASYNC, Payload::new(34, PARTS))?;
        scene.until_written_back("new", Payload::new(34, PARTS))?;
        scene.peer.dfstore(&["writeback", "wait"])?.success()?;
        assert_eq!(scene.keys("")?, ["known", "new"], "{policy}");
    }
    Ok(())
}
