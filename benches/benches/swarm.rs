//! A swarm of 10,000 peers in virtual time, with the planner and the tracker of the peer: how long the download takes
//! against the bound, what each uplink carries, how many reports the home gets. No I/O, nothing is waited for.
//!
//! The bound is `max(S/u_home, N*S/(u_home + sum u))`. The table is a function of the setups: its last line is a hash of
//! it, the same on every machine.

use std::time::{Duration, Instant};

use dfstore_benches::is_smoke;
use dfstore_tests::swarm_sim::{Behaviour, Outcome, PeerSetup, Setup};

/// 200 Mbit/s.
const RATE: u64 = 25_000_000;

fn all_at_once(peers: usize, pieces: u32) -> Setup {
    Setup::new(pieces, RATE, vec![PeerSetup::good(RATE); peers])
}

/// Half of them are there from the start, the others join while it lasts; some leave, some are slow, some are broken.
fn mixed(peers: usize, pieces: u32) -> Setup {
    let mut setup = all_at_once(peers, pieces);
    let spread = setup.bound();
    for (number, peer) in setup.peers.iter_mut().enumerate() {
        if number % 2 == 1 {
            peer.joins = spread.mul_f64(number as f64 / peers as f64);
        }
        match number % 20 {
            3 => peer.leaves = Some(peer.joins + spread / 2),
            7 => peer.link.up = RATE / 10,
            13 => peer.behaviour = if number % 40 == 13 { Behaviour::Silent } else { Behaviour::Forgetful },
            _ => {}
        }
    }
    setup
}

fn row(name: &str, setup: &Setup) -> (String, f64) {
    let started = Instant::now();
    let outcome: Outcome = setup.run();
    let (bound, object) = (setup.bound().as_secs_f64(), setup.piece_bytes as f64 * f64::from(setup.pieces));
    let times = |time: Option<Duration>| {
        time.map_or_else(
            || "none".to_owned(),
            |time| format!("{:.1} s ({:.2})", time.as_secs_f64(), time.as_secs_f64() / bound),
        )
    };
    let staying = setup.peers.iter().zip(&outcome.took).filter(|(peer, _)| peer.leaves.is_none());
    let slowest =
        staying.map(|(_, took)| *took).collect::<Option<Vec<Duration>>>().and_then(|took| took.into_iter().max());
    let mut sent: Vec<u64> = outcome.sent.clone();
    sent.sort_unstable();
    let copies = |bytes: u64| bytes as f64 / object;
    let text = format!(
        "{name:<12} {:>6} {:>6} {:>7.1} s {:>14} {:>14} {:>6.2} {:>6.2} {:>6.2} {:>9.0} {:>9} {:>9.0}",
        setup.peers.len(),
        setup.pieces,
        bound,
        times(outcome.median()),
        times(slowest),
        copies(outcome.sent_by_home),
        copies(sent[sent.len() / 2]),
        copies(sent[sent.len() - 1]),
        outcome.tracks as f64 / outcome.ended.as_secs_f64(),
        outcome.tracks_per_second_max,
        outcome.tracked_bytes as f64 / outcome.ended.as_secs_f64() / 1000.0,
    );
    (text, started.elapsed().as_secs_f64())
}

fn main() {
    let peers = if is_smoke() { 20 } else { 10_000 };
    let setups = [
        ("8 peers", all_at_once(8, 128)),
        ("all at once", Setup { chunks: 2, ..all_at_once(peers, 64) }),
        ("mixed", Setup { chunks: 2, ..mixed(peers, 64) }),
    ];
    println!("links of 200 Mbit/s; times in brackets are multiples of the bound; bytes sent are copies of the object");
    println!(
        "{:<12} {:>6} {:>6} {:>9} {:>14} {:>14} {:>6} {:>6} {:>6} {:>9} {:>9} {:>9}",
        "", "peers", "pieces", "bound", "median", "slowest", "home", "median", "most", "TRACK/s", "most/s", "kB/s"
    );
    let mut table = String::new();
    for (name, setup) in setups {
        let (text, seconds) = row(name, &setup);
        println!("{text}   simulated in {seconds:.1} s");
        table += &text;
    }
    println!("crc32 of the table: {:08x}", crc32fast::hash(table.as_bytes()));
}
