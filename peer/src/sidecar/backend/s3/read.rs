//! Reading objects: attributes and ranges.
//!
//! The invariant of this folder is kept here: [`S3Backend::get_once`] gives a range only after the status, the
//! `Content-Range`, the entity tag and the number of bytes that arrived all agree with what was asked.

use std::collections::HashMap;

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::{ByteStream, DateTime};
use dfstore_proto::ids::ObjectName;
use dfstore_proto::object::ObjectMeta;
use tokio::time::{Instant, timeout_at};

use super::{S3Backend, passes_soon};
use crate::metrics::BackendOperation;
use crate::rt::arena::SlotMut;
use crate::sidecar::backend::error::BackendErrorKind;
use crate::sidecar::backend::failure::Refusal;
use crate::sidecar::backend::{GetRequest, Head, Result};

/// Name of the user metadata that carries an object's digest.
pub(super) const DIGEST_METADATA: &str = "digest";
/// Name of the user metadata that carries what the writer called the version.
pub(super) const VERSION_METADATA: &str = "dfstore-version";

impl S3Backend {
    pub(super) async fn head_object(&self, name: &ObjectName) -> Result<Head> {
        self.check_name(BackendOperation::Head, name)?;
        let request = self.client.head_object().bucket(&name.bucket).key(&name.key).send();
        let answer = self.ask(BackendOperation::Head, name, request).await?;
        let meta = ObjectMeta {
            length: non_negative(answer.content_length()),
            etag: owned(answer.e_tag()),
            last_modified_ms: milliseconds(answer.last_modified()),
            content_type: owned(answer.content_type()),
            content_encoding: owned(answer.content_encoding()),
            content_disposition: owned(answer.content_disposition()),
            content_language: owned(answer.content_language()),
            storage_class: owned(answer.storage_class().map(|class| class.as_str())),
            digest: metadata(answer.metadata(), DIGEST_METADATA),
        };
        Ok(Head { meta, written_as: metadata(answer.metadata(), VERSION_METADATA) })
    }

    pub(super) async fn get_with_retries(&self, request: &GetRequest, slot: &mut SlotMut) -> Result<(u32, ObjectMeta)> {
        let length = request.range.end.saturating_sub(request.range.start);
        assert!(length <= slot.capacity() as u64, "a range of {length} bytes does not fit into its slot");
        let mut pause = self.tuning.retry_pause;
        for _ in 1..self.tuning.attempts {
            match self.get_or_empty(request, slot).await {
                Err(error) if passes_soon(error.kind) => self.pause_before_retry(&mut pause).await,
                result => return result,
            }
        }
        self.get_or_empty(request, slot).await
    }

    /// No range of an empty object can be satisfied, so a first read that meets one asks for the attributes.
    async fn get_or_empty(&self, request: &GetRequest, slot: &mut SlotMut) -> Result<(u32, ObjectMeta)> {
        let first_read = !request.exact && request.range.start == 0;
        match self.get_once(request, slot).await {
            Err(error) if first_read && error.kind == BackendErrorKind::RangeNotSatisfiable => {
                let meta = self.head_object(&request.name).await?.meta;
                if meta.length == 0 {
                    slot.set_len(0);
                    return Ok((0, meta));
                }
                // It was written between the two requests.
                Err(error).map_err(|error| super::BackendError { kind: BackendErrorKind::VersionChanged, ..error })
            }
            result => result,
        }
    }

    async fn get_once(&self, request: &GetRequest, slot: &mut SlotMut) -> Result<(u32, ObjectMeta)> {
        let GetRequest { name, range, .. } = request;
        self.check_name(BackendOperation::Get, name)?;
        if range.is_empty() {
            return self.refuse(BackendOperation::Get, name, "the range is empty");
        }
        let asked = format!("bytes={}-{}", range.start, range.end - 1);
        let sent = self
            .client
            .get_object()
            .bucket(&name.bucket)
            .key(&name.key)
            .range(asked)
            .set_if_match(request.if_match.clone())
            .send();
        let attempt = self.attempt(BackendOperation::Get, name);
        let fetched = match attempt.answer(sent, None).await {
            Ok(answer) => self.take(request, answer, slot).await,
            // The only condition that is ever sent is the version.
            Err((BackendErrorKind::PreconditionFailed, message)) => Err((BackendErrorKind::VersionChanged, message)),
            Err(other) => Err(other),
        };
        attempt.end(fetched)
    }

    async fn take(
        &self,
        request: &GetRequest,
        mut answer: GetObjectOutput,
        slot: &mut SlotMut,
    ) -> std::result::Result<(u32, ObjectMeta), Refusal> {
        let (length, total) = checked_length(request, &answer)?;
        let body = std::mem::replace(&mut answer.body, ByteStream::from_static(b""));
        let crc32 = self.fill(slot, body, length).await?;
        Ok((crc32, attributes(&answer, total)))
    }

