//! The guard alone, and beside hyper on the same bytes.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use proptest::prelude::*;

use super::*;
use crate::rt::shard::block_on;

/// Feeds `bytes` in pieces of `step` bytes.
fn fed(bytes: &[u8], step: usize) -> (Expecting, Verdict) {
    let (mut guard, verdict) = HeadGuard::new();
    let mut expecting = Expecting::Request;
    for part in bytes.chunks(step) {
        expecting = guard.inspect(part);
    }
    (expecting, verdict)
}

#[track_caller]
fn check(bytes: &str, expecting: Expecting, refused: Option<u64>) {
    for step in [1, 2, 3, 7, bytes.len()] {
        let (found, verdict) = fed(bytes.as_bytes(), step);
        assert_eq!(found, expecting, "after {bytes:?} in steps of {step}");
        let first = (0..10).find(|request| verdict.on(*request).is_some());
        assert_eq!(first, refused, "refusal in {bytes:?} in steps of {step}");
    }
}

#[test]
fn follows_the_framing_of_kept_alive_requests() {
    use Expecting::{Body, Head, Request};
    check("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Request, None);
    check("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n", Head, None);
    check("G", Head, None);
    check("PUT / HTTP/1.1\r\ncontent-length: 5\r\n\r\nab", Body, None);
    check("PUT / HTTP/1.1\r\ncontent-length: 5\r\n\r\nab\ncdGET / HTTP/1.1\r\n\r\n", Request, None);
    check("PUT / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", Request, None);
    let chunked = "PUT / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n3;x=y\r\n\n\n\n\r\n10 \r\n0123456789abcdef\r\n";
    check(chunked, Body, None);
    check(&format!("{chunked}0\r\nA: b\r\n\r\nGET / HT"), Head, None);
    check(&format!("{chunked}0\r\n\r\n"), Request, None);
}

#[test]
fn refuses_what_two_readers_could_understand_differently() {
    let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for (heads, bad) in [
        ("POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", 0),
        ("POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 0),
        ("POST / HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\n", 0),
        ("POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\n", 0),
        ("POST / HTTP/1.1\r\nContent-Length: \r\n\r\n", 0),
        ("POST / HTTP/1.1\r\nContent-Length : 5\r\ncontent-length: 5\r\n\r\n", 0),
        ("POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 0),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", 0),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 0),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 0),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n", 0),
        ("GET / HTTP/1.1\nHost: a\r\n\r\n", 0),
        ("GET / HTTP/1.1\r\nHost: a\n\r\n", 0),
        ("GET / HTTP/1.1\r\nHost: a\r\n\n", 0),
        ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 0),
    ] {
        check(heads, Expecting::Body, Some(bad));
        check(&format!("{get}{heads}{get}"), Expecting::Body, Some(bad + 1));
    }
}

#[test]
fn a_length_beyond_the_kept_part_of_a_line_is_refused() {
    let padded = format!("POST / HTTP/1.1\r\nContent-Length:{}7\r\n\r\n", " ".repeat(200));
    check(&padded, Expecting::Body, Some(0));
    let zeros = format!("POST / HTTP/1.1\r\nContent-Length: {}7\r\n\r\n", "0".repeat(200));
    check(&zeros, Expecting::Body, Some(0));
}

/// A client that sends fixed bytes, some at a time, and reads nothing.
struct Script {
    bytes: Bytes,
    step: usize,
    guard: HeadGuard,
}

impl Read for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut target: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        let count = self.step.min(self.bytes.len()).min(target.remaining());
        let part = self.bytes.split_to(count);
        self.guard.inspect(&part);
        target.put_slice(&part);
        Poll::Ready(Ok(()))
    }
}

