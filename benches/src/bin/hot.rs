//! `dfstore-hot`: a peer that has an object in memory, and nginx that has it in the page cache, in turn.
//!
//! The same client reads the same bytes from both, over HTTP. One warm-up, then pairs; the median of the ratios counts.
//! CPU time is that of each server.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;
use dfstore_benches::lab::Lab;
use dfstore_benches::load;
use dfstore_benches::nginx::Nginx;
use dfstore_benches::pairs::{Pairs, Run};
use dfstore_tests::data::Payload;
use dfstore_tests::http::Connection;
use dfstore_tests::peer::Peer;
use dfstore_tests::process::cpu_time;

const BUCKET: &str = "bench";
const KEY: &str = "hot";

/// Compares reads of an object in memory with nginx.
#[derive(Debug, Parser)]
struct Arguments {
    /// Pairs of runs, after one warm-up.
    #[arg(long, default_value_t = 5)]
    pairs: u32,
    /// Length of the object, in KiB; at most a quarter of the memory budget of 1 GiB.
    #[arg(long, default_value_t = 256 << 10, value_parser = clap::value_parser!(u64).range(1..=256 << 10))]
    object_kib: u64,
    /// Reads of each connection in a run.
    #[arg(long, default_value_t = 16)]
    reads: u64,
    /// Connections.
    #[arg(long, default_value_t = 1)]
    connections: usize,
}

fn main() -> ExitCode {
    dfstore_benches::exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    let lab = Lab::start_with(|_| ())?;
    let nginx = Nginx::start(std::thread::available_parallelism()?.get())?;
    let payload = Payload::new(1, arguments.object_kib << 10).bytes();
    nginx.place(KEY, &payload)?;
    let path = Peer::object_path(BUCKET, KEY);
    let stored = Connection::open(lab.peer.address())?.request("PUT", &format!("{path}?mode=2"), &[], &payload)?;
    ensure!(stored.status() == 200, "PUT: {} {}", stored.status(), stored.text());
    let mut pairs = Pairs::default();
    for round in 0..=arguments.pairs {
        let peer = measured(arguments, lab.peer.address(), &path, || cpu_time(lab.peer.pid()))?;
        let reference = measured(arguments, nginx.address(), &format!("/{KEY}"), || nginx.cpu_time())?;
        let name = if round == 0 { "warm-up".to_owned() } else { format!("pair {round}") };
        eprintln!("{name}: peer {:.3} GB/s, nginx {:.3}", peer.gb_per_second, reference.gb_per_second);
        if round > 0 {
            pairs.add(peer, reference);
        }
    }
    let (per_read, connections) = ((arguments.object_kib << 10) as f64 / 1e9, arguments.connections);
    println!(
        "{connections} connections, {} KiB a read, so that 1 GB/s is {:.0} reads/s",
        arguments.object_kib,
        1.0 / per_read
    );
    println!("\nGET from memory, against nginx from the page cache\n{pairs}");
    let reads = lab.peer.metrics()?;
    let count = |from| reads.sum("dfstore_piece_reads_total", &[("from", from)]);
    println!("pieces read from memory {}, from disk {}", count("memory"), count("disk"));
    Ok(())
}

/// One run of every connection.
fn measured(arguments: &Arguments, address: SocketAddr, path: &str, cpu: impl Fn() -> Result<Duration>) -> Result<Run> {
    let length = arguments.object_kib << 10;
    let open = |_| Connection::open(address);
    let mut clients = (0..arguments.connections).map(open).collect::<Result<Vec<_>>>()?;
    let (cpu_before, started) = (cpu()?, Instant::now());
    load::rounds(&mut clients, arguments.reads, |_, client| {
        client.send_head("GET", path, &[], 0)?;
        let head = client.read_head()?;
        ensure!(head.status == 200, "GET: {}", head.status);
        let received = client.read_body(&head, |_| ())?;
        ensure!(received == length, "{received} of {length} bytes came");
        Ok(())
    })?;
    let took = started.elapsed();
    let cpu = cpu()?.saturating_sub(cpu_before);
    Ok(Run::of(length * arguments.reads * arguments.connections as u64, took, cpu))
}
