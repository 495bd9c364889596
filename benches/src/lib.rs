//! What the benches share: a peer to measure, load of many connections, and figures of runs in pairs.
//!
//! Benches live in `benches/benches` and run with `cargo bench`; without `--bench` on the command line, as in
//! `cargo test`, each is a smoke test of seconds. The programs in `src/bin` compare the peer with outside references.
//! May call any crate of the workspace; nothing calls it.

pub mod curl;
pub mod distribution;
pub mod fio;
pub mod iperf3;
pub mod lab;
pub mod load;
pub mod nginx;
pub mod pairs;

use std::process::ExitCode;

use dfstore_tests::dirs;

/// How a program of `src/bin` ends: its folders go, and what went wrong is said on standard error.
pub fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    dirs::remove_run_folders();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether this is a run of seconds that only shows that the bench works.
pub fn is_smoke() -> bool {
    !std::env::args().any(|argument| argument == "--bench")
}
