//! The piece files for threads without a runtime: what the catalog's journal keeps is synced there, and after a crash
//! written once more.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use event_listener::Event;

use crate::rt::file;
use crate::store::extents::ExtentList;
use crate::store::files::piece_file_path;

/// A piece file of a store that is open, for another thread to sync. One of a number is as good as another.
#[derive(Clone, Debug)]
pub struct SharedFile {
    number: u32,
    file: Arc<File>,
}

impl SharedFile {
    /// The file with this number.
    pub fn new(number: u32, file: Arc<File>) -> SharedFile {
        SharedFile { number, file }
    }

    /// Makes what was written to it durable. Blocks.
    pub fn sync(&self) -> io::Result<()> {
        file::sync_data(&self.file)
    }
}

impl Ord for SharedFile {
    fn cmp(&self, other: &SharedFile) -> Ordering {
        self.number.cmp(&other.number)
    }
}

impl PartialOrd for SharedFile {
    fn partial_cmp(&self, other: &SharedFile) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for SharedFile {
    fn eq(&self, other: &SharedFile) -> bool {
        self.number == other.number
    }
}

impl Eq for SharedFile {}

/// A piece that was written, or is being written, and is not synced.
#[derive(Clone, Debug)]
pub struct UnsyncedPiece {
    files: Vec<SharedFile>,
    write: Arc<WriteState>,
}

impl UnsyncedPiece {
    /// Of a piece in these files, whose write has yet to end.
    pub(crate) fn new(files: Vec<SharedFile>) -> (UnsyncedPiece, WriteEnd) {
        let write = Arc::<WriteState>::default();
        (UnsyncedPiece { files, write: write.clone() }, WriteEnd(write))
    }

    /// Of a piece that is written.
    pub fn written_to(files: Vec<SharedFile>) -> UnsyncedPiece {
        let (piece, end) = UnsyncedPiece::new(files);
        end.ended(true);
        piece
    }

    /// Waits until it is written. Blocks.
    pub fn written(&self) -> io::Result<()> {
        if *self.write.ended.wait() { Ok(()) } else { Err(io::Error::other("a piece could not be written")) }
    }

    /// The files to sync then.
    pub fn files(&self) -> &[SharedFile] {
        &self.files
    }
}

impl PartialEq for UnsyncedPiece {
    fn eq(&self, other: &UnsyncedPiece) -> bool {
        Arc::ptr_eq(&self.write, &other.write)
    }
}

impl Eq for UnsyncedPiece {}

/// How far a write is.
#[derive(Debug, Default)]
pub(super) struct WriteState {
    /// Whether it ended well.
    ended: OnceLock<bool>,
    changed: Event,
}

impl WriteState {
    /// Waits until it has ended; gives whether it did well.
    pub(super) async fn ended(&self) -> bool {
        loop {
            let changed = self.changed.listen();
            if let Some(well) = self.ended.get() {
                return *well;
            }
            changed.await;
        }
    }
}

/// Says how the write of an [`UnsyncedPiece`] ended. Dropped before, it failed.
pub(crate) struct WriteEnd(Arc<WriteState>);

impl WriteEnd {
    /// It has ended.
    pub(crate) fn ended(self, well: bool) {
        let _ = self.0.ended.set(well);
    }

    pub(super) fn state(&self) -> Arc<WriteState> {
        self.0.clone()
    }
}

impl Drop for WriteEnd {
    fn drop(&mut self) {
        let _ = self.0.ended.set(false);
        self.0.changed.notify(usize::MAX);
    }
}

/// What a start does to the piece files before the store is open.
pub trait PieceFiles {
    /// Writes the bytes of a piece to its blocks once more. Blocks that no file has are left alone.
    fn write(&mut self, extents: &ExtentList, bytes: &[u8]) -> io::Result<()>;

    /// Makes what was written to a file durable.
    fn sync(&mut self, file: u32) -> io::Result<()>;
}

/// The piece files of a data folder, each opened when it is first needed.
pub struct PlainFiles {
    dir: PathBuf,
    open: HashMap<u32, File>,
}

impl PlainFiles {
    /// Those of `dir`.
    pub fn new(dir: PathBuf) -> PlainFiles {
        PlainFiles { dir, open: HashMap::new() }
    }

    fn open(&mut self, number: u32) -> io::Result<&File> {
        if !self.open.contains_key(&number) {
            let file = File::options().read(true).write(true).open(piece_file_path(&self.dir, number))?;
            self.open.insert(number, file);
        }
        Ok(&self.open[&number])
    }
}

impl PieceFiles for PlainFiles {
    fn write(&mut self, extents: &ExtentList, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        for extent in extents {
            let (part, left) = rest.split_at(rest.len().min(extent.length_bytes()));
            rest = left;
            let file = match self.open(extent.file) {
                // The piece is lost, which the store finds, with all others of the file.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                file => file?,
            };
            if extent.offset_bytes() + extent.length_bytes() as u64 <= file.metadata()?.len() {
                file::write_at(file, part, extent.offset_bytes())?;
            }
        }
        Ok(())
    }

    fn sync(&mut self, file: u32) -> io::Result<()> {
        match self.open(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            open => file::sync_data(open?),
        }
    }
}
