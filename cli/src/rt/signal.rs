//! What happens on SIGINT, SIGTERM and SIGHUP: unfinished files go, then the process dies of the signal, so that
//! shells and supervisors see what ended it.
//!
//! The signals are blocked in every thread and awaited by one: it may take locks and touch files, which a signal
//! handler may not.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

const SIGNALS: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// Files to remove when the process is interrupted. Clones share the list, which has one entry per running transfer.
#[derive(Clone, Default)]
pub struct Unfinished(Arc<Mutex<Vec<PathBuf>>>);

impl Unfinished {
    /// Removes `path` on interruption from now on.
    pub fn add(&self, path: &Path) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(path.to_path_buf());
    }

    /// Runs `last`, which renames or removes the file, and forgets it, with no interruption in between.
    pub fn settle<T>(&self, path: &Path, last: impl FnOnce() -> T) -> T {
        let mut paths = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let result = last();
        paths.retain(|known| known != path);
        result
    }

    fn remove_all(&self) {
        let paths = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for path in paths.iter() {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Starts to watch. Must be called before any other thread starts, or that thread would not block the signals.
pub fn watch(unfinished: Unfinished) -> io::Result<()> {
    let set = block()?;
    let wait = move || {
        let mut signal = 0;
        // SAFETY: both pointers are to live values of the right type.
        if unsafe { libc::sigwait(&raw const set, &raw mut signal) } == 0 {
            unfinished.remove_all();
            // On a line of its own: a progress bar may stand there.
            let _ = std::io::stderr().lock().write_all(b"\nError: interrupted\n");
            die_of(signal);
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait)?;
    Ok(())
}

/// Blocks the signals in this thread and those it starts. Ignored ones (`nohup`) stay ignored.
fn block() -> io::Result<libc::sigset_t> {
    // SAFETY: a zeroed set is a valid argument of `sigemptyset`, the others get what it made.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in SIGNALS {
            let mut action: libc::sigaction = std::mem::zeroed();
            let known = libc::sigaction(signal, std::ptr::null(), &raw mut action) == 0;
            if known && action.sa_sigaction != libc::SIG_IGN {
                libc::sigaddset(&raw mut set, signal);
            }
        }
        match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) {
            0 => Ok(set),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

fn die_of(signal: libc::c_int) {
    // SAFETY: restores the default action of a signal this process awaited, unblocks it here and raises it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::signal(signal, libc::SIG_DFL);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
        libc::raise(signal);
    }
    // Only if raising failed: 128 + the number is what shells show for it.
    std::process::exit(128 + signal);
}
