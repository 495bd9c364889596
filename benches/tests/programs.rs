//! The measuring programs with small figures. Memory is the one that counts here too: it has no noise to hide behind.

use std::process::Command;

use dfstore_tests::netns;

#[test]
fn a_peer_stays_within_its_memory() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dfstore-memory"));
    command.args(["--budget-mib", "128", "--object-mib", "256", "--clients", "64", "--client-mib", "5"]);
    let output = command.output().expect("runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert_eq!(text.matches("within").count(), 4, "{text}");
}

#[test]
fn pieces_come_over_a_link() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dfstore-links"));
    let output = command.args(["--pairs", "1", "--run-mib", "64"]).output().expect("runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("reference GB/s"), "{text}");
}

#[test]
fn small_reads_are_measured_beside_a_crowd() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dfstore-crowd"));
    let output = command.args(["--pairs", "1", "--run-ms", "300", "--crowd", "200"]).output().expect("runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("99th percentile"), "{text}");
}

#[test]
fn small_durable_writes_are_measured() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dfstore-durable"));
    let output = command
        .args(["--rounds", "1", "--writes", "10", "--clients", "4", "--server-shares-cores"])
        .output()
        .expect("runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("PUT against fdatasync"), "{text}");
}

#[test]
fn wrong_usage_exits_with_2() {
    let programs = [
        env!("CARGO_BIN_EXE_dfstore-memory"),
        env!("CARGO_BIN_EXE_dfstore-paired"),
        env!("CARGO_BIN_EXE_dfstore-swarm"),
        env!("CARGO_BIN_EXE_dfstore-peer-link"),
        env!("CARGO_BIN_EXE_dfstore-links"),
        env!("CARGO_BIN_EXE_dfstore-crowd"),
        env!("CARGO_BIN_EXE_dfstore-durable"),
    ];
    for program in programs {
        let output = Command::new(program).arg("--bogus").output().expect("runs");
        assert_eq!(output.status.code(), Some(2));
    }
}

#[test]
fn a_swarm_is_measured_and_leaves_no_namespace() {
    if !netns::available_for("the swarm") {
        return;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_dfstore-swarm"));
    let child = command.args(["--peers", "2", "--object-mib", "8"]).output().expect("runs");
    let text = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{text}");
    let ratio = text.lines().find_map(|line| line.strip_prefix("swarm 1: out of the backend ")).unwrap_or_default();
    let ratio: f64 = ratio.split(' ').next().unwrap_or_default().parse().expect("a ratio");
    assert!((1.0..1.2).contains(&ratio), "{text}");
    assert!(text.contains("star: slowest"), "{text}");
}
