//! Runs the command line `dfstore` of this build and collects what it did.
//!
//! The run is bounded in time; a command that does not end is killed and is an error.

use std::fs::File;
use std::io::{Read, Write};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::binaries::binary;
use crate::dirs;
use crate::process::{leashed, spawn};
use crate::until::eventually;

const RUN_TIMEOUT: Duration = Duration::from_secs(300);
/// People wait longer, and can interrupt.
const TERMINAL_RUN_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// What one run of `dfstore` did.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error, as text.
    pub stderr: String,
}

impl Output {
    /// Itself if the exit code was 0, else an error with what it printed.
    pub fn success(self) -> Result<Output> {
        anyhow::ensure!(self.code == Some(0), "dfstore ended with {:?}: {}", self.code, self.stderr.trim());
        Ok(self)
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Runs `dfstore` with these arguments, which name the endpoint themselves where they need one.
pub fn dfstore(arguments: &[&str]) -> Result<Output> {
    dfstore_with_input(arguments, Vec::new())
}

/// Runs `dfstore` with these arguments with its progress bar and its errors on our standard error, for people.
pub fn dfstore_on_terminal(arguments: &[&str]) -> Result<()> {
    let mut command = leashed(binary("dfstore")?);
    command.args(arguments).env_remove("DFSTORE_ENDPOINT").stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = spawn(command)?;
    let ended = eventually("dfstore ends", TERMINAL_RUN_TIMEOUT, || child.try_wait().transpose());
    if ended.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let status = ended.with_context(|| format!("dfstore {}", arguments.join(" ")))?.context("waiting for dfstore")?;
    anyhow::ensure!(status.success(), "dfstore {} failed: {status}", arguments.join(" "));
    Ok(())
}

/// Runs `dfstore` with these arguments and this standard input.
pub fn dfstore_with_input(arguments: &[&str], input: Vec<u8>) -> Result<Output> {
    let folder = dirs::temporary("dfstore")?;
    let (stdout, stderr) = (folder.path().join("stdout"), folder.path().join("stderr"));
    let mut command = leashed(binary("dfstore")?);
    command.args(arguments).env_remove("DFSTORE_ENDPOINT");
    command.stdin(Stdio::piped()).stdout(File::create(&stdout)?).stderr(File::create(&stderr)?);
    let mut child = spawn(command)?;
    let mut pipe = child.stdin.take().context("its input is a pipe")?;
    // It may end without having read everything: the exit code tells, not the broken pipe.
    let feeder = thread::spawn(move || drop(pipe.write_all(&input)));
    let ended = eventually("dfstore ends", RUN_TIMEOUT, || child.try_wait().transpose());
    if ended.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let _ = feeder.join();
    let status = ended.with_context(|| format!("dfstore {}", arguments.join(" ")))?.context("waiting for dfstore")?;
    let mut output = Output { code: status.code(), stdout: Vec::new(), stderr: String::new() };
    File::open(stdout)?.read_to_end(&mut output.stdout)?;
    let mut text = Vec::new();
    File::open(stderr)?.read_to_end(&mut text)?;
    output.stderr = String::from_utf8_lossy(&text).into_owned();
    Ok(output)
}
