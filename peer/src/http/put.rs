//! PUT of an object: the multipart form of the original's clients, a plain body, or a copy within the bucket.

use dfstore_proto::object::{ObjectMeta, WriteMode};
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Request, StatusCode};
use hyper::body::{Body, Incoming};

use crate::engine::request::{PutDone, PutRequest, Target};
use crate::engine::{ObjectError, target_of};
use crate::http::HttpFace;
use crate::http::answer::{self, Answer, RequestError};
use crate::http::form::{self, File, Form, Part};
use crate::http::ingest::Ingest;
use crate::http::route::{first, pairs};
use crate::limits::{OBJECT_BYTES_MAX, REPLICAS_MAX};

const OPERATION: &str = "x-dragonfly-object-operation";
const ACK: &str = "x-dfs-ack";
/// Seeds that keep a copy, or make one now, of those that were asked for.
const X_DFS_REPLICAS: HeaderName = HeaderName::from_static("x-dfs-replicas");

/// Whether a PUT asks for a copy.
pub fn is_copy(headers: &HeaderMap) -> bool {
    headers.get(OPERATION).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"copy"))
}

/// Answers a copy: `source_object_key` is in a form of either encoding.
pub async fn copy(face: &HttpFace, target: &Target, request: &mut Request<Incoming>) -> Result<Answer, RequestError> {
    let content_type = content_type_of(request).to_owned();
    let fields = form::fields(&content_type, request.body_mut()).await?;
    let source = first(&fields, "source_object_key").filter(|key| !key.is_empty());
    let source = source.ok_or_else(|| RequestError::Form("the form field `source_object_key` is missing".into()))?;
    let source = target_of(&target.name.bucket, source)?;
    face.engine.copy(&source, target).await?;
    Ok(answer::empty(StatusCode::OK))
}

/// Answers an upload.
pub async fn put(face: &HttpFace, target: &Target, request: &mut Request<Incoming>) -> Result<Answer, RequestError> {
    let ack_peers = ack_of(face, request.headers())?;
    let content_type = content_type_of(request);
    let done = if form::is_multipart(content_type) {
        put_form(face, target, request, ack_peers).await?
    } else if !has_body(request.headers()) {
        return Err(RequestError::Form("there is no file: send a multipart form with a part `file`, or a body".into()));
    } else if form::is_urlencoded(content_type) {
        let why = "the content type application/x-www-form-urlencoded, which some clients give by default, is that of a \
                   form without a file: give another one, such as application/octet-stream, or send a multipart form \
                   with a part `file`";
        return Err(RequestError::Form(why.into()));
    } else {
        put_plain(face, target, request, ack_peers).await?
    };
    let mut answer = answer::empty(StatusCode::OK);
    if let Ok(etag) = HeaderValue::from_str(&done.meta.etag) {
        answer.headers_mut().insert(header::ETAG, etag);
    }
    let (kept, asked) = done.replicas;
    if kept > 0
        && let Ok(replicas) = HeaderValue::from_str(&format!("{kept}/{asked}"))
    {
        answer.headers_mut().insert(X_DFS_REPLICAS, replicas);
    }
    Ok(answer)
}

async fn put_plain(
    face: &HttpFace,
    target: &Target,
    request: &mut Request<Incoming>,
    ack_peers: u16,
) -> Result<PutDone, RequestError> {
    let mut options = PutOptions { ack_peers, ..PutOptions::default() };
    for (name, value) in pairs(request.uri().query().unwrap_or_default())? {
        options.set(&name, &value)?;
    }
    let headers = request.headers();
    let text = |name: header::HeaderName| text_header(headers, name.as_str()).to_owned();
    let meta = ObjectMeta {
        content_type: text(header::CONTENT_TYPE),
        content_encoding: text(header::CONTENT_ENCODING),
        content_disposition: text(header::CONTENT_DISPOSITION),
        content_language: text(header::CONTENT_LANGUAGE),
        ..ObjectMeta::default()
    };
    let body = request.body_mut();
    let length = announced(body)?;
    let put = options.request(face, target, length, meta);
    let mut ingest = Ingest::begin(face, put, length.unwrap_or(OBJECT_BYTES_MAX)).await?;
    while let Some(bytes) = ingest.beside(form::next_data(body)).await?? {
        ingest.append(bytes).await?;
    }
    Ok(ingest.finish(options.mode, options.replicas).await?)
}

/// Parts come in any order, as the original takes them.
async fn put_form(
    face: &HttpFace,
    target: &Target,
    request: &mut Request<Incoming>,
    ack_peers: u16,
) -> Result<PutDone, RequestError> {
    let content_type = content_type_of(request).to_owned();
    let body = request.body_mut();
    let length_max = announced(body)?.unwrap_or(OBJECT_BYTES_MAX);
    let mut form = Form::new(&content_type, body)?;
    let mut options = PutOptions { ack_peers, ..PutOptions::default() };
    let mut ingest: Option<Ingest> = None;
    loop {
        let part = match &mut ingest {
            Some(ingest) => ingest.beside(form.next()).await??,
            None => form.next().await?,
        };
        match part {
            Some(Part::Field { name, value }) => options.set(&name, &value)?,
            Some(Part::File(_)) if ingest.is_some() => {
                return Err(RequestError::Form("there is more than one file".into()));
            }
            Some(Part::File(mut file)) => {
                let meta = ObjectMeta { content_type: file.content_type().to_owned(), ..ObjectMeta::default() };
                let put = options.request(face, target, None, meta);
                let begun = ingest.insert(Ingest::begin(face, put, length_max).await?);
                receive(begun, &mut file).await?;
            }
            None => break,
        }
    }
    let ingest = ingest.ok_or_else(|| RequestError::Form("the form has no part `file`".into()))?;
    Ok(ingest.finish(options.mode, options.replicas).await?)
}

