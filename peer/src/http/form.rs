//! Forms: `multipart/form-data` as a stream, and small urlencoded ones.
//!
//! `multer` finds the parts. It keeps what precedes the first boundary and the headers of a part in memory without a
//! limit of its own, so the stream it reads is cut when more than [`FORM_FIELDS_BYTES_MAX`] bytes have come that are
//! not bytes of the file.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use http::Request;
use http::header::EXPECT;
use http_body::Body;
use hyper::body::Incoming;
use multer::{Field, Multipart};

use crate::http::answer::RequestError;
use crate::http::route::pairs;
use crate::limits::{FORM_FIELDS_BYTES_MAX, LINGER_TIMEOUT};
use crate::rt::time::timeout;

/// A multipart form being received.
pub struct Form<'a> {
    multipart: Multipart<'a>,
    file_bytes: Arc<AtomicU64>,
}

/// A part of it.
pub enum Part<'a> {
    /// A plain field.
    Field {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// The file, still to be read.
    File(Box<File<'a>>),
}

/// The bytes of the file part. Read to the end before the next part is asked for.
pub struct File<'a> {
    field: Field<'a>,
    file_bytes: Arc<AtomicU64>,
}

impl<'a> Form<'a> {
    /// The form in this body; the request's content type names the boundary.
    pub fn new(content_type: &str, body: &'a mut Incoming) -> Result<Form<'a>, RequestError> {
        let boundary = multer::parse_boundary(content_type).map_err(failed)?;
        let file_bytes = Arc::new(AtomicU64::new(0));
        let stream = Bounded { body, received: 0, file_bytes: file_bytes.clone(), given: false };
        Ok(Form { multipart: Multipart::new(stream, boundary), file_bytes })
    }

    /// The next part, or `None` after the last.
    pub async fn next(&mut self) -> Result<Option<Part<'a>>, RequestError> {
        let Some(mut field) = self.multipart.next_field().await.map_err(failed)? else {
            return Ok(None);
        };
        let name = field.name().unwrap_or_default().to_owned();
        if name == "file" {
            if field.file_name().is_none() {
                return Err(RequestError::Form("the part `file` has no filename".into()));
            }
            let file = File { field, file_bytes: self.file_bytes.clone() };
            return Ok(Some(Part::File(Box::new(file))));
        }
        let mut value = BytesMut::new();
        while let Some(chunk) = field.chunk().await.map_err(failed)? {
            value.extend_from_slice(&chunk);
        }
        let value = String::from_utf8(value.into())
            .map_err(|_| RequestError::Form(format!("the form field `{name}` is not UTF-8")))?;
        Ok(Some(Part::Field { name, value }))
    }
}

impl File<'_> {
    /// The part's own content type, empty when it has none.
    pub fn content_type(&self) -> &str {
        self.field.headers().get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The next bytes, or `None` after the last.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RequestError> {
        let chunk = self.field.chunk().await.map_err(failed)?;
        let count = chunk.as_ref().map_or(0, |chunk| chunk.len() as u64);
        self.file_bytes.fetch_add(count, Ordering::Relaxed);
        Ok(chunk)
    }
}

/// The fields of a small form in either encoding, file parts excluded.
pub async fn fields(content_type: &str, body: &mut Incoming) -> Result<Vec<(String, String)>, RequestError> {
    if is_multipart(content_type) {
        let mut form = Form::new(content_type, body)?;
        let mut fields = Vec::new();
        while let Some(part) = form.next().await? {
            match part {
                Part::Field { name, value } => fields.push((name, value)),
                Part::File(_) => return Err(RequestError::Form("a file is not expected here".into())),
            }
        }
        return Ok(fields);
    }
    let mut text = BytesMut::new();
    while let Some(bytes) = next_data(body).await? {
        text.extend_from_slice(&bytes);
        if text.len() > FORM_FIELDS_BYTES_MAX {
            return Err(RequestError::FormTooLarge);
        }
    }
    let text = std::str::from_utf8(&text).map_err(|_| RequestError::Form("the form is not UTF-8".into()))?;
    Ok(pairs(text)?)
}

/// Whether a content type is that of a multipart form.
pub fn is_multipart(content_type: &str) -> bool {
    essence(content_type).eq_ignore_ascii_case("multipart/form-data")
}

