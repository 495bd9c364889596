//! Bad days of a cluster: nodes that die in the middle, rogues, and versions that change under readers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dfstore_tests::cluster::{BUCKET, Cluster, Node};
use dfstore_tests::data::{PIECE, Payload};
use dfstore_tests::eventually;
use dfstore_tests::faulty_backend::{Fault as BackendFault, Rule as BackendRule};
use dfstore_tests::peer_proxy::{Fault, Rule};
use dfstore_tests::scene::{ASYNC, PATIENCE, same};
use http::Method;
use rustix::process::{Pid, Signal, kill_process};

const SEED: usize = 0;
const ROGUE: usize = 1;
const READER: usize = 2;

/// The index of the node that decides about an object.
fn home(cluster: &Cluster, key: &str) -> Result<usize> {
    let homes = cluster[SEED].native()?.locations(&Node::target(key))?.homes;
    let first = homes.first().context("somebody decides")?;
    cluster.nodes().iter().position(|node| node.id() == first).context("a node of this name")
}

#[test]
fn readers_finish_though_the_home_is_killed_in_the_middle() -> Result<()> {
    let mut cluster = Cluster::builder().seeds(2).peers(8).start()?;
    let payload = Payload::new(1, 24 * PIECE);
    cluster.bucket.put("home-dies", &payload.bytes())?;
    let home = home(&cluster, "home-dies")?;
    let backend = cluster.faulty()?;
    backend.set_rules([BackendRule::on(Method::GET, BackendFault::BodyTrickles(256 << 10, Duration::from_millis(20)))]);
    backend.forget();
    let pid = cluster[home].peer().pid();
    let pid = Pid::from_raw(i32::try_from(pid)?).context("a process id")?;
    thread::scope(|scope| -> Result<()> {
        let cluster = &cluster;
        let readers = scope.spawn(move || cluster.read_at_once(&[2, 3, 4, 5, 6, 7, 8, 9], "home-dies", payload));
        eventually("a third has come", PATIENCE, || {
            (cluster.backend.traffic().sent > payload.length / 3).then_some(())
        })?;
        kill_process(pid, Signal::KILL)?;
        readers.join().expect("no panic").map(drop)
    })?;
    let sent = cluster.backend.traffic().sent;
    assert!(sent <= payload.length / 10 * 12, "{sent} bytes of {} left the bucket", payload.length);
    cluster[home].kill9()?;
    cluster.until_complete()
}

/// The bucket takes writes again: it gets the object, once, and this node knows.
fn sent_once(cluster: &Cluster, by: usize, key: &str, payload: Payload) -> Result<()> {
    cluster.backend.forget();
    cluster.faulty()?.set_rules([]);
    let stored = || cluster.faulty().ok()?.stored(BUCKET, key).filter(|bytes| same(bytes, payload));
    eventually("the bucket has it", PATIENCE, stored)?;
    cluster[by].until_clean(key)?;
    assert_eq!(cluster.faulty()?.requests_of(&Method::PUT), 1);
    Ok(())
}

#[test]
fn the_bucket_gets_an_object_once_though_its_writer_is_killed() -> Result<()> {
    let mut cluster = Cluster::builder().seeds(2).peers(2).start()?;
    cluster.faulty()?.set_rules([BackendRule::on(Method::PUT, BackendFault::internal_error())]);
    let payload = Payload::new(2, 2 * PIECE + 3);
    cluster[2].put_with_ack("orphan", ASYNC, payload, "peers:2")?;
    cluster[2].kill9()?;
    sent_once(&cluster, SEED, "orphan", payload)?;
    cluster[2].restart_in_place()?;
    cluster.until_complete()?;
    cluster[2].until_clean("orphan")?;
    cluster[2].read("orphan", payload)?;
    assert_eq!(cluster.faulty()?.requests_of(&Method::PUT), 1, "the writer does not send it again");
    Ok(())
}

