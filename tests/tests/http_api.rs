//! The object API as the Go client, JuiceFS and plain HTTP clients use it: every route, its statuses, headers and
//! bodies, in front of a real S3 server.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dfstore_tests::bucket::Bucket;
use dfstore_tests::data::{PIECE, Payload};
use dfstore_tests::http::{Connection, Response, multipart};
use dfstore_tests::peer::Peer;
use dfstore_tests::{eventually, seaweed};
use serde_json::Value;

/// One piece and a bit: two pieces.
const TWO_PIECES: u64 = PIECE + 12_345;

fn start() -> Result<(Bucket, Peer)> {
    let bucket = seaweed::bucket()?;
    let peer = Peer::start(&bucket)?;
    Ok((bucket, peer))
}

fn path(bucket: &Bucket, key: &str) -> String {
    Peer::object_path(&bucket.name, key)
}

#[track_caller]
fn expect(response: &Response, status: u16) {
    assert_eq!(response.status(), status, "{:?} {}", response.head.headers, response.text());
}

/// What an error says, in the shape of the original.
fn error_of(response: &Response) -> Result<String> {
    ensure!(response.header("content-type") == Some("application/json; charset=utf-8"));
    let body: Value = serde_json::from_slice(&response.body)?;
    ensure!(body.as_object().is_some_and(|fields| fields.len() == 1));
    body["errors"].as_str().map(str::to_owned).context("`errors` is a string")
}

#[test]
fn routes_without_an_object() -> Result<()> {
    let (bucket, peer) = start()?;
    let mut connection = Connection::open(peer.address())?;
    let mut get = |path: &str| connection.request("GET", path, &[], b"");

    let healthy = get("/healthy")?;
    expect(&healthy, 200);
    assert_eq!(healthy.text(), "\"OK\"");
    assert_eq!(healthy.header("content-type"), Some("application/json; charset=utf-8"));
    let ready = get("/readyz")?;
    expect(&ready, 200);
    assert_eq!(ready.text(), "ready\n");

    let metadata = get("/metadata")?;
    expect(&metadata, 200);
    let metadata: Value = serde_json::from_slice(&metadata.body)?;
    assert_eq!(metadata["Name"], "s3");
    assert_eq!(metadata["Region"], "us-east-1");
    assert_eq!(metadata["Endpoint"], bucket.endpoint.url.as_str());

    for unknown in ["/", "/nothing", "/buckets", "/healthyx", &format!("/buckets/{}", bucket.name)] {
        let answer = get(unknown)?;
        expect(&answer, 404);
        assert_eq!(answer.text(), "404 page not found", "{unknown}");
        assert_eq!(answer.header("content-type"), Some("text/plain"), "{unknown}");
    }
    expect(&connection.request("POST", "/healthy", &[], b"")?, 404);

    let objects = format!("/buckets/{}/objects", bucket.name);
    let answer = connection.request("GET", &objects, &[], b"")?;
    expect(&answer, 301);
    assert_eq!(answer.header("location"), Some(&*format!("{objects}/")));
    expect(&connection.request("PUT", &objects, &[], b"x")?, 307);
    let answer = connection.request("POST", "/buckets/some/?a=b", &[], b"")?;
    expect(&answer, 307);
    assert_eq!(answer.header("location"), Some("/buckets/some?a=b"));
    Ok(())
}

#[test]
fn counts_requests_under_the_names_of_old_dashboards() -> Result<()> {
    let (bucket, peer) = start()?;
    expect(&peer.put(&bucket.name, "k", 2, b"counted")?, 200);
    expect(&peer.get(&bucket.name, "k")?, 200);
    expect(&peer.get(&bucket.name, "absent")?, 404);
    let scrape = peer.request("GET", "/metrics", &[], b"")?;
    expect(&scrape, 200);
    let samples = dfstore_tests::samples::Samples::parse(&scrape.text())?;
    let original = "dragonfly_dfdaemon_object_storage_requests_total";
    for (method, handler, code) in
        [("PUT", "putObject", "200"), ("GET", "getObject", "200"), ("GET", "getObject", "404")]
    {
        let labels = [("method", method), ("handler", handler), ("code", code), ("url", "/buckets")];
        assert_eq!(samples.sum(original, &labels), 1.0, "{labels:?}");
    }
    assert_eq!(samples.sum("dfstore_served_bytes_total", &[]), 7.0);
    assert_eq!(samples.sum("dfstore_received_bytes_total", &[("face", "http")]), 7.0);
    Ok(())
}

