//! From the bytes of a request body to the pieces of an upload.
//!
//! Bytes are copied once, into arena slots of a piece each; a full piece is written while the next one is received, at
//! most [`INGEST_WINDOW_PIECES`] at a time. A body that is small, as its head says, is received whole and then written
//! in one go. Memory per upload is bounded by that whatever the object's size. An upload that is not finished is aborted,
//! also when the client goes away and the future that fed it is dropped; the store keeps the blocks of writes under way
//! until the kernel has let go of them.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::Poll;

use bytes::{Buf, Bytes};
use dfstore_proto::object::WriteMode;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::engine::request::{CommitRequest, PutDone, PutRequest};
use crate::engine::{Engine, ObjectError, Upload};
use crate::http::HttpFace;
use crate::limits::{INGEST_WINDOW_PIECES, JOURNAL_PIECE_BYTES_MAX, PIECE_BYTES};
use crate::metrics::{Face, Metrics};
use crate::rt::arena::SlotMut;

type Write = Pin<Box<dyn Future<Output = Result<u32, ObjectError>>>>;

/// Where the bytes go.
enum Sink {
    /// To the engine when all are there.
    Small(Box<PutRequest>),
    /// To an upload that was begun.
    Upload(Upload),
}

/// An upload being received.
pub struct Ingest {
    engine: Engine,
    sink: Sink,
    /// The piece being filled.
    slot: Option<SlotMut>,
    next_piece: u32,
    length: u64,
    /// No more bytes than this will come; it spares small objects a whole piece of memory.
    length_max: u64,
    writes: FuturesUnordered<Write>,
    metrics: Metrics,
}

impl Ingest {
    /// Begins an upload of which at most `length_max` bytes will come.
    pub async fn begin(face: &HttpFace, request: PutRequest, length_max: u64) -> Result<Ingest, ObjectError> {
        let sink = if length_max <= JOURNAL_PIECE_BYTES_MAX as u64 {
            Sink::Small(Box::new(request))
        } else {
            Sink::Upload(face.engine.put(request).await?)
        };
        Ok(Ingest {
            engine: face.engine.clone(),
            sink,
            slot: None,
            next_piece: 0,
            length: 0,
            length_max,
            writes: FuturesUnordered::new(),
            metrics: face.metrics.clone(),
        })
    }

    /// Waits for `future` while the writes under way go on. The first write that fails ends the waiting.
    pub async fn beside<F: Future>(&mut self, future: F) -> Result<F::Output, ObjectError> {
        let mut future = pin!(future);
        std::future::poll_fn(|cx| {
            while let Poll::Ready(Some(written)) = self.writes.poll_next_unpin(cx) {
                written?;
            }
            future.as_mut().poll(cx).map(Ok)
        })
        .await
    }

    /// Takes the next bytes. Waits for memory, and for the disk when the window is full.
    pub async fn append(&mut self, mut bytes: Bytes) -> Result<(), ObjectError> {
        self.metrics.received(Face::Http, bytes.len() as u64);
        while !bytes.is_empty() {
            let mut slot = match self.slot.take() {
                Some(slot) => slot,
                None => self.new_slot().await?,
            };
            let piece = self.piece_bytes();
            let count = slot.append(&bytes[..bytes.len().min(piece - slot.len())]);
            bytes.advance(count);
            self.length += count as u64;
            if slot.len() == piece
                && let Sink::Upload(upload) = &self.sink
            {
                let upload = upload.clone();
                self.write(upload, slot).await?;
            } else if slot.len() < slot.capacity() || bytes.is_empty() {
                self.slot = Some(slot);
            } else {
                return Err(ObjectError::InvalidArgument("the body is longer than announced".into()));
            }
        }
        Ok(())
    }

    /// Writes what is left and makes the upload the object's current version. `mode` and `replicas` count: a form may
    /// name them after the file.
    pub async fn finish(mut self, mode: WriteMode, replicas: Option<u16>) -> Result<PutDone, ObjectError> {
        let commit = CommitRequest { length: self.length, crc32: None, mode: Some(mode), replicas };
        let upload = match (self.sink, self.slot.take()) {
            (Sink::Small(request), Some(slot)) => return self.engine.put_small(*request, slot, commit).await,
            (Sink::Small(request), None) => self.engine.put(*request).await?,
            (Sink::Upload(upload), None) => upload,
            (Sink::Upload(upload), Some(slot)) => {
                self.writes.push(write_piece(upload.clone(), self.next_piece, slot));
                upload
            }
        };
        while let Some(written) = self.writes.next().await {
            written?;
        }
        upload.commit(commit).await
    }

    fn piece_bytes(&self) -> usize {
        match &self.sink {
            Sink::Small(_) => PIECE_BYTES as usize,
            Sink::Upload(upload) => usize::try_from(upload.piece_bytes()).expect("a piece fits into memory"),
        }
    }

    async fn new_slot(&mut self) -> Result<SlotMut, ObjectError> {
        let left = usize::try_from(self.length_max.saturating_sub(self.length)).unwrap_or(usize::MAX);
        let engine = self.engine.clone();
        let length = left.clamp(1, self.piece_bytes());
        self.beside(engine.take_slot(length)).await?
    }

    async fn write(&mut self, upload: Upload, slot: SlotMut) -> Result<(), ObjectError> {
        while self.writes.len() >= INGEST_WINDOW_PIECES {
            if let Some(written) = self.writes.next().await {
                written?;
            }
        }
        self.writes.push(write_piece(upload, self.next_piece, slot));
        self.next_piece += 1;
        Ok(())
    }
}

fn write_piece(upload: Upload, number: u32, slot: SlotMut) -> Write {
    Box::pin(async move { upload.write_piece(number, slot, None).await })
}
