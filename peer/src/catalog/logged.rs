//! For tests: the catalog's file with every write, change of length and sync noted in the folder's log, and a catalog
//! that is opened from bytes in memory.

use std::fs::File;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use redb::backends::FileBackend;
use redb::{BackendError, Builder, Database, DatabaseError, StorageBackend};

use crate::catalog::database::{self, open_error};
use crate::catalog::journal::Replay;
use crate::catalog::{CatalogError, Loaded};
use crate::rt::aligned::AlignedBytes;
use crate::rt::disk_log;
use crate::store::PieceFiles;

const CACHE_BYTES: usize = 4 << 20;

/// Opens or creates the file as [`Builder::create`] does.
pub fn create(builder: &Builder, path: &Path) -> Result<Database, DatabaseError> {
    let existed = path.exists();
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    if !existed {
        disk_log::created(path);
    }
    let noted = file.try_clone()?;
    builder.create_with_backend(Logged { file: FileBackend::new(file)?, noted })
}

/// A backend that does what it is told by another one, and notes it.
#[derive(Debug)]
struct Logged {
    file: FileBackend,
    /// Tells the log which file it is.
    noted: File,
}

impl StorageBackend for Logged {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        disk_log::resized(&self.noted, len);
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let noted = disk_log::sync(&self.noted);
        let synced = self.file.sync_data();
        noted.ended(&synced);
        synced
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let noted = disk_log::write(&self.noted, offset, || data.to_vec());
        let written = self.file.write(offset, data);
        noted.ended(&written);
        written
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }
}

/// Opens a catalog from what a crash left of its files, as a start does. No bytes are no file.
pub fn open_image(bytes: Vec<u8>, journal: &[u8], pieces: &mut dyn PieceFiles) -> Result<Loaded, CatalogError> {
    let path = PathBuf::from("image");
    let existed = !bytes.is_empty();
    let opened = database::builder(CACHE_BYTES).create_with_backend(Memory(Mutex::new(bytes)));
    let opened = opened.map_err(|error| open_error(&path, error))?;
    let (database, identity) = database::Database::identified(opened, &path)?;
    let Some(mark) = identity.mark.filter(|_| existed) else { return database.load(&path, identity.store_id) };
    let replay = Replay::read(&path, aligned(journal), &identity.store_id, mark)?;
    database.catch_up(&path, identity.store_id, mark, &replay, pieces)
}

fn aligned(bytes: &[u8]) -> AlignedBytes {
    let mut aligned = AlignedBytes::zeroed(bytes.len());
    aligned[..bytes.len()].copy_from_slice(bytes);
    aligned
}

/// A file in memory.
#[derive(Debug)]
struct Memory(Mutex<Vec<u8>>);

impl Memory {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().expect("not poisoned")
    }
}

fn range(offset: u64, length: usize) -> std::ops::Range<usize> {
    let start = usize::try_from(offset).expect("small");
    start..start + length
}

impl StorageBackend for Memory {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes();
        let found = bytes.get(range(offset, out.len())).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.bytes().resize(usize::try_from(length).expect("small"), 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut bytes = self.bytes();
        let range = range(offset, data.len());
        if bytes.len() < range.end {
            bytes.resize(range.end, 0);
        }
        bytes[range].copy_from_slice(data);
        Ok(())
    }
}