/// The request of the Go client: fields in its order, the file last.
fn put_as_the_go_client(peer: &Peer, bucket: &Bucket, key: &str, mode: &str, bytes: &[u8]) -> Result<Response> {
    let fields = [("mode", mode), ("filter", "Expires&Signature"), ("maxReplicas", "3")];
    let (content_type, body) = multipart(&fields, bytes);
    let headers = [("Content-Type", content_type.as_str()), ("User-Agent", "Go-http-client/1.1")];
    peer.request("PUT", &path(bucket, key), &headers, &body)
}

#[test]
fn what_the_go_client_writes_it_can_read() -> Result<()> {
    let (bucket, peer) = start()?;
    for (mode, length) in [("0", 0), ("0", 1), ("0", TWO_PIECES), ("1", 5000), ("1", TWO_PIECES), ("2", PIECE)] {
        let key = format!("dir/object-{mode}-{length}");
        let payload = Payload::new(7, length);
        let put = put_as_the_go_client(&peer, &bucket, &key, mode, &payload.bytes())?;
        expect(&put, 200);
        assert!(put.body.is_empty());

        let head = peer.request("HEAD", &path(&bucket, &key), &[], b"")?;
        expect(&head, 200);
        assert_eq!(head.header("content-length"), Some(&*length.to_string()), "the client needs it");
        let modified = head.header("x-dragonfly-object-meta-last-modified-time").context("the client parses it")?;
        assert!(modified.ends_with(" GMT") && modified.len() == 29, "{modified}");
        assert_eq!(head.header("last-modified"), Some(modified));
        assert_eq!(head.header("x-dragonfly-object-meta-storage-class"), Some("STANDARD"));
        assert_eq!(head.header("content-type"), Some("application/octet-stream"));
        assert_eq!(head.header("accept-ranges"), Some("bytes"));
        let etag = head.header("etag").context("an entity tag")?;
        assert!(etag.starts_with('"') && etag.ends_with('"'), "{etag}");

        // An empty Range is what JuiceFS sends.
        for headers in [&[][..], &[("Range", "")]] {
            let get = peer.request("GET", &path(&bucket, &key), headers, b"")?;
            expect(&get, 200);
            assert_eq!(get.header("etag"), Some(etag));
            assert_eq!(get.header("last-modified"), Some(modified));
            assert_eq!(get.header("content-type"), Some("application/octet-stream"));
            assert!(get.header("x-dfs-cache").is_some());
            assert!(get.body == payload.bytes(), "{key}: the bytes that were written");
        }
    }
    Ok(())
}

#[test]
fn modes_reach_the_bucket_as_they_say() -> Result<()> {
    let (bucket, peer) = start()?;
    expect(&put_as_the_go_client(&peer, &bucket, "sync", "1", b"sync")?, 200);
    assert_eq!(bucket.get("sync")?.as_deref(), Some(&b"sync"[..]), "acknowledged when the bucket has it");
    expect(&put_as_the_go_client(&peer, &bucket, "ephemeral", "2", b"ephemeral")?, 200);
    expect(&put_as_the_go_client(&peer, &bucket, "async", "", b"async")?, 200);
    let written = || bucket.get("async").ok().flatten();
    assert_eq!(eventually("the write-back", Duration::from_secs(20), written)?, b"async");
    assert_eq!(bucket.get("ephemeral")?, None, "never written back");
    Ok(())
}

