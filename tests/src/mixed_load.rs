//! A mixed load on one peer, with a log of acknowledgements, for tests that kill it or cut its power meanwhile.
//!
//! A writer owns a few keys and does one random thing after the other: writes in three modes over HTTP and over the
//! native protocol, overwrites, deletions, copies, evictions, reads of its own keys and of objects that only the bucket has. Every
//! answer is checked against the [`Ledger`]. It goes on until it is told to stop or the peer does not answer any more.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use dfstore_proto::message::Scope;
use dfstore_proto::object::WriteMode;

use crate::choices::Choices;
use crate::data::{PIECE, Payload};
use crate::eventually;
use crate::http::Response;
use crate::ledger::{Content, Ledger};
use crate::native::{self, NativeClient};
use crate::scene::{ASYNC, BUCKET, EPHEMERAL, PATIENCE, SYNC, Scene, same};

/// Keys of one writer.
const KEYS: u64 = 5;
/// Objects that only the bucket has at first.
const REMOTE_OBJECTS: u64 = 6;
/// Around a block and a buffer: most objects.
const SMALL: [u64; 7] = [0, 1, 4095, 4096, 10_000, 70_000, 300_001];
/// Around a piece.
const LARGE: [u64; 4] = [PIECE - 1, PIECE, PIECE + 1, PIECE + (1 << 20) + 77];
/// Written to the bucket in parts.
const IN_PARTS: u64 = (16 << 20) + 4097;

/// What else the writers may do.
#[derive(Clone, Copy, Debug)]
pub struct Kinds {
    /// Whether the bucket takes writes: then some go through it, and copies are made by it.
    pub bucket_writes: bool,
    /// Whether the disk may fail meanwhile, so that any answer of 500 and above is one.
    pub disk_fails: bool,
}

/// What became of a request.
enum Outcome {
    Done,
    /// Answered with an error: it may have been done in part.
    Failed,
    /// Answered that there is nothing to do it with.
    Refused,
    /// Not answered.
    Gone,
}

/// One writer and its keys.
pub struct Writer {
    number: u64,
    /// What its keys hold.
    pub ledger: Ledger,
    /// Requests that were acknowledged.
    pub acknowledged: u64,
}

impl Writer {
    /// A writer; each of a test has another number.
    pub fn new(number: u64) -> Writer {
        Writer { number, ledger: Ledger::default(), acknowledged: 0 }
    }

