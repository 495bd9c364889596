//! The executor's side: drains the mailbox and reads pieces, a few at once.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use glommio::io::DmaFile;
use glommio::sync::Semaphore;
use glommio::{Latency, Shares, TaskQueueHandle};

use crate::background::{Message, ReadPiece};
use crate::limits::{BACKGROUND_READS_MAX, PIECE_BYTES};
use crate::rt::arena::Slot;
use crate::rt::mailbox::Receiver;
use crate::store::{Extent, StoreError, piece_file_path, verify};

/// Shares of the thread: the mailbox is served first whatever the bulk work.
const MAILBOX_SHARES: usize = 1000;
const BULK_SHARES: usize = 200;
/// The mailbox is looked at within this time.
const MAILBOX_LATENCY: Duration = Duration::from_millis(1);
/// How long a missed wake goes unnoticed at most; see [`tick`].
const WAKE_PERIOD: Duration = Duration::from_millis(20);

/// Reads pieces on the executor's thread.
pub struct Reader {
    dir: PathBuf,
    files: RefCell<HashMap<u32, Rc<DmaFile>>>,
    running: Semaphore,
}

/// Wakes the executor now and then. glommio 0.9 sometimes misses a wake from another thread and then sleeps for good,
/// deaf to every later one (seen about once in 3000 requests on an overloaded machine); its own timers wake it always.
async fn tick() {
    loop {
        glommio::timer::sleep(WAKE_PERIOD).await;
    }
}

impl Reader {
    /// A reader of the piece files in `dir`.
    pub fn new(dir: PathBuf) -> Rc<Reader> {
        Rc::new(Reader { dir, files: RefCell::default(), running: Semaphore::new(BACKGROUND_READS_MAX) })
    }

    /// Opens some file of the folder once. glommio 0.9 reads what it wants to know of a disk at the first file that it
    /// opens there, and panics when it cannot, as when the process is out of descriptors. At the start it is not.
    pub async fn learn_disk(&self) {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut files = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
        if let Some(file) = files.next()
            && let Ok(opened) = DmaFile::open(file.path()).await
        {
            let _ = opened.close().await;
        }
    }

    /// Serves the mailbox until it is closed, then ends what runs and closes the files.
    pub async fn serve(self: Rc<Self>, receiver: Receiver<Message>) {
        let executor = glommio::executor();
        let mailbox =
            executor.create_task_queue(Shares::Static(MAILBOX_SHARES), Latency::Matters(MAILBOX_LATENCY), "mailbox");
        let bulk = executor.create_task_queue(Shares::Static(BULK_SHARES), Latency::NotImportant, "bulk");
        let drain = glommio::spawn_local_into(self.clone().drain(receiver, bulk), mailbox);
        let tick = glommio::spawn_local_into(tick(), mailbox).expect("the queue was just created");
        drain.expect("the queue was just created").await;
        tick.cancel().await;
        let files = std::mem::take(&mut *self.files.borrow_mut());
        for file in files.into_values() {
            let _ = file.close_rc().await;
        }
    }

    async fn drain(self: Rc<Self>, receiver: Receiver<Message>, bulk: TaskQueueHandle) {
        while let Some(Message::Read(request)) = receiver.recv().await {
            // The permit is taken before the task starts: while all are taken, requests wait in the mailbox.
            self.acquire(1).await;
            let reader = self.clone();
            let work = async move {
                reader.answer(request).await;
                reader.running.signal(1);
            };
            glommio::spawn_local_into(work, bulk).expect("the queue lives as long as the executor").detach();
        }
        self.acquire(BACKGROUND_READS_MAX).await;
    }

    async fn acquire(&self, permits: u64) {
        self.running.acquire(permits).await.expect("the semaphore is never closed");
    }

    async fn answer(&self, request: ReadPiece) {
        let ReadPiece { lease, length, crc32, mut slot, reply } = request;
        let mut result = Ok(());
        for extent in lease.extents() {
            result = self.read_extent(extent, &mut slot).await;
            if result.is_err() {
                break;
            }
        }
        let answer = result.and_then(|()| {
            slot.set_len(length);
            verify(lease.extents(), &slot, crc32)
        });
        // Whoever stopped waiting needs no answer.
        let _ = reply.send(answer.map(|()| -> Slot { slot.freeze() }));
        drop(lease);
    }

    async fn read_extent(&self, extent: &Extent, slot: &mut crate::rt::arena::SlotMut) -> Result<(), StoreError> {
        let length = extent.length_bytes();
        assert!(length <= PIECE_BYTES as usize, "one operation reads at most a piece");
        let file = self.open(extent.file).await?;
        let read = file.read_at_aligned(extent.offset_bytes(), length).await;
        let bytes = read.map_err(|error| self.io_error("read", extent.file, error.into()))?;
        if bytes.len() != length || slot.append(&bytes) != length {
            return Err(self.io_error("read", extent.file, io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(())
    }

    async fn open(&self, number: u32) -> Result<Rc<DmaFile>, StoreError> {
        if let Some(file) = self.files.borrow().get(&number) {
            return Ok(file.clone());
        }
        let opened = DmaFile::open(piece_file_path(&self.dir, number)).await;
        let opened = Rc::new(opened.map_err(|error| self.io_error("open", number, error.into()))?);
        // Another read may have opened it meanwhile: the first one stays.
        let file = self.files.borrow_mut().entry(number).or_insert_with(|| opened.clone()).clone();
        if !Rc::ptr_eq(&file, &opened) {
            let _ = opened.close_rc().await;
        }
        Ok(file)
    }

    fn io_error(&self, operation: &'static str, number: u32, source: io::Error) -> StoreError {
        StoreError::Io { operation, path: piece_file_path(&self.dir, number), source: source.into() }
    }
}
