//! The catalog's thread: takes commits from the mailbox, groups them, applies each group in one transaction.
//!
//! A commit that somebody waits for starts a transaction at once while commits come one at a time; when the last
//! transaction served several, the next waits up to [`CATALOG_BATCH_DELAY`] for company, because company is likely
//! and a sync costs more than the wait. Commits that nobody waits for are grouped for [`CATALOG_LAZY_DELAY`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::catalog::database::Database;
use crate::catalog::records::Change;
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
    observer: CommitObserver,
    /// Whether the last transaction served more than one caller who waited.
    crowded: bool,
}

/// Commits that share a transaction.
#[derive(Default)]
struct Batch {
    changes: Vec<Change>,
    replies: Vec<oneshot::Sender<Result<(), CatalogError>>>,
    durable_count: usize,
    /// When the batch is to be committed at the latest.
    deadline: Option<Instant>,
    /// Whether the thread ends after this batch.
    last: bool,
}

impl Writer {
    /// A writer for an open database. `failed` is set when a commit fails.
    pub fn new(
        database: Database,
        receiver: Receiver<Message>,
        failed: Arc<AtomicBool>,
        observer: CommitObserver,
    ) -> Writer {
        Writer { database, receiver, failure: None, failed, observer, crowded: false }
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
        while !batch.last && batch.changes.len() < CATALOG_BATCH_CHANGES {
            let message = match (self.receiver.try_recv(), batch.deadline) {
                (Some(message), _) => Some(message),
                (None, None) => Some(self.receiver.recv_blocking().unwrap_or(Message::Close)),
                (None, Some(deadline)) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() { None } else { self.receiver.recv_blocking_timeout(left) }
                }
            };
            match message {
                Some(Message::Commit { changes, durability, reply }) => {
                    batch.add(changes, reply);
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
            Durability::Durable if self.crowded => CATALOG_BATCH_DELAY,
            Durability::Durable => Duration::ZERO,
        };
        batch.durable_count += usize::from(durability == Durability::Durable);
        let due = Instant::now() + delay;
        batch.deadline = Some(batch.deadline.map_or(due, |deadline| deadline.min(due)));
    }

    fn commit(&mut self, batch: Batch) {
        self.crowded = batch.durable_count > 1;
        if batch.changes.is_empty() {
            return;
        }
        let started = Instant::now();
        if self.failure.is_none() {
            if let Err(error) = self.database.apply(batch.changes.iter()) {
                tracing::error!(%error, "a catalog commit failed: it takes no more changes");
                self.failure = Some(error.to_string().into());
                self.failed.store(true, Ordering::Release);
            } else {
                (self.observer)(batch.changes.len(), started.elapsed());
            }
        }
        for reply in batch.replies {
            let answer = match &self.failure {
                None => Ok(()),
                Some(reason) => Err(CatalogError::Failed { reason: reason.clone() }),
            };
            // Whoever stopped waiting needs no answer.
            let _ = reply.send(answer);
        }
    }
}

impl Batch {
    fn add(&mut self, mut changes: Vec<Change>, reply: oneshot::Sender<Result<(), CatalogError>>) {
        self.changes.append(&mut changes);
        self.replies.push(reply);
    }
}
