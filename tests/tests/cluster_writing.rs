//! Promises about writing in a cluster: who sees what when, how many copies there are, who wins.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use dfstore_tests::cluster::{BUCKET, Cluster, Node};
use dfstore_tests::data::{PIECE, Payload};
use dfstore_tests::eventually;
use dfstore_tests::faulty_backend::{Fault, Rule};
use dfstore_tests::peer::Peer;
use dfstore_tests::scene::{ASYNC, EPHEMERAL, PATIENCE, SYNC, same};
use http::Method;

/// Far less than the 60 s for which copies are waited for.
const AT_ONCE: Duration = Duration::from_secs(10);
const ALL: [usize; 4] = [0, 1, 2, 3];

fn start() -> Result<Cluster> {
    Cluster::builder().peers(3).start()
}

/// GET, HEAD and list agree at every node.
fn everybody_sees(cluster: &Cluster, key: &str, payload: Payload) -> Result<()> {
    cluster.at_once(&ALL, |node| {
        node.read(key, payload)?;
        let head = node.ask("HEAD", key, &[])?;
        ensure!(head.header("content-length") == Some(&*payload.length.to_string()), "{}: {:?}", node.id(), head.head);
        ensure!(node.keys("")?.contains(&key.to_owned()), "{} does not list {key}", node.id());
        Ok(())
    })?;
    Ok(())
}

fn nobody_sees(cluster: &Cluster, key: &str) -> Result<()> {
    cluster.at_once(&ALL, |node| {
        for method in ["GET", "HEAD"] {
            let status = node.ask(method, key, &[])?.status();
            ensure!(status == 404, "{method} {key} at {}: {status}", node.id());
        }
        ensure!(!node.keys("")?.contains(&key.to_owned()), "{} lists {key}", node.id());
        Ok(())
    })?;
    Ok(())
}

/// The bucket answers questions and refuses everything else.
fn refuse_changes(cluster: &Cluster) -> Result<()> {
    let changes = [Method::PUT, Method::POST, Method::DELETE];
    cluster.faulty()?.set_rules(changes.map(|method| Rule::on(method, Fault::internal_error())));
    Ok(())
}

fn until_in_bucket(cluster: &Cluster, key: &str, payload: Payload) -> Result<()> {
    let backend = cluster.faulty()?;
    let there = || backend.stored(BUCKET, key).filter(|bytes| same(bytes, payload)).map(drop);
    eventually(&format!("{key} is in the bucket"), PATIENCE, there)
}

#[test]
fn a_write_is_seen_everywhere_at_once_also_while_the_bucket_takes_none() -> Result<()> {
    let cluster = start()?;
    refuse_changes(&cluster)?;
    for (index, length) in [(1, 0), (2, 1), (3, PIECE + 9), (0, 17 << 20)] {
        let (key, payload) = (format!("seen-{length}"), Payload::new(length, length));
        cluster[index].put(&key, ASYNC, payload)?;
        everybody_sees(&cluster, &key, payload)?;
    }
    cluster.faulty()?.set_rules([]);
    for length in [0, 1, PIECE + 9, 17 << 20] {
        until_in_bucket(&cluster, &format!("seen-{length}"), Payload::new(length, length))?;
    }
    Ok(())
}

