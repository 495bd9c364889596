//! The catalog: what this peer knows durably about tasks, pieces, the write-back queue and uploads in progress.
//!
//! It owns `dataPath/catalog.redb`, the database, `dataPath/catalog.journal`, and a thread for each, the only ones that
//! touch them. [`Catalog::open`] reads everything and returns it as plain records; afterwards the catalog is only written,
//! through [`CatalogHandle::commit`] from any thread. Commits are grouped, one write to the journal for many callers
//! ([`writer`], [`journal`]), and taken into the database behind that ([`index`]). It does not know what the records mean,
//! and of the piece files only that they can be synced, and written at a start ([`PlainFiles`]).
//!
//! What can fail: opening (another process has it, another format, damage), and commits. On a full disk a commit is
//! refused before it begins, and later ones may succeed ([`CatalogError::DiskFull`], [`room`]). After the first commit
//! that failed half way every later one is refused ([`CatalogError::Failed`]): what the file holds is known again only
//! after a restart.
//!
//! Invariants: a commit is applied whole or not at all; commits are applied in the order in which they were given;
//! when a commit has been answered with success it survives a power cut.

pub mod records;

pub mod codec;
pub mod journal;
pub mod operations;

mod database;
mod index;
#[cfg(test)]
mod logged;
mod room;
mod writer;

#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

pub use database::{CATALOG_FILE, FORMAT_VERSION};
#[cfg(test)]
pub(crate) use logged::open_image;
pub use records::{
    Change, Loaded, PartRecord, PieceKey, PieceRecord, PieceSet, TaskRecord, TaskState, UploadRecord, UploadStarted,
    WriteBackKind, WriteBackRecord,
};

use crate::catalog::database::Database;
use crate::catalog::room::Room;
use crate::catalog::writer::{Message, ToDatabase, Writer};
use crate::limits::CATALOG_MAILBOX;
use crate::rt::mailbox::{Sender, mailbox};
use crate::store::PlainFiles;

/// How long a commit may wait to be grouped with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Somebody waits for it.
    Durable,
    /// Nobody waits; it may be grouped with what comes in the next [`CATALOG_LAZY_DELAY`].
    ///
    /// [`CATALOG_LAZY_DELAY`]: crate::limits::CATALOG_LAZY_DELAY
    Lazy,
}

/// Why the catalog could not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// Another process has the data folder.
    #[error("{} is in use by another process: stop that peer, or give this one another storage.dataPath", path.display())]
    Locked {
        /// The catalog file.
        path: PathBuf,
    },
    /// Written by another version of the program.
    #[error("{} has format version {found}, this program knows {known}: use the program that wrote it, or an empty storage.dataPath", path.display())]
    Version {
        /// The catalog file.
        path: PathBuf,
        /// Version in the file.
        found: u32,
        /// Version of this program.
        known: u32,
    },
    /// The file cannot be read as a catalog.
    #[error("{} is damaged ({reason}): restore it, or start with an empty storage.dataPath", path.display())]
    Damaged {
        /// The catalog file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The operating system refused.
    #[error("cannot open {}: {reason}", path.display())]
    Open {
        /// The catalog file.
        path: PathBuf,
        /// The system's answer.
        reason: String,
    },
    /// The disk has no room for the changes. Nothing was changed, and later ones may fit.
    #[error("no space left on the file system of {}", dir.display())]
    DiskFull {
        /// The data folder.
        dir: PathBuf,
    },
    /// A commit failed, this one or one before.
    #[error("the catalog takes no changes since a commit failed ({reason}); restart the peer after checking the disk")]
    Failed {
        /// Why the first one failed.
        reason: Arc<str>,
    },
    /// The catalog is closed.
    #[error("the catalog is closed")]
    Closed,
}

impl CatalogError {
    /// Whether the same call may succeed later without a restart.
    pub fn is_retryable(&self) -> bool {
        matches!(self, CatalogError::DiskFull { .. })
    }
}

/// Told after each transaction: changes in it, and the time it took.
pub type CommitObserver = Box<dyn Fn(usize, Duration) + Send>;

/// The open catalog: ends the thread and closes the file when [`close`](Self::close)d.
pub struct Catalog {
    handle: CatalogHandle,
    thread: JoinHandle<()>,
}

/// The way to commit changes. Clones share the catalog.
#[derive(Clone)]
pub struct CatalogHandle {
    sender: Sender<Message>,
    failed: Arc<AtomicBool>,
}

impl Catalog {
    /// Opens or creates the catalog of the data folder `dir` and reads all of it. Blocks. Records that are damaged
    /// are removed and counted.
    pub fn open(dir: &Path, cache_bytes: usize, observer: CommitObserver) -> Result<(Catalog, Loaded), CatalogError> {
        let mut pieces = PlainFiles::new(dir.to_path_buf());
        let (database, journal, loaded) = Database::open(dir, cache_bytes, &mut pieces)?;
        let (sender, receiver) = mailbox(CATALOG_MAILBOX);
        let failed = Arc::new(AtomicBool::new(false));
        let room = Room::new(&dir.join(CATALOG_FILE));
        let full = CatalogError::DiskFull { dir: dir.to_path_buf() };
        let no_thread = |error: io::Error| CatalogError::Open { path: dir.to_path_buf(), reason: error.to_string() };
        let index = ToDatabase::start(database, journal.mark(), room).map_err(no_thread)?;
        let writer = Writer::new(journal, index, receiver, failed.clone(), full, observer);
        let thread = std::thread::Builder::new().name("catalog".to_owned()).spawn(move || writer.run());
        let thread = thread.map_err(no_thread)?;
        Ok((Catalog { handle: CatalogHandle { sender, failed }, thread }, loaded))
    }

    /// A handle for another thread.
    pub fn handle(&self) -> CatalogHandle {
        self.handle.clone()
    }

    /// Commits what was given before, closes the file, and ends the thread. Blocks. Handles that are left get
    /// [`CatalogError::Closed`].
    pub fn close(self) {
        let Catalog { handle, thread } = self;
        if handle.sender.send_blocking(Message::Close).is_ok() && thread.join().is_err() {
            tracing::error!("the catalog thread panicked");
        }
    }
}

impl CatalogHandle {
    /// Applies all of `changes` or none of them, after everything that was committed before. When it returns `Ok`
    /// they survive a power cut, whatever the durability asked for.
    ///
    /// The changes are applied even if the caller stops waiting. A commit is one transaction however many changes it
    /// has: who has thousands of pieces to record does it in several, the record of the task last, because pieces
    /// without a version are dropped at the next start.
    pub async fn commit(&self, changes: Vec<Change>, durability: Durability) -> Result<(), CatalogError> {
        if changes.is_empty() {
            return Ok(());
        }
        let call = self.sender.call(|reply| Message::Commit { changes, durability, reply });
        call.await.unwrap_or(Err(CatalogError::Closed))
    }

    /// Whether a commit failed, so that none is accepted any more.
    pub fn is_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }
}
