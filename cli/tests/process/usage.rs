//! Command lines that cannot be meant, and peers that are not there.

use std::io::{Read, Write};
use std::net::TcpListener;

use dfstore_proto::limits::VERSION_MAX;

use crate::fake::Fake;
use crate::run::{Finished, Folder, dfstore, run};

fn bare(args: &[&str]) -> Finished {
    Finished::of(dfstore().args(args).output().expect("dfstore starts"))
}

#[test]
fn usage_errors_exit_with_2_and_name_the_nearest() {
    bare(&["cp", "a", "dfs://b/k", "--fliter", "x"]).failed(2, &["--filter"]);
    bare(&["stats", "dfs://b/k"]).failed(2, &["stat"]);
    bare(&["cp", "a"]).failed(2, &["TARGET"]);
    bare(&[]).failed(2, &["Usage"]);
    bare(&["cp", "a", "dfs://b/k", "--mode", "3"]).failed(2, &["invalid Mode"]);
    bare(&["cp", "a", "dfs://b/k", "--max-replicas", "101"]).failed(2, &["invalid MaxReplicas"]);
}

#[test]
fn copies_that_make_no_sense_exit_with_2() {
    bare(&["cp", "a", "b"])
        .failed(2, &["Error: source and target url cannot both be local file path: one must be dfs://BUCKET/KEY"]);
    bare(&["cp", "-", "-"]).failed(2, &["dfs:// url"]);
    bare(&["cp", "a", "dfs://b"]).failed(2, &["'dfs://b' names no object"]);
    bare(&["cp", "a", "dfs:///k"]).failed(2, &["names no bucket"]);
    bare(&["cp", "dfs://b/k", "dfs://b/k"]).failed(2, &["same object"]);
    bare(&["cp", "a", "dfs://b/k", "--ack", "peers:0"]).failed(2, &["peers:K"]);
    bare(&["cp", "dfs://b/k", "file", "--wait", "backend"]).failed(2, &["the target must be a dfs:// url"]);
    bare(&["cp", "a", "dfs://b/k", "--wait", "backend", "-m", "2"]).failed(2, &["the backend never gets it"]);
    bare(&["writeback"]).failed(2, &["retry"]);
    bare(&["writeback", "drop"]).failed(2, &["<TARGET>"]);
    bare(&["rm", "b/k"]).failed(2, &["invalid url, e.g. dfs://bucket_name/object_key"]);
    bare(&["rm", "dfs://b/%zz"]).failed(2, &["%25"]);
    bare(&["rm", "dfs://b/k", "-e", ""]).failed(2, &["parameter endpoint, and it is empty", "DFSTORE_ENDPOINT"]);
    bare(&["rm", "dfs://b/k", "-e", "ftp://h"]).failed(2, &["invalid endpoint"]);
}

#[test]
fn help_version_and_completion_exit_with_0() {
    assert!(bare(&["--help"]).done().text().contains("completion"));
    assert!(bare(&["help", "cp"]).done().text().contains("--max-replicas"));
    let version = bare(&["version"]).done().text();
    assert_eq!(version, format!("dfstore {}\nprotocol {VERSION_MAX}\n", env!("CARGO_PKG_VERSION")));
    for flag in ["--version", "-V"] {
        assert_eq!(bare(&[flag]).done().text(), version);
    }
    assert!(bare(&["version", "--json"]).done().text().contains(&format!("\"protocol\":{VERSION_MAX}")));
    assert!(bare(&["help", "cluster"]).done().text().contains("status"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(bare(&["completion", shell]).done().text().contains("dfstore"), "{shell}");
    }
}

#[test]
fn endpoint_stands_anywhere_and_beats_the_environment() {
    let fake = Fake::start();
    fake.put("b", "k", b"x");
    let endpoint = fake.endpoint();
    let bare_endpoint = endpoint.trim_start_matches("http://").to_string();
    for args in [
        ["-e", &endpoint, "stat", "dfs://b/k"],
        ["stat", "--endpoint", &endpoint, "dfs://b/k"],
        ["stat", "dfs://b/k", "-e", &bare_endpoint],
        ["stat", "dfs://b/k", "-e", &format!("tcp://{bare_endpoint}")],
    ] {
        let output = dfstore().env("DFSTORE_ENDPOINT", "http://127.0.0.1:1").args(args).output();
        Finished::of(output.expect("dfstore starts")).done();
    }
    run(&fake, &["stat", "dfs://b/k"]).done();
}

#[test]
fn an_absent_peer_is_named_with_what_to_do() {
    let free = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let endpoint = format!("http://{free}");
    let folder = Folder::new();
    let target = folder.file("x").display().to_string();
    for args in [["stat", "dfs://b/k", "-e", &endpoint].as_slice(), &["cp", "dfs://b/k", &target, "-e", &endpoint]] {
        bare(args).failed(1, &["cannot connect", &endpoint, "Hint: start a peer"]);
    }
    assert!(folder.names().is_empty());
}

#[test]
fn a_server_of_another_protocol_is_told_apart() {
    for answer in ["HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", "SSH-2.0-x\r\n", ""] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let _ = stream.read(&mut [0; 256]);
            let _ = stream.write_all(answer.as_bytes());
        });
        bare(&["stat", "dfs://b/k", "-e", &endpoint]).failed(1, &["does not speak the native protocol", &endpoint]);
        server.join().expect("no panic");
    }
}