/// The home tells the bucket; people ask any node.
#[test]
fn a_dead_letter_is_shown_once_and_ends_the_waiting_at_all_nodes() -> Result<()> {
    let cluster = start()?;
    let (home, writer, other) = (cluster[0].peer(), cluster[1].peer(), cluster[2].peer());
    cluster.faulty()?.set_rules([Rule::on(Method::PUT, Fault::access_denied())]);
    let payload = Payload::new(8, PIECE);
    let folder = dfstore_tests::dirs::temporary("file")?;
    let file = folder.path().join("file");
    std::fs::write(&file, payload.bytes())?;
    let url = format!("dfs://{BUCKET}/denied");
    let fails = |node: &Peer, arguments: &[&str]| -> Result<()> {
        let output = node.dfstore(arguments)?;
        assert_eq!(output.code, Some(1), "{arguments:?}");
        assert!(output.stderr.contains("was set aside, the backend does not take it"), "{}", output.stderr);
        assert!(output.stderr.contains("AccessDenied"), "the reason of the bucket: {}", output.stderr);
        Ok(())
    };
    fails(writer, &["cp", "--wait", "backend", &file.to_string_lossy(), &url])?;
    for node in [home, writer, other] {
        fails(node, &["writeback", "wait"])?;
        let shown = node.dfstore(&["writeback", "ls", "--dead"])?.success()?.text();
        let entries = shown.lines().filter(|line| line.starts_with("dead ") && line.ends_with(&url));
        assert_eq!(entries.count(), 1, "once, as its home sees it: {shown}");
    }
    cluster.faulty()?.set_rules([]);
    other.dfstore(&["writeback", "retry", &format!("dfs://{BUCKET}/")])?.success()?;
    for node in [other, writer, home] {
        node.dfstore(&["writeback", "wait"])?.success()?;
    }
    until_in_bucket(&cluster, "denied", payload)?;
    for node in [home, writer, other] {
        let left = node.dfstore(&["writeback", "ls"])?.success()?.text();
        assert!(!left.contains(&url), "{left}");
    }
    Ok(())
}

#[test]
fn an_order_about_a_write_is_given_at_any_node() -> Result<()> {
    let cluster = start()?;
    let (writer, other) = (&cluster[1], &cluster[2]);
    cluster.faulty()?.set_rules([Rule::on(Method::PUT, Fault::access_denied())]);
    writer.put("unwanted", ASYNC, Payload::new(9, PIECE))?;
    let url = format!("dfs://{BUCKET}/unwanted");
    assert_eq!(other.peer().dfstore(&["writeback", "wait"])?.code, Some(1));
    other.peer().dfstore(&["writeback", "drop", &url])?.success()?;
    nobody_sees(&cluster, "unwanted")?;
    writer.peer().dfstore(&["writeback", "wait"])?.success()?;
    let again = other.peer().dfstore(&["writeback", "retry", &url])?;
    assert!(again.code == Some(1) && again.stderr.contains("a pending write"), "{}", again.stderr);
    Ok(())
}

#[test]
fn a_dead_letter_of_a_node_that_does_not_decide_any_more_can_be_retried_anywhere() -> Result<()> {
    let mut cluster = start()?;
    let payload = Payload::new(10, PIECE);
    cluster.faulty()?.set_rules([Rule::on(Method::PUT, Fault::access_denied())]);
    cluster[0].kill9()?;
    eventually("the writer is on its own", PATIENCE, || (cluster[1].sees().ok()?.len() < 4).then_some(()))?;
    cluster[1].put("lonely", ASYNC, payload)?;
    assert_eq!(cluster[1].peer().dfstore(&["writeback", "wait"])?.code, Some(1));
    cluster[0].restart_in_place()?;
    cluster.until_complete()?;
    let other = cluster[2].peer();
    assert_eq!(other.dfstore(&["writeback", "wait"])?.code, Some(1));
    cluster.faulty()?.set_rules([]);
    other.dfstore(&["writeback", "retry", &format!("dfs://{BUCKET}/lonely")])?.success()?;
    other.dfstore(&["writeback", "wait"])?.success()?;
    until_in_bucket(&cluster, "lonely", payload)
}

#[test]
fn an_overwrite_is_seen_at_once_also_by_those_who_hold_the_older_version() -> Result<()> {
    let cluster = start()?;
    let versions = [Payload::new(1, 2 * PIECE), Payload::new(2, PIECE + 1), Payload::new(3, 2 * PIECE)];
    for (number, payload) in versions.into_iter().enumerate() {
        cluster[1 + number % 3].put("over", ASYNC, payload)?;
        everybody_sees(&cluster, "over", payload)?;
    }
    until_in_bucket(&cluster, "over", versions[2])
}

