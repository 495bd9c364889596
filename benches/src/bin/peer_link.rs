//! `dfstore-peer-link`: one peer gets a whole object from another one over loopback, and one iperf3 stream in turn.
//!
//! The object is clean and whole at the seed; the peer drops it before each run. By default it is prefetched, so that
//! no client takes CPU time from either side; a native client can read it instead. One warm-up, then pairs; the median
//! of the ratios counts. CPU time is that of each process by itself, against the same side of iperf3.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use dfstore_benches::iperf3;
use dfstore_benches::lab::ensure_built;
use dfstore_benches::pairs::{Pairs, Run};
use dfstore_proto::message::Scope;
use dfstore_tests::cluster::{Cluster, Node};
use dfstore_tests::data::Payload;
use dfstore_tests::process::{cpu_time, watch_over_this_program};
use dfstore_tests::until;

const KEY: &str = "link";
/// Indices of the nodes.
const SENDER: usize = 0;
const RECEIVER: usize = 1;

/// Who makes the receiver fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    /// A PREFETCH: nobody reads what it fetches.
    Prefetch,
    /// A native client that reads the object.
    Client,
}

/// Compares the link between two peers with one stream of iperf3.
#[derive(Clone, Copy, Debug, Parser)]
struct Arguments {
    /// Pairs of runs, after one warm-up.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pairs: u32,
    /// Length of the object, in MiB.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=16384))]
    object_mib: u64,
    /// Who makes the receiver fetch.
    #[arg(long, value_enum, default_value_t = By::Prefetch)]
    by: By,
    /// The sender has the object in memory, as after it was read or written, instead of on disk alone. Both peers get a
    /// memory budget of four times the object.
    #[arg(long)]
    hot: bool,
    /// Shards of each peer.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    shards: u32,
}

fn main() -> ExitCode {
    watch_over_this_program();
    let arguments = Arguments::parse();
    dfstore_benches::exit_code(until::heed_signals().and_then(|()| run(arguments)))
}

fn run(arguments: Arguments) -> Result<()> {
    ensure_built("dfstore-peer")?;
    let length = arguments.object_mib << 20;
    let builder = Cluster::builder().seeds(1).peers(1).all(|_, options| {
        options.capacity = format!("{}MiB", 2 * arguments.object_mib + 1024);
        let memory_mib = if arguments.hot { 4 * arguments.object_mib } else { 512 };
        (options.memory_budget, options.hot) = (format!("{memory_mib}MiB"), arguments.hot);
        options.shards = arguments.shards.to_string();
    });
    let mut cluster = builder.start()?;
    let payload = Payload::new(1, length).bytes();
    cluster[SENDER].native()?.put(&Node::target(KEY), &payload, Default::default())?;
    drop(payload);
    cluster[SENDER].until_clean(KEY)?;
    let (mut senders, mut receivers) = (Pairs::default(), Pairs::default());
    for round in 0..=arguments.pairs {
        let (sender, receiver) = transfer(&mut cluster, arguments.by, length)?;
        let reference = iperf3::run(length)?;
        let name = if round == 0 { "warm-up".to_owned() } else { format!("pair {round}") };
        eprintln!("{name}: peer {:.2} GB/s, iperf3 {:.2}", sender.gb_per_second, reference.sender.gb_per_second);
        if round > 0 {
            senders.add(sender, reference.sender);
            receivers.add(receiver, reference.receiver);
        }
    }
    let from = if arguments.hot { "memory" } else { "disk" };
    println!("{:?} from {from}, {} MiB a run", arguments.by, arguments.object_mib);
    println!("\nthe peer that sends, against iperf3's sender\n{senders}");
    println!("the peer that receives, against iperf3's receiver\n{receivers}");
    Ok(())
}

/// One run: the sender's figures, and the receiver's.
fn transfer(cluster: &mut Cluster, by: By, length: u64) -> Result<(Run, Run)> {
    let object = Node::target(KEY);
    let mut client = cluster[RECEIVER].native()?;
    let dropped = client.evict(&object, Scope::Node)?;
    ensure!(dropped.failures.is_empty(), "not dropped: {:?}", dropped.failures);
    let pids = [SENDER, RECEIVER].map(|index| cluster[index].peer().pid());
    let before = [cpu_time(pids[0])?, cpu_time(pids[1])?];
    cluster.backend.forget();
    let started = Instant::now();
    match by {
        By::Prefetch => {
            let fetched = client.prefetch(&object, Scope::Node)?;
            ensure!(fetched.failures.is_empty(), "not fetched: {:?}", fetched.failures);
            ensure!(fetched.bytes >= length, "only {} of {length} bytes were fetched", fetched.bytes);
        }
        By::Client => {
            let received = client.get(&object, |_, _| ())?;
            ensure!(received == length, "{received} of {length} bytes came");
        }
    }
    let took = started.elapsed();
    let from_backend = cluster.backend.traffic().sent;
    ensure!(from_backend == 0, "{from_backend} bytes came from the backend instead of the other peer");
    let cpu = [cpu_time(pids[0])?.saturating_sub(before[0]), cpu_time(pids[1])?.saturating_sub(before[1])];
    Ok((Run::of(length, took, cpu[0]), Run::of(length, took, cpu[1])))
}
