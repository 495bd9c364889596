//! A disk that fails: nothing is acknowledged that it did not take, nothing is written any more, and reads go on.
//!
//! The file system of the data folder, or of one of its files, meets an error and takes no more writes and no more syncs,
//! as Linux does with `errors=remount-ro`. What was read before can still be read. So that the sync of the piece files
//! fails and nothing else, the catalog lies on another file system, behind a symbolic link; and the other way round. The
//! pieces of an upload are written before the disk fails, and committed after it. Needs root.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use dfstore_proto::object::WriteMode;
use dfstore_tests::data::{PIECE, Payload};
use dfstore_tests::dirs;
use dfstore_tests::faulty_backend::{Fault, Rule};
use dfstore_tests::loopfs::LoopFs;
use dfstore_tests::native::{NativeClient, target};
use dfstore_tests::scene::{ASYNC, BUCKET, EPHEMERAL, PATIENCE, SYNC, Scene, expect};
use http::Method;
use tempfile::TempDir;

const TWO_PIECES: u64 = PIECE + 12_345;
/// The files of the catalog.
const CATALOG: [&str; 2] = ["catalog.redb", "catalog.journal"];

fn clean() -> Payload {
    Payload::new(1, TWO_PIECES)
}

fn dirty() -> Payload {
    Payload::new(2, TWO_PIECES)
}

fn ephemeral() -> Payload {
    Payload::new(3, 70_000)
}

fn remote() -> Payload {
    Payload::new(4, TWO_PIECES)
}

fn late() -> Payload {
    Payload::new(5, TWO_PIECES)
}

/// A peer with this data folder, its catalog in another one, and one object of each kind.
fn furnished(data_path: &Path, catalog_folder: &Path) -> Result<Scene> {
    let mut scene = Scene::start_with(|spec| {
        spec.data_path = Some(data_path.to_path_buf());
        spec.capacity = "128MiB".to_owned();
    })?;
    scene.peer.terminate()?;
    for name in CATALOG {
        let (here, there) = (data_path.join(name), catalog_folder.join(name));
        fs::copy(&here, &there)?;
        fs::remove_file(&here)?;
        symlink(there, here)?;
    }
    scene.peer.restart()?;
    scene.put("clean", SYNC, clean())?;
    scene.put("ephemeral", EPHEMERAL, ephemeral())?;
    scene.bucket.put("remote", &remote().bytes())?;
    scene.backend.set_rules([Rule::on(Method::PUT, Fault::internal_error())]);
    scene.put("dirty", ASYNC, dirty())?;
    Ok(scene)
}

/// A disk with the data folder, and the peer of [`furnished`] there; its catalog is elsewhere.
fn pieces_on_a_disk() -> Result<Option<(LoopFs, TempDir, Scene)>> {
    let Some(disk) = LoopFs::journaled(320 << 20) else { return Ok(None) };
    let elsewhere = dirs::temporary("catalog")?;
    let scene = furnished(&disk.path().join("data"), elsewhere.path())?;
    Ok(Some((disk, elsewhere, scene)))
}

/// Writes the pieces of an object, lets the disk fail, and commits: that must be refused, with these words.
fn commit_on_a_failed_disk(scene: &Scene, disk: &LoopFs, words: &str) -> Result<()> {
    let target = target(BUCKET, "late");
    let mut client = NativeClient::connect(scene.peer.address(), &target)?;
    let staged = client.stage(&target, &late().bytes(), WriteMode::AsyncWriteBack)?;
    disk.fail()?;
    let error = client.commit(staged).err().context("it was acknowledged")?;
    ensure!(format!("{error:#}").contains(words), "{error:#}");
    Ok(())
}

/// Everything that was acknowledged is read, and what only the bucket has; nothing is written; health and metrics say so.
fn reads_go_on_and_writes_are_refused(scene: &Scene) -> Result<()> {
    for mode in [ASYNC, SYNC, EPHEMERAL] {
        let answer = scene.try_put("refused", mode, ephemeral())?;
        expect(&answer, 503);
        ensure!(answer.text().contains("takes no writes"), "{}", answer.text());
        ensure!(answer.header("retry-after").is_none(), "waiting does not help");
    }
    scene
        .peer
        .metrics_until("the metrics say so", PATIENCE, |metrics| metrics.sum("dfstore_store_poisoned", &[]) == 1.0)?;
    let ready = scene.peer.request("GET", "/readyz", &[], b"")?;
    expect(&ready, 503);
    ensure!(ready.text().contains("no writes until restart"), "{}", ready.text());
    expect(&scene.peer.request("GET", "/healthy", &[], b"")?, 200);
    ensure!(scene.peer.log().contains("ERROR"), "the log says nothing");
    for (key, payload) in [("clean", clean()), ("dirty", dirty()), ("ephemeral", ephemeral())] {
        scene.read(key, payload)?;
    }
    for _ in 0..2 {
        scene.read("remote", remote()).context("what cannot be kept is served all the same")?;
    }
    expect(&scene.get("late")?, 404);
    expect(&scene.get("refused")?, 404);
    Ok(())
}

