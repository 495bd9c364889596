//! What the disk may do to us: give back other bytes, fill up. And what we promise about it: the quota.

use std::path::PathBuf;
use std::thread;

use anyhow::{Context, Result, ensure};
use dfstore_tests::cli::dfstore;
use dfstore_tests::data::{PIECE, Payload};
use dfstore_tests::dirs;
use dfstore_tests::faulty_backend::{Fault, Rule};
use dfstore_tests::loopfs::LoopFs;
use dfstore_tests::scene::{ASYNC, BUCKET, EPHEMERAL, PATIENCE, SYNC, Scene, expect};
use http::Method;

const TWO_PIECES: u64 = PIECE + 12_345;

/// Every read is one of the disk.
fn from_disk() -> Result<Scene> {
    Scene::start_with(|spec| spec.hot = false)
}

fn crc_failures(scene: &Scene) -> Result<f64> {
    Ok(scene.peer.metrics()?.sum("dfstore_crc_failures_total", &[]))
}

#[test]
fn a_flipped_byte_of_a_clean_object_is_replaced_from_the_bucket() -> Result<()> {
    let scene = from_disk()?;
    let payload = Payload::new(1, TWO_PIECES);
    scene.put("clean", SYNC, payload)?;
    scene.backend.forget();
    scene.peer.flip_on_disk(payload, PIECE + 100)?;
    scene.read("clean", payload)?;
    assert_eq!(crc_failures(&scene)?, 1.0);
    assert_eq!(scene.backend.bytes_sent(), TWO_PIECES - PIECE, "the damaged piece only");
    scene.until_local("clean")?;
    scene.read("clean", payload)?;
    assert_eq!(crc_failures(&scene)?, 1.0, "the damaged blocks are out of use");
    Ok(())
}

#[test]
fn a_flipped_byte_of_a_dirty_object_is_an_error_and_never_reaches_anyone() -> Result<()> {
    let mut scene = from_disk()?;
    let (dirty, ephemeral) = (Payload::new(2, TWO_PIECES), Payload::new(3, TWO_PIECES));
    scene.backend.set_rules([Rule::on(Method::PUT, Fault::internal_error())]);
    for (key, mode, payload) in [("dirty", ASYNC, dirty), ("ephemeral", EPHEMERAL, ephemeral)] {
        scene.put(key, mode, payload)?;
        scene.peer.flip_on_disk(payload, 70_000)?;
        expect(&scene.get(key)?, 500);
        let second = format!("bytes={PIECE}-{}", PIECE + 9);
        expect(&scene.ask("GET", key, &[("Range", &second)])?, 206);
        expect(&scene.peer.copy(BUCKET, key, "copy")?, 500);
    }
    let failures = crc_failures(&scene)?;
    assert!(failures >= 4.0, "{failures}");
    let quarantined = scene.peer.metrics()?.sum("dfstore_quarantined_pieces_total", &[]);
    assert_eq!(quarantined, 0.0, "nobody else has them: they stay for repair");
    scene.backend.set_rules([]);
    // The pauses between attempts have grown; a start begins with one.
    scene.peer.restart()?;
    scene.peer.metrics_until("the write-back has met it", PATIENCE, |metrics| {
        metrics.sum("dfstore_crc_failures_total", &[]) > 0.0
    })?;
    assert_eq!(scene.backend.stored(BUCKET, "dirty"), None);
    expect(&scene.get("dirty")?, 500);
    let good = Payload::new(4, TWO_PIECES);
    scene.put("dirty", ASYNC, good)?;
    scene.until_written_back("dirty", good)?;
    scene.read("dirty", good)?;
    Ok(())
}

#[test]
fn the_quota_holds_and_dirty_objects_are_never_evicted() -> Result<()> {
    const CAPACITY: u64 = 64 << 20;
    let scene = Scene::start_with(|spec| spec.capacity = "64MiB".to_owned())?;
    let object = |number: u64| Payload::new(100 + number, 2 * PIECE + number);
    for number in 0..25 {
        scene.bucket.put(&format!("many/{number}"), &object(number).bytes())?;
    }
    let kept = [("dirty", ASYNC, Payload::new(5, 2 * PIECE)), ("ephemeral", EPHEMERAL, Payload::new(6, 2 * PIECE))];
    scene.backend.set_rules([Rule::on(Method::PUT, Fault::internal_error())]);
    for (key, mode, payload) in kept {
        scene.put(key, mode, payload)?;
    }
    thread::scope(|scope| {
        let scene = &scene;
        let readers = (0..3).map(|reader| {
            scope.spawn(move || {
                for number in (0..25).map(|number| (number + reader * 8) % 25) {
                    scene.read(&format!("many/{number}"), object(number))?;
                    let bytes = scene.piece_file_bytes()?;
                    ensure!(bytes <= CAPACITY, "{bytes} bytes of piece files");
                }
                Ok(())
            })
        });
        readers.collect::<Vec<_>>().into_iter().try_for_each(|reader| reader.join().expect("no panic"))
    })?;
    let metrics = scene.peer.metrics()?;
    assert!(metrics.sum("dfstore_evicted_bytes_total", &[]) >= (25 * 2 * PIECE - CAPACITY) as f64);
    for (key, _, payload) in kept {
        scene.read(key, payload)?;
    }
    assert_eq!(scene.backend.stored(BUCKET, "dirty"), None);
    scene.rests()
}

