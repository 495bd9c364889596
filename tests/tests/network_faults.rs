//! Bad days of the network, at each frame border: between a client and a peer, and between two peers.
//!
//! A client gets right bytes or an error, in time; what was acknowledged is there; the peer is none the worse for it. The
//! borders are found by a run without faults. A canary shows that the spoiled byte would be seen.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dfstore_proto::object::WriteMode;
use dfstore_tests::choices::is_long_run;
use dfstore_tests::cli::dfstore;
use dfstore_tests::cluster::Cluster;
use dfstore_tests::data::{PIECE, Payload};
use dfstore_tests::dirs;
use dfstore_tests::eventually;
use dfstore_tests::http;
use dfstore_tests::native::{NativeClient, target};
use dfstore_tests::peer_proxy::{PeerProxy, Way, WireFault, WireRule};
use dfstore_tests::scene::{BUCKET, EPHEMERAL, PATIENCE, Scene, right, same};

/// A read of several frames each way.
const READ: Payload = Payload { seed: 1, length: 2 * PIECE + 70_000 };
/// One of so many pieces that readers in a cluster ask each other for it.
const SWARM_READ: Payload = Payload { seed: 3, length: 10 * PIECE + 70_000 };
const WRITTEN_LENGTH: u64 = PIECE + 30_000;
/// A client waits no longer than this for the next byte.
const CLIENT_PATIENCE: Duration = Duration::from_secs(2);
const AT_ONCE: usize = 6;

/// A connection of its own for each case, through a proxy of its own.
fn proxy(scene: &Scene, rule: Option<WireRule>) -> Result<PeerProxy> {
    let proxy = PeerProxy::start()?;
    proxy.set_target(scene.peer.address());
    proxy.set_wire_rule(rule);
    Ok(proxy)
}

/// Reads; an error of the protocol is an outcome, wrong bytes are not.
fn read(proxy: &PeerProxy) -> Result<Result<()>> {
    let mut wrong = None;
    let take = |offset, bytes: &[u8]| wrong = wrong.or_else(|| READ.first_difference(offset, bytes));
    let outcome = NativeClient::connect_within(proxy.address(), CLIENT_PATIENCE)
        .and_then(|mut client| client.get(&target(BUCKET, "read"), take));
    if let Ok(length) = outcome {
        ensure!(length == READ.length && wrong.is_none(), "wrong bytes: {wrong:?} of {length}");
    }
    Ok(outcome.map(drop))
}

/// Writes; what is acknowledged is there, what is not is there whole or not at all.
fn write(scene: &Scene, proxy: &PeerProxy, key: &str, payload: Payload) -> Result<Result<()>> {
    let outcome = NativeClient::connect_within(proxy.address(), CLIENT_PATIENCE)
        .and_then(|mut client| client.put(&target(BUCKET, key), &payload.bytes(), WriteMode::Ephemeral));
    let answer = scene.get(key)?;
    let is_whole = answer.status() == 200 && same(&answer.body, payload);
    ensure!(is_whole || (outcome.is_err() && answer.status() == 404), "{} after {outcome:?}", answer.status());
    Ok(outcome.map(drop))
}

/// Every fault at every frame, so many of them each way.
fn cases(to_peer: u64, from_peer: u64) -> Vec<WireRule> {
    let ways = [(Way::ToPeer, to_peer), (Way::FromPeer, from_peer)];
    let borders = ways.into_iter().flat_map(|(way, frames)| (0..frames).map(move |frame| (way, frame)));
    let faults = [
        WireFault::Reset,
        WireFault::HalfClose,
        WireFault::Stall,
        WireFault::Swap,
        WireFault::Flip(1),
        WireFault::Flip(40),
    ];
    borders.flat_map(|(way, frame)| faults.map(|fault| WireRule { way, frame, fault })).collect()
}

/// Runs each case, a few at once; gives how many of them ended in an error.
fn all(cases: Vec<WireRule>, run: impl Fn(WireRule) -> Result<Result<()>> + Sync) -> Result<u64> {
    let (waiting, failed) = (Mutex::new(cases.into_iter()), AtomicU64::new(0));
    let work = || {
        loop {
            let Some(rule) = waiting.lock().expect("no panic").next() else { return Ok(()) };
            let began = Instant::now();
            let outcome = run(rule).with_context(|| format!("{rule:?}"))?;
            ensure!(began.elapsed() < PATIENCE, "{rule:?} took {:?}", began.elapsed());
            failed.fetch_add(u64::from(outcome.is_err()), Ordering::SeqCst);
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no panic"))
    })?;
    Ok(failed.load(Ordering::SeqCst))
}