#[test]
fn fields_may_follow_the_file() -> Result<()> {
    let (bucket, peer) = start()?;
    let part =
        |disposition: &str, rest: &str| format!("--zz\r\nContent-Disposition: form-data; {disposition}\r\n{rest}\r\n");
    let body = part("name=\"file\"; filename=\"a\"", "Content-Type: text/x-late\r\n\r\nbody\r\n--z-\r\n--z")
        + &part("name=\"maxReplicas\"", "\r\n2")
        + &part("name=\"mode\"", "\r\n1")
        + "--zz--\r\n";
    let headers = [("Content-Type", "multipart/form-data; boundary=\"zz\"")];
    expect(&peer.request("PUT", &path(&bucket, "late"), &headers, body.as_bytes())?, 200);
    assert_eq!(bucket.get("late")?.as_deref(), Some(&b"body\r\n--z-\r\n--z"[..]), "mode 1 counts");
    let head = peer.request("HEAD", &path(&bucket, "late"), &[], b"")?;
    assert_eq!(head.header("content-type"), Some("text/x-late"), "that of the part is kept");
    Ok(())
}

#[test]
fn a_plain_body_is_an_object_too() -> Result<()> {
    let (bucket, peer) = start()?;
    let headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Encoding", "gzip"),
        ("Content-Disposition", "attachment; filename=\"a b\""),
        ("Content-Language", "de"),
        ("X-Dfs-Ack", "local"),
    ];
    let target = path(&bucket, "plain") + "?mode=1&maxReplicas=2&filter=a%26b";
    expect(&peer.request("PUT", &target, &headers, b"not really gzip")?, 200);
    let get = peer.get(&bucket.name, "plain")?;
    expect(&get, 200);
    assert_eq!(get.body, b"not really gzip", "passed through, never decoded");
    for (name, value) in &headers[..4] {
        assert_eq!(get.header(name), Some(*value), "{name}");
    }
    assert_eq!(bucket.head("plain")?.context("mode 1 wrote it")?.content_type, headers[0].1);

    let payload = Payload::new(3, TWO_PIECES);
    let mut connection = Connection::open(peer.address())?;
    let head = format!("PUT {} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", path(&bucket, "chunked"));
    connection.send(head.as_bytes())?;
    for chunk in payload.bytes().chunks(100_000) {
        connection.send(format!("{:x};extension\r\n", chunk.len()).as_bytes())?;
        connection.send(chunk)?;
        connection.send(b"\r\n")?;
    }
    connection.send(b"0\r\nTrailer: x\r\n\r\n")?;
    expect(&connection.response(false)?, 200);
    assert!(peer.get(&bucket.name, "chunked")?.body == payload.bytes());
    Ok(())
}

