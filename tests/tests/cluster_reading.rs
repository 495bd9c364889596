//! Promises about reading in a cluster: one backend copy for all, where bytes come from, ranges, freshness.

use anyhow::{Result, ensure};
use dfstore_proto::message::Scope;
use dfstore_tests::census::Census;
use dfstore_tests::cluster::{BUCKET, Cluster, Node};
use dfstore_tests::data::{PIECE, Payload};
use dfstore_tests::eventually;
use dfstore_tests::scene::{ASYNC, PATIENCE};
use http::Method;

const SEED: usize = 0;

/// Puts an object into the bucket behind everybody's back, and counts anew.
fn place(cluster: &Cluster, key: &str, payload: Payload) -> Result<()> {
    cluster.bucket.put(key, &payload.bytes())?;
    cluster.backend.forget();
    Ok(())
}

/// Waits until a node holds all of an object.
fn until_local(node: &Node, key: &str) -> Result<()> {
    node.until_head(&format!("{key} is local"), key, |head| head.header("x-dfs-cache") == Some("local")).map(drop)
}

#[test]
fn an_object_leaves_the_bucket_once_however_many_peers_read_it_at_once() -> Result<()> {
    let cluster = Cluster::builder().peers(4).start()?;
    let payload = Payload::new(1, 10 * PIECE + 77);
    place(&cluster, "hot", payload)?;
    cluster.read_at_once(&[0, 1, 2, 3, 4], "hot", payload)?;
    assert_eq!(cluster.backend.traffic().sent, payload.length);
    assert_eq!(cluster.faulty()?.requests_of(&Method::GET), 11, "one per piece");
    assert_eq!(cluster.faulty()?.requests_of(&Method::HEAD), 1, "the home asks for all");
    Ok(())
}

/// Bytes of pieces that a node has sent to others.
fn sent_to_others(node: &Node) -> Result<f64> {
    Ok(node.metrics()?.sum("dfstore_peer_sent_bytes_total", &[]))
}

/// An object of so many pieces that they are not simply asked of the home.
#[test]
fn readers_give_each_other_what_they_have() -> Result<()> {
    let cluster = Cluster::builder().peers(5).start()?;
    let payload = Payload::new(12, 24 * PIECE);
    place(&cluster, "swarm", payload)?;
    cluster.read_at_once(&[1, 2, 3, 4, 5], "swarm", payload)?;
    let peers: Vec<f64> = cluster.peers().map(sent_to_others).collect::<Result<_>>()?;
    let (home, passed_on) = (sent_to_others(&cluster[SEED])?, peers.iter().sum::<f64>());
    let said = format!("the home sent {home} bytes, the readers {peers:?}, of an object of {}", payload.length);
    // Five copies are made: about one by the home and four by the readers. Some room for a busy machine.
    let copy = payload.length as f64;
    ensure!(passed_on > 2.0 * copy && home < 3.0 * copy, "{said}");
    ensure!(peers.iter().filter(|sent| **sent > 0.0).count() > 1, "one parent for all: {said}");
    ensure!(cluster.backend.traffic().sent == payload.length, "more than one copy left the bucket: {said}");
    Ok(())
}

#[test]
fn every_answer_says_where_its_bytes_came_from() -> Result<()> {
    let cluster = Cluster::builder().peers(2).start()?;
    let payload = Payload::new(2, 2 * PIECE + 5);
    place(&cluster, "where", payload)?;
    assert_eq!(cluster[SEED].read("where", payload)?, "backend");
    until_local(&cluster[SEED], "where")?;
    assert_eq!(cluster[SEED].read("where", payload)?, "local");
    assert_eq!(cluster[1].read("where", payload)?, "seed", "only the seed has it");
    until_local(&cluster[1], "where")?;
    assert_eq!(cluster[1].read("where", payload)?, "local");
    let found = cluster[2].read("where", payload)?;
    assert!(["peer", "seed"].contains(&found.as_str()), "{found}");
    assert_eq!(cluster.backend.traffic().sent, payload.length);
    Ok(())
}