/// After the disk is mended and the peer started, everything that was acknowledged is there, and writes are taken.
fn all_is_well_after_a_restart(scene: &mut Scene) -> Result<()> {
    scene.peer.restart()?;
    expect(&scene.peer.request("GET", "/readyz", &[], b"")?, 200);
    for (key, payload) in [("clean", clean()), ("dirty", dirty()), ("ephemeral", ephemeral()), ("remote", remote())] {
        scene.read(key, payload)?;
    }
    let answer = scene.get("late")?;
    ensure!(answer.status() == 404 || answer.body == late().bytes(), "late: {}", answer.status());
    scene.backend.set_rules([]);
    scene.put("refused", ASYNC, late())?;
    scene.until_written_back("refused", late())?;
    scene.peer.terminate().map(drop)
}

#[test]
fn a_failed_sync_of_a_piece_file_stops_writes_and_nothing_else() -> Result<()> {
    let Some((mut disk, _elsewhere, mut scene)) = pieces_on_a_disk()? else { return Ok(()) };
    commit_on_a_failed_disk(&scene, &disk, "takes no writes")?;
    reads_go_on_and_writes_are_refused(&scene)?;
    ensure!(scene.peer.log().contains("cannot sync"), "{}", scene.peer.log_tail());
    scene.peer.kill9()?;
    disk.remount()?;
    all_is_well_after_a_restart(&mut scene)
}

#[test]
fn a_failed_sync_of_the_catalog_stops_writes_and_nothing_else() -> Result<()> {
    let Some(mut disk) = LoopFs::journaled(64 << 20) else { return Ok(()) };
    let folder = dirs::temporary("pieces")?;
    let mut scene = furnished(folder.path(), disk.path())?;
    commit_on_a_failed_disk(&scene, &disk, "takes no writes")?;
    reads_go_on_and_writes_are_refused(&scene)?;
    ensure!(scene.peer.log().contains("a catalog commit failed"), "{}", scene.peer.log_tail());
    expect(&scene.peer.delete(BUCKET, "dirty")?, 503);
    scene.read("dirty", dirty())?;
    scene.peer.kill9()?;
    disk.remount()?;
    all_is_well_after_a_restart(&mut scene)
}

#[test]
fn a_small_object_outlives_a_disk_that_fails_before_its_piece_is_synced() -> Result<()> {
    let Some((mut disk, _elsewhere, mut scene)) = pieces_on_a_disk()? else { return Ok(()) };
    let small = Payload::new(6, 20_000);
    let target = target(BUCKET, "small");
    let mut client = NativeClient::connect(scene.peer.address(), &target)?;
    let staged = client.stage(&target, &small.bytes(), WriteMode::AsyncWriteBack)?;
    disk.fail()?;
    client.commit(staged).context("its bytes are in the journal, which is on another disk")?;
    scene.peer.metrics_until("it is noticed", PATIENCE, |metrics| metrics.sum("dfstore_store_poisoned", &[]) == 1.0)?;
    expect(&scene.try_put("refused", ASYNC, small)?, 503);
    scene.peer.kill9()?;
    disk.remount()?;
    scene.peer.restart()?;
    scene.read("small", small)?;
    scene.read("dirty", dirty())?;
    scene.backend.set_rules([]);
    scene.until_written_back("small", small)?;
    scene.peer.terminate().map(drop)
}

#[test]
fn a_disk_that_takes_no_writes_is_no_longer_written_to() -> Result<()> {
    let Some((mut disk, _elsewhere, mut scene)) = pieces_on_a_disk()? else { return Ok(()) };
    disk.fail()?;
    expect(&scene.try_put("late", ASYNC, late())?, 503);
    reads_go_on_and_writes_are_refused(&scene)?;
    scene.peer.kill9()?;
    disk.remount()?;
    all_is_well_after_a_restart(&mut scene)
}
