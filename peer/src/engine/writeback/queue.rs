//! The order of write-backs in memory: who is next, who runs, who waits for an outcome. No I/O.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::time::Duration;

use dfstore_proto::ids::TaskId;
use event_listener::Event;

use crate::catalog::{PartRecord, WriteBackRecord};
use crate::engine::error::ObjectError;
use crate::engine::task::Task;
use crate::engine::writeback::pace::Pace;
use crate::engine::writeback::table::Step;
use crate::limits::{
    HOME_PATIENCE, WRITEBACK_LOOK_DELAY, WRITEBACK_LOOK_DELAY_MAX, WRITEBACK_POLL, WRITEBACK_RETRY_DELAY,
    WRITEBACK_TURNS_MAX,
};
use crate::rt::mailbox::oneshot;
use crate::rt::time::{milliseconds, timeout, unix_ms};

/// The queue of one shard. An entry that is in `entries` is in exactly one of: `ready`, `again`, `delayed`, running,
/// aside.
#[derive(Default)]
pub struct Queue {
    /// How hard the backend is pushed.
    pub pace: Pace,
    entries: RefCell<HashMap<TaskId, Rc<Entry>>>,
    ready: RefCell<BTreeSet<Key>>,
    /// Failed before, and due: tried as often as the pace allows.
    again: RefCell<BTreeSet<Key>>,
    delayed: RefCell<BTreeSet<(u64, Key)>>,
    running: Cell<usize>,
    /// Places given beside those that run.
    turns: Cell<usize>,
    changed: Event,
}

/// Order of the queue: oldest first.
type Key = (u64, TaskId);

/// The outcome of an entry, for those who wait for it.
type Outcome = Result<(), ObjectError>;

/// What is to be told to the backend about one version.
pub struct Entry {
    /// The object.
    pub task: Rc<Task>,
    /// The version or tombstone.
    pub generation: u64,
    /// What the catalog holds of it.
    pub record: RefCell<WriteBackRecord>,
    /// Parts of its multipart upload that the backend has acknowledged.
    pub parts: RefCell<BTreeMap<u32, PartRecord>>,
    /// The step that is being carried out, while it runs.
    pub step: Cell<Option<Step>>,
    /// A person wants the backend overwritten, whatever others wrote there.
    pub forced: Cell<bool>,
    /// A client was told that it will be carried out: a refusal does not undo it.
    pub acknowledged: Cell<bool>,
    due_ms: Cell<u64>,
    /// The last attempt failed; it did not merely wait for somebody.
    failed: Cell<bool>,
    aside: Cell<bool>,
    looks: Cell<u32>,
    /// Since when the home cannot be reached (Unix ms); 0 while it can.
    home_silent_ms: Cell<u64>,
    restored: bool,
    waiters: RefCell<Vec<oneshot::Sender<Outcome>>>,
}

/// How the queue stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStats {
    /// Entries that wait or run.
    pub waiting: usize,
    /// Entries set aside.
    pub dead: usize,
    /// When the oldest entry was queued (Unix ms).
    pub oldest_ms: Option<u64>,
}

impl Entry {
    fn key(&self) -> Key {
        (self.record.borrow().sequence, self.task.target.task)
    }

    /// Whether it was set aside.
    pub fn is_aside(&self) -> bool {
        self.aside.get()
    }

    /// When it is tried again, if it waits for that (Unix ms); a time that is past if not.
    pub fn due_ms(&self) -> u64 {
        self.due_ms.get()
    }

    /// Whether it waits for another peer to tell the backend.
    pub fn waits_for_home(&self) -> bool {
        self.looks.get() > 0 && !self.failed.get()
    }

    /// Whether it may still be refused: a client waits for the outcome now, and nobody was told that it will be carried
    /// out.
    pub fn may_be_refused(&self) -> bool {
        !self.acknowledged.get() && self.waiters.borrow().iter().any(|waiter| !waiter.is_canceled())
    }

    /// Whether the backend may have it although nobody here knows.
    pub fn may_be_sent(&self) -> bool {
        self.restored || self.record.borrow().attempts > 0 || self.looks.get() > 0
    }

    /// Whether the home could not be reached for so long that this peer acts without it, when `before` others would do so
    /// first.
    pub fn is_home_lost(&self, now_ms: u64, before: u32) -> bool {
        if self.home_silent_ms.get() == 0 {
            self.home_silent_ms.set(now_ms);
        }
        let patience_ms = milliseconds(HOME_PATIENCE * (before + 1));
        now_ms >= self.home_silent_ms.get().saturating_add(patience_ms)
    }

    /// The home has answered about it.
    pub fn home_answered(&self) {
        self.home_silent_ms.set(0);
    }

    /// How long to wait before the next look at what another peer does, in milliseconds: a little longer each time.
    pub fn next_look_ms(&self) -> u64 {
        let looks = self.looks.get();
        self.looks.set(looks.saturating_add(1));
        let first = milliseconds(WRITEBACK_LOOK_DELAY);
        let last = milliseconds(WRITEBACK_LOOK_DELAY_MAX);
        first.saturating_mul(1 << looks.min(10)).min(last)
    }

