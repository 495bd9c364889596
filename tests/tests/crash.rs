//! `kill -9` at any moment: what was acknowledged is there, whole; what was not is whole or absent.
//!
//! Writers overwrite a few keys, over HTTP and over the native protocol, until the peer is killed under them. A model
//! keeps for each key what was acknowledged last and what may have become of the writes since. In the longer run the
//! bucket takes no writes before the end, so everything hangs on what the peer kept.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dfstore_proto::ids::ObjectName;
use dfstore_proto::message::Target;
use dfstore_proto::object::WriteMode;
use dfstore_tests::census::Census;
use dfstore_tests::data::Payload;
use dfstore_tests::eventually;
use dfstore_tests::faulty_backend::{Fault, Rule};
use dfstore_tests::native::NativeClient;
use dfstore_tests::scene::{ASYNC, BUCKET, EPHEMERAL, PATIENCE, Scene, same};
use http::Method;

const WRITERS: u64 = 4;
const KEYS_PER_WRITER: u64 = 3;
/// Below, at and above a block, a buffer, a piece.
const LENGTHS: [u64; 8] = [0, 1, 4096, 70_000, 300_001, (4 << 20) - 1, 4 << 20, (5 << 20) + 77];

/// What a key may hold.
#[derive(Default, Clone)]
struct Expected {
    /// The last write or deletion that was acknowledged, or found after a crash; `None` is absence.
    certain: Option<Payload>,
    /// Those begun since, of which no answer came.
    possible: Vec<Option<Payload>>,
}

type Model = BTreeMap<String, Expected>;

#[test]
fn kill_9_during_writes_loses_nothing_acknowledged_and_leaves_nothing_half() -> Result<()> {
    let scene = Scene::start()?;
    scene
        .backend
        .set_rules([Rule::on(Method::PUT, Fault::internal_error()), Rule::on(Method::POST, Fault::internal_error())]);
    write_and_kill(scene, 20)
}

#[test]
fn kill_9_during_write_back_leaves_the_bucket_as_it_was_acknowledged() -> Result<()> {
    write_and_kill(Scene::start()?, 8)
}

fn write_and_kill(mut scene: Scene, rounds: u64) -> Result<()> {
    let mut models: Vec<Model> = vec![Model::new(); usize::try_from(WRITERS)?];
    let mut cut_off = 0;
    for round in 0..rounds {
        let stop = AtomicBool::new(false);
        // Spread over the time that a few writes take; a multiple of none.
        let lifetime = Duration::from_millis(20 + round * 37 % 230);
        let (pid, start) = (scene.peer.process().pid(), Instant::now());
        thread::scope(|scope| {
            let (scene, stop) = (&scene, &stop);
            for (writer, model) in (0..).zip(&mut models) {
                scope.spawn(move || write_until_killed(scene, round * WRITERS + writer, writer, model, stop));
            }
            eventually("its time is over", PATIENCE, || (start.elapsed() >= lifetime).then_some(()))?;
            let killed = kill(pid);
            stop.store(true, Ordering::Relaxed);
            killed
        })?;
        scene.peer.kill9()?;
        cut_off += models.iter().flat_map(BTreeMap::values).map(|expected| expected.possible.len()).sum::<usize>();
        scene.peer.restart().with_context(|| format!("round {round}"))?;
        for model in &mut models {
            check(&scene, model).with_context(|| format!("round {round}"))?;
        }
    }
    let acknowledged = models.iter().flat_map(BTreeMap::values).filter(|expected| expected.certain.is_some()).count();
    assert!(acknowledged > 0 && cut_off > 0, "{acknowledged} objects, {cut_off} writes cut off: this says nothing");
    scene.backend.set_rules([]);
    // The pauses between attempts have grown; a start begins with one.
    scene.peer.restart()?;
    let census = Census::take(&mut scene.peer)?;
    for (key, expected) in models.iter().flatten() {
        let wanted = expected.certain.filter(|_| !is_ephemeral(key));
        let arrived = || match wanted {
            Some(payload) => scene.has(key, payload).then_some(()),
            None => scene.backend.stored(BUCKET, key).is_none().then_some(()),
        };
        eventually(&format!("the bucket has what it should of {key}"), PATIENCE, arrived)?;
    }
    models.iter_mut().try_for_each(|model| check(&scene, model))?;
    census.check(&scene.peer, &[scene.backend.address()])
}

fn kill(pid: u32) -> Result<()> {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid)?).context("a process id")?;
    Ok(rustix::process::kill_process(pid, rustix::process::Signal::KILL)?)
}

fn is_ephemeral(key: &str) -> bool {
    key.ends_with("-2")
}

/// Writes and sometimes deletes, one key after the other, until the peer is gone.
fn write_until_killed(scene: &Scene, seed: u64, writer: u64, model: &mut Model, stop: &AtomicBool) {
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let key = format!("w{writer}-{}", number % KEYS_PER_WRITER);
        let step = seed * 1000 + number;
        let payload = Payload::new(step, LENGTHS[usize::try_from(step * 5 % 8).expect("below 8")]);
        let expected = model.entry(key.clone()).or_default();
        let deletes = number % 7 == 6;
        let intent = (!deletes).then_some(payload);
        expected.possible.push(intent);
        let done = match (deletes, writer % 2) {
            (true, _) => delete(scene, &key),
            (false, 0) => scene.put(&key, if is_ephemeral(&key) { EPHEMERAL } else { ASYNC }, payload),
            (false, _) => put_natively(scene, &key, payload),
        };
        if done.is_err() {
            return;
        }
        *expected = Expected { certain: intent, possible: Vec::new() };
    }
}

fn delete(scene: &Scene, key: &str) -> Result<()> {
    let answer = scene.peer.delete(BUCKET, key)?;
    ensure!(answer.status() == 200, "{}", answer.text());
    Ok(())
}

fn put_natively(scene: &Scene, key: &str, payload: Payload) -> Result<()> {
    let target = Target::new(ObjectName::new(BUCKET, key));
    let mode = if is_ephemeral(key) { WriteMode::Ephemeral } else { WriteMode::AsyncWriteBack };
    let mut client = NativeClient::connect(scene.peer.address(), &target)?;
    client.put(&target, &payload.bytes(), mode).map(drop)
}

/// Each key holds what was acknowledged or one of the writes that were cut off, whole.
fn check(scene: &Scene, model: &mut Model) -> Result<()> {
    let listed = scene.keys("")?;
    for (key, expected) in model {
        let answer = scene.get(key)?;
        let found = match answer.status() {
            404 => None,
            200 => {
                let candidates = expected.possible.iter().copied().flatten().chain(expected.certain);
                let whole = candidates.into_iter().find(|payload| same(&answer.body, *payload));
                Some(whole.with_context(|| format!("{key}: {} bytes that nobody wrote", answer.body.len()))?)
            }
            status => anyhow::bail!("{key}: {status} {}", answer.text()),
        };
        let allowed = found == expected.certain || expected.possible.contains(&found);
        ensure!(allowed, "{key}: {found:?} instead of {:?} or {:?}", expected.certain, expected.possible);
        ensure!(listed.contains(key) == found.is_some(), "{key}: the listing says otherwise");
        *expected = Expected { certain: found, possible: Vec::new() };
    }
    Ok(())
}
