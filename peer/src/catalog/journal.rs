//! The journal: commits as they come, in a ring of blocks, so that an answer costs one small write to the disk.
//!
//! The database takes the same commits later, many in one transaction ([`index`](super::index)). It says up to which
//! entry it has them; that is the [`Mark`], and the entries behind it are read again at a start. The file never changes
//! its size, so that a full disk does not matter here, and every block was written once, so that an entry costs the file
//! system nothing of its own. Its format is specified in `store/FORMAT.md`.
//!
//! Invariants: one entry is written at a time, and is durable before the next begins; an entry is never written over one
//! that the database does not have yet.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::catalog::CatalogError;
use crate::catalog::operations::Operations;
use crate::limits::{BLOCK_BYTES, JOURNAL_BYTES};
use crate::rt::aligned::AlignedBytes;
use crate::rt::file;

/// Name of the journal's file in the data folder.
pub const JOURNAL_FILE: &str = "catalog.journal";
/// Its name until it is complete.
const UNFINISHED_FILE: &str = "catalog.journal.new";
/// Version of the file's format. A file of another version is refused.
pub const JOURNAL_VERSION: u32 = 1;

const BLOCK: usize = BLOCK_BYTES as usize;
const FILE_MAGIC: [u8; 8] = *b"DFSJOURN";
const ENTRY_MAGIC: [u8; 4] = *b"DFSJ";
/// Bytes of the file's header that carry meaning.
pub const HEADER_BYTES: usize = 36;
/// Bytes of an entry in front of its operations.
pub const ENTRY_HEAD_BYTES: usize = 24;
/// The block where the ring begins.
const FIRST_BLOCK: u32 = 1;
/// Blocks of the smallest file: a header and an entry, and as much again.
const BLOCKS_LEAST: u32 = 3;

/// Up to where the database has what the journal holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Number of the last entry it has.
    pub sequence: u64,
    /// The block behind that entry.
    pub block: u32,
}

impl Mark {
    /// Of a journal without entries.
    pub const START: Mark = Mark { sequence: 0, block: FIRST_BLOCK };

    /// As it stands in the database.
    pub fn to_bytes(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[8..].copy_from_slice(&self.block.to_le_bytes());
        bytes
    }

    /// Reads what [`to_bytes`](Self::to_bytes) made.
    pub fn from_bytes(bytes: &[u8]) -> Option<Mark> {
        let (sequence, block) = bytes.split_first_chunk::<8>()?;
        let block = u32::from_le_bytes(block.try_into().ok()?);
        Some(Mark { sequence: u64::from_le_bytes(*sequence), block })
    }
}

/// What a journal holds behind a mark.
pub struct Replay {
    bytes: AlignedBytes,
    /// Where the operations of each entry lie, in the order in which they were committed.
    entries: Vec<(usize, usize)>,
    /// Behind the last of them.
    pub mark: Mark,
    /// Entries that are damaged, as far as is known: those after them are there.
    pub damaged: u64,
}

impl Replay {
    /// The operations of each entry, encoded.
    pub fn entries(&self) -> impl Iterator<Item = &[u8]> {
        self.entries.iter().map(|(start, length)| &self.bytes[*start..start + length])
    }

    /// Reads what is behind `mark` in the bytes of a whole file.
    pub fn read(path: &Path, bytes: AlignedBytes, store_id: &[u8; 16], mark: Mark) -> Result<Replay, CatalogError> {
        check_header(path, &bytes, store_id)?;
        Ok(Replay::find(bytes, store_id, mark))
    }

    fn find(bytes: AlignedBytes, store_id: &[u8; 16], mark: Mark) -> Replay {
        let mut replay = Replay { bytes, entries: Vec::new(), mark, damaged: 0 };
        while let Some(found) = replay.next(store_id) {
            replay.take(&found);
        }
        replay
    }

    /// The next entry: behind the last one, at the start of the ring, or, where that is damaged, beyond it.
    fn next(&self, store_id: &[u8; 16]) -> Option<FoundEntry> {
        let behind = self.next_at(store_id, self.mark.block);
        behind.or_else(|| self.next_at(store_id, FIRST_BLOCK)).or_else(|| self.beyond_damage(store_id))
    }

    fn take(&mut self, found: &FoundEntry) {
        self.damaged += found.sequence - self.mark.sequence - 1;
        self.entries.push((found.block as usize * BLOCK + ENTRY_HEAD_BYTES, found.length));
        self.mark = Mark { sequence: found.sequence, block: found.block + found.block_count() };
    }

