//! `dfstore-demo`: the product on real data, in one run. `tools/demo` builds everything and calls it.

use std::process::ExitCode;

use clap::Parser;
use dfstore_tests::{dirs, until};
use dfstore_tools::demo::{self, Options};

fn main() -> ExitCode {
    let options = Options::parse();
    let outcome = until::heed_signals().and_then(|()| demo::run(&options));
    dirs::remove_run_folders();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if until::check_interruption().is_err() => {
            eprintln!("interrupted: everything is stopped and removed");
            ExitCode::from(until::EXIT_INTERRUPTED)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
