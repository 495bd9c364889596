//! `dfstore`: copies objects to and from dfstore peers, and lists, shows and removes them.
//!
//! The pipeline: parse the command line, watch for signals, run one command, say how it went. Exit codes are 0 (done),
//! 1 (failed) and 2 (the command line makes no sense). What commands print goes to standard output, everything else to
//! standard error. This crate knows the protocol (`dfstore-proto`) and nothing of the peer.

mod args;
mod client;
mod commands;
mod error;
mod progress;
mod rt;
mod transfer;
mod url;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Cli;
use crate::rt::signal::Unfinished;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let unfinished = Unfinished::default();
    let done = rt::signal::watch(unfinished.clone())
        .map_err(anyhow::Error::from)
        .and_then(|()| commands::run(cli, &unfinished));
    match done {
        Ok(()) => ExitCode::from(error::EXIT_DONE),
        Err(error) => error::report(&error),
    }
}
