//! Who gets in, how peers learn of the backend, and the kit itself: nodes find each other and keep their names.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use dfstore_proto::message::{Hello, NodeRole, Role, Route, Token};
use dfstore_proto::preface::Versions;
use dfstore_tests::cluster::{BackendKind, Cluster, Node, NodeOptions, Ports, Wiring};
use dfstore_tests::data::Payload;
use dfstore_tests::eventually;
use dfstore_tests::faulty_backend::FaultyBackend;
use dfstore_tests::scene::{ASYNC, PATIENCE};
use dfstore_tests::wire::{Wire, hello};

const SEED: usize = 0;
const PEER: usize = 1;

fn hello_of_a_peer(cluster: &Cluster) -> Hello {
    Hello { role: Role::Peer, token: Token::new(cluster.wiring().credential()), ..hello(Route::Any, 4) }
}

#[test]
fn nodes_keep_their_names_and_find_each_other_again() -> Result<()> {
    let mut cluster = Cluster::builder().seeds(2).peers(2).start()?;
    let names: Vec<String> = cluster.nodes().iter().map(|node| node.id().to_owned()).collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 4);
    cluster[3].terminate()?;
    cluster.until_complete()?;
    cluster[3].restart(Ports::default())?;
    cluster[2].kill9()?;
    cluster[2].restart_in_place()?;
    cluster[SEED].restart_in_place()?;
    cluster.until_complete()?;
    let after: Vec<String> = cluster.nodes().iter().map(|node| node.id().to_owned()).collect();
    assert_eq!(names, after, "a name lies in the data folder");
    cluster[3].kill9()?;
    cluster[3].wipe()?;
    cluster[3].restart_in_place()?;
    cluster.until_complete()?;
    assert_ne!(cluster[3].id(), names[3], "an empty node is a new one");
    Ok(())
}

#[test]
fn a_cluster_in_front_of_seaweedfs_reads_once() -> Result<()> {
    let cluster = Cluster::builder().backend(BackendKind::Seaweed).start()?;
    let payload = Payload::new(1, 9 << 20);
    cluster.bucket.put("weed", &payload.bytes())?;
    cluster.backend.forget();
    cluster.read_at_once(&[0, 1, 2], "weed", payload)?;
    let sent = cluster.backend.traffic().sent;
    assert!((payload.length..payload.length + (1 << 20)).contains(&sent), "{sent} bytes left the bucket");
    Ok(())
}

#[test]
fn an_earlier_version_of_the_protocol_is_refused_with_a_reason() -> Result<()> {
    let cluster = Cluster::builder().start()?;
    let ours = hello_of_a_peer(&cluster);
    Wire::open_as(cluster[PEER].peer_address(), ours.clone())?;
    let versions = Versions { min: 1, max: 1 };
    let refused = Wire::open_as(cluster[PEER].peer_address(), Hello { versions, ..ours });
    let refused = format!("{:#}", refused.err().context("version 1 has no messages for peers")?);
    assert!(refused.contains("refused") && refused.contains("version"), "{refused}");
    Ok(())
}

#[test]
fn a_wrong_token_is_refused_on_every_port_of_the_cluster() -> Result<()> {
    let cluster = Cluster::builder().start()?;
    let manager = cluster.manager(SEED)?;
    for (name, address) in [("peer", cluster[PEER].peer_address()), ("manager", manager)] {
        for token in ["", "wrong", "canary-cluster-token-77d1"] {
            let hello = Hello { token: Token::new(token), ..hello_of_a_peer(&cluster) };
            let refused = Wire::open_as(address, hello).err().with_context(|| format!("{name} lets {token:?} in"))?;
            let refused = format!("{refused:#}");
            assert!(refused.contains("token") && !refused.contains(&cluster.wiring().token), "{name}: {refused}");
        }
    }
    let client = Hello { role: Role::Client, ..hello_of_a_peer(&cluster) };
    assert!(Wire::open_as(cluster[PEER].peer_address(), client).is_err(), "the port is for peers alone");
    Ok(())
}

/// A node with this wiring stays alone, says why, and nobody sees it.
fn stays_outside(cluster: &Cluster, wiring: Wiring, word: &str) -> Result<()> {
    let outsider = Node::start(NodeRole::Peer, NodeOptions::default(), wiring, None)?;
    eventually(&format!("it says something about its {word}"), PATIENCE, || {
        outsider.log().contains(word).then_some(())
    })
    .map_err(|error| outsider.explain(error))?;
    cluster.until_complete()?;
    assert_eq!(outsider.sees()?.len(), 1, "it sees {:?}", outsider.sees()?);
    let token = &cluster.wiring().token;
    assert!(cluster.nodes().iter().all(|node| !node.log().contains(token)), "a token in a log");
    Ok(())
}

#[test]
fn nodes_with_a_wrong_token_or_cluster_name_stay_outside() -> Result<()> {
    let cluster = Cluster::builder().start()?;
    stays_outside(
        &cluster,
        Wiring { token: "another-cluster-token-0000".to_owned(), ..cluster.wiring().clone() },
        "token",
    )?;
    stays_outside(&cluster, Wiring { name: "another".to_owned(), ..cluster.wiring().clone() }, "cluster")
}

#[test]
fn another_backend_is_applied_without_a_restart_of_peers() -> Result<()> {
    let mut cluster = Cluster::builder().all(|_, options| options.refresh_interval = "1s".to_owned()).start()?;
    let other = FaultyBackend::start()?;
    let payload = Payload::new(2, 1000);
    other.bucket(&cluster.bucket.name)?.put("only-there", &payload.bytes())?;
    cluster[SEED].set_backend(&other.endpoint());
    cluster[SEED].restart_in_place()?;
    cluster.until_complete()?;
    let url = other.endpoint().url;
    for index in [1, 2] {
        let applied = || cluster[index].log().contains(&url).then_some(());
        eventually("a peer logs its new backend", PATIENCE, applied).map_err(|error| cluster[index].explain(error))?;
    }
    // Without a seed a peer asks the backend itself: by what it was told.
    cluster[SEED].kill9()?;
    cluster.until_complete()?;
    for index in [1, 2] {
        cluster[index].read("only-there", payload)?;
        let log = cluster[index].log();
        let secrets = [other.endpoint().secret_key, other.endpoint().access_key];
        assert!(secrets.iter().all(|secret| !log.contains(secret)), "a key in the log of {}", cluster[index].id());
    }
    Ok(())
}

#[test]
fn a_peer_starts_as_a_cache_while_no_manager_answers() -> Result<()> {
    let mut cluster = Cluster::builder().all(|_, options| options.refresh_interval = "1s".to_owned()).start()?;
    let payload = Payload::new(3, 2000);
    cluster.bucket.put("later", &payload.bytes())?;
    let held = Payload::new(4, 5 << 20);
    cluster[PEER].put("held", ASYNC, held)?;
    cluster[PEER].until_clean("held")?;
    cluster[SEED].kill9()?;
    cluster[PEER].restart_in_place()?;
    cluster[PEER].read("held", held)?;
    let refused = cluster[PEER].ask("GET", "later", &[])?;
    assert!([503, 504].contains(&refused.status()), "{} {}", refused.status(), refused.text());
    cluster[SEED].restart_in_place()?;
    cluster.until_complete()?;
    let reads = || cluster[PEER].read("later", payload).ok().map(drop);
    eventually("it has a backend now", PATIENCE, reads).map_err(|error| cluster[PEER].explain(error))
}
