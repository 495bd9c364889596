//! `kill -9` at any moment, hundreds of times: what was acknowledged is there, whole; what was not is whole or absent.
//!
//! Several peers side by side, each in front of a backend of its own, are killed under a mixed load and started again.
//! After each start the [log of acknowledgements](dfstore_tests::ledger) says what must be there. Some are killed again
//! while they start. In one test the bucket takes no writes before the end, so everything hangs on what the peer kept; in
//! the other the write-back runs, and the bucket must end as the peer shows it.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dfstore_tests::choices::{Choices, rounds, seed};
use dfstore_tests::faulty_backend::{Fault, Rule};
use dfstore_tests::mixed_load::{Kinds, Writer, place_remote_objects, until_written_back, work_until};
use dfstore_tests::scene::Scene;
use dfstore_tests::until::let_pass;
use http::Method;
use rustix::process::{Pid, Signal, kill_process};

/// Peers that are killed side by side.
const PEERS: u64 = 4;
/// Writers at each of them.
const WRITERS: u64 = 3;
/// A peer lives for less than this between two kills.
const LIFETIME_MS: u64 = 400;
/// So long is a start that may be cut off.
const START_MS: u64 = 150;

#[test]
fn kill_9_during_writes_loses_nothing_acknowledged_and_leaves_nothing_half() -> Result<()> {
    let seed = seed("kill_9_during_writes");
    kill_side_by_side(Choices::new(seed), rounds(20, 500), false)
}

#[test]
fn kill_9_during_write_back_leaves_the_bucket_as_it_was_acknowledged() -> Result<()> {
    let seed = seed("kill_9_during_write_back");
    kill_side_by_side(Choices::new(seed), rounds(20, 500), true)
}

fn kill_side_by_side(choices: Choices, rounds: u64, bucket_writes: bool) -> Result<()> {
    thread::scope(|scope| {
        let kill = |peer| {
            let choices = choices.derive(peer);
            scope.spawn(move || write_and_kill(choices, rounds, bucket_writes).with_context(|| format!("peer {peer}")))
        };
        let peers: Vec<_> = (0..PEERS).map(kill).collect();
        peers.into_iter().try_for_each(|peer| peer.join().expect("no panic"))
    })
}

fn write_and_kill(choices: Choices, rounds: u64, bucket_writes: bool) -> Result<()> {
    let mut scene = Scene::start_with(|spec| spec.capacity = "192MiB".to_owned())?;
    place_remote_objects(&scene)?;
    if !bucket_writes {
        let refused = [Method::PUT, Method::POST].map(|method| Rule::on(method, Fault::internal_error()));
        scene.backend.set_rules(refused);
    }
    let kinds = Kinds { bucket_writes, disk_fails: false };
    let mut writers: Vec<Writer> = (0..WRITERS).map(Writer::new).collect();
    let mut cut_off = 0;
    for round in 0..rounds {
        let mut choices = choices.derive(round);
        kill_under_load(&mut scene, &mut writers, kinds, &mut choices).with_context(|| format!("round {round}"))?;
        cut_off += writers.iter().map(|writer| writer.ledger.open()).sum::<usize>();
        if choices.one_in(5) {
            scene.peer.restart_and_kill9(Duration::from_millis(choices.below(START_MS)))?;
        }
        scene.peer.restart().with_context(|| format!("round {round}"))?;
        for writer in &mut writers {
            writer.settle(&scene).with_context(|| format!("round {round}"))?;
        }
    }
    let acknowledged: u64 = writers.iter().map(|writer| writer.acknowledged).sum();
    let held: usize = writers.iter().map(|writer| writer.ledger.held()).sum();
    eprintln!("{rounds} rounds, {acknowledged} requests acknowledged, {cut_off} cut off, {held} objects at the end");
    ensure!(acknowledged > rounds && cut_off > 0 && held > 0, "this says nothing");
    scene.backend.set_rules([]);
    // The pauses between attempts have grown; a start begins with one.
    scene.peer.restart()?;
    until_written_back(&mut writers, &scene)?;
    scene.backend.until_no_uploads()?;
    scene.rests()
}

/// Lets the writers work for a random time, then kills the peer under them.
fn kill_under_load(scene: &mut Scene, writers: &mut [Writer], kinds: Kinds, choices: &mut Choices) -> Result<()> {
    let lifetime = Duration::from_millis(1 + choices.below(LIFETIME_MS));
    let pid = Pid::from_raw(i32::try_from(scene.peer.process().pid())?).context("a process id")?;
    work_until(scene, writers, kinds, choices, || {
        let_pass(lifetime);
        Ok(kill_process(pid, Signal::KILL)?)
    })?;
    scene.peer.kill9()
}
