//! A peer that the machine gives little more memory than it was told to use.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dfstore_proto::message::Scope;
use dfstore_tests::cgroup::Cgroup;
use dfstore_tests::choices::is_long_run;
use dfstore_tests::cluster::{Cluster, Node};
use dfstore_tests::data::Payload;
use dfstore_tests::eventually;
use dfstore_tests::http::Connection;
use dfstore_tests::native::{NativeClient, target};
use dfstore_tests::peer::Peer;
use dfstore_tests::scene::{ASYNC, BUCKET, EPHEMERAL, Scene, expect};

/// What the machine gives; the peer's budget is half of it.
const LIMIT_BYTES: u64 = 256 << 20;
const AT_ONCE: u64 = 4;
const CHUNK: u64 = 1 << 20;
const WRITTEN_BACK_WITHIN: Duration = Duration::from_secs(600);

fn upload(peer: &Peer, path: &str, headers: &[(&str, &str)], payload: Payload) -> Result<()> {
    let mut connection = Connection::open(peer.address())?;
    connection.send_head("PUT", path, headers, payload.length)?;
    for start in (0..payload.length).step_by(usize::try_from(CHUNK)?) {
        connection.send(&payload.range(start..(start + CHUNK).min(payload.length)))?;
    }
    expect(&connection.response(false)?, 200);
    Ok(())
}

fn download(scene: &Scene, key: &str, payload: Payload) -> Result<()> {
    let mut connection = Connection::open(scene.peer.address())?;
    connection.send_head("GET", &Scene::path(key), &[], 0)?;
    let head = connection.read_head()?;
    let (mut at, mut wrong) = (0, None);
    connection.read_body(&head, |bytes| {
        wrong = wrong.or_else(|| payload.first_difference(at, bytes));
        at += bytes.len() as u64;
    })?;
    ensure!(head.status == 200 && at == payload.length && wrong.is_none(), "{} {at} {wrong:?}", head.status);
    Ok(())
}

/// Several transfers at once, so that memory is wanted.
fn at_once(transfer: impl Fn(&str, Payload) -> Result<()> + Sync, length: u64) -> Result<()> {
    thread::scope(|scope| {
        let transfer = &transfer;
        let one = |number: u64| move || transfer(&format!("large/{number}"), Payload::new(number, length / AT_ONCE));
        let running: Vec<_> = (0..AT_ONCE).map(|number| scope.spawn(one(number))).collect();
        running.into_iter().try_for_each(|transfer| transfer.join().expect("no panic"))
    })
}

#[test]
fn transfers_far_larger_than_memory_stay_within_it() -> Result<()> {
    let Some(group) = Cgroup::with_memory(LIMIT_BYTES) else { return Ok(()) };
    let length = if is_long_run() { 4 << 30 } else { 512 << 20 };
    let mut scene = Scene::start_with(|spec| spec.capacity = "12GiB".to_owned())?;
    group.add(scene.peer.process().pid())?;
    let put = |key: &str, payload| upload(&scene.peer, &format!("{}?mode={ASYNC}", Scene::path(key)), &[], payload);
    at_once(put, length).context("up")?;
    at_once(|key, payload| download(&scene, key, payload), length).context("down, while it is written back")?;
    for number in 0..AT_ONCE {
        let key = format!("large/{number}");
        eventually("it is written back", WRITTEN_BACK_WITHIN, || {
            let head = scene.ask("HEAD", &key, &[]).ok()?;
            (head.header("x-dfs-cache") == Some("local")).then_some(())
        })?;
        NativeClient::connect_any(scene.peer.address())?.evict(&target(BUCKET, &key), Scope::Node)?;
    }
    at_once(|key, payload| download(&scene, key, payload), length).context("down, from the bucket")?;
    ensure!(scene.peer.process().ended()?.is_none(), "it was killed");
    eprintln!("{} MiB of {} were used", group.memory_peak_bytes()? >> 20, LIMIT_BYTES >> 20);
    scene.rests()?;
    drop(scene);
    Ok(())
}

#[test]
fn copies_of_an_object_far_larger_than_memory_stay_within_it() -> Result<()> {
    let cluster = Cluster::builder().seeds(2).peers(1).all(|_, options| options.max_replicas = Some(2)).start()?;
    let mut groups = Vec::new();
    for node in cluster.nodes() {
        let Some(group) = Cgroup::with_memory(LIMIT_BYTES) else { return Ok(()) };
        group.add(node.peer().pid())?;
        groups.push(group);
    }
    let payload = Payload::new(9, if is_long_run() { 1 << 30 } else { 512 << 20 });
    let path = format!("{}?mode={EPHEMERAL}", Node::path("large"));
    upload(cluster[2].peer(), &path, &[("X-Dfs-Ack", "peers:3")], payload)?;
    assert_eq!(cluster[2].whole_holders("large")?.len(), 3);
    for (node, group) in cluster.nodes().iter().zip(&groups) {
        // Who was killed answers nothing.
        node.peer().metrics()?;
        eprintln!("{} MiB of {} were used", group.memory_peak_bytes()? >> 20, LIMIT_BYTES >> 20);
    }
    drop(cluster);
    Ok(())
}
