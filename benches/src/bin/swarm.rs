//! `dfstore-swarm`: many peers read one object at once, cold, over links of a known speed; and the star beside it.
//!
//! Each node, and the backend, has a network namespace of its own with a shaped link. Measured are what left the
//! backend (by its link, not by anybody's word) and when each reader had everything, against the least time in which
//! that can be done. The star: the same readers read the same object straight from the backend, whose link is as narrow
//! then as that of a node. Needs root; loopback and namespaces of our own only.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use dfstore_benches::curl::{Reader, read_at_once};
use dfstore_benches::distribution::{Links, star_bound, swarm_bound};
use dfstore_benches::lab::ensure_built;
use dfstore_tests::bucket::Bucket;
use dfstore_tests::cluster::{BUCKET, BackendKind, Cluster, Node, Place};
use dfstore_tests::data::Payload;
use dfstore_tests::folder_s3::FolderS3;
use dfstore_tests::netns::{self, Namespace, Network, Shape};
use dfstore_tests::peer::Peer;
use dfstore_tests::process::watch_over_this_program;
use dfstore_tests::{dirs, until};

/// The first run, in which connections are opened, piece files made and memory touched for the first time.
const WARM_UP: u32 = 0;
/// A run that takes this many times the bound has failed.
const PATIENCE_FACTOR: u32 = 10;
const PATIENCE_MIN: Duration = Duration::from_secs(60);

/// Measures how fast one object reaches many peers, beside the same readers at one host.
#[derive(Clone, Copy, Debug, Parser)]
struct Arguments {
    /// Peers that read, besides the seed.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=32))]
    peers: u32,
    /// Length of the object, in MiB.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=16384))]
    object_mib: u64,
    /// Link of each node, both ways, in Mbit/s.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    link_mbit: u64,
    /// How long packets may wait in front of each link before they are dropped, in milliseconds.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..=1000))]
    queue_ms: u64,
    /// Link of the backend while peers read, in Mbit/s: not the bottleneck.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    backend_mbit: u64,
    /// Runs after one warm-up, each with a new object.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Leave the star out.
    #[arg(long)]
    no_star: bool,
}

fn main() -> ExitCode {
    watch_over_this_program();
    let arguments = Arguments::parse();
    dfstore_benches::exit_code(until::heed_signals().and_then(|()| run(arguments)))
}

/// Everything that runs. Fields are dropped in this order: processes before their namespaces.
struct Lab {
    cluster: Cluster,
    _s3: FolderS3,
    _folder: tempfile::TempDir,
    backend: Namespace,
    nodes: Vec<Namespace>,
    _network: Network,
}

impl Arguments {
    fn link(&self, megabits: u64) -> Shape {
        Shape::both(megabits).queue(Duration::from_millis(self.queue_ms))
    }
}

impl Lab {
    fn start(arguments: Arguments) -> Result<Lab> {
        let mut network = Network::start()?;
        let backend = network.add(arguments.link(arguments.backend_mbit))?;
        let add = |_| network.add(arguments.link(arguments.link_mbit));
        let nodes = (0..=arguments.peers).map(add).collect::<Result<Vec<_>>>()?;
        let folder = dirs::temporary("swarm")?;
        let s3 = FolderS3::start(folder.path(), backend.address().into(), Some(backend.name()))?;
        let builder = Cluster::builder().seeds(1).peers(arguments.peers as usize);
        let builder = builder.backend(BackendKind::Elsewhere(s3.endpoint())).all(|index, options| {
            options.place = Place::within(&nodes[index]);
            // An older object and a new one.
            options.capacity = format!("{}MiB", 2 * arguments.object_mib + 512);
            options.memory_budget = "128MiB".to_owned();
            // All nodes share the cores of one machine.
            options.shards = "1".to_owned();
        });
        let cluster = builder.start()?;
        Ok(Lab { cluster, _s3: s3, _folder: folder, backend, nodes, _network: network })
    }

