//! Damage at random to the files of a stopped peer: whatever is hit, no wrong byte is served.
//!
//! Bytes of piece files are flipped, blocks zeroed and swapped, files cut short; the same is done to the catalog. Then the
//! peer either refuses to start, with a message that names the file and what to do, or serves only right bytes: a clean
//! object is fetched again, one that only this peer had is an error. What was not hit is all there.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use dfstore_tests::choices::{Choices, rounds, seed};
use dfstore_tests::data::{PIECE, Payload};
use dfstore_tests::faulty_backend::{Fault, Rule};
use dfstore_tests::peer::{Peer, PeerSpec};
use dfstore_tests::scene::{ASYNC, EPHEMERAL, SYNC, Scene, same};
use http::Method;

const BLOCK: u64 = 4096;
/// Bytes that records and pages may span.
const FLIPS_MAX: u64 = 8;
const START_TIMEOUT: Duration = Duration::from_secs(60);
const LENGTHS: [u64; 6] = [1, 4096, 10_000, 70_001, PIECE + 5, 300_000];

/// An object and its mode.
struct Object {
    key: String,
    mode: u8,
    payload: Payload,
}

/// A killed peer with objects of all kinds, and copies of its files.
struct Furnished {
    scene: Scene,
    objects: Vec<Object>,
    copies: Vec<(PathBuf, Vec<u8>)>,
}

fn furnished() -> Result<Furnished> {
    let mut scene = Scene::start_with(|spec| spec.capacity = "64MiB".to_owned())?;
    let mut objects = Vec::new();
    for (number, length) in (0..).zip(LENGTHS) {
        for (name, mode) in [("clean", SYNC), ("ephemeral", EPHEMERAL), ("dirty", ASYNC)] {
            let payload = Payload::new(number * 3 + u64::from(mode), length);
            objects.push(Object { key: format!("{name}-{number}"), mode, payload });
        }
    }
    for object in objects.iter().filter(|object| object.mode != ASYNC) {
        scene.put(&object.key, object.mode, object.payload)?;
    }
    scene.backend.set_rules([Rule::on(Method::PUT, Fault::internal_error())]);
    for object in objects.iter().filter(|object| object.mode == ASYNC) {
        scene.put(&object.key, object.mode, object.payload)?;
    }
    // Killed, so that the journal of the catalog has what the index has not.
    scene.peer.kill9()?;
    let mut copies = Vec::new();
    for entry in fs::read_dir(scene.peer.data_path())? {
        let path = entry?.path();
        let bytes = fs::read(&path)?;
        copies.push((path, bytes));
    }
    Ok(Furnished { scene, objects, copies })
}

impl Furnished {
    /// The files as they were, and no others.
    fn undo(&self) -> Result<()> {
        for entry in fs::read_dir(self.scene.peer.data_path())? {
            fs::remove_file(entry?.path())?;
        }
        self.copies.iter().try_for_each(|(path, bytes)| Ok(fs::write(path, bytes)?))
    }

    fn files(&self, prefix: &str) -> Vec<&Path> {
        let named = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
        self.copies.iter().map(|(path, _)| path.as_path()).filter(|path| named(path)).collect()
    }

    /// Reads everything: right bytes, or, where only this peer had them, an error or nothing. Gives how many were lost.
    fn read_all(&self, may_vanish: bool) -> Result<usize> {
        let mut lost = 0;
        for Object { key, mode, payload } in &self.objects {
            let answer = match self.scene.get(key) {
                Ok(answer) => answer,
                // Found in the middle of the body: the transfer breaks off.
                Err(_) if *mode != SYNC => {
                    lost += 1;
                    continue;
                }
                Err(error) => return Err(error.context(key.clone())),
            };
            match answer.status() {
                200 => ensure!(same(&answer.body, *payload), "{key}: wrong bytes"),
                500 if *mode != SYNC => lost += 1,
                404 if *mode != SYNC && may_vanish => lost += 1,
                status => bail!("{key}: {status} {}", answer.text()),
            }
        }
        Ok(lost)
    }

    fn spec(&self) -> PeerSpec {
        PeerSpec { data_path: Some(self.scene.peer.data_path().to_path_buf()), ..self.scene.peer.spec.clone() }
    }