#[test]
fn bytes_come_from_a_peer_when_the_seed_has_them_no_more() -> Result<()> {
    let cluster = Cluster::builder().peers(2).start()?;
    let payload = Payload::new(3, 2 * PIECE);
    place(&cluster, "moved", payload)?;
    cluster[1].read("moved", payload)?;
    until_local(&cluster[1], "moved")?;
    cluster[SEED].evict("moved")?;
    cluster.backend.forget();
    assert_eq!(cluster[2].read("moved", payload)?, "peer");
    assert_eq!(cluster.backend.traffic().sent, 0);
    Ok(())
}

#[test]
fn a_range_fetches_only_its_pieces() -> Result<()> {
    let cluster = Cluster::builder().peers(2).start()?;
    let payload = Payload::new(4, 10 * PIECE);
    place(&cluster, "ranged", payload)?;
    cluster[1].read_range("ranged", payload, 2 * PIECE - 10..2 * PIECE + 10)?;
    assert_eq!(cluster.backend.traffic().sent, 2 * PIECE, "pieces 1 and 2");
    let seen = cluster.faulty()?.seen();
    let mut ranges: Vec<_> = seen.into_iter().filter_map(|seen| seen.range).collect();
    ranges.sort();
    assert_eq!(ranges, ["bytes=2097152-4194303", "bytes=4194304-6291455"]);
    cluster[2].read_range("ranged", payload, PIECE..PIECE + 1)?;
    assert_eq!(cluster.backend.traffic().sent, 2 * PIECE, "the cluster has piece 1");
    eventually("one piece is kept here", PATIENCE, || {
        let held = cluster[2].native().ok()?.locations(&Node::target("ranged")).ok()?;
        let here = held.holders.iter().find(|holder| holder.node == cluster[2].id())?;
        (here.pieces == 1).then_some(())
    })
}

#[test]
fn prefetch_and_evict_work_on_all_nodes() -> Result<()> {
    let cluster = Cluster::builder().peers(3).start()?;
    let (target, payload) = (Node::target("ahead"), Payload::new(5, 3 * PIECE));
    place(&cluster, "ahead", payload)?;
    let worked = cluster[1].native()?.prefetch(&target, Scope::Cluster)?;
    assert_eq!((worked.nodes, worked.failures.len()), (4, 0), "{worked:?}");
    assert_eq!(cluster.backend.traffic().sent, payload.length);
    assert_eq!(cluster.read_at_once(&[0, 1, 2, 3], "ahead", payload)?, ["local"; 4]);
    let worked = cluster[2].native()?.evict(&target, Scope::Cluster)?;
    assert_eq!((worked.nodes, worked.bytes), (4, 4 * payload.length), "{worked:?}");
    assert!(cluster[3].whole_holders("ahead")?.is_empty());
    cluster.read_at_once(&[0, 1, 2, 3], "ahead", payload)?;
    assert_eq!(cluster.backend.traffic().sent, 2 * payload.length, "once more, for all");
    Ok(())
}

#[test]
fn all_below_a_prefix_is_prefetched_and_evicted_on_all_nodes() -> Result<()> {
    let cluster = Cluster::builder().peers(2).start()?;
    let objects = ["ahead/a", "ahead/b/c", "ahead-not"].map(|key| (key, Payload::new(6, PIECE + 5)));
    objects.iter().try_for_each(|(key, payload)| place(&cluster, key, *payload))?;
    let command = |verb: &str| {
        let target = format!("dfs://{BUCKET}/ahead/");
        cluster[1].peer().dfstore(&[verb, "--recursive", &target])?.success()
    };
    command("prefetch")?;
    let (sent, once) = (cluster.backend.traffic().sent, 2 * objects[0].1.length);
    assert!((once..once + 4096).contains(&sent), "{sent} bytes left the bucket, with the listing");
    for (key, payload) in &objects[..2] {
        assert_eq!(cluster.read_at_once(&[0, 1, 2], key, *payload)?, ["local"; 3], "{key}");
    }
    cluster[1].read(objects[2].0, objects[2].1)?;
    command("evict")?;
    let holders = |key| cluster[2].whole_holders(key);
    assert!(holders("ahead/a")?.is_empty() && holders("ahead/b/c")?.is_empty() && !holders("ahead-not")?.is_empty());
    Ok(())
}

