//! Piece files: their names, sizes and headers, finding them at start, creating one more.
//!
//! A file is written in the order: create, take its full size, header, sync of the file, sync of the folder; only
//! then may a piece go into it. Whatever a crash leaves before that is a file that no record names, so it is removed
//! at the next start. See `FORMAT.md`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::limits::{BLOCK_BYTES, PIECE_BYTES, PIECE_FILE_BYTES_MAX, PIECE_FILE_BYTES_MIN};
use crate::rt::file;
use crate::store::StoreError;
use crate::store::bitmap::Bitmap;

const MAGIC: [u8; 8] = *b"DFSPIECE";
/// Version of the piece files' format. A file of another version is refused.
pub const FORMAT_VERSION: u32 = 1;
/// Bytes of the header that carry meaning; the rest of block 0 is zero.
pub const HEADER_BYTES: usize = 44;
/// Blocks of a piece file that hold no pieces.
pub const HEADER_BLOCKS: u32 = 1;
/// Files each shard should be able to own, when the capacity is small.
const FILES_PER_SHARD: u64 = 4;

/// What the store needs to know at start.
#[derive(Clone, Debug)]
pub struct SpaceOptions {
    /// The data folder; it exists.
    pub dir: PathBuf,
    /// Bytes that all piece files may take together.
    pub capacity_bytes: u64,
    /// Shards of this run.
    pub shards: usize,
    /// Identity of the store, from the catalog.
    pub store_id: [u8; 16],
}

impl SpaceOptions {
    /// Size of a new piece file: a header and a whole number of pieces, small enough that every shard can own a few.
    pub fn file_bytes(&self) -> u64 {
        let share = self.capacity_bytes / (FILES_PER_SHARD * self.shards.max(1) as u64);
        whole_pieces(share.min(PIECE_FILE_BYTES_MAX))
    }
}

/// An open piece file and which of its blocks are in use.
pub struct PieceFile {
    /// Number in its name.
    pub number: u32,
    /// The shard that places pieces in it first.
    pub home: usize,
    /// Opened for direct I/O.
    pub file: Arc<File>,
    /// Blocks in use; those of the header always are.
    pub bitmap: Bitmap,
}

impl PieceFile {
    fn new(number: u32, home: usize, file: File, block_count: u32) -> PieceFile {
        let bitmap = Bitmap::new(block_count);
        assert!(bitmap.claim(0, HEADER_BLOCKS), "a piece file has room for its header");
        PieceFile { number, home, file: Arc::new(file), bitmap }
    }

    /// Size of the file in bytes.
    pub fn bytes(&self) -> u64 {
        u64::from(self.bitmap.block_count()) * u64::from(BLOCK_BYTES)
    }
}

/// Path of piece file `number`.
pub fn piece_file_path(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("pieces-{number:06}.dat"))
}

/// What block 0 of a piece file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The store it belongs to.
    pub store_id: [u8; 16],
    /// Its own number.
    pub number: u32,
    /// Its size in blocks, this one included.
    pub block_count: u32,
}

/// Why a header was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// Magic or checksum is wrong: never finished, or damaged.
    Damaged,
    /// Another version of the format.
    Version(u32),
}

impl Header {
    /// The bytes at the start of block 0.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.store_id);
        bytes[32..36].copy_from_slice(&self.block_count.to_le_bytes());
        bytes[36..40].copy_from_slice(&BLOCK_BYTES.to_le_bytes());
        let crc32 = crc32fast::hash(&bytes[..40]);
        bytes[40..44].copy_from_slice(&crc32.to_le_bytes());
        bytes
    }

    /// Reads what [`encode`](Self::encode) wrote.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Header, HeaderError> {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if bytes[0..8] != MAGIC || word(40) != crc32fast::hash(&bytes[..40]) {
            return Err(HeaderError::Damaged);
        }
        if word(8) != FORMAT_VERSION || word(36) != BLOCK_BYTES {
            return Err(HeaderError::Version(word(8)));
        }
        let store_id = bytes[16..32].try_into().expect("sixteen bytes");
        Ok(Header { store_id, number: word(12), block_count: word(32) })
    }
}

/// Opens every piece file of the folder. `named` are the files that records name. A file without a valid header that
/// no record names was never finished and is removed; one that records name gets its header again, because its
/// pieces carry checksums of their own.
pub fn open_all(options: &SpaceOptions, named: &BTreeSet<u32>) -> Result<Vec<PieceFile>, StoreError> {
    let mut files = Vec::new();
    for number in numbers_in(&options.dir)? {
        if let Some(file) = open_one(options, number, named.contains(&number))? {
            files.push(file);
        }
    }
    Ok(files)
}

