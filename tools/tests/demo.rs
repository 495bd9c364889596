//! The demo itself, with a small file: every step happens, and nothing stays behind, whatever ends it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dfstore_tests::process::{Process, Signal, leashed};
use dfstore_tests::{dirs, eventually};
use tempfile::TempDir;

const DEMO: &str = env!("CARGO_BIN_EXE_dfstore-demo");
const TIMEOUT: Duration = Duration::from_secs(120);

struct Demo {
    process: Process,
    /// Where it keeps everything.
    run_folder: PathBuf,
    _folder: TempDir,
}

fn start(arguments: &[&str]) -> Demo {
    let folder = dirs::temporary("demo-test").expect("folder");
    let mut command = leashed(DEMO);
    command.args(arguments);
    let process = Process::start("dfstore-demo", command, &folder.path().join("log")).expect("starts");
    let run_folder = dirs::target().expect("target").join(format!("tmp/run-{}", process.pid()));
    Demo { process, run_folder, _folder: folder }
}

impl Demo {
    fn until_it_says(&mut self, text: &str) {
        let said = eventually(text, TIMEOUT, || self.process.log().contains(text).then_some(()));
        said.map_err(|error| self.process.explain(error)).expect("it says so");
        assert!(self.run_folder.is_dir(), "it works in {}", self.run_folder.display());
    }

    fn exit_code(&mut self) -> Option<i32> {
        self.process.wait(TIMEOUT).expect("it ends").code()
    }

    fn assert_nothing_is_left(&self) {
        assert!(!self.run_folder.exists(), "{} is still there", self.run_folder.display());
        let left = processes_that_name(&self.run_folder);
        assert!(left.is_empty(), "still running: {left:?}");
    }
}

/// Command lines of all processes that name this path.
fn processes_that_name(path: &Path) -> Vec<String> {
    let wanted = path.to_string_lossy().into_owned();
    let entries = fs::read_dir("/proc").expect("proc").flatten();
    let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " ")).filter(|line| line.contains(&wanted)).collect()
}

#[test]
fn shows_every_step_and_leaves_nothing() {
    let mut demo = start(&["--size", "9MiB"]);
    let code = demo.exit_code();
    let log = demo.process.log();
    assert_eq!(code, Some(0), "{log}");
    for step in ["copy in", "copy out (local hit)", "copy out (warm restart)", "copy out (nothing cached)", "remove"] {
        assert!(log.lines().any(|line| line.starts_with(step)), "no step {step:?} in {log}");
    }
    let from_backend = log.lines().find(|line| line.starts_with("copy out (nothing cached)")).unwrap_or_default();
    assert!(from_backend.contains("backend"), "{from_backend}");
    demo.assert_nothing_is_left();
}

#[test]
fn interruption_stops_and_removes_everything() {
    let mut demo = start(&["--size", "64MiB"]);
    demo.until_it_says("dfstore-peer at");
    demo.process.signal(Signal::INT).expect("sent");
    assert_eq!(demo.exit_code(), Some(130), "{}", demo.process.log());
    demo.assert_nothing_is_left();
}

#[test]
fn kept_demo_runs_until_it_is_interrupted() {
    let mut demo = start(&["--size", "1MiB", "--keep"]);
    demo.until_it_says("^C stops it");
    assert!(processes_that_name(&demo.run_folder).len() >= 2, "the peer and the S3 server are running");
    demo.process.signal(Signal::INT).expect("sent");
    assert_eq!(demo.exit_code(), Some(0), "{}", demo.process.log());
    demo.assert_nothing_is_left();
}

#[test]
fn cluster_shows_every_step_and_leaves_nothing() {
    let mut demo = start(&["--peers", "4", "--size", "9MiB"]);
    let code = demo.exit_code();
    let log = demo.process.log();
    assert_eq!(code, Some(0), "{log}");
    let steps = [
        "copy in at peer 1",
        "copy out at peer 2",
        "copy out at 3 and 4, at once",
        "wait for the bucket",
        "drop it everywhere",
        "copy out at all, nothing cached",
        "copy out at peer 2, peer 1 dead",
        "start peer 1 again",
        "remove",
    ];
    for step in steps {
        assert!(log.lines().any(|line| line.starts_with(step)), "no step {step:?} in {log}");
    }
    assert_eq!(log.matches("one copy").count(), 2, "{log}");
    demo.assert_nothing_is_left();
}

#[test]
fn interruption_of_a_cluster_stops_and_removes_everything() {
    let mut demo = start(&["--peers", "3", "--size", "64MiB"]);
    demo.until_it_says("peer 3 (the seed) at");
    demo.process.signal(Signal::INT).expect("sent");
    assert_eq!(demo.exit_code(), Some(130), "{}", demo.process.log());
    demo.assert_nothing_is_left();
}
