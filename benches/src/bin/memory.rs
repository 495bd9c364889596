//! `dfstore-memory`: how much memory a peer takes, for one large object up and down and for many clients at once.
//!
//! The promise is the memory budget plus a fixed overhead, whatever sizes and counts. The peer's resident memory is
//! sampled all the while; the highest sample counts. Exits with 1 when the promise is broken.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use dfstore_benches::lab::Lab;
use dfstore_benches::load;
use dfstore_tests::data::Payload;
use dfstore_tests::http::Connection;
use dfstore_tests::peer::Peer;
use dfstore_tests::process::rss_bytes;

/// What a peer may take besides its budget.
const OVERHEAD_BYTES: u64 = 64 << 20;
const SAMPLE_EVERY: Duration = Duration::from_millis(20);
const CHUNK_BYTES: usize = 1 << 20;
const BUCKET: &str = "bench";

/// Measures the resident memory of a peer against its budget.
#[derive(Debug, Parser)]
struct Arguments {
    /// memory.budget of the peer, in MiB.
    #[arg(long, default_value_t = 512)]
    budget_mib: u64,
    /// Length of the large object, in MiB.
    #[arg(long, default_value_t = 4096)]
    object_mib: u64,
    /// Clients at once.
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Length of the object each of them writes and reads, in MiB.
    #[arg(long, default_value_t = 64)]
    client_mib: u64,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    let clients_mib = arguments.client_mib * arguments.clients as u64;
    // Everything is written once and, for a while, its older version is still there.
    let capacity = format!("{}MiB", 2 * arguments.object_mib.max(clients_mib) + 1024);
    let mut lab = Lab::start_with(|spec| {
        (spec.capacity, spec.memory_budget) = (capacity, format!("{}MiB", arguments.budget_mib));
    })?;
    let pid = lab.peer.process().pid();
    let allowed = (arguments.budget_mib << 20) + OVERHEAD_BYTES;
    println!(
        "budget {} MiB, allowed {} MiB, at rest {} MiB",
        arguments.budget_mib,
        allowed >> 20,
        rss_bytes(pid)? >> 20
    );
    let large = Payload::new(1, arguments.object_mib << 20);
    let small = Payload::new(2, arguments.client_mib << 20);
    let mut kept = true;
    for (name, clients, payload) in [("one large object", 1, large), ("many clients", arguments.clients, small)] {
        for (step, work) in [("up", put as Work), ("down", get as Work)] {
            let peak = peak_rss(pid, || everybody(&lab.peer, clients, payload, work))?;
            let verdict = if peak <= allowed { "within" } else { "ABOVE" };
            println!("{name} ({clients} x {} MiB) {step}: peak {} MiB, {verdict}", payload.length >> 20, peak >> 20);
            kept &= peak <= allowed;
        }
        for index in 0..clients {
            lab.peer.delete(BUCKET, &key(payload, index))?;
        }
    }
    Ok(kept)
}

type Work = fn(&mut Connection, &str, Payload) -> Result<()>;

fn key(payload: Payload, index: usize) -> String {
    format!("memory-{}-{index}", payload.seed)
}

fn everybody(peer: &Peer, clients: usize, payload: Payload, work: Work) -> Result<()> {
    let mut connections = (0..clients).map(|_| Connection::open(peer.address())).collect::<Result<Vec<_>>>()?;
    let each = |index: usize, connection: &mut Connection| {
        work(connection, &Peer::object_path(BUCKET, &key(payload, index)), payload)
    };
    load::rounds(&mut connections, 1, each).map(drop)
}

fn put(connection: &mut Connection, path: &str, payload: Payload) -> Result<()> {
    connection.send_head("PUT", &format!("{path}?mode=2"), &[], payload.length)?;
    let (mut offset, mut chunk) = (0, vec![0; CHUNK_BYTES]);
    while offset < payload.length {
        let count = usize::try_from(payload.length - offset).unwrap_or(usize::MAX).min(CHUNK_BYTES);
        payload.fill(offset, &mut chunk[..count]);
        connection.send(&chunk[..count]).context("sending the object")?;
        offset += count as u64;
    }
    let answer = connection.response(false)?;
    ensure!(answer.status() == 200, "PUT: {} {}", answer.status(), answer.text());
    Ok(())
}

fn get(connection: &mut Connection, path: &str, payload: Payload) -> Result<()> {
    connection.send_head("GET", path, &[], 0)?;
    let head = connection.read_head()?;
    ensure!(head.status == 200, "GET: {}", head.status);
    let (mut offset, mut wrong) = (0, None);
    connection.read_body(&head, |bytes| {
        wrong = wrong.or_else(|| payload.first_difference(offset, bytes));
        offset += bytes.len() as u64;
    })?;
    ensure!(wrong.is_none(), "wrong byte at {wrong:?}");
    ensure!(offset == payload.length, "{offset} of {} bytes came", payload.length);
    Ok(())
}

/// The highest resident memory of a process while `work` runs.
fn peak_rss(pid: u32, work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let (peak, done) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(rss_bytes(pid).unwrap_or(0), Ordering::Relaxed);
                thread::sleep(SAMPLE_EVERY);
            }
        });
        let worked = work();
        done.store(true, Ordering::Relaxed);
        worked
    })?;
    Ok(peak.load(Ordering::Relaxed).max(rss_bytes(pid)?))
}
