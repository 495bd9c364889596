//! From the bytes of a request body to the pieces of an upload.
//!
//! Bytes are copied once, into arena slots of a piece each; a full piece is written while the next one is received, at
//! most [`INGEST_WINDOW_PIECES`] at a time. Memory per upload is bounded by that whatever the object's size. An upload
//! that is not finished is aborted, also when the client goes away and the future that fed it is dropped; the store
//! keeps the blocks of writes under way until the kernel has let go of them.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::Poll;

use bytes::{Buf, Bytes};
use dfstore_proto::object::WriteMode;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::engine::request::{CommitRequest, PutDone, PutRequest};
use crate::engine::{ObjectError, Upload};
use crate::http::HttpFace;
use crate::limits::INGEST_WINDOW_PIECES;
use crate::metrics::{Face, Metrics};
use crate::rt::arena::SlotMut;

type Write = Pin<Box<dyn Future<Output = Result<u32, ObjectError>>>>;

/// An upload being received.
pub struct Ingest {
    upload: Upload,
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
        let upload = face.engine.put(request).await?;
        Ok(Ingest {
            upload,
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
            if slot.len() == piece {
                self.write(slot).await?;
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
        if let Some(slot) = self.slot.take() {
            self.write(slot).await?;
        }
        while let Some(written) = self.writes.next().await {
            written?;
        }
        self.upload.commit(CommitRequest { length: self.length, crc32: None, mode: Some(mode), replicas }).await
    }

    fn piece_bytes(&self) -> usize {
        usize::try_from(self.upload.piece_bytes()).expect("a piece fits into memory")
    }

    async fn new_slot(&mut self) -> Result<SlotMut, ObjectError> {
        let left = usize::try_from(self.length_max.saturating_sub(self.length)).unwrap_or(usize::MAX);
        let upload = self.upload.clone();
        let length = left.clamp(1, self.piece_bytes());
        self.beside(upload.take_slot(length)).await?
    }

    async fn write(&mut self, slot: SlotMut) -> Result<(), ObjectError> {
        while self.writes.len() >= INGEST_WINDOW_PIECES {
            if let Some(written) = self.writes.next().await {
                written?;
            }
        }
        let (upload, number) = (self.upload.clone(), self.next_piece);
        self.next_piece += 1;
        self.writes.push(Box::pin(async move { upload.write_piece(number, slot, None).await }));
        Ok(())
    }
}