#[test]
fn a_deletion_is_seen_at_once_and_nothing_comes_back() -> Result<()> {
    let cluster = start()?;
    let payload = Payload::new(4, PIECE + 4);
    cluster[1].put("gone", ASYNC, payload)?;
    everybody_sees(&cluster, "gone", payload)?;
    refuse_changes(&cluster)?;
    cluster[2].delete("gone")?;
    nobody_sees(&cluster, "gone")?;
    cluster.faulty()?.set_rules([]);
    eventually("the bucket forgets it", PATIENCE, || {
        cluster.faulty().ok()?.stored(BUCKET, "gone").is_none().then_some(())
    })?;
    nobody_sees(&cluster, "gone")
}

#[test]
fn a_deleted_object_is_not_served_from_an_old_copy_while_the_bucket_is_down() -> Result<()> {
    let cluster = Cluster::builder().seeds(2).peers(2).start()?;
    let payload = Payload::new(40, PIECE + 1);
    for (key, mode) in [("clean", SYNC), ("pending", ASYNC), ("ephemeral", EPHEMERAL), ("tried-again", SYNC)] {
        cluster[2].put(key, mode, payload)?;
        cluster[3].read(key, payload)?;
        cluster[0].delete(key)?;
    }
    // Nobody has asked since, so that all but the home still have it.
    cluster.faulty()?.set_down(true);
    for key in ["clean", "pending", "ephemeral"] {
        for index in [2, 3, 1, 0] {
            let answer = cluster[index].ask("GET", key, &[])?;
            assert_eq!(answer.status(), 404, "{key} at {index}: {:?}", answer.head.headers);
        }
    }
    // A write that may have reached the bucket: it is not missing for sure any more, and what is older stays deleted.
    assert_eq!(cluster[2].try_put("tried-again", SYNC, payload, &[])?.status(), 504);
    for index in [3, 2, 1, 0] {
        let answer = cluster[index].ask("GET", "tried-again", &[])?;
        assert_eq!(answer.status(), 504, "at {index}: {:?} {}", answer.head.headers, answer.text());
    }
    cluster.faulty()?.set_down(false);
    cluster[3].put("clean", SYNC, payload)?;
    cluster[2].read("clean", payload).map(drop)
}

#[test]
fn a_deletion_that_the_backend_refuses_does_not_happen_later() -> Result<()> {
    let mut cluster = Cluster::builder().seeds(2).peers(1).start()?;
    let objects: Vec<(String, Payload)> =
        (0..12).map(|number| (format!("kept-{number}"), Payload::new(number, 9))).collect();
    for (key, payload) in &objects {
        cluster[2].put(key, SYNC, *payload)?;
    }
    cluster.faulty()?.set_rules([Rule::on(Method::DELETE, Fault::access_denied())]);
    for (key, _) in &objects {
        assert_eq!(cluster[2].ask("DELETE", key, &[])?.status(), 403);
    }
    // What the seeds remember of it in memory is gone.
    for seed in [0, 1] {
        cluster[seed].kill9()?;
    }
    cluster.faulty()?.set_rules([]);
    for seed in [0, 1] {
        cluster[seed].restart_in_place()?;
    }
    cluster.until_complete()?;
    let is_idle = |node: &Node| node.metrics().is_ok_and(|samples| samples.sum("dfstore_writeback_queue", &[]) == 0.0);
    for (key, payload) in &objects {
        let read = || cluster.nodes().iter().all(|node| node.read(key, *payload).is_ok()).then_some(());
        eventually(&format!("{key} is there"), PATIENCE, read)?;
    }
    eventually("nothing is owed", PATIENCE, || cluster.nodes().iter().all(is_idle).then_some(()))?;
    objects.iter().try_for_each(|(key, payload)| until_in_bucket(&cluster, key, *payload))
}

