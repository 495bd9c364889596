//! Replicas: made anew when a seed is gone for long enough, and not kept beyond need when it is back.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dfstore_proto::message::NodeRole;
use dfstore_tests::cluster::{Cluster, Node, NodeOptions};
use dfstore_tests::data::{PIECE, Payload};
use dfstore_tests::eventually;
use dfstore_tests::scene::{ASYNC, EPHEMERAL, PATIENCE};

/// A seed has to be missed, then given up, then its copies made anew: each takes seconds, more on a busy machine.
const REPAIR_PATIENCE: Duration = Duration::from_secs(90);
/// The only peer; the seeds stand before it.
const PEER: usize = 3;

/// Three seeds of which two keep a copy of everything, and a peer.
fn start(repair_after: &str) -> Result<Cluster> {
    let builder = Cluster::builder().seeds(3).peers(1);
    let options = builder.all(|_, options| {
        options.max_replicas = Some(2);
        options.repair_after = repair_after.to_owned();
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

/// Writes an object, kills a seed that holds it, waits until it has two copies again, and brings that seed back.
fn replaced_and_given_up(mode: u8) -> Result<()> {
    let mut cluster = start("2s")?;
    let payload = Payload::new(u64::from(mode), 2 * PIECE + 9);
    cluster[PEER].put("replicated", mode, payload)?;
    let before = until_on(&cluster, "replicated", 2)?;
    let lost = index_of(&cluster, before.first().context("two of them")?)?;
    cluster[lost].kill9()?;
    let after = until_on(&cluster, "replicated", 2)?;
    assert!(!after.contains(cluster[lost].id()) && after != before, "{before:?}, then {after:?}");
    cluster[lost].restart_in_place()?;
    cluster.until_complete()?;
    // That the seed is back does not mean that the others have heard what it holds.
    let is_as_before = || seeds_with(&cluster, "replicated").ok().filter(|seeds| *seeds == before);
    eventually("the extra one goes, not one of those before", REPAIR_PATIENCE, is_as_before)?;
    cluster.read_at_once(&[0, 1, 2, PEER], "replicated", payload).map(drop)
}

#[test]
fn replicas_of_a_lost_seed_are_made_anew_and_extra_ones_go_when_it_is_back() -> Result<()> {
    replaced_and_given_up(ASYNC)
}

#[test]
fn so_are_those_of_ephemeral_objects_which_exist_nowhere_else() -> Result<()> {
    replaced_and_given_up(EPHEMERAL)
}

/// The seeds in the order in which they decide about an object: the first two should hold it.
fn homes(cluster: &Cluster, key: &str) -> Result<Vec<String>> {
    let homes = cluster[PEER].native()?.locations(&Node::target(key))?.homes;
    ensure!(homes.len() == 3, "only {homes:?}");
    Ok(homes)
}

/// Waits until those seeds hold an object that should, and no other.
fn until_on_its_homes(cluster: &Cluster, key: &str) -> Result<()> {
    let is_right = || {
        let homes = homes(cluster, key).ok()?;
        seeds_with(cluster, key).ok()?.iter().eq(homes[..2].iter().collect::<BTreeSet<_>>()).then_some(())
    };
    eventually(&format!("the homes of {key} hold it"), PATIENCE, is_right)
        .with_context(|| format!("it is on {:?} instead of {:?}", seeds_with(cluster, key), homes(cluster, key)))
}

/// A seed loses its disk and is filled with what it should hold, of objects about which it decides, or of the others.
fn emptied_and_filled(decides: bool) -> Result<()> {
    const EMPTIED: usize = 1;
    let mut cluster = start("2s")?;
    // So many that a new name of the seed surely makes it a home of some of them in the place that is asked for.
    let length = |number| if number % 4 == 0 { PIECE + 9 } else { 100_000 };
    let mut objects: Vec<(String, Payload)> =
        (0..24).map(|number| (format!("filled-{number}"), Payload::new(number, length(number)))).collect();
    for (key, payload) in &objects {
        cluster[PEER].put(key, ASYNC, *payload)?;
    }
    objects.iter().try_for_each(|(key, _)| until_on_its_homes(&cluster, key))?;
    until_nothing_is_owed(&cluster)?;
    cluster[EMPTIED].kill9()?;
    cluster[EMPTIED].wipe()?;
    cluster[EMPTIED].restart_in_place()?;
    cluster.until_complete()?;
    // It has another name now, and is the home of other objects than before.
    let me = cluster[EMPTIED].id();
    objects.retain(|(key, _)| homes(&cluster, key).is_ok_and(|homes| (homes[0] == me) == decides));
    let is_mine = |key: &str| homes(&cluster, key).is_ok_and(|homes| homes[..2].iter().any(|home| home == me));
    ensure!(objects.iter().any(|(key, _)| is_mine(key)), "nothing to fill it with");
    objects.iter().try_for_each(|(key, _)| until_on_its_homes(&cluster, key))?;
    objects.iter().try_for_each(|(key, payload)| cluster[EMPTIED].read(key, *payload).map(drop))?;
    Ok(())
}

/// More of them than a round tells of.
#[test]
fn a_new_seed_hears_of_every_ephemeral_object() -> Result<()> {
    const OBJECTS: usize = 900;
    const WRITERS: usize = 6;
    let mut cluster = Cluster::builder().seeds(2).start()?;
    let key = |number: usize| format!("told/{number:03}");
    std::thread::scope(|scope| {
        let write = |first: usize| {
            let node = &cluster[first % 2];
            (first..OBJECTS)
                .step_by(WRITERS)
                .try_for_each(|number| node.put(&key(number), EPHEMERAL, Payload::new(1, 9)).map(drop))
        };
        let writers: Vec<_> = (0..WRITERS).map(|first| scope.spawn(move || write(first))).collect();
        writers.into_iter().try_for_each(|writer| writer.join().expect("no panic"))
    })?;
    cluster.add(NodeRole::Seed, vec![NodeOptions::default()])?;
    cluster.until_complete()?;
    for node in cluster.nodes() {
        let all = || (node.keys("limit=1000").ok()?.len() == OBJECTS).then_some(());
        eventually(&format!("{} lists all of them", node.id()), REPAIR_PATIENCE, all)?;
    }
    Ok(())
}

#[test]
fn a_seed_that_comes_back_empty_is_filled_again() -> Result<()> {
    emptied_and_filled(false)
}

#[test]
fn a_seed_that_comes_back_empty_is_filled_with_what_it_decides_about() -> Result<()> {
    emptied_and_filled(true)
}

/// Waits until no node owes the bucket anything, as far as it knows. What is owed gets a new copy once a seed goes.
fn until_nothing_is_owed(cluster: &Cluster) -> Result<()> {
    cluster.nodes().iter().try_for_each(|node| {
        let waited = node.peer().dfstore(&["writeback", "wait", "--timeout", "30"])?;
        ensure!(waited.code == Some(0), "{}: {}", node.id(), waited.stderr);
        Ok(())
    })
}

/// The seed that should hold no copy.
fn third_seed(cluster: &Cluster, holders: &BTreeSet<String>) -> Result<usize> {
    (0..PEER).find(|index| !holders.contains(cluster[*index].id())).context("a third one")
}

fn copies_made(node: &Node) -> Result<f64> {
    Ok(node.metrics()?.sum("dfstore_replicas_made_total", &[]))
}

#[test]
fn a_seed_that_is_back_in_time_costs_nothing() -> Result<()> {
    let mut cluster = start("1h")?;
    let payload = Payload::new(7, 3 * PIECE);
    cluster[PEER].put("patient", ASYNC, payload)?;
    until_nothing_is_owed(&cluster)?;
    let before = until_on(&cluster, "patient", 2)?;
    let lost = index_of(&cluster, before.last().context("two of them")?)?;
    let third = third_seed(&cluster, &before)?;
    cluster.backend.forget();
    cluster[lost].kill9()?;
    cluster.until_complete()?;
    cluster[PEER].read("patient", payload)?;
    cluster[lost].restart_in_place()?;
    cluster.until_complete()?;
    assert_eq!(until_on(&cluster, "patient", 2)?, before);
    assert_eq!(copies_made(&cluster[third])?, 0.0, "the third seed was given a copy");
    assert_eq!(cluster.backend.traffic().sent, 0, "nothing is read again");
    Ok(())
}

#[test]
fn copies_are_made_anew_after_the_time_that_is_set_and_not_before() -> Result<()> {
    // Longer than it takes to miss a seed and to look for copies that are missing.
    const REPAIR_AFTER: Duration = Duration::from_secs(9);
    let mut cluster = start("9s")?;
    let payload = Payload::new(8, PIECE);
    cluster[PEER].put("awaited", ASYNC, payload)?;
    until_nothing_is_owed(&cluster)?;
    let before = until_on(&cluster, "awaited", 2)?;
    let lost = index_of(&cluster, before.first().context("two of them")?)?;
    let third = third_seed(&cluster, &before)?;
    let began = Instant::now();
    cluster[lost].kill9()?;
    eventually("the third seed has a copy", REPAIR_PATIENCE, || {
        copies_made(&cluster[third]).ok().filter(|made| *made > 0.0)
    })?;
    let took = began.elapsed();
    ensure!(took >= REPAIR_AFTER, "a copy was made after {took:?}");
    let after = until_on(&cluster, "awaited", 2)?;
    ensure!(after.contains(cluster[third].id()), "{before:?}, then {after:?}");
    Ok(())
}