/// A download that is over held the blocks of what was evicted for a minute, and the quota was full of nothing.
#[test]
fn regression_what_is_evicted_right_after_a_download_is_free() -> Result<()> {
    let builder = Cluster::builder().peers(1);
    let cluster = builder.all(|_, options| options.capacity = "128MiB".to_owned()).start()?;
    let payload = Payload::new(11, 10 * PIECE);
    place(&cluster, "again", payload)?;
    let target = Node::target("again");
    for round in 0..6 {
        let worked = cluster[1].native()?.prefetch(&target, Scope::Node)?;
        assert_eq!(worked.bytes, payload.length, "round {round}: {worked:?}");
        let worked = cluster[1].native()?.evict(&target, Scope::Node)?;
        assert_eq!(worked.bytes, payload.length, "round {round}: {worked:?}");
    }
    Ok(())
}

#[test]
fn one_check_at_the_backend_serves_all_peers() -> Result<()> {
    let builder = Cluster::builder().peers(3);
    let cluster = builder.all(|_, options| options.freshness = "{ ttl: 1h }".to_owned()).start()?;
    let payload = Payload::new(6, 1000);
    place(&cluster, "fresh", payload)?;
    for index in [1, 2, 3, 0, 1, 2] {
        cluster[index].read("fresh", payload)?;
    }
    assert_eq!(cluster.faulty()?.requests_of(&Method::HEAD), 1);
    let newer = Payload::new(7, 2000);
    cluster.bucket.put("fresh", &newer.bytes())?;
    let checked = cluster[1].ask("GET", "fresh", &[("Cache-Control", "no-cache")])?;
    assert_eq!(newer.first_difference(0, &checked.body), None);
    assert_eq!(checked.body.len(), 2000);
    for index in [0, 1, 2, 3] {
        cluster[index].read("fresh", newer)?;
    }
    Ok(())
}

#[test]
fn everything_clean_is_served_while_the_backend_is_down() -> Result<()> {
    let builder = Cluster::builder().peers(2);
    let cluster = builder.all(|_, options| options.freshness = "always".to_owned()).start()?;
    let payload = Payload::new(8, PIECE + 1);
    place(&cluster, "kept", payload)?;
    cluster[1].read("kept", payload)?;
    cluster.faulty()?.set_down(true);
    for index in [0, 1, 2] {
        assert_eq!(cluster[index].read("kept", payload)?, "stale", "node {index}");
    }
    assert_eq!(cluster[2].ask("GET", "never-seen", &[])?.status(), 504);
    Ok(())
}

#[test]
fn a_missing_object_is_missing_everywhere_until_it_is_written() -> Result<()> {
    let cluster = Cluster::builder().peers(2).start()?;
    for index in [0, 1, 2] {
        assert_eq!(cluster[index].ask("GET", "later", &[])?.status(), 404);
    }
    let payload = Payload::new(9, 10);
    cluster[1].put("later", ASYNC, payload)?;
    for index in [0, 1, 2] {
        cluster[index].read("later", payload)?;
    }
    Ok(())
}

#[test]
fn nodes_end_with_nothing_in_flight() -> Result<()> {
    let cluster = Cluster::builder().peers(2).start()?;
    let taken: Vec<Census> = cluster.nodes().iter().map(|node| Census::take(node.peer())).collect::<Result<_>>()?;
    let payload = Payload::new(10, 5 * PIECE);
    place(&cluster, "counted", payload)?;
    cluster.read_at_once(&[0, 1, 2], "counted", payload)?;
    let own = cluster.own_addresses()?;
    for (node, census) in cluster.nodes().iter().zip(&taken) {
        census.check(node.peer(), &own).map_err(|error| node.explain(error))?;
    }
    Ok(())
}

#[test]
fn a_full_cache_keeps_what_peers_are_reading() -> Result<()> {
    // Less than three objects fit, so every one that is read has others evicted; on one shard, so that it is one queue.
    let builder = Cluster::builder().peers(3).all(|_, options| {
        options.capacity = "128MiB".to_owned();
        options.shards = "1".to_owned();
    });
    let cluster = builder.start()?;
    let payloads = (10..16).map(|number| Payload::new(number, 10 * PIECE));
    for (number, payload) in payloads.enumerate() {
        let key = format!("turn-{number}");
        place(&cluster, &key, payload)?;
        cluster.read_at_once(&[1, 2, 3], &key, payload)?;
        assert_eq!(cluster.backend.traffic().sent, payload.length, "{key} left the bucket once");
    }
    Ok(())
}