#[test]
fn the_witness_sends_it_once_though_home_and_writer_are_killed() -> Result<()> {
    const WRITER: usize = 2;
    let mut cluster = Cluster::builder().seeds(2).peers(2).start()?;
    cluster.faulty()?.set_rules([BackendRule::on(Method::PUT, BackendFault::internal_error())]);
    let payload = Payload::new(6, 2 * PIECE + 3);
    cluster[WRITER].put_with_ack("inherited", ASYNC, payload, "peers:3")?;
    let home = home(&cluster, "inherited")?;
    ensure!(home < WRITER, "a seed decides");
    let witness = 1 - home;
    for dead in [home, WRITER] {
        cluster[dead].kill9()?;
    }
    sent_once(&cluster, witness, "inherited", payload)?;
    for dead in [home, WRITER] {
        cluster[dead].restart_in_place()?;
    }
    cluster.until_complete()?;
    for index in [home, witness, WRITER, 3] {
        cluster[index].until_clean("inherited")?;
        cluster[index].read("inherited", payload)?;
    }
    let idle = |node: &Node| node.metrics().is_ok_and(|samples| samples.sum("dfstore_writeback_queue", &[]) == 0.0);
    eventually("nothing is owed", PATIENCE, || cluster.nodes().iter().all(idle).then_some(()))?;
    assert_eq!(cluster.faulty()?.requests_of(&Method::PUT), 1, "neither sends it again");
    Ok(())
}

#[test]
fn the_writer_sends_it_when_the_only_seed_has_lost_everything() -> Result<()> {
    let mut cluster = Cluster::builder().peers(2).start()?;
    cluster.faulty()?.set_down(true);
    let payload = Payload::new(3, PIECE);
    cluster[1].put("survivor", ASYNC, payload)?;
    cluster[SEED].kill9()?;
    cluster[SEED].wipe()?;
    cluster[SEED].restart_in_place()?;
    cluster.until_complete()?;
    cluster.faulty()?.set_down(false);
    let stored = || cluster.faulty().ok()?.stored(BUCKET, "survivor").filter(|bytes| same(bytes, payload));
    eventually("the bucket has it", PATIENCE, stored)?;
    cluster[READER].read("survivor", payload).map(drop)
}

/// What is wrong with a peer that holds an object.
struct Rogue {
    rule: Option<Rule>,
    /// Bytes a second.
    rate: Option<u64>,
    /// What its failure is counted as, if that is certain.
    kind: Option<&'static str>,
}

impl Rogue {
    fn of(rule: Rule, kind: Option<&'static str>) -> Rogue {
        Rogue { rule: Some(rule), rate: None, kind }
    }
}

/// So few pieces are all asked of the home, which asks the rogue.
const FEW: Payload = Payload { seed: 4, length: 3 * PIECE + 100_000 };
/// Of so many the home names the rogue as a parent, and readers ask it themselves.
const MANY: Payload = Payload { seed: 5, length: 15 * PIECE + 100_000 };

/// Reads, and looks at what became of the rogue: this node asked it, counted it, and left it alone.
fn read_beside(cluster: &Cluster, rogue: &Rogue, asker: usize, (key, payload): (&str, Payload)) -> Result<()> {
    let (proxy, asker) = (cluster[ROGUE].proxy()?, &cluster[asker]);
    proxy.set_rules(rogue.rule);
    proxy.set_rate(rogue.rate);
    let (pieces, spoiled) = (proxy.pieces(), proxy.spoiled());
    cluster[READER].read(key, payload)?;
    let asked = proxy.pieces() - pieces;
    ensure!(rogue.rule.is_none() || proxy.spoiled() > spoiled, "nothing was spoiled");
    let metrics = asker.metrics()?;
    // A reader that waits for a silent one gets the piece elsewhere meanwhile, and may be done before it has judged it. The
    // home has nobody else to ask but the bucket, and does that only when it has given up.
    let was_needed = rogue.kind.is_some() || asker.id() == cluster[SEED].id();
    let is_avoided = metrics.sum("dfstore_parents_avoided_total", &[]) > 0.0;
    // One that crawls may be given up before anything of a piece has come.
    ensure!(asked > 0 || is_avoided, "nobody asked the rogue");
    ensure!(is_avoided || !was_needed, "{} leaves nobody alone after {asked} pieces", asker.id());
    let counts = |kind| metrics.sum("dfstore_peer_failures_total", &[("kind", kind)]) > 0.0;
    ensure!(rogue.kind.is_none_or(counts), "{} counts no failure as {:?}", asker.id(), rogue.kind);
    ensure!(asked <= 4, "the rogue was asked for {asked} pieces");
    Ok(())
}