    /// One reader in the namespace of each peer; the first namespace is the seed's.
    fn readers(&self, reader: impl Fn(usize) -> Reader) -> Vec<Reader> {
        (1..self.nodes.len()).map(reader).collect()
    }

    fn at_peers(&self, key: &str) -> Vec<Reader> {
        self.readers(|index| {
            let node: &Node = &self.cluster[index];
            let url = format!("{}{}", node.peer().endpoint(), Peer::object_path(BUCKET, key));
            Reader { namespace: Some(self.nodes[index].name().to_owned()), url, keys: None }
        })
    }

    fn at_backend(&self, key: &str) -> Vec<Reader> {
        let bucket: &Bucket = &self.cluster.bucket;
        self.readers(|index| Reader {
            namespace: Some(self.nodes[index].name().to_owned()),
            url: format!("{}/{BUCKET}/{key}", bucket.endpoint.url),
            keys: Some(bucket.endpoint.clone()),
        })
    }
}

fn run(arguments: Arguments) -> Result<()> {
    if let Some(why) = netns::missing() {
        bail!("network namespaces are needed: {why}");
    }
    for program in ["dfstore-peer", "dfstore-test-s3"] {
        ensure_built(program)?;
    }
    let lab = Lab::start(arguments)?;
    let Arguments { peers, object_mib, link_mbit, backend_mbit, queue_ms, .. } = arguments;
    println!(
        "{peers} peers and a seed at {link_mbit} Mbit/s each, backend at {backend_mbit} Mbit/s, queues of {queue_ms} ms, \
         {object_mib} MiB"
    );
    for number in WARM_UP..=arguments.runs {
        swarm(&lab, arguments, number)?;
    }
    if !arguments.no_star {
        star(&lab, arguments)?;
    }
    Ok(())
}

fn swarm(lab: &Lab, arguments: Arguments, number: u32) -> Result<()> {
    let (length, bits) = (arguments.object_mib << 20, arguments.link_mbit * 1_000_000);
    let key = key(number);
    lab.cluster.bucket.put(&key, &Payload::new(number.into(), length).bytes()).context("the object")?;
    let bound = swarm_bound(length, arguments.peers.into(), Links { seed_bits: bits, peer_bits: bits });
    let before = lab.backend.sent_bytes()?;
    let times = read_at_once(&lab.at_peers(&key), length, patience(bound))?;
    let sent = lab.backend.sent_bytes()? - before;
    let name = if number == WARM_UP { "warm-up".to_owned() } else { format!("swarm {number}") };
    println!("{name}: out of the backend {:.3} of the object", sent as f64 / length as f64);
    print_times(&name, times, bound);
    Ok(())
}

fn star(lab: &Lab, arguments: Arguments) -> Result<()> {
    let length = arguments.object_mib << 20;
    lab.backend.shape(arguments.link(arguments.link_mbit))?;
    let bound = star_bound(length, arguments.peers.into(), arguments.link_mbit * 1_000_000);
    let times = read_at_once(&lab.at_backend(&key(WARM_UP)), length, patience(bound))?;
    print_times("star", times, bound);
    Ok(())
}

fn key(number: u32) -> String {
    format!("swarm-{number}")
}

fn patience(bound: Duration) -> Duration {
    (bound * PATIENCE_FACTOR).max(PATIENCE_MIN)
}

fn print_times(name: &str, mut times: Vec<Duration>, bound: Duration) {
    times.sort();
    let seconds = |index: usize| times.get(index).map_or(f64::NAN, Duration::as_secs_f64);
    let (slowest, median) = (seconds(times.len().saturating_sub(1)), seconds(times.len() / 2));
    println!(
        "{name}: slowest {slowest:.2} s, median {median:.2} s, bound {:.2} s, slowest / bound {:.2}",
        bound.as_secs_f64(),
        slowest / bound.as_secs_f64()
    );
}
