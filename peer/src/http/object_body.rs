//! The body of a GET: verified pieces of one version, in order, as `Bytes` of arena slots.
//!
//! It announces exactly the length that was asked for. When a piece cannot be had, it ends with an error and hyper cuts
//! the connection short of `Content-Length`: the client sees a broken transfer, never other bytes.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;

use crate::engine::{Chunk, ObjectError, PieceStream};

/// See the module.
pub struct ObjectBody {
    /// The piece that was fetched before the answer's head was made.
    first: Option<Chunk>,
    next: Next,
    remaining: u64,
}

type Fetched = (Box<PieceStream>, Option<Result<Chunk, ObjectError>>);

enum Next {
    Idle(Box<PieceStream>),
    Waiting(Pin<Box<dyn Future<Output = Fetched>>>),
    Ended,
}

impl ObjectBody {
    /// A body of `length` bytes: those of `first`, then what `stream` gives.
    pub fn new(first: Chunk, stream: PieceStream, length: u64) -> ObjectBody {
        ObjectBody { first: Some(first), next: Next::Idle(Box::new(stream)), remaining: length }
    }

    /// Bytes that have not been given yet.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// The next bytes; `None` after the last.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, ObjectError>>> {
        if self.remaining == 0 {
            return Poll::Ready(None);
        }
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(self.give(first))));
        }
        let mut waiting = match std::mem::replace(&mut self.next, Next::Ended) {
            Next::Idle(mut stream) => Box::pin(async move {
                let next = stream.next().await;
                (stream, next)
            }),
            Next::Waiting(waiting) => waiting,
            Next::Ended => return Poll::Ready(None),
        };
        let Poll::Ready((stream, next)) = waiting.as_mut().poll(cx) else {
            self.next = Next::Waiting(waiting);
            return Poll::Pending;
        };
        match next {
            Some(Ok(chunk)) => {
                self.next = Next::Idle(stream);
                Poll::Ready(Some(Ok(self.give(chunk))))
            }
            Some(Err(error)) => {
                tracing::warn!(%error, missing_bytes = self.remaining, "an answer is cut short");
                Poll::Ready(Some(Err(error)))
            }
            None => Poll::Ready(Some(Err(ObjectError::Internal("pieces ended before the object did".into())))),
        }
    }

    fn give(&mut self, chunk: Chunk) -> Bytes {
        let bytes = chunk.bytes();
        let length = bytes.len() as u64;
        assert!(length > 0 && length <= self.remaining, "a piece of {length} bytes, {} asked for", self.remaining);
        self.remaining -= length;
        bytes
    }
}