    /// Works until told to stop, or until the peer does not answer any more. An error is a wrong answer.
    pub fn work(&mut self, scene: &Scene, kinds: Kinds, mut choices: Choices, stop: &AtomicBool) -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            let key = self.key(choices.below(KEYS));
            let go_on = match choices.below(20) {
                0..=2 => self.read(scene, kinds, &key)?,
                3 => self.read_remote(scene, kinds, choices.below(REMOTE_OBJECTS))?,
                4 | 5 => self.delete(scene, kinds, &key)?,
                8 => evict(scene, &key),
                9 => evict(scene, &remote(choices.below(REMOTE_OBJECTS)).0),
                6 | 7 => {
                    let source = self.key(choices.below(KEYS));
                    self.copy(scene, kinds, &source, &key)?
                }
                _ => self.write(scene, kinds, &mut choices, &key)?,
            };
            if !go_on {
                return Ok(());
            }
        }
        Ok(())
    }

    fn key(&self, number: u64) -> String {
        format!("w{}-{number}", self.number)
    }

    fn write(&mut self, scene: &Scene, kinds: Kinds, choices: &mut Choices, key: &str) -> Result<bool> {
        let length = match choices.below(40) {
            0 => IN_PARTS,
            1..=5 => choices.one_of(&LARGE),
            _ => choices.one_of(&SMALL),
        };
        let payload = Payload::new(choices.number(), length);
        let modes: &[u8] = if kinds.bucket_writes { &[ASYNC, ASYNC, EPHEMERAL, SYNC] } else { &[ASYNC, EPHEMERAL] };
        let mode = choices.one_of(modes);
        let content = Content { payload: Some(payload), ephemeral: mode == EPHEMERAL, through_bucket: mode == SYNC };
        self.ledger.begin(key, content);
        let outcome = match choices.below(3) {
            0 => put_natively(scene, key, mode, payload, kinds),
            1 => outcome(scene.peer.put(BUCKET, key, mode, &payload.bytes()), kinds),
            _ => outcome(scene.try_put(key, mode, payload), kinds),
        };
        self.note(key, outcome).with_context(|| format!("PUT {key}, mode {mode}, {payload:?}"))
    }

    fn delete(&mut self, scene: &Scene, kinds: Kinds, key: &str) -> Result<bool> {
        self.ledger.begin(key, Content::ABSENT);
        let answer = outcome(scene.peer.delete(BUCKET, key), kinds);
        self.note(key, answer).with_context(|| format!("DELETE {key}"))
    }

    fn copy(&mut self, scene: &Scene, kinds: Kinds, source: &str, key: &str) -> Result<bool> {
        // The copy is of whatever the source holds: only if that is known.
        let Some(content) = self.ledger.certain(source).filter(|_| source != key) else { return Ok(true) };
        let Some(payload) = content.payload else { return Ok(true) };
        let ephemeral = content.ephemeral;
        self.ledger.begin(key, Content { payload: Some(payload), ephemeral, through_bucket: !ephemeral });
        let answer = scene.peer.copy(BUCKET, source, key);
        // A clean source is copied by the bucket, which may take no writes.
        let tolerant = Kinds { disk_fails: kinds.disk_fails || !kinds.bucket_writes, ..kinds };
        self.note(key, outcome(answer, tolerant)).with_context(|| format!("copy of {source} to {key}"))
    }

    fn read(&mut self, scene: &Scene, kinds: Kinds, key: &str) -> Result<bool> {
        match scene.get(key) {
            Err(_) => Ok(false),
            Ok(answer) if kinds.disk_fails && answer.status() >= 500 => Ok(true),
            Ok(answer) => self.ledger.found(key, &answer).map(|_| true),
        }
    }

    fn read_remote(&mut self, scene: &Scene, kinds: Kinds, number: u64) -> Result<bool> {
        let (key, payload) = remote(number);
        match scene.get(&key) {
            Err(_) => Ok(false),
            Ok(answer) if kinds.disk_fails && answer.status() >= 500 => Ok(true),
            Ok(answer) => {
                ensure!(answer.status() == 200, "{key}: {} {}", answer.status(), answer.text());
                ensure!(same(&answer.body, payload), "{key}: wrong bytes");
                Ok(true)
            }
        }
    }

    /// Notes what became of a write; gives whether the peer is still there.
    fn note(&mut self, key: &str, outcome: Result<Outcome>) -> Result<bool> {
        match outcome? {
            Outcome::Done => {
                self.ledger.acknowledge(key);
                self.acknowledged += 1;
                Ok(true)
            }
            Outcome::Failed => Ok(true),
            Outcome::Refused => {
                self.ledger.refuse(key);
                Ok(true)
            }
            Outcome::Gone => Ok(false),
        }
    }

    /// After a crash: every key holds what it may, GET and listing agree, and what the bucket alone has is right.
    pub fn settle(&mut self, scene: &Scene) -> Result<()> {
        let listed = scene.keys("")?;
        // Past the cache's freshness: a write that reached the bucket alone is seen.
        self.ledger.settle_all(&listed, |key| scene.ask("GET", key, &[("Cache-Control", "no-cache")]))?;
        for number in 0..REMOTE_OBJECTS {
            let (key, payload) = remote(number);
            scene.read(&key, payload)?;
        }
        Ok(())
    }

    /// The first key of which the bucket does not hold what the peer shows, unless that is ephemeral; at rest there is
    /// none.
    fn disagreement(&mut self, scene: &Scene) -> Result<Option<String>> {
        let keys: Vec<String> = self.ledger.keys().map(str::to_owned).collect();
        for key in keys {
            let answer = scene.ask("GET", &key, &[("Cache-Control", "no-cache")])?;
            let found = self.ledger.settle(&key, &answer)?;
            let is_there = match found.payload {
                _ if found.ephemeral => true,
                Some(payload) => scene.has(&key, payload),
                None => scene.backend.stored(BUCKET, &key).is_none(),
            };
            if !is_there {
                let bucket = scene.backend.stored(BUCKET, &key).map(|bytes| bytes.len());
                return Ok(Some(format!("{key}: the peer shows {found:?}, the bucket has {bucket:?} bytes")));
            }
        }
        Ok(None)
    }
}

