//! What demos of one peer and of several do alike: copying in and out, waiting for the bucket, removing.
//!
//! Each has its clock and its proof, by the counters of the peer that is asked.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dfstore_tests::cli::dfstore_on_terminal;
use dfstore_tests::eventually;
use dfstore_tests::peer::Peer;

use super::compare::compare;
use super::proof::{RECEIVED, Served, WRITE_BACK_TIMEOUT, increase};
use super::stage::Stage;
use super::table::Table;

/// How long the bucket gets to forget an object.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) fn announce(what: &str) {
    eprintln!("{what}");
}

/// Copies the original to this peer.
pub(super) fn copy_in<P>(stage: &Stage<P>, peer: &Peer, table: &mut Table, step: &str) -> Result<()> {
    let (original, object) = (stage.original(), stage.object());
    announce(&format!("dfstore cp original {object}"));
    let before = peer.metrics()?;
    let started = Instant::now();
    dfstore_on_terminal(&["--endpoint", &peer.endpoint(), "cp", &original.to_string_lossy(), &object])?;
    let took = started.elapsed();
    let received = increase(&before, &peer.metrics()?, RECEIVED, &[]);
    ensure!(received >= stage.payload.length, "the peer counts only {received} bytes received");
    table.add(step, took, Some(stage.payload.length), "the file (acknowledged when durable on the peer)");
    Ok(())
}

/// Copies the object from this peer, and compares; the bytes must come from these sources alone.
pub(super) fn copy_out<P>(
    stage: &Stage<P>,
    peer: &Peer,
    table: &mut Table,
    step: &str,
    expected: &[&str],
) -> Result<()> {
    let (copy, object) = (stage.copy(1), stage.object());
    announce(&format!("dfstore cp {object} copy"));
    let before = peer.metrics()?;
    let started = Instant::now();
    dfstore_on_terminal(&["--endpoint", &peer.endpoint(), "cp", &object, &copy.to_string_lossy()])?;
    let took = started.elapsed();
    let served = Served::between(&before, &peer.metrics()?);
    compare(&stage.payload, &copy).with_context(|| step.to_owned())?;
    fs::remove_file(&copy).context("removing the copy")?;
    table.add(step, took, Some(stage.payload.length), &served.describe());
    served.check(step, stage.payload.length, expected)
}

/// Waits until the bucket has the object, and none of these peers believes that it owes something.
pub(super) fn until_in_bucket<P>(stage: &Stage<P>, peers: &[&Peer]) -> Result<Duration> {
    announce("wait until the bucket has it");
    let started = Instant::now();
    let stored =
        eventually("the bucket has the object", WRITE_BACK_TIMEOUT, || match stage.bucket.head(stage.key()) {
            Ok(stored) => stored.map(Ok),
            Err(error) => Some(Err(error)),
        })??;
    for peer in peers {
        // Not the gauge of dirty bytes: it is set once a second, and may tell of the time before the upload.
        peer.dfstore(&["writeback", "wait", "--quiet", "--timeout", &WRITE_BACK_TIMEOUT.as_secs().to_string()])?
            .success()
            .with_context(|| format!("{} still owes the bucket something", peer.endpoint()))?;
    }
    ensure!(stored.length == stage.payload.length, "the bucket has {} bytes of it", stored.length);
    Ok(started.elapsed())
}

/// Removes the object at the first of these peers and makes sure that it is gone, from all of them and from the bucket.
pub(super) fn remove<P>(stage: &Stage<P>, peers: &[&Peer], table: &mut Table) -> Result<()> {
    announce(&format!("dfstore rm {}", stage.object()));
    let started = Instant::now();
    let first = peers.first().context("somebody to ask")?;
    dfstore_on_terminal(&["--endpoint", &first.endpoint(), "rm", &stage.object()])?;
    table.add("remove", started.elapsed(), None, "");
    for peer in peers {
        let answer = peer.get(&stage.bucket.name, stage.key())?;
        ensure!(answer.status() == 404, "{} still answers {} after rm", peer.endpoint(), answer.status());
        let listed = peer.dfstore(&["ls", &format!("dfs://{}", stage.bucket.name)])?.success()?;
        ensure!(!listed.text().contains(stage.key()), "ls still shows the object after rm");
    }
    eventually("the object is gone from the bucket", REMOVAL_TIMEOUT, || {
        matches!(stage.bucket.head(stage.key()), Ok(None)).then_some(())
    })
}

/// Says where everything is, and waits for ^C.
pub(super) fn until_interrupted<P>(stage: &Stage<P>) -> Result<()> {
    println!("\nAll data and logs, and the bucket: {}", stage.original().with_file_name("").display());
    println!("^C stops it and removes everything.");
    let forever = Duration::from_secs(u64::from(u32::MAX));
    eventually("an interruption", forever, || None::<()>).or(Ok(()))
}
