//! The catalog's thread: takes commits from the mailbox, groups them, writes each group to the journal, answers, and
//! hands it on to the database's thread.
//!
//! A commit that somebody waits for is written at once while commits come one at a time; when the last group was of
//! several, the next waits until half as many are there again, because a write costs more than the wait: at most half as
//! long as the last one took, and never more than [`CATALOG_BATCH_DELAY`]. Commits that nobody waits for are grouped for
//! [`CATALOG_LAZY_DELAY`].
//!
//! The database may be behind the journal by what it has room for on the disk and by what the ring holds; then this thread
//! waits for it. When the disk has little room every group waits until the database has the one before, so that
//! what is refused for lack of room is refused before it begins. A commit that is too large for the journal goes to the
//! database alone.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::catalog::database::Database;
use crate::catalog::index::{Index, Report, ToIndex};
use crate::catalog::journal::{Journal, Mark};
use crate::catalog::operations::Operations;
use crate::catalog::records::Change;
use crate::catalog::room::{Found, Room, Standing};
use crate::catalog::{CatalogError, CommitObserver, Durability};
use crate::limits::{CATALOG_BATCH_CHANGES, CATALOG_BATCH_DELAY, CATALOG_LAZY_DELAY, CATALOG_MAILBOX};
use crate::rt::mailbox::{Receiver, Sender, mailbox, oneshot};

/// A message to the catalog's thread.
pub enum Message {
    /// Apply all of the changes or none.
    Commit {
        /// In this order.
        changes: Vec<Change>,
        /// Whether somebody waits.
        durability: Durability,
        /// Answered when they are durable.
        reply: oneshot::Sender<Result<(), CatalogError>>,
    },
    /// End.
    Close,
}

/// The thread's state.
pub struct Writer {
    journal: Journal,
    index: ToDatabase,
    receiver: Receiver<Message>,
    /// Why the first commit that failed did.
    failure: Option<Arc<str>>,
    failed: Arc<AtomicBool>,
    /// What is said when there is no room.
    full: CatalogError,
    observer: CommitObserver,
    /// Callers who waited for the last group, and how long it took.
    last: (usize, Duration),
}

/// The database's thread, as this one sees it.
pub struct ToDatabase {
    sender: Sender<ToIndex>,
    reports: Receiver<Report>,
    thread: JoinHandle<()>,
    room: Found,
    /// Entries that it has not reported yet, with the operations in each.
    pending: VecDeque<(u64, usize)>,
    pending_operations: usize,
}

impl ToDatabase {
    /// Starts the thread.
    pub fn start(database: Database, mark: Mark, room: Room) -> io::Result<ToDatabase> {
        let (sender, receiver) = mailbox(CATALOG_MAILBOX);
        let (reporter, reports) = mailbox(CATALOG_MAILBOX);
        let index = Index::new(database, mark, room, (receiver, reporter));
        let room = index.room();
        let thread = std::thread::Builder::new().name("catalog-index".to_owned()).spawn(move || index.run())?;
        Ok(ToDatabase { sender, reports, thread, room, pending: VecDeque::new(), pending_operations: 0 })
    }

    fn apply(&mut self, operations: Operations, mark: Mark) {
        let count = operations.count() as usize;
        self.pending.push_back((mark.sequence, count));
        self.pending_operations += count;
        // When it has ended, that is heard with the next report that does not come.
        let _ = self.sender.send_blocking(ToIndex::Apply { operations, mark });
        if self.pending_operations >= self.room.changes / 2 {
            self.thread.thread().unpark();
        }
    }

    /// Tells it something that it is not to keep waiting.
    fn urge(&self, message: ToIndex) {
        let _ = self.sender.send_blocking(message);
        self.thread.thread().unpark();
    }

    fn heard(&mut self, report: &Report) {
        self.room = report.room;
        while let Some((_, count)) = self.pending.pop_front_if(|(sequence, _)| *sequence <= report.sequence) {
            self.pending_operations -= count;
        }
    }

    fn close(self) {
        self.urge(ToIndex::Close);
        while self.reports.recv_blocking().is_some() {}
        if self.thread.join().is_err() {
            tracing::error!("the thread of the catalog's database panicked");
        }
    }
}

/// Changes of one caller, and how to answer.
struct Commit {
    changes: Vec<Change>,
    reply: oneshot::Sender<Result<(), CatalogError>>,
}

/// Commits that share a transaction.
#[derive(Default)]
struct Batch {
    commits: Vec<Commit>,
    change_count: usize,
    durable_count: usize,
    /// When the batch is to be committed at the latest.
    deadline: Option<Instant>,
    /// Whether the thread ends after this batch.
    last: bool,
}

impl Writer {
    /// A writer of this journal, for the database's thread. `failed` is set when a commit fails. Without room, `full` is
    /// given.
    pub fn new(
        journal: Journal,
        index: ToDatabase,
        receiver: Receiver<Message>,
        failed: Arc<AtomicBool>,
        full: CatalogError,
        observer: CommitObserver,
    ) -> Writer {
        Writer { journal, index, receiver, failure: None, failed, full, observer, last: (0, Duration::ZERO) }
    }

    /// Runs until told to close, or until every sender has gone.
    pub fn run(mut self) {
        loop {
            let batch = self.gather();
            let last = batch.last;
            self.commit(batch);
            if last {
                break;
            }
        }
        self.index.close();
    }

