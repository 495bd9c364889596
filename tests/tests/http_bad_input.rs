//! Requests that no well-behaved client sends: each gets the right status, nothing of them is stored, and the peer's
//! memory does not grow.

use anyhow::{Context, Result, ensure};
use dfstore_tests::bucket::Bucket;
use dfstore_tests::eventually;
use dfstore_tests::http::Connection;
use dfstore_tests::peer::Peer;
use dfstore_tests::s3s_server::S3sServer;
use std::time::Duration;

/// No answer at all: the connection is closed.
const CLOSED: u16 = 0;
const BOUNDARY: &str = "------------------------d74496d66958873e";

/// One request, and the status it deserves.
struct Case {
    name: &'static str,
    request: Vec<u8>,
    status: &'static [u16],
}

fn case(name: &'static str, request: impl Into<Vec<u8>>, status: &'static [u16]) -> Case {
    Case { name, request: request.into(), status }
}

/// A request line and headers; `Host` is added.
fn head(line: &str, headers: &[&str]) -> String {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    format!("{line} HTTP/1.1\r\nHost: peer\r\n{headers}\r\n")
}

/// GET of the object that exists, with one header.
fn get_with(header: &str) -> String {
    head("GET /buckets/bad/objects/present", &[header])
}

/// PUT of an object that must not come into being.
fn put_with(headers: &[&str], body: &str) -> String {
    head("PUT /buckets/bad/objects/absent?mode=2", headers) + body
}

/// PUT of a form with exactly this content.
fn form(content: &str) -> String {
    let content_type = format!("Content-Type: multipart/form-data; boundary={BOUNDARY}");
    put_with(&[&content_type, &format!("Content-Length: {}", content.len())], content)
}

fn field(name: &str, value: &str) -> String {
    format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
}

fn file(content: &str) -> String {
    format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\
         Content-Type: text/plain\r\n\r\n{content}\r\n"
    )
}

fn end() -> String {
    format!("--{BOUNDARY}--\r\n")
}

fn ranges() -> Vec<Case> {
    vec![
        case("empty range", get_with("Range:"), &[200]),
        case("range after the end", get_with("Range: bytes=10-"), &[416]),
        case("reversed range", get_with("Range: bytes=5-3"), &[416]),
        case("range of letters", get_with("Range: bytes=a-b"), &[416]),
        case("two ranges", get_with("Range: bytes=0-1,3-4"), &[416]),
        case("two range lines", get_with("Range: bytes=0-1\r\nRange: bytes=3-4"), &[416]),
        case("no range", get_with("Range: bytes="), &[416]),
        case("empty suffix", get_with("Range: bytes=-0"), &[416]),
        case("other unit", get_with("Range: items=0-1"), &[416]),
        case("range beyond 64 bits", get_with("Range: bytes=99999999999999999999999-"), &[416]),
    ]
}