#[test]
fn pieces_that_come_at_once_wait_for_the_room_that_is_being_made() -> Result<()> {
    let scene = Scene::start_with(|spec| spec.capacity = "64MiB".to_owned())?;
    let source = dirs::temporary("source")?;
    let (file, endpoint) = (source.path().join("file"), scene.peer.endpoint());
    let payload = Payload::new(30, 6 * PIECE);
    std::fs::write(&file, payload.bytes())?;
    // Pieces of an upload come several at once; what one of them evicts, the others do not find any more.
    for number in 0..12 {
        let url = format!("dfs://{BUCKET}/next/{number}");
        let copied = dfstore(&["-e", &endpoint, "cp", "-m", "1", &file.display().to_string(), &url])?;
        copied.success().with_context(|| format!("object {number}"))?;
    }
    scene.rests()
}

/// A peer whose disk is smaller than its quota, full of objects that cannot go; gives the last key that fitted.
fn fill(scene: &Scene) -> Result<u64> {
    for number in 0..100 {
        let answer = scene.try_put(&format!("filler/{number}"), EPHEMERAL, filler(number))?;
        if answer.status() != 200 {
            expect(&answer, 507);
            assert!(answer.text().contains("no space left"), "{}", answer.text());
            return number.checked_sub(1).context("nothing fitted");
        }
    }
    anyhow::bail!("the disk never fills up")
}

fn filler(number: u64) -> Payload {
    Payload::new(200 + number, PIECE)
}

#[test]
fn a_full_disk_is_507_and_reads_go_on() -> Result<()> {
    let Some(disk) = LoopFs::new(96 << 20) else { return Ok(()) };
    let data_path: PathBuf = disk.path().join("data");
    let mut scene = Scene::start_with(|spec| {
        spec.data_path = Some(data_path);
        spec.capacity = "512MiB".to_owned();
    })?;
    let remote = Payload::new(7, TWO_PIECES);
    scene.place("remote", remote)?;
    let last = fill(&scene)?;
    for number in [0, last / 2, last] {
        assert_eq!(scene.read(&format!("filler/{number}"), filler(number))?, "local");
    }
    scene.read("remote", remote).context("what cannot be kept is served all the same")?;
    expect(&scene.try_put("more", ASYNC, filler(0))?, 507);
    expect(&scene.get("more")?, 404);
    assert_eq!(scene.peer.request("GET", "/readyz", &[], b"")?.status(), 200);
    assert_eq!(scene.peer.metrics()?.sum("dfstore_store_poisoned", &[]), 0.0);

    scene.peer.kill9()?;
    scene.peer.restart()?;
    for number in [0, last] {
        scene.read(&format!("filler/{number}"), filler(number))?;
    }
    for number in 0..3 {
        expect(&scene.peer.delete(BUCKET, &format!("filler/{number}"))?, 200);
    }
    scene.put("more", ASYNC, filler(0)).context("there is room again")?;
    scene.until_written_back("more", filler(0))
}

#[test]
fn a_disk_with_less_room_than_a_piece_file_takes_pieces_all_the_same() -> Result<()> {
    let Some(disk) = LoopFs::new(400 << 20) else { return Ok(()) };
    let data_path: PathBuf = disk.path().join("data");
    let scene = Scene::start_with(|spec| {
        (spec.data_path, spec.capacity) = (Some(data_path.clone()), "20GiB".to_owned());
    })?;
    let payload = |number| Payload::new(number, 10 * PIECE);
    // More than fits: what is in the bucket gives way.
    for number in 0..8 {
        scene.put(&format!("o{number}"), SYNC, payload(number))?;
    }
    for number in 0..8 {
        scene.read(&format!("o{number}"), payload(number))?;
    }
    assert!(scene.piece_file_bytes()? >= 128 << 20, "{} bytes of piece files", scene.piece_file_bytes()?);
    assert_eq!(scene.peer.request("GET", "/readyz", &[], b"")?.status(), 200);
    scene.rests()
}
