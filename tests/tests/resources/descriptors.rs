//! A running peer that may open no more files: it goes on with what it has, and says no clearly.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dfstore_tests::data::{PIECE, Payload};
use dfstore_tests::eventually;
use dfstore_tests::http::Connection;
use dfstore_tests::scene::{ASYNC, EPHEMERAL, PATIENCE, SYNC, Scene, expect, right};
use rustix::process::{Pid, Resource, Rlimit, prlimit};

/// Connections that ask for something while there are no descriptors.
const WAITING: usize = 40;
/// How long they are given to be answered though they should not be.
const WAIT: Duration = Duration::from_secs(2);

fn open_files(scene: &mut Scene) -> Result<u64> {
    let folder = format!("/proc/{}/fd", scene.peer.process().pid());
    Ok(fs::read_dir(folder)?.count() as u64)
}

/// Sets the soft limit; gives the one before.
fn limit_open_files(scene: &mut Scene, files: Option<u64>) -> Result<Option<u64>> {
    let pid = Pid::from_raw(i32::try_from(scene.peer.process().pid())?);
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
    let before = prlimit(pid, Resource::Nofile, Rlimit { current: files, maximum })?;
    Ok(before.current)
}

/// A connection that has asked, and whether an answer has come.
struct Asking {
    stream: TcpStream,
    answered: bool,
}

impl Asking {
    fn new(scene: &Scene) -> Result<Asking> {
        let mut stream = TcpStream::connect(scene.peer.address())?;
        stream.write_all(b"GET /healthy HTTP/1.1\r\nHost: peer\r\n\r\n")?;
        Ok(Asking { stream, answered: false })
    }

    fn is_answered(&mut self, within: Duration) -> Result<bool> {
        if self.answered {
            return Ok(true);
        }
        self.stream.set_read_timeout(Some(within.max(Duration::from_millis(1))))?;
        let mut status = [0; 12];
        match self.stream.read_exact(&mut status) {
            Ok(()) => {
                self.answered = status == *b"HTTP/1.1 200";
                Ok(self.answered)
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
            Err(error) => Err(error).context("refused instead of served later"),
        }
    }
}

/// Reads and writes of every kind on a connection that is there. What is acknowledged is given back.
fn work(scene: &Scene, held: &mut Connection, warm: Payload) -> Result<Vec<(String, Payload)>> {
    right(&held.request("GET", &Scene::path("warm"), &[], b"")?, warm).context("what is here is served")?;
    let mut acknowledged = Vec::new();
    for (number, (mode, length)) in [(ASYNC, 5000), (EPHEMERAL, 9 * PIECE), (SYNC, 20 * PIECE)].into_iter().enumerate()
    {
        let (key, payload) = (format!("short/{number}"), Payload::new(50 + number as u64, length));
        let answer = held.request("PUT", &format!("{}?mode={mode}", Scene::path(&key)), &[], &payload.bytes());
        let answer = answer.with_context(|| format!("{key}; {}", scene.peer.log_tail()))?;
        match answer.status() {
            200 => acknowledged.push((key, payload)),
            503 | 504 | 507 => {}
            status => anyhow::bail!("{key}: {status} {}", answer.text()),
        }
    }
    Ok(acknowledged)
}

/// Reads what only the bucket has, on a connection that is there. That may break off: the first pieces came over a
/// connection to the bucket, the others need one more.
fn read_cold(held: &mut Connection, cold: Payload) -> Result<()> {
    held.send_head("GET", &Scene::path("cold"), &[], 0)?;
    let head = held.read_head()?;
    let mut bytes = Vec::new();
    let ended = held.read_body(&head, |more| bytes.extend_from_slice(more));
    match head.status {
        200 => ensure!(cold.first_difference(0, &bytes).is_none(), "wrong bytes; {ended:?}"),
        status => ensure!(matches!(status, 503 | 504), "{status}"),
    }
    Ok(())
}

#[test]
fn a_peer_without_descriptors_serves_what_it_has_and_recovers() -> Result<()> {
    let mut scene = Scene::start()?;
    let (warm, cold) = (Payload::new(1, 2 * PIECE), Payload::new(2, 6 * PIECE));
    scene.put("warm", EPHEMERAL, warm)?;
    scene.place("cold", cold)?;
    let mut held = Connection::open(scene.peer.address())?;
    right(&held.request("GET", &Scene::path("warm"), &[], b"")?, warm)?;
    let mut held_for_cold = Connection::open(scene.peer.address())?;
    expect(&held_for_cold.request("GET", "/healthy", &[], b"")?, 200);
    let before = open_files(&mut scene)?;
    let limit = limit_open_files(&mut scene, Some(before))?;
    let (began, cpu) = (Instant::now(), scene.peer.process().cpu_time()?);
    let mut asking = (0..WAITING).map(|_| Asking::new(&scene)).collect::<Result<Vec<_>>>()?;
    let acknowledged = work(&scene, &mut held, warm)?;
    read_cold(&mut held_for_cold, cold).context("cold")?;
    let worked = (began.elapsed(), scene.peer.process().cpu_time()?);
    let mut answered = 0;
    for asked in &mut asking {
        answered +=
            usize::from(asked.is_answered((began + worked.0 + WAIT).saturating_duration_since(Instant::now()))?);
    }
    ensure!(answered < WAITING, "the limit does not bite");
    let used = scene.peer.process().cpu_time()?.saturating_sub(worked.1);
    let idle = began.elapsed().saturating_sub(worked.0);
    ensure!(used * 4 < idle, "{used:?} of {idle:?} were spent on waiting; {cpu:?} before");
    right(&held.request("GET", &Scene::path("warm"), &[], b"")?, warm)?;

    limit_open_files(&mut scene, limit)?;
    for asked in &mut asking {
        ensure!(asked.is_answered(PATIENCE)?, "a connection that had to wait is served when there are descriptors");
    }
    drop((asking, held, held_for_cold));
    scene.read("cold", cold)?;
    scene.put("afterwards", SYNC, cold)?;
    for (key, payload) in acknowledged.iter().filter(|(key, _)| key == "short/0") {
        scene.until_written_back(key, *payload).context("a write-back that had no descriptors is tried again")?;
    }
    eventually("descriptors come back", PATIENCE, || {
        // The backend's connections are kept for a while.
        open_files(&mut scene).ok().filter(|open| *open <= before + 20)
    })?;
    scene.peer.kill9()?;
    scene.peer.restart()?;
    scene.read("warm", warm)?;
    acknowledged.iter().try_for_each(|(key, payload)| scene.read(key, *payload).map(drop))
}