    /// Notes a failed attempt; gives the number of attempts and the record to keep.
    pub fn note_failure(&self, error: &ObjectError, dead: bool) -> (u32, WriteBackRecord) {
        let mut record = self.record.borrow_mut();
        record.attempts = record.attempts.saturating_add(1);
        record.last_error = error.to_string();
        record.dead = dead;
        (record.attempts, record.clone())
    }
}

/// A place beside the entries that run.
pub struct Turn<'a>(&'a Queue);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.turns.set(self.0.turns.get() - 1);
        self.0.changed.notify(usize::MAX);
    }
}

impl Queue {
    /// Adds the entry of a version that has just become current (or was found in the catalog). It takes the place of
    /// an entry of the same task.
    pub fn push(&self, task: Rc<Task>, record: WriteBackRecord, parts: BTreeMap<u32, PartRecord>) {
        self.push_entry(task, record, parts, false);
    }

    /// As [`push`](Self::push), for an entry that another run of this program, or another peer, may have carried out.
    pub fn restore(&self, task: Rc<Task>, record: WriteBackRecord, parts: BTreeMap<u32, PartRecord>) {
        self.push_entry(task, record, parts, true);
    }

    fn push_entry(&self, task: Rc<Task>, record: WriteBackRecord, parts: BTreeMap<u32, PartRecord>, restored: bool) {
        self.remove(&task);
        let id = task.target.task;
        let entry = Rc::new(Entry {
            task,
            generation: record.generation,
            record: RefCell::new(record),
            parts: RefCell::new(parts),
            step: Cell::default(),
            forced: Cell::default(),
            due_ms: Cell::new(0),
            failed: Cell::default(),
            aside: Cell::new(false),
            looks: Cell::new(0),
            home_silent_ms: Cell::new(0),
            restored,
            acknowledged: Cell::new(restored),
            waiters: RefCell::default(),
        });
        self.ready.borrow_mut().insert(entry.key());
        self.entries.borrow_mut().insert(id, entry);
        self.changed.notify(usize::MAX);
    }

    /// The entry of a task.
    pub fn entry(&self, task: &TaskId) -> Option<Rc<Entry>> {
        self.entries.borrow().get(task).cloned()
    }

    /// What was put off about a task is due now.
    pub fn hurry_task(&self, task: &TaskId) {
        let Some(entry) = self.entry(task) else { return };
        if self.unwait(&entry) {
            self.ready.borrow_mut().insert(entry.key());
            self.changed.notify(usize::MAX);
        }
    }

    /// Everything that was put off is due now: whoever it waited for may be gone, or the backend is back.
    pub fn hurry(&self) {
        let delayed = std::mem::take(&mut *self.delayed.borrow_mut());
        for (_, key) in delayed {
            self.become_due(key);
        }
        self.changed.notify(usize::MAX);
    }

    /// A person wants an entry tried now, also one that was set aside.
    pub fn revive(&self, entry: &Rc<Entry>) {
        if self.holds(entry) && (entry.aside.replace(false) || self.unwait(entry)) {
            entry.record.borrow_mut().dead = false;
            self.ready.borrow_mut().insert(entry.key());
            self.changed.notify(usize::MAX);
        }
    }

    /// Takes an entry out of those that wait for their time.
    fn unwait(&self, entry: &Entry) -> bool {
        self.delayed.borrow_mut().remove(&(entry.due_ms.get(), entry.key()))
            || self.again.borrow_mut().remove(&entry.key())
    }

    fn become_due(&self, key: Key) {
        let failed = self.entries.borrow().get(&key.1).is_some_and(|entry| entry.failed.get());
        let due = if failed { &self.again } else { &self.ready };
        due.borrow_mut().insert(key);
    }

    /// Drops the entry of a task whose version was replaced. If it runs, it finds out by itself.
    pub fn remove(&self, task: &Task) {
        if let Some(entry) = self.entries.borrow_mut().remove(&task.target.task) {
            self.ready.borrow_mut().remove(&entry.key());
            self.unwait(&entry);
        }
    }

    /// Whether this entry is still in the queue.
    pub fn holds(&self, entry: &Entry) -> bool {
        self.entries.borrow().get(&entry.task.target.task).is_some_and(|held| std::ptr::eq(&**held, entry))
    }

    /// The outcome of a task's entry. Closed without one when the entry is replaced.
    pub fn outcome(&self, task: &Task) -> oneshot::Receiver<Outcome> {
        let (sender, receiver) = oneshot::channel();
        if let Some(entry) = self.entries.borrow().get(&task.target.task) {
            entry.waiters.borrow_mut().push(sender);
        }
        receiver
    }

