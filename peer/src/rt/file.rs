//! Direct-I/O files of the shard runtime, and the plain file calls that happen before it runs.
//!
//! Every write and sync is noted for the crash tests (`disk_log`); outside tests that is nothing.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::SeekFrom;

use crate::limits::BLOCK_BYTES;
use crate::rt::aligned::AlignedBytes;
use crate::rt::arena::{Slot, SlotMut};
#[cfg(test)]
use crate::rt::disk_log as note;
#[cfg(not(test))]
use silent as note;

/// A file opened with `O_DIRECT`, as one shard sees it. Offsets and lengths are whole blocks.
///
/// All shards use the one descriptor of the shared [`File`]: a copy each would multiply the descriptors of a large
/// store by the number of shards.
pub struct DirectFile {
    /// Never dropped: that would close a descriptor that belongs to `shared`.
    file: ManuallyDrop<monoio::fs::File>,
    shared: Arc<File>,
}

/// Opens (or creates) `path` for direct I/O. The result may be cloned and sent to the shards, each of which makes a
/// [`DirectFile`] of its own clone.
pub fn open_direct(path: &Path, create_new: bool) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(create_new)
        .mode(0o600)
        .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC)
        .open(path)?;
    if create_new {
        note::created(path);
    }
    Ok(file)
}

/// Opens `path` for direct I/O; each write is durable when it returns.
pub fn open_direct_synced(path: &Path) -> io::Result<File> {
    let flags = libc::O_DIRECT | libc::O_DSYNC | libc::O_CLOEXEC;
    File::options().read(true).write(true).custom_flags(flags).open(path)
}

/// Writes all of a fresh file that was opened for direct I/O, durable when this returns.
pub fn write_whole(file: &File, bytes: &AlignedBytes) -> io::Result<()> {
    write_at(file, bytes, 0)?;
    sync_all(file)
}

/// Writes whole blocks to a file of [`open_direct_synced`], durable when this returns.
pub fn write_synced(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let written = write_at(file, bytes, offset);
    note::sync(file).ended(&written);
    written
}

/// Writes bytes to a file, whole blocks in aligned memory if it was opened for direct I/O.
pub fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let noted = note::write(file, offset, || bytes.to_vec());
    let written = file.write_all_at(bytes, offset);
    noted.ended(&written);
    written
}

/// Makes what was written to a file durable (`fdatasync`).
pub fn sync_data(file: &File) -> io::Result<()> {
    let noted = note::sync(file);
    let synced = file.sync_data();
    noted.ended(&synced);
    synced
}

/// Reads all whole blocks of a file that was opened for direct I/O.
pub fn read_whole(file: &File) -> io::Result<AlignedBytes> {
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut bytes = AlignedBytes::zeroed(length / BLOCK_BYTES as usize * BLOCK_BYTES as usize);
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Has what the kernel remembers of a file written or forgotten, so that the next reads come from the disk. After a sync
/// that failed, an earlier run may have left pages in memory that never reached it.
pub fn forget_cached(path: &Path) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    file.sync_all()?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).map_err(io::Error::from)
}

/// Gives a fresh file its full size on disk. `ENOSPC` here is how a full disk shows itself.
pub fn preallocate(file: &File, bytes: u64) -> io::Result<()> {
    rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes)?;
    note::resized(file, bytes);
    Ok(())
}

/// Writes the start of a file through the page cache, durable when this returns: direct I/O wants aligned memory.
pub fn write_start(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let plain = File::options().write(true).open(path)?;
    write_at(&plain, bytes, 0)?;
    sync_all(&plain)
}

/// Gives a file of a folder another name in it, durable when this returns.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)?;
    note::renamed(from, to);
    sync_folder(to.parent().expect("a file lies in a folder"))
}

/// Makes the names in a folder durable.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    sync_all(&File::open(folder)?)
}

fn sync_all(file: &File) -> io::Result<()> {
    let noted = note::sync(file);
    let synced = file.sync_all();
    noted.ended(&synced);
    synced
}

