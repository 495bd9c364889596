//! The demo: one peer in front of a bucket, a file through it in every way, and a table of what happened.
//!
//! Owns a temporary folder, an S3 server and a peer, all gone when it returns, in whatever way. Each
//! copy is compared byte by byte with what was made up, and each step says where its bytes came from by the peer's own
//! counters; a copy that came from elsewhere than it should is a failure.

mod compare;
mod size;
mod stage;
mod steps;
mod table;

use anyhow::Result;
use clap::Parser;

pub use size::Size;

/// Shows dfstore on real data: starts an S3 server and one peer on loopback, copies a file in and out, from the local
/// disk, after a restart, and from the bucket, and removes it.
#[derive(Clone, Debug, Parser)]
#[command(name = "tools/demo")]
pub struct Options {
    /// Length of the file: bytes, or a number with KiB, MiB or GiB.
    #[arg(long, default_value = "1GiB", value_name = "SIZE")]
    pub size: Size,
    /// Leave the peer running at the end, with the file in it, and print commands to try by hand. ^C ends it and
    /// cleans up.
    #[arg(long)]
    pub keep: bool,
}

/// Runs the whole demo.
pub fn run(options: &Options) -> Result<()> {
    let mut stage = stage::Stage::set_up(options.size.0)?;
    let mut table = table::Table::default();
    steps::run(&mut stage, &mut table)?;
    if options.keep {
        eprintln!();
        print!("{table}");
        return steps::keep(&stage);
    }
    steps::remove(&mut stage, &mut table)?;
    drop(stage);
    eprintln!();
    print!("{table}");
    Ok(())
}
