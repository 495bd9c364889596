//! HEAD and GET of an object: conditions, ranges, attributes, bytes.
//!
//! A GET answers only when it has its first piece, so that whatever prevents reading becomes a status and not a cut
//! connection. A version that is replaced before that is read again, once, in its new shape; bytes of two versions
//! never mix.

use std::ops::Range;

use http::header::{self, HeaderValue};
use http::{HeaderMap, Response, StatusCode};

use crate::engine::request::{Stat, Target};
use crate::engine::{ObjectError, Reader};
use crate::http::HttpFace;
use crate::http::answer::{self, Answer, Content};
use crate::http::condition::{Outcome, Validators};
use crate::http::object_body::ObjectBody;
use crate::http::range::{self, Wanted};

/// Answers a HEAD.
pub async fn head(face: &HttpFace, target: &Target, headers: &HeaderMap) -> Result<Answer, ObjectError> {
    let stat = face.engine.stat(target, no_cache(headers)).await?;
    if let Some(answer) = conditional(face, &stat, headers) {
        return Ok(answer);
    }
    Ok(answered(face, &stat, StatusCode::OK, stat.meta.length))
}

/// Answers a GET.
pub async fn get(face: &HttpFace, target: &Target, headers: &HeaderMap) -> Result<Answer, ObjectError> {
    let reader = face.engine.open(target, no_cache(headers)).await?;
    match read(face, &reader, headers).await {
        Err(ObjectError::VersionChanged(_)) => {
            let reader = face.engine.open(target, true).await?;
            read(face, &reader, headers).await
        }
        result => result,
    }
}

async fn read(face: &HttpFace, reader: &Reader, headers: &HeaderMap) -> Result<Answer, ObjectError> {
    let stat = reader.stat();
    if let Some(answer) = conditional(face, stat, headers) {
        return Ok(answer);
    }
    let length = stat.meta.length;
    let counts = validators(stat).range_counts(headers);
    match range::wanted(range_header(headers).filter(|_| counts), length) {
        Ok(Wanted::Whole) if length == 0 => Ok(answered(face, stat, StatusCode::OK, 0)),
        Ok(Wanted::Whole) => send(face, reader, 0..length, StatusCode::OK).await,
        Ok(Wanted::Part(part)) => {
            let content_range = range::content_range(&part, length);
            let mut answer = send(face, reader, part, StatusCode::PARTIAL_CONTENT).await?;
            set(&mut answer, header::CONTENT_RANGE, &content_range);
            Ok(answer)
        }
        Err(error) => {
            let mut answer = answer::refusal(StatusCode::RANGE_NOT_SATISFIABLE, &error.to_string());
            set(&mut answer, header::CONTENT_RANGE, &format!("bytes */{length}"));
            Ok(answer)
        }
    }
}

/// Starts reading `part`, which is not empty.
async fn send(face: &HttpFace, reader: &Reader, part: Range<u64>, status: StatusCode) -> Result<Answer, ObjectError> {
    let length = part.end - part.start;
    let mut stream = reader.stream(part);
    let first = stream.next().await.unwrap_or_else(|| Err(ObjectError::Internal("an object without pieces".into())))?;
    let body = ObjectBody::new(first, stream, length);
    let answer = answered(face, reader.stat(), status, length);
    Ok(answer.map(|_| Content::Object(Box::new(body))))
}

/// An answer with the attributes of the version and the length of what follows, still without it.
fn answered(face: &HttpFace, stat: &Stat, status: StatusCode, length: u64) -> Answer {
    let mut answer = answer::empty(status);
    *answer.headers_mut() = answer::object_headers(stat, face.storage_class());
    answer.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    answer
}

/// The answer when a condition of the request does not hold.
fn conditional(face: &HttpFace, stat: &Stat, headers: &HeaderMap) -> Option<Answer> {
    match validators(stat).evaluate(headers) {
        Outcome::Proceed => None,
        Outcome::Failed => Some(answer::error(&ObjectError::PreconditionFailed.into())),
        Outcome::NotModified => {
            let mut answer = answered(face, stat, StatusCode::NOT_MODIFIED, 0);
            answer.headers_mut().remove(header::CONTENT_LENGTH);
            Some(answer)
        }
    }
}

fn validators(stat: &Stat) -> Validators<'_> {
    Validators { etag: &stat.meta.etag, last_modified_ms: stat.meta.last_modified_ms }
}

/// The value of `Range`. Several lines count as a list, which is more than one range; one that is not text is kept as
/// something that cannot be understood.
fn range_header(headers: &HeaderMap) -> Option<&str> {
    let mut lines = headers.get_all(header::RANGE).iter();
    let first = lines.next()?.to_str().unwrap_or("?");
    Some(if lines.next().is_some() { "bytes=" } else { first })
}

/// Whether the client wants the backend to be asked.
fn no_cache(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::CACHE_CONTROL).iter().chain(headers.get_all(header::PRAGMA));
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|directive| directive.trim().eq_ignore_ascii_case("no-cache"))
}

fn set(answer: &mut Response<Content>, name: header::HeaderName, value: &str) {
    answer.headers_mut().insert(name, HeaderValue::from_str(value).expect("digits and ASCII letters"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(header::HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, HeaderValue::from_str(value).expect("a value"));
        }
        headers
    }

    #[test]
    fn no_cache_is_one_directive_among_others() {
        assert!(no_cache(&headers(&[(header::CACHE_CONTROL, "max-age=0, No-Cache")])));
        assert!(no_cache(&headers(&[(header::PRAGMA, "no-cache")])));
        assert!(!no_cache(&headers(&[(header::CACHE_CONTROL, "max-age=0"), (header::CACHE_CONTROL, "no-store")])));
        assert!(!no_cache(&HeaderMap::new()));
    }

    #[test]
    fn two_range_lines_are_more_than_one_range() {
        let two = headers(&[(header::RANGE, "bytes=0-1"), (header::RANGE, "bytes=2-3")]);
        assert_eq!(range::wanted(range_header(&two), 10), Err(range::RangeError::NotOne));
        assert_eq!(range::wanted(range_header(&headers(&[(header::RANGE, "")])), 10), Ok(Wanted::Whole));
        let mut odd = HeaderMap::new();
        odd.insert(header::RANGE, HeaderValue::from_bytes(b"bytes=\xff").expect("opaque bytes are allowed"));
        assert_eq!(range::wanted(range_header(&odd), 10), Err(range::RangeError::Invalid));
    }
}
