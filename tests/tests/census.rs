//! At rest a peer holds what it held when it had just started, whatever its clients did.

use std::io::Read;
use std::net::Shutdown;
use std::thread;

use anyhow::{Result, anyhow};
use dfstore_tests::data::{PIECE, Payload};
use dfstore_tests::http::Connection;
use dfstore_tests::scene::{ASYNC, BUCKET, EPHEMERAL, PATIENCE, SYNC, Scene};

/// Requests that are given up in the middle.
const CANCELLED: u64 = 10_000;
const THREADS: u64 = 16;
/// Before the first measurement: tables and pools have grown to their size.
const CANCELLED_BEFORE: u64 = 2_000;
/// Growth of resident memory that is no leak. A leak of a buffer each would be 2.5 GiB, one of 4 KiB each 39 MiB.
const GROWTH_MAX: u64 = 16 << 20;

#[test]
fn a_peer_at_rest_has_given_everything_back() -> Result<()> {
    let scene = Scene::start()?;
    let payload = Payload::new(1, 2 * PIECE + 5);
    scene.place("clean", payload)?;
    scene.read("clean", payload)?;
    for (key, mode) in [("async", ASYNC), ("sync", SYNC), ("ephemeral", EPHEMERAL)] {
        scene.put(key, mode, payload)?;
        scene.read(key, payload)?;
    }
    scene.put("async", ASYNC, Payload::new(2, PIECE))?;
    scene.peer.delete(BUCKET, "sync")?;
    scene.keys("")?;
    scene.rests()
}

#[test]
fn a_census_finds_a_connection_that_stays_and_an_upload_that_is_not_over() -> Result<()> {
    let scene = Scene::start()?;
    let mut client = Connection::open(scene.peer.address())?;
    client.send_head("PUT", &Scene::path("half"), &[], 2 * PIECE)?;
    client.send(&Payload::new(3, PIECE).bytes())?;
    scene
        .peer
        .metrics_until("the upload counts", PATIENCE, |samples| samples.sum("dfstore_uploads_open", &[]) > 0.0)?;
    assert_eq!(scene.peer.metrics()?.sum("dfstore_connections", &[("face", "http")]), 1.0);
    assert!(scene.census.look(&scene.peer, &[scene.backend.address()]).is_err());
    drop(client);
    scene.rests()
}

#[test]
fn memory_stays_flat_over_ten_thousand_cancelled_requests() -> Result<()> {
    let mut scene = Scene::start()?;
    let payload = Payload::new(4, PIECE);
    scene.put("read", SYNC, payload)?;
    cancel(&scene, CANCELLED_BEFORE)?;
    scene.rests()?;
    let before = scene.peer.process().rss_bytes()?;
    cancel(&scene, CANCELLED)?;
    scene.rests()?;
    let after = scene.peer.process().rss_bytes()?;
    println!("{before} bytes before, {after} after");
    assert!(after < before + GROWTH_MAX, "{before} bytes before, {after} after");
    scene.read("read", payload).map(drop)
}

/// So many GETs and PUTs whose clients go away in the middle, from several threads.
fn cancel(scene: &Scene, requests: u64) -> Result<()> {
    let half = Payload::new(5, 100_000).bytes();
    thread::scope(|scope| {
        let half = &half;
        let work = |thread: u64| (0..requests / THREADS).try_for_each(|number| cancel_one(scene, thread, number, half));
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || work(thread))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })
}

fn cancel_one(scene: &Scene, thread: u64, number: u64, half: &[u8]) -> Result<()> {
    let mut client = std::net::TcpStream::connect(scene.peer.address())?;
    if number.is_multiple_of(2) {
        write(&mut client, &format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", Scene::path("read")), b"")?;
        // The answer has begun.
        client.read_exact(&mut [0; 512])?;
    } else {
        let path = Scene::path(&format!("never-{thread}"));
        write(&mut client, &format!("PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n"), half)?;
    }
    let _ = client.shutdown(Shutdown::Both);
    Ok(())
}

fn write(client: &mut std::net::TcpStream, head: &str, body: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    client.write_all(head.as_bytes())?;
    client.write_all(body)
}