#[test]
fn a_client_may_ask_before_it_sends_the_body() -> Result<()> {
    let (bucket, peer) = start()?;
    let mut connection = Connection::open(peer.address())?;
    let head = |key: &str, query: &str| {
        let target = path(&bucket, key);
        format!("PUT {target}{query} HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    };
    connection.send(head("expected", "").as_bytes())?;
    // The kit passes over interim answers, and would wait for the final one: the body follows only after this byte.
    connection.send(b"hello")?;
    expect(&connection.response(false)?, 200);
    assert_eq!(peer.get(&bucket.name, "expected")?.body, b"hello");
    let mut connection = Connection::open(peer.address())?;
    connection.send(head("refused", "?mode=9").as_bytes())?;
    expect(&connection.response(false)?, 422);
    Ok(())
}

#[test]
fn ranges_are_partial_content() -> Result<()> {
    let (bucket, peer) = start()?;
    let payload = Payload::new(11, TWO_PIECES);
    bucket.put("remote", &payload.bytes())?;
    expect(&peer.put(&bucket.name, "local", 2, &payload.bytes())?, 200);
    let last = TWO_PIECES - 1;
    for key in ["remote", "local"] {
        for (range, first, end) in [
            ("bytes=0-0", 0, 0),
            ("bytes=2097148-2097158", PIECE - 4, PIECE + 6),
            ("bytes=2097152-", PIECE, last),
            ("bytes=-1", last, last),
            ("bytes=-99999999", 0, last),
            ("bytes=100-99999999", 100, last),
        ] {
            let get = peer.request("GET", &path(&bucket, key), &[("Range", range)], b"")?;
            expect(&get, 206);
            assert_eq!(get.header("content-range"), Some(&*format!("bytes {first}-{end}/{TWO_PIECES}")));
            assert!(get.body == payload.range(first..end + 1), "{key} {range}");
        }
        let beyond = peer.request("GET", &path(&bucket, key), &[("Range", "bytes=5000000-")], b"")?;
        expect(&beyond, 416);
        assert_eq!(beyond.header("content-range"), Some(&*format!("bytes */{TWO_PIECES}")));
        error_of(&beyond)?;
        let head = peer.request("HEAD", &path(&bucket, key), &[("Range", "bytes=0-0")], b"")?;
        expect(&head, 200);
        assert_eq!(head.header("content-length"), Some(&*TWO_PIECES.to_string()));
    }
    Ok(())
}

#[test]
fn conditions_are_heeded() -> Result<()> {
    let (bucket, peer) = start()?;
    bucket.put("k", b"conditional")?;
    let head = peer.request("HEAD", &path(&bucket, "k"), &[], b"")?;
    let etag = head.header("etag").context("an entity tag")?;
    let modified = head.header("last-modified").context("a date")?;
    let (past, other) = ("Mon, 01 Jan 2001 00:00:00 GMT", "\"other\"");
    for (name, value, status) in [
        ("If-None-Match", etag, 304),
        ("If-None-Match", "*", 304),
        ("If-None-Match", other, 200),
        ("If-Match", etag, 200),
        ("If-Match", other, 412),
        ("If-Modified-Since", modified, 304),
        ("If-Modified-Since", past, 200),
        ("If-Unmodified-Since", modified, 200),
        ("If-Unmodified-Since", past, 412),
    ] {
        for method in ["GET", "HEAD"] {
            let answer = peer.request(method, &path(&bucket, "k"), &[(name, value)], b"")?;
            expect(&answer, status);
            if status == 304 {
                assert!(answer.body.is_empty() && answer.header("etag") == Some(etag));
            }
        }
    }
    for (value, status) in [(etag, 206), (other, 200), (modified, 206), (past, 200)] {
        let headers = [("Range", "bytes=0-3"), ("If-Range", value)];
        expect(&peer.request("GET", &path(&bucket, "k"), &headers, b"")?, status);
    }
    Ok(())
}

/// The keys of a listing's entries.
fn keys(listing: &Value) -> Vec<&str> {
    let entries = listing["Metadatas"].as_array().map(Vec::as_slice).unwrap_or_default();
    entries.iter().filter_map(|entry| entry["Key"].as_str()).collect()
}

fn list(peer: &Peer, bucket: &Bucket, query: &str) -> Result<Value> {
    let answer = peer.request("GET", &format!("/buckets/{}/metadatas?{query}", bucket.name), &[], b"")?;
    ensure!(answer.status() == 200, "{} {}", answer.status(), answer.text());
    Ok(serde_json::from_slice(&answer.body)?)
}

fn escaped(text: &str) -> String {
    text.replace('%', "%25").replace(' ', "%20").replace('+', "%2B")
}

#[test]
fn listings_show_what_was_just_written_and_come_in_pages() -> Result<()> {
    let (bucket, peer) = start()?;
    let empty = list(&peer, &bucket, "")?;
    let expected: Value =
        serde_json::from_str(r#"{"CommonPrefixes":[],"Metadatas":[],"IsTruncated":false,"NextMarker":""}"#)?;
    assert_eq!(empty, expected);

    for (key, mode) in [("a", 0), ("b/1", 1), ("b/2", 2), ("c+ d%/x", 0), ("e", 1)] {
        expect(&peer.put(&bucket.name, &escaped(key), mode, key.as_bytes())?, 200);
    }
    bucket.put("f", b"from elsewhere")?;
    let all = list(&peer, &bucket, "limit=0")?;
    assert_eq!(keys(&all), ["a", "b/1", "b/2", "c+ d%/x", "e", "f"]);
    let entry = all["Metadatas"][0].as_object().context("an object")?;
    assert_eq!(entry.len(), 10);
    assert_eq!(entry["ContentLength"], 1);
    let time = entry["LastModifiedTime"].as_str().context("a time")?;
    assert!(time.len() == 20 && time.ends_with('Z'), "{time}");

    let grouped = list(&peer, &bucket, "delimiter=%2F&limit=1000")?;
    assert_eq!(keys(&grouped), ["a", "e", "f"]);
    assert_eq!(grouped["CommonPrefixes"], serde_json::json!(["b/", "c+ d%/"]));
    assert_eq!(keys(&list(&peer, &bucket, "prefix=b%2F")?), ["b/1", "b/2"]);

    // The way of the Go client and of JuiceFS: the last key is the next marker, and a short page is the last.
    let (mut marker, mut found) = (String::new(), Vec::new());
    loop {
        let page = list(&peer, &bucket, &format!("limit=2&marker={}", escaped(&marker)))?;
        let page_keys: Vec<String> = keys(&page).into_iter().map(str::to_owned).collect();
        found.extend(page_keys.iter().cloned());
        assert_eq!(page["IsTruncated"], found.len() < 6, "after {found:?}");
        match page_keys.last() {
            Some(last) if page_keys.len() == 2 => marker.clone_from(last),
            _ => break,
        }
    }
    assert_eq!(found, ["a", "b/1", "b/2", "c+ d%/x", "e", "f"]);
    Ok(())
}

#[test]
fn copies_and_deletes() -> Result<()> {
    let (bucket, peer) = start()?;
    let payload = Payload::new(5, TWO_PIECES);
    expect(&peer.put(&bucket.name, "source/a%20b", 1, &payload.bytes())?, 200);
    let operation = ("X-Dragonfly-Object-Operation", "copy");
    let multipart =
        "--zz\r\nContent-Disposition: form-data; name=\"source_object_key\"\r\n\r\nsource/a b\r\n--zz--\r\n";
    for (target, content_type, body) in [
        ("copy-1", "multipart/form-data; boundary=zz", multipart),
        ("copy-2", "application/x-www-form-urlencoded", "source_object_key=source%2Fa+b"),
    ] {
        let headers = [operation, ("Content-Type", content_type)];
        expect(&peer.request("PUT", &path(&bucket, target), &headers, body.as_bytes())?, 200);
        assert!(peer.get(&bucket.name, target)?.body == payload.bytes(), "{target}");
    }
    let missing = b"source_object_key=nobody";
    let headers = [operation, ("Content-Type", "application/x-www-form-urlencoded")];
    let answer = peer.request("PUT", &path(&bucket, "copy-3"), &headers, missing)?;
    expect(&answer, 404);
    error_of(&answer)?;

    for key in ["copy-1", "copy-1", "never-there"] {
        let answer = peer.delete(&bucket.name, key)?;
        expect(&answer, 200);
        assert!(answer.body.is_empty());
    }
    let gone = peer.get(&bucket.name, "copy-1")?;
    expect(&gone, 404);
    error_of(&gone)?;
    expect(&peer.request("HEAD", &path(&bucket, "copy-1"), &[], b"")?, 404);
    assert_eq!(keys(&list(&peer, &bucket, "")?), ["copy-2", "source/a b"]);
    assert_eq!(bucket.get("copy-1")?, None);
    Ok(())
}

#[test]
fn juicefs_finds_its_way() -> Result<()> {
    let (bucket, peer) = start()?;
    let fresh = bucket.endpoint.bucket(&format!("{}-fresh", bucket.name));
    let first = peer.request("GET", &format!("/buckets/{}/metadatas?limit=1", fresh.name), &[], b"")?;
    assert!(first.status() >= 400, "a bucket that does not exist is an error: {}", first.status());
    expect(&peer.request("POST", &format!("/buckets/{}", fresh.name), &[], b"")?, 200);
    list(&peer, &fresh, "limit=1")?;

    let chunk = Payload::new(9, 100_000);
    let fields = [("mode", "1"), ("filter", "X-Amz-Algorithm&X-Amz-Credential&X-Amz-Date"), ("maxReplicas", "2")];
    let (content_type, body) = multipart(&fields, &chunk.bytes());
    let target = path(&fresh, "fs/chunks/0/0/1_0_100000");
    expect(&peer.request("HEAD", &target, &[], b"")?, 404);
    expect(&peer.request("PUT", &target, &[("Content-Type", &content_type)], &body)?, 200);
    let get = peer.request("GET", &(target.clone() + "?filter=X-Amz-Date"), &[("Range", "bytes=10-19")], b"")?;
    assert!((200..300).contains(&get.status()) && get.body == chunk.range(10..20));
    let page = list(&peer, &fresh, "delimiter=%2F&limit=1000&marker=&prefix=fs%2F")?;
    assert_eq!(page["CommonPrefixes"], serde_json::json!(["fs/chunks/"]));
    expect(&peer.request("DELETE", &target, &[], b"")?, 200);
    expect(&peer.request("HEAD", &target, &[], b"")?, 404);
    Ok(())
}

#[test]
fn awkward_keys_are_kept_byte_for_byte() -> Result<()> {
    let (bucket, peer) = start()?;
    let longest = "k".repeat(1024);
    let utf8 = "%E4%BD%A0".repeat(341);
    let keys = [
        "..",
        ".",
        "../../../../../../tmp/dfstore-escape",
        "a/../b",
        "a/./b",
        "a//b",
        "//a",
        "/",
        "a/b",
        "dir",
        "dir/",
        "dir//",
        "a%2F%2Fc",
        "nul%00nul",
        "back%5Cslash",
        "new%0Aline",
        "plus+plus",
        "space%20space",
        "percent%25",
        "query%3Fquery",
        "hash%23hash",
        "quote%22quote",
        "%252F",
        "objects/objects",
        "%E4%BD%A0%E5%A5%BD",
        "%F0%9F%A6%80",
        "e%CC%81",
        "%C3%A9",
        &longest,
        &utf8,
    ];
    let content = |number: usize| format!("content of key {number}").into_bytes();
    let mut connection = Connection::open(peer.address())?;
    for (number, key) in keys.iter().enumerate() {
        let target = path(&bucket, key) + "?mode=2";
        expect(&connection.request("PUT", &target, &[], &content(number))?, 200);
    }
    for (number, key) in keys.iter().enumerate() {
        let get = connection.request("GET", &path(&bucket, key), &[], b"")?;
        expect(&get, 200);
        assert_eq!(get.body, content(number), "{key}");
    }
    assert!(!std::path::Path::new("/tmp/dfstore-escape").exists());
    let outside: Vec<_> = std::fs::read_dir(peer.data_path().parent().context("a folder")?)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<std::io::Result<_>>()?;
    assert!(outside.len() <= 3, "config, log and data, nothing else: {outside:?}");
    for key in keys {
        expect(&connection.request("DELETE", &path(&bucket, key), &[], b"")?, 200);
        // Of some of these names the bucket says that they are impossible, which is as good.
        let gone = connection.request("GET", &path(&bucket, key), &[], b"")?;
        assert!(matches!(gone.status(), 404 | 422), "{key}: {} {}", gone.status(), gone.text());
    }
    // SeaweedFS takes the deletion of the key `/` for that of the bucket.
    assert!(bucket.keys()?.is_empty(), "the bucket is still there");
    Ok(())
}

#[test]
fn one_connection_carries_many_requests_for_all_shards() -> Result<()> {
    let (bucket, peer) = start()?;
    let mut connection = Connection::open(peer.address())?;
    // Among them bodies that fill a buffer exactly, of each size that buffers have.
    let lengths = (0..20).map(|number| number * 300_000).chain([4096, 65_536, 524_288, PIECE]);
    for (number, length) in lengths.enumerate() {
        let payload = Payload::new(number as u64, length);
        let target = path(&bucket, &format!("key-{number}"));
        expect(&connection.request("PUT", &(target.clone() + "?mode=2"), &[], &payload.bytes())?, 200);
        expect(&connection.request("HEAD", &target, &[], b"")?, 200);
        let get = connection.request("GET", &target, &[], b"")?;
        expect(&get, 200);
        assert!(get.body == payload.bytes(), "object {number}");
    }
    let mut old = Connection::open(peer.address())?;
    old.send(format!("GET {} HTTP/1.0\r\n\r\n", path(&bucket, "key-1")).as_bytes())?;
    let answer = old.response(false)?;
    expect(&answer, 200);
    assert!(answer.body == Payload::new(1, 300_000).bytes());
    assert!(old.is_closed(), "HTTP/1.0 closes after one answer");
    Ok(())
}
