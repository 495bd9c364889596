//! A disk of 64 MiB on which others leave less and less room: at every point of a write, a read, a commit.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dfstore_tests::data::{PIECE, Payload};
use dfstore_tests::eventually;
use dfstore_tests::faulty_backend::{Fault, Rule};
use dfstore_tests::loopfs::LoopFs;
use dfstore_tests::scene::{ASYNC, BUCKET, EPHEMERAL, PATIENCE, Scene};
use http::Method;

const KIB: u64 = 1 << 10;
/// What others leave on the disk, round by round.
const LEFT_KIB: [u64; 10] = [12_000, 9000, 5000, 4200, 2100, 1100, 600, 200, 40, 0];
/// Lengths of the objects of each round.
const LENGTHS: [u64; 4] = [900, 300 * KIB, PIECE + 12_345, 4096];

/// What else lies on the disk.
struct Ballast(PathBuf);

impl Ballast {
    /// Leaves so much room and no more.
    fn leave(&self, left_bytes: u64) -> Result<()> {
        let _ = fs::remove_file(&self.0);
        let room = rustix::fs::statvfs(self.0.parent().context("in a folder")?)?;
        let bytes = (room.f_bavail * room.f_frsize).saturating_sub(left_bytes);
        let file = File::create(&self.0)?;
        if bytes > 0 {
            // What the file system needs for itself is not known beforehand.
            let mut fits = bytes;
            while rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, fits).is_err() {
                fits = fits.checked_sub(4096).context("the ballast does not fit at all")?;
            }
        }
        Ok(())
    }

    fn remove(&self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn small_disk(disk: &Path) -> Result<Scene> {
    let data_path = disk.join("data");
    Scene::start_with(|spec| {
        spec.data_path = Some(data_path);
        spec.capacity = "64MiB".to_owned();
    })
}

/// Writes in each mode and of each length: what is acknowledged is noted, everything else is a clear 507.
fn write_round(scene: &Scene, round: usize, acknowledged: &mut BTreeMap<String, Payload>) -> Result<()> {
    for (number, length) in LENGTHS.into_iter().enumerate() {
        for mode in [ASYNC, EPHEMERAL] {
            let key = format!("round/{round}/{number}-{mode}");
            let payload = Payload::new((round * 100 + number * 10) as u64 + u64::from(mode), length);
            let answer = scene.try_put(&key, mode, payload)?;
            match answer.status() {
                200 => drop(acknowledged.insert(key, payload)),
                507 => ensure!(answer.text().contains("no space left"), "{key}: {}", answer.text()),
                status => anyhow::bail!("{key}: {status} {}", answer.text()),
            }
        }
    }
    Ok(())
}

fn all_there(scene: &Scene, acknowledged: &BTreeMap<String, Payload>) -> Result<()> {
    acknowledged.iter().try_for_each(|(key, payload)| scene.read(key, *payload).map(drop))
}

#[test]
fn whatever_room_is_left_a_write_is_kept_or_refused_and_reads_go_on() -> Result<()> {
    let Some(disk) = LoopFs::new(64 << 20) else { return Ok(()) };
    let mut scene = small_disk(disk.path())?;
    let ballast = Ballast(disk.path().join("ballast"));
    let mut acknowledged = BTreeMap::new();
    // The bucket takes nothing for now: all that is acknowledged is here alone.
    scene.backend.set_rules([Rule::on(Method::PUT, Fault::internal_error()).at(format!("{BUCKET}/round"))]);
    for (round, left) in LEFT_KIB.into_iter().enumerate() {
        ballast.leave(left * KIB)?;
        let cold = Payload::new(1000 + round as u64, PIECE + 77);
        scene.place(&format!("cold/{round}"), cold)?;
        write_round(&scene, round, &mut acknowledged).with_context(|| format!("{left} KiB left"))?;
        scene.read(&format!("cold/{round}"), cold).with_context(|| format!("a cold read, {left} KiB left"))?;
        all_there(&scene, &acknowledged).with_context(|| format!("{left} KiB left"))?;
        let poisoned = scene.peer.metrics()?.sum("dfstore_store_poisoned", &[]);
        ensure!(poisoned == 0.0, "{left} KiB left, and a restart is needed");
        eprintln!("{left} KiB left: {} objects acknowledged so far", acknowledged.len());
    }
    scene.peer.kill9()?;
    scene.peer.restart().context("a start on a full disk")?;
    all_there(&scene, &acknowledged).context("after a restart on a full disk")?;
    ballast.remove();
    room_is_used_again(&scene)?;
    scene.backend.set_rules([]);
    scene.peer.kill9()?;
    scene.peer.restart()?;
    for (key, payload) in &acknowledged {
        scene.read(key, *payload)?;
        if key.ends_with("-0") {
            scene.until_written_back(key, *payload)?;
        }
    }
    Ok(())
}

/// Space that others give back is used within a while.
fn room_is_used_again(scene: &Scene) -> Result<()> {
    let payload = Payload::new(9, PIECE);
    eventually("there is room again", PATIENCE, || {
        std::thread::yield_now();
        let answer = scene.try_put("afterwards", EPHEMERAL, payload).ok()?;
        (answer.status() == 200).then_some(())
    })?;
    scene.read("afterwards", payload).map(drop)
}

/// Rewrites a file so that it takes no more blocks than it has bytes that are not zero.
fn give_back_what_is_ahead(path: &Path) -> Result<()> {
    let bytes = fs::read(path)?;
    fs::remove_file(path)?;
    let file = File::create(path)?;
    for (index, block) in bytes.chunks(4096).enumerate().filter(|(_, block)| block.iter().any(|byte| *byte != 0)) {
        file.write_all_at(block, index as u64 * 4096)?;
    }
    file.set_len(bytes.len() as u64)?;
    Ok(file.sync_all()?)
}

#[test]
fn a_catalog_without_room_refuses_what_adds_and_takes_what_removes() -> Result<()> {
    let Some(disk) = LoopFs::new(64 << 20) else { return Ok(()) };
    let mut scene = small_disk(disk.path())?;
    let ballast = Ballast(disk.path().join("ballast"));
    let payload = Payload::new(1, 5000);
    for number in 0..8 {
        scene.put(&format!("kept/{number}"), EPHEMERAL, payload)?;
    }
    scene.peer.terminate()?;
    give_back_what_is_ahead(&scene.peer.data_path().join("catalog.redb"))?;
    ballast.leave(2200 * KIB)?;
    scene.peer.restart()?;
    for mode in [ASYNC, EPHEMERAL] {
        let answer = scene.try_put("more", mode, payload)?;
        ensure!(
            answer.status() == 507 && answer.text().contains("no space left"),
            "{} {}",
            answer.status(),
            answer.text()
        );
    }
    let cold = Payload::new(2, 70_000);
    scene.place("cold", cold)?;
    scene.read("cold", cold)?;
    for number in 0..8 {
        scene.read(&format!("kept/{number}"), payload)?;
        let answer = scene.peer.delete(BUCKET, &format!("kept/{number}"))?;
        ensure!(answer.status() == 200, "{} {}", answer.status(), answer.text());
    }
    ensure!(scene.peer.metrics()?.sum("dfstore_store_poisoned", &[]) == 0.0);
    // What was refused and what was deleted takes nothing.
    let taken = cold.length.next_multiple_of(4096) as f64;
    scene.peer.metrics_until("only the cold object takes room", PATIENCE, |metrics| {
        metrics.sum("dfstore_store_used_bytes", &[]) <= taken
    })?;
    ballast.remove();
    scene.put("more", ASYNC, payload)?;
    scene.until_written_back("more", payload)
}

#[test]
fn deletes_make_room_on_a_full_disk() -> Result<()> {
    let Some(disk) = LoopFs::new(64 << 20) else { return Ok(()) };
    let scene = small_disk(disk.path())?;
    let ballast = Ballast(disk.path().join("ballast"));
    let kept = Payload::new(1, PIECE);
    for number in 0..4 {
        scene.put(&format!("kept/{number}"), EPHEMERAL, kept)?;
    }
    ballast.leave(0)?;
    for number in 0..4 {
        let answer = scene.peer.delete(BUCKET, &format!("kept/{number}"))?;
        ensure!(answer.status() == 200, "{} {}", answer.status(), answer.text());
    }
    let put = || scene.try_put("after", EPHEMERAL, kept).ok().filter(|answer| answer.status() == 200);
    eventually("what was deleted made room", Duration::from_secs(20), put)?;
    scene.read("after", kept).map(drop)
}