impl Write for Script {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What hyper hands to a service that refuses as ours does: for each request, whether it was refused.
fn served(bytes: &str, step: usize) -> (Vec<bool>, Option<u64>) {
    let (guard, verdict) = HeadGuard::new();
    let calls = Rc::new(std::cell::RefCell::new(Vec::new()));
    let (seen, found) = (calls.clone(), verdict.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let number = seen.borrow().len() as u64;
        let refused = verdict.on(number).is_some();
        seen.borrow_mut().push(refused);
        async move {
            let mut answer = Response::new(Full::new(Bytes::new()));
            if refused {
                answer.headers_mut().insert("connection", http::HeaderValue::from_static("close"));
            } else {
                let _ = request.into_body().collect().await;
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let script = Script { bytes: Bytes::from(bytes.to_owned()), step, guard };
    let connection = http1::Builder::new().half_close(true).serve_connection(script, service);
    let _ = block_on(connection).expect("a runtime");
    let refused = found.0.get().map(|refused| refused.request);
    (calls.take(), refused)
}

/// Pieces that make no request by themselves.
const SCRAPS: [&str; 14] = [
    "GET / HTTP/1.1\r\n",
    "Content-Length: 3\r\n",
    "Content-Length:03\r\n",
    "Transfer-Encoding: chunked\r\n",
    "transfer-encoding:\tCHUNKED \r\n",
    "X: y\r\n",
    "\r\n",
    "\n",
    "abc",
    "3\r\nabc\r\n",
    "0\r\n\r\n",
    "0\r\nT: x\r\n\r\n",
    "GET / HTTP/1.1\n\n",
    " ",
];
/// Bodies that look like something else to whoever loses the framing.
const BODIES: [&str; 5] = ["", "abc", "0\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "\nContent-Length: 9\n\n"];
const HEADERS: [&str; 4] = ["", "X:\r\n", "Host: a\r\n", "X-Content-Length: 7\r\nY: Transfer-Encoding: chunked\r\n"];

/// A request that nobody can misunderstand.
fn request() -> impl Strategy<Value = String> {
    let body = proptest::sample::select(BODIES.to_vec());
    let chunks = proptest::collection::vec((body.clone(), proptest::sample::select(vec!["", ";e=f", " ;x"])), 0..4);
    let headers = || proptest::sample::select(HEADERS.to_vec());
    let trailer = proptest::sample::select(vec!["", "T: x\r\n"]);
    prop_oneof![
        headers().prop_map(|headers| format!("GET / HTTP/1.1\r\n{headers}\r\n")),
        (headers(), body, headers()).prop_map(|(before, body, after)| {
            format!("PUT / HTTP/1.1\r\n{before}Content-Length: {}\r\n{after}\r\n{body}", body.len())
        }),
        (headers(), chunks, trailer).prop_map(|(headers, chunks, trailer)| {
            let mut text = format!("PUT / HTTP/1.1\r\n{headers}Transfer-Encoding: chunked\r\n\r\n");
            for (chunk, extension) in chunks.iter().filter(|(chunk, _)| !chunk.is_empty()) {
                text.push_str(&format!("{:x}{extension}\r\n{chunk}\r\n", chunk.len()));
            }
            text + &format!("0\r\n{trailer}\r\n")
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_clear_request_is_served_and_none_refused(
        requests in proptest::collection::vec(request(), 1..6),
        step in 1_usize..60,
    ) {
        let (calls, refused) = served(&requests.concat(), step);
        prop_assert_eq!(refused, None);
        prop_assert_eq!(calls, vec![false; requests.len()]);
        let (mut guard, _) = HeadGuard::new();
        prop_assert_eq!(guard.inspect(requests.concat().as_bytes()), Expecting::Request);
        prop_assert_eq!(guard.heads, requests.len() as u64);
    }

    #[test]
    fn hyper_serves_nothing_beyond_what_the_guard_understood(
        parts in proptest::collection::vec(
            prop_oneof![2 => request(), 1 => proptest::sample::select(SCRAPS.to_vec()).prop_map(String::from)],
            1..8,
        ),
        step in 1_usize..60,
    ) {
        let bytes = parts.concat();
        let (calls, refused) = served(&bytes, step);
        let (mut guard, _) = HeadGuard::new();
        guard.inspect(bytes.as_bytes());
        prop_assert!(calls.len() as u64 <= guard.heads, "hyper found more requests in {bytes:?}: {calls:?}");
        if let Some(refused) = refused {
            let refused = usize::try_from(refused).expect("few requests");
            prop_assert!(calls.len() <= refused + 1, "served after a refusal: {bytes:?}: {calls:?}");
            prop_assert!(calls.get(refused).is_none_or(|refused| *refused), "not refused: {bytes:?}: {calls:?}");
        }
        let before = &calls[..calls.len().saturating_sub(1)];
        prop_assert!(before.iter().all(|refused| !refused), "refused too early: {bytes:?}: {calls:?}");
    }
}