fn numbers_in(dir: &Path) -> Result<Vec<u32>, StoreError> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir).map_err(|error| io_error("list", dir, error))? {
        let entry = entry.map_err(|error| io_error("list", dir, error))?;
        let name = entry.file_name();
        let digits = name.to_str().and_then(|name| name.strip_prefix("pieces-")?.strip_suffix(".dat"));
        if let Some(number) = digits.and_then(|digits| digits.parse().ok())
            && piece_file_path(dir, number) == entry.path()
        {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn open_one(options: &SpaceOptions, number: u32, named: bool) -> Result<Option<PieceFile>, StoreError> {
    let path = piece_file_path(&options.dir, number);
    let file = file::open_direct(&path, false).map_err(|error| io_error("open", &path, error))?;
    let found_bytes = file.metadata().map_err(|error| io_error("open", &path, error))?.len();
    let header = match read_header(&path).map_err(|error| io_error("read", &path, error))? {
        Ok(header) => header,
        Err(HeaderError::Damaged) if !named => return remove_unfinished(&path),
        Err(HeaderError::Damaged) => repair_header(options, &path, number, found_bytes)?,
        Err(HeaderError::Version(version)) => {
            let reason = format!(
                "format version {version}, this program knows {FORMAT_VERSION}: use the program that wrote it, or an empty data folder"
            );
            return Err(StoreError::Foreign { path, reason });
        }
    };
    if header.store_id != options.store_id || header.number != number {
        let reason = "it belongs to another store: move it away, or use an empty data folder".to_owned();
        return Err(StoreError::Foreign { path, reason });
    }
    if found_bytes < u64::from(header.block_count) * u64::from(BLOCK_BYTES) || header.block_count <= HEADER_BLOCKS {
        let reason = format!("cut short to {found_bytes} bytes: restore it, or move it away and lose its pieces");
        return Err(StoreError::Foreign { path, reason });
    }
    Ok(Some(PieceFile::new(number, number as usize % options.shards.max(1), file, header.block_count)))
}

fn read_header(path: &Path) -> io::Result<Result<Header, HeaderError>> {
    let mut bytes = [0; HEADER_BYTES];
    match File::open(path)?.read_exact_at(&mut bytes, 0) {
        Ok(()) => Ok(Header::decode(&bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Err(HeaderError::Damaged)),
        Err(error) => Err(error),
    }
}

fn remove_unfinished(path: &Path) -> Result<Option<PieceFile>, StoreError> {
    tracing::warn!(path = %path.display(), "a piece file that was never finished was removed");
    fs::remove_file(path).map_err(|error| io_error("remove", path, error))?;
    Ok(None)
}

fn repair_header(options: &SpaceOptions, path: &Path, number: u32, bytes: u64) -> Result<Header, StoreError> {
    tracing::warn!(path = %path.display(), "a piece file with pieces had a damaged header, which was written again");
    let block_count = u32::try_from(bytes / u64::from(BLOCK_BYTES)).unwrap_or(u32::MAX);
    let header = Header { store_id: options.store_id, number, block_count };
    file::write_start(path, &header.encode()).map_err(|error| io_error("write", path, error))?;
    Ok(header)
}

/// Creates piece file `number`, durable when this returns: of full size, or of what the disk has room for. Blocks; shards
/// call it on a thread of its own.
pub fn create(options: &SpaceOptions, number: u32, home: usize) -> Result<PieceFile, StoreError> {
    let path = piece_file_path(&options.dir, number);
    let mut bytes = options.file_bytes();
    loop {
        let block_count = u32::try_from(bytes / u64::from(BLOCK_BYTES)).expect("a piece file is below 2^32 blocks");
        let header = Header { store_id: options.store_id, number, block_count };
        let error = match write_new(&path, bytes, &header) {
            Ok(file) => return Ok(PieceFile::new(number, home, file, block_count)),
            Err(error) => error,
        };
        let _ = fs::remove_file(&path);
        if !matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            return Err(io_error("create", &path, error));
        }
        let free = file::free_bytes(&options.dir).unwrap_or(0);
        bytes = smaller(bytes, free).ok_or_else(|| StoreError::DiskFull { dir: options.dir.clone() })?;
    }
}

/// The size to try next on a disk with so much room: at most half of the last one, and of the room.
fn smaller(bytes: u64, free: u64) -> Option<u64> {
    let bytes = whole_pieces((bytes / 2).min(free / 2));
    (bytes >= PIECE_FILE_BYTES_MIN).then_some(bytes)
}

/// The size of a file with a header and as many whole pieces as fit these bytes, but at least one.
fn whole_pieces(bytes: u64) -> u64 {
    let header = u64::from(HEADER_BLOCKS * BLOCK_BYTES);
    let pieces = (bytes.saturating_sub(header) / u64::from(PIECE_BYTES)).max(1);
    header + pieces * u64::from(PIECE_BYTES)
}

fn write_new(path: &Path, bytes: u64, header: &Header) -> io::Result<File> {
    let direct = file::open_direct(path, true)?;
    file::preallocate(&direct, bytes)?;
    file::write_start(path, &header.encode())?;
    file::sync_folder(path.parent().expect("a piece file lies in the data folder"))?;
    Ok(direct)
}

/// An operating system error about `path`.
pub fn io_error(operation: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { operation, path: path.to_path_buf(), source: Arc::new(source) }
}
