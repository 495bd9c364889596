//! Answers: statuses, headers and bodies that clients of Dragonfly's object storage service expect.
//!
//! An error is `{"errors": message}`. Attributes of an object are headers that are left out when empty. The body of an
//! [`Answer`] carries what must live as long as the answer is being sent: the request's timer and its place among the
//! requests in flight.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Response, StatusCode};
use http_body::{Frame, SizeHint};
use serde::Serialize;

use crate::engine::ObjectError;
use crate::engine::request::Stat;
use crate::http::object_body::ObjectBody;
use crate::limits::{FORM_FIELDS_BYTES_MAX, OBJECT_BYTES_MAX};
use crate::metrics::RequestTimer;
use crate::rt::hyper_io::InFlight;

/// Seconds after which a client should try again when nothing better is known.
const RETRY_AFTER_SECONDS: u64 = 1;

const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain");
/// Where the bytes came from.
pub const X_DFS_CACHE: HeaderName = HeaderName::from_static("x-dfs-cache");
const META_DIGEST: HeaderName = HeaderName::from_static("x-dragonfly-object-meta-digest");
const META_LAST_MODIFIED: HeaderName = HeaderName::from_static("x-dragonfly-object-meta-last-modified-time");
const META_STORAGE_CLASS: HeaderName = HeaderName::from_static("x-dragonfly-object-meta-storage-class");

/// An answer before it is sent.
pub type Answer = Response<Content>;

/// The body of an answer before it is sent.
pub enum Content {
    /// In memory, may be empty.
    Bytes(Bytes),
    /// A part of an object.
    Object(Box<ObjectBody>),
}

/// An answer without a body.
pub fn empty(status: StatusCode) -> Answer {
    with_bytes(status, None, Bytes::new())
}

/// An answer of this type and content.
pub fn with_bytes(status: StatusCode, content_type: Option<HeaderValue>, bytes: Bytes) -> Answer {
    let mut answer = Response::new(Content::Bytes(bytes));
    *answer.status_mut() = status;
    if let Some(content_type) = content_type {
        answer.headers_mut().insert(header::CONTENT_TYPE, content_type);
    }
    answer
}

/// 200 with a JSON document.
pub fn json(document: &impl Serialize) -> Answer {
    json_with(StatusCode::OK, document)
}

fn json_with(status: StatusCode, document: &impl Serialize) -> Answer {
    let text = serde_json::to_vec(document).expect("strings, numbers and lists always become JSON");
    with_bytes(status, Some(JSON), text.into())
}

/// Text for people.
pub fn text(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    with_bytes(status, Some(TEXT), text.into())
}

/// 404 for what has no route.
pub fn no_route() -> Answer {
    text(StatusCode::NOT_FOUND, "404 page not found")
}

/// An error in the shape that clients know.
pub fn refusal(status: StatusCode, message: &str) -> Answer {
    #[derive(Serialize)]
    struct Body<'a> {
        errors: &'a str,
    }
    json_with(status, &Body { errors: message })
}

/// Why a request was not served.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The engine could not.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The body ended early.
    #[error("the request body is incomplete: {0}")]
    Body(String),
    /// The form is not one that makes sense here.
    #[error("{0}")]
    Form(String),
    /// The form has too much besides the file.
    #[error("the form has more than {FORM_FIELDS_BYTES_MAX} bytes besides the file")]
    FormTooLarge,
    /// No object can be that long.
    #[error("an object has at most {OBJECT_BYTES_MAX} bytes")]
    ObjectTooLarge,
}

/// The answer to a request that was not served.
pub fn error(error: &RequestError) -> Answer {
    let status = match error {
        RequestError::Object(error) => status_of(error),
        RequestError::Body(_) => StatusCode::BAD_REQUEST,
        RequestError::Form(_) => StatusCode::UNPROCESSABLE_ENTITY,
        RequestError::FormTooLarge | RequestError::ObjectTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
    };
    if status.is_server_error() {
        tracing::warn!(%error, status = status.as_u16(), "a request failed");
    }
    let mut answer = refusal(status, &error.to_string());
    if let RequestError::Object(error) = error
        && let Some(delay) = retry_after(error)
    {
        answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(delay.as_secs().max(RETRY_AFTER_SECONDS)));
    }
    answer
}

