//! The data folder: made if it is missing, ours alone, locked, and on a file system that can do direct I/O.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::process::geteuid;

use super::missing::Missing;
use crate::config::{StoreOptions, units::show_size};
use crate::limits::BLOCK_BYTES;
use crate::rt::file::{free_bytes, open_direct};

/// Name of the lock file inside the data folder. It holds the process ID of whoever holds the lock.
const LOCK_NAME: &str = "LOCK";
/// Name of the file that direct I/O is tried with. It loses its name before anything is written.
const PROBE_NAME: &str = "probe.tmp";

/// A file system that keeps nothing.
const TMPFS: &str = "tmpfs";

/// The lock of a data folder, held until this is dropped or the process ends.
#[derive(Debug)]
pub struct DataLock {
    _file: File,
}

/// A data folder that can be used.
pub(super) struct DataFolder {
    pub(super) lock: DataLock,
    pub(super) warnings: Vec<String>,
}

/// A block whose memory is aligned as direct I/O wants it.
#[repr(C, align(4096))]
struct AlignedBlock([u8; BLOCK_BYTES as usize]);

const _: () = assert!(align_of::<AlignedBlock>() == BLOCK_BYTES as usize);

pub(super) fn open(store: &StoreOptions) -> Result<DataFolder, Missing> {
    let path = &store.data_path;
    make(path).map_err(|error| Missing::Folder { path: path.clone(), error })?;
    check_owner(path)?;
    let lock = lock(path)?;
    let mut warnings = Vec::new();
    match try_direct_io(path) {
        Ok(()) => {}
        // A full disk must not keep a peer from serving what it has.
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {
            warnings.push(format!("data folder {}: the disk is full: writes will be refused", path.display()));
        }
        Err(error) => return Err(Missing::DirectIo { path: path.clone(), file_system: file_system(path), error }),
    }
    if file_system(path) == TMPFS {
        warnings.push(format!(
            "data folder {}: it is on {TMPFS}, in memory: what this peer acknowledges is gone when the machine is restarted; \
             set storage.dataPath to a folder on a disk",
            path.display()
        ));
    }
    warnings.extend(check_space(store));
    Ok(DataFolder { lock, warnings })
}

/// Makes the folder, for this user alone. Folders above it get the usual mode.
fn make(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ if !path.is_dir() => Err(io::Error::from(io::ErrorKind::NotADirectory)),
        _ => Ok(()),
    }
}

fn check_owner(path: &Path) -> Result<(), Missing> {
    let metadata = path.metadata().map_err(|error| Missing::Folder { path: path.to_owned(), error })?;
    let (owner, user) = (metadata.uid(), geteuid().as_raw());
    if owner == user { Ok(()) } else { Err(Missing::FolderOwner { path: path.to_owned(), owner, user }) }
}

fn lock(path: &Path) -> Result<DataLock, Missing> {
    let not_writable = |error| Missing::FolderNotWritable { path: path.to_owned(), error };
    let options = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).clone();
    let mut file = options.open(path.join(LOCK_NAME)).map_err(not_writable)?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Err(Missing::FolderLocked { path: path.to_owned(), holder: read_holder(&mut file) });
    }
    // Only the message to the next one depends on it: a full disk is no reason to stop.
    let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(DataLock { _file: file })
}

fn read_holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Writes one block past the page cache and reads it back.
fn try_direct_io(path: &Path) -> io::Result<()> {
    let name = path.join(PROBE_NAME);
    // One may be left from a process that was killed between the next two lines.
    let _ = std::fs::remove_file(&name);
    let file = open_direct(&name, true)?;
    std::fs::remove_file(&name)?;
    let written = AlignedBlock([0x5a; BLOCK_BYTES as usize]);
    let mut read = AlignedBlock([0; BLOCK_BYTES as usize]);
    file.write_all_at(&written.0, 0)?;
    file.read_exact_at(&mut read.0, 0)?;
    if read.0 == written.0 { Ok(()) } else { Err(io::Error::other("a block came back different")) }
}

/// Whether the quota fits, counting what the folder holds already. Too little is no reason to refuse: writes get an
/// answer of their own when the disk is full.
fn check_space(store: &StoreOptions) -> Option<String> {
    let path = &store.data_path;
    let free = free_bytes(path).ok()?;
    let held: u64 = std::fs::read_dir(path).ok()?.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.blocks())).sum();
    let usable = free.saturating_add(held.saturating_mul(512));
    (usable < store.capacity_bytes).then(|| {
        let (capacity, usable) = (show_size(store.capacity_bytes), show_size(usable >> 20 << 20));
        format!("storage.capacity is {capacity}, but {} has room for {usable} only: lower it", path.display())
    })
}

/// Name of the kind of file system, for people.
fn file_system(path: &Path) -> String {
    let Ok(stat) = rustix::fs::statfs(path) else { return "unknown file system".to_owned() };
    let known = [
        (0xEF53, "ext4"),
        (0x5846_5342, "xfs"),
        (0x9123_683E, "btrfs"),
        (0x0102_1994, TMPFS),
        (0x794C_7630, "overlayfs"),
        (0x6969, "nfs"),
        (0x6573_5546, "fuse"),
        (0x0102_1997, "9p"),
    ];
    let found = known.iter().find(|(magic, _)| *magic == i128::from(stat.f_type));
    found.map_or_else(|| format!("file system {:#x}", stat.f_type), |(_, name)| (*name).to_owned())
}