/// Takes the blocks of `file` up to `end_bytes`, also beyond its length, which stays. `ENOSPC` takes a part or none.
pub fn allocate_ahead(file: &File, end_bytes: u64) -> io::Result<()> {
    rustix::fs::fallocate(file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, end_bytes).map_err(io::Error::from)
}

/// Size of the file system that `file` is in.
pub fn file_system_bytes(file: &File) -> io::Result<u64> {
    let found = rustix::fs::fstatvfs(file)?;
    Ok(found.f_blocks.saturating_mul(found.f_frsize))
}

/// Bytes that are free for us in the file system of the folder `dir`.
pub fn free_bytes(dir: &Path) -> io::Result<u64> {
    let found = rustix::fs::statvfs(dir)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Where what has been written to `file` ends, behind holes and blocks that were only taken; at least `from`.
pub fn data_end(file: &File, from: u64) -> io::Result<u64> {
    let mut end = from;
    loop {
        let data = match rustix::fs::seek(file, SeekFrom::Data(end)) {
            Ok(data) => data,
            // Nothing more comes.
            Err(rustix::io::Errno::NXIO) => return Ok(end),
            Err(error) => return Err(error.into()),
        };
        end = rustix::fs::seek(file, SeekFrom::Hole(data))?;
    }
}

impl DirectFile {
    /// Uses an opened file on this shard.
    pub fn new(shared: Arc<File>) -> io::Result<DirectFile> {
        // SAFETY: the descriptor is open as long as `shared`, which lives as long as this; the `File` made of it
        // goes into a `ManuallyDrop` at once, or gives the descriptor back below, so that it is not closed twice.
        let alias = unsafe { File::from_raw_fd(shared.as_raw_fd()) };
        let file = ManuallyDrop::new(monoio::fs::File::from_std(alias)?);
        Ok(DirectFile { file, shared })
    }

    /// Reads whole blocks at `offset` into `slot[at..at + len]`, and sets the slot's length to `at + len`.
    /// A short read is an error: piece files are preallocated.
    pub async fn read_at(&self, slot: SlotMut, at: usize, len: usize, offset: u64) -> (io::Result<()>, SlotMut) {
        assert!(len.is_multiple_of(BLOCK_BYTES as usize) && at.is_multiple_of(BLOCK_BYTES as usize));
        let mut slot = slot;
        slot.set_len(at + len);
        let view = monoio::buf::IoBufMut::slice_mut(slot, at..at + len);
        let (result, view) = self.file.read_exact_at(view, offset).await;
        (result.map(|_| ()), view.into_inner())
    }

    /// Writes `slot[at..at + len]`, whole blocks, at `offset`.
    pub async fn write_at(&self, slot: Slot, at: usize, len: usize, offset: u64) -> io::Result<()> {
        assert!(len.is_multiple_of(BLOCK_BYTES as usize) && at.is_multiple_of(BLOCK_BYTES as usize));
        let noted = note::write(&self.shared, offset, || {
            let mut bytes = slot[at.min(slot.len())..(at + len).min(slot.len())].to_vec();
            bytes.resize(len, 0);
            bytes
        });
        let view = monoio::buf::IoBuf::slice(slot.blocks(), at..at + len);
        let written = self.file.write_all_at(view, offset).await.0;
        noted.ended(&written);
        written
    }

    /// Makes all completed writes durable (`fdatasync`).
    pub async fn sync_data(&self) -> io::Result<()> {
        let noted = note::sync(&self.shared);
        let synced = self.file.sync_data().await;
        noted.ended(&synced);
        synced
    }
}

/// What `disk_log` is outside tests: nothing.
#[cfg(not(test))]
mod silent {
    use std::fs::File;
    use std::path::Path;

    pub struct Noted;

    impl Noted {
        pub fn ended<T, E>(self, _: &Result<T, E>) {}
    }

    pub fn created(_: &Path) {}

    pub fn renamed(_: &Path, _: &Path) {}

    pub fn resized(_: &File, _: u64) {}

    pub fn write(_: &File, _: u64, _: impl FnOnce() -> Vec<u8>) -> Noted {
        Noted
    }

    pub fn sync(_: &File) -> Noted {
        Noted
    }
}
