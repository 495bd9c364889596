//! A thread that rouses the executor when it sleeps though it was asked for something.
//!
//! glommio 0.9 sometimes sleeps on when it is woken from another thread, and, seldom, even when its own timer runs out
//! (seen as an upload to the backend that stood still for nine minutes, and went on when the thread got a signal). Nothing
//! that is sent to it helps then; a signal does, because it ends the wait in the kernel.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use crate::limits::BACKGROUND_STILL_MAX;
use crate::rt::rouse::Rouser;

/// How much was asked of the executor, and answered.
#[derive(Default)]
pub struct Progress {
    asked: AtomicU64,
    ended: AtomicU64,
}

/// Something that was asked for, until it is answered or nobody waits for it.
pub struct Asked(Arc<Progress>);

impl Progress {
    /// Something is asked for.
    pub fn ask(self: &Arc<Self>) -> Asked {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Asked(self.clone())
    }

    /// What has ended, if something has not.
    fn waiting_since(&self) -> Option<u64> {
        let ended = self.ended.load(Ordering::Relaxed);
        (self.asked.load(Ordering::Relaxed) > ended).then_some(ended)
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
    }
}

/// The watching thread; it ends when this is dropped.
pub struct Watch {
    _ends: mpsc::Sender<()>,
}

impl Watch {
    /// Watches the thread of `sleeper`.
    pub fn start(sleeper: Rouser, progress: Arc<Progress>) -> Result<Watch, String> {
        let (ends, ended) = mpsc::channel::<()>();
        let thread = std::thread::Builder::new().name("background-watch".to_owned());
        let watch = move || {
            let mut before = None;
            while ended.recv_timeout(BACKGROUND_STILL_MAX) == Err(mpsc::RecvTimeoutError::Timeout) {
                let waiting = progress.waiting_since();
                // As much had ended a while ago: nothing has moved since.
                if waiting.is_some() && waiting == before {
                    sleeper.rouse();
                }
                before = waiting;
            }
        };
        thread.spawn(watch).map_err(|error| error.to_string())?;
        Ok(Watch { _ends: ends })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_waits_until_it_is_answered_or_given_up() {
        let progress = Arc::new(Progress::default());
        assert_eq!(progress.waiting_since(), None);
        let (first, second) = (progress.ask(), progress.ask());
        assert_eq!(progress.waiting_since(), Some(0));
        drop(first);
        assert_eq!(progress.waiting_since(), Some(1), "something moved");
        drop(second);
        assert_eq!(progress.waiting_since(), None);
    }
}