    /// Starts the peer on what is there; if it ends by itself instead, gives its log.
    fn start(&mut self) -> Result<Option<String>> {
        let Err(error) = self.scene.peer.restart() else { return Ok(None) };
        if self.scene.peer.process().ended()?.is_none() {
            return Err(error);
        }
        let (status, log) = Peer::start_and_fail(&self.spec(), START_TIMEOUT)?;
        ensure!(status.code().is_some_and(|code| code != 0), "it ended with {status}: {log}");
        Ok(Some(log))
    }
}

/// Damages a file somewhere; gives what was done.
fn damage(path: &Path, used: u64, choices: &mut Choices) -> Result<String> {
    let file = File::options().read(true).write(true).open(path)?;
    let block = |choices: &mut Choices| choices.below(used.div_ceil(BLOCK)) * BLOCK;
    let kind = choices.below(8);
    let text = match kind {
        0 => {
            let length = choices.below(used);
            file.set_len(length)?;
            format!("cut to {length}")
        }
        1 | 2 => {
            let at = block(choices);
            file.write_all_at(&[0; 4096], at)?;
            format!("zeros at {at}")
        }
        3 | 4 => {
            let (one, other) = (block(choices), block(choices));
            let (mut first, mut second) = ([0; 4096], [0; 4096]);
            file.read_exact_at(&mut first, one)?;
            file.read_exact_at(&mut second, other)?;
            file.write_all_at(&second, one)?;
            file.write_all_at(&first, other)?;
            format!("{one} and {other} swapped")
        }
        _ => {
            let count = 1 + choices.below(FLIPS_MAX);
            for _ in 0..count {
                let at = choices.below(used);
                let mut byte = [0];
                file.read_exact_at(&mut byte, at)?;
                byte[0] ^= 1 << choices.below(8);
                file.write_all_at(&byte, at)?;
            }
            format!("{count} bits flipped")
        }
    };
    Ok(format!("{}: {text}", path.display()))
}

/// Up to where a file has anything but zeros.
fn used_bytes(bytes: &[u8]) -> u64 {
    bytes.iter().rposition(|byte| *byte != 0).map_or(1, |last| last as u64 + 1)
}

/// A refusal says which file it is about.
fn is_clear(log: &str, name: &str) -> bool {
    log.lines().any(|line| {
        line.contains(name) && ["restore it", "move it", "another store", "use "].iter().any(|w| line.contains(w))
    })
}

/// Damages files whose names start so, again and again; gives how often the peer refused, and how many objects were lost.
fn damage_and_read(prefix: &str, choices: &Choices, rounds: u64) -> Result<(u64, usize)> {
    let mut furnished = furnished()?;
    let (mut refused, mut lost) = (0, 0);
    for round in 0..rounds {
        let mut choices = choices.derive(round);
        furnished.undo()?;
        let path = choices.one_of(&furnished.files(prefix)).to_path_buf();
        let (_, bytes) = furnished.copies.iter().find(|(copied, _)| *copied == path).context("it was copied")?;
        let what = damage(&path, used_bytes(bytes).next_multiple_of(BLOCK).min(bytes.len() as u64), &mut choices)?;
        match furnished.start().with_context(|| format!("round {round}, {what}"))? {
            Some(log) => {
                ensure!(is_clear(&log, prefix), "round {round}, {what}: refused without a clear message: {log}");
                refused += 1;
            }
            None => {
                let read = furnished.read_all(prefix == "catalog");
                lost += read.with_context(|| format!("round {round}, {what}"))?;
                furnished.scene.peer.kill9()?;
            }
        }
    }
    eprintln!("{rounds} rounds on {prefix}: refused {refused} times, {lost} objects lost");
    Ok((refused, lost))
}

#[test]
fn no_damage_to_piece_files_is_served() -> Result<()> {
    let choices = Choices::new(seed("damage_to_piece_files"));
    let rounds = rounds(24, 500);
    let (refused, lost) = damage_and_read("pieces-", &choices, rounds)?;
    ensure!(lost > 0 && refused < rounds, "this says nothing");
    Ok(())
}

#[test]
fn no_damage_to_the_catalog_is_served() -> Result<()> {
    let choices = Choices::new(seed("damage_to_the_catalog"));
    let (refused, _) = damage_and_read("catalog", &choices, rounds(30, 500))?;
    ensure!(refused > 0, "this says nothing");
    Ok(())
}
