//! The steps of the demo of a cluster, in order: who gives bytes to whom, and what the bucket is asked for.
//!
//! Where bytes came from is told by the counters of the peer that was read from; what went to and from the bucket is
//! counted in front of the bucket. Peers are numbered from 1; the last one is the seed.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use dfstore_proto::message::Scope;
use dfstore_tests::cluster::{Cluster, Node};
use dfstore_tests::native::target;
use dfstore_tests::peer::Peer;

use super::compare::compare;
use super::moves::{announce, copy_in, copy_out, remove as remove_at, until_in_bucket, until_interrupted};
use super::proof::{SERVED, Served};
use super::size::Size;
use super::stage::Stage;
use super::table::Table;

/// Anything but the bucket. A peer may have been given pieces before it asks for them.
const CACHED: [&str; 4] = ["local", "pending", "peer", "seed"];
const ANYWHERE: [&str; 5] = ["local", "pending", "peer", "seed", "backend"];
/// What may come over the wire besides the object itself: heads of requests and answers.
const OVERHEAD_PERCENT: u64 = 2;
const OVERHEAD_BYTES: u64 = 256 << 10;
/// The one that writes, and dies.
const WRITER: usize = 1;
/// The one that reads first.
const READER: usize = 2;

/// The node with this number: the seed is the first node of a cluster, and the last one here.
fn node(cluster: &Cluster, number: usize) -> &Node {
    &cluster[number % cluster.nodes().len()]
}

fn name(cluster: &Cluster, number: usize) -> String {
    if number == cluster.nodes().len() { format!("peer {number} (the seed)") } else { format!("peer {number}") }
}

/// Copies in at one peer and out at the others, once more after all have dropped it, and when the writer is dead.
pub fn run(stage: &mut Stage<Cluster>, table: &mut Table) -> Result<()> {
    let count = stage.peers.nodes().len();
    for number in 1..=count {
        eprintln!("{} at {}", name(&stage.peers, number), node(&stage.peers, number).peer().endpoint());
    }
    let (writer, reader) = (node(&stage.peers, WRITER).peer(), node(&stage.peers, READER).peer());
    copy_in(stage, writer, table, "copy in at peer 1")?;
    copy_out(stage, reader, table, "copy out at peer 2", &CACHED)?;
    let others: Vec<usize> = (READER + 1..=count).collect();
    let step = format!("copy out at {}, at once", numbers(&others));
    let (took, sources) = copy_out_at_once(stage, &others, &step, &CACHED)?;
    table.add(&step, took, Some(stage.payload.length * others.len() as u64), &sources);
    let took = until_in_bucket(stage, &all_peers(stage))?;
    table.add("wait for the bucket", took, None, &bucket_gets_one_copy(stage)?);
    evict(stage, table)?;
    let all: Vec<usize> = (1..=count).collect();
    let step = "copy out at all, nothing cached";
    let (took, sources) = copy_out_at_once(stage, &all, step, &ANYWHERE)?;
    let sources = format!("{sources}; {}", bucket_gives_one_copy(stage)?);
    table.add(step, took, Some(stage.payload.length * all.len() as u64), &sources);
    writer_dies(stage, table)
}

fn numbers(peers: &[usize]) -> String {
    let texts: Vec<String> = peers.iter().map(usize::to_string).collect();
    texts.join(" and ")
}

/// Kills the peer that wrote, reads at another one that has dropped the object, and starts the first one again.
fn writer_dies(stage: &mut Stage<Cluster>, table: &mut Table) -> Result<()> {
    announce("kill -9 peer 1, and drop the object at peer 2");
    let index = WRITER % stage.peers.nodes().len();
    stage.peers[index].kill9()?;
    let evicted = node(&stage.peers, READER).native()?.evict(&target(&stage.bucket.name, stage.key()), Scope::Node)?;
    ensure!(evicted.failures.is_empty(), "not dropped: {:?}", evicted.failures);
    stage.peers.backend.forget();
    let reader = node(&stage.peers, READER).peer();
    copy_out(stage, reader, table, "copy out at peer 2, peer 1 dead", &["local", "peer", "seed"])?;
    let given = stage.peers.backend.traffic().sent;
    ensure!(given <= OVERHEAD_BYTES, "the bucket was asked for {given} bytes though peers have them");
    announce("start peer 1 again");
    let started = Instant::now();
    stage.peers[index].restart_in_place()?;
    stage.peers.until_complete()?;
    table.add("start peer 1 again", started.elapsed(), None, "");
    copy_out(stage, node(&stage.peers, WRITER).peer(), table, "copy out at peer 1", &["local", "peer", "seed"])
}

/// Removes the object and makes sure that it is gone, everywhere.
pub fn remove(stage: &Stage<Cluster>, table: &mut Table) -> Result<()> {
    remove_at(stage, &all_peers(stage), table)
}

/// Every peer, the first reader first.
fn all_peers(stage: &Stage<Cluster>) -> Vec<&Peer> {
    let count = stage.peers.nodes().len();
    (0..count).map(|step| node(&stage.peers, READER + step).peer()).collect()
}

