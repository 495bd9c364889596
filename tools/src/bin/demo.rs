//! `dfstore-demo`: the product on real data, in one run. `tools/demo` builds everything and calls it.

use std::process::ExitCode;

use clap::Parser;
use dfstore_tests::{dirs, until};
use dfstore_tools::demo::{self, Options};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

/// As a shell reports a program that ^C ended.
const EXIT_INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let options = Options::parse();
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let interrupted = until::interruption();
        // The second one ends us at once, when cleaning up takes too long; our children die with us.
        let registered = flag::register_conditional_shutdown(signal, i32::from(EXIT_INTERRUPTED), interrupted.clone())
            .and_then(|_| flag::register(signal, interrupted));
        if let Err(error) = registered {
            eprintln!("error: cannot watch for signal {signal}: {error}");
            return ExitCode::FAILURE;
        }
    }
    let outcome = demo::run(&options);
    dirs::remove_run_folder();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if until::check_interruption().is_err() => {
            eprintln!("interrupted: everything is stopped and removed");
            ExitCode::from(EXIT_INTERRUPTED)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
