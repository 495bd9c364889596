//! Links against another side that does what a test says: sharing, cancelling, wrong bytes, silence, refusal.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use dfstore_proto::error::{ErrorCode, ErrorReply};
use dfstore_proto::message::{Fetch, Message, Token};
use dfstore_proto::session::Event;
use futures_util::future::{Either, join, join_all, select};

use super::other::{Other, content, fetch_of, listen, node_at, question, serve_on};
use super::{FetchedPiece, LinkError, Links, LinksSetup};
use crate::limits::{LINK_FETCHES_MAX, LINK_HELLO_TIMEOUT, LINK_PAUSE, LINK_SILENCE_MAX, PIECE_BYTES};
use crate::membership::{Members, Node};
use crate::metrics::Metrics;
use crate::rt::arena::{Arena, Holder, SlotMut};
use crate::rt::shard::block_on;
use crate::rt::time::{sleep, timeout};

/// What a test needs on its own side.
struct Here {
    links: Links,
    metrics: Metrics,
    arena: Arena,
}

impl Here {
    fn slot(&self, number: u32) -> SlotMut {
        let mut slot = self.arena.try_take(PIECE_BYTES as usize, Holder::Fetch).expect("free");
        slot.set_len(content(number).len());
        slot
    }

    async fn fetch(&self, node: &Node, number: u32) -> Result<FetchedPiece, LinkError> {
        self.links.fetch(node, fetch_of(number), self.slot(number), None).await
    }

    fn sample(&self, name: &str) -> u64 {
        let text = self.metrics.encode();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map_or(0, |value| value.trim().parse().expect("a number"))
    }