/// Whether a content type is that of an urlencoded form.
pub fn is_urlencoded(content_type: &str) -> bool {
    essence(content_type).eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

fn essence(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// The next bytes of a body, or `None` at its end.
pub async fn next_data(body: &mut Incoming) -> Result<Option<Bytes>, RequestError> {
    loop {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
        match frame.transpose().map_err(|error| RequestError::Body(error.to_string()))? {
            Some(frame) => match frame.into_data() {
                Ok(bytes) => return Ok(Some(bytes)),
                // Trailers say nothing that counts here.
                Err(_) => continue,
            },
            None => return Ok(None),
        }
    }
}

/// Reads what an answered request left of its body, if that is little and on its way. If not, the connection cannot
/// carry another request, and the client should be told.
pub async fn read_to_end(request: &mut Request<Incoming>) -> bool {
    if request.body().is_end_stream() {
        return true;
    }
    let much = request.body().size_hint().lower() > FORM_FIELDS_BYTES_MAX as u64;
    if much || request.headers().contains_key(EXPECT) {
        return false;
    }
    let body = request.body_mut();
    let rest = async {
        let mut dropped = 0;
        while let Some(bytes) = next_data(body).await? {
            dropped += bytes.len();
            if dropped > FORM_FIELDS_BYTES_MAX {
                return Err(RequestError::FormTooLarge);
            }
        }
        Ok::<_, RequestError>(())
    };
    matches!(timeout(LINGER_TIMEOUT, rest).await, Ok(Ok(())))
}

/// The request body as multer wants it, cut when what is not file grows too large.
struct Bounded<'a> {
    body: &'a mut Incoming,
    received: u64,
    file_bytes: Arc<AtomicU64>,
    given: bool,
}

/// Why the stream under a form ended early.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("the form's fields are too large")]
    TooLarge,
    #[error(transparent)]
    Body(#[from] hyper::Error),
}

impl Stream for Bounded<'_> {
    type Item = Result<Bytes, StreamError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let me = self.get_mut();
        if std::mem::take(&mut me.given) {
            // multer buffers for as long as there is something to read: one frame at a time, so that it parses, and
            // the count below stays exact.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if me.received.saturating_sub(me.file_bytes.load(Ordering::Relaxed)) > FORM_FIELDS_BYTES_MAX as u64 {
            return Poll::Ready(Some(Err(StreamError::TooLarge)));
        }
        loop {
            let frame = match ready!(Pin::new(&mut *me.body).poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                Some(Ok(frame)) => frame,
            };
            if let Ok(bytes) = frame.into_data() {
                me.received += bytes.len() as u64;
                me.given = true;
                return Poll::Ready(Some(Ok(bytes)));
            }
        }
    }
}

/// What a failure of the parser means for the client.
fn failed(error: multer::Error) -> RequestError {
    use multer::Error as E;
    match error {
        E::StreamReadFailed(cause) => match cause.downcast::<StreamError>() {
            Ok(error) if matches!(*error, StreamError::TooLarge) => RequestError::FormTooLarge,
            Ok(error) => RequestError::Body(error.to_string()),
            Err(cause) => RequestError::Body(cause.to_string()),
        },
        E::IncompleteFieldData { .. } | E::IncompleteStream | E::IncompleteHeaders => {
            RequestError::Body("the form ends before its last boundary".into())
        }
        error => RequestError::Form(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_types_by_table() {
        for (value, multipart, urlencoded) in [
            ("multipart/form-data; boundary=x", true, false),
            ("Multipart/Form-Data", true, false),
            ("multipart/mixed; boundary=x", false, false),
            ("application/x-www-form-urlencoded; charset=utf-8", false, true),
            ("application/octet-stream", false, false),
            ("", false, false),
        ] {
            assert_eq!((is_multipart(value), is_urlencoded(value)), (multipart, urlencoded), "{value}");
        }
    }

    #[test]
    fn failures_of_the_parser_are_told_apart() {
        let failed_stream = |error| failed(multer::Error::StreamReadFailed(Box::new(error)));
        assert!(matches!(failed_stream(StreamError::TooLarge), RequestError::FormTooLarge));
        assert!(matches!(failed(multer::Error::IncompleteStream), RequestError::Body(_)));
        assert!(matches!(failed(multer::Error::NoBoundary), RequestError::Form(_)));
    }
}
