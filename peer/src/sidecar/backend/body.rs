//! Bodies of requests: slots on their way to the backend, and the watch over their progress.
//!
//! Owns [`UploadBody`], which hyper polls, and [`watched`], which ends a request whose body moves too slowly or whose
//! answer does not come. A body is exactly as long as announced: a source that ends early or gives too much fails the
//! request, so the backend never sees a complete object made of half of one.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use http_body::{Frame, SizeHint};
use tokio::time::Instant;

use super::{BackendTuning, BodySource};
use crate::rt::arena::Slot;

/// What a body and its watcher share.
#[derive(Default)]
pub(super) struct Progress {
    bytes: AtomicU64,
    waits_for_source: AtomicBool,
    ended: AtomicBool,
}

/// The source gave another number of bytes than announced.
#[derive(Debug, thiserror::Error)]
#[error("the body should have {announced} bytes; its source ended or overran after {given}")]
pub(super) struct WrongLength {
    announced: u64,
    given: u64,
}

enum Source {
    Ready(VecDeque<Slot>),
    Coming(Pin<Box<dyn Stream<Item = Slot> + Send + Sync>>),
}

/// A request body of known length.
pub(super) struct UploadBody {
    source: Source,
    length_bytes: u64,
    sent_bytes: u64,
    progress: Arc<Progress>,
}

impl UploadBody {
    pub(super) fn new(source: BodySource) -> UploadBody {
        let (source, length_bytes) = match source {
            BodySource::Slots(slots) => {
                let length = slots.iter().map(|slot| slot.len() as u64).sum();
                (Source::Ready(slots.into()), length)
            }
            BodySource::Stream { length_bytes, slots } => {
                let coming = stream::unfold(slots, |slots| async move { slots.recv().await.map(|slot| (slot, slots)) });
                (Source::Coming(Box::pin(coming)), length_bytes)
            }
        };
        UploadBody { source, length_bytes, sent_bytes: 0, progress: Arc::default() }
    }

    pub(super) fn length_bytes(&self) -> u64 {
        self.length_bytes
    }

    pub(super) fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// As the SDK takes it. It is not replayable and not held in memory, so its hash does not enter the signature.
    pub(super) fn into_stream(self) -> ByteStream {
        ByteStream::new(SdkBody::from_body_1_x(self))
    }

    fn next_slot(&mut self, context: &mut Context<'_>) -> Poll<Option<Slot>> {
        match &mut self.source {
            Source::Ready(slots) => Poll::Ready(slots.pop_front()),
            Source::Coming(slots) => {
                let next = slots.poll_next_unpin(context);
                self.progress.waits_for_source.store(next.is_pending(), Ordering::Release);
                next
            }
        }
    }
}

impl http_body::Body for UploadBody {
    type Data = Bytes;
    type Error = WrongLength;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, WrongLength>>> {
        if self.is_end_stream() {
            self.progress.ended.store(true, Ordering::Release);
            return Poll::Ready(None);
        }
        let Poll::Ready(slot) = self.next_slot(context) else { return Poll::Pending };
        let given = slot.as_ref().map_or(0, |slot| slot.len() as u64);
        self.sent_bytes += given;
        let Some(slot) = slot.filter(|_| self.sent_bytes <= self.length_bytes) else {
            let wrong = WrongLength { announced: self.length_bytes, given: self.sent_bytes };
            return Poll::Ready(Some(Err(wrong)));
        };
        self.progress.bytes.fetch_add(given, Ordering::AcqRel);
        // hyper does not poll again after the last byte of an announced length.
        self.progress.ended.store(self.is_end_stream(), Ordering::Release);
        Poll::Ready(Some(Ok(Frame::data(slot.into_bytes()))))
    }

    fn is_end_stream(&self) -> bool {
        self.sent_bytes == self.length_bytes
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length_bytes - self.sent_bytes)
    }
}

/// The time is over.
pub(super) struct TimedOut(pub(super) &'static str);

/// Runs a request whose answer must come within `answer_timeout` after its body, if it has one, was sent; while the
/// body is being sent, it must move at the minimum rate. Time spent waiting for the body's source does not count: that
/// is not the backend's fault.
pub(super) async fn watched<T>(
    work: impl Future<Output = T>,
    body: Option<Arc<Progress>>,
    tuning: &BackendTuning,
    answer_timeout: Duration,
) -> Result<T, TimedOut> {
    let work = std::pin::pin!(work);
    let watch = async {
        if let Some(progress) = body {
            watch_body(&progress, tuning).await?;
        }
        tokio::time::sleep(answer_timeout).await;
        Err(TimedOut("no answer"))
    };
    tokio::select! {
        biased;
        answer = work => Ok(answer),
        over = watch => over.map(|()| unreachable!("the watch ends with an error")),
    }
}

/// Returns when the body was sent; fails when a window passes with too few bytes.
async fn watch_body(progress: &Progress, tuning: &BackendTuning) -> Result<(), TimedOut> {
    let mut moved_before = 0;
    // Looks more often than once a window, to see the end of the body soon.
    let step = tuning.body_window / 8;
    let mut window_ends = Instant::now() + tuning.body_window;
    while !progress.ended.load(Ordering::Acquire) {
        tokio::time::sleep(step).await;
        let moved = progress.bytes.load(Ordering::Acquire);
        let waits = progress.waits_for_source.load(Ordering::Acquire);
        if waits || moved - moved_before >= tuning.body_window_bytes {
            moved_before = moved;
            window_ends = Instant::now() + tuning.body_window;
        } else if Instant::now() >= window_ends {
            return Err(TimedOut("the body of the request moves too slowly"));
        }
    }
    Ok(())
}
