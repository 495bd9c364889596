//! Who gets in, how peers learn of the backend, and the kit itself: nodes find each other and keep their names.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, TcpListener};

use anyhow::{Context, Result, ensure};
use dfstore_peer::limits::PIECE_BYTES;
use dfstore_proto::message::{Hello, NodeRole, Role, Route, Token};
use dfstore_proto::preface::Versions;
use dfstore_tests::cluster::{BUCKET, BackendKind, Cluster, Node, NodeOptions, Place, Ports, Wiring};
use dfstore_tests::data::{PIECE, Payload};
use dfstore_tests::faulty_backend::FaultyBackend;
use dfstore_tests::netns::{self, Network, Shape};
use dfstore_tests::scene::{ASYNC, PATIENCE};
use dfstore_tests::wire::{Wire, hello};
use dfstore_tests::{dirs, eventually};

const SEED: usize = 0;
const PEER: usize = 1;

fn hello_of_a_peer(cluster: &Cluster) -> Hello {
    Hello {
        role: Role::Peer,
        token: Token::new(cluster.wiring().credential()),
        piece_bytes_max: PIECE_BYTES,
        ..hello(Route::Any, 4)
    }
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
fn a_cluster_on_ipv6_reads_writes_and_shows_itself() -> Result<()> {
    let loopback = IpAddr::V6(Ipv6Addr::LOCALHOST);
    if let Err(error) = TcpListener::bind((loopback, 0)) {
        eprintln!("SKIPPED: a cluster on IPv6: no ::1 here: {error}");
        return Ok(());
    }
    let builder = Cluster::builder().peers(1).backend(BackendKind::FaultyOn(loopback));
    let cluster = builder.all(|_, options| options.place.address = loopback).start()?;
    let gossip = cluster.nodes().iter().filter_map(Node::gossip);
    let addresses: Vec<_> = cluster.own_addresses()?.into_iter().chain(gossip).collect();
    ensure!(addresses.iter().all(|address| address.ip() == loopback), "not all on ::1: {addresses:?}");
    let (below, above) = (Payload::new(5, 9 << 20), Payload::new(6, PIECE + 1));
    cluster.bucket.put("below", &below.bytes())?;
    cluster.read_at_once(&[SEED, PEER], "below", below)?;
    cluster[PEER].put("above", ASYNC, above)?;
    cluster[SEED].read("above", above)?;
    cluster[PEER].until_clean("above")?;
    ensure!(cluster.bucket.get("above")? == Some(above.bytes()), "the bucket has something else");

    let peer = cluster[PEER].peer();
    ensure!(peer.endpoint().starts_with("http://[::1]:"), "{}", peer.endpoint());
    let status = peer.dfstore(&["cluster", "status"])?.success()?.text();
    for node in cluster.nodes() {
        let shown = status.lines().any(|line| line.contains(node.id()) && line.contains("[::1]:"));
        ensure!(shown, "{} is not shown with its address:\n{status}", node.id());
    }
    let folder = dirs::temporary("files")?;
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    let (from, to, url) = (from.to_string_lossy(), to.to_string_lossy(), format!("dfs://{BUCKET}/copied"));
    std::fs::write(&*from, below.bytes())?;
    peer.dfstore(&["cp", &from, &url])?.success()?;
    cluster[SEED].peer().dfstore(&["cp", &url, &to])?.success()?;
    ensure!(std::fs::read(&*to)? == below.bytes(), "another file came back");
    Ok(())
}

/// A name with several addresses, of which only the one in the middle leads anywhere. Whatever order a resolver gives
/// them, a dead one comes first.
#[test]
fn a_name_with_dead_addresses_leads_new_nodes_to_the_cluster() -> Result<()> {
    const NAME: &str = "seeds.dfstore.test";
    if !netns::available_for("a name with dead addresses") {
        return Ok(());
    }
    let mut network = Network::start()?;
    let mut add = || network.add(Shape::default());
    let (home, silent, strange) = (add()?, add()?, add()?);
    // One swallows all that comes, at the other one nobody listens.
    silent.drop_packets_from(strange.address())?;
    strange.set_name(NAME, &[silent.address(), home.address(), network.host()])?;
    let builder = Cluster::builder().peers(0).backend(BackendKind::FaultyOn(network.host().into()));
    let mut cluster = builder.all(|_, options| options.place = Place::within(&home)).start()?;
    let Ports { manager, gossip, .. } = cluster[SEED].ports();
    let wiring = cluster.wiring_mut();
    wiring.managers = vec![format!("{NAME}:{manager}")];
    wiring.gossip_seeds = vec![format!("{NAME}:{gossip}")];
    let options = || vec![NodeOptions { place: Place::within(&strange), ..NodeOptions::default() }];
    // A peer asks the manager of this name, a seed gossips at once.
    cluster.add(NodeRole::Peer, options())?;
    cluster.add(NodeRole::Seed, options())?;
    cluster.until_complete()?;
    let payload = Payload::new(7, 5 << 20);
    cluster.bucket.put("named", &payload.bytes())?;
    cluster.read_at_once(&[0, 1, 2], "named", payload).map(drop)
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

const OUTSIDER: &str = "a node with another cluster name or token was turned away";
const STRANGE_GOSSIP: &str = "it has another cluster.name or cluster.token";
const REFUSED: &str = "cluster name or token differ from those of this node";

/// Nodes with this wiring, which knows all that is to be known of the cluster, stay alone. Each side says why, once,
/// and neither lists the other.
fn stay_outside(wiring: &Wiring) -> Result<()> {
    let cluster = Cluster::builder().start()?;
    let known = Wiring { name: wiring.name.clone(), token: wiring.token.clone(), ..cluster.wiring().clone() };
    ensure!(!known.managers.is_empty() && !known.gossip_seeds.is_empty(), "nobody to be refused by: {known:?}");
    // One asks a manager, the other one gossips at once.
    let peer = Node::start(NodeRole::Peer, NodeOptions::default(), known.clone(), None)?;
    let seed = Node::start(NodeRole::Seed, NodeOptions::default(), known, Some(&cluster.backend.endpoint()))?;
    let count = |node: &Node, words: &str| node.log().matches(words).count();
    let refusals = |node: &Node| Ok::<_, anyhow::Error>(node.metrics()?.sum("dfstore_gossip_refused_total", &[]));
    let refused_often = || (refusals(&cluster[SEED]).ok()? >= 5.0 && count(&peer, REFUSED) > 0).then_some(());
    eventually("several rounds of gossip are refused", PATIENCE, refused_often)
        .map_err(|error| cluster[SEED].explain(peer.explain(error)))?;
    for words in [OUTSIDER, STRANGE_GOSSIP] {
        let said = count(&cluster[SEED], words);
        ensure!(said == 1, "{said} times {words:?}:\n{}", cluster[SEED].log());
    }
    let told = count(&peer, "another peer cannot be talked to");
    ensure!(told == 1, "it complains {told} times about who refuses it:\n{}", peer.log());
    cluster.until_complete()?;
    for outsider in [&peer, &seed] {
        let seen = outsider.sees()?;
        ensure!(seen.len() == 1 && seen.contains(outsider.id()), "it sees {seen:?}");
        let listed = |node: &Node| Ok::<_, anyhow::Error>(node.sees()?.contains(outsider.id()));
        ensure!(!cluster.nodes().iter().map(listed).collect::<Result<Vec<_>>>()?.contains(&true), "it is let in");
    }
    let tokens = [&cluster.wiring().token, &wiring.token];
    let mut logs = cluster.nodes().iter().chain([&peer, &seed]).map(Node::log);
    ensure!(!logs.any(|log| tokens.iter().any(|token| log.contains(*token))), "a token in a log");
    Ok(())
}

#[test]
fn nodes_with_a_wrong_token_stay_outside() -> Result<()> {
    stay_outside(&Wiring::new("kit", "another-cluster-token-0000"))
}

#[test]
fn nodes_with_a_wrong_cluster_name_stay_outside() -> Result<()> {
    stay_outside(&Wiring::new("another", "canary-cluster-token-77d0"))
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