fn status_of(error: &ObjectError) -> StatusCode {
    use ObjectError as E;
    match error {
        E::NotFound(_) | E::NoSuchBucket(_) | E::UploadUnknown(_) => StatusCode::NOT_FOUND,
        E::BucketExists(_) => StatusCode::CONFLICT,
        E::AccessDenied(_) => StatusCode::FORBIDDEN,
        E::InvalidArgument(_) => StatusCode::UNPROCESSABLE_ENTITY,
        E::ChecksumMismatch(_) => StatusCode::BAD_REQUEST,
        E::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
        E::Conflict(_) => StatusCode::CONFLICT,
        E::NoSpace(_) => StatusCode::INSUFFICIENT_STORAGE,
        E::Busy { .. } | E::VersionChanged(_) | E::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
        E::BackendUnavailable(_) | E::BackendTimeout(_) => StatusCode::GATEWAY_TIMEOUT,
        E::PeerUnavailable(_) | E::FewCopies { .. } => StatusCode::SERVICE_UNAVAILABLE,
        // Another peer may take it; waiting does not help, so without Retry-After.
        E::Poisoned => StatusCode::SERVICE_UNAVAILABLE,
        E::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn retry_after(error: &ObjectError) -> Option<Duration> {
    match error {
        ObjectError::Busy { retry_after, .. } => Some(*retry_after),
        error if error.is_retryable() => Some(Duration::from_secs(RETRY_AFTER_SECONDS)),
        _ => None,
    }
}

/// The attributes of a version as headers. `storage_class` is what the provider means by saying nothing.
pub fn object_headers(stat: &Stat, storage_class: &'static str) -> HeaderMap {
    let meta = &stat.meta;
    let modified = UNIX_EPOCH + Duration::from_millis(meta.last_modified_ms);
    let modified = if meta.last_modified_ms > 0 { httpdate::fmt_http_date(modified) } else { String::new() };
    let class = if meta.storage_class.is_empty() { storage_class } else { &meta.storage_class };
    let mut headers = HeaderMap::with_capacity(16);
    for (name, value) in [
        (header::CONTENT_DISPOSITION, &*meta.content_disposition),
        (header::CONTENT_ENCODING, &meta.content_encoding),
        (header::CONTENT_LANGUAGE, &meta.content_language),
        (header::CONTENT_TYPE, &meta.content_type),
        (header::ETAG, &meta.etag),
        (header::LAST_MODIFIED, &modified),
        (META_LAST_MODIFIED, &modified),
        (META_DIGEST, &meta.digest),
        (META_STORAGE_CLASS, class),
        (X_DFS_CACHE, stat.source.name()),
    ] {
        // What no header can carry is left out; the backend would have had the same difficulty.
        if let Some(value) = HeaderValue::from_str(value).ok().filter(|value| !value.is_empty()) {
            headers.insert(name, value);
        }
    }
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers
}

/// The body of an answer that is being sent.
pub struct Sending {
    content: Content,
    status: u16,
    timer: Option<RequestTimer>,
    _in_flight: InFlight,
}

impl Sending {
    /// Attaches what lives as long as the answer is sent.
    pub fn attach(answer: Answer, timer: Option<RequestTimer>, in_flight: InFlight) -> Response<Sending> {
        let status = answer.status().as_u16();
        answer.map(|content| Sending { content, status, timer, _in_flight: in_flight })
    }
}

impl http_body::Body for Sending {
    type Data = Bytes;
    type Error = ObjectError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ObjectError>>> {
        let next = match &mut self.content {
            Content::Bytes(bytes) if bytes.is_empty() => None,
            Content::Bytes(bytes) => Some(Ok(std::mem::take(bytes))),
            Content::Object(body) => ready!(body.poll_next(cx)),
        };
        if let (Some(Ok(_)), Some(timer)) = (&next, &mut self.timer) {
            timer.first_byte();
        }
        Poll::Ready(next.map(|result| result.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.size_hint().exact() == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match &self.content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Object(body) => body.remaining(),
        })
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        // A timer that is dropped without a status counts the request as broken off.
        let complete = http_body::Body::is_end_stream(self);
        if let Some(timer) = self.timer.take().filter(|_| complete) {
            timer.finish(self.status);
        }
    }
}

#[cfg(test)]
mod tests {
    use dfstore_proto::object::{ObjectMeta, Source};

    use super::*;
    use crate::engine::request::Standing;

    fn stat(meta: ObjectMeta) -> Stat {
        Stat {
            meta,
            generation: 1,
            piece_bytes: 4 << 20,
            standing: Standing::Clean,
            source: Source::Local,
            crc32: None,
            pieces_local: 0,
        }
    }

    #[test]
    fn attributes_are_headers_and_empty_ones_are_left_out() {
        let meta = ObjectMeta {
            length: 5,
            etag: "\"abc\"".into(),
            last_modified_ms: 784_111_777_123,
            content_type: "text/plain".into(),
            content_encoding: "bad\nvalue".into(),
            digest: "md5:00".into(),
            ..ObjectMeta::default()
        };
        let headers = object_headers(&stat(meta), "STANDARD");
        let value = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        assert_eq!(value("etag"), Some("\"abc\""));
        assert_eq!(value("last-modified"), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
        assert_eq!(value("x-dragonfly-object-meta-last-modified-time"), value("last-modified"));
        assert_eq!(value("x-dragonfly-object-meta-digest"), Some("md5:00"));
        assert_eq!(value("x-dragonfly-object-meta-storage-class"), Some("STANDARD"));
        assert_eq!(value("x-dfs-cache"), Some("local"));
        assert_eq!(value("accept-ranges"), Some("bytes"));
        for absent in ["content-encoding", "content-language", "content-disposition", "content-length"] {
            assert_eq!(value(absent), None, "{absent}");
        }
        let bare = object_headers(&stat(ObjectMeta::default()), "Standard");
        assert!(!bare.contains_key("last-modified") && !bare.contains_key("etag"));
    }

    #[test]
    fn errors_have_the_status_that_clients_expect() {
        let text = String::new;
        for (problem, status, retry) in [
            (ObjectError::NotFound(text()), 404, None),
            (ObjectError::NoSuchBucket(text()), 404, None),
            (ObjectError::InvalidArgument(text()), 422, None),
            (ObjectError::PreconditionFailed, 412, None),
            (ObjectError::Conflict("c".into()), 409, None),
            (ObjectError::AccessDenied(text()), 403, None),
            (ObjectError::NoSpace(text()), 507, None),
            (ObjectError::Busy { reason: text(), retry_after: Duration::from_secs(7) }, 503, Some("7")),
            (ObjectError::ShuttingDown, 503, Some("1")),
            (ObjectError::BackendUnavailable(text()), 504, Some("1")),
            (ObjectError::BackendTimeout(text()), 504, Some("1")),
            (ObjectError::Poisoned, 503, None),
        ] {
            let problem = RequestError::from(problem);
            let answer = error(&problem);
            assert_eq!(answer.status(), status, "{problem}");
            let header = answer.headers().get(header::RETRY_AFTER).map(|value| value.to_str().expect("digits"));
            assert_eq!(header, retry, "{problem}");
        }
        let Content::Bytes(body) = refusal(StatusCode::NOT_FOUND, "a \"b\"").into_body() else { panic!("in memory") };
        assert_eq!(&body[..], br#"{"errors":"a \"b\""}"#);
    }
}