/// Nothing is left of all that, and the peer serves.
fn healthy(scene: &Scene) -> Result<()> {
    right(&scene.get("read")?, READ)?;
    scene.rests()
}

#[test]
fn a_read_through_a_bad_network_is_right_or_an_error_at_every_frame() -> Result<()> {
    let scene = Scene::start()?;
    scene.put("read", EPHEMERAL, READ)?;
    let plain = proxy(&scene, None)?;
    read(&plain)??;
    let cases = cases(plain.frames(Way::ToPeer), plain.frames(Way::FromPeer));
    let count = cases.len() as u64;
    let failed = all(cases, |rule| read(&proxy(&scene, Some(rule))?))?;
    eprintln!("{failed} of {count} reads failed");
    ensure!(failed > count / 2, "{failed} of {count} reads failed: the faults do not bite");
    drop(plain);
    healthy(&scene)
}

#[test]
fn a_write_through_a_bad_network_is_whole_or_not_there_at_every_frame() -> Result<()> {
    let scene = Scene::start()?;
    scene.put("read", EPHEMERAL, READ)?;
    let plain = proxy(&scene, None)?;
    write(&scene, &plain, "plain", Payload::new(2, WRITTEN_LENGTH))??;
    let cases = cases(plain.frames(Way::ToPeer), plain.frames(Way::FromPeer));
    let (count, number) = (cases.len() as u64, AtomicU64::new(100));
    let failed = all(cases, |rule| {
        let seed = number.fetch_add(1, Ordering::SeqCst);
        write(&scene, &proxy(&scene, Some(rule))?, &format!("case/{seed}"), Payload::new(seed, WRITTEN_LENGTH))
    })?;
    eprintln!("{failed} of {count} writes failed");
    ensure!(failed > count / 2, "{failed} of {count} writes failed: the faults do not bite");
    drop(plain);
    healthy(&scene)
}

/// The command line goes on by itself when the fault has passed, up and down.
#[test]
fn the_command_line_gets_through_a_network_that_fails_for_a_while() -> Result<()> {
    let scene = Scene::start()?;
    scene.put("read", EPHEMERAL, READ)?;
    // Silence is left out, and with it frames that wait for one another: the command waits 30 s before it tries again.
    let faults = [WireFault::Reset, WireFault::HalfClose, WireFault::Flip(40)];
    let places = [(Way::FromPeer, 1), (Way::FromPeer, 3), (Way::ToPeer, 2), (Way::ToPeer, 3)];
    let rules = places.into_iter().flat_map(|(way, frame)| faults.map(|fault| WireRule { way, frame, fault }));
    let folder = dirs::temporary("network")?;
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("source"), READ.bytes())?;
    let number = AtomicU64::new(0);
    all(rules.collect(), |rule| {
        let number = number.fetch_add(1, Ordering::SeqCst);
        let (file, key) = (path(&format!("{number}")), format!("cli/{number}"));
        let down = copy(&scene, rule, &format!("dfs://{BUCKET}/read"), &file)?;
        let found = std::fs::read(&file).ok();
        ensure!(found.as_ref().map_or(!down, |bytes| same(bytes, READ)), "down: {:?}", found.map(|bytes| bytes.len()));
        let up = copy(&scene, rule, &path("source"), &format!("dfs://{BUCKET}/{key}"))?;
        let answer = scene.get(&key)?;
        ensure!(right(&answer, READ).is_ok() || (!up && answer.status() == 404), "up: {}", answer.status());
        Ok(Ok(()))
    })?;
    healthy(&scene)
}

/// `dfstore cp` through a proxy that spoils one connection. Whether it got through: a damaged frame may be an error, if it
/// says so.
fn copy(scene: &Scene, rule: WireRule, from: &str, to: &str) -> Result<bool> {
    let proxy = proxy(scene, None)?;
    proxy.set_wire_rule_once(rule);
    let endpoint = format!("http://{}", proxy.address());
    let output = dfstore(&["-e", &endpoint, "cp", "-m", "ephemeral", from, to])?;
    let damaged = matches!(rule.fault, WireFault::Flip(_)) && output.stderr.contains("damaged");
    ensure!(output.code == Some(0) || damaged, "{from} to {to}: {}", output.stderr);
    ensure!(proxy.spoiled() == 1, "{from} to {to}: the fault did not bite");
    Ok(output.code == Some(0))
}

