//! Bodies of answers: counted, and spoiled when the fault is about the body.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body::{Body, Frame, SizeHint};

use super::{Fault, Open};
use crate::s3s_server::Cut;

/// Counts the body, and spoils it if the fault is about the body.
pub(super) fn watched(mut response: Response<s3s::Body>, open: Open, fault: Option<Fault>) -> Response<s3s::Body> {
    let length = announced_length(&response);
    let end = match fault {
        Some(Fault::BodyBreaks(after)) => End::Break(after),
        Some(Fault::BodyHangs(after)) => End::Hang(after),
        Some(Fault::BodyTrickles(chunk, pause)) => End::Trickle { chunk, pause, sleep: None, paused_at: 0 },
        Some(Fault::BodyShort(missing)) => {
            let kept = length.unwrap_or(0).saturating_sub(missing);
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(kept));
            End::Stop(kept)
        }
        Some(Fault::BodyLong(more)) => {
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length.unwrap_or(0) + more));
            End::Padded(more)
        }
        Some(Fault::BodyFlips(at)) => End::Flipped(at),
        _ => End::Natural,
    };
    response.map(|inner| {
        s3s::Body::http_body_unsync(WatchedBody {
            inner,
            left: Bytes::new(),
            sent: 0,
            length,
            end,
            flushed: false,
            open,
        })
    })
}

fn announced_length(response: &Response<s3s::Body>) -> Option<u64> {
    let header = response.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    header.or_else(|| response.body().size_hint().exact())
}

enum End {
    Natural,
    Break(u64),
    Hang(u64),
    Stop(u64),
    /// The natural end, with one byte that is another one.
    Flipped(u64),
    /// So many more bytes after the natural end.
    Padded(u64),
    /// `paused_at`: how much was sent at the last pause; the inner body gives less than a chunk at a time.
    Trickle {
        chunk: u64,
        pause: Duration,
        sleep: Option<Pin<Box<tokio::time::Sleep>>>,
        paused_at: u64,
    },
}

struct WatchedBody {
    inner: s3s::Body,
    left: Bytes,
    sent: u64,
    length: Option<u64>,
    end: End,
    flushed: bool,
    open: Open,
}

type StdError = Box<dyn std::error::Error + Send + Sync>;

impl Body for WatchedBody {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = self.get_mut();
        let sent = this.sent;
        let mut most = u64::MAX;
        match &mut this.end {
            End::Natural | End::Flipped(_) | End::Padded(_) => {}
            End::Break(after) if sent >= *after && this.flushed => return Poll::Ready(Some(Err(Cut.into()))),
            End::Break(after) if sent >= *after => {
                // While a body has nothing to give, hyper sends what it has.
                this.flushed = true;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            End::Hang(after) if sent >= *after => return Poll::Pending,
            End::Stop(after) if sent >= *after => return Poll::Ready(None),
            End::Break(after) | End::Hang(after) | End::Stop(after) => most = *after - sent,
            End::Trickle { chunk, pause, sleep, paused_at } => {
                if sent >= *paused_at + *chunk {
                    let sleep = sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(*pause)));
                    std::task::ready!(sleep.as_mut().poll(context));
                    *paused_at = sent;
                }
                *sleep = None;
                most = *paused_at + *chunk - sent;
            }
        }
        if this.left.is_empty() {
            match std::task::ready!(Pin::new(&mut this.inner).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.left = data,
                    Err(_) => return Poll::Ready(None),
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => match &mut this.end {
                    End::Padded(more) if *more > 0 => {
                        let zeros = vec![0; usize::try_from(std::mem::take(more)).unwrap_or_default()];
                        return Poll::Ready(Some(Ok(Frame::data(zeros.into()))));
                    }
                    _ => return Poll::Ready(None),
                },
            }
        }
        let take = this.left.len().min(usize::try_from(most).unwrap_or(usize::MAX));
        let mut data = this.left.split_to(take);
        if let End::Flipped(at) = this.end
            && let Some(index) = at.checked_sub(sent).filter(|index| *index < take as u64)
        {
            let mut bytes = data.to_vec();
            bytes[usize::try_from(index).unwrap_or_default()] ^= 0xFF;
            data = bytes.into();
        }
        this.sent += take as u64;
        this.open.0.bytes_sent.fetch_add(take as u64, Ordering::SeqCst);
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.end, self.length) {
            (End::Natural | End::Flipped(_), Some(length)) => SizeHint::with_exact(length.saturating_sub(self.sent)),
            _ => SizeHint::default(),
        }
    }
}