#[test]
fn a_deletion_that_the_backend_refuses_leaves_what_is_pending_everywhere() -> Result<()> {
    let cluster = start()?;
    let (old, pending) = (Payload::new(62, 9), Payload::new(63, 2 * PIECE + 5));
    cluster[2].put("pending", SYNC, old)?;
    let denied = [Method::DELETE, Method::PUT].map(|method| Rule::on(method, Fault::access_denied()));
    cluster.faulty()?.set_rules(denied);
    cluster[2].put("pending", ASYNC, pending)?;
    for index in 0..cluster.nodes().len() {
        assert_eq!(cluster[index].ask("DELETE", "pending", &[])?.status(), 403);
    }
    everybody_sees(&cluster, "pending", pending)?;
    let dead = || {
        cluster[3]
            .peer()
            .dfstore(&["writeback", "ls", "--dead"])
            .ok()?
            .success()
            .ok()?
            .text()
            .contains("/pending")
            .then_some(())
    };
    eventually("it is a dead letter", PATIENCE, dead)?;
    cluster.faulty()?.set_rules([]);
    cluster[1].peer().dfstore(&["writeback", "retry", &format!("dfs://{BUCKET}/pending")])?.success()?;
    until_in_bucket(&cluster, "pending", pending)
}

#[test]
fn a_copy_is_seen_at_once() -> Result<()> {
    let cluster = start()?;
    let payload = Payload::new(5, 3 * PIECE);
    cluster[1].put("original", ASYNC, payload)?;
    cluster[2].copy("original", "copy")?;
    everybody_sees(&cluster, "copy", payload)?;
    until_in_bucket(&cluster, "copy", payload)
}

#[test]
fn what_a_copy_replaced_does_not_come_back_when_the_home_is_restarted() -> Result<()> {
    let mut cluster = Cluster::builder().peers(1).start()?;
    let copied = Payload::new(60, 10);
    cluster[0].put("source", SYNC, copied)?;
    let keys: Vec<String> = (0..4).map(|number| format!("replaced-{number}")).collect();
    for key in &keys {
        cluster[1].put(key, EPHEMERAL, Payload::new(61, 20))?;
        cluster[0].copy("source", key)?;
    }
    // The writer has had no reason yet to ask the home about what it holds.
    cluster[0].kill9()?;
    cluster[0].restart_in_place()?;
    cluster.until_complete()?;
    for key in &keys {
        eventually(&format!("{key} is a copy"), PATIENCE, || cluster[1].read(key, copied).ok())?;
        cluster[0].read(key, copied)?;
    }
    Ok(())
}

/// The bucket has the copy, and nobody can look at it yet.
#[test]
fn what_a_copy_replaced_does_not_come_back_though_the_copy_cannot_be_looked_at() -> Result<()> {
    let cluster = Cluster::builder().peers(1).start()?;
    let copied = Payload::new(62, 10);
    cluster[0].put("source", SYNC, copied)?;
    let keys: Vec<String> = (0..4).map(|number| format!("unseen-{number}")).collect();
    for key in &keys {
        cluster[1].put(key, EPHEMERAL, Payload::new(63, 20))?;
        let blind = Rule::on(Method::HEAD, Fault::internal_error()).at(format!("{BUCKET}/{key}")).times(3);
        cluster.faulty()?.set_rules([blind]);
        assert_eq!(cluster[0].try_copy("source", key)?.status(), 504);
    }
    // The writer tells of what it holds once a second.
    for key in &keys {
        eventually(&format!("{key} is a copy at its writer"), PATIENCE, || cluster[1].read(key, copied).ok())?;
        cluster[0].read(key, copied)?;
    }
    Ok(())
}