    /// Waits until `happened`.
    async fn eventually(&self, happened: impl Fn(&Here) -> bool) {
        let all = async {
            while !happened(self) {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(20), all).await.expect("it happens");
    }
}

/// Runs a test; at its end every connection is closed and every slot given back.
fn with_links<F: Future<Output = ()>>(test: impl FnOnce(Rc<Here>) -> F) {
    block_on(async {
        let metrics = Metrics::new(1, "");
        let setup = LinksSetup { shard: 0, credential: Token::new("secret"), metrics: metrics.clone() };
        let arena = Arena::new(1 << 30).expect("mapped");
        let here = Rc::new(Here { links: Links::new(setup), metrics, arena });
        test(here.clone()).await;
        here.links.close();
        here.eventually(|here| here.sample("dfstore_peer_links") == 0).await;
        assert_eq!(here.arena.held_bytes(Holder::Fetch), 0);
        assert_eq!(here.links.ask(&node_at(([127, 0, 0, 1], 1).into()), None, question()).await.err(), {
            Some(LinkError::ShuttingDown)
        });
    })
    .expect("io_uring is there");
}

fn fetch_in(message: Message) -> Fetch {
    match message {
        Message::Fetch(fetch) => fetch,
        other => panic!("no FETCH but {other:?}"),
    }
}

#[test]
fn many_fetches_share_one_link_and_never_more_than_its_places() {
    with_links(async |here| {
        let most = Arc::new(AtomicUsize::new(0));
        let seen = most.clone();
        let (node, connections) = listen(move |_, stream| {
            let mut other = Other::accept(stream, 256);
            while let Some((request, message)) = other.request() {
                seen.fetch_max(other.session().requests_in_flight(), Ordering::AcqRel);
                let fetch = fetch_in(message);
                other.serve(request, &fetch, &content(fetch.number));
            }
        });
        let fetched = join_all((0..32).map(|number| here.fetch(&node, number))).await;
        for (number, piece) in (0..).zip(fetched) {
            let piece = piece.expect("fetched");
            assert!(piece.slot[..] == content(number)[..], "piece {number}");
            assert_eq!((piece.head.number, piece.sources[0].bytes), (number, content(number).len() as u64));
        }
        assert_eq!(connections.load(Ordering::Acquire), 1);
        assert!(most.load(Ordering::Acquire) <= LINK_FETCHES_MAX as usize);
        assert_eq!(here.sample("dfstore_peer_links"), 1);
        let sum: usize = (0..32).map(|number| content(number).len()).sum();
        assert_eq!(here.sample("dfstore_peer_fetched_bytes_total"), sum as u64);
    });
}

#[test]
fn asks_beyond_what_the_other_side_takes_wait_for_their_turn() {
    with_links(async |here| {
        // The session of the other side fails the test when there are more than 16 requests in flight.
        let (node, connections) = listen(|_, stream| {
            let mut other = Other::accept(stream, 16);
            let first = Vec::from_iter((0..16).filter_map(|_| other.request()));
            assert_eq!(other.session().requests_in_flight(), 16);
            for (request, _) in first {
                other.answer(request, dfstore_proto::message::Reserved { generation: 1 });
            }
            other.serve_all();
        });
        let answers = join_all((0..300).map(|_| here.links.ask(&node, None, question()))).await;
        assert!(answers.iter().all(|answer| matches!(answer, Ok(Message::Reserved(_)))));
        assert_eq!(connections.load(Ordering::Acquire), 1);
    });
}

#[test]
fn a_fetch_that_is_dropped_midway_is_cancelled_and_the_link_goes_on() {
    with_links(async |here| {
        let (cancelled, cancelled_there) = mpsc::channel();
        let (node, connections) = listen(move |_, stream| {
            let mut other = Other::accept(stream, 256);
            let (request, message) = other.request().expect("FETCH");
            let (fetch, bytes) = (fetch_in(message), content(0));
            other.head(request, &fetch, &bytes);
            let (before, after) = bytes.split_at(bytes.len() / 2);
            other.raw(before);
            assert_eq!(other.next(), Some(Event::Cancelled(request)));
            cancelled.send(()).expect("the test waits");
            other.raw(after);
            other.answer(request, ErrorReply::new(ErrorCode::Cancelled, "cancelled"));
            other.serve_all();
        });
        let progress = Rc::new(Cell::new(0));
        {
            let fetch = pin!(here.links.fetch(&node, fetch_of(0), here.slot(0), Some(progress.clone())));
            let begun = pin!(here.eventually(|_| progress.get() > 0));
            assert!(matches!(select(fetch, begun).await, Either::Right(_)), "half a piece is none");
        }
        let piece = here.fetch(&node, 1).await.expect("fetched");
        assert!(piece.slot[..] == content(1)[..]);
        drop(piece);
        cancelled_there.try_recv().expect("CANCEL has come");
        assert!(progress.get() < content(0).len() as u64);
        assert_eq!(connections.load(Ordering::Acquire), 1);
        here.eventually(|here| here.arena.held_bytes(Holder::Fetch) == 0).await;
    });
}

#[test]
fn pieces_of_cancelled_fetches_are_dropped_and_their_credits_come_back() {
    with_links(async |here| {
        let (came, came_there) = mpsc::channel();
        let (node, _) = listen(move |_, stream| {
            let mut other = Other::accept(stream, 256);
            // Each is served after it was cancelled; without its credit again the ninth piece could not be sent.
            for _ in 0..20 {
                let (request, message) = other.request().expect("FETCH");
                came.send(()).expect("the test waits");
                loop {
                    match other.next() {
                        Some(Event::Cancelled(of)) if of == request => break,
                        Some(Event::Credit(_)) => {}
                        event => panic!("no CANCEL but {event:?}"),
                    }
                }
                let fetch = fetch_in(message);
                other.serve(request, &fetch, &content(fetch.number));
            }
            other.serve_all();
        });
        for number in 0..20 {
            let (fetch, came) =
                (pin!(here.fetch(&node, number)), pin!(here.eventually(|_| came_there.try_recv().is_ok())));
            assert!(matches!(select(fetch, came).await, Either::Right(_)), "it is served after CANCEL only");
        }
        assert!(here.fetch(&node, 20).await.is_ok());
    });
}

#[test]
fn wrong_bytes_and_lengths_fail_their_own_fetch_only() {
    with_links(async |here| {
        let (node, connections) = listen(|_, stream| {
            let mut other = Other::accept(stream, 256);
            let (request, message) = other.request().expect("FETCH");
            other.head(request, &fetch_in(message), &content(0));
            let mut damaged = content(0);
            damaged[600_000] ^= 1;
            other.raw(&damaged);
            other.answer(request, dfstore_proto::message::ReadEnd::default());
            for length in [content(1).len() - 1, content(2).len() + 1] {
                let (request, message) = other.request().expect("FETCH");
                other.serve(request, &fetch_in(message), &vec![0; length]);
            }
            other.serve_all();
        });
        let wrong = here.fetch(&node, 0).await.err().expect("damaged");
        assert!(matches!(wrong, LinkError::WrongBytes { number: 0, expected, actual, .. } if expected != actual));
        for number in [1, 2] {
            let wrong = here.fetch(&node, number).await.err().expect("of another length");
            assert!(matches!(wrong, LinkError::WrongLength { .. }) && !wrong.is_unreachable(), "{wrong}");
        }
        assert!(here.fetch(&node, 3).await.is_ok());
        let mut open = here.slot(4);
        open.set_len(0);
        assert_eq!(here.links.fetch(&node, fetch_of(4), open, None).await.expect("fits").slot.len(), content(4).len());
        assert_eq!(connections.load(Ordering::Acquire), 1);
        assert_eq!(here.sample("dfstore_peer_failures_total{kind=\"wrong_bytes\"}"), 3);
    });
}

#[test]
fn an_answer_may_take_long_when_the_other_side_shows_signs_of_life() {
    with_links(async |here| {
        let (node, connections) = listen(|_, stream| {
            let mut other = Other::accept(stream, 256);
            let (request, _) = other.request().expect("a question");
            // Longer than silence may last, with nothing but answers to PING.
            for _ in 0..4 {
                let Some(Event::Ping(nonce)) = other.next() else { panic!("no PING") };
                other.write(|session, out| session.pong(nonce, out).expect("open"));
            }
            other.answer(request, dfstore_proto::message::Reserved { generation: 1 });
            other.serve_all();
        });
        let began = Instant::now();
        here.links.ask(&node, None, question()).await.expect("answered");
        assert!(began.elapsed() > LINK_SILENCE_MAX);
        assert_eq!(connections.load(Ordering::Acquire), 1);
    });
}

#[test]
fn silence_for_good_fails_all_that_wait_at_once() {
    with_links(async |here| {
        let (node, connections) = listen(|_, stream| {
            let mut other = Other::accept(stream, 4);
            while other.next().is_some() {}
        });
        let began = Instant::now();
        let fetch = async { here.fetch(&node, 0).await.err() };
        let asks = join_all((0..8).map(|_| here.links.ask(&node, None, question())));
        let (fetched, answers) = join(fetch, asks).await;
        let silent = LinkError::Silent { node: node.id.clone() };
        assert_eq!(fetched.as_ref(), Some(&silent));
        assert!(answers.iter().all(|answer| answer.as_ref().err() == Some(&silent)), "{answers:?}");
        assert!(silent.is_unreachable() && silent.is_retryable());
        let waited = began.elapsed();
        assert!(waited > LINK_SILENCE_MAX * 3 / 4 && waited < LINK_SILENCE_MAX * 2, "{waited:?}");
        assert_eq!(connections.load(Ordering::Acquire), 1, "those that waited for room did not try again");
        here.eventually(|here| here.sample("dfstore_peer_failures_total{kind=\"silent\"}") == 1).await;
    });
}

#[test]
fn who_does_not_say_hello_or_is_somebody_else_is_not_reached() {
    with_links(async |here| {
        let (node, _) = listen(|_, stream| {
            let (mut other, _) = Other::greet(stream);
            assert_eq!(other.next(), None);
        });
        let began = Instant::now();
        let error = here.links.ask(&node, None, question()).await.expect_err("no answer to HELLO");
        assert!(matches!(error, LinkError::Silent { .. }) && began.elapsed() >= LINK_HELLO_TIMEOUT);

        let (node, _) = listen(|_, stream| Other::accept(stream, 4).serve_all());
        let stranger = Node { id: "c".into(), ..node.clone() };
        let error = here.links.ask(&stranger, None, question()).await.expect_err("b answers");
        assert_eq!(error.to_string(), "peer c cannot be reached: b answers at its address");
        here.eventually(|here| here.links.0.pauses.check(node.peer).is_ok()).await;
        here.links.ask(&node, None, question()).await.expect("it is b");
        here.links.ask_at(node.peer, question()).await.expect("anybody will do");
        here.eventually(|here| here.sample("dfstore_peer_links") == 1).await;
    });
}

#[test]
fn a_refused_node_is_told_why_and_leaves_the_other_side_alone_for_a_while() {
    with_links(async |here| {
        let (node, connections) = listen(|_, stream| {
            let (mut other, _) = Other::greet(stream);
            let reply = ErrorReply::new(ErrorCode::AccessDenied, "cluster name or token differ");
            other.write(|session, out| session.close(reply, out).expect("short"));
            assert_eq!(other.next(), None);
        });
        for _ in 0..50 {
            let error = here.links.ask(&node, None, question()).await.expect_err("refused");
            assert_eq!(error.code(), Some(ErrorCode::AccessDenied));
            assert!(error.is_unreachable() && !error.is_retryable());
            assert!(error.to_string().contains("cluster name or token differ"), "{error}");
        }
        assert_eq!(connections.load(Ordering::Acquire), 1);
        assert_eq!(here.sample("dfstore_peer_failures_total{kind=\"rejected\"}"), 1);
    });
}

#[test]
fn an_answer_that_is_an_error_is_no_failure_of_the_link() {
    with_links(async |here| {
        let (node, connections) = listen(|_, stream| {
            let mut other = Other::accept(stream, 4);
            while let Some((request, _)) = other.request() {
                other.answer(request, ErrorReply::new(ErrorCode::NotFound, "no such piece"));
            }
        });
        let fetched = here.fetch(&node, 0).await.err().expect("refused");
        let asked = here.links.ask(&node, None, question()).await.expect_err("refused");
        assert_eq!((fetched.code(), asked.code()), (Some(ErrorCode::NotFound), Some(ErrorCode::NotFound)));
        assert!(!asked.is_unreachable());
        assert_eq!(connections.load(Ordering::Acquire), 1);
    });
}

#[test]
fn after_go_away_what_was_taken_is_finished_and_the_rest_goes_elsewhere() {
    with_links(async |here| {
        let (node, connections) = listen(|number, stream| {
            let mut other = Other::accept(stream, 1);
            if number > 0 {
                return other.serve_all();
            }
            let (request, message) = other.request().expect("FETCH");
            other.write(|session, out| session.go_away(ErrorCode::ShuttingDown, "bye", out).expect("open"));
            // The other question goes to a new connection, while this one is still in flight.
            let fetch = fetch_in(message);
            other.serve(request, &fetch, &content(fetch.number));
            assert!(other.request().is_none(), "nothing more is asked here");
        });
        let fetch = async { here.fetch(&node, 0).await.map(|piece| piece.head.number) };
        let (fetched, asked) = join(fetch, here.links.ask(&node, None, question())).await;
        assert_eq!(fetched.expect("finished"), 0);
        asked.expect("taken by the second connection");
        assert_eq!(connections.load(Ordering::Acquire), 2);
        here.eventually(|here| here.sample("dfstore_peer_links") == 1).await;
    });
}

#[test]
fn a_request_that_crosses_go_away_is_made_again() {
    with_links(async |here| {
        let (node, connections) = listen(|number, stream| {
            let mut other = Other::accept(stream, 4);
            if number == 0 {
                // Nothing is taken, whatever has come.
                other.write(|session, out| session.go_away(ErrorCode::ShuttingDown, "bye", out).expect("open"));
                assert_eq!(other.next(), None);
            } else {
                other.serve_all();
            }
        });
        let piece = here.fetch(&node, 5).await.expect("the second connection takes it");
        assert_eq!(piece.slot.len(), content(5).len());
        assert_eq!(connections.load(Ordering::Acquire), 2);
    });
}

#[test]
fn a_node_that_is_down_fails_fast_and_is_found_when_it_is_back() {
    with_links(async |here| {
        // Bound, so that nobody else gets the port, but not listening yet.
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        let any: std::net::SocketAddr = ([127, 0, 0, 1], 0).into();
        socket.bind(&any.into()).expect("a free port");
        let address = socket.local_addr().expect("bound").as_socket().expect("TCP");
        let node = node_at(address);
        let down = here.links.ask(&node, None, question()).await.expect_err("it is down");
        assert!(matches!(down, LinkError::Unreachable { .. }));
        socket.listen(16).expect("it is up");
        let (_, connections) = serve_on(socket.into(), |_, stream| Other::accept(stream, 4).serve_all());
        let began = Instant::now();
        let answer = loop {
            match here.links.ask(&node, None, question()).await {
                Ok(answer) => break answer,
                Err(error) => assert_eq!(error, down, "the failure of a moment ago"),
            }
            sleep(Duration::from_millis(10)).await;
        };
        assert!(matches!(answer, Message::Reserved(_)));
        assert!(began.elapsed() + Duration::from_millis(100) >= LINK_PAUSE);
        assert_eq!(connections.load(Ordering::Acquire), 1);
        assert_eq!(here.sample("dfstore_peer_failures_total{kind=\"unreachable\"}"), 1);
    });
}

#[test]
fn links_to_nodes_that_left_or_were_started_anew_end() {
    with_links(async |here| {
        let (node, connections) = listen(|_, stream| {
            let mut other = Other::accept(stream, 4);
            while other.next().is_some() {}
        });
        let cluster = |live| Members { cluster: "c".into(), me: "a".into(), live, dead: Vec::new() };
        let restarted = Node { started_us: 2, ..node.clone() };
        for (life, live) in [(node.clone(), vec![Arc::new(restarted.clone())]), (restarted, Vec::new())] {
            here.links.members(&cluster(vec![Arc::new(life.clone())]));
            let before = connections.load(Ordering::Acquire);
            let change = async {
                here.eventually(|_| connections.load(Ordering::Acquire) > before).await;
                here.eventually(|here| here.sample("dfstore_peer_links") >= 1).await;
                here.links.members(&cluster(live));
            };
            let (answer, ()) = join(here.links.ask(&life, None, question()), change).await;
            let error = answer.expect_err("the link has ended");
            assert!(error.to_string().contains("left the cluster"), "{error}");
            here.eventually(|here| here.sample("dfstore_peer_links") == 0).await;
        }
    });
}

#[test]
fn a_side_that_breaks_the_rules_is_told_and_given_up() {
    with_links(async |here| {
        let (told, told_there) = mpsc::channel();
        let (node, _) = listen(move |_, stream| {
            let mut other = Other::accept(stream, 4);
            let _ = other.request();
            other.raw(&[0; 24]);
            if let Some(Event::Closed(reply)) = other.next() {
                told.send(reply.code).expect("the test waits");
            }
        });
        let error = here.links.ask(&node, None, question()).await.expect_err("no frame");
        assert!(matches!(error, LinkError::Protocol { .. }), "{error}");
        here.eventually(|_| told_there.try_recv() == Ok(ErrorCode::ProtocolError)).await;
    });
}
