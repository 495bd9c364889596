//! A disk that gives and takes little: requests take long, nothing is lost, and what is in memory is served.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dfstore_tests::cgroup::Cgroup;
use dfstore_tests::data::{PIECE, Payload};
use dfstore_tests::loopfs::LoopFs;
use dfstore_tests::scene::{ASYNC, EPHEMERAL, SYNC, Scene};

/// What the disk moves in a second, each way.
const RATE: u64 = 2 << 20;
/// Questions that need no disk are answered within this time though the disk has all hands full.
const ANSWER_MAX: Duration = Duration::from_secs(2);

#[test]
fn a_slow_disk_loses_nothing_and_holds_up_only_those_who_need_it() -> Result<()> {
    let Some(disk) = LoopFs::new(192 << 20) else { return Ok(()) };
    let Some(group) = Cgroup::with_disk_rate(disk.path(), RATE) else { return Ok(()) };
    let data_path = disk.path().join("data");
    let mut scene = Scene::start_with(|spec| {
        spec.data_path = Some(data_path);
        spec.capacity = "128MiB".to_owned();
    })?;
    let warm = Payload::new(1, PIECE);
    scene.put("warm", EPHEMERAL, warm)?;
    group.add(scene.peer.process().pid())?;
    let began = Instant::now();
    let slow: Vec<_> = [("async", ASYNC), ("sync", SYNC), ("ephemeral", EPHEMERAL)].into_iter().zip(10..).collect();
    thread::scope(|scope| -> Result<()> {
        let scene = &scene;
        let put = |((key, mode), seed)| move || scene.put(key, mode, Payload::new(seed, PIECE + 99));
        let writers: Vec<_> = slow.iter().map(|write| scope.spawn(put(*write))).collect();
        let mut questions = 0;
        while writers.iter().any(|writer| !writer.is_finished()) {
            let asked = Instant::now();
            ensure!(scene.ask("HEAD", "warm", &[])?.status() == 200);
            ensure!(asked.elapsed() < ANSWER_MAX, "a HEAD took {:?}", asked.elapsed());
            questions += 1;
        }
        writers
            .into_iter()
            .try_for_each(|writer| writer.join().expect("no panic"))
            .context("a write on a slow disk")?;
        eprintln!("three writes took {:?}, {questions} questions beside them", began.elapsed());
        Ok(())
    })?;
    ensure!(began.elapsed() > Duration::from_secs(3), "12 MiB in {:?}: the disk is not slow", began.elapsed());
    scene.read("warm", warm)?;
    scene.until_written_back("async", Payload::new(10, PIECE + 99))?;
    scene.peer.kill9()?;
    scene.peer.restart()?;
    for ((key, _), seed) in slow {
        scene.read(key, Payload::new(seed, PIECE + 99))?;
    }
    ensure!(scene.peer.metrics()?.sum("dfstore_store_poisoned", &[]) == 0.0);
    scene.rests()
}
