//! The reference for what a link can carry: one stream of `iperf3` over loopback, as outside processes.
//!
//! Reads its JSON report; an iperf3 that is missing or fails is an error that says what to do.

use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dfstore_tests::process::{Process, leashed};
use dfstore_tests::{dirs, eventually, ports};

use crate::pairs::Run;

const START_TIMEOUT: Duration = Duration::from_secs(10);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// One transfer, as each side of it saw it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transfer {
    /// With the CPU time of the side that sends.
    pub sender: Run,
    /// With the CPU time of the side that receives.
    pub receiver: Run,
}

/// Sends this many bytes over loopback.
pub fn run(length_bytes: u64) -> Result<Transfer> {
    let folder = dirs::temporary("iperf3")?;
    let port = ports::free(1)?[0].to_string();
    let mut command = leashed("iperf3");
    command.args(["--server", "--one-off", "--bind", "127.0.0.1", "--port", &port]);
    let mut server = Process::start("iperf3", command, &folder.path().join("log"))?;
    let output = eventually("iperf3 accepts a client", START_TIMEOUT, || match client(&port, length_bytes) {
        Ok(output) if refused(&output) && matches!(server.ended(), Ok(None)) => None,
        other => Some(other),
    })??;
    let report = report(&String::from_utf8_lossy(&output.stdout)).map_err(|error| server.explain(error))?;
    server.wait(STOP_TIMEOUT)?;
    Ok(report)
}

fn client(port: &str, length_bytes: u64) -> Result<Output> {
    let mut command = Command::new("iperf3");
    command.args(["--client", "127.0.0.1", "--port", port, "--json", "--bytes", &length_bytes.to_string()]);
    command.output().context("iperf3 cannot be run: install it (Debian, Ubuntu: apt-get install iperf3)")
}

fn refused(output: &Output) -> bool {
    String::from_utf8_lossy(&output.stdout).contains("Connection refused")
}

/// Field names are iperf3's.
fn report(text: &str) -> Result<Transfer> {
    let report: serde_json::Value = serde_json::from_str(text).context("iperf3's report")?;
    ensure!(report["error"].is_null(), "iperf3: {}", report["error"]);
    let end = &report["end"];
    let figure = |section: &str, name: &str| {
        end[section][name].as_f64().with_context(|| format!("{section}.{name} in iperf3's report"))
    };
    let (bytes, seconds) = (figure("sum_received", "bytes")?, figure("sum_received", "seconds")?);
    let gigabytes = bytes / 1e9;
    let side = |percent: f64| Run {
        gb_per_second: gigabytes / seconds,
        cpu_seconds_per_gb: percent / 100.0 * seconds / gigabytes,
    };
    Ok(Transfer {
        sender: side(figure("cpu_utilization_percent", "host_total")?),
        receiver: side(figure("cpu_utilization_percent", "remote_total")?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_figures_of_a_report() {
        let text = r#"{"end": {"sum_received": {"bytes": 2000000000, "seconds": 2.0},
            "cpu_utilization_percent": {"host_total": 50.0, "remote_total": 100.0}}}"#;
        let transfer = report(text).expect("a report");
        assert_eq!(transfer.sender, Run { gb_per_second: 1.0, cpu_seconds_per_gb: 0.5 });
        assert_eq!(transfer.receiver, Run { gb_per_second: 1.0, cpu_seconds_per_gb: 1.0 });
        assert!(report(r#"{"error": "unable to connect"}"#).is_err() && report("nothing").is_err());
    }

    #[test]
    fn a_real_stream_is_measured() {
        if Command::new("iperf3").arg("--version").output().is_err() {
            eprintln!("SKIPPED: a real stream: no iperf3 here: install it");
            return;
        }
        let transfer = run(64 << 20).expect("a transfer");
        let figures = [transfer.sender, transfer.receiver];
        assert!(figures.iter().all(|run| run.gb_per_second > 0.0 && run.cpu_seconds_per_gb > 0.0), "{transfer:?}");
    }
}
