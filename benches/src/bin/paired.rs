//! `dfstore-paired`: a peer and fio on the same disk in turn, so that the drift of the machine cancels out.
//!
//! Cold GET against fio's sequential read, acknowledged PUT against fio's sequential write, with the same block size
//! and depth. Nothing stays in the peer's memory between runs. One warm-up, then pairs; the median of the ratios counts. The peer's objects are ephemeral, so that no
//! write-back competes for the disk.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use dfstore_benches::fio::{self, Job, Plan};
use dfstore_benches::lab::Lab;
use dfstore_benches::load;
use dfstore_benches::pairs::{Pairs, Run};
use dfstore_proto::object::WriteMode;
use dfstore_tests::data::Payload;
use dfstore_tests::dirs;
use dfstore_tests::http::Connection;
use dfstore_tests::native::{NativeClient, target};
use dfstore_tests::peer::Peer;

const BUCKET: &str = "bench";

/// What clients speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Protocol {
    Http,
    Native,
}

/// Compares a peer with fio on the same disk.
#[derive(Debug, Parser)]
struct Arguments {
    /// Pairs of runs, after one warm-up.
    #[arg(long, default_value_t = 5)]
    pairs: u32,
    /// Bytes of each run, in MiB, over all connections.
    #[arg(long, default_value_t = 1024)]
    run_mib: u64,
    /// Connections to the peer.
    #[arg(long, default_value_t = 1)]
    connections: u64,
    /// What the clients speak.
    #[arg(long, value_enum, default_value_t = Protocol::Http)]
    protocol: Protocol,
    /// Block size of fio, in KiB: that of the peer's reads and writes.
    #[arg(long, default_value_t = 4096)]
    block_kib: u32,
    /// Requests in flight of fio.
    #[arg(long, default_value_t = 8)]
    depth: u32,
}

fn main() -> ExitCode {
    dfstore_benches::exit_code(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Result<()> {
    let folder = dirs::temporary("paired")?;
    let file = folder.path().join("fio");
    let mut lab = Lab::start_with(|spec| {
        (spec.capacity, spec.hot) = (format!("{}MiB", 4 * arguments.run_mib + 1024), false);
    })?;
    let length = (arguments.run_mib << 20) / arguments.connections;
    let payload = Payload::new(1, length).bytes();
    let plan =
        Plan { length_bytes: arguments.run_mib << 20, block_bytes: arguments.block_kib << 10, depth: arguments.depth };
    let (mut puts, mut gets) = (Pairs::default(), Pairs::default());
    for round in 0..=arguments.pairs {
        let put = measured(&mut lab, arguments, |client, index| client.put(index, &payload))?;
        let write = fio::run(Job::Write, &file, plan)?;
        let get = measured(&mut lab, arguments, |client, index| client.get(index, length))?;
        let read = fio::run(Job::Read, &file, plan)?;
        eprintln!(
            "{}: PUT {:.2} GB/s, fio {:.2}; GET {:.2} GB/s, fio {:.2}",
            if round == 0 { "warm-up".to_owned() } else { format!("pair {round}") },
            put.gb_per_second,
            write.gb_per_second,
            get.gb_per_second,
            read.gb_per_second,
        );
        if round > 0 {
            puts.add(put, write);
            gets.add(get, read);
        }
    }
    println!("{:?}, {} connections, {} MiB a run", arguments.protocol, arguments.connections, arguments.run_mib);
    println!("\nPUT acknowledged locally, against fio write\n{puts}");
    println!("cold GET, against fio read\n{gets}");
    Ok(())
}

/// A connection of either protocol.
enum Client {
    Http(Connection),
    Native(Box<NativeClient>),
}

impl Client {
    fn open(peer: &Peer, protocol: Protocol, index: usize) -> Result<Client> {
        Ok(match protocol {
            Protocol::Http => Client::Http(Connection::open(peer.address())?),
            Protocol::Native => {
                Client::Native(Box::new(NativeClient::connect(peer.address(), &target(BUCKET, &key(index)))?))
            }
        })
    }

    fn put(&mut self, index: usize, bytes: &[u8]) -> Result<()> {
        match self {
            Client::Http(connection) => {
                let path = format!("{}?mode=2", Peer::object_path(BUCKET, &key(index)));
                let answer = connection.request("PUT", &path, &[], bytes)?;
                ensure!(answer.status() == 200, "PUT: {} {}", answer.status(), answer.text());
                Ok(())
            }
            Client::Native(client) => client.put(&target(BUCKET, &key(index)), bytes, WriteMode::Ephemeral).map(drop),
        }
    }

    fn get(&mut self, index: usize, length: u64) -> Result<()> {
        let received = match self {
            Client::Http(connection) => {
                connection.send_head("GET", &Peer::object_path(BUCKET, &key(index)), &[], 0)?;
                let head = connection.read_head()?;
                ensure!(head.status == 200, "GET: {}", head.status);
                connection.read_body(&head, |_| ())?
            }
            Client::Native(client) => client.get(&target(BUCKET, &key(index)), |_, _| ())?,
        };
        ensure!(received == length, "{received} of {length} bytes came");
        Ok(())
    }
}

fn key(index: usize) -> String {
    format!("paired-{index}")
}

/// One run of every connection; the CPU time is that of the peer alone.
fn measured(
    lab: &mut Lab,
    arguments: &Arguments,
    work: impl Fn(&mut Client, usize) -> Result<()> + Sync,
) -> Result<Run> {
    let connections = usize::try_from(arguments.connections)?;
    let open = |index| Client::open(&lab.peer, arguments.protocol, index);
    let mut clients = (0..connections).map(open).collect::<Result<Vec<_>>>()?;
    let cpu_before = lab.peer.process().cpu_time()?;
    let started = Instant::now();
    load::rounds(&mut clients, 1, |index, client| work(client, index))?;
    let took: Duration = started.elapsed();
    let cpu = lab.peer.process().cpu_time()?.saturating_sub(cpu_before);
    Ok(Run::of(arguments.run_mib << 20, took, cpu))
}