    /// What was put off until now, or earlier, is due.
    fn wake_due(&self, now_ms: u64) {
        let due = {
            let mut delayed = self.delayed.borrow_mut();
            let first_later = (now_ms.saturating_add(1), (0, TaskId::from_bytes([0; 32])));
            let later = delayed.split_off(&first_later);
            std::mem::replace(&mut *delayed, later)
        };
        for (_, key) in due {
            self.become_due(key);
        }
    }

    /// The oldest entry that may run now; it counts as running.
    pub fn start_next(&self, now_ms: u64) -> Option<Rc<Entry>> {
        self.wake_due(now_ms);
        if !self.pace.may_begin(self.running.get(), now_ms) {
            return None;
        }
        let (ready, again) = (self.ready.borrow().first().copied(), self.again.borrow().first().copied());
        // The oldest one first; what failed before only as often as the pace allows.
        let is_older = again.is_some_and(|again| ready.is_none_or(|ready| again < ready));
        let (_, task) = match is_older && self.pace.may_repeat(now_ms) {
            true => self.again.borrow_mut().pop_first()?,
            false => self.ready.borrow_mut().pop_first()?,
        };
        let entry = self.entry(&task)?;
        self.running.set(self.running.get() + 1);
        Some(entry)
    }

    /// A place for a small request that is no entry and that somebody waits for: beside those that run, which may be
    /// long, but not before the time that the backend has named.
    pub async fn turn(&self) -> Turn<'_> {
        while self.turns.get() >= WRITEBACK_TURNS_MAX || !self.pace.is_open(unix_ms()) {
            self.changed().await;
        }
        self.turns.set(self.turns.get() + 1);
        Turn(self)
    }

    /// Slows down if the backend asks for it. Gives the pause before something may be tried again.
    pub fn heed(&self, error: &ObjectError) -> Duration {
        let ObjectError::Busy { retry_after, .. } = error else { return WRITEBACK_RETRY_DELAY };
        let now_ms = unix_ms();
        self.pace.slow_down(now_ms.saturating_add(milliseconds(*retry_after)), now_ms);
        (*retry_after).max(WRITEBACK_RETRY_DELAY)
    }

    /// Ends a running entry: it is done, refused for good (an error), or void (`None`).
    pub fn finish(&self, entry: &Rc<Entry>, outcome: Option<Outcome>) {
        if self.holds(entry) {
            self.entries.borrow_mut().remove(&entry.task.target.task);
        }
        self.stop();
        if let Some(outcome) = outcome {
            for waiter in entry.waiters.take() {
                // Whoever waited has gone.
                drop(waiter.send(outcome.clone()));
            }
        }
    }

    /// Tries a running entry again at `due_ms`.
    pub fn put_off(&self, entry: &Rc<Entry>, due_ms: u64, failed: bool) {
        entry.due_ms.set(due_ms);
        entry.failed.set(failed);
        if self.holds(entry) {
            self.delayed.borrow_mut().insert((due_ms, entry.key()));
        }
        self.stop();
    }

    /// Keeps a running entry without trying it again. Those who wait for it hear that it is pending.
    pub fn set_aside(&self, entry: &Rc<Entry>) {
        entry.aside.set(true);
        entry.waiters.take();
        self.stop();
    }

    fn stop(&self) {
        self.running.set(self.running.get() - 1);
        self.changed.notify(usize::MAX);
    }

    /// Waits until the queue changes or an entry may be due.
    pub async fn changed(&self) {
        let listener = self.changed.listen();
        // Nothing is lost when the time runs out: the loop looks at the queue either way.
        let _ = timeout(WRITEBACK_POLL, listener).await;
    }

    /// How the queue stands.
    pub fn stats(&self) -> QueueStats {
        let entries = self.entries.borrow();
        let dead = entries.values().filter(|entry| entry.aside.get()).count();
        QueueStats {
            waiting: entries.len() - dead,
            dead,
            oldest_ms: entries.values().map(|entry| entry.record.borrow().queued_at_ms).min(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt;
    use futures_util::poll;

    use super::*;
    use crate::rt::shard::block_on;

    #[test]
    fn a_turn_waits_for_others_of_its_kind_and_for_the_backend_and_is_given_back() {
        block_on(async {
            let queue = Queue::default();
            let mut turns: Vec<Turn<'_>> =
                (0..WRITEBACK_TURNS_MAX).map(|_| queue.turn().now_or_never().expect("there is a place")).collect();
            {
                let mut next = pin!(queue.turn());
                assert!(poll!(next.as_mut()).is_pending(), "all places are taken");
                turns.pop();
                assert!(poll!(next.as_mut()).is_ready());
            }
            drop(queue.turn().now_or_never().expect("what was given back"));
            drop(turns);
            queue.heed(&ObjectError::Busy { reason: String::new(), retry_after: Duration::from_secs(60) });
            assert!(queue.turn().now_or_never().is_none(), "the backend wants nothing for a while");
            assert_eq!(queue.turns.get(), 0);
        })
        .expect("io_uring is there");
    }
}
