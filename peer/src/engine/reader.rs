//! Reading one version: pieces from disk, memory or backend, in order, with read-ahead.
//!
//! The shard that holds the client's connection reads from disk itself, under a lease; only the question where a piece
//! is goes to the task's owner. Every piece is verified before any byte of it is given out.
//!
//! Read-ahead takes memory only if some is free at once; just the piece that the client needs next waits for memory.
//! So whoever waits is served by those who are being sent to, and nobody waits in a circle.

use std::ops::Range;
use std::task::Poll;

use bytes::Bytes;
use dfstore_proto::message::Fetch;
use dfstore_proto::object::Source;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesOrdered;
use futures_util::{StreamExt, poll};

use crate::engine::Engine;
use crate::engine::call::{Asker, Opened, PieceAnswer, Wanted};
use crate::engine::error::ObjectError;
use crate::engine::fetch::busy;
use crate::engine::peers::wanted_by_peer;
use crate::engine::request::{Stat, piece_length};
use crate::limits::{ADMISSION_TIMEOUT, FETCH_WINDOW_PIECES, PIECE_READS_MAX, SERVE_WINDOW_PIECES};
use crate::rt::arena::{Holder, Slot};
use crate::rt::time::timeout;

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
        self.slot.into_bytes().slice(self.wanted)
    }
}

/// A piece as found: bytes, checksum, source.
type Found = (Slot, u32, Source);

impl Reader {
    pub(super) fn new(engine: Engine, opened: Opened) -> Reader {
        Reader { engine, opened }
    }

    /// The version.
    pub fn stat(&self) -> &Stat {
        &self.opened.stat
    }

    /// The pieces that hold the bytes `range` of the object, in order, read ahead within limits. The range ends at the
    /// object's end at the latest.
    pub fn stream(&self, range: Range<u64>) -> PieceStream {
        let end = range.end.min(self.stat().meta.length);
        let start = range.start.min(end);
        let piece_bytes = u64::from(self.stat().piece_bytes);
        let number = |at: u64| u32::try_from(at / piece_bytes).expect("objects are at most OBJECT_BYTES_MAX");
        let window = if self.stat().pieces_local == self.stat().piece_count() {
            SERVE_WINDOW_PIECES
        } else {
            FETCH_WINDOW_PIECES
        };
        PieceStream {
            reader: self.clone(),
            next_sent: number(start),
            next_started: number(start),
            end_piece: if start == end { number(start) } else { number(end - 1) + 1 },
            range: start..end,
            window,
            ahead: FuturesOrdered::new(),
            hurried: number(start),
            id: self.engine.next_reader(),
        }
    }

    /// A piece for another peer: it does not count as served to a client.
    pub async fn piece_for_peer(&self, asked: &Fetch) -> Result<PeerPiece, ObjectError> {
        let found = self.piece(wanted_by_peer(asked)).await?;
        let (slot, crc32, source) = found.ok_or_else(|| ObjectError::Internal("an urgent piece was put off".into()))?;
        let offset = u64::from(asked.number) * u64::from(self.stat().piece_bytes);
        Ok(PeerPiece { slot, crc32, source, offset })
    }

