//! Swarms of simulated peers in virtual time: how close to the bound they come, what the home and the backend have to
//! send, and that peers which leave, lag, lie or lose what they had stop nobody.

use std::time::Duration;

use dfstore_tests::swarm_sim::{Behaviour, Outcome, PeerSetup, Reading, Setup};

/// 200 Mbit/s.
const RATE: u64 = 25_000_000;

fn swarm(peers: usize, pieces: u32, seed: u64) -> Setup {
    Setup { seed, ..Setup::new(pieces, RATE, vec![PeerSetup::good(RATE); peers]) }
}

fn object_bytes(setup: &Setup) -> f64 {
    setup.piece_bytes as f64 * f64::from(setup.pieces)
}

/// The slowest of those that stay, as a multiple of the bound. All of them must have finished.
fn slowest(setup: &Setup, outcome: &Outcome) -> f64 {
    let staying = setup.peers.iter().zip(&outcome.took).filter(|(peer, _)| peer.leaves.is_none());
    let took: Vec<Duration> = staying.map(|(_, took)| took.expect("all that stay finish")).collect();
    let slowest = took.into_iter().max().expect("somebody stays");
    slowest.as_secs_f64() / setup.bound().as_secs_f64()
}

fn copies_by_home(setup: &Setup, outcome: &Outcome) -> f64 {
    outcome.sent_by_home as f64 / object_bytes(setup)
}

#[track_caller]
fn assert_asked_once(outcome: &Outcome) {
    assert!(outcome.backend_asked.iter().all(|count| *count == 1), "{:?}", outcome.backend_asked);
}

#[test]
fn eight_peers_come_close_to_the_bound_and_the_home_sends_one_copy() {
    for seed in 1..=4 {
        let setup = swarm(8, 128, seed);
        let outcome = setup.run();
        assert_asked_once(&outcome);
        let (slowest, copies) = (slowest(&setup, &outcome), copies_by_home(&setup, &outcome));
        assert!(slowest < 1.15, "seed {seed}: {slowest:.3} of the bound");
        assert!(copies < 1.05, "seed {seed}: the home sent {copies:.3} copies");
        let most = *outcome.sent.iter().max().expect("peers") as f64 / object_bytes(&setup);
        assert!(most < 1.3, "seed {seed}: one peer sent {most:.3} copies");
    }
}

#[test]
fn one_peer_alone_is_as_fast_as_the_home() {
    let setup = swarm(1, 128, 1);
    let outcome = setup.run();
    assert!(slowest(&setup, &outcome) < 1.03, "{:?}", outcome.took);
    assert_asked_once(&outcome);
}

#[test]
fn a_fast_home_is_used_by_one_peer_alone() {
    // 10 Gbit/s on both sides: the plan must not be what limits it.
    let rate = 1_250_000_000;
    let mut setup = Setup::new(512, rate, vec![PeerSetup::good(rate)]);
    (setup.backend, setup.latency) = (10 * rate, Duration::from_micros(50));
    let outcome = setup.run();
    assert!(slowest(&setup, &outcome) < 1.35, "{:?} of {:?}", outcome.took, setup.bound());
}

#[test]
fn a_home_that_is_faster_than_its_peers_gives_more() {
    let mut setup = swarm(8, 64, 1);
    setup.home.up = 8 * RATE;
    let outcome = setup.run();
    assert_asked_once(&outcome);
    // Each peer's downlink needs as long as the slowest home would.
    let downlink = object_bytes(&setup) / RATE as f64;
    let took = outcome.slowest().expect("all finish").as_secs_f64();
    assert!(took < 1.25 * downlink, "{took:.2} s of {downlink:.2} s");
}

#[test]
fn a_hundred_peers_stay_near_the_bound_with_one_copy_from_the_home() {
    let setup = Setup { chunks: 2, ..swarm(100, 96, 2) };
    let outcome = setup.run();
    assert_asked_once(&outcome);
    let (slowest, copies) = (slowest(&setup, &outcome), copies_by_home(&setup, &outcome));
    assert!(slowest < 1.6, "{slowest:.3} of the bound");
    assert!(copies < 1.1, "the home sent {copies:.3} copies");
    // A tenth of a second between reports, and a few early ones with rare news.
    assert!(outcome.tracks_per_second_max < 1500, "{} reports in one second", outcome.tracks_per_second_max);
}

#[test]
fn a_thousand_peers_that_join_leave_and_lag_all_finish() {
    let mut setup = Setup { chunks: 2, ..swarm(1000, 48, 3) };
    let spread = setup.bound();
    for (number, peer) in setup.peers.iter_mut().enumerate() {
        if number % 2 == 1 {
            peer.joins = spread * u32::try_from(number).expect("small") / 1000;
        }
        match number % 10 {
            3 => peer.leaves = Some(peer.joins + spread / 2),
            7 => peer.link.up = RATE / 10,
            _ => {}
        }
    }
    let outcome = setup.run();
    assert_asked_once(&outcome);
    let slowest = slowest(&setup, &outcome);
    assert!(slowest < 3.5, "{slowest:.3} of the bound");
    let copies = copies_by_home(&setup, &outcome);
    assert!(copies < 2.5, "the home sent {copies:.3} copies");
}