/// Prints commands to try by hand, and waits for ^C.
pub fn keep(stage: &Stage<Cluster>) -> Result<()> {
    let program = dfstore_tests::binaries::binary("dfstore")?;
    let (program, object, count) = (program.display(), stage.object(), stage.peers.nodes().len());
    println!("\nThe cluster is running, with the file in it. To try by hand in another terminal:\n");
    for number in 1..=count {
        let peer = node(&stage.peers, number).peer();
        println!(
            "  P{number}={}    # {}, metrics at {}",
            peer.endpoint(),
            name(&stage.peers, number),
            peer.metrics_address()
        );
    }
    println!("  {program} -e $P1 cluster status");
    println!("  {program} -e $P2 stat {object}");
    println!("  {program} -e $P2 cp -v {object} /tmp/copy");
    println!("  {program} -e $P1 cp README.md dfs://{}/README.md", stage.bucket.name);
    println!("  curl -s -D- $P2/buckets/{}/objects/README.md | head", stage.bucket.name);
    println!("  curl -s {}/metrics | grep {SERVED}", node(&stage.peers, READER).peer().metrics_address());
    until_interrupted(stage)
}

/// Copies out at several peers at the same time, and compares every copy; says how long it took, and where from.
fn copy_out_at_once(
    stage: &Stage<Cluster>,
    peers: &[usize],
    step: &str,
    expected: &[&str],
) -> Result<(Duration, String)> {
    announce(&format!("dfstore cp {} copy, at {} at once", stage.object(), numbers(peers)));
    let scrape = |number: &usize| node(&stage.peers, *number).metrics();
    let before = peers.iter().map(scrape).collect::<Result<Vec<_>>>()?;
    let started = Instant::now();
    thread::scope(|scope| {
        let copy = |number: usize| scope.spawn(move || copy_quietly(stage, number));
        let threads: Vec<_> = peers.iter().map(|number| copy(*number)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a copying thread panicked"))?)
    })?;
    let took = started.elapsed();
    let after = peers.iter().map(scrape).collect::<Result<Vec<_>>>()?;
    let mut sources = Vec::new();
    for (number, (before, after)) in peers.iter().zip(before.iter().zip(&after)) {
        compare(&stage.payload, &stage.copy(*number)).with_context(|| format!("{step}, peer {number}"))?;
        fs::remove_file(stage.copy(*number)).context("removing the copy")?;
        let served = Served::between(before, after);
        served.check(&format!("{step}, peer {number}"), stage.payload.length, expected)?;
        sources.push(format!("{number}: {}", served.sources()));
    }
    Ok((took, sources.join("; ")))
}

fn copy_quietly(stage: &Stage<Cluster>, number: usize) -> Result<()> {
    let copy = stage.copy(number);
    let peer = node(&stage.peers, number).peer();
    let copied = peer.dfstore(&["cp", "-q", &stage.object(), &copy.to_string_lossy()])?.success();
    copied.map(drop).with_context(|| format!("peer {number}"))
}

fn evict(stage: &Stage<Cluster>, table: &mut Table) -> Result<()> {
    announce("drop the object at every peer");
    let started = Instant::now();
    let object = target(&stage.bucket.name, stage.key());
    let evicted = node(&stage.peers, WRITER).native()?.evict(&object, Scope::Cluster)?;
    ensure!(evicted.failures.is_empty(), "not dropped everywhere: {:?}", evicted.failures);
    let said = format!("{} dropped at {} peers", Size(evicted.bytes), evicted.nodes);
    table.add("drop it everywhere", started.elapsed(), None, &said);
    stage.peers.backend.forget();
    Ok(())
}

fn bucket_gets_one_copy(stage: &Stage<Cluster>) -> Result<String> {
    let traffic = stage.peers.backend.traffic();
    check_one_copy("sent to", traffic.received, stage.payload.length)?;
    ensure!(traffic.sent <= OVERHEAD_BYTES, "{} bytes were read from the bucket though peers have them", traffic.sent);
    Ok(format!("one copy to the bucket ({} bytes), none back", traffic.received))
}

fn bucket_gives_one_copy(stage: &Stage<Cluster>) -> Result<String> {
    let given = stage.peers.backend.traffic().sent;
    check_one_copy("read from", given, stage.payload.length)?;
    Ok(format!("one copy from the bucket ({given} bytes)"))
}

fn check_one_copy(what: &str, bytes: u64, length: u64) -> Result<()> {
    let most = length + length * OVERHEAD_PERCENT / 100 + OVERHEAD_BYTES;
    ensure!((length..=most).contains(&bytes), "{bytes} bytes were {what} the bucket, and one copy has {length}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_copy_is_one_copy() {
        let length = 100 << 20;
        assert!(check_one_copy("read from", length + 1000, length).is_ok());
        for bytes in [length - 1, 2 * length, length + (3 << 20)] {
            assert!(check_one_copy("read from", bytes, length).is_err(), "{bytes}");
        }
    }

    #[test]
    fn peers_are_named_together() {
        assert_eq!(numbers(&[3, 4]), "3 and 4");
    }
}
