//! `dfstore-crowd`: how long a small read takes without and with two thousand idle, silent and slow connections.
//!
//! A real peer, a few connections that read one object from its disk without a pause, and every other time a crowd
//! beside them that trickles its heads. One warm-up, then pairs; the median of the ratios of the 99th percentiles counts.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use dfstore_tests::crowd::Crowd;
use dfstore_tests::data::Payload;
use dfstore_tests::http::Connection;
use dfstore_tests::scene::{EPHEMERAL, Scene};

/// Compares small reads with and without a crowd of connections.
#[derive(Debug, Parser)]
struct Arguments {
    /// Pairs of runs, after one warm-up.
    #[arg(long, default_value_t = 5)]
    pairs: u32,
    /// Time of each run, in milliseconds; below 10 s, when those who say nothing are sent away.
    #[arg(long, default_value_t = 4000)]
    run_ms: u64,
    /// Connections that read.
    #[arg(long, default_value_t = 4)]
    readers: usize,
    /// Length of the object, in KiB.
    #[arg(long, default_value_t = 64)]
    object_kib: u64,
    /// Connections of the crowd: half of them idle, the rest silent or slow.
    #[arg(long, default_value_t = 2000)]
    crowd: usize,
}

fn main() -> ExitCode {
    dfstore_benches::exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    let scene = Scene::start()?;
    let payload = Payload::new(1, arguments.object_kib << 10);
    scene.put("small", EPHEMERAL, payload)?;
    let address = scene.peer.address();
    let mut ratios = Vec::new();
    for round in 0..=arguments.pairs {
        let alone = Latencies::of(measured(arguments, address, None)?);
        let quarter = arguments.crowd / 4;
        let crowd = Crowd::gather(address, arguments.crowd - 2 * quarter, quarter, quarter)?;
        let beside = Latencies::of(measured(arguments, address, Some(crowd))?);
        if round > 0 {
            ratios.push(beside.p99.as_secs_f64() / alone.p99.as_secs_f64());
            println!("alone {alone}; beside {} connections {beside}", arguments.crowd);
        }
    }
    ratios.sort_unstable_by(f64::total_cmp);
    let median = ratios.get(ratios.len() / 2).context("at least one pair")?;
    println!("99th percentile, beside by alone: median of {} pairs {median:.2}", ratios.len());
    Ok(())
}

/// How long each read took.
fn measured(arguments: &Arguments, address: SocketAddr, mut crowd: Option<Crowd>) -> Result<Vec<Duration>> {
    let done = AtomicBool::new(false);
    let began = Instant::now();
    thread::scope(|scope| {
        let readers: Vec<_> = (0..arguments.readers)
            .map(|_| scope.spawn(|| read_until(&done, address, arguments.object_kib << 10)))
            .collect();
        while began.elapsed() < Duration::from_millis(arguments.run_ms) {
            if let Some(crowd) = &mut crowd {
                crowd.trickle();
            }
            thread::sleep(Duration::from_millis(200));
        }
        done.store(true, Ordering::SeqCst);
        let took = readers.into_iter().map(|reader| reader.join().expect("no panic"));
        took.collect::<Result<Vec<_>>>().map(|took| took.concat())
    })
}

fn read_until(done: &AtomicBool, address: SocketAddr, length: u64) -> Result<Vec<Duration>> {
    let (mut connection, mut took) = (Connection::open(address)?, Vec::new());
    while !done.load(Ordering::SeqCst) {
        let began = Instant::now();
        let answer = connection.request("GET", &Scene::path("small"), &[], b"")?;
        ensure!(answer.status() == 200 && answer.body.len() as u64 == length, "{}", answer.status());
        took.push(began.elapsed());
    }
    Ok(took)
}

struct Latencies {
    reads: usize,
    p50: Duration,
    p99: Duration,
}

impl Latencies {
    fn of(mut took: Vec<Duration>) -> Latencies {
        took.sort_unstable();
        let at = |percent: usize| took.get(took.len() * percent / 100).copied().unwrap_or_default();
        Latencies { reads: took.len(), p50: at(50), p99: at(99) }
    }
}

impl std::fmt::Display for Latencies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "p50 {:.2?}, p99 {:.2?} of {} reads", self.p50, self.p99, self.reads)
    }
}