    /// The entry behind the last one, if it stands at this block.
    fn next_at(&self, store_id: &[u8; 16], block: u32) -> Option<FoundEntry> {
        FoundEntry::read(&self.bytes, store_id, block).filter(|found| found.sequence == self.mark.sequence + 1)
    }

    /// The first of those entries that are later than the next one. Entries are written one after the other, so the next
    /// one was there once.
    fn beyond_damage(&self, store_id: &[u8; 16]) -> Option<FoundEntry> {
        let blocks = FIRST_BLOCK..u32::try_from(self.bytes.len() / BLOCK).unwrap_or(u32::MAX);
        let found = blocks.filter_map(|block| FoundEntry::read(&self.bytes, store_id, block));
        found.filter(|found| found.sequence > self.mark.sequence).min_by_key(|found| found.sequence)
    }
}

/// An entry that was found whole.
struct FoundEntry {
    block: u32,
    sequence: u64,
    length: usize,
}

impl FoundEntry {
    fn read(bytes: &[u8], store_id: &[u8; 16], block: u32) -> Option<FoundEntry> {
        let entry = bytes.get(block as usize * BLOCK..)?;
        let (head, rest) = entry.split_first_chunk::<ENTRY_HEAD_BYTES>()?;
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let length = usize::try_from(word(16)).ok()?;
        let operations = rest.get(..length)?;
        if head[..4] != ENTRY_MAGIC || word(4) != checksum(store_id, &head[8..], operations) {
            return None;
        }
        let sequence = u64::from_le_bytes(head[8..16].try_into().expect("eight bytes"));
        Some(FoundEntry { block, sequence, length })
    }

    fn block_count(&self) -> u32 {
        entry_blocks(self.length)
    }
}

/// The bytes of an entry, without what fills its last block.
pub fn encode_entry(store_id: &[u8; 16], sequence: u64, operations: &Operations) -> Vec<u8> {
    let mut bytes = vec![0; ENTRY_HEAD_BYTES + operations.bytes().len()];
    write_entry(&mut bytes, store_id, sequence, operations);
    bytes
}

fn write_entry(out: &mut [u8], store_id: &[u8; 16], sequence: u64, operations: &Operations) {
    let (head, rest) = out.split_at_mut(ENTRY_HEAD_BYTES);
    let length = u32::try_from(operations.bytes().len()).expect("an entry is smaller than the ring");
    head[..4].copy_from_slice(&ENTRY_MAGIC);
    head[8..16].copy_from_slice(&sequence.to_le_bytes());
    head[16..20].copy_from_slice(&length.to_le_bytes());
    head[20..].copy_from_slice(&operations.count().to_le_bytes());
    rest[..operations.bytes().len()].copy_from_slice(operations.bytes());
    let crc32 = checksum(store_id, &head[8..], operations.bytes());
    head[4..8].copy_from_slice(&crc32.to_le_bytes());
}

fn checksum(store_id: &[u8; 16], head: &[u8], operations: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(store_id);
    hasher.update(head);
    hasher.update(operations);
    hasher.finalize()
}

fn entry_blocks(length: usize) -> u32 {
    u32::try_from((ENTRY_HEAD_BYTES + length).div_ceil(BLOCK)).unwrap_or(u32::MAX)
}

/// The start of the file.
pub fn encode_header(store_id: &[u8; 16], block_count: u32) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(&FILE_MAGIC);
    bytes[8..12].copy_from_slice(&JOURNAL_VERSION.to_le_bytes());
    bytes[12..28].copy_from_slice(store_id);
    bytes[28..32].copy_from_slice(&block_count.to_le_bytes());
    let crc32 = crc32fast::hash(&bytes[..32]);
    bytes[32..].copy_from_slice(&crc32.to_le_bytes());
    bytes
}

/// An open journal.
pub struct Journal {
    file: File,
    store_id: [u8; 16],
    block_count: u32,
    /// Behind the last entry.
    next: Mark,
    /// Entries that the database may not have: their numbers, and the blocks each took.
    held: VecDeque<(u64, u32)>,
    held_blocks: u32,
    scratch: AlignedBytes,
}

impl Journal {
    /// Makes the journal of a store that has none, durably, in place of what may be there.
    pub fn create(dir: &Path, store_id: &[u8; 16]) -> io::Result<()> {
        let unfinished = dir.join(UNFINISHED_FILE);
        match std::fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut bytes = AlignedBytes::zeroed(JOURNAL_BYTES);
        let block_count = u32::try_from(bytes.len() / BLOCK).expect("a small file");
        bytes[..HEADER_BYTES].copy_from_slice(&encode_header(store_id, block_count));
        let file = file::open_direct(&unfinished, true)?;
        file::write_whole(&file, &bytes)?;
        file::rename(&unfinished, &dir.join(JOURNAL_FILE))
    }