/// Lets all writers work at once until `end` has ended them by killing the peer, and waits until the bucket has carried
/// out what the peer asked of it before.
pub fn work_until(
    scene: &Scene,
    writers: &mut [Writer],
    kinds: Kinds,
    choices: &Choices,
    end: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let stop = &AtomicBool::new(false);
    thread::scope(|scope| {
        let work = (0..).zip(writers).map(|(number, writer)| {
            let choices = choices.derive(number);
            scope.spawn(move || writer.work(scene, kinds, choices, stop))
        });
        let working: Vec<_> = work.collect();
        let ended = end();
        stop.store(true, Ordering::Relaxed);
        let worked: Result<()> = working.into_iter().try_for_each(|writer| writer.join().expect("no panic"));
        ended.and(worked).and_then(|()| scene.backend.until_quiet())
    })
}

/// Waits until the bucket holds what the peer shows.
pub fn until_written_back(writers: &mut [Writer], scene: &Scene) -> Result<()> {
    let mut last = Ok(());
    let agreed = eventually("peer and bucket agree", PATIENCE, || {
        let found = writers.iter_mut().find_map(|writer| writer.disagreement(scene).transpose());
        last = found.map_or(Ok(()), |found| Err(found.map_or_else(|error| error, anyhow::Error::msg)));
        last.is_ok().then_some(())
    });
    agreed.map_err(|_| last.expect_err("it has failed").context(format!("the log ends\n{}", scene.peer.log_tail())))
}

/// Puts the objects that only the bucket has into it.
pub fn place_remote_objects(scene: &Scene) -> Result<()> {
    (0..REMOTE_OBJECTS).map(remote).try_for_each(|(key, payload)| scene.place(&key, payload))
}

fn remote(number: u64) -> (String, Payload) {
    (format!("remote-{number}"), Payload::new(900 + number, 1 + number * 1_000_003))
}

fn outcome(answer: Result<Response>, kinds: Kinds) -> Result<Outcome> {
    let Ok(answer) = answer else { return Ok(Outcome::Gone) };
    match answer.status() {
        200 | 202 => Ok(Outcome::Done),
        status if kinds.disk_fails && status >= 500 => Ok(Outcome::Failed),
        // Memory or the dirty limit.
        503 if answer.header("retry-after").is_some() => Ok(Outcome::Failed),
        404 => Ok(Outcome::Refused),
        status => bail!("{status} {}", answer.text()),
    }
}

/// Has the peer forget what it caches of an object, so that its space is used again. What the bucket lacks stays.
fn evict(scene: &Scene, key: &str) -> bool {
    let target = native::target(BUCKET, key);
    let Ok(mut client) = NativeClient::connect(scene.peer.address(), &target) else { return false };
    // Whatever it says: one that is dirty or being read is not evicted.
    let _ = client.evict(&target, Scope::Node);
    true
}

fn put_natively(scene: &Scene, key: &str, mode: u8, payload: Payload, kinds: Kinds) -> Result<Outcome> {
    let target = native::target(BUCKET, key);
    let mode = match mode {
        ASYNC => WriteMode::AsyncWriteBack,
        EPHEMERAL => WriteMode::Ephemeral,
        _ => WriteMode::WriteBack,
    };
    let Ok(mut client) = NativeClient::connect(scene.peer.address(), &target) else { return Ok(Outcome::Gone) };
    match client.put(&target, &payload.bytes(), mode) {
        Ok(_) => Ok(Outcome::Done),
        Err(error) if error.downcast_ref::<std::io::Error>().is_some() => Ok(Outcome::Gone),
        Err(error) if error.to_string().contains("closed the connection") => Ok(Outcome::Gone),
        Err(_) if kinds.disk_fails => Ok(Outcome::Failed),
        Err(error) => Err(error),
    }
}
