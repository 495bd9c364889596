//! The power fails: the file system of the data folder ends at once, without flushing what it has in memory.
//!
//! The data folder lies on an ext4 in a file. Under a mixed load the file system is shut down without a flush of its
//! journal; the peer is killed, the file system is mounted again, which replays what reached the disk, and the peer is
//! started. The [log of acknowledgements](dfstore_tests::ledger) says what must be there. What the loop device has taken
//! is kept, as by a disk that has answered; what the kernel still held back is gone. Needs root.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dfstore_tests::choices::{Choices, rounds, seed};
use dfstore_tests::faulty_backend::{Fault, Rule};
use dfstore_tests::loopfs::LoopFs;
use dfstore_tests::mixed_load::{Kinds, Writer, place_remote_objects, until_written_back, work_until};
use dfstore_tests::scene::Scene;
use dfstore_tests::until::let_pass;
use http::Method;
use rustix::process::{Pid, Signal, kill_process};

const WRITERS: u64 = 4;
/// The power fails within this time.
const LIFETIME_MS: u64 = 600;
/// The peer lives for less than this without its disk.
const AFTERMATH_MS: u64 = 200;

#[test]
fn a_power_cut_loses_nothing_acknowledged_and_leaves_nothing_half() -> Result<()> {
    let Some(mut disk) = LoopFs::journaled(320 << 20) else { return Ok(()) };
    let choices = Choices::new(seed("a_power_cut"));
    let data_path = disk.path().join("data");
    let mut scene = Scene::start_with(|spec| {
        spec.data_path = Some(data_path);
        spec.capacity = "192MiB".to_owned();
    })?;
    place_remote_objects(&scene)?;
    let mut writers: Vec<Writer> = (0..WRITERS).map(Writer::new).collect();
    let (rounds, mut cut_off) = (rounds(12, 200), 0);
    for round in 0..rounds {
        let mut choices = choices.derive(round);
        // In every second round everything hangs on what the peer kept.
        let bucket_writes = round % 2 == 1;
        let refused = [Method::PUT, Method::POST].map(|method| Rule::on(method, Fault::internal_error()));
        scene.backend.set_rules(refused.into_iter().filter(|_| !bucket_writes));
        cut_under_load(&mut scene, &mut disk, &mut writers, bucket_writes, &mut choices)
            .with_context(|| format!("round {round}"))?;
        cut_off += writers.iter().map(|writer| writer.ledger.open()).sum::<usize>();
        scene.peer.restart().with_context(|| format!("round {round}"))?;
        for writer in &mut writers {
            writer.settle(&scene).with_context(|| format!("round {round}"))?;
        }
    }
    let acknowledged: u64 = writers.iter().map(|writer| writer.acknowledged).sum();
    let held: usize = writers.iter().map(|writer| writer.ledger.held()).sum();
    eprintln!("{rounds} cuts, {acknowledged} requests acknowledged, {cut_off} cut off, {held} objects at the end");
    ensure!(acknowledged > rounds && cut_off > 0 && held > 0, "this says nothing");
    scene.backend.set_rules([]);
    scene.peer.restart()?;
    until_written_back(&mut writers, &scene)?;
    scene.backend.until_no_uploads()?;
    // The disk goes away before what is mounted on it.
    scene.peer.terminate().map(drop)
}

/// Lets the writers work for a random time, ends the file system under them, kills the peer, and mounts it again.
fn cut_under_load(
    scene: &mut Scene,
    disk: &mut LoopFs,
    writers: &mut [Writer],
    bucket_writes: bool,
    choices: &mut Choices,
) -> Result<()> {
    let lifetime = Duration::from_millis(1 + choices.below(LIFETIME_MS));
    let aftermath_ms = choices.below(AFTERMATH_MS);
    let pid = i32::try_from(scene.peer.process().pid())?;
    let pid = Pid::from_raw(pid).context("a process id")?;
    let kinds = Kinds { bucket_writes, disk_fails: true };
    work_until(scene, writers, kinds, choices, || {
        let_pass(lifetime);
        let cut = disk.cut_power();
        // For a moment it goes on with a disk that answers nothing but errors: nothing may be acknowledged.
        let_pass(Duration::from_millis(aftermath_ms));
        let killed = kill_process(pid, Signal::KILL);
        cut.and(Ok(killed?))
    })?;
    scene.peer.kill9()?;
    disk.remount()
}
