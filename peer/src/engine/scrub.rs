//! The scrub: reads every piece on disk again, slowly, so that what has rotted is found while somebody else still has it.
//!
//! Each shard goes through its own tasks, one piece at a time, at its share of `storage.scrubRate`, through the
//! background executor: clients are served before. A damaged piece is put aside as when a reader finds it
//! ([`quarantine`](Owner::quarantine)): one that the backend or another node has is fetched from there when it is
//! needed (one that the backend does not have at once); one that nobody else has stays where it is and is reported.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use dfstore_proto::ids::TaskId;
use dfstore_proto::message::ScrubOk;
use event_listener::Event;

use crate::background::BackgroundError;
use crate::engine::owner::Owner;
use crate::engine::version::{StoredPiece, Version};
use crate::limits::SCRUB_FIRST_DELAY_MAX;
use crate::rt::arena::Holder;
use crate::rt::shard::spawn_local;
use crate::rt::time::{sleep, timeout, unix_ms};

/// The scrub of one shard.
#[derive(Default)]
pub struct Scrubber {
    state: RefCell<ScrubOk>,
    wanted: Cell<bool>,
    order: Event,
}

impl Scrubber {
    /// How it stands; with `begin`, one begins now unless one runs.
    pub fn state(&self, begin: bool) -> ScrubOk {
        if begin && !self.state.borrow().runs {
            // It counts as running from here on: who asks again waits for this one.
            self.state.replace(ScrubOk { runs: true, began_at_ms: unix_ms(), ..ScrubOk::default() });
            self.wanted.set(true);
            self.order.notify(usize::MAX);
        }
        *self.state.borrow()
    }

    /// Waits until one is ordered, or `period` is over. With no period only orders count.
    async fn next(&self, period: Option<Duration>) {
        let listener = self.order.listen();
        if !self.wanted.get() {
            match period {
                Some(period) => drop(timeout(period, listener).await),
                None => listener.await,
            }
        }
        self.wanted.set(false);
    }
}

/// What several shards have done, together.
pub fn together(states: impl IntoIterator<Item = ScrubOk>) -> ScrubOk {
    states.into_iter().fold(ScrubOk::default(), |all, one| ScrubOk {
        runs: all.runs || one.runs,
        began_at_ms: match (all.began_at_ms, one.began_at_ms) {
            (0, began) | (began, 0) => began,
            (first, second) => first.min(second),
        },
        ended_at_ms: if all.runs || one.runs { 0 } else { all.ended_at_ms.max(one.ended_at_ms) },
        pieces: all.pieces + one.pieces,
        bytes: all.bytes + one.bytes,
        bytes_of_all: all.bytes_of_all + one.bytes_of_all,
        damaged: all.damaged + one.damaged,
        replaceable: all.replaceable + one.replaceable,
        lost: all.lost + one.lost,
    })
}

impl Owner {
    /// Scrubs when it is time or ordered; never ends.
    pub async fn run_scrub(self: &Rc<Self>) {
        let period = self.context.scrub.period;
        let mut pause = period.map(|period| period.min(SCRUB_FIRST_DELAY_MAX));
        loop {
            self.scrubber.next(pause).await;
            pause = period;
            let bytes_of_all = self.eviction.borrow().bytes();
            let began_at_ms = unix_ms();
            self.scrubber.state.replace(ScrubOk { runs: true, began_at_ms, bytes_of_all, ..ScrubOk::default() });
            self.scrub().await;
            let mut state = self.scrubber.state.borrow_mut();
            (state.runs, state.ended_at_ms) = (false, unix_ms());
            if state.damaged > 0 {
                tracing::error!(damaged = state.damaged, lost = state.lost, "the scrub found damaged pieces");
            }
        }
    }

    async fn scrub(self: &Rc<Self>) {
        let tasks: Vec<TaskId> = self.tasks.borrow().keys().copied().collect();
        for task in tasks {
            let Some(version) = self.known(&task).and_then(|task| task.current()) else { continue };
            for (number, piece) in version.stored_pieces() {
                if version.is_retired(self) {
                    break;
                }
                let bytes = u64::from(piece.length);
                if !self.scrub_piece(&version, number, piece).await {
                    return;
                }
                sleep(self.context.scrub.time_for(bytes)).await;
            }
        }
    }

    /// `false`: the process is ending.
    async fn scrub_piece(self: &Rc<Self>, version: &Rc<Version>, number: u32, piece: StoredPiece) -> bool {
        let length = piece.length as usize;
        let slot = self.context.arena.take(length, Holder::WriteBack).await;
        let read = self.context.background.read_piece(piece.lease, length, piece.crc32, slot).await;
        let is_damaged = match read {
            Ok(_) => false,
            Err(BackgroundError::Closed) => return false,
            Err(error) => {
                let task = self.known(&version.task);
                let object = task.map(|task| task.target.name.to_string()).unwrap_or_default();
                tracing::error!(%error, %object, task = %version.task, number, "the scrub cannot read a piece");
                true
            }
        };
        {
            let mut state = self.scrubber.state.borrow_mut();
            state.pieces += 1;
            state.bytes += length as u64;
            state.damaged += u64::from(is_damaged);
        }
        self.metrics.scrubbed(length as u64);
        if is_damaged {
            self.put_damaged_aside(version, number).await;
        }
        true
    }

    async fn put_damaged_aside(self: &Rc<Self>, version: &Rc<Version>, number: u32) {
        let is_replaceable = self.quarantine(&version.task, version.generation, number).await.is_ok();
        let mut state = self.scrubber.state.borrow_mut();
        if !is_replaceable {
            state.lost += 1;
            return;
        }
        state.replaceable += 1;
        if !version.is_clean() {
            let (owner, version) = (self.clone(), version.clone());
            spawn_local(async move {
                if let Err(error) = owner.copy_here(&version).await {
                    tracing::warn!(%error, task = %version.task, "a damaged piece was not fetched from another node yet");
                }
            });
        }
    }
}

impl Version {
    /// Whether it is no longer the current version of its task.
    fn is_retired(self: &Rc<Self>, owner: &Owner) -> bool {
        owner.known(&self.task).is_none_or(|task| !task.is_current(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_one_to_those_who_ask() {
        let first =
            ScrubOk { runs: true, began_at_ms: 7, pieces: 2, bytes: 9, damaged: 1, lost: 1, ..ScrubOk::default() };
        let second = ScrubOk { began_at_ms: 5, ended_at_ms: 8, pieces: 3, ..ScrubOk::default() };
        let all = together([first, second]);
        assert_eq!((all.runs, all.began_at_ms, all.ended_at_ms, all.pieces), (true, 5, 0, 5));
        assert_eq!((all.damaged, all.lost, all.bytes), (1, 1, 9));
        let ended = ScrubOk { runs: false, ended_at_ms: 9, ..first };
        assert_eq!(together([second, ended]).ended_at_ms, 9, "the last one to end");
        assert_eq!(together([ScrubOk::default()]), ScrubOk::default());
    }

    #[test]
    fn one_that_is_ordered_runs_for_all_who_ask() {
        let scrubber = Scrubber::default();
        assert_eq!(scrubber.state(false), ScrubOk::default());
        assert!(scrubber.state(true).runs && scrubber.wanted.get());
        let began = scrubber.state(true).began_at_ms;
        assert!(began > 0 && scrubber.state(false).began_at_ms == began);
    }
}
