//! The steps of the demo of one peer, in order.

use std::time::Instant;

use anyhow::Result;
use dfstore_tests::peer::Peer;
use dfstore_tests::samples::Samples;

use super::moves::{announce, copy_in, copy_out, remove as remove_at, until_in_bucket, until_interrupted};
use super::proof::{SENT_TO_BACKEND, SERVED, increase};
use super::size::Size;
use super::stage::Stage;
use super::table::Table;

/// Copies in, out, out after a restart, and out after the data is gone.
pub fn run(stage: &mut Stage<Peer>, table: &mut Table) -> Result<()> {
    copy_in(stage, &stage.peers, table, "copy in")?;
    copy_out(stage, &stage.peers, table, "copy out (local hit)", &["local", "pending"])?;
    let took = until_in_bucket(stage, &[&stage.peers])?;
    let sent = increase(&Samples::default(), &stage.peers.metrics()?, SENT_TO_BACKEND, &[]);
    table.add("wait for the bucket", took, None, &format!("the peer's disk ({} sent)", Size(sent)));
    announce("restart the peer");
    let started = Instant::now();
    stage.peers.restart()?;
    table.add("restart the peer", started.elapsed(), None, "");
    copy_out(stage, &stage.peers, table, "copy out (warm restart)", &["local"])?;
    announce("wipe the peer's data and start it again");
    let started = Instant::now();
    stage.wipe_peer()?;
    table.add("wipe its data", started.elapsed(), None, "");
    copy_out(stage, &stage.peers, table, "copy out (nothing cached)", &["backend"])
}

/// Removes the object and makes sure that it is gone, from the peer and from the bucket.
pub fn remove(stage: &Stage<Peer>, table: &mut Table) -> Result<()> {
    remove_at(stage, &[&stage.peers], table)
}

/// Prints commands to try by hand, and waits for ^C.
pub fn keep(stage: &Stage<Peer>) -> Result<()> {
    let (endpoint, object) = (stage.peers.endpoint(), stage.object());
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
    until_interrupted(stage)
}
