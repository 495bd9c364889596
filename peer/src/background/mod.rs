//! Bulk reads that no client waits for: pieces on their way to the backend.
//!
//! One thread with a glommio executor of its own, so that bulk reads never delay a shard: its disk queue is separate,
//! and its task queues share the thread by weight. It owns its own descriptors of the piece files, opened by path
//! when first needed. It may read, never write. It uses the store's leases, checksums and errors, nothing else of it.
//!
//! What can fail: the start, when the process may not lock enough memory or io_uring is refused
//! ([`BackgroundError::Start`]), and each read, like one of the store.
//!
//! Invariants: a piece is verified before it is handed on; a lease is held while its piece is read; at most
//! [`BACKGROUND_READS_MAX`] reads run at once, the rest waits in the mailbox. Rules that the released glommio 0.9
//! demands: the mailbox is drained by a `Latency::Matters` queue (another one answers after up to 200 ms), a timer is
//! always running (without one a wake from another thread that is missed stops the executor for good), a thread
//! beside it rouses it when nothing is answered all the same ([`watch`]), at most
//! 4 MiB are read by one operation, no `spsc_queue`, and no file is created here (one that is created before any was
//! opened on the device gets wrong direct-I/O limits).
//!
//! [`BACKGROUND_READS_MAX`]: crate::limits::BACKGROUND_READS_MAX

mod reader;
mod watch;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use glommio::{GlommioError, LocalExecutor, LocalExecutorBuilder, Placement, ReactorErrorKind};

use crate::background::reader::Reader;
use crate::background::watch::{Progress, Watch};
use crate::limits::{BACKGROUND_IO_MEMORY_BYTES, BACKGROUND_MAILBOX};
use crate::rt::arena::{Slot, SlotMut};
use crate::rt::mailbox::{Receiver, Sender, mailbox, oneshot};
use crate::rt::rouse::Rouser;
use crate::store::{Lease, StoreError};

/// Why a bulk read, or the start of the thread, failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BackgroundError {
    /// The executor did not start.
    #[error("the background executor cannot start: {reason}")]
    Start {
        /// Why, and what to do.
        reason: String,
    },
    /// The read failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The executor has ended.
    #[error("the background executor has ended")]
    Closed,
}

impl BackgroundError {
    /// Whether the same call may succeed later without a restart.
    pub fn is_retryable(&self) -> bool {
        matches!(self, BackgroundError::Store(error) if error.is_retryable())
    }
}

impl BackgroundError {
    /// Whether the piece itself is wrong. All else, such as a lack of descriptors, says nothing about it.
    pub fn is_damage(&self) -> bool {
        matches!(self, BackgroundError::Store(StoreError::Corrupt { .. }))
    }
}

/// A piece to read.
struct ReadPiece {
    lease: Lease,
    length: usize,
    crc32: u32,
    slot: SlotMut,
    reply: oneshot::Sender<Result<Slot, StoreError>>,
}

enum Message {
    Read(ReadPiece),
    Close,
}

/// The running executor: ends when [`close`](Self::close)d.
pub struct Background {
    handle: BackgroundHandle,
    thread: JoinHandle<()>,
    _watch: Watch,
}

/// The way to ask for bulk reads. Clones share the executor.
#[derive(Clone)]
pub struct BackgroundHandle {
    calls: Sender<Message>,
    progress: Arc<Progress>,
}

impl Background {
    /// Starts the thread; `dir` is the data folder. Blocks until the executor runs or is known not to.
    pub fn start(dir: PathBuf) -> Result<Background, BackgroundError> {
        let (sender, receiver) = mailbox(BACKGROUND_MAILBOX);
        let (started, start) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("background".to_owned());
        let thread = thread.spawn(move || run(dir, receiver, &started));
        let thread = thread.map_err(|error| BackgroundError::Start { reason: error.to_string() })?;
        let outcome = start.recv().unwrap_or_else(|_| Err("its thread ended at once".to_owned()));
        let sleeper = outcome.map_err(|reason| BackgroundError::Start { reason })?;
        let progress = Arc::new(Progress::default());
        let watch = Watch::start(sleeper, progress.clone()).map_err(|reason| BackgroundError::Start { reason })?;
        Ok(Background { handle: BackgroundHandle { calls: sender, progress }, thread, _watch: watch })
    }

    /// A handle for another thread.
    pub fn handle(&self) -> BackgroundHandle {
        self.handle.clone()
    }

    /// Finishes the reads that were asked for before, closes the files, and ends the thread. Blocks.
    pub fn close(self) {
        let Background { handle, thread, _watch } = self;
        // Nothing answers this but its end.
        let _asked = handle.progress.ask();
        if handle.calls.send_blocking(Message::Close).is_ok() && thread.join().is_err() {
            tracing::error!("the background thread panicked");
        }
    }
}

impl BackgroundHandle {
    /// Reads a whole piece into `slot` and verifies it, as [`PieceStore::read`](crate::store::PieceStore::read) does.
    /// Waits while the mailbox is full.
    pub async fn read_piece(
        &self,
        lease: Lease,
        length: usize,
        crc32: u32,
        slot: SlotMut,
    ) -> Result<Slot, BackgroundError> {
        assert!(slot.capacity() as u64 >= lease.length_bytes() && lease.length_bytes() >= length as u64);
        // Here, because the background thread is slow to be woken.
        lease.written().await?;
        let _asked = self.progress.ask();
        let call = self.calls.call(|reply| Message::Read(ReadPiece { lease, length, crc32, slot, reply }));
        Ok(call.await.map_err(|_| BackgroundError::Closed)??)
    }
}

fn run(dir: PathBuf, receiver: Receiver<Message>, started: &mpsc::SyncSender<Result<Rouser, String>>) {
    let executor = match make_executor() {
        Ok(executor) => executor,
        Err(reason) => {
            let _ = started.send(Err(reason));
            return;
        }
    };
    executor.run(async move {
        let reader = Reader::new(dir);
        reader.learn_disk().await;
        let _ = started.send(Rouser::of_this_thread().map_err(|error| error.to_string()));
        reader.serve(receiver).await;
    });
}

fn make_executor() -> Result<LocalExecutor, String> {
    let builder =
        LocalExecutorBuilder::new(Placement::Unbound).name("background").io_memory(BACKGROUND_IO_MEMORY_BYTES);
    builder.make().map_err(|error| match error {
        GlommioError::ReactorError(ReactorErrorKind::MemLockLimit(found, needed)) => format!(
            "the process may lock {found} bytes of memory and needs {needed}: \
             raise it with `ulimit -l` or LimitMEMLOCK= in the service file"
        ),
        error => format!("{error}; check that io_uring is allowed (sysctl kernel.io_uring_disabled, seccomp)"),
    })
}
