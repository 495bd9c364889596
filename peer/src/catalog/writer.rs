//! The catalog's thread: takes commits from the mailbox, groups them, applies each group in one transaction.
//!
//! A commit that somebody waits for starts a transaction at once while commits come one at a time; when the last
//! transaction served several, the next waits until half as many are there again, because a sync costs more than the
//! wait: at most half as long as the last transaction took, and never more than [`CATALOG_BATCH_DELAY`]. Commits that
//! nobody waits for are grouped for [`CATALOG_LAZY_DELAY`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::catalog::database::Database;
use crate::catalog::records::Change;
use crate::catalog::room::Room;
use crate::catalog::{CatalogError, CommitObserver, Durability};
use crate::limits::{CATALOG_BATCH_CHANGES, CATALOG_BATCH_DELAY, CATALOG_LAZY_DELAY};
use crate::rt::mailbox::{Receiver, oneshot};

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
    database: Database,
    receiver: Receiver<Message>,
    /// Why the first commit that failed did.
    failure: Option<Arc<str>>,
    failed: Arc<AtomicBool>,
    room: Room,
    /// What is said when there is no room.
    full: CatalogError,
    observer: CommitObserver,
    /// Callers who waited for the last transaction, and how long it took.
    last: (usize, Duration),
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
    /// A writer for an open database. `failed` is set when a commit fails. Without room, the error beside it is given.
    pub fn new(
        database: Database,
        receiver: Receiver<Message>,
        failed: Arc<AtomicBool>,
        (room, full): (Room, CatalogError),
        observer: CommitObserver,
    ) -> Writer {
        Writer { database, receiver, failure: None, failed, room, full, observer, last: (0, Duration::ZERO) }
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
        if let Err(error) = self.database.close() {
            tracing::error!(%error, "the catalog did not close cleanly; the next start checks it");
        }
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
        let commits = self.with_room(batch.commits);
        let change_count = commits.iter().map(|commit| commit.changes.len()).sum();
        if change_count == 0 {
            return;
        }
        let started = Instant::now();
        if self.failure.is_none() {
            if let Err(error) = self.database.apply(commits.iter().flat_map(|commit| &commit.changes)) {
                tracing::error!(%error, "a catalog commit failed: it takes no more changes");
                self.failure = Some(error.to_string().into());
                self.failed.store(true, Ordering::Release);
            } else {
                self.last.1 = started.elapsed();
                (self.observer)(change_count, self.last.1);
            }
        }
        for commit in commits {
            let answer = match &self.failure {
                None => Ok(()),
                Some(reason) => Err(CatalogError::Failed { reason: reason.clone() }),
            };
            // Whoever stopped waiting needs no answer.
            let _ = commit.reply.send(answer);
        }
    }

    /// Refuses those for which the disk has no room; gives the others.
    fn with_room(&mut self, commits: Vec<Commit>) -> Vec<Commit> {
        if commits.is_empty() {
            return commits;
        }
        let standing = self.room.look();
        let (kept, refused): (Vec<_>, Vec<_>) =
            commits.into_iter().partition(|commit| standing.allows(&commit.changes));
        for commit in refused {
            let _ = commit.reply.send(Err(self.full.clone()));
        }
        kept
    }
}
