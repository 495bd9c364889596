//! The demo: a peer, or a cluster, in front of a bucket, a file through it in every way, and a table of what happened.
//!
//! Owns a temporary folder, an S3 server and peers, all gone when it returns, in whatever way. Each
//! copy is compared byte by byte with what was made up, and each step says where its bytes came from by the peer's own
//! counters; a copy that came from elsewhere than it should is a failure.

mod cluster;
mod compare;
mod moves;
mod proof;
mod size;
mod stage;
mod steps;
mod table;

use anyhow::Result;
use clap::Parser;
use dfstore_tests::cluster::Cluster;
use dfstore_tests::peer::Peer;

pub use size::Size;

/// Shows dfstore on real data: starts an S3 server and one peer on loopback, copies a file in and out, from the local
/// disk, after a restart, and from the bucket, and removes it. With --peers, the same between the peers of a cluster.
#[derive(Clone, Debug, Parser)]
#[command(name = "tools/demo")]
pub struct Options {
    /// Length of the file: bytes, or a number with KiB, MiB or GiB.
    #[arg(long, default_value = "1GiB", value_name = "SIZE")]
    pub size: Size,
    /// Peers: 1, or 3 to 8 for a cluster, of which the last one is the seed.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = peer_count)]
    pub peers: usize,
    /// Leave the peers running at the end, with the file in them, and print commands to try by hand. ^C ends it and
    /// cleans up.
    #[arg(long)]
    pub keep: bool,
}

fn peer_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ (1 | 3..=8)) => Ok(count),
        _ => Err("write 1, or a number from 3 to 8".to_owned()),
    }
}

/// Runs the whole demo.
pub fn run(options: &Options) -> Result<()> {
    let mut table = table::Table::default();
    match options.peers {
        1 => {
            let mut stage = stage::Stage::<Peer>::set_up(options.size.0)?;
            steps::run(&mut stage, &mut table)?;
            if options.keep {
                return keep(&table, || steps::keep(&stage));
            }
            steps::remove(&stage, &mut table)?;
        }
        peers => {
            let mut stage = stage::Stage::<Cluster>::set_up(options.size.0, peers)?;
            cluster::run(&mut stage, &mut table)?;
            if options.keep {
                return keep(&table, || cluster::keep(&stage));
            }
            cluster::remove(&stage, &mut table)?;
        }
    }
    eprintln!();
    print!("{table}");
    Ok(())
}

fn keep(table: &table::Table, wait: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!();
    print!("{table}");
    wait()
}