fn lengths() -> Vec<Case> {
    vec![
        case("equal lengths", put_with(&["Content-Length: 5", "Content-Length: 5"], "hello"), &[400]),
        case("conflicting lengths", put_with(&["Content-Length: 5", "Content-Length: 6"], "hello!"), &[400]),
        case("list of lengths", put_with(&["Content-Length: 5, 5"], "hello"), &[400]),
        case("negative length", put_with(&["Content-Length: -5"], "hello"), &[400]),
        case("signed length", put_with(&["Content-Length: +5"], "hello"), &[400]),
        case("hexadecimal length", put_with(&["Content-Length: 0x5"], "hello"), &[400]),
        case("length beyond 64 bits", put_with(&["Content-Length: 99999999999999999999"], "hello"), &[400]),
        case("largest length", put_with(&["Content-Length: 18446744073709551615"], "hello"), &[413, 431]),
        case("length of more than an object", put_with(&["Content-Length: 9000000000000000000"], "hello"), &[413]),
        case("length then chunks", put_with(&["Content-Length: 5", "Transfer-Encoding: chunked"], "0\r\n\r\n"), &[400]),
        case("chunks then length", put_with(&["Transfer-Encoding: chunked", "Content-Length: 5"], "0\r\n\r\n"), &[400]),
        case("chunked twice", put_with(&["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], ""), &[400]),
        case("unknown encoding", put_with(&["Transfer-Encoding: gzip"], "hello"), &[400]),
        case("encoding within chunks", put_with(&["Transfer-Encoding: gzip, chunked"], "0\r\n\r\n"), &[400]),
        case("chunk size of letters", put_with(&["Transfer-Encoding: chunked"], "zz\r\nhello\r\n0\r\n\r\n"), &[400]),
        case("endless chunk size", put_with(&["Transfer-Encoding: chunked"], "ffffffffffffffffff\r\n"), &[400]),
        case("chunks cut", put_with(&["Transfer-Encoding: chunked"], "5\r\nhel"), &[400]),
        case("body cut", put_with(&["Content-Length: 500"], "hello"), &[400]),
        case(
            "chunks in HTTP/1.0",
            "PUT /buckets/bad/objects/absent HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            &[400],
        ),
    ]
}

fn heads() -> Vec<Case> {
    let many: Vec<String> = (0..10_000).map(|number| format!("X-{number}: y")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let get = "GET /buckets/bad/objects/present HTTP/1.1";
    vec![
        case("bare line feeds", format!("{get}\nHost: peer\n\n"), &[400]),
        case("one bare line feed", format!("{get}\r\nHost: peer\nX: y\r\n\r\n"), &[400]),
        case("folded header", format!("{get}\r\nHost: peer\r\nX: y\r\n z\r\n\r\n"), &[400]),
        case("space before the colon", format!("{get}\r\nHost: peer\r\nX : y\r\n\r\n"), &[400]),
        case("control character in a header", format!("{get}\r\nHost: peer\r\nX: a\x01b\r\n\r\n"), &[400]),
        case("no host", format!("{get}\r\n\r\n"), &[400]),
        case("two hosts", format!("{get}\r\nHost: a\r\nHost: b\r\n\r\n"), &[400]),
        case("10,000 headers", head("GET /healthy", &many), &[431]),
        case("header of 100 KiB", head("GET /healthy", &[&format!("X: {}", "y".repeat(100 << 10))]), &[431]),
        case("key of 64 KiB", head(&format!("GET /buckets/bad/objects/{}", "k".repeat(64 << 10)), &[]), &[414, 431]),
        case("not HTTP", "hello\r\n\r\n", &[400]),
        case("method with a space", "GE T / HTTP/1.1\r\nHost: peer\r\n\r\n", &[400]),
        case("method of symbols", "G@T / HTTP/1.1\r\nHost: peer\r\n\r\n", &[400]),
        case("version 3", "GET / HTTP/3.0\r\nHost: peer\r\n\r\n", &[400]),
        case("HTTP/2 at once", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[400, CLOSED]),
        case("NUL in the path", "GET /buckets/bad/objects/a\0b HTTP/1.1\r\nHost: peer\r\n\r\n", &[400]),
    ]
}

fn paths() -> Vec<Case> {
    let longer = format!("GET /buckets/bad/objects/{}", "k".repeat(1025));
    vec![
        case("unfinished percent-encoding", head("GET /buckets/bad/objects/a%2", &[]), &[422]),
        case("wrong percent-encoding", head("GET /buckets/bad/objects/a%zz", &[]), &[422]),
        case("key that is not UTF-8", head("GET /buckets/bad/objects/%ff%fe", &[]), &[422]),
        case("key of 1025 bytes", head(&longer, &[]), &[422]),
        case("empty key", head("GET /buckets/bad/objects/", &[]), &[422]),
        case("empty bucket", head("GET /buckets//objects/k", &[]), &[422]),
        case("no such route", head("GET /nothing", &[]), &[404]),
        case("no such method", head("PATCH /buckets/bad/objects/present", &[]), &[404]),
        case("limit of letters", head("GET /buckets/bad/metadatas?limit=x", &[]), &[422]),
        case("negative limit", head("GET /buckets/bad/metadatas?limit=-1", &[]), &[422]),
    ]
}

fn forms() -> Vec<Case> {
    let large = "x".repeat(300 << 10);
    let no_name = format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nhello\r\n");
    let no_boundary = ["Content-Type: multipart/form-data", "Content-Length: 5"];
    let urlencoded = ["Content-Type: application/x-www-form-urlencoded", "Content-Length: 6"];
    let copy = ["X-Dragonfly-Object-Operation: copy", urlencoded[0], "Content-Length: 0"];
    let copy_missing = [copy[0], urlencoded[0], "Content-Length: 24"];
    vec![
        case("form without boundary", put_with(&no_boundary, "hello"), &[422]),
        case("form without file", form(&(field("mode", "2") + &end())), &[422]),
        case("form with two files", form(&(field("mode", "2") + &file("one") + &file("two") + &end())), &[422]),
        case("file without filename", form(&(no_name + &end())), &[422]),
        case("form cut in the file", form(&(field("mode", "2") + &file("hello"))), &[400]),
        case("form cut in a header", form(&format!("--{BOUNDARY}\r\nContent-Dispo")), &[400]),
        case("form of another boundary", form(&file("x").replace(BOUNDARY, "other")), &[400]),
        case("empty form", form(&end()), &[422]),
        case("unknown mode", form(&(field("mode", "3") + &file("x") + &end())), &[422]),
        case("mode of letters", form(&(field("mode", "abc") + &file("x") + &end())), &[422]),
        case("unknown mode after the file", form(&(file("x") + &field("mode", "-1") + &end())), &[422]),
        case("too many replicas", form(&(field("maxReplicas", "101") + &file("x") + &end())), &[422]),
        case("field of 300 KiB", form(&(field("filter", &large) + &file("x") + &end())), &[413]),
        case("preamble of 300 KiB", form(&(large.clone() + &file("x") + &end())), &[413]),
        case("part header of 300 KiB", form(&format!("--{BOUNDARY}\r\nX: {large}\r\n\r\nx")), &[413]),
        case("form that is not multipart", put_with(&urlencoded, "mode=2"), &[422]),
        case("no body", put_with(&[], ""), &[422]),
        case("replicas on other peers", put_with(&["X-Dfs-Ack: peers:2", "Content-Length: 1"], "x"), &[422]),
        case("copy of nothing", put_with(&copy, ""), &[422]),
        case("copy of what is missing", put_with(&copy_missing, "source_object_key=nobody"), &[404]),
    ]
}

/// Sends a request, says that nothing more comes, and gives the status of the answer.
fn status_of(peer: &Peer, request: &[u8]) -> Result<u16> {
    let mut connection = Connection::open(peer.address())?;
    // A server that refuses early may close while we send: what it answered counts.
    let _ = connection.send(request);
    let _ = connection.finish_sending();
    match connection.response(false) {
        Ok(response) => Ok(response.status()),
        Err(_) if connection.is_closed() => Ok(CLOSED),
        Err(error) => Err(error),
    }
}

fn run_all(peer: &Peer, cases: &[Case]) -> Result<()> {
    let mut wrong = Vec::new();
    for case in cases {
        let status = status_of(peer, &case.request).context(case.name)?;
        if !case.status.contains(&status) {
            wrong.push(format!("{}: {status}, not {:?}", case.name, case.status));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn start() -> Result<(S3sServer, Bucket, Peer)> {
    let server = S3sServer::start()?;
    let bucket = server.bucket("bad")?;
    let peer = Peer::start(&bucket)?;
    Ok((server, bucket, peer))
}

#[test]
fn bad_requests_get_the_right_status_and_leave_nothing() -> Result<()> {
    let (_server, bucket, mut peer) = start()?;
    expect_stored(&peer, "present", b"0123456789")?;
    let cases: Vec<Case> = [ranges(), lengths(), heads(), paths(), forms()].into_iter().flatten().collect();
    ensure!(cases.len() >= 40);
    run_all(&peer, &cases)?;

    // The piece arena is touched on first use; an upload larger than all of it leaves no part untouched.
    expect_stored(&peer, "large", &vec![b'x'; 160 << 20])?;
    let rss_bytes = peer.process().rss_bytes()?;
    for _ in 0..4 {
        run_all(&peer, &cases)?;
    }
    let grown_bytes = peer.process().rss_bytes()?.saturating_sub(rss_bytes);
    ensure!(grown_bytes < 8 << 20, "memory grew by {grown_bytes} bytes over {} bad requests", 4 * cases.len());

    ensure!(peer.get("bad", "absent")?.status() == 404);
    ensure!(bucket.keys()?.is_empty(), "something reached the bucket: {:?}", bucket.keys()?);
    let whole = peer.get("bad", "present")?;
    ensure!(whole.body == b"0123456789", "what was there before is unharmed");
    at_rest(&peer)
}

fn expect_stored(peer: &Peer, key: &str, bytes: &[u8]) -> Result<()> {
    let stored = peer.put("bad", key, 2, bytes)?;
    ensure!(stored.status() == 200, "{} {}", stored.status(), stored.text());
    Ok(())
}

/// No buffer is held and no request counts as in flight.
fn at_rest(peer: &Peer) -> Result<()> {
    eventually("buffers are given back", Duration::from_secs(10), || {
        let samples = peer.metrics().ok()?;
        let held = samples.sum("dfstore_arena_held_bytes", &[]);
        let in_flight = samples.sum("dfstore_requests_in_flight", &[("face", "http")]);
        (held == 0.0 && in_flight == 0.0).then_some(())
    })
}

#[test]
fn a_hidden_second_request_is_refused_on_a_kept_alive_connection() -> Result<()> {
    let (_server, _bucket, peer) = start()?;
    let healthy = head("GET /healthy", &[]);
    let smuggled = put_with(&["Content-Length: 5", "Transfer-Encoding: chunked"], "0\r\n\r\nGET /metadata HTTP/1.1");
    let mut connection = Connection::open(peer.address())?;
    connection.send(format!("{healthy}{healthy}{smuggled}\r\nHost: peer\r\n\r\n{healthy}").as_bytes())?;
    for expected in [200, 200, 400] {
        let response = connection.response(false)?;
        ensure!(response.status() == expected, "{} instead of {expected}: {}", response.status(), response.text());
    }
    ensure!(connection.is_closed(), "nothing after the ambiguous request is answered");
    Ok(())
}

#[test]
fn requests_that_come_byte_by_byte_are_served() -> Result<()> {
    let (_server, _bucket, peer) = start()?;
    let request = put_with(&["Content-Length: 5"], "hello") + &head("GET /buckets/bad/objects/absent", &[]);
    let mut connection = Connection::open(peer.address())?;
    for byte in request.as_bytes() {
        connection.send(&[*byte])?;
    }
    ensure!(connection.response(false)?.status() == 200);
    ensure!(connection.response(false)?.body == b"hello");
    Ok(())
}

#[test]
fn a_head_that_never_ends_is_cut() -> Result<()> {
    let (_server, _bucket, peer) = start()?;
    let second = head("GET /healthy", &[]) + "GET /he";
    let cut = |opening: &str, answers: usize| -> Result<()> {
        let mut connection = Connection::open(peer.address())?;
        connection.send(opening.as_bytes())?;
        for _ in 0..answers {
            ensure!(connection.response(false)?.status() == 200);
        }
        ensure!(connection.is_closed(), "still open after {opening:?}");
        Ok(())
    };
    let openings = [("", 0), ("G", 0), ("GET /healthy HTTP/1.1\r\nHost: pe", 0), ("\r\n\r\n", 0), (&second, 1)];
    std::thread::scope(|scope| {
        let waiting = openings.map(|(opening, answers)| scope.spawn(move || cut(opening, answers)));
        waiting.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })
}

#[test]
fn a_client_that_leaves_in_mid_upload_leaves_nothing() -> Result<()> {
    let (_server, bucket, peer) = start()?;
    let part = vec![b'x'; 9 << 20];
    for _ in 0..3 {
        let mut connection = Connection::open(peer.address())?;
        connection.send_head("PUT", "/buckets/bad/objects/absent", &[], 64 << 20)?;
        connection.send(&part)?;
        drop(connection);
    }
    at_rest(&peer)?;
    ensure!(peer.get("bad", "absent")?.status() == 404);
    ensure!(bucket.keys()?.is_empty());
    Ok(())
}
