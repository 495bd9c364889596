//! Every fault of the backend beside every kind of request, on one peer.
//!
//! While a fault lasts a client gets right bytes or a clear error. When it has passed, all that was acknowledged is in
//! the bucket, what was not is there whole or not at all, peer and bucket agree, and nothing is in flight. Each fault has
//! its own folder in the bucket and its own thread: the faults of the others are no excuse.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dfstore_tests::data::{PIECE, Payload};
use dfstore_tests::faulty_backend::{Fault, Rule};
use dfstore_tests::http::{Connection, Response};
use dfstore_tests::scene::{ASYNC, BUCKET, PATIENCE, SYNC, Scene, right, same};
use http::Method;

const TWO_PIECES: u64 = PIECE + 12_345;
/// Sent in parts.
const MULTIPART: u64 = 5 * PIECE;

fn faults() -> Vec<(&'static str, Fault)> {
    vec![
        ("none", Fault::Delay(Duration::ZERO)),
        ("delay", Fault::Delay(Duration::from_millis(150))),
        ("error", Fault::internal_error()),
        ("slow-down", Fault::slow_down(Some(1))),
        ("denied", Fault::access_denied()),
        ("clock", Fault::clock_skew()),
        ("reset", Fault::Cut),
        ("answer-lost", Fault::LoseAnswer),
        ("broken", Fault::BodyBreaks(1000)),
        ("short", Fault::BodyShort(1)),
        ("long", Fault::BodyLong(7)),
        ("wrong-range", Fault::ContentRange(format!("bytes 1-2097152/{TWO_PIECES}"))),
        ("wrong-length", Fault::ContentRange("bytes 0-2097151/9999999".to_owned())),
        ("no-range", Fault::RangeIgnored),
        ("other-version", Fault::Etag("\"other\"".to_owned())),
        ("wrong-sum", Fault::Crc32("AAAAAA==".to_owned())),
    ]
}

/// What a key may hold in the end: one of these contents, or nothing.
type Allowed = BTreeMap<String, Vec<Option<Payload>>>;

/// One fault's folder in the bucket.
struct Folder<'a> {
    scene: &'a Scene,
    name: &'static str,
    seed: u64,
    allowed: Allowed,
    /// Requests that failed.
    errors: u32,
}