#[test]
fn of_two_writers_one_wins_everywhere() -> Result<()> {
    let cluster = start()?;
    for round in 0..20 {
        let key = format!("rivals-{round}");
        let payloads = [Payload::new(2 * round, PIECE + 10), Payload::new(2 * round + 1, PIECE + 10)];
        cluster.at_once(&[1, 2], |node| node.put(&key, ASYNC, payloads[usize::from(node.id() == cluster[2].id())]))?;
        let read = cluster.at_once(&ALL, |node| Ok(node.ask("GET", &key, &[])?.body))?;
        let winner = payloads.iter().position(|payload| same(&read[0], *payload));
        let Some(winner) = winner else { panic!("round {round}: {} bytes of nobody's", read[0].len()) };
        for (index, body) in read.iter().enumerate() {
            assert!(same(body, payloads[winner]), "round {round}: node {index} disagrees");
        }
        let generations = cluster.at_once(&ALL, |node| Ok(node.native()?.stat(&Node::target(&key))?.generation))?;
        assert_eq!(generations.iter().collect::<BTreeSet<_>>().len(), 1, "round {round}: {generations:?}");
        until_in_bucket(&cluster, &key, payloads[winner])?;
        cluster[1].until_clean(&key)?;
        everybody_sees(&cluster, &key, payloads[winner])?;
    }
    Ok(())
}

#[test]
fn a_synchronous_write_is_in_the_bucket_when_it_is_acknowledged() -> Result<()> {
    let cluster = start()?;
    let payload = Payload::new(6, 18 << 20);
    cluster[1].put("sync", SYNC, payload)?;
    let stored = cluster.faulty()?.stored(BUCKET, "sync").unwrap_or_default();
    assert!(same(&stored, payload), "{} bytes are in the bucket", stored.len());
    everybody_sees(&cluster, "sync", payload)?;
    cluster.faulty()?.set_down(true);
    let answer = cluster[1].try_put("sync", SYNC, Payload::new(7, 10), &[])?;
    assert!(answer.status() >= 500, "{}", answer.status());
    cluster.faulty()?.set_down(false);
    everybody_sees(&cluster, "sync", payload)
}

