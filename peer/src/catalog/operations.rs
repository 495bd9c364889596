//! What changes do to tables, as bytes: the payload of a journal entry, and what the database applies.
//!
//! A change becomes one or more operations on keys and encoded values, so that a record is encoded once, for both. The
//! layout is specified in `store/FORMAT.md`.

use dfstore_proto::ids::TaskId;

use crate::catalog::codec::{self, Damaged};
use crate::catalog::records::{Change, PieceKey, PieceSet};
use crate::store::UnsyncedPiece;

/// A table of the database, as a number in operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TableId {
    /// Task records.
    Tasks,
    /// Piece records.
    Pieces,
    /// The write-back queue.
    WriteBacks,
    /// Parts of multipart uploads.
    Parts,
    /// Multipart uploads.
    Uploads,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    /// Sets the value of a key.
    Put {
        /// Where.
        table: TableId,
        /// The key.
        key: &'a [u8],
        /// Its value.
        value: &'a [u8],
    },
    /// Removes a key.
    Remove {
        /// Where.
        table: TableId,
        /// The key.
        key: &'a [u8],
    },
    /// Removes all keys from `first` to `last`.
    RemoveRange {
        /// Where.
        table: TableId,
        /// The first.
        first: &'a [u8],
        /// The last, included.
        last: &'a [u8],
    },
    /// Keeps the bytes of the piece with this key, whose file was not synced.
    Keep {
        /// Key of its record.
        key: &'a [u8],
        /// Its bytes.
        bytes: &'a [u8],
    },
}

const PUT: u8 = 0;
const REMOVE: u8 = 1;
const REMOVE_RANGE: u8 = 2;
const KEEP: u8 = 3;
/// Kind, table, length of the key, length of the value.
const HEAD_BYTES: usize = 8;

/// Operations in a row, encoded.
#[derive(Debug, Default)]
pub struct Operations {
    bytes: Vec<u8>,
    count: u32,
    unsynced: Vec<UnsyncedPiece>,
}

impl Operations {
    /// Adds what `change` does.
    pub fn push(&mut self, change: &Change) {
        match change {
            Change::PutTask { task, record } => self.put(TableId::Tasks, task.as_bytes(), record),
            Change::RemoveTask { task } => {
                self.add(REMOVE, TableId::Tasks, task.as_bytes(), &[]);
                self.remove_range(TableId::Pieces, &piece_key(task, 0, 0), &piece_key(task, u64::MAX, u32::MAX));
            }
            Change::PutPiece { key, record } => self.put(TableId::Pieces, &codec::piece_key(key), record),
            Change::KeepPiece { key, piece, bytes } => {
                self.unsynced.push(piece.clone());
                self.add(KEEP, TableId::Pieces, &codec::piece_key(key), bytes);
            }
            Change::RemovePieces { task, generation, pieces } => self.remove_pieces(task, *generation, pieces),
            Change::PutWriteBack { task, record } => self.put(TableId::WriteBacks, task.as_bytes(), record),
            Change::RemoveWriteBack { task } => {
                self.add(REMOVE, TableId::WriteBacks, task.as_bytes(), &[]);
                self.remove_parts(task);
            }
            Change::PutPart { task, number, record } => {
                self.put(TableId::Parts, &codec::part_key(task, *number), record);
            }
            Change::RemoveParts { task } => self.remove_parts(task),
            Change::PutUpload { task, number, record } => {
                self.put(TableId::Uploads, &codec::upload_key(task, *number), record);
            }
            Change::RemoveUpload { task, number } => {
                self.add(REMOVE, TableId::Uploads, &codec::upload_key(task, *number), &[]);
            }
        }
    }

    /// Adds others behind these.
    pub fn append(&mut self, mut other: Operations) {
        self.bytes.append(&mut other.bytes);
        self.count += other.count;
        self.unsynced.append(&mut other.unsynced);
    }

    /// The encoded row.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The pieces kept here.
    pub fn unsynced(&self) -> &[UnsyncedPiece] {
        &self.unsynced
    }

    fn put<R: codec::Record>(&mut self, table: TableId, key: &[u8], record: &R) {
        self.add(PUT, table, key, &codec::encode(key, record));
    }

    fn remove_range(&mut self, table: TableId, first: &[u8], last: &[u8]) {
        self.add(REMOVE_RANGE, table, first, last);
    }

    fn remove_pieces(&mut self, task: &TaskId, generation: u64, pieces: &PieceSet) {
        match pieces {
            PieceSet::All => {
                let last = piece_key(task, generation, u32::MAX);
                self.remove_range(TableId::Pieces, &piece_key(task, generation, 0), &last);
            }
            PieceSet::Numbers(numbers) => {
                for number in numbers {
                    self.add(REMOVE, TableId::Pieces, &piece_key(task, generation, *number), &[]);
                }
            }
        }
    }

    fn remove_parts(&mut self, task: &TaskId) {
        self.remove_range(TableId::Parts, &codec::part_key(task, 0), &codec::part_key(task, u32::MAX));
    }

    fn add(&mut self, kind: u8, table: TableId, key: &[u8], value: &[u8]) {
        let key_length = u16::try_from(key.len()).expect("keys are short");
        let value_length = u32::try_from(value.len()).expect("values are below 4 GiB");
        self.bytes.reserve(HEAD_BYTES + key.len() + value.len());
        self.bytes.extend_from_slice(&[kind, table as u8]);
        self.bytes.extend_from_slice(&key_length.to_le_bytes());
        self.bytes.extend_from_slice(&value_length.to_le_bytes());
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(value);
        self.count += 1;
    }
}

/// Reads a row of operations; an error ends it.
pub fn decode(bytes: &[u8]) -> impl Iterator<Item = Result<Operation<'_>, Damaged>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let next = decode_one(rest);
        rest = next.as_ref().map_or(&[], |(_, rest)| *rest);
        Some(next.map(|(operation, _)| operation))
    })
}

fn decode_one(bytes: &[u8]) -> Result<(Operation<'_>, &[u8]), Damaged> {
    let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or(Damaged)?;
    let [kind, table, k0, k1, v0, v1, v2, v3] = *head;
    let (key, rest) = rest.split_at_checked(u16::from_le_bytes([k0, k1]).into()).ok_or(Damaged)?;
    let value_length = usize::try_from(u32::from_le_bytes([v0, v1, v2, v3])).map_err(|_| Damaged)?;
    let (value, rest) = rest.split_at_checked(value_length).ok_or(Damaged)?;
    let tables = [TableId::Tasks, TableId::Pieces, TableId::WriteBacks, TableId::Parts, TableId::Uploads];
    let table = *tables.get(usize::from(table)).ok_or(Damaged)?;
    let operation = match kind {
        PUT => Operation::Put { table, key, value },
        REMOVE => Operation::Remove { table, key },
        REMOVE_RANGE => Operation::RemoveRange { table, first: key, last: value },
        KEEP => Operation::Keep { key, bytes: value },
        _ => return Err(Damaged),
    };
    Ok((operation, rest))
}

fn piece_key(task: &TaskId, generation: u64, number: u32) -> [u8; 44] {
    codec::piece_key(&PieceKey { task: *task, generation, number })
}
