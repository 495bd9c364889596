//! Replicas: made anew when a seed is gone for long enough, and not kept beyond need when it is back.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use dfstore_proto::message::NodeRole;
use dfstore_tests::cluster::{Cluster, Node};
use dfstore_tests::data::Payload;
use dfstore_tests::eventually;
use dfstore_tests::scene::{ASYNC, EPHEMERAL, PATIENCE};

const PIECE: u64 = 4 << 20;
/// A seed has to be missed, then given up, then its copies made anew: each takes seconds, more on a busy machine.
const REPAIR_PATIENCE: Duration = Duration::from_secs(90);
/// The only peer; the seeds stand before it.
const PEER: usize = 3;

/// Three seeds of which two keep a copy of everything, and a peer.
fn start() -> Result<Cluster> {
    let builder = Cluster::builder().seeds(3).peers(1);
    let options = builder.all(|_, options| {
        options.max_replicas = Some(2);
        options.repair_after = "2s".to_owned();
    });
    options.start()
}

/// Seeds that hold all of an object, and are running.
fn seeds_with(cluster: &Cluster, key: &str) -> Result<BTreeSet<String>> {
    let holders = cluster[PEER].whole_holders(key)?;
    let seeds = cluster.nodes().iter().filter(|node| node.role() == NodeRole::Seed && node.is_running());
    Ok(seeds.map(Node::id).filter(|id| holders.contains(*id)).map(str::to_owned).collect())
}

fn until_on(cluster: &Cluster, key: &str, count: usize) -> Result<BTreeSet<String>> {
    let mut last = Ok(BTreeSet::new());
    let found = eventually(&format!("{key} is on {count} seeds"), REPAIR_PATIENCE, || {
        last = seeds_with(cluster, key);
        last.as_ref().ok().filter(|seeds| seeds.len() == count).cloned()
    });
    found.with_context(|| {
        let logs = cluster.nodes().iter().map(|node| format!("{} ({:?}):\n{}\n", node.id(), node.role(), node.log()));
        format!("at last it was on {last:?}\n{}", logs.collect::<String>())
    })
}

fn index_of(cluster: &Cluster, id: &str) -> Result<usize> {
    cluster.nodes().iter().position(|node| node.id() == id).context("a node of this name")
}

fn replaced_and_given_up(mode: u8, wipe: bool) -> Result<()> {
    let mut cluster = start()?;
    let payload = Payload::new(u64::from(mode), 2 * PIECE + 9);
    cluster[PEER].put("replicated", mode, payload)?;
    let before = until_on(&cluster, "replicated", 2)?;
    let lost = index_of(&cluster, before.first().context("two of them")?)?;
    cluster[lost].kill9()?;
    let after = until_on(&cluster, "replicated", 2)?;
    assert!(!after.contains(cluster[lost].id()) && after != before, "{before:?}, then {after:?}");
    if wipe {
        cluster[lost].wipe()?;
    }
    cluster[lost].restart_in_place()?;
    cluster.until_complete()?;
    until_on(&cluster, "replicated", 2)?;
    cluster.read_at_once(&[0, 1, 2, PEER], "replicated", payload).map(drop)
}

#[test]
fn replicas_of_a_lost_seed_are_made_anew_and_extra_ones_go_when_it_is_back() -> Result<()> {
    replaced_and_given_up(ASYNC, false)
}

#[test]
fn so_are_those_of_ephemeral_objects_which_exist_nowhere_else() -> Result<()> {
    replaced_and_given_up(EPHEMERAL, false)
}

#[test]
fn a_seed_that_comes_back_empty_is_filled_again() -> Result<()> {
    replaced_and_given_up(ASYNC, true)
}

#[test]
fn a_seed_that_is_back_in_time_costs_nothing() -> Result<()> {
    let builder = Cluster::builder().seeds(2).peers(1);
    let mut cluster = builder.all(|_, options| options.repair_after = "1h".to_owned()).start()?;
    let payload = Payload::new(7, 3 * PIECE);
    cluster[2].put("patient", ASYNC, payload)?;
    cluster[2].until_clean("patient")?;
    let both = |cluster: &Cluster| {
        eventually("both seeds have it", PATIENCE, || {
            let holders = cluster[2].whole_holders("patient").ok()?;
            [0, 1].iter().all(|index: &usize| holders.contains(cluster[*index].id())).then_some(())
        })
    };
    both(&cluster)?;
    cluster.backend.forget();
    cluster[1].kill9()?;
    cluster[2].read("patient", payload)?;
    cluster[1].restart_in_place()?;
    cluster.until_complete()?;
    both(&cluster)?;
    assert_eq!(cluster.backend.traffic().sent, 0, "nothing is read again");
    Ok(())
}