/// A reader gets the right bytes although a peer sends its pieces like this: to the home, when nobody else holds them,
/// and to the reader, when the home names that peer as a parent.
fn right_bytes_from_a_rogue(rogue: &Rogue) -> Result<()> {
    let cluster = Cluster::builder().peers(2).node(ROGUE, |options| options.behind_proxy = true).start()?;
    for (key, payload) in [("few", FEW), ("many", MANY)] {
        cluster.bucket.put(key, &payload.bytes())?;
        for node in [ROGUE, SEED] {
            cluster[node].read(key, payload)?;
            cluster[node].until_head("it has all", key, |head| head.header("x-dfs-cache") == Some("local"))?;
        }
    }
    cluster.backend.forget();
    read_beside(&cluster, rogue, READER, ("many", MANY)).context("the reader asks it")?;
    ensure!(cluster.backend.traffic().sent == 0, "the home has it");
    cluster[SEED].evict("few")?;
    read_beside(&cluster, rogue, SEED, ("few", FEW)).context("the home asks it")
}

#[test]
fn a_wrong_byte_is_not_served() -> Result<()> {
    right_bytes_from_a_rogue(&Rogue::of(Rule::always(Fault::FlipByte(70_000)), Some("wrong_bytes")))
}

#[test]
fn pieces_that_are_cut_short_are_fetched_elsewhere() -> Result<()> {
    right_bytes_from_a_rogue(&Rogue::of(Rule::always(Fault::CutAfter(70_000)), Some("unreachable")))
}

#[test]
fn silence_after_the_head_or_in_the_middle_is_given_up() -> Result<()> {
    right_bytes_from_a_rogue(&Rogue::of(Rule::always(Fault::SilentAfter(0)), None))?;
    right_bytes_from_a_rogue(&Rogue::of(Rule::always(Fault::SilentAfter(300_000)).after(1), None))
}

#[test]
fn a_piece_of_another_generation_is_refused() -> Result<()> {
    right_bytes_from_a_rogue(&Rogue::of(Rule::always(Fault::OtherGeneration), Some("protocol")))
}

#[test]
fn a_peer_that_crawls_is_left() -> Result<()> {
    right_bytes_from_a_rogue(&Rogue { rule: None, rate: Some(20_000), kind: None })
}

#[test]
fn readers_see_one_whole_version_each_while_it_is_overwritten() -> Result<()> {
    let cluster = Cluster::builder().peers(3).start()?;
    let versions: Vec<_> = (0..8).map(|seed| Payload::new(100 + seed, 2 * PIECE + 1000 * seed)).collect();
    cluster[1].put("moving", ASYNC, versions[0])?;
    let done = AtomicBool::new(false);
    let read_on = |node: &Node| {
        let mut seen = 0;
        while !done.load(Ordering::SeqCst) || seen == 0 {
            let answer = node.ask("GET", "moving", &[])?;
            ensure!(answer.status() == 200, "{}: {} {}", node.id(), answer.status(), answer.text());
            let whole = versions.iter().any(|version| same(&answer.body, *version));
            ensure!(whole, "{} gave {} bytes that are no version", node.id(), answer.body.len());
            seen += 1;
        }
        Ok(seen)
    };
    let reads = thread::scope(|scope| -> Result<Vec<u32>> {
        let readers = scope.spawn(|| cluster.at_once(&[0, 2, 3], read_on));
        let written = versions[1..]
            .iter()
            .enumerate()
            .try_for_each(|(index, version)| cluster[1 + index % 2].put("moving", ASYNC, *version).map(drop));
        done.store(true, Ordering::SeqCst);
        let reads = readers.join().expect("no panic");
        written?;
        reads
    })?;
    assert!(reads.iter().all(|count| *count > 0), "{reads:?}");
    let last = *versions.last().context("there are some")?;
    cluster.read_at_once(&[0, 1, 2, 3], "moving", last).map(drop)
}
