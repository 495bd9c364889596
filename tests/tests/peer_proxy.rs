//! The proxy that makes rogues: what it spoils, what it leaves alone, and that it stops and goes on as told.
//!
//! In front of the public port of a standalone peer, which speaks the same frames as the port for peers.

use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use dfstore_peer::limits::PIECE_BYTES;
use dfstore_proto::message::{Message, Open, Read as ReadPieces, Route};
use dfstore_tests::data::Payload;
use dfstore_tests::eventually;
use dfstore_tests::native::{NativeClient, target};
use dfstore_tests::peer_proxy::{Fault, PeerProxy, Rule, Way};
use dfstore_tests::scene::{ASYNC, BUCKET, Scene};
use dfstore_tests::wire::{Arrival, Wire};

const KEY: &str = "a";
const CREDITS: u32 = 8;
/// Two pieces, the second one short.
const PAYLOAD: Payload = Payload { seed: 1, length: PIECE_BYTES as u64 + 70_000 };
const TIMEOUT: Duration = Duration::from_secs(20);

/// A peer that holds the payload, behind a proxy.
fn behind_proxy() -> (PeerProxy, Scene) {
    let scene = Scene::start().expect("a scene");
    scene.put(KEY, ASYNC, PAYLOAD).expect("put");
    let proxy = PeerProxy::start().expect("a proxy");
    proxy.set_target(scene.peer.address());
    (proxy, scene)
}

/// Opens the object and asks for all its pieces.
fn ask_for_all(proxy: &PeerProxy) -> Wire {
    let mut wire = Wire::open(proxy.address(), Route::Any, CREDITS).expect("connected");
    let target = target(BUCKET, KEY);
    let info = match wire.ask(Open { target: target.clone(), no_cache: false }).expect("an answer") {
        Message::OpenOk(info) => info,
        other => panic!("no OPEN_OK but {other:?}"),
    };
    let generation = info.generation;
    wire.request(ReadPieces { target, generation, first_piece: 0, piece_count: 2 }).expect("asked");
    wire
}

/// Number, length and first wrong byte (within the piece) of both pieces, by number.
fn pieces(proxy: &PeerProxy) -> Vec<(u32, usize, Option<u64>)> {
    let mut wire = ask_for_all(proxy);
    let mut found = Vec::new();
    while found.len() < 2 {
        match wire.next_arrival().expect("read").expect("still open") {
            Arrival::Piece { head, bytes, .. } => {
                let wrong = PAYLOAD.first_difference(head.offset, &bytes).map(|at| at - head.offset);
                found.push((head.number, bytes.len(), wrong));
            }
            Arrival::Event(event) => panic!("no piece but {event:?}"),
        }
    }
    found.sort_unstable();
    found
}

#[test]
fn passes_everything_on_and_counts() {
    let (proxy, _scene) = behind_proxy();
    let mut client = NativeClient::connect_any(proxy.address()).expect("connected");
    let mut wrong = None;
    let take = |offset, bytes: &[u8]| wrong = wrong.or_else(|| PAYLOAD.first_difference(offset, bytes));
    assert_eq!(client.get(&target(BUCKET, KEY), take).expect("read"), PAYLOAD.length);
    assert_eq!((wrong, proxy.pieces(), proxy.spoiled(), proxy.connections()), (None, 2, 0, 1));
}

#[test]
fn flips_the_byte_that_it_is_told() {
    let (proxy, _scene) = behind_proxy();
    proxy.set_rules([Rule::always(Fault::FlipByte(66_000)).times(2)]);
    assert_eq!(pieces(&proxy), [(0, PIECE_BYTES as usize, Some(66_000)), (1, 70_000, Some(66_000))]);
    assert_eq!(pieces(&proxy), [(0, PIECE_BYTES as usize, None), (1, 70_000, None)], "the rule is used up");
    assert_eq!((proxy.pieces(), proxy.spoiled()), (4, 2));
    proxy.set_rules([Rule::always(Fault::FlipByte(0)).after(1).times(1)]);
    let wrong = pieces(&proxy).into_iter().filter(|(_, _, wrong)| wrong.is_some()).count();
    assert_eq!((wrong, proxy.spoiled()), (1, 3), "the first piece is left alone");
}

#[test]
fn names_another_generation_with_right_checksums() {
    let (proxy, _scene) = behind_proxy();
    proxy.set_rules([Rule::always(Fault::OtherGeneration).times(1)]);
    let mut wire = ask_for_all(&proxy);
    // Its checksums are right: the session refuses it for what it says.
    let refused = wire.next_arrival().expect_err("the first piece is another version's");
    assert!(format!("{refused:#}").contains("does not belong to its request"), "{refused:#}");
    assert_eq!(proxy.spoiled(), 1);
}

#[test]
fn cuts_and_falls_silent_in_the_middle() {
    let (proxy, _scene) = behind_proxy();
    proxy.set_rules([Rule::always(Fault::CutAfter(1000)).times(1)]);
    let mut wire = ask_for_all(&proxy);
    assert!(matches!(wire.next_arrival(), Ok(None) | Err(_)), "no whole piece comes");
    proxy.set_rules([Rule::always(Fault::SilentAfter(0))]);
    let spoiled = proxy.spoiled();
    let mut wire = ask_for_all(&proxy);
    eventually("the piece has begun", TIMEOUT, || (proxy.spoiled() > spoiled).then_some(())).expect("begun");
    wire.set_read_timeout(Duration::from_millis(300)).expect("set");
    assert!(wire.next_arrival().is_err(), "silence");
    proxy.cut_all();
    wire.set_read_timeout(TIMEOUT).expect("set");
    assert!(matches!(wire.next_arrival(), Ok(None) | Err(_)), "cut");
}

#[test]
fn stops_one_way_and_goes_on() {
    let (proxy, _scene) = behind_proxy();
    let mut wire = Wire::open(proxy.address(), Route::Any, CREDITS).expect("connected");
    for way in [Way::FromPeer, Way::ToPeer] {
        proxy.stop(way);
        let request = wire.request(Open { target: target(BUCKET, KEY), no_cache: false }).expect("asked");
        wire.set_read_timeout(Duration::from_millis(300)).expect("set");
        assert!(wire.answer(request).is_err(), "nothing comes while {way:?} is stopped");
        proxy.resume(way);
        wire.set_read_timeout(TIMEOUT).expect("set");
        assert!(matches!(wire.answer(request), Ok(Message::OpenOk(_))), "what was held back comes");
    }
}

#[test]
fn delay_and_rate_slow_it_down() {
    let (proxy, _scene) = behind_proxy();
    proxy.set_rate(Some(4 << 20));
    let started = Instant::now();
    assert_eq!(pieces(&proxy).len(), 2);
    assert!(started.elapsed() > Duration::from_millis(400), "2 MiB at 4 MiB/s took {:?}", started.elapsed());
    proxy.set_rate(None);
    proxy.set_delay(Duration::from_millis(100));
    let started = Instant::now();
    let mut wire = Wire::open(proxy.address(), Route::Any, CREDITS).expect("connected");
    wire.ask(Open { target: target(BUCKET, KEY), no_cache: false }).expect("an answer");
    assert!(started.elapsed() > Duration::from_millis(390), "four frames took {:?}", started.elapsed());
}

#[test]
fn closes_connections_until_it_knows_its_peer() {
    let proxy = PeerProxy::start().expect("a proxy");
    let mut stream = TcpStream::connect(proxy.address()).expect("accepted");
    stream.set_read_timeout(Some(TIMEOUT)).expect("set");
    assert_eq!(stream.read(&mut [0; 1]).expect("ended"), 0);
}
