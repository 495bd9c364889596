//! Direct-I/O files of the shard runtime, and the plain file calls that happen before it runs.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::limits::BLOCK_BYTES;
use crate::rt::arena::{Slot, SlotMut};

/// A file opened with `O_DIRECT`. Offsets and lengths are whole blocks.
pub struct DirectFile(monoio::fs::File);

/// Opens (or creates) `path` for direct I/O. The result may be cloned and sent to the shards, each of which makes a
/// [`DirectFile`] of its own clone.
pub fn open_direct(path: &Path, create_new: bool) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create_new(create_new)
        .mode(0o600)
        .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC)
        .open(path)
}

/// Gives a fresh file its full size on disk. `ENOSPC` here is how a full disk shows itself.
pub fn preallocate(file: &File, bytes: u64) -> io::Result<()> {
    rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes).map_err(io::Error::from)
}

impl DirectFile {
    /// Takes over an opened file on this shard.
    pub fn new(file: File) -> io::Result<DirectFile> {
        monoio::fs::File::from_std(file).map(DirectFile)
    }

    /// Reads whole blocks at `offset` into `slot[at..at + len]`, and sets the slot's length to `at + len`.
    /// A short read is an error: piece files are preallocated.
    pub async fn read_at(&self, slot: SlotMut, at: usize, len: usize, offset: u64) -> (io::Result<()>, SlotMut) {
        assert!(len.is_multiple_of(BLOCK_BYTES as usize) && at.is_multiple_of(BLOCK_BYTES as usize));
        let mut slot = slot;
        slot.set_len(at + len);
        let view = monoio::buf::IoBufMut::slice_mut(slot, at..at + len);
        let (result, view) = self.0.read_exact_at(view, offset).await;
        (result.map(|_| ()), view.into_inner())
    }

    /// Writes `slot[at..at + len]`, whole blocks, at `offset`.
    pub async fn write_at(&self, slot: Slot, at: usize, len: usize, offset: u64) -> io::Result<()> {
        assert!(len.is_multiple_of(BLOCK_BYTES as usize) && at.is_multiple_of(BLOCK_BYTES as usize));
        let view = monoio::buf::IoBuf::slice(slot.blocks(), at..at + len);
        self.0.write_all_at(view, offset).await.0
    }

    /// Makes all completed writes durable (`fdatasync`).
    pub async fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data().await
    }
}
