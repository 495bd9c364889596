//! The piece store: piece files on disk, the space in them, and reading and writing whole pieces.
//!
//! It owns `dataPath/pieces-NNNNNN.dat` and nothing else; it knows no catalog, no task and no network. Its format is
//! specified in `FORMAT.md`.
//!
//! * [`StoreSeed`] is opened once, before the shards start: it finds the files, checks their headers, and hands out
//!   the leases of pieces that the catalog names ([`recover`]). It is `Send` and shared by all threads.
//! * [`PieceStore`] is a shard's face of it: allocate, write, sync, read.
//! * A [`Reservation`] holds fresh blocks and gives them back when dropped. Kept, it becomes a [`Lease`]: a counted
//!   right to read. Blocks are used again only after [`Lease::retire`] and after the last clone is gone.
//! * [`evict`] plans what to evict; it is pure.
//!
//! What can fail: space ([`StoreError::NoSpace`], [`StoreError::DiskFull`]), the disk, and bytes that are not those
//! written ([`StoreError::Corrupt`]). After a failed `fdatasync` the store is poisoned: nobody knows what the disk
//! holds of the writes before, so there are no more writes, while reads, which are verified, go on. A write that fails
//! because the disk does says the same.
//!
//! Invariants: a block belongs to at most one piece; no block is reused while anybody holds a lease on it, nor while
//! a write to it is under way; files never take more than the capacity.

pub mod extents;

mod allocate;
mod bitmap;
mod files;
mod lease;
mod piece;
mod plain;
mod space;

pub mod evict;
pub mod recover;

#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

pub use extents::{Extent, ExtentList};
pub use files::{FORMAT_VERSION, Header, HeaderError, SpaceOptions, piece_file_path};
pub use lease::{Lease, Reservation};
pub(crate) use piece::verify;
pub use piece::{LaterWrite, PieceStore, seal};
pub use plain::{PieceFiles, PlainFiles, SharedFile, UnsyncedPiece};
pub use space::{ClaimError, SpaceStats, StoreSeed};

/// What a write says when the device, or the file system after an error of its own, takes no more.
const DISK_FAILURES: [i32; 5] = [libc::EIO, libc::EROFS, libc::ENODEV, libc::ENXIO, libc::EUCLEAN];

/// Why the piece store could not do something.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Every block that the capacity allows is in use, or what is free is too scattered. Evicting helps.
    #[error(
        "{free_bytes} bytes of {capacity_bytes} are free, {wanted_bytes} are needed, and nothing can be evicted: raise \
         storage.capacity, or wait for pending write-backs"
    )]
    NoSpace {
        /// Bytes asked for.
        wanted_bytes: u64,
        /// Bytes free in all files.
        free_bytes: u64,
        /// Capacity of the store.
        capacity_bytes: u64,
    },
    /// The file system has no room for another piece file although the capacity allows it. Evicting helps.
    #[error(
        "the file system of {} is full below storage.capacity: free disk space, or lower storage.capacity",
        dir.display()
    )]
    DiskFull {
        /// The data folder.
        dir: PathBuf,
    },
    /// What is on disk is not what was written. The piece must come from another source.
    #[error("piece in file {file} at block {block} has CRC32 {found:08x} instead of {expected:08x}")]
    Corrupt {
        /// File of the first extent.
        file: u32,
        /// Block of the first extent.
        block: u32,
        /// CRC32 that was computed when the piece entered this peer.
        expected: u32,
        /// CRC32 of what was read.
        found: u32,
    },
    /// An `fdatasync` failed earlier, or a write because the disk did: no more writes until the process starts again.
    #[error("the store takes no writes since the disk failed; restart the peer after checking it")]
    Poisoned,
    /// The extents do not lie in the store's files. The catalog and the piece files do not belong together.
    #[error("no piece file {file} with block {block}")]
    OutsideFiles {
        /// File number.
        file: u32,
        /// Block number.
        block: u32,
    },
    /// A piece file of another store, or of a version this program does not know.
    #[error("{}: {reason}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The operating system refused.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: Arc<io::Error>,
    },
}

impl StoreError {
    /// Whether the same call may succeed later without a restart.
    pub fn is_retryable(&self) -> bool {
        matches!(self, StoreError::NoSpace { .. } | StoreError::DiskFull { .. })
    }

    /// Whether the disk failed, not the request: an `fdatasync` did not succeed, or the device or the file system takes no
    /// writes.
    pub fn is_disk_failure(&self) -> bool {
        let StoreError::Io { operation, source, .. } = self else { return false };
        *operation == "sync"
            || *operation == "write" && source.raw_os_error().is_some_and(|e| DISK_FAILURES.contains(&e))
    }

    /// Whether eviction may help.
    pub fn is_space(&self) -> bool {
        self.is_retryable()
    }
}
