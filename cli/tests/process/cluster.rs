//! The commands of those who look after a cluster: what they ask, print and return.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpListener;

use bytes::BytesMut;
use dfstore_proto::error::{ErrorCode, ErrorReply};
use dfstore_proto::frame::RequestId;
use dfstore_proto::limits::{NODES_MAX, VERSION_MAX};
use dfstore_proto::message::{HelloAck, HolderInfo, Message, NodeFailure, NodeInfo, NodeRole};
use dfstore_proto::object::PieceRun;
use serde_json::{Value, json};

use crate::fake::{Fake, Faults, PIECE_BYTES};
use crate::run::{Finished, bytes, dfstore, run};

const PIECE: usize = PIECE_BYTES as usize;

fn node(id: &str, role: NodeRole, live: bool) -> NodeInfo {
    let known = |text: &str| if live { text.to_string() } else { String::new() };
    NodeInfo {
        id: id.to_string(),
        role,
        peer: known("10.0.0.1:65002"),
        api: known("10.0.0.1:65004"),
        version: known("0.2.0"),
        started_us: if live { 1_672_629_845_000_000 } else { 0 },
        shards: if live { 4 } else { 0 },
        capacity_bytes: if live { 1 << 40 } else { 0 },
        used_bytes: if live { 3 << 29 } else { 0 },
        dirty_bytes: 0,
        load: if live { 17 } else { 0 },
        live,
    }
}

fn lab() -> Fake {
    Fake::start().in_cluster(vec![
        node("seed-1", NodeRole::Seed, true),
        node("seed-2", NodeRole::Seed, false),
        node("a-peer", NodeRole::Peer, true),
    ])
}

