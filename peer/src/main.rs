//! The binary `dfstore-peer`: command line, configuration, logging, probes, then the server. Each step either gives
//! what the next one needs or ends the process with a message that says what is wrong and what to do.

mod cli_args;

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

use dfstore_peer::config::Config;
use dfstore_peer::metrics::Metrics;
use dfstore_peer::{logging, probe, server};

use cli_args::Args;

fn main() -> ExitCode {
    let (args, overrides) = match cli_args::parse(std::env::args_os(), |name| std::env::var(name).ok()) {
        Ok(parsed) => parsed,
        Err(error) => error.exit(),
    };
    let config = match Config::load(&args.config, &overrides) {
        Ok(config) => config,
        Err(error) => {
            error.problems.iter().for_each(complain);
            return ExitCode::FAILURE;
        }
    };
    if args.check { check(&config) } else { start(&args, config) }
}

/// Prints what the configuration means.
fn check(config: &Config) -> ExitCode {
    for warning in &config.warnings {
        eprintln!("dfstore-peer: warning: {warning}");
    }
    match write!(std::io::stdout(), "{config}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("standard output: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn start(args: &Args, mut config: Config) -> ExitCode {
    logging::start(&config);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let ready = match probe::run(&config) {
        Ok(ready) => ready,
        Err(error) => {
            for missing in &error.missing {
                complain(missing);
                hint(missing.hint());
            }
            return ExitCode::FAILURE;
        }
    };
    for warning in &ready.warnings {
        tracing::warn!("{warning}");
    }
    config.http.ports = ready.port..=ready.port;
    if let (Some(cluster), Some(port)) = (&mut config.cluster, ready.peer_port) {
        cluster.peer.ports = port..=port;
    }
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(version, config = %args.config.display(), shards = config.shards, "starting");
    let metrics = Metrics::new(config.shards, &format!("{}:{}", config.http.listen, ready.port));
    metrics.set_capacity(config.store.capacity_bytes);
    // The lock of the data folder is held until the server has ended.
    let result = server::run(config, metrics);
    drop(ready.lock);
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(error);
            ExitCode::FAILURE
        }
    }
}

fn complain(what: impl Display) {
    eprintln!("dfstore-peer: error: {what}");
}

fn hint(what: impl Display) {
    eprintln!("  hint: {what}");
}