impl Folder<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.name)
    }

    fn payload(&self, number: u64, length: u64) -> Payload {
        Payload::new(self.seed * 100 + number, length)
    }

    /// What is there before the fault begins.
    fn prepare(&mut self) -> Result<()> {
        for (number, (name, length)) in
            (0..).zip([("read", TWO_PIECES), ("sync", 5000), ("deleted", 5000), ("source", 9000)])
        {
            let (key, payload) = (self.key(name), self.payload(number, length));
            self.scene.bucket.put(&key, &payload.bytes())?;
            self.allowed.insert(key, vec![Some(payload)]);
        }
        Ok(())
    }

    /// One request of each kind while the fault lasts.
    fn work(&mut self) -> Result<()> {
        self.read()?;
        self.list()?;
        self.copy()?;
        self.write("sync", SYNC, self.payload(10, 5500))?;
        self.write("multipart", SYNC, self.payload(11, MULTIPART))?;
        self.write("async", ASYNC, self.payload(12, TWO_PIECES))?;
        self.delete()
    }

    fn read(&mut self) -> Result<()> {
        let mut connection = Connection::open(self.scene.peer.address())?;
        connection.send_head("GET", &Scene::path(&self.key("read")), &[], 0)?;
        let head = connection.read_head()?;
        let mut body = Vec::new();
        let whole = connection.read_body(&head, |bytes| body.extend_from_slice(bytes)).is_ok();
        self.errors += u32::from(!whole || head.status != 200);
        if head.status != 200 {
            return clear(&Response { head, body }, "read");
        }
        let payload = self.payload(0, TWO_PIECES);
        ensure!(payload.first_difference(0, &body).is_none(), "read: wrong bytes");
        ensure!(!whole || body.len() as u64 == TWO_PIECES, "read: {} bytes called whole", body.len());
        Ok(())
    }

    fn list(&mut self) -> Result<()> {
        let path = format!("/buckets/{BUCKET}/metadatas?prefix={}/", self.name);
        let answer = self.scene.peer.request("GET", &path, &[], b"")?;
        if answer.status() != 200 {
            self.errors += 1;
            return clear(&answer, "list");
        }
        for name in ["read", "sync", "deleted", "source"] {
            ensure!(answer.text().contains(&format!("\"{}\"", self.key(name))), "list: no {name} in {}", answer.text());
        }
        Ok(())
    }

    fn copy(&mut self) -> Result<()> {
        let copied = self.scene.peer.copy(BUCKET, &self.key("source"), &self.key("copy"))?;
        self.note("copy", &copied, Some(self.payload(3, 9000)))
    }

    fn write(&mut self, name: &str, mode: u8, payload: Payload) -> Result<()> {
        let answer = self.scene.try_put(&self.key(name), mode, payload)?;
        ensure!(mode == SYNC || answer.status() == 200, "{name}: {} {}", answer.status(), answer.text());
        ensure!(
            mode == ASYNC || answer.status() != 200 || self.scene.has(&self.key(name), payload),
            "{name}: not in the bucket"
        );
        self.note(name, &answer, Some(payload))
    }

    fn delete(&mut self) -> Result<()> {
        let answer = self.scene.peer.delete(BUCKET, &self.key("deleted"))?;
        self.note("deleted", &answer, None)
    }

    /// What was acknowledged holds; what was not may have happened.
    fn note(&mut self, name: &str, answer: &Response, outcome: Option<Payload>) -> Result<()> {
        let allowed = self.allowed.entry(self.key(name)).or_insert_with(|| vec![None]);
        if matches!(answer.status(), 200 | 202) {
            *allowed = vec![outcome];
            return Ok(());
        }
        allowed.push(outcome);
        self.errors += 1;
        clear(answer, name)
    }
}

/// An error as the documents promise it.
fn clear(answer: &Response, what: &str) -> Result<()> {
    ensure!(matches!(answer.status(), 403 | 503 | 504), "{what}: {} {}", answer.status(), answer.text());
    ensure!(answer.text().starts_with("{\"errors\":\""), "{what}: {}", answer.text());
    ensure!(answer.status() == 403 || answer.header("retry-after").is_some(), "{what}: no time to try again");
    Ok(())
}

#[test]
fn under_every_fault_each_request_is_right_or_clear_and_all_ends_well() -> Result<()> {
    let mut scene = Scene::start_with(|spec| spec.capacity = "2GiB".to_owned())?;
    let mut folders = faults().into_iter().zip(1..).map(|((name, _), seed)| (name, seed)).collect::<Vec<_>>();
    let allowed = {
        let scene = &scene;
        let mut folders: Vec<_> = folders
            .drain(..)
            .map(|(name, seed)| Folder { scene, name, seed, allowed: Allowed::new(), errors: 0 })
            .collect();
        folders.iter_mut().try_for_each(Folder::prepare)?;
        scene.backend.set_rules(faults().into_iter().flat_map(|(name, fault)| {
            let listing = Rule::on(Method::GET, fault.clone()).with_query(format!("prefix={name}%2F"));
            [Rule::always(fault).at(format!("{BUCKET}/{name}/")), listing]
        }));
        thread::scope(|scope| {
            let working: Vec<_> =
                folders.iter_mut().map(|folder| scope.spawn(|| folder.work().with_context(|| folder.name))).collect();
            working.into_iter().try_for_each(|work| work.join().expect("no panic"))
        })?;
        for Folder { name, errors, .. } in &folders {
            let passes = matches!(*name, "none" | "delay" | "other-version");
            ensure!(passes == (*errors == 0), "{name}: {errors} requests failed");
        }
        folders.into_iter().flat_map(|folder| folder.allowed).collect::<Allowed>()
    };
    scene.backend.set_rules([]);
    // The pauses between attempts have grown, and what was refused waits for a start.
    scene.peer.restart()?;
    at_rest(&scene)?;
    allowed.iter().try_for_each(|(key, contents)| agreed(&scene, key, contents))
}

