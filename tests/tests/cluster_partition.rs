//! Nodes that cannot reach each other, one way or both: both sides go on, and agree when they can speak again.

use anyhow::{Result, ensure};
use dfstore_tests::cluster::{BUCKET, Cluster, Islands, Node};
use dfstore_tests::data::{PIECE, Payload};
use dfstore_tests::eventually;
use dfstore_tests::faulty_backend::{Fault, Rule};
use dfstore_tests::peer_proxy::Way;
use dfstore_tests::scene::{ASYNC, PATIENCE, same};
use http::Method;

const SEED: usize = 0;
const ALONE: usize = 1;
const OTHER: usize = 2;

fn start() -> Result<Islands> {
    Islands::start(Cluster::builder().peers(2))
}

/// After healing: all nodes give the same one of these payloads, and the bucket has it.
fn all_agree(islands: &Islands, key: &str, candidates: &[Payload]) -> Result<()> {
    let cluster = &islands.cluster;
    cluster.until_complete()?;
    eventually("all give the same bytes", PATIENCE, || {
        let get = |node: &Node| Ok(node.ask("GET", key, &[])?.body);
        let read = cluster.at_once(&[SEED, ALONE, OTHER], get).ok()?;
        candidates.iter().any(|payload| read.iter().all(|body| same(body, *payload))).then_some(())
    })?;
    let served = cluster[SEED].ask("GET", key, &[])?.body;
    let stored = || cluster.faulty().ok()?.stored(BUCKET, key).filter(|stored| *stored == served).map(drop);
    eventually("the bucket agrees", PATIENCE, stored)
}

fn cut_off(ways: &[Way]) -> Result<()> {
    let islands = start()?;
    let cluster = &islands.cluster;
    let common = Payload::new(1, PIECE + 5);
    cluster.bucket.put("common", &common.bytes())?;
    for way in ways {
        islands.isolate(ALONE, *way)?;
    }
    // Both sides read what the bucket has, and take writes.
    for index in [SEED, ALONE, OTHER] {
        cluster[index].read("common", common)?;
    }
    let (here, there) = (Payload::new(2, PIECE + 2), Payload::new(3, PIECE + 3));
    cluster[ALONE].put("contested", ASYNC, here)?;
    cluster[ALONE].read("contested", here)?;
    cluster[OTHER].put("contested", ASYNC, there)?;
    let seen = cluster[OTHER].ask("GET", "contested", &[])?;
    ensure!([here, there].iter().any(|payload| same(&seen.body, *payload)), "{} bytes of nobody's", seen.body.len());
    islands.heal()?;
    all_agree(&islands, "contested", &[here, there])
}

#[test]
fn a_peer_that_hears_nobody_goes_on_and_agrees_later() -> Result<()> {
    cut_off(&[Way::ToPeer])
}

#[test]
fn a_peer_that_nobody_hears_goes_on_and_agrees_later() -> Result<()> {
    cut_off(&[Way::FromPeer])
}

#[test]
fn a_peer_that_is_cut_off_goes_on_and_agrees_later() -> Result<()> {
    cut_off(&[Way::ToPeer, Way::FromPeer])
}

/// The second one of two seeds is alone; the first one and a peer are together.
fn cut_seed_off(bucket_takes_writes: bool) -> Result<()> {
    let islands = Islands::start(Cluster::builder().seeds(2).peers(1))?;
    let cluster = &islands.cluster;
    let common = Payload::new(5, PIECE + 5);
    cluster.bucket.put("common", &common.bytes())?;
    if !bucket_takes_writes {
        let refused = [Method::PUT, Method::POST].map(|method| Rule::on(method, Fault::internal_error()));
        cluster.faulty()?.set_rules(refused);
    }
    for way in [Way::ToPeer, Way::FromPeer] {
        islands.isolate(ALONE, way)?;
    }
    for index in [SEED, ALONE, OTHER] {
        cluster[index].read("common", common)?;
    }
    // The two seeds share out who decides about which.
    let contested = (0..4).map(|number| {
        let (here, there) = (Payload::new(10 + number, PIECE + number), Payload::new(20 + number, 2 * PIECE + number));
        (format!("contested-{number}"), here, there)
    });
    let contested: Vec<_> = contested.collect();
    for (key, here, there) in &contested {
        cluster[ALONE].put(key, ASYNC, *here)?;
        cluster[ALONE].read(key, *here)?;
        cluster[OTHER].put(key, ASYNC, *there)?;
        cluster[OTHER].read(key, *there)?;
    }
    let others = [(ALONE, "of-the-seed", Payload::new(6, PIECE)), (OTHER, "of-the-peer", Payload::new(7, PIECE + 1))];
    for (index, key, payload) in others {
        cluster[index].put(key, ASYNC, payload)?;
        cluster[index].read(key, payload)?;
    }
    islands.heal()?;
    cluster.until_complete()?;
    cluster.faulty()?.set_rules([]);
    for (key, here, there) in &contested {
        all_agree(&islands, key, &[*here, *there])?;
    }
    for (_, key, payload) in others {
        all_agree(&islands, key, &[payload])?;
    }
    Ok(())
}

#[test]
fn a_seed_that_is_cut_off_goes_on_and_agrees_later() -> Result<()> {
    cut_seed_off(true)
}

#[test]
fn a_seed_that_is_cut_off_while_the_bucket_takes_no_writes_agrees_later() -> Result<()> {
    cut_seed_off(false)
}

#[test]
fn both_sides_notice_and_find_each_other_again() -> Result<()> {
    let islands = start()?;
    if !islands.cuts_gossip() {
        eprintln!("SKIPPED: gossip cannot be cut here");
        return Ok(());
    }
    let cluster = &islands.cluster;
    islands.isolate(ALONE, Way::ToPeer)?;
    islands.isolate(ALONE, Way::FromPeer)?;
    let sees = |index: usize, count: usize| {
        eventually(&format!("node {index} sees {count}"), PATIENCE, || {
            (cluster[index].sees().ok()?.len() == count).then_some(())
        })
    };
    sees(ALONE, 1)?;
    sees(SEED, 2)?;
    sees(OTHER, 2)?;
    islands.heal()?;
    cluster.until_complete()
}

#[test]
fn what_was_deleted_while_a_holder_was_away_stays_deleted() -> Result<()> {
    let islands = start()?;
    let cluster = &islands.cluster;
    let payload = Payload::new(4, PIECE);
    cluster[ALONE].put("deleted", ASYNC, payload)?;
    cluster[ALONE].until_clean("deleted")?;
    cluster[OTHER].read("deleted", payload)?;
    islands.isolate(ALONE, Way::ToPeer)?;
    islands.isolate(ALONE, Way::FromPeer)?;
    cluster[OTHER].delete("deleted")?;
    islands.heal()?;
    cluster.until_complete()?;
    for index in [SEED, ALONE, OTHER] {
        cluster[index].until_head("it is gone", "deleted", |head| head.status() == 404)?;
    }
    let gone = || cluster.faulty().ok()?.stored(BUCKET, "deleted").is_none().then_some(());
    eventually("the bucket forgets it", PATIENCE, gone)
}