/// The length that the head announces, if it does.
fn announced(body: &Incoming) -> Result<Option<u64>, RequestError> {
    let length = body.size_hint().exact();
    let too_large = length.is_some_and(|length| length > OBJECT_BYTES_MAX);
    if too_large { Err(RequestError::ObjectTooLarge) } else { Ok(length) }
}

async fn receive(ingest: &mut Ingest, file: &mut File<'_>) -> Result<(), RequestError> {
    while let Some(bytes) = ingest.beside(file.next()).await?? {
        ingest.append(bytes).await?;
    }
    Ok(())
}

/// What a client may choose about a write.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct PutOptions {
    mode: WriteMode,
    /// `None` is the configured default.
    replicas: Option<u16>,
    /// Peers that are to hold the object before the answer.
    ack_peers: u16,
}

impl PutOptions {
    /// Takes one form field or query parameter. An empty value counts as absent; `filter` has nothing to remove from
    /// an object's name, and unknown names are ignored, as by the original.
    fn set(&mut self, name: &str, value: &str) -> Result<(), ObjectError> {
        let invalid = |what: &str| ObjectError::InvalidArgument(format!("{name} must be {what}, not {value:?}"));
        match name {
            "mode" if !value.is_empty() => {
                let mode = value.parse().ok().and_then(WriteMode::from_number);
                self.mode =
                    mode.ok_or_else(|| invalid("0 (asynchronous write-back), 1 (write-back) or 2 (ephemeral)"))?;
            }
            "maxReplicas" if !value.is_empty() => {
                let replicas = value.parse().ok().filter(|replicas| *replicas <= REPLICAS_MAX);
                let replicas = replicas.ok_or_else(|| invalid("a number from 1 to 100, or 0 for the default"))?;
                self.replicas = (replicas > 0).then_some(replicas);
            }
            _ => {}
        }
        Ok(())
    }

    fn request(self, face: &HttpFace, target: &Target, length: Option<u64>, meta: ObjectMeta) -> PutRequest {
        let replicas = self.replicas.unwrap_or(face.engine.replicas_default());
        let ack_peers = self.ack_peers;
        PutRequest { target: target.clone(), mode: self.mode, replicas, ack_peers, length, meta }
    }
}

/// How many peers are to hold the object before the answer, if so many can.
fn ack_of(face: &HttpFace, headers: &HeaderMap) -> Result<u16, ObjectError> {
    face.engine.check_ack(ack_count(text_header(headers, ACK))?)
}

/// `local` or nothing (this peer), or `peers:K`.
fn ack_count(value: &str) -> Result<u32, ObjectError> {
    let value = value.trim();
    if value.is_empty() || value.eq_ignore_ascii_case("local") {
        return Ok(0);
    }
    let count = value.strip_prefix("peers:").and_then(|count| count.trim().parse().ok()).filter(|count| *count > 0);
    count.ok_or_else(|| {
        ObjectError::InvalidArgument(format!("X-Dfs-Ack: {value} is not understood; use `local` or `peers:K`"))
    })
}

fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(header::CONTENT_LENGTH) || headers.contains_key(header::TRANSFER_ENCODING)
}

fn content_type_of(request: &Request<Incoming>) -> &str {
    text_header(request.headers(), header::CONTENT_TYPE.as_str())
}

fn text_header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, value: &str) -> Option<PutOptions> {
        let mut options = PutOptions::default();
        options.set(name, value).ok().map(|()| options)
    }

    #[test]
    fn options_by_table() {
        let default = PutOptions::default();
        let mode = |mode| Some(PutOptions { mode, ..default });
        let replicas = |replicas| Some(PutOptions { replicas: Some(replicas), ..default });
        for (name, value, expected) in [
            ("mode", "", Some(default)),
            ("mode", "0", Some(default)),
            ("mode", "1", mode(WriteMode::WriteBack)),
            ("mode", "2", mode(WriteMode::Ephemeral)),
            ("mode", "3", None),
            ("mode", "-1", None),
            ("mode", "abc", None),
            ("mode", "99999999999999999999", None),
            ("maxReplicas", "", Some(default)),
            ("maxReplicas", "0", Some(default)),
            ("maxReplicas", "1", replicas(1)),
            ("maxReplicas", "100", replicas(100)),
            ("maxReplicas", "101", None),
            ("maxReplicas", "-1", None),
            ("maxReplicas", "x", None),
            ("filter", "Expires&Signature", Some(default)),
            ("whatever", "x", Some(default)),
        ] {
            assert_eq!(set(name, value), expected, "{name}={value}");
        }
    }

    #[test]
    fn an_acknowledgement_is_local_or_by_a_number_of_peers() {
        let cases = [
            ("", Some(0)),
            ("local", Some(0)),
            (" Local ", Some(0)),
            ("peers:1", Some(1)),
            ("peers: 3", Some(3)),
            ("peers:0", None),
            ("peers:", None),
            ("all", None),
        ];
        for (value, expected) in cases {
            assert_eq!(ack_count(value).ok(), expected, "{value}");
        }
    }

    #[test]
    fn copies_are_told_by_one_header() {
        let mut headers = HeaderMap::new();
        assert!(!is_copy(&headers));
        headers.insert(OPERATION, HeaderValue::from_static("copy"));
        assert!(is_copy(&headers));
        headers.insert(OPERATION, HeaderValue::from_static("move"));
        assert!(!is_copy(&headers));
    }
}