    /// Takes messages until the batch is full, or due, or the last one.
    fn gather(&self) -> Batch {
        let mut batch = Batch::default();
        while !batch.last && batch.change_count < CATALOG_BATCH_CHANGES {
            let message = match (self.receiver.try_recv(), batch.deadline) {
                (Some(message), _) => Some(message),
                (None, None) => Some(self.receiver.recv_blocking().unwrap_or(Message::Close)),
                (None, Some(deadline)) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    let is_enough = batch.durable_count > 0 && batch.durable_count >= self.last.0 / 2;
                    if is_enough || left.is_zero() { None } else { self.receiver.recv_blocking_timeout(left) }
                }
            };
            match message {
                Some(Message::Commit { changes, durability, reply }) => {
                    batch.change_count += changes.len();
                    batch.commits.push(Commit { changes, reply });
                    self.set_deadline(&mut batch, durability);
                }
                Some(Message::Close) => batch.last = true,
                None => break,
            }
        }
        batch
    }

    fn set_deadline(&self, batch: &mut Batch, durability: Durability) {
        let delay = match durability {
            Durability::Lazy => CATALOG_LAZY_DELAY,
            Durability::Durable => (self.last.1 / 2).min(CATALOG_BATCH_DELAY),
        };
        batch.durable_count += usize::from(durability == Durability::Durable);
        let due = Instant::now() + delay;
        batch.deadline = Some(batch.deadline.map_or(due, |deadline| deadline.min(due)));
    }

    fn commit(&mut self, batch: Batch) {
        self.last.0 = batch.durable_count;
        self.hear();
        let commits = self.with_room(batch.commits);
        let (mut group, mut operations) = (Vec::new(), Operations::default());
        for commit in commits {
            let mut own = Operations::default();
            commit.changes.iter().for_each(|change| own.push(change));
            let together = operations.bytes().len() + own.bytes().len();
            if !group.is_empty() && !self.journal.can_hold(together) {
                self.commit_group(std::mem::take(&mut group), std::mem::take(&mut operations));
            }
            operations.append(own);
            group.push(commit);
        }
        if !group.is_empty() {
            self.commit_group(group, operations);
        }
    }

    /// Makes commits durable together, and answers them.
    fn commit_group(&mut self, commits: Vec<Commit>, mut operations: Operations) {
        let change_count = commits.iter().map(|commit| commit.changes.len()).sum();
        let started = Instant::now();
        let in_journal = self.failure.is_none() && self.write(&mut operations);
        if self.failure.is_none() {
            self.last.1 = started.elapsed();
            (self.observer)(change_count, self.last.1);
        }
        for commit in commits {
            let answer = match &self.failure {
                None => Ok(()),
                Some(reason) => Err(CatalogError::Failed { reason: reason.clone() }),
            };
            // Whoever stopped waiting needs no answer.
            let _ = commit.reply.send(answer);
        }
        if in_journal {
            self.index.apply(operations, self.journal.mark());
        }
    }

    /// Makes operations durable: in the journal, from where the database is still to get them, or, when they are too many
    /// for it, in the database. Gives whether the journal has them.
    fn write(&mut self, operations: &mut Operations) -> bool {
        if !self.journal.can_hold(operations.bytes().len()) {
            // Those may be written only after the answer; the commit of such a piece is small.
            debug_assert!(operations.unsynced().is_empty(), "nobody keeps these bytes meanwhile");
            self.index.apply(std::mem::take(operations), self.journal.mark());
            self.flush();
            return false;
        }
        while self.failure.is_none()
            && (self.index.pending_operations > self.index.room.changes || !self.journal.has_room(operations))
        {
            self.flush();
        }
        if self.failure.is_some() {
            return false;
        }
        let appended = self.journal.append(operations);
        appended.map_err(|error| self.fail(&error.to_string())).is_ok()
    }

    /// Takes the reports that are there.
    fn hear(&mut self) {
        while let Some(report) = self.index.reports.try_recv() {
            self.take(&report);
        }
    }

    /// Waits until the database has everything, and has looked how much room there is.
    fn flush(&mut self) {
        self.index.urge(ToIndex::Flush);
        loop {
            let Some(report) = self.index.reports.recv_blocking() else {
                return self.fail("the thread of the catalog's database has ended");
            };
            self.take(&report);
            if report.flushed {
                return;
            }
        }
    }

    fn take(&mut self, report: &Report) {
        self.index.heard(report);
        self.journal.let_go(report.sequence);
        if let Some(reason) = report.failure.as_ref().filter(|_| self.failure.is_none()) {
            self.fail(reason);
        }
    }

    fn fail(&mut self, reason: &str) {
        tracing::error!(error = reason, "a catalog commit failed: it takes no more changes");
        self.failure = Some(reason.into());
        self.failed.store(true, Ordering::Release);
    }

    /// Refuses those for which the disk has no room; gives the others.
    fn with_room(&mut self, commits: Vec<Commit>) -> Vec<Commit> {
        if commits.is_empty() || self.failure.is_some() {
            return commits;
        }
        if self.index.room.standing != Standing::Enough {
            self.flush();
        }
        let standing = self.index.room.standing;
        let (kept, refused): (Vec<_>, Vec<_>) =
            commits.into_iter().partition(|commit| standing.allows(&commit.changes));
        for commit in refused {
            let _ = commit.reply.send(Err(self.full.clone()));
        }
        kept
    }
}