fn lines_of_json(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn words(text: &str) -> Vec<Vec<&str>> {
    text.lines().map(|line| line.split_whitespace().collect()).collect()
}

#[test]
fn status_shows_every_node_and_who_answered() {
    let fake = lab();
    let text = run(&fake, &["cluster", "status"]).done().text();
    let lines = words(&text);
    assert_eq!(text.lines().next(), Some("cluster lab: 3 nodes, 2 alive, 1 dead; seed-1 answered (*)"));
    assert_eq!(lines[1], ["NODE", "ROLE", "STATE", "ADDRESS", "SHARDS", "LOAD", "USED", "CAPACITY", "DIRTY"]);
    let known = ["10.0.0.1:65004", "4", "17", "1.50", "GiB", "1.00", "TiB", "0", "B"];
    assert_eq!(lines[2], [&["a-peer", "peer", "alive"], &known[..]].concat());
    assert_eq!(lines[3], [&["seed-1*", "seed", "alive"], &known[..]].concat());
    assert_eq!(lines[4], ["seed-2", "seed", "dead", "-", "-", "-", "-", "-", "-"]);
    assert_eq!(lines.len(), 5);
}

#[test]
fn status_as_json_has_plain_numbers() {
    let json: Value = serde_json::from_str(&run(&lab(), &["cluster", "status", "--json"]).done().text()).expect("JSON");
    assert_eq!((&json["cluster"], &json["answered"]), (&"lab".into(), &"seed-1".into()));
    let seed = &json["nodes"][1];
    assert_eq!((&seed["id"], &seed["answered"], &seed["state"]), (&"seed-1".into(), &true.into(), &"alive".into()));
    assert_eq!((&seed["used_bytes"], &seed["started"]), (&(3 << 29).into(), &"2023-01-02T03:24:05Z".into()));
    assert_eq!((&json["nodes"][2]["state"], &json["nodes"][2]["started"]), (&"dead".into(), &Value::Null));
}

#[test]
fn status_follows_all_pages() {
    let nodes = (0..2 * NODES_MAX + 3).map(|number| node(&format!("n-{number:04}"), NodeRole::Peer, true)).collect();
    let fake = Fake::start().in_cluster(nodes);
    let text = run(&fake, &["cluster", "status"]).done().text();
    assert_eq!((text.lines().count(), fake.count("NODES")), (2 + 2 * NODES_MAX + 3, 3));
}

#[test]
fn a_peer_that_is_alone_says_so() {
    let fake = Fake::start();
    assert_eq!(run(&fake, &["cluster", "status"]).done().text(), "fake is alone: it belongs to no cluster\n");
    fake.put("b", "k", b"x");
    let text = run(&fake, &["stat", "--where", "dfs://b/k"]).done().text();
    assert!(text.contains("homes                none") && text.contains("no node holds any piece"), "{text}");
}

#[test]
fn refusals_of_a_cluster_are_shown() {
    let refusal = || ErrorReply::new(ErrorCode::Unsupported, "this peer keeps no list");
    for args in [["cluster", "status"].as_slice(), &["stat", "--where", "dfs://b/k"], &["prefetch", "dfs://b/k"]] {
        let fake = Fake::start().with(Faults { refusals: VecDeque::from([refusal()]), ..Faults::default() });
        run(&fake, args).failed(1, &["Error: failed to ", "this peer keeps no list"]);
    }
}

#[test]
fn where_shows_homes_replicas_and_pieces() {
    let holder = |node: &str, pieces, runs: &[(u32, u32)]| {
        let runs = runs.iter().map(|&(first, count)| PieceRun { first, count }).collect();
        HolderInfo { node: node.to_string(), pieces, runs }
    };
    let fake = lab().held_by(vec![holder("seed-1", 5, &[(0, 5)]), holder("a-peer", 3, &[(0, 2), (4, 1)])]);
    fake.put("b", "k", &bytes(5 * PIECE));
    let text = run(&fake, &["stat", "--where", "dfs://b/k"]).done().text();
    for part in ["state                clean", "homes                seed-1, seed-2", "replicas             1 of 2"] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
    let lines = words(&text);
    let table = &lines[lines.len() - 3..];
    assert_eq!(table[0], ["NODE", "HOLDS", "PIECES"]);
    assert_eq!(table[1], ["seed-1", "5", "of", "5", "0-4"]);
    assert_eq!(table[2], ["a-peer", "3", "of", "5", "0-1,", "4"]);
    let json: Value =
        serde_json::from_str(&run(&fake, &["stat", "--where", "--json", "dfs://b/k"]).done().text()).expect("JSON");
    assert_eq!((&json["length"], &json["homes"]), (&(5 * PIECE).into(), &json!(["seed-1", "seed-2"])));
    assert_eq!(json["replicas"], json!({ "have": 1, "wanted": 2 }));
    let runs = json!([{ "first": 0, "count": 2 }, { "first": 4, "count": 1 }]);
    assert_eq!(json["holders"][1], json!({ "node": "a-peer", "pieces": 3, "runs": runs }));
    run(&fake, &["stat", "--where", "dfs://b/none"]).failed(1, &["failed to find dfs://b/none", "does not exist"]);
}

#[test]
fn one_object_is_fetched_and_dropped_everywhere() {
    let fake = lab();
    fake.put("b", "k", b"12345");
    let done = run(&fake, &["prefetch", "dfs://b/k"]).done();
    assert_eq!((done.text().as_str(), done.stderr.as_str()), ("prefetch k in bucket b: 15 bytes on 3 nodes\n", ""));
    let text = run(&fake, &["evict", "dfs://b/k"]).done().text();
    assert_eq!(text, "evict k in bucket b: 15 bytes on 3 nodes\n");
    assert_eq!((fake.count("PREFETCH"), fake.count("EVICT"), fake.count("LIST")), (1, 1, 0));
    let json = lines_of_json(&run(&fake, &["evict", "--json", "dfs://b/k"]).done().text());
    assert_eq!(json, [json!({ "bucket": "b", "key": "k", "nodes": 3, "bytes": 15, "failures": [] })]);
    run(&fake, &["evict", "dfs://b/none"]).failed(1, &["failed to evict dfs://b/none: ", "does not exist"]);
}

#[test]
fn nodes_that_fail_are_named_and_fail_the_command() {
    let failures = vec![
        ("k", NodeFailure::new("seed-2", "no answer in 5 s")),
        ("k", NodeFailure::new("a-peer", "the disk is full")),
    ];
    let fake = lab().with(Faults { failures, ..Faults::default() });
    for key in ["k", "ok"] {
        fake.put("b", key, b"12345");
    }
    let said =
        ["Error: failed to prefetch dfs://b/k on node seed-2: no answer in 5 s", "on node a-peer: the disk is full"];
    let done = run(&fake, &["prefetch", "dfs://b/k"]).failed(1, &said);
    assert_eq!(done.text(), "prefetch k in bucket b: 5 bytes on 1 nodes\n");
    let summary = "failed to prefetch 1 of 2 objects below dfs://b/ on all nodes";
    let done = run(&fake, &["prefetch", "--json", "dfs://b/"]).failed(1, &[said[0], said[1], summary]);
    let mut json = lines_of_json(&done.text());
    json.sort_by_key(|line| line["key"].to_string());
    assert_eq!((&json[1]["nodes"], json.len()), (&3.into(), 2));
    assert_eq!(json[0]["failures"][1], json!({ "node": "a-peer", "message": "the disk is full" }));
}

#[test]
fn a_prefix_goes_through_the_listing() {
    let fake = lab();
    for key in ["a/1", "a/2", "a/d/3", "ab", "c"] {
        fake.put("b", key, b"12345");
    }
    let done = run(&fake, &["prefetch", "dfs://b/a/"]).done();
    assert!(done.stderr.contains("1 prefixes below dfs://b/a/ were left out; --recursive"), "{}", done.stderr);
    assert_eq!(fake.worked_on(), ["a/1", "a/2"]);
    let done = run(&fake, &["evict", "-r", "dfs://b/a/"]).done();
    assert_eq!((fake.count("EVICT"), done.text().lines().count(), done.stderr.as_str()), (3, 3, ""));
    run(&fake, &["evict", "--recursive", "dfs://b/"]).done();
    assert_eq!(fake.count("EVICT"), 8);
    run(&fake, &["evict", "dfs://b/none/"]).failed(1, &["there are no objects below it"]);
    run(&fake, &["evict", "-r", "dfs://b/a"]).failed(2, &["does not end in '/'", "Hint:"]);
    run(&fake, &["evict", "dfs://b"]).failed(2, &["names no object"]);
}

#[test]
fn a_long_prefix_is_worked_on_page_by_page() {
    let fake = lab();
    for number in 0..150 {
        fake.put("b", &format!("p/{number:0900}"), b"x");
    }
    assert_eq!(run(&fake, &["prefetch", "dfs://b/p/"]).done().text().lines().count(), 150);
    assert!(fake.count("LIST") > 1, "one page does not hold so many");
    assert_eq!(fake.worked_on().len(), 150);
}

#[test]
fn a_few_objects_are_worked_on_at_once() {
    let fake = lab().with(Faults { together: 8, ..Faults::default() });
    for number in 0..60 {
        fake.put("b", &format!("{number}"), b"x");
    }
    run(&fake, &["prefetch", "dfs://b/"]).done();
    assert_eq!((fake.together_most(), fake.worked_on().len()), (8, 60));
}

#[test]
fn one_object_that_fails_does_not_stop_the_others_but_a_peer_that_cannot_does() {
    let refused = |code| {
        let refusals = VecDeque::from([ErrorReply::new(code, "not this one")]);
        let fake = lab();
        for number in 0..40 {
            fake.put("b", &format!("{number}"), b"x");
        }
        // The listing passes, the first object does not.
        (fake, refusals)
    };
    let (fake, refusals) = refused(ErrorCode::AccessDenied);
    let fake = fake.with(Faults { refusals_after_list: refusals, ..Faults::default() });
    run(&fake, &["prefetch", "dfs://b/"]).failed(1, &["not this one", "failed to prefetch 1 of 40 objects"]);
    assert_eq!(fake.worked_on().len(), 39);
    let (fake, refusals) = refused(ErrorCode::Unsupported);
    let fake = fake.with(Faults { refusals_after_list: refusals, ..Faults::default() });
    let done = run(&fake, &["prefetch", "dfs://b/"]).failed(1, &["not this one"]);
    assert!(!done.stderr.contains("of 40 objects") && fake.worked_on().len() < 39, "{}", done.stderr);
}

/// A peer that knows version 1 only answers one hello.
fn old_peer() -> (String, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let serve = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut opening = [0; 1024];
        let read = stream.read(&mut opening).expect("a hello");
        assert_eq!(opening[4..6], [1, VERSION_MAX], "our client speaks all versions: {:?}", &opening[..read]);
        let ack = HelloAck {
            version: 1,
            node: "old".into(),
            agent: "dfstore-peer/0.1.0".into(),
            shards: 1,
            shard: 0,
            piece_bytes: PIECE_BYTES,
            piece_bytes_max: PIECE_BYTES,
            requests_max: 16,
            credits: 2,
        };
        let mut out = BytesMut::new();
        Message::from(ack).encode(RequestId::CONNECTION, &mut out).expect("within bounds");
        stream.write_all(&out).expect("sent");
        assert_eq!(stream.read(&mut opening).unwrap_or(0), 0, "nothing that an old peer does not know is sent");
    });
    (endpoint, serve)
}

#[test]
fn a_peer_of_version_1_is_told_apart() {
    for (args, name, version) in [
        (["cluster", "status"].as_slice(), "NODES", 2),
        (&["stat", "--where", "dfs://b/k"], "WHERE", 2),
        (&["prefetch", "dfs://b/k"], "PREFETCH", 2),
        (&["evict", "dfs://b/k"], "EVICT", 2),
        (&["writeback", "ls"], "QUEUE", 3),
        (&["writeback", "retry", "dfs://b/k"], "STEER", 3),
        (&["scrub"], "SCRUB", 3),
    ] {
        let (endpoint, serve) = old_peer();
        let output = dfstore().args(["-e", &endpoint]).args(args).output().expect("dfstore starts");
        let needs = format!("it speaks version 1 of the protocol, and {name} needs version {version}");
        Finished::of(output).failed(1, &[&endpoint, "is too old", &needs, "Hint: upgrade"]);
        serve.join().expect("the client asks nothing");
    }
}
