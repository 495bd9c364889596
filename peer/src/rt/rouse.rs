//! Getting a thread out of the system call that it waits in.
//!
//! A signal does it: io_uring's wait then ends early, which every runtime takes for nothing to do and looks around. For
//! threads whose runtime may miss a wake and sleep on.

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use signal_hook::consts::SIGURG;

/// One thread of this process.
#[derive(Clone, Copy, Debug)]
pub struct Rouser {
    process: i32,
    thread: i32,
}

impl Rouser {
    /// The thread that calls. Fails when the signal cannot be handled, and so would be of no effect.
    pub fn of_this_thread() -> io::Result<Rouser> {
        static HANDLED: OnceLock<bool> = OnceLock::new();
        let handle = || signal_hook::flag::register(SIGURG, Arc::new(AtomicBool::new(false))).is_ok();
        if !*HANDLED.get_or_init(handle) {
            return Err(io::Error::other("the signal SIGURG cannot be handled"));
        }
        let process = rustix::process::getpid().as_raw_nonzero().get();
        Ok(Rouser { process, thread: rustix::thread::gettid().as_raw_nonzero().get() })
    }

    /// Ends the wait it is in, if it is in one. A thread that has ended is not roused.
    pub fn rouse(self) {
        // SAFETY: the call takes three numbers and touches no memory. The signal is handled by a flag, so that it does
        // no harm to whichever thread of this process has the number by now.
        unsafe { libc::syscall(libc::SYS_tgkill, self.process, self.thread, SIGURG) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    use rustix::thread::{NanosleepRelativeResult, Timespec, nanosleep};

    #[test]
    fn a_thread_that_waits_is_roused() {
        let (tell, told) = mpsc::channel();
        let (done, over) = mpsc::channel();
        std::thread::spawn(move || {
            tell.send(Rouser::of_this_thread()).expect("the test waits");
            let result = nanosleep(&Timespec { tv_sec: 600, tv_nsec: 0 });
            done.send(matches!(result, NanosleepRelativeResult::Interrupted(_))).expect("the test waits");
        });
        let thread = told.recv().expect("the thread runs").expect("signals can be handled");
        // It may not have come to its wait yet: then the signal is in vain, and the next one is not.
        let is_interrupted = std::iter::repeat_with(|| {
            thread.rouse();
            over.recv_timeout(Duration::from_millis(5)).ok()
        });
        assert_eq!(is_interrupted.take(10_000).flatten().next(), Some(true));
        thread.rouse();
    }
}