fn at_rest(scene: &Scene) -> Result<()> {
    scene.peer.metrics_until("everything is in the bucket", PATIENCE, |metrics| {
        let gauges = ["dfstore_writeback_queue", "dfstore_writeback_dead_letters", "dfstore_dirty_bytes"];
        metrics.sum("dfstore_cache_tasks", &[]) > 0.0 && gauges.iter().all(|gauge| metrics.sum(gauge, &[]) == 0.0)
    })?;
    scene.rests()?;
    scene.backend.until_no_uploads()
}

/// Peer and bucket have the same, and it is one of those that may be.
fn agreed(scene: &Scene, key: &str, contents: &[Option<Payload>]) -> Result<()> {
    let stored = scene.backend.stored(BUCKET, key);
    let is_stored = |content: &&Option<Payload>| match (content, &stored) {
        (Some(payload), Some(bytes)) => same(bytes, *payload),
        (None, None) => true,
        _ => false,
    };
    let found = contents.iter().find(is_stored);
    let found = found.with_context(|| format!("{key}: the bucket has {:?} bytes", stored.as_ref().map(Vec::len)))?;
    let answer = scene.ask("GET", key, &[("Cache-Control", "no-cache")])?;
    match found {
        Some(payload) => right(&answer, *payload).map(drop).with_context(|| key.to_owned()),
        None => {
            ensure!(answer.status() == 404, "{key}: {}", answer.status());
            Ok(())
        }
    }
}

#[test]
fn a_version_that_is_replaced_between_two_ranges_is_not_mixed() -> Result<()> {
    let scene = Scene::start()?;
    let old = Payload::new(1, TWO_PIECES);
    // The new one may end before the range that is asked for.
    for (replaced_at, length) in [1, 2].into_iter().flat_map(|at| [TWO_PIECES, 10_000, 0].map(|length| (at, length))) {
        let new = Payload::new(2, length);
        let key = format!("switched/{replaced_at}-{length}");
        scene.place(&key, old)?;
        let bytes: Arc<[u8]> = new.bytes().into();
        let rule = Rule::on(Method::GET, Fault::Overwritten(bytes)).at(format!("{BUCKET}/{key}")).times(1);
        scene.backend.set_rules([rule.after(replaced_at - 1)]);
        let mut connection = Connection::open(scene.peer.address())?;
        connection.send_head("GET", &Scene::path(&key), &[], 0)?;
        let head = connection.read_head()?;
        let mut body = Vec::new();
        let whole = connection.read_body(&head, |bytes| body.extend_from_slice(bytes)).is_ok();
        if head.status == 200 {
            let wrong = [old, new].iter().all(|version| version.first_difference(0, &body).is_some());
            let full = [TWO_PIECES, length].contains(&(body.len() as u64));
            ensure!(!wrong && (!whole || full), "bytes of two versions");
        } else {
            clear(&Response { head, body }, &key)?;
        }
        let answer = scene.ask("GET", &key, &[("Cache-Control", "no-cache")])?;
        right(&answer, new).context("afterwards the new one is there")?;
    }
    Ok(())
}

/// The canary: were these checks blind, this would pass.
#[test]
fn a_wrong_byte_that_nobody_can_notice_fails_the_checks() -> Result<()> {
    let scene = Scene::start()?;
    let mut folder = Folder { scene: &scene, name: "canary", seed: 1, allowed: Allowed::new(), errors: 0 };
    folder.prepare()?;
    let key = folder.key("read");
    scene.backend.set_rules([Rule::on(Method::GET, Fault::BodyFlips(70_000)).at(format!("{BUCKET}/{key}"))]);
    let read = folder.read().expect_err("a byte is wrong");
    ensure!(read.to_string().contains("wrong bytes"), "{read:#}");
    scene.backend.set_rules([]);
    let contents = folder.allowed.remove(&key).context("prepared")?;
    ensure!(agreed(&scene, &key, &contents).is_err(), "what lies in the cache is wrong");
    ensure!(agreed(&scene, &folder.key("sync"), &[None]).is_err(), "the bucket has what it may not have");
    Ok(())
}
