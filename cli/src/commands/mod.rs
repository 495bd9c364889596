//! The commands, one file each, and how they print.
//!
//! A command turns arguments into requests and answers into lines. Lines for people and scripts go to standard
//! output; a closed pipe there is an error like any other, not a panic.

mod cluster;
mod cp;
mod date;
mod ls;
mod rm;
mod scrub;
mod stat;
mod table;
mod version;
mod whereabouts;
mod work;
mod writeback;

use std::fmt::Display;
use std::io::Write;

use anyhow::{Context, Result};
use clap::CommandFactory;
use dfstore_proto::ids::ObjectName;
use dfstore_proto::message::VersionState;

use crate::args::{Cli, ClusterCommand, Command};
use crate::client::Peer;
use crate::error::usage;
use crate::rt::block_on;
use crate::rt::signal::Unfinished;
use crate::url::{DfsUrl, Endpoint};
use work::Work;

/// Runs the command that was asked for.
pub fn run(cli: Cli, unfinished: &Unfinished) -> Result<()> {
    let endpoint = || Endpoint::parse(&cli.endpoint).map_err(usage);
    match &cli.command {
        Command::Cp(args) => cp::run(&endpoint()?, args, unfinished),
        Command::Rm(args) => block_on(rm::run(&Peer::find(&endpoint()?)?, args))?,
        Command::Stat(args) => block_on(stat::run(&Peer::find(&endpoint()?)?, args))?,
        Command::Ls(args) => block_on(ls::run(&Peer::find(&endpoint()?)?, args))?,
        Command::Prefetch(args) => block_on(work::run(&Peer::find(&endpoint()?)?, Work::Prefetch, args))?,
        Command::Evict(args) => block_on(work::run(&Peer::find(&endpoint()?)?, Work::Evict, args))?,
        Command::Cluster(ClusterCommand::Status(args)) => block_on(cluster::status(&Peer::find(&endpoint()?)?, args))?,
        Command::Writeback(command) => block_on(writeback::run(&Peer::find(&endpoint()?)?, command))?,
        Command::Scrub(args) => block_on(scrub::run(&Peer::find(&endpoint()?)?, args))?,
        Command::Version(args) => version::run(args),
        Command::Completion { shell } => complete(*shell),
    }
}

fn complete(shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "dfstore", &mut script);
    std::io::stdout().lock().write_all(&script).context("cannot write to standard output")
}

/// Prints a line on standard output.
fn print_line(line: impl Display) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("cannot write to standard output")
}

/// Says something beside the result, on standard error.
fn note(line: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// An argument that must be a `dfs://` URL.
fn parse_url(text: &str) -> Result<DfsUrl> {
    let url = DfsUrl::parse(text).map_err(usage)?;
    note_query(text, &url);
    Ok(url)
}

/// An argument that must name an object.
fn parse_object(text: &str) -> Result<ObjectName> {
    parse_url(text)?.object().map_err(usage)
}

/// Old clients cut a query off without a word; the user may have meant a question mark of the key.
fn note_query(text: &str, url: &DfsUrl) {
    if url.query.is_some() {
        note(format_args!("Note: what follows '?' in '{text}' is ignored; write %3F for a question mark in a key"));
    }
}

fn state_name(state: VersionState) -> &'static str {
    match state {
        VersionState::Clean => "clean",
        VersionState::Dirty => "dirty",
        VersionState::Ephemeral => "ephemeral",
    }
}