    /// A piece, verified. `None` only if it is not urgent: there was no memory for it at once.
    async fn piece(&self, wanted: Wanted) -> Result<Option<Found>, ObjectError> {
        let Wanted { number, urgent, .. } = wanted;
        let stat = self.stat();
        let length = piece_length(stat.meta.length, stat.piece_bytes, number) as usize;
        for _ in 0..PIECE_READS_MAX {
            let answer = self.engine.piece(self.opened.task, stat.generation, wanted).await?;
            let (lease, crc32, source) = match answer {
                PieceAnswer::Memory { slot, crc32, source } => return Ok(Some((slot, crc32, source))),
                PieceAnswer::Later => return Ok(None),
                PieceAnswer::Disk { lease, crc32, source } => (lease, crc32, source),
            };
            let (arena, metrics) = (self.engine.arena(), self.engine.metrics());
            if !urgent && !arena.may_read_ahead(length) {
                return Ok(None);
            }
            if let Some(slot) = lease.read_hot() {
                metrics.piece_read(true);
                return Ok(Some((slot, crc32, source)));
            }
            let slot = if urgent {
                let slot = timeout(ADMISSION_TIMEOUT, arena.take(length, Holder::Serve)).await;
                slot.map_err(|_| busy("all memory for reads is in use"))?
            } else {
                let Some(slot) = arena.try_take(length, Holder::Serve) else { return Ok(None) };
                slot
            };
            match self.engine.store().read(&lease, length, crc32, slot).await {
                Ok(slot) => {
                    arena.keep_hot(lease.hot(), slot.clone());
                    metrics.piece_read(false);
                    return Ok(Some((slot, crc32, source)));
                }
                Err(error) => {
                    tracing::error!(%error, number, task = %self.opened.task, "a piece cannot be read from disk");
                    self.engine.quarantine(self.opened.task, stat.generation, number).await?;
                }
            }
        }
        Err(ObjectError::Internal(format!("piece {number} cannot be read, nor replaced from the backend")))
    }
}

/// Pieces in order.
pub struct PieceStream {
    reader: Reader,
    range: Range<u64>,
    next_sent: u32,
    next_started: u32,
    end_piece: u32,
    window: usize,
    ahead: FuturesOrdered<LocalBoxFuture<'static, Result<Option<Found>, ObjectError>>>,
    /// The last piece that was needed before it was ready; the first one is asked for in haste anyway.
    hurried: u32,
    /// Tells it apart from other readers.
    id: u64,
}

/// A piece for another peer.
pub struct PeerPiece {
    /// All its bytes.
    pub slot: Slot,
    /// Their checksum.
    pub crc32: u32,
    /// Where they came from.
    pub source: Source,
    /// Where it lies in its object.
    pub offset: u64,
}

impl PieceStream {
    /// The next piece, or `None` at the end. After an error the stream is of no further use.
    pub async fn next(&mut self) -> Option<Result<Chunk, ObjectError>> {
        if self.next_sent == self.end_piece {
            return None;
        }
        while self.next_started < self.end_piece && self.ahead.len() < self.window {
            let (reader, wanted) = (self.reader.clone(), self.want(self.next_started, self.ahead.is_empty()));
            self.ahead.push_back(Box::pin(async move { reader.piece(wanted).await }));
            self.next_started += 1;
        }
        let number = self.next_sent;
        self.next_sent += 1;
        let ready = poll!(self.ahead.next());
        let front = match ready {
            Poll::Ready(front) => front,
            Poll::Pending => {
                self.hurry(number);
                self.ahead.next().await
            }
        };
        let found = match front {
            Some(Ok(Some(found))) => Ok(found),
            Some(Ok(None)) | None => match self.reader.piece(self.want(number, true)).await {
                Ok(found) => found.ok_or_else(|| ObjectError::Internal("an urgent piece was put off".into())),
                Err(error) => Err(error),
            },
            Some(Err(error)) => Err(error),
        };
        Some(found.map(|(slot, crc32, source)| {
            let metrics = self.reader.engine.metrics();
            let wanted = self.wanted(number);
            metrics.served(source, wanted.len() as u64);
            Chunk { number, slot, crc32, source, wanted }
        }))
    }

    /// The next piece is not ready, and may have been asked for ahead, without haste. Once for each piece.
    fn hurry(&mut self, number: u32) {
        if self.hurried < number {
            self.hurried = number;
            let opened = &self.reader.opened;
            self.reader.engine.hurry(opened.task, opened.stat.generation, self.want(number, true));
        }
    }

    fn want(&self, number: u32, urgent: bool) -> Wanted {
        Wanted { number, end: self.end_piece, urgent, local_only: false, asker: Asker::Reader, reader: self.id }
    }

    /// The part of piece `number` that lies in the range.
    fn wanted(&self, number: u32) -> Range<usize> {
        let piece_bytes = u64::from(self.reader.stat().piece_bytes);
        let start = u64::from(number) * piece_bytes;
        let within = |at: u64| usize::try_from(at.clamp(start, start + piece_bytes) - start).expect("at most a piece");
        within(self.range.start)..within(self.range.end)
    }
}