#[test]
fn many_synchronous_writes_at_once_at_one_node_wait_for_each_other() -> Result<()> {
    let cluster = Cluster::builder().peers(1).start()?;
    // Each is longer than what a socket takes at once, and none holds up the others for long.
    let payloads: Vec<Payload> = (0..24).map(|number| Payload::new(100 + number, PIECE + number)).collect();
    thread::scope(|scope| {
        let write = |payload: &Payload| cluster[1].put(&format!("sync-{}", payload.seed), SYNC, *payload).map(drop);
        let threads: Vec<_> = payloads.iter().map(|payload| scope.spawn(move || write(payload))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })
}

#[test]
fn many_reads_at_once_of_what_one_node_holds_wait_for_each_other() -> Result<()> {
    let cluster = Cluster::builder().peers(1).start()?;
    let payloads: Vec<Payload> = (0..24).map(|number| Payload::new(200 + number, PIECE + number)).collect();
    thread::scope(|scope| {
        let write_and_read = |payload: &Payload| {
            let key = format!("held-{}", payload.seed);
            cluster[1].put(&key, EPHEMERAL, *payload)?;
            cluster[0].read(&key, *payload).map(drop)
        };
        let threads: Vec<_> = payloads.iter().map(|payload| scope.spawn(move || write_and_read(payload))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    })
}

#[test]
fn an_ephemeral_object_is_everywhere_but_in_the_bucket() -> Result<()> {
    let cluster = start()?;
    let payload = Payload::new(8, PIECE + 8);
    cluster[1].put("ephemeral", EPHEMERAL, payload)?;
    everybody_sees(&cluster, "ephemeral", payload)?;
    let backend = cluster.faulty()?;
    assert_eq!(backend.requests_of(&Method::PUT) + backend.requests_of(&Method::POST), 0);
    cluster[3].delete("ephemeral")?;
    nobody_sees(&cluster, "ephemeral")
}

#[test]
fn replicas_are_counted_and_waited_for() -> Result<()> {
    let builder = Cluster::builder().seeds(2).peers(1);
    let cluster = builder.all(|_, options| options.max_replicas = Some(2)).start()?;
    cluster.faulty()?.set_down(true);
    let payload = Payload::new(9, 2 * PIECE);
    let said = cluster[2].put_with_ack("acked", ASYNC, payload, "peers:2")?;
    let (have, wanted) = said.split_once('/').unwrap_or_default();
    assert!(have.parse::<u16>()? >= 2 && wanted == "2", "{said}");
    let holders = cluster[2].whole_holders("acked")?;
    assert!(holders.len() >= 2 && holders.contains(cluster[2].id()), "{holders:?}");
    eventually("all replicas are made", PATIENCE, || {
        cluster[2].whole_holders("acked").ok().filter(|holders| holders.len() == 3).map(drop)
    })?;
    Ok(())
}

/// Replicas that no seed can keep are said to be missing, and copies that nobody can hold are not waited for.
#[test]
fn replicas_and_copies_that_cannot_be_are_told_at_once() -> Result<()> {
    let builder = Cluster::builder().seeds(2).peers(1);
    let cluster = builder.all(|_, options| options.max_replicas = Some(3)).start()?;
    let short = || Ok::<_, anyhow::Error>(cluster[2].metrics()?.sum("dfstore_replicas_short_total", &[]));
    let payload = Payload::new(12, PIECE);
    assert_eq!(short()?, 0.0);
    for (count, mode) in [(1.0, ASYNC), (2.0, SYNC), (3.0, EPHEMERAL)] {
        let said = cluster[2].put(&format!("short-{mode}"), mode, payload)?;
        assert_eq!(said.header("x-dfs-replicas"), Some("2/3"), "mode {mode}");
        assert_eq!(short()?, count, "mode {mode}");
    }
    // All three can hold it: two seeds, and this node.
    assert_eq!(cluster[2].put_with_ack("all", ASYNC, payload, "peers:3")?, "2/3");
    for (number, wanted) in ["peers:4", "peers:9"].into_iter().enumerate() {
        let key = format!("too-many-{number}");
        let began = Instant::now();
        let refused = cluster[2].try_put(&key, ASYNC, payload, &[("X-Dfs-Ack", wanted)])?;
        let took = began.elapsed();
        assert_eq!(refused.status(), 422, "{wanted}: {}", refused.text());
        assert!(took < AT_ONCE, "{wanted}: {took:?}");
        assert_eq!(cluster[0].ask("GET", &key, &[])?.status(), 404, "nothing is written");
    }
    Ok(())
}

#[test]
fn a_replica_keeps_what_only_the_writer_had() -> Result<()> {
    let mut cluster = Cluster::builder().seeds(2).peers(2).start()?;
    cluster.faulty()?.set_down(true);
    let payload = Payload::new(10, 2 * PIECE);
    cluster[2].put_with_ack("kept", ASYNC, payload, "peers:2")?;
    cluster[2].kill9()?;
    for index in [0, 1, 3] {
        cluster[index].read("kept", payload)?;
    }
    Ok(())
}

#[test]
fn upload_traffic_is_one_copy() -> Result<()> {
    let cluster = start()?;
    let payload = Payload::new(11, 40 << 20);
    cluster[1].put("large", ASYNC, payload)?;
    until_in_bucket(&cluster, "large", payload)?;
    cluster[1].until_clean("large")?;
    let traffic = cluster.backend.traffic();
    assert!(traffic.received < payload.length + (1 << 20), "{} bytes were sent", traffic.received);
    assert!(traffic.sent < 4096, "{} bytes came back: what was written is not read", traffic.sent);
    Ok(())
}