/// The canary: HTTP carries no checksum that this client looks at, so the check must see the wrong byte.
#[test]
fn a_wrong_byte_that_the_protocol_does_not_see_fails_the_checks() -> Result<()> {
    let scene = Scene::start()?;
    scene.put("read", EPHEMERAL, READ)?;
    let flipping = proxy(&scene, Some(WireRule { way: Way::FromPeer, frame: 0, fault: WireFault::Flip(100_000) }))?;
    let answer = http::get(flipping.address(), &Scene::path("read"))?;
    ensure!(flipping.spoiled() == 1, "nothing was spoiled");
    let noticed = right(&answer, READ).expect_err("a byte is wrong");
    ensure!(noticed.to_string().contains("wrong bytes"), "{noticed:#}");
    Ok(())
}

/// A reader gets the right bytes though each connection to the only other peer that has them goes wrong like this: its
/// own ones, and those of the home.
fn read_beside_a_bad_link(rule: WireRule) -> Result<()> {
    const SEED: usize = 0;
    const BAD: usize = 1;
    const READER: usize = 2;
    let cluster = Cluster::builder().peers(2).node(BAD, |options| options.behind_proxy = true).start()?;
    for (key, payload) in [("read", READ), ("swarm", SWARM_READ)] {
        cluster.bucket.put(key, &payload.bytes())?;
        for node in [BAD, SEED] {
            cluster[node].read(key, payload)?;
            cluster[node].until_head("it has all", key, |head| head.header("x-dfs-cache") == Some("local"))?;
        }
    }
    let proxy = cluster[BAD].proxy()?;
    proxy.set_wire_rule(Some(rule));
    proxy.cut_all();
    cluster.backend.forget();
    // The home names it as a parent.
    cluster[READER].read("swarm", SWARM_READ)?;
    ensure!(proxy.spoiled() > 0, "the fault did not bite the reader");
    ensure!(cluster.backend.traffic().sent == 0, "the home has it");
    // The home asks it.
    let spoiled = proxy.spoiled();
    cluster[SEED].evict("read")?;
    cluster[READER].read("read", READ)?;
    ensure!(proxy.spoiled() > spoiled, "the fault did not bite the home");
    proxy.set_wire_rule(None);
    proxy.cut_all();
    // Both are as they were: what one writes the other one sees, also the other way round.
    for (writer, reader) in [(BAD, READER), (READER, BAD)] {
        let (key, payload) = (format!("after/{writer}"), Payload::new(writer as u64, PIECE + 5));
        cluster[writer].put(&key, EPHEMERAL, payload)?;
        // A link that was bad is left alone for a while, and until then it may be that nobody else has it.
        let answer = eventually("it is served", PATIENCE, || {
            cluster[reader].ask("GET", &key, &[]).ok().filter(|answer| answer.status() != 503)
        })?;
        right(&answer, payload).with_context(|| key.clone())?;
    }
    Ok(())
}

#[test]
fn a_reader_gets_right_bytes_beside_a_bad_link_between_peers() -> Result<()> {
    let faults = [
        WireFault::Reset,
        WireFault::HalfClose,
        WireFault::Stall,
        WireFault::Flip(40),
        WireFault::Swap,
        WireFault::Flip(1),
    ];
    let places = [(Way::FromPeer, 1), (Way::ToPeer, 2), (Way::FromPeer, 0)];
    let rule = |fault, (way, frame)| WireRule { way, frame, fault };
    // A cluster for each: a link that was bad is left alone for a while. Every fault is played, if not at every place.
    let rules: Vec<_> = match is_long_run() {
        true => places.into_iter().flat_map(|place| faults.map(|fault| rule(fault, place))).collect(),
        false => faults.into_iter().zip(places.into_iter().cycle()).map(|(fault, place)| rule(fault, place)).collect(),
    };
    rules.into_iter().try_for_each(|rule| read_beside_a_bad_link(rule).with_context(|| format!("{rule:?}")))
}