    /// Opens the journal of a store, and reads what its database does not have.
    pub fn open(dir: &Path, store_id: &[u8; 16], mark: Mark) -> Result<(Journal, Replay), CatalogError> {
        let path = dir.join(JOURNAL_FILE);
        let opened = file::open_direct_synced(&path);
        let file = opened.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => damaged(&path, "it is missing"),
            _ => CatalogError::Open { path: path.clone(), reason: error.to_string() },
        })?;
        let read = file::read_whole(&file);
        let bytes = read.map_err(|error| CatalogError::Open { path: path.clone(), reason: error.to_string() })?;
        let block_count = u32::try_from(bytes.len() / BLOCK).unwrap_or(u32::MAX);
        let replay = Replay::read(&path, bytes, store_id, mark)?;
        let journal = Journal {
            file,
            store_id: *store_id,
            block_count,
            next: replay.mark,
            held: VecDeque::new(),
            held_blocks: 0,
            scratch: AlignedBytes::zeroed(BLOCK),
        };
        Ok((journal, replay))
    }

    /// Behind the last entry.
    pub fn mark(&self) -> Mark {
        self.next
    }

    /// Whether operations of so many bytes make an entry at all. Half of the ring is the most, so that one always fits when
    /// the database has all others.
    pub fn can_hold(&self, length: usize) -> bool {
        entry_blocks(length) <= self.ring_blocks() / 2
    }

    /// Whether there is room for them now.
    pub fn has_room(&self, operations: &Operations) -> bool {
        self.place(operations).1 <= self.ring_blocks() - self.held_blocks
    }

    /// Adds an entry, durable when this returns. There is room for it.
    pub fn append(&mut self, operations: &Operations) -> io::Result<()> {
        let (block, taken) = self.place(operations);
        let bytes = entry_blocks(operations.bytes().len()) as usize * BLOCK;
        if self.scratch.len() < bytes {
            self.scratch = AlignedBytes::zeroed(bytes.next_power_of_two());
        }
        let sequence = self.next.sequence + 1;
        let entry = &mut self.scratch[..bytes];
        entry[ENTRY_HEAD_BYTES + operations.bytes().len()..].fill(0);
        write_entry(entry, &self.store_id, sequence, operations);
        file::write_synced(&self.file, entry, u64::from(block) * BLOCK as u64)?;
        self.held.push_back((sequence, taken));
        self.held_blocks += taken;
        self.next = Mark { sequence, block: block + entry_blocks(operations.bytes().len()) };
        Ok(())
    }

    /// The database has everything up to this entry.
    pub fn let_go(&mut self, sequence: u64) {
        while let Some((_, blocks)) = self.held.pop_front_if(|(held, _)| *held <= sequence) {
            self.held_blocks -= blocks;
        }
    }

    fn ring_blocks(&self) -> u32 {
        self.block_count - FIRST_BLOCK
    }

    /// Where the next entry goes, and the blocks that this takes, with those at the end of the ring that it leaves.
    fn place(&self, operations: &Operations) -> (u32, u32) {
        let blocks = entry_blocks(operations.bytes().len());
        let left = self.block_count.saturating_sub(self.next.block);
        if blocks <= left { (self.next.block, blocks) } else { (FIRST_BLOCK, left + blocks) }
    }
}

fn check_header(path: &Path, bytes: &[u8], store_id: &[u8; 16]) -> Result<(), CatalogError> {
    let header = bytes.get(..HEADER_BYTES).ok_or_else(|| damaged(path, "it is too short"))?;
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    if header[..8] != FILE_MAGIC || word(32) != crc32fast::hash(&header[..32]) {
        return Err(damaged(path, "it does not begin with a valid header"));
    }
    if word(8) != JOURNAL_VERSION {
        return Err(CatalogError::Version { path: path.to_path_buf(), found: word(8), known: JOURNAL_VERSION });
    }
    if header[12..28] != store_id[..] {
        return Err(damaged(path, "it belongs to another store"));
    }
    if bytes.len() / BLOCK != word(28) as usize || word(28) < BLOCKS_LEAST {
        return Err(damaged(path, "its size is not what its header says"));
    }
    Ok(())
}

fn damaged(path: &Path, reason: &str) -> CatalogError {
    CatalogError::Damaged { path: PathBuf::from(path), reason: reason.to_owned() }
}
