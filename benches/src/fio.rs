//! The reference for what a disk can do: `fio` with direct I/O over io_uring, as an outside process.
//!
//! Not needed for tests. Reads its JSON report; a fio that is missing or fails is an error that says what to do.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::pairs::Run;

/// What fio is to do with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Read it from the start to the end.
    Read,
    /// Write it from the start to the end, and sync at the end.
    Write,
}

/// How fio goes over the file.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Bytes of the file.
    pub length_bytes: u64,
    /// Bytes of each request.
    pub block_bytes: u32,
    /// Requests in flight.
    pub depth: u32,
}

/// Runs one job over `file` to its end.
pub fn run(job: Job, file: &Path, plan: Plan) -> Result<Run> {
    let mut command = Command::new("fio");
    command.args(["--name=reference", "--direct=1", "--ioengine=io_uring", "--output-format=json"]);
    command.arg(format!("--filename={}", file.display()));
    command.arg(format!("--size={}", plan.length_bytes));
    command.arg(format!("--bs={}", plan.block_bytes)).arg(format!("--iodepth={}", plan.depth));
    command.args(match job {
        Job::Read => ["--rw=read", "--invalidate=1"],
        Job::Write => ["--rw=write", "--end_fsync=1"],
    });
    let output = command.output().context("fio cannot be run: install it (Debian, Ubuntu: apt-get install fio)")?;
    ensure!(output.status.success(), "fio failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    report(job, &String::from_utf8_lossy(&output.stdout))
}

/// Reads the figures of the only job. Field names are fio's.
fn report(job: Job, text: &str) -> Result<Run> {
    // Warnings may stand in front of the report.
    let start = text.find('{').context("fio printed no report")?;
    let report: serde_json::Value = serde_json::from_str(&text[start..]).context("fio's report")?;
    let job_report = &report["jobs"][0];
    let side = &job_report[if job == Job::Read { "read" } else { "write" }];
    let bytes = side["io_bytes"].as_f64().context("io_bytes in fio's report")?;
    // `runtime` leaves the final sync out, `job_runtime` has it.
    let millis =
        job_report["job_runtime"].as_f64().or(side["runtime"].as_f64()).context("a runtime in fio's report")?;
    let cpu_percent = |name: &str| job_report[name].as_f64().with_context(|| format!("{name} in fio's report"));
    let cpu_seconds = (cpu_percent("usr_cpu")? + cpu_percent("sys_cpu")?) / 100.0 * millis / 1e3;
    Ok(Run { gb_per_second: bytes / 1e6 / millis, cpu_seconds_per_gb: cpu_seconds / (bytes / 1e9) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_figures_of_a_report() {
        let text = r#"fio: a warning
            {"jobs": [{"job_runtime": 2000, "usr_cpu": 10.0, "sys_cpu": 40.0,
                       "read": {"io_bytes": 2000000000, "runtime": 1990}, "write": {"io_bytes": 0, "runtime": 0}}]}"#;
        let run = report(Job::Read, text).expect("a report");
        assert_eq!(run, Run { gb_per_second: 1.0, cpu_seconds_per_gb: 0.5 });
        assert!(report(Job::Read, "nothing").is_err());
    }
}
