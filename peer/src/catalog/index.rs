//! The database's thread: takes what the journal holds into the database, many commits in one transaction, and says how
//! far it has come.
//!
//! Nobody waits for it in ordinary times. It waits for company for [`JOURNAL_APPLY_DELAY`], unless it is woken because
//! there is enough for a transaction, or because somebody does wait. Pieces whose bytes the journal keeps are made durable
//! in their files before the transaction that lets the journal forget them.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use crate::catalog::database::Database;
use crate::catalog::journal::Mark;
use crate::catalog::operations::Operations;
use crate::catalog::room::{Found, Room};
use crate::limits::JOURNAL_APPLY_DELAY;
use crate::rt::mailbox::{Receiver, Sender};
use crate::store::{SharedFile, UnsyncedPiece};

/// A message to the database's thread.
pub enum ToIndex {
    /// Apply these, which come after everything before.
    Apply {
        /// What to do.
        operations: Operations,
        /// Where the journal stands behind them.
        mark: Mark,
    },
    /// Apply everything before this now, look how much room there is, and report.
    Flush,
    /// Apply everything before this, and end.
    Close,
}

/// What the database's thread tells.
pub struct Report {
    /// It has the journal's entries up to this one.
    pub sequence: u64,
    /// Room on the disk after that.
    pub room: Found,
    /// Why it applies nothing any more.
    pub failure: Option<Arc<str>>,
    /// Whether this answers a [`ToIndex::Flush`].
    pub flushed: bool,
}

/// The thread's state.
pub struct Index {
    database: Database,
    room: Room,
    receiver: Receiver<ToIndex>,
    reports: Sender<Report>,
    mark: Mark,
    failure: Option<Arc<str>>,
}

/// What goes into one transaction.
#[derive(Default)]
struct Batch {
    operations: Vec<Operations>,
    count: usize,
    mark: Option<Mark>,
    flush: bool,
    last: bool,
}

impl Batch {
    fn take(&mut self, message: ToIndex) {
        match message {
            ToIndex::Apply { operations, mark } => {
                self.count += operations.count() as usize;
                self.operations.push(operations);
                self.mark = Some(mark);
            }
            ToIndex::Flush => self.flush = true,
            ToIndex::Close => self.last = true,
        }
    }

    fn is_due(&self) -> bool {
        self.last || self.flush
    }
}

impl Index {
    /// A thread for a database that stands at `mark`.
    pub fn new(
        database: Database,
        mark: Mark,
        mut room: Room,
        (receiver, reports): (Receiver<ToIndex>, Sender<Report>),
    ) -> Index {
        room.look();
        Index { database, room, receiver, reports, mark, failure: None }
    }

    /// Room on the disk at the start.
    pub fn room(&self) -> Found {
        self.room.found()
    }

    /// Runs until told to close, or until the sender has gone.
    pub fn run(mut self) {
        loop {
            let batch = self.gather();
            let (flushed, last) = (batch.flush, batch.last);
            self.apply(batch);
            let (sequence, room) = (self.mark.sequence, self.room.look());
            let report = Report { sequence, room, failure: self.failure.clone(), flushed };
            let heard = self.reports.send_blocking(report).is_ok();
            if last || !heard {
                break;
            }
        }
        if let Err(error) = self.database.close() {
            tracing::error!(%error, "the catalog did not close cleanly; the next start checks it");
        }
    }

    fn gather(&self) -> Batch {
        let mut batch = Batch::default();
        batch.take(self.receiver.recv_blocking().unwrap_or(ToIndex::Close));
        if !batch.is_due() {
            // Not woken by each message: that would cost those who wait for the journal.
            std::thread::park_timeout(JOURNAL_APPLY_DELAY);
        }
        // No more than there is room for.
        while !batch.is_due()
            && batch.count < self.room().changes
            && let Some(message) = self.receiver.try_recv()
        {
            batch.take(message);
        }
        batch
    }

    fn apply(&mut self, batch: Batch) {
        let Some(mark) = batch.mark.filter(|_| self.failure.is_none()) else { return };
        let synced = sync(batch.operations.iter().flat_map(Operations::unsynced));
        let applied = synced.map_err(redb::Error::from).and_then(|()| {
            let rows = batch.operations.iter().map(Operations::bytes);
            self.database.apply(rows, mark)
        });
        match applied {
            Ok(()) => self.mark = mark,
            Err(error) => {
                tracing::error!(%error, "the catalog's database failed: it takes no more changes; the journal has them");
                self.failure = Some(error.to_string().into());
            }
        }
    }
}

/// Makes pieces durable in their files.
fn sync<'a>(pieces: impl Iterator<Item = &'a UnsyncedPiece>) -> io::Result<()> {
    let mut files = BTreeSet::<&SharedFile>::new();
    for piece in pieces {
        piece.written()?;
        files.extend(piece.files());
    }
    files.into_iter().try_for_each(SharedFile::sync)
}
