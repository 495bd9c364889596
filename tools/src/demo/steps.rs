//! The steps of the demo, in order, each with its clock and its proof.
//!
//! The proof of where bytes came from is the difference of the peer's counters around the step, never an assumption.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dfstore_tests::cli::dfstore_on_terminal;
use dfstore_tests::eventually;
use dfstore_tests::samples::Samples;

use super::compare::compare;
use super::size::Size;
use super::stage::Stage;
use super::table::Table;

/// Values of the header `X-Dfs-Cache`, which are the labels of the peer's byte counter.
const SOURCES: [&str; 6] = ["local", "pending", "stale", "peer", "seed", "backend"];
const SERVED: &str = "dfstore_served_bytes_total";
const RECEIVED: &str = "dfstore_received_bytes_total";
const SENT_TO_BACKEND: &str = "dfstore_backend_sent_bytes_total";
const DIRTY: &str = "dfstore_dirty_bytes";
const WRITE_BACK_TIMEOUT: Duration = Duration::from_secs(3600);

/// Copies in, out, out after a restart, and out after the data is gone.
pub fn run(stage: &mut Stage, table: &mut Table) -> Result<()> {
    copy_in(stage, table)?;
    copy_out(stage, table, "copy out (local hit)", &["local", "pending"])?;
    wait_for_write_back(stage, table)?;
    announce("restart the peer");
    let started = Instant::now();
    stage.peer.restart()?;
    table.add("restart the peer", started.elapsed(), None, "");
    copy_out(stage, table, "copy out (warm restart)", &["local"])?;
    announce("wipe the peer's data and start it again");
    let started = Instant::now();
    stage.wipe_peer()?;
    table.add("wipe its data", started.elapsed(), None, "");
    copy_out(stage, table, "copy out (nothing cached)", &["backend"])
}

/// Removes the object and makes sure that it is gone, from the peer and from the bucket.
pub fn remove(stage: &mut Stage, table: &mut Table) -> Result<()> {
    announce(&format!("dfstore rm {}", stage.object()));
    let started = Instant::now();
    dfstore_on_terminal(&["--endpoint", &stage.peer.endpoint(), "rm", &stage.object()])?;
    table.add("remove", started.elapsed(), None, "");
    let answer = stage.peer.get(&stage.bucket.name, stage.key())?;
    ensure!(answer.status() == 404, "the peer still answers {} after rm", answer.status());
    let listed = stage.peer.dfstore(&["ls", &format!("dfs://{}", stage.bucket.name)])?.success()?;
    ensure!(!listed.text().contains(stage.key()), "ls still shows the object after rm");
    eventually("the object is gone from the bucket", Duration::from_secs(60), || {
        matches!(stage.bucket.head(stage.key()), Ok(None)).then_some(())
    })
}

/// Prints commands to try by hand, and waits for ^C.
pub fn keep(stage: &Stage) -> Result<()> {
    let (endpoint, object) = (stage.peer.endpoint(), stage.object());
    let program = dfstore_tests::binaries::binary("dfstore")?;
    let program = program.display();
    println!("\nThe peer is running, with the file in it. To try by hand in another terminal:\n");
    println!("  export DFSTORE_ENDPOINT={endpoint}");
    println!("  {program} ls dfs://{}/", stage.bucket.name);
    println!("  {program} stat {object}");
    println!("  {program} cp {object} /tmp/copy");
    println!("  {program} cp README.md dfs://{}/README.md", stage.bucket.name);
    println!("  curl -sv -o /dev/null -r 0-99 {endpoint}/buckets/{}/objects/{}", stage.bucket.name, stage.key());
    println!("  curl -s {endpoint}/metrics | grep {SERVED}");
    println!("\nIts data and log, and the bucket: {}", stage.original().with_file_name("").display());
    println!("^C stops it and removes everything.");
    let forever = Duration::from_secs(u64::from(u32::MAX));
    eventually("an interruption", forever, || None::<()>).or(Ok(()))
}

fn announce(what: &str) {
    eprintln!("{what}");
}