/// Eight peers, of which the first does not do as it should.
fn with_one(behaviour: Behaviour) -> (Setup, Outcome) {
    let mut setup = swarm(8, 64, 4);
    setup.peers[0].behaviour = behaviour;
    let outcome = setup.run();
    assert_asked_once(&outcome);
    (setup, outcome)
}

#[test]
fn a_silent_parent_stops_nobody() {
    let (setup, outcome) = with_one(Behaviour::Silent);
    let slowest = slowest(&setup, &outcome);
    assert!(slowest < 2.0, "{slowest:.3} of the bound");
    assert!(outcome.avoided > 0, "nobody noticed");
}

#[test]
fn a_parent_that_sends_wrong_bytes_stops_nobody() {
    let (setup, outcome) = with_one(Behaviour::Lying);
    let slowest = slowest(&setup, &outcome);
    assert!(slowest < 2.0, "{slowest:.3} of the bound");
    assert!(outcome.avoided >= 7, "only {} of 7 noticed", outcome.avoided);
}

#[test]
fn a_parent_that_lost_its_pieces_stops_nobody() {
    let (setup, outcome) = with_one(Behaviour::Forgetful);
    let slowest = slowest(&setup, &outcome);
    assert!(slowest < 2.0, "{slowest:.3} of the bound");
}

#[test]
fn nobody_is_stopped_when_half_of_all_leave_at_once() {
    let mut setup = swarm(16, 64, 5);
    let half = setup.bound() / 2;
    for peer in setup.peers.iter_mut().step_by(2) {
        peer.leaves = Some(half);
    }
    let outcome = setup.run();
    let slowest = slowest(&setup, &outcome);
    assert!(slowest < 2.0, "{slowest:.3} of the bound");
}

/// A peer that joins a swarm under way, and whose client takes a piece each such time.
fn paced(piece_time: Duration) -> (Setup, Outcome) {
    let mut setup = swarm(8, 128, 6);
    setup.peers[7].joins = Duration::from_secs(3);
    setup.peers[7].reading = Reading::Paced(piece_time);
    let outcome = setup.run();
    assert!(slowest(&setup, &outcome) < 1.4, "{:?}", outcome.took);
    (setup, outcome)
}

#[test]
fn a_reader_that_needs_all_its_link_gives_is_not_starved() {
    // A piece takes 84 ms of the whole link.
    let (_, outcome) = paced(Duration::from_millis(85));
    let longest = outcome.longest_wait[7];
    assert!(longest < Duration::from_millis(2000), "the reader waited {longest:?} for a piece");
}

#[test]
fn a_reader_that_needs_half_its_link_hardly_waits() {
    let (_, outcome) = paced(Duration::from_millis(168));
    let longest = outcome.longest_wait[7];
    assert!(longest < Duration::from_millis(1000), "the reader waited {longest:?} for a piece");
}

#[test]
fn a_late_peer_gets_a_whole_object_from_the_others_without_the_home() {
    let mut setup = swarm(8, 64, 7);
    setup.peers[7].joins = setup.bound() * 3;
    let outcome = setup.run();
    let copies = copies_by_home(&setup, &outcome);
    assert!(copies < 1.05, "the home sent {copies:.3} copies");
    let took = outcome.took[7].expect("it finishes").as_secs_f64();
    assert!(took < 1.15 * object_bytes(&setup) / RATE as f64, "{took:.2} s");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = || swarm(12, 32, 8).run();
    let (first, second) = (run(), run());
    assert_eq!(first.took, second.took);
    assert_eq!((first.tracks, first.sent), (second.tracks, second.sent));
    assert_ne!(first.took, swarm(12, 32, 9).run().took, "the seed does not matter");
}

#[test]
fn a_slow_home_is_not_made_slower_by_many_open_orders() {
    let mut setup = swarm(8, 32, 10);
    setup.home.up = RATE / 8;
    let outcome = setup.run();
    assert_asked_once(&outcome);
    let (slowest, copies) = (slowest(&setup, &outcome), copies_by_home(&setup, &outcome));
    assert!(slowest < 1.25, "{slowest:.3} of the bound");
    assert!(copies < 1.2, "the home sent {copies:.3} copies");
}

#[test]
fn few_pieces_come_straight_from_the_home() {
    let setup = swarm(3, 4, 11);
    let outcome = setup.run();
    assert!(outcome.slowest().is_some());
    assert_eq!(outcome.tracks, 0);
}
