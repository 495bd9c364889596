//! Child processes on a leash: none outlives this process, whatever ends it.
//!
//! A child is started through `setpriv --pdeathsig KILL`, so the kernel ends it when its parent is gone, also after a
//! panic, an abort or kill -9. The kernel means the parent *thread*, and a test is a thread; so all children are
//! started by one thread that lives as long as the process. Dropping a [`Process`] kills it. Its output goes to a
//! file, whose tail is part of every error.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

use crate::until::eventually;

/// Lines of a log that go into an error.
const TAIL_LINES: usize = 30;
/// Set by `tools/test`: a test program that runs longer than this many seconds is stuck.
const TIME_LIMIT_VARIABLE: &str = "DFSTORE_TEST_SECONDS_MAX";

type Start = (Command, SyncSender<std::io::Result<Child>>);

/// A command that dies with this process. Start it with [`spawn`] or [`Process::start`].
pub fn leashed(program: impl AsRef<OsStr>) -> Command {
    leashed_in(None, program)
}

/// As [`leashed`], within this network namespace (see [`crate::netns`]).
pub fn leashed_in(namespace: Option<&str>, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]);
    if let Some(namespace) = namespace {
        // It replaces itself by the program: process id and leash stay.
        command.args(["ip", "netns", "exec", namespace]);
    }
    command.arg(program);
    // A group of its own: ^C at the terminal reaches us alone, and we end our children in order.
    command.process_group(0);
    command
}

/// Starts a leashed command from the thread that outlives all tests.
pub fn spawn(command: Command) -> Result<Child> {
    static STARTER: OnceLock<SyncSender<Start>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (sender, requests) = sync_channel::<Start>(16);
        thread::spawn(move || {
            for (mut command, reply) in requests {
                let _ = reply.send(command.spawn());
            }
        });
        sender
    });
    let described = format!("{command:?}");
    let (reply, started) = sync_channel(1);
    starter.send((command, reply)).map_err(|_| anyhow!("the starting thread is gone"))?;
    let child = started.recv().context("the starting thread is gone")?;
    child.with_context(|| format!("cannot start {described} (setpriv is part of util-linux)"))
}

/// Ends the program with a message when it runs longer than the environment allows (see [`TIME_LIMIT_VARIABLE`]): a
/// stuck test must not stop the whole run. Its children die with it.
pub fn watch_over_this_program() {
    static WATCH: OnceLock<()> = OnceLock::new();
    WATCH.get_or_init(|| {
        let limit = std::env::var(TIME_LIMIT_VARIABLE).ok().and_then(|seconds| seconds.parse().ok());
        let Some(seconds) = limit else { return };
        thread::spawn(move || {
            thread::sleep(Duration::from_secs(seconds));
            eprintln!("this test program has run for {seconds} s: stuck, given up");
            std::process::exit(101);
        });
    });
}

/// A running (or ended) child with its log.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` (made by [`leashed`]) with both outputs appended to the file `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Process> {
        let output = File::options().create(true).append(true).open(log);
        let output = output.with_context(|| format!("cannot write {}", log.display()))?;
        let errors = output.try_clone().context("a second handle of the log")?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let child = spawn(command)?;
        Ok(Process { name: name.to_owned(), child, log: log.to_path_buf(), ended: None })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().with_context(|| format!("waiting for {}", self.name))?;
        }
        Ok(self.ended)
    }

    /// Sends a signal; nothing happens when it has ended already.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.ended()?.is_some() {
            return Ok(());
        }
        let pid =
            i32::try_from(self.pid()).ok().and_then(Pid::from_raw).context("a process id is a positive number")?;
        kill_process(pid, signal).with_context(|| format!("signal {signal:?} to {}", self.name))
    }

    /// `kill -9`, and waits for the end.
    pub fn kill9(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.wait(Duration::from_secs(10)).map(drop)
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(timeout)
    }

    /// Waits for the end; an error (and the process goes on) when it takes longer.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let what = format!("{} ends", self.name);
        let ended = eventually(&what, timeout, || self.ended().transpose());
        ended.and_then(|status| status).map_err(|error| self.explain(error))
    }

    /// Everything it has printed.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The last lines that it has printed, indented.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n    ")
    }

    /// Adds the process's state and the end of its log to an error.
    pub fn explain(&mut self, error: anyhow::Error) -> anyhow::Error {
        let state = match self.ended() {
            Ok(Some(status)) => match status.signal() {
                Some(signal) => format!("was ended by signal {signal}"),
                None => format!("has exited with code {}", status.code().unwrap_or_default()),
            },
            Ok(None) => "is running".to_owned(),
            Err(error) => format!("is in an unknown state ({error})"),
        };
        error.context(format!("{} {state}; the end of its log:\n    {}", self.name, self.log_tail()))
    }

    /// Resident memory in bytes.
    pub fn rss_bytes(&self) -> Result<u64> {
        rss_bytes(self.pid())
    }

    /// CPU time used so far, user and system, over all threads.
    pub fn cpu_time(&self) -> Result<Duration> {
        cpu_time(self.pid())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !matches!(self.ended(), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Resident memory of a process in bytes.
pub fn rss_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().context("VmRSS is a number")?;
    Ok(kib << 10)
}

/// CPU time used so far by a process, user and system, over all threads.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    // The second field is the name in parentheses, which may contain anything; fields 14 and 15 are the times.
    let (_, rest) = stat.rsplit_once(')').context("no name in stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks =
        |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).context("no times in stat");
    let millis = (ticks(11)? + ticks(12)?) * 1000 / rustix::param::clock_ticks_per_second();
    Ok(Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dirs;

    fn shell(script: &str, log: &Path) -> Process {
        let mut command = leashed("sh");
        command.args(["-c", script]);
        Process::start("shell", command, log).expect("sh starts")
    }

    #[test]
    fn errors_show_the_end_of_the_log() {
        let folder = dirs::temporary("process").expect("folder");
        let mut process = shell("echo all went wrong; exit 3", &folder.path().join("log"));
        let status = process.wait(Duration::from_secs(10)).expect("ends");
        assert_eq!(status.code(), Some(3));
        let text = format!("{:#}", process.explain(anyhow!("oops")));
        assert!(text.contains("code 3") && text.contains("all went wrong") && text.contains("oops"), "{text}");
    }

    #[test]
    fn child_outlives_the_thread_that_asked_for_it_and_dies_with_its_owner() {
        let folder = dirs::temporary("process").expect("folder");
        let log = folder.path().join("log");
        let mut process = thread::spawn(move || shell("exec sleep 1000", &log)).join().expect("joined");
        let pid = process.pid();
        eventually("sleep is running", Duration::from_secs(10), || {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            (name.trim() == "sleep").then_some(())
        })
        .expect("sleep runs");
        assert!(process.ended().expect("asked").is_none());
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn reads_memory_and_cpu_time_of_this_process() {
        assert!(cpu_time(std::process::id()).is_ok());
        assert!(rss_bytes(std::process::id()).expect("memory") > 1 << 20);
    }
}