fn copy_in(stage: &mut Stage, table: &mut Table) -> Result<()> {
    let (original, object) = (stage.original(), stage.object());
    announce(&format!("dfstore cp original {object}"));
    let before = stage.peer.metrics()?;
    let started = Instant::now();
    dfstore_on_terminal(&["--endpoint", &stage.peer.endpoint(), "cp", &original.to_string_lossy(), &object])?;
    let took = started.elapsed();
    let received = increase(&before, &stage.peer.metrics()?, RECEIVED, &[]);
    ensure!(received >= stage.payload.length, "the peer counts only {received} bytes received");
    table.add("copy in", took, Some(stage.payload.length), "the file (acknowledged when durable on the peer)");
    Ok(())
}

fn copy_out(stage: &mut Stage, table: &mut Table, step: &str, expected: &[&str]) -> Result<()> {
    let (copy, object) = (stage.copy(), stage.object());
    announce(&format!("dfstore cp {object} copy"));
    let before = stage.peer.metrics()?;
    let started = Instant::now();
    dfstore_on_terminal(&["--endpoint", &stage.peer.endpoint(), "cp", &object, &copy.to_string_lossy()])?;
    let took = started.elapsed();
    let after = stage.peer.metrics()?;
    compare(&stage.payload, &copy).with_context(|| step.to_owned())?;
    fs::remove_file(&copy).context("removing the copy")?;
    let served = SOURCES.map(|source| (source, increase(&before, &after, SERVED, &[("source", source)])));
    table.add(step, took, Some(stage.payload.length), &describe(&served));
    let wrong = served.iter().find(|(source, bytes)| *bytes > 0 && !expected.contains(source));
    if let Some((source, bytes)) = wrong {
        bail!("{step}: {bytes} bytes came from {source}, and all should have come from {expected:?}");
    }
    let total: u64 = served.iter().map(|(_, bytes)| bytes).sum();
    ensure!(total >= stage.payload.length, "{step}: the peer counts only {total} bytes served");
    Ok(())
}

fn wait_for_write_back(stage: &mut Stage, table: &mut Table) -> Result<()> {
    announce("wait until the bucket has it");
    let started = Instant::now();
    // The gauge is set now and then, so it alone might still tell of the time before the upload.
    let stored =
        eventually("the bucket has the object", WRITE_BACK_TIMEOUT, || match stage.bucket.head(stage.key()) {
            Ok(stored) => stored.map(Ok),
            Err(error) => Some(Err(error)),
        })??;
    stage.peer.metrics_until("nothing is dirty", WRITE_BACK_TIMEOUT, |samples| {
        samples.has(DIRTY) && samples.sum(DIRTY, &[]) == 0.0
    })?;
    let took = started.elapsed();
    ensure!(stored.length == stage.payload.length, "the bucket has {} bytes of it", stored.length);
    let sent = increase(&Samples::default(), &stage.peer.metrics()?, SENT_TO_BACKEND, &[]);
    table.add("wait for the bucket", took, None, &format!("the peer's disk ({} sent)", Size(sent)));
    Ok(())
}

fn increase(before: &Samples, after: &Samples, name: &str, labels: &[(&str, &str)]) -> u64 {
    let difference = after.sum(name, labels) - before.sum(name, labels);
    // Counters of bytes are whole and far below 2^53.
    format!("{:.0}", difference.max(0.0)).parse().unwrap_or_default()
}

fn describe(served: &[(&str, u64)]) -> String {
    let parts: Vec<&(&str, u64)> = served.iter().filter(|(_, bytes)| *bytes > 0).collect();
    match parts.as_slice() {
        [] => "nowhere, says the peer".to_owned(),
        [(source, _)] => explain(source),
        several => {
            let named: Vec<String> = several.iter().map(|(source, bytes)| format!("{source} {bytes}")).collect();
            named.join(", ")
        }
    }
}

fn explain(source: &str) -> String {
    match source {
        "local" => "local: the peer's disk".to_owned(),
        "pending" => "local: the peer's disk (pending: not in the bucket yet)".to_owned(),
        "backend" => "backend: the bucket".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_where_bytes_came_from() {
        assert_eq!(describe(&[("local", 5), ("backend", 0)]), "local: the peer's disk");
        assert_eq!(describe(&[("local", 5), ("backend", 3)]), "local 5, backend 3");
        assert!(describe(&[]).starts_with("nowhere"));
    }

    #[test]
    fn counts_what_a_step_added() {
        let scrape = |count: u32| Samples::parse(&format!("{SERVED}{{source=\"local\"}} {count}\n")).expect("parses");
        assert_eq!(increase(&scrape(10), &scrape(25), SERVED, &[("source", "local")]), 15);
    }
}