    /// Streams the body into the slot; it must have exactly `length` bytes and come at the minimum rate.
    async fn fill(&self, slot: &mut SlotMut, mut body: ByteStream, length: u64) -> std::result::Result<u32, Refusal> {
        slot.set_len(0);
        let mut crc32 = crc32fast::Hasher::new();
        let mut in_window = 0;
        let mut window_ends = Instant::now() + self.tuning.body_window;
        loop {
            let chunk = match timeout_at(window_ends, body.next()).await {
                Ok(Some(Ok(chunk))) => chunk,
                Ok(Some(Err(error))) => {
                    let got = slot.len();
                    return Err((BackendErrorKind::BadAnswer, format!("body broke off at {got} of {length}: {error}")));
                }
                Ok(None) => break,
                Err(_) if in_window >= self.tuning.body_window_bytes => {
                    in_window = 0;
                    window_ends = Instant::now() + self.tuning.body_window;
                    continue;
                }
                Err(_) => return Err((BackendErrorKind::Timeout, "the body comes too slowly".to_owned())),
            };
            if slot.len() as u64 + chunk.len() as u64 > length {
                return Err((BackendErrorKind::BadAnswer, format!("body is longer than the {length} bytes asked for")));
            }
            crc32.update(&chunk);
            slot.append(&chunk);
            in_window += chunk.len() as u64;
            self.metrics.backend_received(chunk.len() as u64);
        }
        if slot.len() as u64 != length {
            let got = slot.len();
            return Err((BackendErrorKind::BadAnswer, format!("body ended at {got} of {length} bytes")));
        }
        Ok(crc32.finalize())
    }
}

/// The length of the body and of the whole object, if the answer's head is an answer to `request`.
fn checked_length(request: &GetRequest, answer: &GetObjectOutput) -> std::result::Result<(u64, u64), Refusal> {
    let bad = |what: String| Err((BackendErrorKind::BadAnswer, what));
    if let Some(expected) = &request.if_match
        && answer.e_tag().is_some_and(|got| got != expected)
    {
        let got = answer.e_tag().unwrap_or_default();
        return Err((BackendErrorKind::VersionChanged, format!("asked for {expected}, got {got}")));
    }
    let range = &request.range;
    let announced = non_negative(answer.content_length());
    let (start, end, total) = match answer.content_range() {
        Some(text) => match parse_content_range(text) {
            Some(parsed) => parsed,
            None => return bad(format!("unreadable Content-Range {text:?}")),
        },
        // The server gave the whole object.
        None => (0, announced, announced),
    };
    let expected_end = if request.exact { range.end } else { range.end.min(total) };
    if start != range.start || end != expected_end || end > total {
        return bad(format!("asked for {}-{}, got {start}-{end} of {total}", range.start, range.end));
    }
    if answer.content_length().is_some() && announced != end - start {
        return bad(format!("range of {} bytes with Content-Length {announced}", end - start));
    }
    Ok((end - start, total))
}

/// First byte, byte after the last, and total of `bytes F-L/T`.
fn parse_content_range(text: &str) -> Option<(u64, u64, u64)> {
    let (range, total) = text.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, total): (u64, u64, u64) = (first.parse().ok()?, last.parse().ok()?, total.parse().ok()?);
    (first <= last).then_some((first, last.checked_add(1)?, total))
}

fn attributes(answer: &GetObjectOutput, length: u64) -> ObjectMeta {
    ObjectMeta {
        length,
        etag: owned(answer.e_tag()),
        last_modified_ms: milliseconds(answer.last_modified()),
        content_type: owned(answer.content_type()),
        content_encoding: owned(answer.content_encoding()),
        content_disposition: owned(answer.content_disposition()),
        content_language: owned(answer.content_language()),
        storage_class: owned(answer.storage_class().map(|class| class.as_str())),
        digest: metadata(answer.metadata(), DIGEST_METADATA),
    }
}

fn metadata(all: Option<&HashMap<String, String>>, wanted: &str) -> String {
    let found = all.and_then(|all| all.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)));
    found.map(|(_, value)| value.clone()).unwrap_or_default()
}

pub(super) fn owned(text: Option<&str>) -> String {
    text.unwrap_or_default().to_owned()
}

pub(super) fn non_negative(number: Option<i64>) -> u64 {
    number.and_then(|number| u64::try_from(number).ok()).unwrap_or(0)
}

pub(super) fn milliseconds(time: Option<&DateTime>) -> u64 {
    non_negative(time.and_then(|time| time.to_millis().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_range_is_parsed_or_refused() {
        assert_eq!(parse_content_range("bytes 0-0/1"), Some((0, 1, 1)));
        assert_eq!(parse_content_range("bytes 5-9/10"), Some((5, 10, 10)));
        for bad in
            ["", "bytes", "bytes */10", "bytes 5-4/10", "bytes 0-9/*", "bytes 0-18446744073709551615/1", "items 0-1/2"]
        {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }
}
